"""Whole episodes of a policy without learning, and films of them."""

import math
import pathlib
from collections.abc import Callable

import dm_env
import numpy as np

from pixel_ddpg.environment import Environment
from pixel_ddpg.video import Video

Watch = Callable[[dm_env.TimeStep], None]


def run_episode(
    environment: Environment,
    policy: Callable[[np.ndarray], np.ndarray],
    watch: Watch | None = None,
    frames: float = math.inf,
) -> tuple[float, int]:
    """One episode's return and length, of so many frames at most; `watch` sees the reset and each step."""
    time_step, total = environment.reset(), 0.0
    while True:
        if watch:
            watch(time_step)
        if time_step.last() or environment.frames >= frames:
            return total, environment.frames
        time_step = environment.step(policy(time_step.observation))
        total += time_step.reward


def run_episodes(
    environment: Environment,
    policy: Callable,
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
    policy: Callable,
    path: pathlib.Path,
    size: int,
    seconds: float = math.inf,
    watch: Watch | None = None,
) -> tuple[float, int]:
    """Run an episode, or its first seconds, and write it as an mp4 that plays in the task's own time."""
    renderer = environment.make_renderer(size)
    with Video(path, 1 / environment.step_seconds) as video:

        def film_and_watch(time_step: dm_env.TimeStep) -> None:
            video.add(renderer.render())
            if watch:
                watch(time_step)

        return run_episode(environment, policy, film_and_watch, seconds / environment.task.control_timestep)
