"""python -m experiments.latents behaviour=<run from state> runs=[...]: what the critic's latent tells of the state.

An agent from state plays with noise. Small networks then learn to tell its state from the latents that other runs, from
pixels, have of the same pictures; the share of the variance that they explain in held-out episodes says what these
agents' encoders see. A new agent stands beside them: what it explains nobody had to learn.
"""

import json
import pathlib
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pixel_ddpg import config, files, machine, tasks, trainer
from pixel_ddpg.adam import Adam
from pixel_ddpg.agent import DDPG
from pixel_ddpg.environment import Environment, flat

HELD_OUT = 4  # every fourth episode
UPDATES, BATCH, WIDTH = 1500, 256, 256  # of the small network


@dataclass
class Latents:
    """Options of the command."""

    behaviour: str = ""  # folder of a run from state
    runs: list[str] = field(default_factory=list)  # folders of runs from pixels of its task
    episodes: int = 20
    noise: float = 0.3  # standard deviation on the behaviour's actions
    seed: int = 100
    out: str = "experiments/results/screening/latents.json"


config.register_command("latents", Latents, "experiments")


def record(agent: DDPG, settings: config.Config, options: Latents) -> tuple[np.ndarray, Tensor, Tensor]:
    """What an agent from pixels would see, step by step, the states, and which of them are held out."""
    environment = Environment(tasks.CATALOGUE[settings.task], "pixels", settings.env, options.seed)
    random = np.random.default_rng(options.seed)
    seen, states, held_out = [], [], []
    for episode in range(options.episodes):
        time_step = environment.reset()
        while not time_step.last():
            inner = environment.task_env
            states.append(flat(inner.task.get_observation(inner.physics)))
            seen.append(time_step.observation)
            held_out.append(episode % HELD_OUT == HELD_OUT - 1)
            action = agent.act(states[-1])
            time_step = environment.step(action + options.noise * random.standard_normal(action.shape))
    return np.array(seen), torch.as_tensor(np.array(states)), torch.as_tensor(held_out)


@torch.no_grad()
def latents_of(agent: DDPG, seen: np.ndarray) -> Tensor:
    """(N, f), of one critic's head."""
    parts = np.array_split(seen, max(1, len(seen) // BATCH))
    return torch.cat([agent.critic.head(agent.encoder(torch.as_tensor(part))).float() for part in parts])


def explained(latents: Tensor, states: Tensor, held_out: Tensor, seed: int) -> list[float]:
    """The share of each component's variance in held-out episodes; components that hardly vary are left out."""
    states = states[:, states.std(0) > 1e-3]
    train, generator = torch.nonzero(~held_out)[:, 0], torch.Generator().manual_seed(seed)
    latents, states = ((x - x[train].mean(0)) / (x[train].std(0) + 1e-6) for x in (latents, states))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(latents.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, states.shape[1]))
    optimizer = Adam(network, 1e-3)
    for update in range(UPDATES):
        chosen = train[torch.randint(len(train), (BATCH,), generator=generator)]
        optimizer.schedule(1 - update / UPDATES)
        optimizer.zero_grad()
        (network(latents[chosen]) - states[chosen]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (network(latents[held_out]) - states[held_out]).square().mean(0)
    return (1 - error / states[held_out].var(0)).tolist()


@config.command("latents")
def main(options: Latents) -> None:
    if not options.behaviour or not options.runs or options.episodes < HELD_OUT:
        raise config.UserError(f"behaviour= and runs= must name folders of runs, episodes= at least {HELD_OUT}")
    machine.prepare(config.compose(["threads=1"]), torch.device("cpu"))
    played, behaviour, _ = trainer.load_run(options.behaviour)
    if played.obs != "state" or played.env.frame_stack != 1:
        raise config.UserError(f"behaviour={options.behaviour} must be a run from state, with env.frame_stack=1")
    rows, table = [], Table("run", "frame", "variance explained", "of a new agent's latent")
    played_to: dict[str, tuple] = {}  # by what the pictures are
    for folder in options.runs:
        settings, agent, frame = trainer.load_run(folder)
        if (settings.obs, settings.task) != ("pixels", played.task):
            raise config.UserError(f"{folder} is {settings.task} from {settings.obs}, not {played.task} from pixels")
        pictures = repr(settings.env)
        if pictures not in played_to:
            played_to = {pictures: record(behaviour, settings, options)}
        seen, *known = played_to[pictures]
        new = trainer.make_agent(settings, torch.device("cpu"))
        of_run, of_new = (explained(latents_of(each, seen), *known, options.seed) for each in (agent, new))
        rows.append({"run": folder, "task": settings.task, "frame": frame, "explained": of_run, "new": of_new})
        table.add_row(folder, f"{frame:,}", f"{np.mean(of_run):.3f}", f"{np.mean(of_new):.3f}")
    Console().print(table)
    result = {"behaviour": options.behaviour, "episodes": options.episodes, "noise": options.noise}
    result |= machine.facts(torch.device("cpu"), 1) | {"rows": rows}
    files.write_atomically(pathlib.Path(options.out), json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
