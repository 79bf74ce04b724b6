"""Runs small enough for tests."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys

import psutil
import torch

from experiments.faults import forked
from experiments.faults.small_runs import PIXELS, STATE, difference, rows  # noqa: F401
from pixel_ddpg import presets
from pixel_ddpg.errors import UserError
from pixel_ddpg.training import checkpoint, run_folder
from pixel_ddpg.training.logger import Metrics, WandbMirror
from pixel_ddpg.training.trainer import Trainer

CPU = torch.device("cpu")


class Stop(Exception):
    """Raised to leave the loop."""


def make_trainer(words: list[str], run_dir: pathlib.Path) -> Trainer:
    settings = presets.compose([*words, f"run_dir={run_dir}"])
    run_dir.mkdir(parents=True, exist_ok=True)
    run_folder.write_config(settings, run_dir)
    return Trainer(settings, CPU, CPU)


def train(words: list[str], run_dir: pathlib.Path, stop_at_step: int | None = None) -> Trainer:
    """Train or resume; with `stop_at_step`, save there and return."""
    run = make_trainer(words, run_dir)
    length = run.restore() if checkpoint.checkpoints(run_dir) else 0

    def maybe_stop(run):
        if run.step == stop_at_step:
            run.save()
            raise Stop

    metrics = Metrics(run_dir / "metrics.jsonl", length)
    try:
        run.attach(metrics, WandbMirror(run_dir, "off", "", "", {}))
        run.train(maybe_stop)
    except Stop:
        pass
    finally:
        metrics.close()
    return run


def assert_same_run(first: pathlib.Path, second: pathlib.Path) -> None:
    """To the bit: metrics, weights, optimisers, random streams."""
    assert rows(first) == rows(second)
    assert not difference(first, second)


def start(module: str, *words: str, **options) -> subprocess.Popen:
    """The real command, in a process of its own."""
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, **options,
    )  # fmt: skip


def spawned(process: subprocess.Popen | psutil.Process) -> list[psutil.Process]:
    """The processes that it, or one of them, has started by multiprocessing."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "spawn_main" in "".join(child.cmdline()):
                found.append(child)
    return found


def command(module: str, *words: str, **options) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the real command."""
    process = start(module, *words, **options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def call(module: str, *words: str) -> tuple[int, str, str]:
    """As `command`, in this process, which saves seconds: for mistakes that are reported before anything starts."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = forked.main_of(module)(list(words))
    except SystemExit as end:
        code = end.code
    finally:
        torch.set_num_threads(threads)
    return code, out.getvalue(), err.getvalue()


def work(number: int, threads: int) -> int:
    """A job for another process: 1 fails, a negative number kills the process."""
    if number < 0:
        os._exit(1)
    if number == 1:
        raise UserError("no")
    return 10 * number
