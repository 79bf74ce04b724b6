"""python -m experiments.faults: put each kind of fault in, many times; experiments/results/faults.json has the figures.

docs/reliability.md shows them. Everything happens in a temporary folder, on runs of seconds.
"""

import datetime
import json
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from experiments.faults import damage, fuzz, kills, long_runs, writes
from pixel_ddpg import files
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.envs import rendering
from pixel_ddpg.errors import UserError, nearest
from pixel_ddpg.runtime import machine

OUT = pathlib.Path(__file__).parents[1] / "results" / "faults.json"
Part = Callable[["Faults", np.random.Generator, pathlib.Path], dict]


def _kills_of(kind: str) -> Part:
    return lambda options, random, folder: kills.measure(kind, options.kills, random, folder)


PARTS: dict[str, Part] = {
    **{f"kills of {kind}": _kills_of(kind) for kind in kills.KINDS},
    "kills of a suite": lambda options, random, folder: kills.measure_suite(options.kills, random, folder),
    "damaged checkpoints": lambda options, random, folder: damage.measure(options.cuts, options.flips, random, folder),
    "refused writes": lambda options, random, folder: writes.measure(folder, options.every),
    "command lines": lambda options, random, folder: fuzz.lines(options.lines, random, folder),
    "damaged files": lambda options, random, folder: fuzz.files(options.files, random, folder),
    "long runs": lambda options, _, folder: long_runs.measure(options.frames, folder),
}


@dataclass
class Faults:
    """Options of the command."""

    parts: list[str] = option([], "by the beginning of their names; none: all")
    kills: int = option(100, "of each kind of run", least=1)
    cuts: int = option(10, "places at which each file of a checkpoint is truncated", least=1)
    flips: int = option(200, "bits of checkpoints", least=1)
    every: int = option(1, "refuse every n-th of the calls that write", least=1)
    lines: int = option(2000, "command lines", least=1)
    files: int = option(500, "damaged files", least=1)
    frames: int = option(1_000_000, "of the long run from state; a fifth of them from pixels", least=50_000)
    seed: int = option(0, "of all that is random", least=0)
    out: str = option("", f"a .json; none: {OUT.relative_to(OUT.parents[2])}")


@command("experiments.faults", Faults)
def main(options: Faults) -> int:
    for wanted in options.parts:
        if not any(name.startswith(wanted) for name in PARTS):
            raise UserError(f"unknown part '{wanted}'{nearest(wanted, list(PARTS))}")
    machine.prepare_cpu(1)
    rendering.choose_backend(1)
    out = pathlib.Path(options.out) if options.out else OUT
    files.check_writable(out)
    if out.suffix != ".json":
        raise UserError(f"out={out} must end in .json")
    try:
        found = json.loads(out.read_bytes()) if out.exists() else {}
    except ValueError:
        raise UserError(f"{out} is no result of this command: choose another out=", code=1) from None
    failed = 0
    for number, (name, part) in enumerate(PARTS.items()):
        if options.parts and not name.startswith(tuple(options.parts)):
            continue
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            row = part(options, np.random.default_rng((options.seed, number)), pathlib.Path(folder))
        failed += len(row["failures"])
        print(f"    {json.dumps({key: value for key, value in row.items() if key != 'failures'})}", flush=True)
        words = [word for word in sys.argv[1:] if not word.startswith("out=")]
        made = {
            "command": shlex.join(["python", "-m", "experiments.faults", *words]), "commit": machine.commit(),
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        found[name] = row | made
        files.write_atomically(out, json.dumps(found, indent=1).encode() + b"\n")
    print(out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
