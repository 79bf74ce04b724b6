"""python -m experiments.probe: what an encoder can tell of a picture, without rewards.

Encoders are trained by regression from stacks of pictures to what the task's state vector says (where the ball is seen
from the cup, the target from the finger; joints and their velocities of cheetah and walker). The share of the variance
that they explain is measured on episodes that they were not trained on.
"""

import json
import pathlib
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pixel_ddpg import config, files, machine, tasks
from pixel_ddpg.adam import Adam
from pixel_ddpg.environment import Environment, element_shape
from pixel_ddpg.networks import Encoder, initialise
from pixel_ddpg.replay import Replay

MAPS = "agent.spatial_softmax=false agent.conv="
FOUR, TWO = f"{MAPS}[[32,5,4,2],[32,3,2,1],[32,3,1,1]]", f"{MAPS}[[32,3,2,1],[32,3,2,1],[32,3,2,1]]"
ENCODERS = {  # kernel/stride of each layer, size of a picture, and the words that make them
    "5/4 3/2 3/1, 64": FOUR,
    "3/2 3/2 3/2, 64": TWO,
    "5/4 3/2 3/1, 84": f"env.size=84 {FOUR}",
    "3/2 3/2 3/2, 84": f"env.size=84 {TWO}",
}
SEEN = {  # what the pictures should tell
    "ball_in_cup-catch": lambda physics: physics.ball_to_target(),
    "reacher-easy": lambda physics: physics.finger_to_target(),
    "cheetah-run": lambda physics: np.concatenate([physics.data.qpos[2:], physics.data.qvel]),
    "walker-walk": lambda physics: np.concatenate([physics.data.qpos[2:], physics.data.qvel]),
}
HELD = 4  # steps that a random action is held at most
STEPS = 25  # of an episode here: many starts and targets matter more than long play


@dataclass
class Probe:
    """Options of the command."""

    tasks: list[str] = field(default_factory=lambda: list(SEEN))
    episodes: int = 320  # of random actions; a quarter is held out
    updates: int = 2000
    batch_size: int = 64
    seed: int = 100
    out: str = "experiments/results/screening/probe.json"


config.register_command("probe", Probe, "experiments")


def collect(settings: config.Config, episodes: int) -> tuple[Replay, torch.Tensor, torch.Tensor]:
    """Pictures of random play in a replay, the targets by slot, and the slots of held-out episodes."""
    task, seed = settings.task, settings.seed
    environment = Environment(tasks.CATALOGUE[task], "pixels", settings.env, seed)
    random, seen, held_out = np.random.default_rng(seed), [], []
    shape = element_shape(tasks.CATALOGUE[task], "pixels", settings.env)
    replay = Replay(
        shape,
        environment.action_spec().shape[0],
        episodes * (STEPS + 1),
        frame_stack=3,
        random_shift=settings.agent.random_shift,
    )
    for episode in range(episodes):
        environment.reset()
        action, left = np.zeros(environment.action_spec().shape), 0
        for step in range(STEPS + 1):
            if step:
                replay.add(environment.element, action, 0.0, 1.0, step == STEPS)
            else:
                replay.begin(environment.element)
            seen.append(SEEN[task](environment.task_env.physics).copy())
            held_out.append(episode % 4 == 3)
            if not left:
                action, left = random.uniform(-1, 1, environment.action_spec().shape), random.integers(1, HELD + 1)
            left -= 1
            environment.step(action)
    targets = torch.as_tensor(np.array(seen), dtype=torch.float32)
    return replay, (targets - targets.mean(0)) / targets.std(0), torch.as_tensor(held_out)


def explained(settings: config.Config, encoder: str, options: Probe, data: tuple) -> dict:
    """Train one encoder; the share of the held-out variance that it explains, and milliseconds of an update."""
    replay, targets, held_out = data
    agent, channels = settings.agent, replay.elements.shape[1] * settings.env.frame_stack
    generator = torch.Generator().manual_seed(options.seed)
    network = Encoder(channels, agent)
    features = network(torch.zeros(1, channels, *replay.elements.shape[2:])).shape[1]
    head = nn.Sequential(
        nn.Linear(features, 50), nn.LayerNorm(50), nn.Tanh(), nn.Linear(50, 256), nn.ReLU(),
        nn.Linear(256, targets.shape[1]),
    )  # fmt: skip
    both = nn.ModuleList([network, head])
    initialise(both, agent, generator)
    network.to(memory_format=torch.channels_last)
    optimizer = Adam(both, 1e-3)
    slots = torch.arange(len(targets))
    train, test = slots[~held_out], slots[held_out]
    times = []
    for update in range(options.updates):
        chosen = train[torch.randint(len(train), (options.batch_size,), generator=generator)]
        batch = replay.gather(chosen)
        begin = time.perf_counter()
        optimizer.schedule(1 - update / options.updates)
        optimizer.zero_grad()
        (head(network(batch.observation)) - targets[chosen]).square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    replay._shift = 0
    with torch.no_grad():
        predicted = torch.cat([head(network(replay.gather(part).observation)) for part in test.split(256)])
    replay._shift = agent.random_shift
    error = (predicted - targets[test]).square().mean(0)
    by_target = 1 - error / targets[test].var(0)
    return {
        "task": settings.task, "encoder": encoder, "explained": by_target.mean().item(),
        "by_target": by_target.tolist(), "features": features, "milliseconds": 1000 * float(np.median(times)),
    }  # fmt: skip


@config.command("probe")
def main(options: Probe) -> None:
    machine.prepare(config.compose(["threads=1"]), torch.device("cpu"))
    rows = []
    table = Table("task", "encoder, picture", "variance explained", "features", "ms an update")
    for task in options.tasks:
        made: dict[str, tuple] = {}  # by what the pictures are
        for encoder, words in ENCODERS.items():
            settings = config.compose([f"task={task}", "obs=pixels", f"seed={options.seed}", *words.split()])
            pictures = repr(settings.env)
            if pictures not in made:
                made = {pictures: collect(settings, options.episodes)}
            row = explained(settings, encoder, options, made[pictures])
            rows.append(row)
            cells = f"{row['explained']:.3f}", str(row["features"]), f"{row['milliseconds']:.1f}"
            table.add_row(task, encoder, *cells)
            print(task, encoder, *cells, flush=True)
    Console().print(table)
    facts = machine.facts(torch.device("cpu"), 1)
    result = {"machine": facts, "rows": rows}
    files.write_atomically(pathlib.Path(options.out), json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
