"""python -m experiments.benchmarks.gpu_check: on a CUDA machine, the tests that need one and the speed of the updates.

Minutes, one JSON, nothing but torch and the wheels of offline_pack: for whoever has a GPU to send.
"""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
from dataclasses import dataclass

import torch

from experiments.benchmarks import learner, training
from experiments.benchmarks.timing import alternate, measure_rates, ratios
from pixel_ddpg import config, files, machine, rendering
from pixel_ddpg.graph import GraphedUpdate

ROOT = pathlib.Path(__file__).parents[2]
CASES = ("drqv2, pixels", "fast, pixels", "ddpg2016, pixels", "ddpg2016, state")
TESTS = ("tests/test_fast_paths.py", "tests/test_replay.py")
RUNS_AT_ONCE = (1, 2, 4)


@dataclass
class GpuCheck:
    """Options of the command."""

    out: str = "gpu-check.json"
    rounds: int = 5  # of each measurement, whose median counts
    seconds: float = 15.0  # that a whole run is watched for


config.register_command("gpu_check", GpuCheck, "experiments.benchmarks")


def run_tests() -> dict:
    """pytest on the tests with a CUDA half: its last line, its exit code, and what failed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines() or done.stderr.splitlines() or [""]
    return {
        "code": done.returncode, "summary": lines[-1],
        "failed": [line for line in lines if re.match(r"(FAILED|ERROR) ", line)],
        "end": lines[-60:] if done.returncode else [],
    }  # fmt: skip


def measure(name: str, rounds: int) -> dict:
    """Updates of one case, eager and as a graph, beside the floor of this GPU."""
    words = learner.CASES[name]
    rates, work = measure_rates("cuda"), learner.work_of(words)
    eager, eager_count, *_ = learner.updater(words, device="cuda")
    settings, agent, replay = learner.make(words, "cuda")
    graph = GraphedUpdate(agent, replay, settings.replay.batch_size)
    counters = {"eager": eager_count, "graph": lambda: learner.updates_made(agent)}
    turns = alternate({"eager": eager, "graph": graph}, counters, rounds)
    lowest = learner.floor(work, rates)
    return {
        "name": name, "rates": dataclasses.asdict(rates), "floor": lowest, "work": work,
        "turns": {label: turn.as_json() for label, turn in turns.items()},
        "graph_times_as_fast": ratios(turns["eager"].seconds, turns["graph"].seconds),
        "memory_bytes": torch.cuda.max_memory_allocated(),
    }  # fmt: skip


def attempt(what: str, work) -> dict:
    """What the work gives, or how it failed: the rest is worth sending all the same."""
    print(f"{what} ...", flush=True)
    try:
        return work()
    except Exception as error:
        return {"what": what, "error": f"{type(error).__name__}: {error}"}


@config.command("gpu_check")
def main(options: GpuCheck) -> int:
    if not torch.cuda.is_available():
        raise config.UserError(f"no CUDA device here (torch {torch.__version__}); make bench measures a CPU")
    machine.prepare_cpu(0)
    rendering.choose_backend()
    found: dict = {"facts": machine.facts(torch.device("cuda"), torch.get_num_threads())}
    found["tests"] = attempt("tests", run_tests)
    found["learner"] = [attempt(name, lambda name=name: measure(name, options.rounds)) for name in CASES]
    found["training"] = []
    for graphed in ("false", "true"):
        for at_once in RUNS_AT_ONCE:
            words = ["preset=drqv2", "obs=pixels", f"train.cuda_graph={graphed}", "replay.capacity=20000"]
            run = lambda words=words, at_once=at_once: training.measure(words, options.seconds, 1, at_once)  # noqa: E731
            found["training"].append(attempt(" ".join([*words, f"at_once={at_once}"]), run))
    files.write_atomically(pathlib.Path(options.out), json.dumps(found, indent=1).encode() + b"\n")
    broken = [row["error"] for row in [*found["learner"], *found["training"]] if "error" in row]
    for line in [found["tests"].get("summary", "no tests"), *broken]:
        print(line)
    print(f"{options.out}: please send it")
    return 1 if broken or found["tests"].get("code") != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
