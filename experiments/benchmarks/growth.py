"""How cost grows with work: update time, memory, and runs that share the machine."""

import concurrent.futures
import dataclasses
import multiprocessing

import psutil

from experiments.benchmarks import learner, training
from experiments.benchmarks.timing import alternate, measure_rates
from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.envs import workers

BASE = ("preset=fast", "obs=pixels")
SWEPT: dict[str, dict[int, tuple[str, ...]]] = {
    "batch": {n: (f"replay.batch_size={n}",) for n in (16, 32, 64, 128, 256)},
    "image size": {n: (f"env.size={n}",) for n in (32, 48, 64, 84, 128)},
    "encoder width": {n: (f"agent.conv=[[{n // 2},3,2,1],[{n},3,2,1],[{n},3,2,1]]",) for n in (8, 16, 32, 64, 128)},
}
CAPACITIES = (10_000, 30_000, 100_000)
AT_ONCE = (1, 2, 4)
ENVIRONMENTS = (1, 2, 4)


def update_times(rounds: int) -> dict[str, list[dict]]:
    """Per swept quantity: its value, seconds of an update, the floor."""
    found: dict[str, list[dict]] = {}
    for quantity, values in SWEPT.items():
        for value, words in values.items():
            update, count, _, _ = learner.updater((*BASE, *words))
            turns = alternate({"ours": (update, count)}, rounds)["ours"]
            lowest = learner.floor(learner.work_of((*BASE, *words)), measure_rates())
            found.setdefault(quantity, []).append(
                {"value": value, "seconds": turns.seconds, "median": turns.median, "floor": lowest}
            )
    return found


def memory() -> list[dict]:
    """Bytes that the process grows by when a full ring of 64x64 pictures is made."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for capacity in CAPACITIES:
        with concurrent.futures.ProcessPoolExecutor(1, context) as fresh:
            with workers.sigint_ignored_by_children():
                filling = fresh.submit(_ring_bytes, capacity)
            rows.append({"capacity": capacity, "bytes": filling.result()})
    return rows


def _ring_bytes(capacity: int) -> int:
    process = psutil.Process()
    before = process.memory_info().rss
    replay = Replay((3, 64, 64), 6, capacity, frame_stack=3, n_step=3)
    for table in replay.TABLES:
        getattr(replay, table).fill_(1)
    return process.memory_info().rss - before


def sharing(rounds: int, seconds: float) -> list[dict]:
    """Runs at once, one thread each."""
    return training.measure([training.Runs(BASE, at_once=count) for count in AT_ONCE], rounds, seconds)


def environments(rounds: int, seconds: float) -> list[dict]:
    """Environments of one run, and one that overlaps, one thread for its learner."""
    rows = []
    for preset in ("fast", "ddpg2016"):
        ways = [(1, False), *((count, True) for count in ENVIRONMENTS)]
        words = [(f"envs={count}", f"train.overlap={str(overlap).lower()}") for count, overlap in ways]
        runs = [training.Runs((f"preset={preset}", "obs=pixels", *more)) for more in words]
        for (count, overlap), row in zip(ways, training.measure(runs, rounds, seconds)):
            rows.append({"preset": preset, "envs": count, "overlap": overlap, **row})
    return rows


def measure(rounds: int, seconds: float) -> dict:
    """All of it, each part told when it begins."""
    parts = {
        "update": lambda: update_times(rounds), "memory": memory, "sharing": lambda: sharing(rounds, seconds),
        "environments": lambda: environments(rounds, seconds),
    }  # fmt: skip
    found: dict = {"words": list(BASE), "rates": dataclasses.asdict(measure_rates())}
    for name, part in parts.items():
        print(f"    {name} ...", flush=True)
        found[name] = part()
    return found
