"""What a run takes: time, memory and disk, told before it begins."""

import pathlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.config import Config
from pixel_ddpg.envs import tasks, workers
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import memory
from pixel_ddpg.runtime.learner import Learner, Policy
from pixel_ddpg.training import build, checkpoint


@dataclass
class Cost:
    """The hours and bytes that one run takes."""

    hours: float
    replay: int
    networks: int  # networks and optimisers in one checkpoint
    replay_device: torch.device
    replay_place: str  # where the replay lives, and why

    @property
    def disk(self) -> int:
        """Bytes of all checkpoints."""
        return self.replay + (checkpoint.KEPT + 1) * self.networks  # one is being written

    def memory(self, config: Config) -> int:
        """Bytes of RAM beside what the process takes before it trains."""
        in_ram = self.replay if self.replay_device.type == "cpu" else 0
        saving = 3 * max(min(checkpoint.PIECE_BYTES, self.replay), self.networks)  # see checkpoint.save_checkpoint
        return in_ram + saving + workers.REMOTE_BYTES * config.envs * build.overlaps(config)


def measure(config: Config, environment: Environment, device: torch.device) -> Cost:
    """Estimate it from a few steps and updates on throwaway objects; UserError if the replay fits nowhere."""
    agent, nbytes = build.make_agent(config, device), replay_bytes(config)
    free = memory.free_memory(device), memory.free_memory(torch.device("cpu"))
    replay_device, place = memory.place(nbytes, device, *free)
    hours = _hours(config, environment, agent, replay_device)
    return Cost(hours, nbytes, checkpoint_bytes(agent), replay_device, place)


def replay_slots(config: Config) -> int:
    """Slots of the ring."""
    sizes = (build.replay_capacity(config), config.env.frame_stack, config.replay.n_step, config.envs)
    return Replay.slots_for(*sizes)


def replay_bytes(config: Config) -> int:
    """Bytes of the ring."""
    action_dim = tasks.find(config.task).action_dim
    return replay_slots(config) * memory.element_bytes(build.replay_element(config), action_dim)


def checkpoint_bytes(agent: DDPG) -> int:
    """Bytes of the networks and optimisers in one checkpoint."""
    moments = 2 * sum(parameter.nbytes for parameter in agent.parameters() if parameter.requires_grad)  # Adam's
    return sum(tensor.nbytes for tensor in agent.state_dict().values()) + moments


def check_disk(config: Config, cost: Cost) -> None:
    """UserError where the disk has less than checkpoints will take beside those that are there."""
    needed = max(0, cost.disk - checkpoint.disk_bytes(pathlib.Path(config.run_dir)))
    free = shutil.disk_usage(config.run_dir).free
    if needed > free:
        raise UserError(
            f"checkpoints will take {memory.format_bytes(needed)}, {memory.format_bytes(free)} are free for "
            f"{config.run_dir}: free some, choose another run_dir= or a smaller replay.capacity",
            code=1,
        )


def format_hours(hours: float) -> str:
    """20 s, 3 min, 2.5 h, 4 days."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1.5 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def _hours(config: Config, environment: Environment, agent: DDPG, replay_device: torch.device) -> float:
    """Estimated hours of the whole run."""
    action = np.zeros(tasks.find(config.task).action_dim, np.float32)
    first, policy = environment.reset(), Policy(config, agent)

    def play() -> None:
        policy(first.observation[None])
        if environment.over:
            environment.reset()
        environment.step(action)

    step = _median_seconds(play, 12)
    needed = 32 + config.replay.n_step
    scratch = build.make_replay(config, needed, replay_device)
    scratch.begin(first.element)
    for _ in range(needed):
        scratch.add(first.element, action, 0.0, 1.0, False)
    scratch.publish()
    learn = Learner(config, agent, scratch)
    update = config.train.updates_per_step * _median_seconds(lambda: learn()["q"].item(), 4)
    steps = config.frames / config.env.action_repeat
    evaluations = config.frames // config.eval.every + 1
    episode = tasks.find(config.task).episode_frames / config.env.action_repeat
    both = max(step / config.envs, update) if build.overlaps(config) else step + update
    return (steps * both + evaluations * config.eval.episodes * episode * step) / 3600


def _median_seconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
