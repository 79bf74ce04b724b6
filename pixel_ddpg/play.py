"""python -m pixel_ddpg.play task=... agent=random|zero|<run>: watch an episode, as an mp4 and in a window."""

import os
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixel_ddpg import config, tasks
from pixel_ddpg.environment import Environment


@dataclass
class Play:
    """Options of the command."""

    task: str = ""  # default: the run's, or cartpole-swingup
    agent: str = "random"  # random, zero, or a run's folder
    seed: int = 0
    size: int = 256  # of the video
    out: str = ""  # default: videos/<task>-<agent>.mp4
    window: str = "auto"  # auto (where there is a display), on, off


config.register_command("play", Play)


def make_policy(options: Play) -> tuple[str, config.Env, str, Callable[[np.ndarray], np.ndarray]]:
    """Task, what the agent sees of it (options and kind), and its policy."""
    task = options.task or "cartpole-swingup"
    if options.agent not in ("random", "zero"):
        from pixel_ddpg import trainer

        settings, agent, _ = trainer.load_run(options.agent)
        if options.task and options.task != settings.task:
            raise config.UserError(f"{options.agent} was trained on {settings.task}, not on {options.task}")
        return settings.task, settings.env, settings.obs, agent.act
    settings = config.compose([f"task={task}", "obs=state"])
    dimension = tasks.CATALOGUE[task].action_dim
    random = np.random.default_rng(options.seed)
    bound = 1.0 if options.agent == "random" else 0.0
    return task, settings.env, "state", lambda observation: random.uniform(-bound, bound, dimension).astype(np.float32)


def has_display() -> bool:
    """Whether a window could open."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def load_opencv(window: str):
    """The cv2 module, or None where no window is to open. Call it before av is imported: PyAV's own libxcb, loaded
    first, makes OpenCV's windows hang."""
    if window == "off" or not has_display():
        return None
    try:
        import cv2
    except ImportError as error:
        raise config.UserError(
            f"no window ({error}): `apt-get install libgl1 libglib2.0-0`, or window=off", 1
        ) from None
    return cv2


def show(cv2, path: pathlib.Path) -> None:
    """Play an mp4 in a window, until its end or a key."""
    video = cv2.VideoCapture(str(path))
    pause = max(1, round(1000 / video.get(cv2.CAP_PROP_FPS)))
    while (picture := video.read())[0]:
        cv2.imshow(path.name, picture[1])
        if cv2.waitKey(pause) != -1:
            break
    cv2.destroyAllWindows()


@config.command("play")
def main(options: Play) -> None:
    config.check_video_size(options.size, "size")
    if options.window not in ("auto", "on", "off"):
        raise config.UserError(f"unknown window '{options.window}'; there are auto, on, off")
    if options.window == "on" and not has_display():
        raise config.UserError("window=on: there is no display here; the mp4 is made with window=auto or off", 1)
    if options.out and not options.out.endswith(".mp4"):
        raise config.UserError(f"out={options.out} must end in .mp4")
    cv2 = load_opencv(options.window)
    from pixel_ddpg.episodes import film

    task, env, obs, policy = make_policy(options)
    environment = Environment(tasks.CATALOGUE[task], obs, env, options.seed)
    agent = options.agent if options.agent in ("random", "zero") else "trained"
    path = pathlib.Path(options.out or f"videos/{task}-{agent}.mp4")
    total, length = film(environment, policy, path, options.size)
    print(f"{path}: return {total:.1f} in {length} frames")
    if cv2:
        show(cv2, path)


if __name__ == "__main__":
    sys.exit(main())
