"""python -m experiments.benchmarks: speed of learner, renderer and whole runs, beside peers and the computed floor."""

import datetime
import itertools
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from experiments.benchmarks import environment, growth, learner, peers, plots, rendering, tables, training
from experiments.benchmarks.timing import check_rounds
from pixel_ddpg import container, files
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.envs import rendering as gl
from pixel_ddpg.errors import UserError, nearest
from pixel_ddpg.runtime import machine


@dataclass
class Benchmarks:
    """Options of the command."""

    parts: list[str] = option(list(tables.PARTS), "all of them")
    cases: list[str] = option([], "of the learner, by the beginning of their names; none: all")
    threads: list[int] = option([], "of torch; none: 1 and all, of the learner 2, 4, ... too")
    rounds: int = option(7, "of each measurement, whose median counts")
    seconds: float = option(20.0, "that a whole run is watched for, over all rounds")
    drqv2: str = option("", "a checkout of github.com/facebookresearch/drqv2, to measure beside")
    out: str = option("", "a .json; none: experiments/benchmarks/results/<processor>-<cores>.json")


def check(options: Benchmarks) -> None:
    """UserError for what cannot be measured."""
    if not options.parts:
        raise UserError(f"parts= must name something: {', '.join(tables.PARTS)}")
    for part in options.parts:
        if part not in tables.PARTS:
            raise UserError(f"unknown part '{part}'{nearest(part, list(tables.PARTS))}")
    for case in options.cases:
        if not any(name.startswith(case) for name in learner.CASES):
            raise UserError(f"unknown case '{case}'; there are {'; '.join(learner.CASES)}")
    check_rounds(options.rounds, options.seconds)
    if any(threads < 1 for threads in options.threads):
        raise UserError("threads must be above 0")
    if max(options.threads, default=1) > (cores := container.available_threads()):
        raise UserError(f"threads={max(options.threads)} is more than the {cores} cores there are")
    if options.out and not options.out.endswith(".json"):
        raise UserError(f"out={options.out} must end in .json")
    if options.drqv2:
        peers.import_drqv2(options.drqv2)


def default_out(facts: dict) -> pathlib.Path:
    """One file for each kind of machine."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['gpu'] or facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return tables.FOLDER / f"{name}.json"


def learner_rows(options: Benchmarks, thread_counts: list[int]) -> Iterator[dict]:
    """Updates of each case."""
    cases = [name for name in learner.CASES if not options.cases or name.startswith(tuple(options.cases))]
    for threads, name in itertools.product(thread_counts, cases):
        torch.set_num_threads(threads)
        try:
            yield learner.measure(name, options.rounds, options.drqv2)
        finally:
            torch.set_num_threads(1)


def training_rows(options: Benchmarks, thread_counts: list[int]) -> Iterator[dict]:
    """Whole runs of each preset."""
    for preset, obs in itertools.product(environment.PRESETS, environment.OBSERVATIONS):
        runs = [training.Runs((f"preset={preset}", f"obs={obs}"), threads) for threads in thread_counts]
        yield from training.measure(runs, options.rounds, options.seconds)


class Found:
    """A benchmark's file: rows are put into it as they are measured; those of other code are not kept.

    UserError for the file of another machine.
    """

    def __init__(self, path: pathlib.Path, facts: dict):
        before = tables.read(path)
        for name in ("cpu", "cores"):
            if before and before["facts"][name] != facts[name]:
                raise UserError(f"{path} is of another machine ({before['facts'][name]}): choose another out=")
        self.path, self.all = path, before | {"facts": facts}
        self._made = self.all.setdefault("made", {})

    def refuse_losses(self, options: Benchmarks) -> None:
        """UserError where a part is to be measured in part, and the rest of it is of other code."""
        for part, in_part in {"learner": options.cases or options.threads, "training": options.threads}.items():
            if in_part and part in options.parts and part in self.all and not self._is_of_this_code(part):
                raise UserError(
                    f"{self.path} has {part} of other code (commit {self._made[part]['commit']}): leave out cases= and "
                    "threads=, so that all of it is measured again, or choose another out="
                )

    def add(self, part: str, measured: Iterator[dict]) -> None:
        """Each row in place of one that is of the same, and told."""
        names, line = tables.ROWS[part]

        def key(row: dict) -> str:
            return str([row[name] for name in names])

        rows = {key(row): row for row in self.all.get(part, []) if self._is_of_this_code(part)}
        for row in measured:
            rows[key(row)] = row
            print(f"    {line(row)}", flush=True)
            self.save(part, list(rows.values()))

    def save(self, part: str, content: list | dict) -> None:
        """With how it was made."""
        commands = self._made[part]["command"].split("; ") if self._is_of_this_code(part) else []
        self.all[part] = content
        self._made[part] = {
            "command": "; ".join(dict.fromkeys([*commands, _command()])), "commit": self.all["facts"]["commit"],
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        files.write_atomically(self.path, json.dumps(self.all, indent=1).encode() + b"\n")

    def _is_of_this_code(self, part: str) -> bool:
        commit = self.all["facts"]["commit"]
        known = commit is not None and not commit.endswith("+")
        return known and part in self._made and self._made[part]["commit"] == commit


@command("experiments.benchmarks", Benchmarks)
def main(options: Benchmarks) -> None:
    check(options)
    cores = container.available_threads()
    machine.prepare_cpu(1)
    gl.choose_backend(1)
    facts = machine.facts(machine.find_device("auto"), cores)
    facts["versions"]["stable-baselines3"] = machine.version("stable-baselines3")
    out = pathlib.Path(options.out) if options.out else default_out(facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.check_writable(out)
    found = Found(out, facts)
    found.refuse_losses(options)
    powers = {2**power for power in range(cores.bit_length())}
    measured = {
        "learner": learner_rows(options, options.threads or sorted({cores, *powers})),
        "rendering": (
            rendering.measure(task, size, options.rounds) for task in rendering.TASKS for size in rendering.SIZES
        ),
        "environment": (environment.measure(preset, options.rounds) for preset in environment.PRESETS),
        "training": training_rows(options, options.threads or sorted({1, cores})),
    }  # each begins when it is asked for a row
    for part in options.parts:
        print(f"{part} ...", flush=True)
        if part == "growth":
            found.save(part, growth.measure(options.rounds, options.seconds))
        else:
            found.add(part, measured[part])
        if part == "rendering":
            plots.draw_scenes(out.with_name(f"{out.stem}-pictures.png"))
    tables.write(out)
    print(tables.as_text(found.all))
    plots.plot(found.all, out.with_suffix(".png"))
    print(f"{out}, and its tables and plots beside it")


def _command() -> str:
    """As it was given, but for the place of somebody's checkout."""
    words = [re.sub(r"^drqv2=.+", "drqv2=<checkout>", word) for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "experiments.benchmarks", *words])


if __name__ == "__main__":
    sys.exit(main())
