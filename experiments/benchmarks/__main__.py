"""python -m experiments.benchmarks: speed of learner, renderer and whole runs, beside peers and the computed floor."""

import datetime
import itertools
import json
import pathlib
import re
import sys
from dataclasses import dataclass, field

import torch

from experiments.benchmarks import growth, learner, rendering, tables, training, tried
from pixel_ddpg import config, files, machine
from pixel_ddpg import rendering as gl


@dataclass
class Benchmarks:
    """Options of the command."""

    parts: list[str] = field(default_factory=lambda: list(tables.PARTS))  # learner, rendering, training, growth, tried
    cases: list[str] = field(default_factory=list)  # of the learner, by the beginning of their names; none: all
    threads: list[int] = field(default_factory=list)  # of torch; none: 1 and all, of the learner 2, 4, ... too
    rounds: int = 7  # of each measurement, whose median counts
    seconds: float = 20.0  # that a whole run is watched for, over all rounds
    drqv2: str = ""  # a checkout of github.com/facebookresearch/drqv2, to measure beside
    out: str = ""  # a .json; none: experiments/benchmarks/results/<processor>-<cores>.json


config.register_command("benchmarks", Benchmarks, "experiments")


def check(options: Benchmarks) -> None:
    """UserError for what cannot be measured."""
    for part in options.parts:
        if part not in tables.PARTS:
            raise config.UserError(f"unknown part '{part}'{config.nearest(part, list(tables.PARTS))}")
    for case in options.cases:
        if not any(name.startswith(case) for name in learner.CASES):
            raise config.UserError(f"unknown case '{case}'; there are {'; '.join(learner.CASES)}")
    if options.rounds < 1 or options.seconds <= 0 or any(threads < 1 for threads in options.threads):
        raise config.UserError("rounds, seconds and threads must be above 0")
    if options.out and not options.out.endswith(".json"):
        raise config.UserError(f"out={options.out} must end in .json")


def default_out(facts: dict) -> pathlib.Path:
    """One file for each kind of machine."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{facts['gpu'] or facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return tables.FOLDER / f"{name}.json"


@config.command("benchmarks")
def main(options: Benchmarks) -> None:
    check(options)
    cores = gl.available_threads()
    machine.prepare_cpu(1)
    gl.choose_backend(1)
    facts = machine.facts(machine.choose_device("auto"), cores)
    facts["versions"]["stable-baselines3"] = machine.version("stable-baselines3")
    out = pathlib.Path(options.out) if options.out else default_out(facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(out.read_text()) if out.exists() else {}
    found |= {"facts": facts, "made": found.get("made", {})}
    thread_counts = options.threads or sorted({1, cores})
    of_learner = options.threads or sorted({cores, *(2**power for power in range(cores.bit_length()))})
    cases = [name for name in learner.CASES if not options.cases or name.startswith(tuple(options.cases))]
    for part in options.parts:
        print(f"{part} ...", flush=True)
        if part == "learner":
            same_code = found["made"].get(part, {}).get("commit") == facts["commit"]
            kept = [row for row in found.get(part, []) if row["name"] not in cases and same_code]
            found[part] = kept + [_learner(name, threads, options) for threads in of_learner for name in cases]
        elif part == "rendering":
            found[part] = [
                rendering.measure(task, size, options.rounds) for task in rendering.TASKS for size in rendering.SIZES
            ]
            rendering.draw(out.with_name(f"{out.stem}-pictures.png"))
        elif part == "training":
            found[part] = []
            for preset, obs in itertools.product(("fast", "ddpg2016", "drqv2"), ("state", "pixels")):
                runs = [training.Runs((f"preset={preset}", f"obs={obs}"), threads) for threads in thread_counts]
                found[part] += training.measure(runs, options.rounds, options.seconds)
        elif part == "tried":
            found[part] = tried.measure(options.rounds)
        else:
            found[part] = growth.measure(options.rounds, options.seconds)
        today = datetime.date.today().isoformat()
        found["made"][part] = {"command": _command(), "commit": facts["commit"], "date": today}
        files.write_atomically(out, json.dumps(found, indent=1).encode() + b"\n")
    tables.write(out)
    print(tables.as_text(found))
    tables.plot(found, out.with_suffix(".png"))
    print(f"{out}, and its tables and plots beside it")


def _command() -> str:
    """As it was given, but for the place of somebody's checkout."""
    words = [re.sub(r"^drqv2=.+", "drqv2=<checkout>", word) for word in sys.argv[1:]]
    return " ".join(["python -m experiments.benchmarks", *words])


def _learner(name: str, threads: int, options: Benchmarks) -> dict:
    torch.set_num_threads(threads)
    try:
        row = learner.measure(name, options.rounds, options.drqv2)
    finally:
        torch.set_num_threads(1)
    print(tables.learner_line(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
