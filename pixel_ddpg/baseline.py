"""python -m pixel_ddpg.baseline task=... policy=random|planner: the returns that a score is measured by."""

import json
import math
import multiprocessing
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from pixel_ddpg import config, files, fleet, machine, presets, tasks
from pixel_ddpg.environment import Environment
from pixel_ddpg.episodes import run_episode
from pixel_ddpg.list import select
from pixel_ddpg.rendering import available_threads

# Seconds to look ahead (the paper's planner: 0.25 to 0.6), and what each planner is built with. Goals that are far or
# sparse want a longer look; where physics are slow, the time of an episode is kept with fewer plans.
SETTINGS = {
    "sampling": {"horizon": 0.6, "knots": (3, 6, 0), "samples": 64, "iterations": 2, "elites": 8, "spread": 1.0},
    "ilqg": {"horizon": 0.6},
}
POLES = {"sampling": {"horizon": 1.2, "samples": 32}, "ilqg": {"horizon": 1.6}}
POLE = {"sampling": {"horizon": 1.2}, "ilqg": {"horizon": 2.0}}
GRIPPER = {"sampling": {"horizon": 0.5, "samples": 48}, "ilqg": {"horizon": 0.5}}
CANADA = {"sampling": {"horizon": 1.2, "samples": 32}}
CHEETAH = {"sampling": {"knots": (6,), "samples": 96, "iterations": 3}, "ilqg": {"horizon": 0.48}}
SETTINGS_OF = {
    "cartpole-swingup": POLE, "cartpole-balance": POLE,
    "cartpoleParallelDouble": POLES, "cartpoleParallelTriple": POLES, "cartpoleSerialDouble": POLES,
    "cartpole-two_poles": POLES, "cartpoleSerialTriple": POLES, "cartpole-three_poles": POLES,
    "pendulum": {"sampling": {"horizon": 1.2}, "ilqg": {"horizon": 1.2}},
    "blockworld1": GRIPPER, "gripper": GRIPPER, "gripperRandom": GRIPPER, "movingGripper": GRIPPER,
    "movingGripperRandom": GRIPPER, "canada": CANADA, "canada2d": CANADA,
    "cheetah-run": CHEETAH, "hardCheetah": CHEETAH,
    "hyq": {"sampling": {"horizon": 0.4, "samples": 32}, "ilqg": {"horizon": 0.4}},
    "walker2d": {"sampling": {"horizon": 0.8, "knots": (6,), "samples": 96}, "ilqg": {"horizon": 0.5}},
    "reacher-easy": {"sampling": {"horizon": 1.6}, "ilqg": {"horizon": 1.6}},
    "finger-spin": {"sampling": {"horizon": 0.28, "knots": (0,), "samples": 256, "spread": 3.0}},
    "ball_in_cup-catch": {"sampling": {"horizon": 0.8}},
}  # fmt: skip
POLICIES = ("random", "planner", *SETTINGS)
FEWEST_SAMPLES = 16  # more than the elites
MEASURED = pathlib.Path(__file__).parent.parent / "experiments/reference/baselines"
LIMITS = {
    "episodes": (1, 10**5),
    "seed": (0, 2**32 - 1),
    "action_repeat": (0, 1000),
    "horizon": (0, 100),
    "samples": (0, 10**5),
}


@dataclass
class Baseline:
    """Options of the command."""

    task: str = ""
    tag: str = ""  # instead of a task: all that have this tag, as table1 or benchmarking
    policy: str = "random"  # random, planner (both planners), sampling or ilqg
    episodes: int = 5
    seed: int = 0  # of the first episode; the others have the next ones
    action_repeat: int = 0  # frames a step; 0: what preset fast has for the task
    horizon: float = 0.0  # seconds a planner looks ahead; 0: what it has for the task
    samples: int = 0  # plans an iteration of the sampling planner; 0: what it has for the task
    overwrite: bool = False  # begin anew where a result has other settings, or is damaged
    out: str = ""  # folder of <task>-<policy>.json; default: the project's own, of which the score is made


config.register_command("baseline", Baseline)


def check(options: Baseline) -> list[tasks.Task]:
    """The tasks; UserError for what cannot work."""
    if options.policy not in POLICIES:
        raise config.UserError(f"unknown policy '{options.policy}'{config.nearest(options.policy, POLICIES)}")
    for key, (least, most) in LIMITS.items():
        if not least <= getattr(options, key) <= most:
            raise config.UserError(f"{key}={getattr(options, key)} must be at least {least} and at most {most:,}")
    if 0 < options.samples < FEWEST_SAMPLES:
        raise config.UserError(f"samples={options.samples} must be at least {FEWEST_SAMPLES}")
    if options.policy == "random" and (options.horizon or options.samples):
        raise config.UserError("horizon= and samples= are a planner's: add policy=planner")
    if options.policy == "ilqg" and options.samples:
        raise config.UserError("samples= is the sampling planner's")
    if bool(options.task) == bool(options.tag):
        raise config.UserError("name a task= or a tag=, as task=pendulum or tag=table1")
    chosen = [tasks.CATALOGUE[options.task]] if options.task else select("*", options.tag)
    if options.policy != "random":
        if options.task:
            check_planner(chosen[0])
        chosen = [task for task in chosen if task.simulator == "mujoco"]
    return [tasks.CATALOGUE[name] for name in dict.fromkeys(task.same_as for task in chosen)]


def check_planner(task: tasks.Task) -> None:
    """UserError for a task that the planners have no model of."""
    if task.simulator != "mujoco":
        raise config.UserError(f"{task.name} is not made with MuJoCo, with which planners plan; random works")


def planner_settings(planner: str, task: str) -> dict:
    """What a planner is built with for a task; nothing for random."""
    return SETTINGS.get(planner, {}) | SETTINGS_OF.get(tasks.CATALOGUE[task].same_as, {}).get(planner, {})


def better_planner(task: str) -> str | None:
    """The one whose returns are the 1 of the score: the better on the seeds that both were measured with, if any."""
    paths = [MEASURED / f"{tasks.CATALOGUE[task].same_as}-{planner}.json" for planner in SETTINGS]
    episodes = [read(path)["episodes"] if path.exists() else [] for path in paths]
    returns = [{episode["seed"]: episode["return"] for episode in each} for each in episodes]
    both = set.intersection(*map(set, returns))
    means = {planner: np.mean([each[seed] for seed in both]) for planner, each in zip(SETTINGS, returns) if both}
    return max(means, key=means.get, default=None)


def references(task: str) -> tuple[float, float] | None:
    """Mean returns of random actions and of the better planner; None where one of them is not measured."""
    planner, name = better_planner(task), tasks.CATALOGUE[task].same_as
    if planner is None or not (MEASURED / f"{name}-random.json").exists():
        return None
    low, high = (read(MEASURED / f"{name}-{policy}.json")["return"] for policy in ("random", planner))
    return low, high


def score(task: str, value: float) -> float | None:
    """A return with 0 as random's and 1 as the better planner's; None where one of them is not measured."""
    if (ends := references(task)) is None:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def read(path: pathlib.Path) -> dict:
    """What this command wrote; UserError for anything else."""
    try:
        result = json.loads(path.read_text())
        keys = {"task", "policy", "action_repeat", "settings", "return", "sd"}
        numbers = [episode[key] for episode in result["episodes"] for key in ("seed", "return", "frames", "minutes")]
        numbers += [result["return"], result["sd"]]
        whole = keys <= result.keys() and len(numbers) > 2 and all(map(math.isfinite, numbers))
        whole = whole and all("commit" in episode for episode in result["episodes"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise config.UserError(
            f"{path} is no result of `python -m pixel_ddpg.baseline`: delete it and measure again", 1
        )
    return result


def make_policy(environment: Environment, name: str, seed: int, settings: dict, threads: int = 0) -> Callable:
    """One of POLICIES but `planner`: from an observation to an action in [-1, 1]."""
    if name == "random":
        draws, dimension = np.random.default_rng(seed), environment.task.action_dim
        return lambda observation: draws.uniform(-1, 1, dimension).astype(np.float32)
    from pixel_ddpg import planner

    return planner.PLANNERS[name](environment, seed, threads, **settings).act


def measure(name: str, policy: str, action_repeat: int, settings: dict, seed: int, threads: int = 0) -> dict:
    """One episode; its return is the sum of the rewards of all frames, its minutes are of one core."""
    started = time.process_time()
    environment = Environment(tasks.CATALOGUE[name], "state", config.Env(action_repeat=action_repeat), seed)
    value, frames = run_episode(environment, make_policy(environment, policy, seed, settings, threads))
    minutes = (time.process_time() - started) / 60
    return {"seed": seed, "return": value, "frames": frames, "minutes": minutes, "commit": machine.commit()}


def folder(options: Baseline) -> pathlib.Path:
    """Where the results are."""
    return pathlib.Path(options.out) if options.out else MEASURED


class Result:
    """The file of one task and policy; it knows which episodes it lacks."""

    def __init__(self, task: tasks.Task, policy: str, options: Baseline):
        repeat = options.action_repeat or presets.action_repeat(task.name)
        settings = planner_settings(policy, task.name)
        for key in settings.keys() & {"horizon", "samples"}:
            settings[key] = getattr(options, key) or settings[key]
        self.path = folder(options) / f"{task.name}-{policy}.json"
        made = {"task": task.name, "policy": policy, "action_repeat": repeat, "settings": settings}
        self.made = json.loads(json.dumps(made))
        self.episodes = self._read(options.overwrite)
        found = {episode["seed"] for episode in self.episodes}
        self.missing = [seed for seed in range(options.seed, options.seed + options.episodes) if seed not in found]

    def _read(self, anew: bool) -> list[dict]:
        """The episodes that were run with these settings."""
        if not self.path.exists():
            return []
        try:
            old = read(self.path)
        except config.UserError:
            if anew:
                return []
            raise
        if all(old[key] == self.made[key] for key in self.made):
            return old["episodes"]
        if anew:
            return []
        raise config.UserError(f"{self.path} has other settings: choose another out=, or add overwrite=true")

    def add(self, episode: dict) -> None:
        """Write one more."""
        self.episodes = sorted([*self.episodes, episode], key=lambda each: each["seed"])
        returns = [each["return"] for each in self.episodes]
        summary = {"return": float(np.mean(returns)), "sd": float(np.std(returns))}
        content = json.dumps(self.made | summary | {"episodes": self.episodes}, indent=1)
        files.write_atomically(self.path, content.encode() + b"\n")


def _end_with_parent() -> None:
    """In a worker: it ends with its parent, however that ends."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_processes(function: Callable, jobs: list[tuple]) -> Iterator[tuple[tuple, dict | config.UserError]]:
    """Each job with what the function makes of it and of `threads=`, as they end: on all cores."""
    cores = available_threads()
    workers = max(1, min(cores, len(jobs)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            with fleet.deaf_children():
                running = {pool.submit(function, *job, threads=max(1, cores // workers)): job for job in jobs}
            for done in as_completed(running):
                try:
                    yield running[done], done.result()
                except config.UserError as error:  # the others go on
                    yield running[done], error
        except BaseException as error:
            for child in multiprocessing.active_children():
                child.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                message = "a process was killed: the same command goes on with what is missing"
                raise config.UserError(message, 1) from None
            raise


@config.command("baseline")
def main(options: Baseline) -> int:
    policies = list(SETTINGS) if options.policy == "planner" else [options.policy]
    chosen, console, failed = check(options), Console(stderr=True, highlight=False), []
    with files.locked(folder(options), "out"):
        results = [Result(task, policy, options) for task in chosen for policy in policies]
        of = {(result.made["task"], result.made["policy"]): result for result in results}
        jobs = [(*result.made.values(), seed) for result in results for seed in result.missing]
        if jobs:
            console.print(f"episodes to run: {len(jobs)}")
        for number, ((name, policy, *_, seed), episode) in enumerate(in_processes(measure, jobs), 1):
            if isinstance(episode, config.UserError):
                failed.append(f"{name} {policy} seed {seed}: {episode}")
                continue
            of[name, policy].add(episode)
            told = f"return {episode['return']:.1f} in {episode['frames']} frames, {episode['minutes']:.1f} min"
            console.print(f"{number}/{len(jobs)} {name} {policy} seed {seed}: {told}")
    for result in results:
        values = [episode["return"] for episode in result.episodes]
        if values:
            print(f"{result.path}: {np.mean(values):.1f} +- {np.std(values):.1f} (episodes: {len(values)})")
    for line in failed:
        print(f"pixel_ddpg: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
