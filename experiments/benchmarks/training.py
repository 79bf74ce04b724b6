"""Whole training, in a process of its own: frames a second, what they are made of, memory."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile
import time

import psutil

from pixel_ddpg import config, machine, trainer
from pixel_ddpg.config import Config
from pixel_ddpg.logger import Metrics, WandbMirror

WARM_UP = 20  # agent steps with updates before the clock starts
QUICK = ("train.start_steps=2000", "noise.random_frames=0", "eval.episodes=1", "eval.video_size=0", "wandb=off")


_all_ready: list = []  # in a worker: the barrier where it waits for the others


def wait_for_all() -> None:
    """Runs that share the machine are watched at the same time."""
    for barrier in _all_ready:
        barrier.wait(timeout=600)


class _Enough(Exception):
    """Leaves the loop."""


class _Clock:
    """Called after each agent step: when the measured ones began and ended, and what was counted in between."""

    def __init__(self, run: trainer.Trainer, seconds: float):
        self._seconds, self._begin = seconds, run.config.train.start_steps + WARM_UP
        self._first: dict | None = None
        self.pictures = 0
        if run.config.obs == "pixels" and not trainer.overlaps(run.config):  # others draw in their own processes
            renderer = run.players[0].environment.environment._renderer
            self._render, renderer.render = renderer.render, self._count
        self.result: dict = {}

    def _count(self):
        self.pictures += 1
        return self._render()

    def __call__(self, run: trainer.Trainer) -> None:
        if run.step < self._begin:
            return
        now = {"seconds": time.perf_counter(), "frames": run.frame, "steps": run.step, "updates": run.updates,
               "pictures": self.pictures}  # fmt: skip
        if self._first is None:
            self._first = now
            wait_for_all()
            self._first["seconds"] = time.perf_counter()
        elif now["seconds"] - self._first["seconds"] > self._seconds:
            self.result = {key: value - self._first[key] for key, value in now.items()}
            raise _Enough


def _train(words: list[str], seconds: float, threads: int) -> dict:
    try:
        return _watched(words, seconds, threads)
    except BaseException:
        for barrier in _all_ready:
            barrier.abort()  # nobody need wait for this one
        raise


def _watched(words: list[str], seconds: float, threads: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        words = ["task=cheetah-run", *QUICK, *words, f"threads={threads}", f"run_dir={folder}"]
        settings: Config = config.compose(words)
        os.environ["LP_NUM_THREADS"] = str(threads)  # the benchmark's own process has set another
        device = machine.choose_device(settings.device)
        machine.prepare(settings, device)
        run = trainer.Trainer(settings, device, device)
        metrics, clock = Metrics(pathlib.Path(folder) / "metrics.jsonl", 0), _Clock(run, seconds)
        run.attach(metrics, WandbMirror(pathlib.Path(folder), "off", "", "", {}))
        try:
            run.train(clock)
        except _Enough:
            family = [psutil.Process(), *psutil.Process().children()]
            memory = sum(process.memory_info().rss for process in family)
            drawn_by = run.evaluation.drawn_by() if settings.obs == "pixels" else None
            return clock.result | {"memory_bytes": memory, "drawn_by": drawn_by}
        raise config.UserError(f"seconds={seconds}: the run ended before; ask for fewer")


def measure(words: list[str], seconds: float, threads: int, at_once: int = 1) -> dict:
    """So many equal runs at once, each with its threads: frames a second of one, and its counts."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(at_once)
    with concurrent.futures.ProcessPoolExecutor(at_once, context, _all_ready.append, (barrier,)) as pool:
        results = list(pool.map(_train, *zip(*[(words, seconds, threads)] * at_once)))
    return {
        "words": words, "threads": threads, "at_once": at_once,
        "frames_per_second": [result["frames"] / result["seconds"] for result in results],
        "runs": results,
    }  # fmt: skip
