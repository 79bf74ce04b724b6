"""Whole episodes of a policy without learning, and films of them."""

import math
import pathlib
from collections.abc import Callable

import numpy as np

from pixel_ddpg.envs.environment import Environment, Step
from pixel_ddpg.envs.video import Video

Policy = Callable[[np.ndarray], np.ndarray]
Watch = Callable[[Step], None]


def run_episode(
    environment: Environment, policy: Policy, watch: Watch | None = None, frames: float = math.inf
) -> tuple[float, int]:
    """One episode's return and length, of this many frames at most; `watch` sees the reset and each step."""
    step, total = environment.reset(), 0.0
    while True:
        if watch:
            watch(step)
        if step.last or step.frames >= frames:
            return total, step.frames
        step = environment.step(policy(step.observation))
        total += step.reward


def run_episodes(
    environment: Environment,
    policy: Policy,
    episodes: int,
    video: pathlib.Path | None = None,
    size: int = 256,
    watch: Watch | None = None,
) -> tuple[list[float], list[int]]:
    """Returns and lengths of some episodes; the first is filmed, if `video` names a file."""
    results = []
    for episode in range(episodes):
        if video and episode == 0:
            results.append(film(environment, policy, video, size, watch=watch))
        else:
            results.append(run_episode(environment, policy, watch))
    returns, lengths = zip(*results)
    return list(returns), list(lengths)


def film(
    environment: Environment,
    policy: Policy,
    path: pathlib.Path,
    size: int,
    seconds: float = math.inf,
    watch: Watch | None = None,
) -> tuple[float, int]:
    """Run an episode, or its first seconds, and write it as an mp4 that plays in the task's own time."""
    renderer = environment.make_renderer(size)
    with Video(path, 1 / environment.step_seconds) as video:

        def film_and_watch(step: Step) -> None:
            video.add(renderer.render())
            if watch:
                watch(step)

        return run_episode(environment, policy, film_and_watch, seconds / environment.task.control_timestep)
