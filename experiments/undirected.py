"""python -m experiments.undirected: how much reward exploration meets before anything is learned.

Episodes of exploration alone: the random phase, or noise around an action of 0, which is what a new actor gives. Where
no episode meets a reward, nothing can be learned from it.
"""

import json
import pathlib
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pixel_ddpg import config, files, machine, tasks
from pixel_ddpg.environment import Environment
from pixel_ddpg.episodes import run_episode
from pixel_ddpg.exploration import Exploration

FOR_EVER = 10**9  # frames


@dataclass
class Undirected:
    """Options of the command."""

    tasks: list[str] = field(default_factory=lambda: list(tasks.PLANET6))
    episodes: int = 20
    seed: int = 100
    tries: list[str] = field(
        default_factory=lambda: [
            f"noise.random_frames={FOR_EVER}",
            *(f"noise.random_frames={FOR_EVER} noise.hold={hold}" for hold in (1, 2, 4, 8)),
            *(f"noise.random_frames=0 noise.start={scale}" for scale in (1.0, 0.5, 0.2)),
        ]
    )
    out: str = "experiments/results/screening/undirected.json"


config.register_command("undirected", Undirected, "experiments")


def returns(task: str, words: str, options: Undirected) -> list[float]:
    """One return an episode, with the noise of frame 0."""
    settings = config.compose([f"task={task}", "obs=state", f"noise.frames={FOR_EVER}", *words.split()])
    config.check(settings)
    environment = Environment(tasks.CATALOGUE[task], "state", settings.env, options.seed)
    actions = environment.action_spec().shape[0]
    explore = Exploration(settings.noise, actions, options.seed)

    def policy(_: np.ndarray) -> np.ndarray:
        return explore.random_action() if explore.is_random(0) else explore(np.zeros(actions, np.float32), 0)

    result = []
    for _ in range(options.episodes):
        explore.reset()
        result.append(run_episode(environment, policy)[0])
    return result


@config.command("undirected")
def main(options: Undirected) -> None:
    machine.prepare(config.compose(["threads=1"]), torch.device("cpu"))
    table, rows = Table("task", "noise", "mean return", "episodes with a reward"), []
    for task in options.tasks:
        for words in options.tries:
            row = {"task": task, "words": words, "returns": returns(task, words, options)}
            rows.append(row)
            met = sum(value > 0 for value in row["returns"])
            table.add_row(task, words, f"{np.mean(row['returns']):.1f}", f"{met} of {options.episodes}")
    Console().print(table)
    result = {"episodes": options.episodes, "seed": options.seed} | machine.facts(torch.device("cpu"), 1)
    files.write_atomically(pathlib.Path(options.out), json.dumps(result | {"rows": rows}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
