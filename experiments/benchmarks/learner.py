"""Updates of the learner, with sampling, on a filled replay."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks import peers
from experiments.benchmarks.timing import Rates, Stopwatch, Turns, alternate, fastest, measure_rates, ratios
from pixel_ddpg import presets
from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.config import Config
from pixel_ddpg.envs import tasks
from pixel_ddpg.runtime import layers, machine
from pixel_ddpg.training import build

TRANSITIONS = 2000  # in the replay: more than any cache holds, of pixels
# As Stable-Baselines3's DDPG is: its critic takes the action at the first layer, and nothing decays.
LIKE_SB3 = ("preset=ddpg2016_no_bn", "obs=state", "agent.action_layer=0", "agent.critic_weight_decay=0")
CASES: dict[str, tuple[str, ...]] = {
    "fast, pixels": ("preset=fast", "obs=pixels", "agent.precision=float32"),
    "fast, state": ("preset=fast", "obs=state"),
    "ddpg2016, pixels": ("preset=ddpg2016", "obs=pixels"),
    "ddpg2016, state": ("preset=ddpg2016", "obs=state"),
    "drqv2, pixels": ("preset=drqv2", "obs=pixels"),
    "drqv2, state": ("preset=drqv2", "obs=state"),
    "400/300 at batch 64, state": LIKE_SB3,
    "three 3x3 convolutions, pixels": (
        "preset=fast", "obs=pixels", "agent.precision=float32", "agent.conv=[[32,3,2,0],[32,3,2,0],[32,3,2,0]]"
    ),
}  # fmt: skip


def make(words: tuple[str, ...], device: str = "cpu") -> tuple[Config, DDPG, Replay]:
    """The settings, a new agent and a replay full of random transitions."""
    settings = presets.compose(["task=cheetah-run", *words])
    machine.use_precision(settings.agent.precision)
    agent = build.make_agent(settings, torch.device(device))
    shape, action_dim = build.replay_element(settings), tasks.find(settings.task).action_dim
    replay = build.make_replay(settings, TRANSITIONS, device)
    random = np.random.default_rng(0)

    def element() -> np.ndarray:
        return random.integers(0, 256, shape, np.uint8) if len(shape) == 3 else random.random(shape, np.float32)

    replay.begin(element())
    for number in range(1, TRANSITIONS + 1):
        action = random.uniform(-1, 1, action_dim).astype(np.float32)
        replay.add(element(), action, random.random(), 1.0, number % 500 == 0)
        if number % 500 == 0:
            replay.begin(element())
    return settings, agent, replay


@contextlib.contextmanager
def plain_path() -> Iterator[None]:
    """torch's own kernels and graph, where the agent would go to oneDNN by itself."""
    kept, layers.AVAILABLE = layers.AVAILABLE, False
    try:
        yield
    finally:
        layers.AVAILABLE = kept


def updater(
    words: tuple[str, ...], plain: bool = False, device: str = "cpu"
) -> tuple[Callable[[], None], Callable[[], int], DDPG, Replay]:
    """One update, and how many its optimiser has made; agent and replay."""
    settings, agent, replay = make(words, device)

    def update() -> None:
        with plain_path() if plain else contextlib.nullcontext():
            agent.update(replay.sample(settings.replay.batch_size))

    return update, lambda: updates_made(agent), agent, replay


def updates_made(agent: DDPG) -> int:
    """By its optimiser's own count."""
    optimizer = agent.optimizers["critic"]
    return int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"])


class Operations(TorchDispatchMode):
    """Keeps the products and convolutions that torch is asked for, as they were asked for."""

    HEAVY = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __init__(self):
        super().__init__()
        self.heavy = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket.__name__ in self.HEAVY:
            self.heavy.append((operation, args))
        return operation(*args, **(kwargs or {}))


def products_alone(words: tuple[str, ...]) -> float:
    """Seconds of one update's products and convolutions, each at its own shape, by the faster of torch and oneDNN."""
    update, *_ = updater(words, plain=True)
    with Operations() as operations:
        update()
    total = 0.0
    with torch.no_grad():
        for operation, args in operations.heavy:
            total += min(fastest(way) for way in _ways(operation, args))
    return total


def _ways(operation: torch._ops.OpOverload, args: tuple) -> Iterator[Callable[[], torch.Tensor]]:
    """By torch, and a product also by oneDNN."""
    yield lambda: operation(*args)
    if operation.overloadpacket.__name__ in ("mm", "addmm") and layers.AVAILABLE:
        yield lambda: layers.product(args[-2], args[-1].t())


def work_of(words: tuple[str, ...]) -> dict[str, float]:
    """Of one update: flops in products and in convolutions, and the bytes that cannot but be moved.

    The bytes are the batch (bytes read from the ring, written, read again, written as floats and read), Adam's seven
    passes over parameters, gradients and moments, and the targets' three.
    """
    update, _, agent, replay = updater(words, plain=True)
    with FlopCounterMode(display=False) as counter:
        update()
    flops = {name.__name__: count for name, count in counter.get_flop_counts()["Global"].items()}
    convolution = sum(count for name, count in flops.items() if "conv" in name)
    settings = presets.compose(["task=cheetah-run", *words])
    observation = math.prod(replay.elements.shape[1:]) * settings.env.frame_stack * settings.replay.batch_size
    of_batch = 2 * observation * (3 + 2 * 4 if replay.elements.dtype == torch.uint8 else 3 * 4)
    trained = sum(parameter.nbytes for parameter in agent.parameters() if parameter.requires_grad)
    targets = sum(p.nbytes for p in agent.targets.parameters())
    return {
        "product_flops": sum(flops.values()) - convolution, "convolution_flops": convolution,
        "bytes": of_batch + 7 * trained + 3 * targets,
    }  # fmt: skip


def floor(work: dict[str, float], rates: Rates) -> float:
    """Seconds that the work takes at the machine's best rates."""
    return (
        work["product_flops"] / rates.product
        + work["convolution_flops"] / rates.convolution
        + work["bytes"] / rates.bandwidth
    )


def stages(words: tuple[str, ...], updates: int) -> dict[str, float]:
    """The share of each part in an update's time; "rest" is the backward passes."""
    update, _, agent, replay = updater(words)
    update()
    watch = Stopwatch()
    parts: list[tuple[object, str, str]] = [(replay, "sample", "sampling")]
    parts += [(agent.encoder, "forward", "encoder, forward"), (agent, "critic_loss", "critic and targets, forward")]
    parts += [(agent, "actor_loss", "actor's loss, forward")]
    parts += [(optimizer, "step", "Adam") for optimizer in agent.optimizers.values()]
    for owner, attribute, name in [*parts, (agent, "update_targets", "targets")]:
        watch.watch(owner, attribute, name)
    whole = Stopwatch()
    whole.watch(agent, "update", "update")
    for _ in range(updates):
        update()
    total = whole.seconds["update"] + watch.seconds["sampling"]
    return {"backward" if name == "rest" else name: share for name, share in watch.shares(total)}


def compared(label: str, turns: dict[str, Turns]) -> dict[str, dict]:
    """How many times as fast as each of the others it is."""
    return {name: ratios(turn.seconds, turns[label].seconds) for name, turn in turns.items() if name != label}


def measure(name: str, rounds: int, drqv2: str) -> dict:
    """One case: ours, torch's own path, the peer that does the same, and the floor measured just before."""
    words = CASES[name]
    rates, work = measure_rates(), work_of(words)
    chosen = {"ours": updater(words)[:2], "torch's path": updater(words, plain=True)[:2]}
    if "obs=pixels" in words:
        chosen["bfloat16"] = updater((*words, "agent.precision=bfloat16"))[:2]
    if words == LIKE_SB3 and (peer := peers.stable_baselines3(*make(words)[::2])):
        chosen["Stable-Baselines3"] = peer
    if name == "drqv2, pixels" and drqv2:
        chosen["DrQ-v2's code"] = peers.drqv2(drqv2, *make(words)[::2])
    turns = alternate(chosen, rounds)
    lowest = floor(work, rates)
    return {
        "name": name, "words": list(words), "threads": torch.get_num_threads(), "work": work,
        "rates": dataclasses.asdict(rates), "floor": lowest, "products_alone": products_alone(words),
        "turns": {label: turn.as_json() for label, turn in turns.items()},
        "of_floor": turns["ours"].median / lowest,
        "times_as_fast_as": compared("ours", turns),
        "bfloat16_times_as_fast_as": compared("bfloat16", turns) if "bfloat16" in turns else {},
        "stages": stages(words, max(2, turns["ours"].count // 2)),
    }  # fmt: skip
