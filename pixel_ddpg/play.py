"""python -m pixel_ddpg.play task=... agent=random|planner|<run>: watch an episode, as an mp4 and in a window."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixel_ddpg import config, presets
from pixel_ddpg.command import command, options_of
from pixel_ddpg.config import Env, option
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.envs.episodes import film
from pixel_ddpg.errors import UserError, nearest, warn
from pixel_ddpg.planning import baselines


@dataclass
class Play:
    """Options of the command."""

    task: str = option("", "default: the run's, or cartpole-swingup")
    agent: str = option("random", "random, zero, planner (the better one), sampling, ilqg, or a run's folder")
    seed: int = option(0, "of the episode", least=0, most=2**63 - 1)
    size: int = option(256, "of the video")
    out: str = option("", "default: videos/<task>-<agent>.mp4", own=True)
    window: str = option("auto", "auto (where there is a display), on, off", choices=("auto", "on", "off"))


NAMED = ("random", "zero", "planner", *baselines.SETTINGS)


def read(words: list[str]) -> Play:
    """The options of a command's words, with the task and the film that they mean where these are not named."""
    options = options_of(Play, words)
    policy, task = options.agent, "cartpole-swingup"
    if options.agent not in NAMED:
        if not pathlib.Path(options.agent).exists():
            raise UserError(
                f"agent={options.agent} is neither a run's folder nor a policy{nearest(options.agent, list(NAMED))}"
            )
        from pixel_ddpg.training import run_folder

        policy, task = "trained", run_folder.read_config(pathlib.Path(options.agent)).task
        if options.task not in ("", task):
            raise UserError(f"{options.agent} was trained on {task}, not on {options.task}")
    options.task = options.task or task
    options.out = options.out or f"videos/{options.task}-{policy}.mp4"
    return options


def make_agent(options: Play, threads: int = 0) -> tuple[Environment, Callable[[np.ndarray], np.ndarray]]:
    """The environment as the agent sees it, and its policy."""
    if options.agent not in NAMED:
        from pixel_ddpg.training import run_folder

        settings, agent, _ = run_folder.load_run(options.agent)
        return Environment(tasks.find(settings.task), settings.obs, settings.env, options.seed), agent.act
    task = tasks.find(options.task)
    policy = baselines.planner_named(options.agent, task.name)
    if policy in baselines.SETTINGS:
        baselines.check_planner(task)
    environment = Environment(task, "state", Env(action_repeat=presets.action_repeat(task.name)), options.seed)
    if policy == "zero":
        return environment, lambda observation: np.zeros(task.action_dim, np.float32)
    how = baselines.planner_settings(policy, task.name)
    return environment, baselines.make_policy(environment, policy, options.seed, how, threads)


def has_display() -> bool:
    """Whether a window could open."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show(path: pathlib.Path, window: str) -> None:
    """Play an mp4 in a window, until its end or a key.

    In a process of its own: Qt ends the process if the display does not answer, and PyAV's libxcb, which is loaded
    here, makes OpenCV's windows hang.
    """
    child = subprocess.run([sys.executable, "-m", "pixel_ddpg.envs.window", str(path)], capture_output=True, text=True)
    if child.returncode:
        said = child.stderr.strip().splitlines() or ["it ended without a word"]
        why = next((line for line in said if "connect to display" in line), said[-1])
        message = f"no window ({why}): `apt-get install libgl1 libglib2.0-0` if a library is missing, or window=off"
        if window == "on":
            raise UserError(message, code=1)
        warn(message)


@command("pixel_ddpg.play", Play, read)
def main(options: Play) -> None:
    config.check_video_size(options.size, "size")
    if options.window == "on" and not has_display():
        raise UserError("window=on: there is no display here; the mp4 is made with window=auto or off", code=1)
    if not options.out.endswith(".mp4"):
        raise UserError(f"out={options.out} must end in .mp4")
    environment, policy = make_agent(options)
    path = pathlib.Path(options.out)
    total, length = film(environment, policy, path, options.size)
    print(f"{path}: return {total:.1f} in {length} frames")
    if options.window != "off" and has_display():
        show(path, options.window)


if __name__ == "__main__":
    sys.exit(main())
