"""Steps of the environment without an agent: from state, and from pixels what physics and pictures take of them."""

from collections.abc import Callable

import numpy as np

from experiments.benchmarks.timing import alternate
from pixel_ddpg import config, presets
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import Environment

PRESETS = ("fast", "ddpg2016", "drqv2")
OBSERVATIONS = ("state", "pixels")
TASK = "cheetah-run"


class Steps:
    """Counts how often its work was done."""

    def __init__(self, work: Callable[[], object]):
        self._work, self._count = work, 0

    def __call__(self) -> None:
        self._work()
        self._count += 1

    def count(self) -> int:
        return self._count


def playing(obs: str, options: config.Env) -> tuple[Steps, Environment]:
    """Steps under random actions, always the same, episode after episode."""
    environment = Environment(tasks.find(TASK), obs, options, seed=0)
    random, shape = np.random.default_rng(0), (environment.task.action_dim,)

    def step() -> None:
        if environment.over:
            environment.reset()
        environment.step(random.uniform(-1, 1, shape))

    return Steps(step), environment


def measure(preset: str, rounds: int, units: int = 100) -> dict:
    """The frames and pictures of a step, and seconds a step: from state; physics, pictures and both from pixels."""
    settings = {obs: presets.compose([f"task={TASK}", f"obs={obs}", f"preset={preset}"]).env for obs in OBSERVATIONS}
    options = settings["pixels"]
    both, environment = playing("pixels", options)
    both()
    renderer = environment.make_renderer(options.size)
    steps = {
        "state": playing("state", settings["state"])[0], "physics": playing("state", options)[0],
        "pictures": Steps(lambda: [renderer.render() for _ in range(options.renderings)]), "both": both,
    }  # fmt: skip
    turns = alternate({name: (step, step.count) for name, step in steps.items()}, rounds, units)
    return {
        "preset": preset, "frames": {obs: env.action_repeat for obs, env in settings.items()},
        "pictures": options.renderings, "drawn_by": environment.drawn_by(),
        "turns": {name: turn.as_json() for name, turn in turns.items()},
    }  # fmt: skip
