"""python -m pixel_ddpg.baseline task=... policy=random|planner: the returns that a score is measured by."""

import json
import pathlib
import sys
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from pixel_ddpg import checkpoint, config, machine, presets, tasks

POLICIES = {
    "random": "uniform actions: the 0 of the score",
    "planner": "the cross-entropy method with the true dynamics: the 1",
}
# Settings of the planner: a horizon of seconds, knots of its spline, plans a step.
PLANNER = {"knots": 5, "samples": 48, "iterations": 1, "elites": 4, "spread": 0.5}
HORIZON = 0.6  # seconds; the paper's planner looks 250 to 600 ms ahead


@dataclass
class Baseline:
    """Options of the command."""

    task: str = "cartpole-swingup"
    policy: str = "random"  # random or planner
    episodes: int = 5
    seed: int = 0  # of the first episode; the others have the next ones
    action_repeat: int = 0  # frames a step; 0: what preset fast has for the task
    horizon: float = HORIZON
    out: str = ""  # default: experiments/reference/baselines/<task>-<policy>.json


config.register_command("baseline", Baseline)


def check(options: Baseline) -> tasks.Task:
    """The task; UserError for what cannot work."""
    if options.policy not in POLICIES:
        raise config.UserError(f"unknown policy '{options.policy}'{config.nearest(options.policy, list(POLICIES))}")
    for key, least in (("episodes", 1), ("seed", 0), ("action_repeat", 0)):
        if getattr(options, key) < least:
            raise config.UserError(f"{key}={getattr(options, key)} must be at least {least}")
    if not 0 < options.horizon < 100:
        raise config.UserError(f"horizon={options.horizon} must be seconds, more than 0 and less than 100")
    task = tasks.CATALOGUE[options.task]
    if options.policy == "planner" and task.simulator != "mujoco":
        raise config.UserError(f"policy=planner plans with MuJoCo, which {task.name} is not made with")
    return task


def run_episode(task: tasks.Task, policy: str, repeat: int, horizon: float, seed: int) -> tuple[float, int]:
    """Return and frames of one episode."""
    environment = task.load(seed)
    time_step, total, frames = environment.reset(), 0.0, 0
    spec, draws = environment.action_spec(), np.random.default_rng(seed)
    bounds = np.clip(spec.minimum, -1, None), np.clip(spec.maximum, None, 1)  # lqr has none: actions in [-1, 1]
    if policy == "planner":
        from pixel_ddpg.planner import Sampling

        steps = max(PLANNER["knots"], round(horizon / (repeat * task.control_timestep)))
        planner = Sampling(environment, repeat, bounds, seed, steps=steps, **PLANNER)
    while not time_step.last():
        action = draws.uniform(*bounds) if policy == "random" else planner.act()
        for _ in range(repeat):
            time_step = environment.step(action)
            total, frames = total + time_step.reward, frames + 1
            if time_step.last():
                break
    return float(total), frames


@config.command("baseline")
def main(options: Baseline) -> None:
    task = check(options)
    repeat = options.action_repeat or presets.for_task("fast", "pixels", task.name)["env"]["action_repeat"]
    out = pathlib.Path(options.out or f"experiments/reference/baselines/{task.name}-{options.policy}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    console, started, returns, lengths = Console(stderr=True, highlight=False), time.monotonic(), [], []
    for episode in range(options.episodes):
        value, frames = run_episode(task, options.policy, repeat, options.horizon, options.seed + episode)
        returns.append(value)
        lengths.append(frames)
        console.print(f"episode {episode}  return {value:.1f}  ({frames} frames)")
    minutes = (time.monotonic() - started) / 60
    result = {
        "task": task.name, "policy": options.policy, "return": float(np.mean(returns)), "sd": float(np.std(returns)),
        "returns": returns, "lengths": lengths, "seed": options.seed, "action_repeat": repeat,
        "settings": PLANNER | {"horizon": options.horizon} if options.policy == "planner" else {},
        "minutes_an_episode": minutes / options.episodes, "commit": machine.commit(),
    }  # fmt: skip
    checkpoint.write_atomically(out, json.dumps(result, indent=2).encode() + b"\n")
    console.print(
        f"mean {result['return']:.1f} +- {result['sd']:.1f}, {result['minutes_an_episode']:.1f} min an episode"
    )
    print(out)


if __name__ == "__main__":
    sys.exit(main())
