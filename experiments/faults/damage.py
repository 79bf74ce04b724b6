"""Files of a run truncated, with a bit flipped, or swapped with another run's: an older checkpoint, or one line."""

import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

import numpy as np

from experiments.faults import forked
from experiments.faults.small_runs import STATE, difference
from pixel_ddpg import run
from pixel_ddpg.training import checkpoint
from pixel_ddpg.training.trainer import Trainer

RUN = "pixel_ddpg.run"


def make_runs(folder: pathlib.Path) -> None:
    """A run that was left alone, and two that were stopped after their second checkpoint, one of another seed."""
    forked.call(RUN, [*STATE, f"run_dir={folder / 'whole'}"], folder, longest=forked.WHOLE_RUN).must_end_with(0)
    for name, more in {"parts": [], "other": ["seed=3"]}.items():
        words = [*STATE, *more, f"run_dir={folder / name}"]
        stopped = forked.call(RUN, words, folder, before=_stop_after_two_checkpoints, longest=forked.WHOLE_RUN)
        stopped.must_end_with(130)


def _stop_after_two_checkpoints() -> None:
    after_each = run.Screen.step

    def step(screen: run.Screen, trainer: Trainer) -> None:
        after_each(screen, trainer)
        if trainer.step == 60:
            trainer.save()
        elif trainer.step == 120:
            os.kill(os.getpid(), signal.SIGINT)

    type.__setattr__(run.Screen, "step", step)


def files_of(run_dir: pathlib.Path) -> list[pathlib.Path]:
    """All that a resumed run reads, relative to the run."""
    newest = checkpoint.newest(run_dir)
    assert newest is not None
    found = [*newest.iterdir(), *(run_dir / "checkpoints" / "replay").iterdir()]
    found += [run_dir / name for name in ("config.yaml", "metrics.jsonl", "status.json")]
    return sorted(path.relative_to(run_dir) for path in found)


def flipped(data: bytes, bit: int) -> bytes:
    """With one bit turned."""
    at, which = divmod(bit, 8)
    return data[:at] + bytes([data[at] ^ 1 << which]) + data[at + 1 :]


def damages(
    folder: pathlib.Path, cuts: int, flips: int, random: np.random.Generator
) -> Iterator[tuple[str, pathlib.Path, bytes]]:
    """(kind, file, what it then holds)."""
    names = files_of(folder / "parts")
    for name in names:
        data = (folder / "parts" / name).read_bytes()
        for cut in range(cuts):
            yield "truncated", name, data[: len(data) * cut // cuts]
    for number in range(flips):
        name = names[number % len(names)]
        data = (folder / "parts" / name).read_bytes()
        yield "a bit flipped", name, flipped(data, int(random.integers(8 * len(data))))
    for name in names:
        if (folder / "other" / name).exists():
            yield "of another run", name, (folder / "other" / name).read_bytes()


def measure(cuts: int, flips: int, random: np.random.Generator, folder: pathlib.Path) -> dict:
    """Each damage to a copy of a run, which is then resumed to its end."""
    make_runs(folder)
    run_dir = folder / "damaged"
    tally = forked.Tally()
    for kind, name, data in damages(folder, cuts, flips, random):
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(folder / "parts", run_dir)
        (run_dir / name).write_bytes(data)
        ended = forked.call(RUN, [*STATE, f"run_dir={run_dir}"], folder, longest=forked.WHOLE_RUN)
        whole = name.name != "metrics.jsonl"  # rows that it had lost, it cannot bring back
        differs = "" if ended.code else difference(folder / "whole", run_dir, with_rows=whole)
        end = "resumed" if ended.code == 0 else "refused"
        cut_off = "cut off" if ended.code == 130 else ""
        tally.add(f"{name} {kind}", f"{kind}, {end}", ended.complaint or cut_off or differs)
    return tally.row()
