"""The parts of a run, made of its configuration: seeds, device, agent, replay."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.config import Config
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import element_shape, observation_shape
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import machine
from pixel_ddpg.runtime.layers import ON_INTEL, OPTIMIZED

RANDOM_STREAMS = ("environment", "exploration", "init", "update_noise", "replay")


def seeds(seed: int) -> dict[str, int]:
    """An independent seed for every random stream of a run."""
    sequence = np.random.SeedSequence(tasks.for_numpy(seed))
    return dict(zip(RANDOM_STREAMS, sequence.generate_state(len(RANDOM_STREAMS)).tolist()))


def player_seeds(seed: int, number: int) -> tuple[int, int]:
    """Seeds of the environment and the exploration of every player after the first."""
    sequence = np.random.SeedSequence((tasks.for_numpy(seed), 0, number))
    environment, exploration = sequence.generate_state(2).tolist()
    return environment, exploration


def evaluation_seed(seed: int, frame: int) -> int:
    """Evaluations draw from a stream of their own, which seed and frame determine."""
    return int(np.random.SeedSequence((tasks.for_numpy(seed), 1 + frame)).generate_state(1)[0])


def choose_device(config: Config) -> torch.device:
    """The device a run trains on; UserError for one that is not there, and for what only a GPU does."""
    device = machine.find_device(config.device)
    for_a_gpu = {
        "train.cuda_graph=true": config.train.cuda_graph, "train.compile=true": config.train.compile,
        "agent.precision=tf32": config.agent.precision == "tf32",
    }  # fmt: skip
    for word, asked in for_a_gpu.items():
        if asked and device.type != "cuda":
            raise UserError(f"{word} is for a GPU: leave it out, as this run trains on device={device}")
    return device


def make_agent(config: Config, device: torch.device) -> DDPG:
    """A new agent, as a run begins with."""
    task, seed_of = tasks.find(config.task), seeds(config.seed)
    shape, settings = observation_shape(task, config.obs, config.env), config.agent
    settings = dataclasses.replace(settings, precision=machine.resolved_precision(settings.precision, device))
    compiled, layers = _compiled(config, device), ON_INTEL if machine.is_intel() else OPTIMIZED
    # torch's layers draw weights with the caller's random stream, device and type, before `initialise` draws them again
    with torch.random.fork_rng([]), torch.device("cpu"), _float32():
        agent = DDPG(
            shape, task.action_dim, settings, config.noise, n_step=config.replay.n_step, layers=layers,
            compiled=compiled, device=device, init_seed=seed_of["init"], noise_seed=seed_of["update_noise"],
        )  # fmt: skip
    if compiled:
        agent.encoder.compile(dynamic=False)
    return agent


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_replay(config: Config, capacity: int, device: torch.device | str = "cpu", streams: int = 1) -> Replay:
    """A new replay of `capacity` transitions, as a run's agent learns from."""
    device = torch.device(device)
    return Replay(
        replay_element(config), tasks.find(config.task).action_dim, capacity, streams=streams,
        frame_stack=config.env.frame_stack, n_step=config.replay.n_step, discount=config.agent.discount,
        random_shift=config.agent.random_shift, unshifted=config.agent.reconstruction_loss > 0,
        following=config.obs == "state" and config.agent.model_width > 0, compiled=_compiled(config, device),
        device=device, seed=seeds(config.seed)["replay"],
    )  # fmt: skip


def _compiled(config: Config, device: torch.device) -> Callable[[Callable], Callable] | None:
    """torch.compile where it is asked for, on a GPU: on a CPU it needs a compiler of C++.

    A batch's size never changes, so neither do shapes.
    """
    return functools.partial(torch.compile, dynamic=False) if config.train.compile and device.type == "cuda" else None


def replay_element(config: Config) -> tuple[int, ...]:
    """Shape of what a run adds to its replay with each step."""
    return element_shape(tasks.find(config.task), config.obs, config.env)


def replay_capacity(config: Config) -> int:
    """Transitions the ring is made for: no more than the budget fills with episodes of full length.

    Where a task ends episodes early, each takes a slot more than its steps, and the ring forgets that much sooner.
    """
    episode = tasks.find(config.task).episode_frames
    slots = math.ceil(episode / config.env.action_repeat) + 1  # its observations
    return min(config.replay.capacity, (config.frames // episode + config.envs) * slots)


def overlaps(config: Config) -> bool:
    """Whether updates are made while environments step, in processes of their own."""
    return config.train.overlap or config.envs > 1


def planned_updates(config: Config) -> int:
    """How many a whole run makes, where every step has as many frames as it repeats its action and can be drawn."""
    ratio, count = config.train.updates_per_step, config.envs
    steps = count * math.ceil(config.frames / (config.env.action_repeat * count))
    first, last = count * math.ceil(config.train.start_steps / count), steps - count * overlaps(config)
    return max(0, math.floor(last * ratio) - math.floor((first - count) * ratio))
