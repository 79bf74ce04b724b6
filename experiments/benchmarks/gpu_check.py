"""python -m experiments.benchmarks.gpu_check: on a CUDA machine, the tests that need one and the speed of the updates.

Minutes, one JSON, nothing but torch and the wheels of offline_pack: for whoever has a GPU to send.
"""

import datetime
import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from experiments.benchmarks import learner, tables, training
from experiments.benchmarks import rendering as rendering_benchmark
from experiments.benchmarks.timing import alternate, check_rounds, ratios
from pixel_ddpg import files
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.envs import rendering
from pixel_ddpg.errors import UserError, first_line
from pixel_ddpg.runtime import machine
from pixel_ddpg.runtime.graphs import GraphedUpdate
from pixel_ddpg.training.rows import read_rows

ROOT = pathlib.Path(__file__).parents[2]
DEVICE = "cuda"
CASES = ("drqv2, pixels", "fast, pixels", "ddpg2016, pixels", "ddpg2016, state")
TESTS = ("tests/runtime/test_fast_paths.py", "tests/agent/test_replay.py")
GRAPH = ("train.cuda_graph=true",)
BEST = (*GRAPH, "train.compile=true", "agent.precision=bfloat16")
RUNS = (  # what is added to drqv2 from pixels, and how many of these run at once
    ((), 1), (GRAPH, 1), (BEST, 1), (BEST, 4), ((*BEST, "train.overlap=true"), 1), ((*BEST, "envs=16"), 1),
    ((*BEST, "envs=16", "render=fast"), 1),
)  # fmt: skip
COMMAND = ("task=cheetah-run", "obs=pixels", "preset=ddpg2016", "wandb=off", "eval.video_size=0", "eval.episodes=1",
           "threads=1", *GRAPH)  # fmt: skip
FRAMES = (2000, 4000)  # the second time it resumes


@dataclass
class GpuCheck:
    """Options of the command."""

    out: str = option("gpu-check.json")
    rounds: int = option(3, "of each measurement, whose median counts")
    seconds: float = option(6.0, "that a whole run is watched for, over all rounds")


def run_tests() -> dict:
    """pytest on the tests that need CUDA: its last line, its exit code, and what failed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines() or done.stderr.splitlines() or [""]
    return {
        "code": done.returncode, "summary": lines[-1],
        "failed": [line for line in lines if re.match(r"(FAILED|ERROR) ", line)],
        "end": lines[-60:] if done.returncode else [],
    }  # fmt: skip


def graphed(words: tuple[str, ...], compiled: bool = False) -> tuple[Callable[[], object], Callable[[], int]]:
    """Updates of one case as a graph, and how many were made."""
    settings, agent, replay = learner.make((*words, f"train.compile={compiled}"), DEVICE)
    return GraphedUpdate(agent, replay, settings.replay.batch_size), lambda: learner.updates_made(agent)


def measure(name: str, rounds: int) -> dict:
    """Updates of one case, eager and as graphs of every precision."""
    words = learner.CASES[name]
    ways = {f"graph, {way}": graphed((*words, f"agent.precision={way}")) for way in ("bfloat16", "tf32", "float32")}
    # last: a graph keeps its kernels, this does not
    ways["eager, float32"] = learner.updater((*words, "agent.precision=float32"), device=DEVICE)[:2]
    return compare(name, ways, rounds)


def measure_compiled(name: str, rounds: int) -> dict:
    """A graph of torch.compile's kernels beside ones of torch's own."""
    half = (*learner.CASES[name], "agent.precision=bfloat16")
    ways = {"graph, bfloat16, compiled": graphed(half, compiled=True), "graph, bfloat16": graphed(half)}
    return compare(f"{name}, compiled", ways | {"graph, float32": graphed(learner.CASES[name])}, rounds)


def compare(name: str, ways: dict[str, tuple], rounds: int) -> dict:
    """In alternating rounds, against the last of them."""
    turns = alternate(ways, rounds)
    slowest = turns[list(ways)[-1]].seconds
    return {
        "name": name, "turns": {label: turn.as_json() for label, turn in turns.items()},
        "times_as_fast_as_the_last": {label: ratios(slowest, turn.seconds) for label, turn in turns.items()},
    }  # fmt: skip


def train(runs: training.Runs, options: GpuCheck) -> dict:
    """Frames a second of whole runs."""
    return training.measure([runs], options.rounds, options.seconds)[0]


def run_command() -> dict:
    """The real command: it trains with a graph, saves, and resumes. Its plan, and the renderer's name."""
    with tempfile.TemporaryDirectory() as folder:
        for frames in FRAMES:
            words = [*COMMAND, f"frames={frames}", f"run_dir={folder}/run"]
            command = [sys.executable, "-m", "pixel_ddpg.run", *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(words[:-1])}: {(done.stderr.splitlines() or ['failed'])[-1]}")
        rows = read_rows(pathlib.Path(folder, "run", "metrics.jsonl"))
    return {"words": words[:-1], "plan": done.stdout.splitlines(), "rows": [row.as_json() for row in rows]}


def drawing() -> dict:
    """How EGL and CUDA count this machine's GPUs, and which were asked for."""
    variables = ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID", "MUJOCO_GL")
    return {"cuda_numbers": rendering.cuda_numbers()} | {name: os.environ.get(name) for name in variables}


def attempt(what: str, work: Callable[[], dict]) -> dict:
    """What the work gives, or how it failed: the rest is worth sending all the same."""
    print(f"{what} ...", flush=True)
    try:
        return work()
    except Exception as error:
        return {"error": f"{what}: {type(error).__name__}: {first_line(error)}"}


def steps(options: GpuCheck) -> Iterator[tuple[str, str, Callable[[], dict]]]:
    """What is done: its part of the JSON, its name, the work."""
    yield "tests", "tests", run_tests
    yield "drawing", "drawing", drawing
    yield "command", "command", run_command
    for name in CASES:
        yield "learner", name, functools.partial(measure, name, options.rounds)
    yield "learner", "compiled", lambda: measure_compiled(CASES[0], options.rounds)
    task, size = rendering_benchmark.TASKS[1], rendering_benchmark.SIZES[1]
    yield "rendering", f"{task}, {size} pixels", lambda: rendering_benchmark.measure(task, size, options.rounds)
    for more, at_once in RUNS:
        runs = training.Runs(("preset=drqv2", "obs=pixels", "replay.capacity=20000", *more), at_once=at_once)
        what = " ".join([*runs.words, f"at_once={at_once}"])
        yield "training", what, functools.partial(train, runs, options)


@command("experiments.benchmarks.gpu_check", GpuCheck)
def main(options: GpuCheck) -> int:
    if not torch.cuda.is_available():
        raise UserError(f"no CUDA device here (torch {torch.__version__}); make bench measures a CPU")
    check_rounds(options.rounds, options.seconds)
    out = pathlib.Path(options.out)
    files.check_writable(out)
    machine.prepare_cpu(0)
    rendering.choose_backend(gpu=0)
    made = {"command": shlex.join(["python", "-m", __spec__.name, *sys.argv[1:]]), "date": f"{datetime.date.today()}"}
    facts = machine.facts(torch.device(DEVICE), torch.get_num_threads())
    found: dict = {"made": made, "facts": facts, "learner": [], "training": []}
    for part, what, work in steps(options):
        result = attempt(what, work)
        found[part] = [*found[part], result] if part in found else result
        files.write_atomically(out, json.dumps(found, indent=1).encode() + b"\n")
    print(tables.gpu(found))
    print(f"{out}: please send it")
    return 1 if tables.broken(found) or found["tests"].get("code") != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
