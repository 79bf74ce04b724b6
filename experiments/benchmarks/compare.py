"""python -m experiments.benchmarks.compare base=HEAD~1: training speed of two commits, by the real command of each."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from experiments.benchmarks.tables import times
from experiments.benchmarks.timing import ratios
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.errors import UserError
from pixel_ddpg.training.rows import TrainRow, read_rows

ROOT = pathlib.Path(__file__).parents[2]
SETTLED = ("threads=1", "wandb=off", "eval.video_size=0", "eval.episodes=1")
OWN = ("obs", "frames", "run_dir", *(word.split("=")[0] for word in SETTLED))


@dataclass
class Compare:
    """Options of the command."""

    base: str = option("HEAD~1", "the commit to compare this checkout with, as it is on the disk")
    rounds: int = option(3)
    frames: int = option(3000, "of each run; the first thousand are not timed")
    run: list[str] = option([], "words of python -m pixel_ddpg.run, beside obs=state and obs=pixels")


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[pathlib.Path]:
    """A checkout of a commit for a while; UserError for one that is not there."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        made = subprocess.run([*git, "add", "--detach", str(tree), commit], capture_output=True, text=True)
        if made.returncode:
            raise UserError(f"base={commit}: {(made.stderr.splitlines() or ['git failed'])[-1]}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True)


def train(tree: pathlib.Path, words: list[str]) -> dict[str, float]:
    """Seconds a frame after the first episodes, and how many updates the run made."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pixel_ddpg.run", *SETTLED, f"run_dir={folder}/run", *words],
            env={**os.environ, "PYTHONPATH": str(tree)}, cwd=tree, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"{tree}: {(done.stderr.splitlines() or ['failed'])[-1]}", code=1)
        found = read_rows(pathlib.Path(folder, "run", "metrics.jsonl"))
        rows = [row for row in found if isinstance(row, TrainRow)][1:]
        if not rows:
            raise UserError(f"{' '.join(words)}: no second episode ends within these frames; ask for more frames=")
        seconds = sum(1 / row.frames_per_second for row in rows) / len(rows)
        return {"seconds": seconds, "updates": rows[-1].update}


def compare(base: str, words: list[str], rounds: int) -> dict:
    """Seconds a frame of this checkout and of `base`, in turn; and the ratio, round by round."""
    found: dict[str, list[dict]] = {"base": [], "this": []}
    with worktree(base) as tree:
        for _ in range(rounds):
            for name, place in (("base", tree), ("this", ROOT)):
                found[name].append(train(place, words))
    seconds = {name: [row["seconds"] for row in rows] for name, rows in found.items()}
    updates = {name: sorted({row["updates"] for row in rows}) for name, rows in found.items()}
    return {"words": words, "seconds": seconds, "updates": updates, "ratio": ratios(seconds["base"], seconds["this"])}


def as_text(found: dict) -> str:
    """What was found, in a line."""
    ratio, updates = found["ratio"], found["updates"]
    told = {name: "/".join(f"{count:,.0f}" for count in counts) for name, counts in updates.items()}
    made = f"{told['this']} updates" + (f", the base {told['base']}" if told["this"] != told["base"] else "")
    return f"{' '.join(found['words'])}: this checkout is {times(ratio)} times as fast as the base; {made}"


@command("experiments.benchmarks.compare", Compare)
def main(options: Compare) -> None:
    if options.rounds < 1 or options.frames < 2000:
        raise UserError("rounds must be at least 1 and frames at least 2000")
    for word in options.run:
        if word.split("=")[0] in OWN:
            raise UserError(f"run=[{word}]: compare sets that itself")
    for obs in ("state", "pixels"):
        words = ["task=cheetah-run", f"obs={obs}", f"frames={options.frames}", *options.run]
        print(as_text(compare(options.base, words, options.rounds)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
