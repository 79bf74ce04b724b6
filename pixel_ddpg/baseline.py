"""python -m pixel_ddpg.baseline task=... policy=random|planner: the returns that a score is measured by."""

import json
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

from pixel_ddpg import files, presets
from pixel_ddpg.command import Output, command
from pixel_ddpg.config import Env, option
from pixel_ddpg.container import available_threads
from pixel_ddpg.envs import tasks, workers
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.envs.episodes import run_episode
from pixel_ddpg.errors import UserError, warn
from pixel_ddpg.planning import baselines
from pixel_ddpg.runtime import machine

POLICIES = ("random", "planner", *baselines.SETTINGS)
FEWEST_SAMPLES = 16  # more than the elites


@dataclass
class Baseline:
    """Options of the command."""

    task: str = option("", "a name from `python -m pixel_ddpg.list`")
    tag: str = option("", "instead of a task: all that have this tag, as table1 or benchmarking")
    policy: str = option("random", "random, planner (both planners), sampling or ilqg", choices=POLICIES)
    episodes: int = option(5, "how many", least=1, most=10**5)
    seed: int = option(0, "of the first episode; the others have the next ones", least=0, most=2**32 - 1)
    action_repeat: int = option(0, "frames a step; 0: what preset fast has for the task", least=0, most=1000)
    horizon: float = option(0.0, "seconds a planner looks ahead; 0: the task's", least=0, most=100)
    samples: int = option(0, "plans an iteration of the sampling planner; 0: the task's", least=0, most=10**5)
    overwrite: bool = option(False, "start again where a result has other settings, or is damaged")
    out: str = option("", "folder of <task>-<policy>.json; default: the project's own, of which the score is made")


def check(options: Baseline) -> list[tasks.Task]:
    """The tasks; UserError for what cannot work."""
    if 0 < options.samples < FEWEST_SAMPLES:
        raise UserError(f"samples={options.samples} must be at least {FEWEST_SAMPLES}")
    if options.policy == "random" and (options.horizon or options.samples):
        raise UserError("horizon= and samples= are a planner's: add policy=planner")
    if options.policy == "ilqg" and options.samples:
        raise UserError("samples= is the sampling planner's")
    if bool(options.task) == bool(options.tag):
        raise UserError("name a task= or a tag=, as task=pendulum or tag=table1")
    chosen = [tasks.find(options.task)] if options.task else tasks.select("*", options.tag)
    if options.policy != "random":
        if options.task:
            baselines.check_planner(chosen[0])
        chosen = [task for task in chosen if task.simulator == "mujoco"]
    return [tasks.find(name) for name in dict.fromkeys(task.same_as for task in chosen)]


def measure(name: str, policy: str, action_repeat: int, settings: dict, seed: int, threads: int = 0) -> dict:
    """One episode; its return is the sum of the rewards of all frames, its minutes are of one core."""
    started = time.process_time()
    environment = Environment(tasks.find(name), "state", Env(action_repeat=action_repeat), seed)
    value, frames = run_episode(environment, baselines.make_policy(environment, policy, seed, settings, threads))
    minutes = (time.process_time() - started) / 60
    return {"seed": seed, "return": value, "frames": frames, "minutes": minutes, "commit": machine.commit()}


def folder(options: Baseline) -> pathlib.Path:
    """Where the results are."""
    return pathlib.Path(options.out) if options.out else baselines.MEASURED


class Result:
    """The file of one task and policy; it knows which episodes it lacks."""

    def __init__(self, task: tasks.Task, policy: str, options: Baseline):
        repeat = options.action_repeat or presets.action_repeat(task.name)
        settings = baselines.planner_settings(policy, task.name)
        for key in settings.keys() & {"horizon", "samples"}:
            settings[key] = getattr(options, key) or settings[key]
        self.path = folder(options) / f"{task.name}-{policy}.json"
        made = {"task": task.name, "policy": policy, "action_repeat": repeat, "settings": settings}
        self.made = json.loads(json.dumps(made))
        self.episodes = self._read(options.overwrite)
        found = {episode["seed"] for episode in self.episodes}
        self.missing = [seed for seed in range(options.seed, options.seed + options.episodes) if seed not in found]

    def _read(self, overwrite: bool) -> list[dict]:
        """The episodes that were run with these settings."""
        if not self.path.exists():
            return []
        try:
            old = baselines.read(self.path)
        except UserError:
            if overwrite:
                return []
            raise
        if all(old[key] == self.made[key] for key in self.made):
            return old["episodes"]
        if overwrite:
            return []
        raise UserError(f"{self.path} has other settings: choose another out=, or add overwrite=true")

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
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_processes(function: Callable, jobs: list[tuple]) -> Iterator[tuple[tuple, dict | UserError]]:
    """Each job with what the function makes of it and of `threads=`, as they end: on all cores."""
    cores = available_threads()
    count = max(1, min(cores, len(jobs)))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            with workers.sigint_ignored_by_children():
                running = {pool.submit(function, *job, threads=max(1, cores // count)): job for job in jobs}
            for done in as_completed(running):
                try:
                    yield running[done], done.result()
                except UserError as error:  # the others continue
                    yield running[done], error
        except BaseException as error:
            for child in multiprocessing.active_children():
                child.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                message = "a process was killed: the same command resumes with what is missing"
                raise UserError(message, code=1) from None
            raise


@command("pixel_ddpg.baseline", Baseline)
def main(options: Baseline) -> int:
    policies = list(baselines.SETTINGS) if options.policy == "planner" else [options.policy]
    chosen, console, failed = check(options), Output(stderr=True), []
    with files.locked(folder(options), "out"):
        results = [Result(task, policy, options) for task in chosen for policy in policies]
        of = {(result.made["task"], result.made["policy"]): result for result in results}
        jobs = [(*result.made.values(), seed) for result in results for seed in result.missing]
        if jobs:
            console.print(f"episodes to run: {len(jobs)}")
        for number, ((name, policy, *_, seed), episode) in enumerate(in_processes(measure, jobs), 1):
            if isinstance(episode, UserError):
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
        warn(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
