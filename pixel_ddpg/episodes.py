"""Whole episodes of a policy without learning, and films of them."""

import math
import pathlib
from collections.abc import Callable

import numpy as np

from pixel_ddpg.environment import Environment
from pixel_ddpg.video import Video


def run_episode(
    environment: Environment,
    policy: Callable[[np.ndarray], np.ndarray],
    watch: Callable[[], None] | None = None,
    frames: float = math.inf,
) -> tuple[float, int]:
    """One episode's return and length, of so many frames at most; `watch` is called after the reset and each step."""
    time_step, total = environment.reset(), 0.0
    while True:
        if watch:
            watch()
        if time_step.last() or environment.frames >= frames:
            return total, environment.frames
        time_step = environment.step(policy(time_step.observation))
        total += time_step.reward


def run_episodes(
    environment: Environment, policy: Callable, episodes: int, video: pathlib.Path | None = None, size: int = 256
) -> tuple[list[float], list[int]]:
    """Returns and lengths of some episodes; the first is filmed, if `video` names a file."""
    results = []
    for episode in range(episodes):
        if video and episode == 0:
            results.append(film(environment, policy, video, size))
        else:
            results.append(run_episode(environment, policy))
    returns, lengths = zip(*results)
    return list(returns), list(lengths)


def film(
    environment: Environment, policy: Callable, path: pathlib.Path, size: int, seconds: float = math.inf
) -> tuple[float, int]:
    """Run an episode, or its first seconds, and write it as an mp4 that plays in the task's own time."""
    renderer = environment.make_renderer(size)
    with Video(path, 1 / environment.step_seconds) as video:
        frames = seconds / environment.task.control_timestep
        return run_episode(environment, policy, lambda: video.add(renderer.render()), frames)
