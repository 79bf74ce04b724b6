"""python -m experiments.tandem task=ball_in_cup-catch: what agents learn from pictures of another agent's experience.

An agent trains from state, and pictures of all its steps are kept. Then agents learn from these alone, without acting
("tandem", Ostrovski et al., 2021). Where they fail it is not exploration that is missing, but what encoder, critic or
actor make of transitions from which state learns. `tries=` lists the words of each agent's command.
"""

import json
import pathlib
import sys
from dataclasses import dataclass, field

import numpy as np
import torch

from pixel_ddpg import config, files, machine, tasks, trainer
from pixel_ddpg.environment import Environment
from pixel_ddpg.episodes import run_episodes
from pixel_ddpg.exploration import Exploration, scheduled_scale
from pixel_ddpg.replay import Replay

NOISE = 0.5  # standard deviation of the noise on the update's actions
Steps = list[tuple]  # what Replay.begin takes, or what Replay.add does


@dataclass
class Tandem:
    """Options of the command."""

    task: str = "ball_in_cup-catch"
    frames: int = 14_000  # that the agent from state trains for
    updates: int = 4000  # of each agent from pixels
    every: int = 1000  # updates between evaluations
    episodes: int = 8  # of an evaluation
    seed: int = 100
    tries: list[str] = field(default_factory=lambda: [""])
    out: str = "experiments/results/screening/tandem.json"


config.register_command("tandem", Tandem, "experiments")


def experience(options: Tandem, size: int) -> tuple[Steps, Steps]:
    """Train from state; the steps as state and as pictures."""
    settings = config.compose([f"task={options.task}", "obs=state", "agent.state_norm=true", f"seed={options.seed}"])
    environment = Environment(tasks.CATALOGUE[settings.task], "state", settings.env, settings.seed)
    renderer, agent = environment.make_renderer(size), trainer.make_agent(settings, torch.device("cpu"))
    explore = Exploration(settings.noise, environment.action_spec().shape[0], settings.seed)
    states, pictures = [], []
    replay, frame, time_step = make_replay(settings, [], options.frames), 0, None
    while frame < options.frames:
        if time_step is None or time_step.last():
            time_step, played = environment.reset(), ()
        else:
            before = environment.frames
            random = explore.is_random(frame)
            action = explore.random_action() if random else explore(agent.act(time_step.observation), frame)
            time_step = environment.step(action)
            frame += environment.frames - before
            played = (action, time_step.reward, time_step.discount, time_step.last())
        states.append((time_step.observation, *played))
        pictures.append((renderer.render(), *played))
        store(replay, states[-1])
        if len(states) > settings.train.start_steps:
            agent.schedule(scheduled_scale(settings.noise, frame), 1.0)
            for _ in range(round(settings.train.updates_per_step)):
                agent.update(replay.sample(settings.replay.batch_size))
    return states, pictures


def store(replay: Replay, step: tuple) -> None:
    """A first observation, or a step to the next one."""
    (replay.add if len(step) > 1 else replay.begin)(*step)


def make_replay(settings: config.Config, steps: Steps, frames: int) -> Replay:
    """A replay of these steps, with room for so many frames."""
    replay = trainer.make_replay(settings, frames)
    for step in steps:
        store(replay, step)
    return replay


def learn(options: Tandem, settings: config.Config, steps: Steps) -> list[dict]:
    """An agent that only learns; one row an evaluation."""
    replay = make_replay(settings, steps, options.frames)
    agent = trainer.make_agent(settings, torch.device("cpu"))
    agent.schedule(NOISE, 1.0)
    environment = Environment(tasks.CATALOGUE[settings.task], settings.obs, settings.env, settings.seed + 1)
    rows, sums = [], []
    for update in range(1, options.updates + 1):
        metrics = agent.update(replay.sample(settings.replay.batch_size))
        sums.append([metrics[name].item() for name in trainer.LOSSES])
        if update % options.every == 0:
            means = dict(zip(trainer.LOSSES, np.mean(sums, 0).tolist()))
            returns, _ = run_episodes(environment, agent.act, options.episodes)
            rows.append({"update": update, **means, "return": float(np.mean(returns)), "returns": returns})
            print(f"  {update:6,}  q {means['q']:.1f}  return {rows[-1]['return']:.0f}", flush=True)
            sums = []
    return rows


@config.command("tandem")
def main(options: Tandem) -> None:
    base = [f"task={options.task}", f"seed={options.seed}"]
    device = torch.device("cpu")
    machine.prepare(config.compose([*base, "threads=1"]), device)
    settings = {words: config.compose([*base, *words.split()]) for words in options.tries}
    for each in settings.values():
        config.check(each)
    states, pictures = experience(options, 64)
    rows = []
    for words, each in settings.items():
        print(words or "as the preset has it", flush=True)
        rows.append({"words": words, "rows": learn(options, each, pictures if each.obs == "pixels" else states)})
    result = {"task": options.task, "seed": options.seed, "frames": options.frames} | machine.facts(device, 1)
    files.write_atomically(pathlib.Path(options.out), json.dumps(result | {"tries": rows}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
