"""What a suite lets Ray run: measurements and whole runs, each in a fresh process."""

import contextlib
import os
import pathlib
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pixel_ddpg import presets, run
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.errors import first_line
from pixel_ddpg.runtime import machine, memory
from pixel_ddpg.training import build, checkpoint, cost


@dataclass
class Estimate:
    """What a run will take, by a short try; or why it cannot begin."""

    hours: float = 0.0
    memory: int = 0  # bytes
    disk: int = 0  # bytes while it runs
    kept: int = 0  # bytes of disk after its end, without its replay
    why: str = ""


def measure(runs: list[list[str]], asked: float) -> list[Estimate]:
    """What each run will take; pixels should come first.

    `asked` is when Ray was given this task: what a process takes to begin is part of a run's time.
    """
    start = max(0.0, time.time() - asked) / 3600
    base, found = 0, []
    for words in runs:
        try:
            settings = presets.compose(words)
            device = build.choose_device(settings)
            machine.prepare(settings, device)
            task = tasks.find(settings.task)
            with contextlib.ExitStack() as both:
                environment, evaluation = (Environment(task, settings.obs, settings.env, 0) for _ in range(2))
                for each in (environment, evaluation):
                    both.callback(each.close)
                evaluation.reset()  # a run has both
                took = cost.measure(settings, environment, device)
        except Exception as error:  # whatever it is, the other runs are measured
            found.append(Estimate(why=first_line(error)))
            continue
        base = base or memory.memory_bytes(torch.device("cpu"))  # later ones have what went before in it
        needs = base + took.memory(settings)
        found.append(Estimate(start + took.hours, needs, took.disk, took.networks))
    return found


def train(words: list[str], run_dir: str, folder: str, keep_replay: bool) -> int:
    """One run, as `python -m pixel_ddpg.run` in `folder`; its output goes to log.txt. Returns its exit code."""
    os.chdir(folder)
    with _output(pathlib.Path(run_dir, "log.txt")):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} python -m pixel_ddpg.run {shlex.join(words)}", flush=True)
        try:
            code = run.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    if code == 0 and not keep_replay:
        checkpoint.drop_replay(pathlib.Path(run_dir))
    return code


@contextlib.contextmanager
def _output(path: pathlib.Path) -> Iterator[None]:
    """Everything this process prints is appended to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    with open(path, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, old in zip((1, 2), kept):
            os.dup2(old, number)
            os.close(old)
