"""python -m pixel_ddpg.doctor: is everything here that training needs? For each lack, the command that fixes it."""

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from pixel_ddpg import container
from pixel_ddpg.command import Output, command
from pixel_ddpg.envs import rendering
from pixel_ddpg.errors import UserError

FIX_INSTALL = "make install"


class Unwell(Exception):
    """A check failed: what is wrong, and the command that fixes it."""

    def __init__(self, what: str, fix: str):
        super().__init__(what)
        self.fix = fix


@dataclass
class Doctor:
    """The command has no options."""


def check_python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise Unwell(platform.python_version(), "install Python 3.11 or 3.12, then `make install`")
    return platform.python_version()


def check_torch() -> str:
    import torch

    threads = container.available_threads()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.__version__}, {threads} CPU threads, {', '.join(gpus) or 'no CUDA GPU: trains on the CPU'}"


def check_mujoco() -> str:
    found = {name: importlib.metadata.version(name) for name in ("mujoco", "dm-control")}
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found["mujoco"].startswith("3.17."):
        raise Unwell(f"{text} do not fit together", "pip install 'mujoco>=3.17,<3.18' dm-control==1.0.50")
    return text


def check_rendering() -> str:
    from pixel_ddpg.gym import make_env

    try:
        env = make_env("cheetah-run", obs="pixels")
        env.reset(seed=0)
    except UserError as error:
        raise Unwell(str(error).rsplit(": ", 1)[0], rendering.FIX_GL) from None
    renderer, start, count = env.environment.make_renderer(64), time.perf_counter(), 50
    for _ in range(count):
        renderer.render()
    speed = count / (time.perf_counter() - start)
    return f"{env.environment.drawn_by()}, {speed:.0f} frames/s of 64x64"


def check_opencv() -> str:
    from pixel_ddpg.envs import video

    try:
        version = video.opencv().__version__
    except UserError as error:
        raise Unwell(str(error).rsplit(": ", 1)[0], video.FIX_OPENCV) from None
    return f"{version} (windows, grids of videos and torcs need it)"


def check_box2d() -> str:
    try:
        import Box2D  # noqa: F401
        import pygame  # noqa: F401
    except ImportError as error:
        return f"{error}: all tasks but torcs work"
    return "task=torcs works"


def check_video() -> str:
    import av

    try:
        av.Codec("libx264", "w")
    except ValueError:
        raise Unwell("PyAV has no libx264", "pip install --force-reinstall av") from None
    return f"av {av.__version__} with libx264"


def check_memory() -> str:
    import torch

    from pixel_ddpg.runtime import memory

    free = memory.free_memory(torch.device("cpu")) / 2**30
    if free < 2:
        raise Unwell(f"{free:.1f} GiB of RAM free", "close other programs: a run of 100k frames wants about 2 GiB")
    return f"{free:.1f} GiB of RAM free"


def check_disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    if free < 1:
        raise Unwell(f"{free:.1f} GiB free here", "free some, or set run_dir= to another disk")
    return f"{free:.1f} GiB free here"


def check_wandb() -> str:
    from pixel_ddpg.training.logger import has_wandb_key

    state = "a key was found: runs are mirrored online" if has_wandb_key() else "no key: runs are kept offline"
    return f"{importlib.metadata.version('wandb')}, {state}"


def check_ray() -> str:
    try:
        import ray
    except ImportError as error:
        return f"{error}: all commands but experiments.suite work"
    return f"{ray.__version__} (experiments.suite needs it)"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": check_python, "torch": check_torch, "MuJoCo": check_mujoco, "rendering": check_rendering,
    "opencv": check_opencv, "box2d": check_box2d, "video": check_video, "memory": check_memory, "disk": check_disk,
    "W&B": check_wandb, "Ray": check_ray,
}  # fmt: skip


def examine(checks: dict[str, Callable[[], str]], console: Console) -> int:
    """Run the checks; returns how many failed."""
    failed = 0
    for name, check in checks.items():
        try:
            console.print(Text("ok   ", "green"), f"{name:10} {check()}")
        except Exception as error:  # also what no check foresees
            failed += 1
            fix = f"{'':16} fix it: {getattr(error, 'fix', FIX_INSTALL)}"
            console.print(Text("fails", "red"), f"{name:10} {error}\n{fix}")
    return failed


@command("pixel_ddpg.doctor", Doctor)
def main(options: Doctor) -> int:
    return 1 if examine(CHECKS, Output(soft_wrap=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
