"""The returns that a score is made of, as they were measured: 0 is random actions, 1 the better planner."""

import functools
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.errors import UserError

# Seconds to look ahead (the paper's planner: 0.25 to 0.6), and what each planner is built with. Goals that are far or
# sparse want a longer look; where physics are slow, the time of an episode is kept with fewer plans.
SETTINGS: dict[str, dict] = {
    "sampling": {"horizon": 0.6, "knots": (3, 6, 0), "samples": 64, "iterations": 2, "elites": 8, "spread": 1.0},
    "ilqg": {"horizon": 0.6},
}
POLES: dict[str, dict] = {"sampling": {"horizon": 1.2, "samples": 32}, "ilqg": {"horizon": 1.6}}
POLE: dict[str, dict] = {"sampling": {"horizon": 1.2}, "ilqg": {"horizon": 2.0}}
GRIPPER: dict[str, dict] = {"sampling": {"horizon": 0.5, "samples": 48}, "ilqg": {"horizon": 0.5}}
CANADA: dict[str, dict] = {"sampling": {"horizon": 1.2, "samples": 32}}
CHEETAH: dict[str, dict] = {"sampling": {"knots": (6,), "samples": 96, "iterations": 3}, "ilqg": {"horizon": 0.48}}
SETTINGS_OF: dict[str, dict[str, dict]] = {
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
MEASURED = pathlib.Path(__file__).parent / "returns"


def check_planner(task: tasks.Task) -> None:
    """UserError for a task that the planners have no model of."""
    if task.simulator != "mujoco":
        raise UserError(f"{task.name} is not a MuJoCo task, so it has no planner: use random")


def planner_settings(planner: str, task: str) -> dict:
    """What a planner is built with for a task; nothing for random."""
    return SETTINGS.get(planner, {}) | SETTINGS_OF.get(tasks.find(task).same_as, {}).get(planner, {})


def better_planner(task: str) -> str | None:
    """The one whose returns are the 1 of the score: the better on the seeds that both were measured with, if any."""
    paths = [MEASURED / f"{tasks.find(task).same_as}-{planner}.json" for planner in SETTINGS]
    episodes = [read(path)["episodes"] if path.exists() else [] for path in paths]
    returns = [{episode["seed"]: episode["return"] for episode in each} for each in episodes]
    both = set.intersection(*map(set, returns))
    means = {planner: np.mean([each[seed] for seed in both]) for planner, each in zip(SETTINGS, returns) if both}
    return max(means, key=lambda planner: means[planner], default=None)


def planner_named(policy: str, task: str) -> str:
    """The planner that a policy stands for: `planner` is the better one, where none is measured the first."""
    return better_planner(task) or next(iter(SETTINGS)) if policy == "planner" else policy


def references(task: str) -> tuple[float, float] | None:
    """Mean returns of random actions and of the better planner; None where one of them is not measured."""
    return _references(MEASURED, task)


@functools.cache
def _references(folder: pathlib.Path, task: str) -> tuple[float, float] | None:
    planner, name = better_planner(task), tasks.find(task).same_as
    if planner is None or not (folder / f"{name}-random.json").exists():
        return None
    low, high = (read(folder / f"{name}-{policy}.json")["return"] for policy in ("random", planner))
    return low, high


def score(task: str, value: float) -> float | None:
    """A return with 0 as random's and 1 as the better planner's; None where these are not measured, or equal."""
    ends = references(task)
    if ends is None or ends[0] == ends[1]:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def read(path: pathlib.Path) -> dict:
    """A result file of `python -m pixel_ddpg.baseline`; UserError for anything else."""
    try:
        result = json.loads(path.read_bytes())
        keys = {"task", "policy", "action_repeat", "settings", "return", "sd"}
        numbers = [episode[key] for episode in result["episodes"] for key in ("seed", "return", "frames", "minutes")]
        numbers += [result["return"], result["sd"]]
        whole = keys <= result.keys() and len(numbers) > 2 and all(map(math.isfinite, numbers))
        whole = whole and all("commit" in episode for episode in result["episodes"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is no result of `python -m pixel_ddpg.baseline`: delete it and measure again", code=1)
    return result


def make_policy(environment: Environment, name: str, seed: int, settings: dict, threads: int = 0) -> Callable:
    """`random` or a planner by its name: from an observation to an action in [-1, 1]."""
    if name == "random":
        draws, dimension = np.random.default_rng(seed), environment.task.action_dim
        return lambda observation: draws.uniform(-1, 1, dimension).astype(np.float32)
    from pixel_ddpg.planning import planner

    return planner.PLANNERS[name](environment, seed, threads, **settings).act
