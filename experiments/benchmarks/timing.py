"""Alternating measurements of several ways to do one thing, and what the machine itself can do."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import layers

ROUND_SECONDS = 0.4  # each contestant's turn takes about so long


def check_rounds(rounds: int, seconds: float) -> None:
    """UserError for a measurement that would have no end, or nothing in it."""
    if rounds < 1 or not 0 < seconds < math.inf:
        raise UserError("rounds and seconds must be above 0")


@dataclasses.dataclass
class Turns:
    """One contestant: seconds of a unit of work in each round, and how many units it did by its own count."""

    seconds: list[float]
    count: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict:
        return {"seconds": self.seconds, "median": self.median, "count": self.count}


def alternate(
    contestants: Mapping[str, tuple[Callable[[], object], Callable[[], int]]], rounds: int, units: int = 0
) -> dict[str, Turns]:
    """Every contestant in every round, in turn; each does the same number of units, and warms up with one.

    A contestant is a unit of work, and a count of how many it has done in all; an AssertionError where the counts of
    these rounds are not equal.
    """
    for work, _ in contestants.values():
        work()
    before = {name: count() for name, (_, count) in contestants.items()}
    slowest = max(_seconds(work, 1) for work, _ in contestants.values())
    units = units or max(1, round(ROUND_SECONDS / slowest))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (work, _) in contestants.items():
            seconds[name].append(_seconds(work, units) / units)
    done = {name: count() - before[name] for name, (_, count) in contestants.items()}
    assert set(done.values()) == {rounds * units + 1}, f"not the same work: {done}"
    return {name: Turns(seconds[name], done[name]) for name in contestants}


def _seconds(work: Callable[[], object], units: int) -> float:
    start = time.perf_counter()
    for _ in range(units):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(slower: list[float], faster: list[float]) -> dict:
    """How many times as fast, round by round: median and extremes."""
    values = [a / b for a, b in zip(slower, faster)]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


@dataclasses.dataclass
class Rates:
    """What this machine does in a second with the threads torch has now: flops of products and convolutions, bytes."""

    product: float
    convolution: float
    bandwidth: float


def measure_rates() -> Rates:
    """The best of several turns at shapes that suit it: products of 1024^3, 3x3 over 64 maps of 32 channels, 32^2."""
    with torch.no_grad():
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        ways = [lambda: a @ b] + [lambda: layers.product(a, b)] * layers.AVAILABLE
        product = max(_rate(way, 2 * 1024**3) for way in ways)
        maps = torch.randn(64, 32, 34, 34).to(memory_format=torch.channels_last)
        layer = torch.nn.Conv2d(32, 32, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        convolution = _rate(lambda: layer(maps), 2 * 64 * 32 * 32**2 * 32 * 9)
        source, target = torch.zeros(2**25), torch.zeros(2**25)
        return Rates(product, convolution, _rate(lambda: target.copy_(source), 2 * source.nbytes))


def _rate(work: Callable[[], object], amount: float) -> float:
    return amount / fastest(work)


def fastest(work: Callable[[], object], turns: int = 12) -> float:
    """Seconds of the best of several turns, after one that does not count."""
    work()
    return min(_seconds(work, 1) for _ in range(turns))


class Stopwatch:
    """Seconds spent within some of an object's callables, by name; what one calls of another counts for the inner."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def watch(self, owner: object, attribute: str, name: str) -> None:
        """From now on owner.attribute is timed."""
        plain = getattr(owner, attribute)

        def timed(*args, **kwargs):
            self._inner.append(0.0)
            start = time.perf_counter()
            result = plain(*args, **kwargs)
            whole = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
            return result

        object.__setattr__(owner, attribute, timed)

    def shares(self, total: float) -> Iterator[tuple[str, float]]:
        """(name, share of `total`), and the rest."""
        yield from ((name, seconds / total) for name, seconds in self.seconds.items())
        yield "rest", 1 - sum(self.seconds.values()) / total
