"""Whole training, each run in a process of its own, in turns: frames a second, what they are made of, memory."""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psutil

from pixel_ddpg import presets
from pixel_ddpg.config import Config
from pixel_ddpg.envs import workers
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import machine
from pixel_ddpg.training import build
from pixel_ddpg.training.logger import Metrics, WandbMirror
from pixel_ddpg.training.trainer import Trainer

WARM_UP = 20  # agent steps with updates before the clock starts
READY_SECONDS = 600  # a run that has not warmed up, or ended its turn, by then has hung
END_SECONDS = 30  # for a run to notice that nobody asks any more
NEVER = 10**9
QUICK = (
    "train.start_steps=2000", "noise.random_frames=0", "eval.episodes=1", f"eval.every={NEVER}",
    f"checkpoint_minutes={NEVER}", "eval.video_size=0", "wandb=off",
)  # fmt: skip
COUNTED = ("seconds", "frames", "steps", "updates", "pictures")


@dataclass(frozen=True)
class Runs:
    """`at_once` equal runs that share the machine, each with its threads."""

    words: tuple[str, ...]
    threads: int = 1
    at_once: int = 1


class _Enough(Exception):
    """Leaves the loop."""


class _Turns:
    """Called after each agent step: waits for its turn, and tells what was done in it."""

    def __init__(self, run: Trainer, seconds: float, pipe: Connection):
        self._run, self._seconds, self._pipe = run, seconds, pipe
        self._begin: dict | None = None
        self._pictures: int | None = None  # what environments in their own processes draw is not seen here
        played = run.players[0].environment
        if isinstance(played, workers.Local) and (renderer := played._environment._renderer) is not None:
            self._pictures, self._render = 0, renderer.render
            object.__setattr__(renderer, "render", self._count)

    def _count(self):
        self._pictures = (self._pictures or 0) + 1
        return self._render()

    def _now(self) -> dict:
        run = self._run
        counts = (time.perf_counter(), run.frame, run.step, run.updates, self._pictures)
        return dict(zip(COUNTED, counts))

    def __call__(self, run: Trainer) -> None:
        settings = run.config.train
        if self._begin is None:
            if run.step >= settings.start_steps + WARM_UP:
                self._wait()
            return
        whole = run.step * settings.updates_per_step % 1 == 0  # not in the middle between two updates
        now = self._now()
        if whole and now["seconds"] - self._begin["seconds"] > self._seconds:
            turn = {name: None if now[name] is None else now[name] - self._begin[name] for name in COUNTED}
            self._wait({**turn, "begin": self._begin["seconds"], "end": now["seconds"]})

    def _wait(self, turn: dict | None = None) -> None:
        try:
            self._pipe.send((turn, _facts(self._run)))
            self._pipe.recv()
        except (EOFError, OSError):  # nobody asks any more
            raise _Enough from None
        self._begin = self._now()


def _facts(run: Trainer) -> dict:
    family = [psutil.Process(), *psutil.Process().children()]
    return {
        "memory_bytes": sum(process.memory_info().rss for process in family),
        "drawn_by": run.evaluation.drawn_by() if run.config.obs == "pixels" else None,
    }


def _train(words: Sequence[str], seconds: float, threads: int, folder: str, pipe: Connection) -> None:
    """The process of a run: when it could begin a turn, it sends what the one before was and facts of itself."""
    try:
        settings: Config = presets.compose(
            ["task=cheetah-run", *QUICK, *words, f"threads={threads}", f"run_dir={folder}"]
        )
        os.environ["LP_NUM_THREADS"] = str(threads)  # the benchmark's own process has set another
        device = build.choose_device(settings)
        machine.prepare(settings, device)
        run = Trainer(settings, device, device)
        mirror = WandbMirror(pathlib.Path(folder), "off", "", "", {})
        run.attach(Metrics(pathlib.Path(folder) / "metrics.jsonl", 0), mirror)
        run.train(_Turns(run, seconds, pipe))
        raise UserError(f"seconds={seconds:g} a turn: the run ended before; ask for fewer")
    except _Enough:
        pass
    except Exception as error:
        said = error if isinstance(error, UserError) else UserError(f"{type(error).__name__}: {error}", code=1)
        with contextlib.suppress(OSError):
            pipe.send(said)


class _Run:
    """A run in another process that waits for its turns; it ends with the block."""

    def __init__(self, runs: Runs, seconds: float):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        arguments = (runs.words, seconds, runs.threads, self._folder.name, theirs)
        self._process = context.Process(target=_train, args=arguments)
        with workers.sigint_ignored_by_children():
            self._process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        self._pipe.close()
        if kind is None:
            self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def go(self) -> None:
        """Begin a turn."""
        with contextlib.suppress(OSError):  # one that is gone tells so by having nothing to say
            self._pipe.send("go")

    def receive(self) -> tuple[dict | None, dict]:
        """Its last turn, if it had one, and facts of it, when it could begin another; UserError where it failed."""
        try:
            if not self._pipe.poll(READY_SECONDS):
                raise UserError(f"a run that is measured has said nothing for {READY_SECONDS} s", code=1)
            said = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(END_SECONDS)
            raise UserError(
                f"the process of a run that is measured has ended (exit code {self._process.exitcode}); was it killed, "
                "for its memory perhaps?",
                code=1,
            ) from None
        if isinstance(said, UserError):
            raise said
        return said


def measure(contestants: Sequence[Runs], rounds: int, seconds: float) -> list[dict]:
    """All of them in every round, in turn; each is watched for `seconds` in all.

    Per contestant its words, its turns (counts of each of its runs), frames a second of all its runs together in each
    round and their median, memory in bytes of a run.
    """
    with contextlib.ExitStack() as stack:
        processes = [
            [stack.enter_context(_Run(runs, seconds / rounds)) for _ in range(runs.at_once)] for runs in contestants
        ]
        for process in itertools.chain(*processes):
            process.receive()
        found: list[list] = [[] for _ in contestants]
        for _ in range(rounds):
            for said, own in zip(found, processes):
                for process in own:
                    process.go()
                said.append([process.receive() for process in own])
    return [_row(runs, said) for runs, said in zip(contestants, found)]


def _row(runs: Runs, said: list[list[tuple[dict, dict]]]) -> dict:
    turns = [[turn for turn, _ in together] for together in said]
    speeds = [sum(turn["frames"] / turn["seconds"] for turn in together) for together in turns]
    facts = said[-1][0][1]
    return {
        "words": list(runs.words), "threads": runs.threads, "at_once": runs.at_once, "turns": turns,
        "frames_per_second": speeds, "median": statistics.median(speeds), **facts,
    }  # fmt: skip
