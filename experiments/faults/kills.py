"""SIGKILL at random moments: the same command ends with the weights and rows of a run that was left alone."""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil

from experiments.faults.forked import Failures
from experiments.faults.small_runs import PIXELS, STATE, difference
from pixel_ddpg.training import checkpoint

KINDS = {"state": STATE, "pixels": PIXELS, "three environments": [*STATE, "envs=3"]}
FRAMES = "frames=4000"
SAVED = (
    "checkpoint_minutes=0",
    "checkpoint_minutes=0.01",
)  # after each step, where most kills hit a save; or less often
OF_SUITE = ("task=", "obs=", "frames=", "threads=", "wandb=")
SEEDS = (0, 1)


def start(module: str, *words: str) -> subprocess.Popen:
    """The real command."""
    line = [sys.executable, "-m", module, *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def leave_alone(words: list[str], run_dir: pathlib.Path) -> float:
    """Seconds that a run takes by itself."""
    begun = time.monotonic()
    process = start("pixel_ddpg.run", *words, f"run_dir={run_dir}")
    if error := process.communicate()[1]:
        raise RuntimeError(error)
    return time.monotonic() - begun


def wait_until_it_trains(process: subprocess.Popen, run_dir: pathlib.Path) -> None:
    """And can be resumed, or until it ends: a run writes its status just before it trains."""
    status, begun = run_dir / "status.json", time.time()
    while process.poll() is None and not (
        status.exists() and status.stat().st_mtime > begun and checkpoint.newest(run_dir)
    ):
        time.sleep(0.01)


def measure(kind: str, count: int, random: np.random.Generator, folder: pathlib.Path) -> dict:
    """`count` kills of runs of a kind: half at any moment of the time that a run takes, half once it can be resumed."""
    words = [*KINDS[kind], FRAMES]
    longest = leave_alone(words, folder / "whole")
    found = {"tried": 0, "in a save": 0, "before the first checkpoint": 0, "runs": 0}
    failures = Failures()
    while found["tried"] < count or (folder / "killed").exists():
        process = start("pixel_ddpg.run", *words, SAVED[found["runs"] % 2], f"run_dir={folder / 'killed'}")
        try:
            moment = random.uniform(0, longest) if found["tried"] < count else None
            if moment is not None and random.random() < 0.5:
                wait_until_it_trains(process, folder / "killed")
                moment /= 2
            _, err = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            found["tried"] += 1
            found["in a save"] += any((folder / "killed").rglob("*.tmp"))
            found["before the first checkpoint"] += not checkpoint.newest(folder / "killed")
            continue
        found["runs"] += 1
        differs = err.strip() if process.returncode else difference(folder / "whole", folder / "killed")
        if differs:
            failures.append(f"{kind}, after {found['tried']} kills: {differs}")
        shutil.rmtree(folder / "killed")
    shutil.rmtree(folder / "whole")
    return found | {"failures": failures}


class Nodes:
    """Ray's own test cluster of two nodes, on which a suite runs."""

    VICTIMS = ("a run", "a node", "the command")

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._second = self.cluster.add_node(num_cpus=1)

    def kill(self, victim: str, driver: subprocess.Popen, random: np.random.Generator) -> bool:
        """One of VICTIMS; False where no run is there yet."""
        if victim == "the command":
            driver.kill()
        elif victim == "a node":
            self.cluster.remove_node(self._second, allow_graceful=False)
            self._second = self.cluster.add_node(num_cpus=1)
        elif processes := _runs():
            processes[random.integers(len(processes))].kill()
        else:
            return False
        return True


def measure_suite(count: int, random: np.random.Generator, folder: pathlib.Path) -> dict:
    """`count` kills of a suite on two nodes: of a run's process, a node, or the command."""
    run = [word for word in STATE if not word.startswith(OF_SUITE)] + [SAVED[1]]
    for seed in SEEDS:
        leave_alone([*STATE, SAVED[1], "frames=16000", f"seed={seed}"], folder / f"whole{seed}")
    nodes, suite = Nodes(), folder / "suite"
    words = ["tasks=cartpole-swingup", "obs=state", "preset=fast", "frames=16000", f"seeds={len(SEEDS)}", *run]
    words += [f"out={suite}", f"address={nodes.cluster.address}", "retries=1000"]
    found = {"tried": 0, **dict.fromkeys(Nodes.VICTIMS, 0), "suites": 0}
    failures = Failures()
    try:
        while found["tried"] < count or suite.exists():
            driver = start("experiments.suite", *words)
            err = None
            while err is None:
                try:
                    _, err = driver.communicate(timeout=random.uniform(5, 25) if found["tried"] < count else None)
                except subprocess.TimeoutExpired:
                    victim = str(random.choice(Nodes.VICTIMS))
                    if nodes.kill(victim, driver, random):
                        found["tried"] += 1
                        found[victim] += 1
            if driver.returncode == -signal.SIGKILL:
                continue
            found["suites"] += 1
            for seed in SEEDS:
                killed = suite / "cartpole-swingup" / "state" / "fast" / f"seed{seed}"
                differs = err.strip() if driver.returncode else difference(folder / f"whole{seed}", killed)
                if differs:
                    failures.append(f"suite, after {found['tried']} kills, seed {seed}: {differs}")
            shutil.rmtree(suite)
    finally:
        nodes.cluster.shutdown()
    return found | {"failures": failures}


def _runs() -> list[psutil.Process]:
    """The processes in which a suite's runs are."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [child] if "ray::cartpole-swingup" in " ".join(child.cmdline()) else []
    return found
