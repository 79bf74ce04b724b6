"""An environment with Gymnasium's interface."""

import dataclasses
import functools
import operator

import gymnasium
import numpy as np

from pixel_ddpg import presets
from pixel_ddpg.config import Env
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.envs.environment import Environment, observation_dtype, observation_shape
from pixel_ddpg.errors import UserError, nearest


class GymEnvironment(gymnasium.Env):
    """A time limit truncates; only the task's own end terminates.

    The limit counts frames, and `spec.max_episode_steps` is None: Gymnasium would end episodes of a smaller action
    repeat too early.

    The simulation and what draws are made when they are first used: a vector environment makes one only to ask for its
    spaces, and forks then, which GL does not survive.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, task: tasks.Task, obs: str, options: Env, seed: int, render_mode: str | None = None):
        self._make = functools.partial(Environment, task, obs, options, seed)
        self._made: Environment | None = None
        self._np_random, self._np_random_seed = gymnasium.utils.seeding.np_random(seed)  # reset(seed=) as Gymnasium's
        self._closed, self.render_mode = False, render_mode
        fps = round(1 / (task.control_timestep * options.action_repeat), 6)
        self.metadata = self.metadata | {"render_fps": fps}
        self._renderer: rendering.Renderer | None = None
        low, high = (0, 255) if obs == "pixels" else (-np.inf, np.inf)
        shape = observation_shape(task, obs, options)
        self.observation_space = gymnasium.spaces.Box(low, high, shape, observation_dtype(obs))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.action_dim,), np.float32)

    @property
    def environment(self) -> Environment:
        """What plays the task."""
        if self._closed:
            raise gymnasium.error.ClosedEnvironmentError("the environment is closed: make another one")
        self._made = self._made or self._make()
        return self._made

    def close(self) -> None:
        """Free what draws; again is harmless."""
        self._closed, self._renderer = True, None
        if self._made:
            self._made.close()
            self._made = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        seed = None if seed is None else operator.index(seed)  # gymnasium refuses numpy's integers
        super().reset(seed=seed)
        if seed is not None:
            self.environment.seed(seed)
        return self.environment.reset().observation, {}

    def step(self, action):
        if self.environment.over:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before step()")
        step = self.environment.step(action)
        terminated = step.last and step.discount == 0.0
        truncated = step.last and not terminated
        return step.observation, step.reward, terminated, truncated, {"discount": step.discount}

    def render(self) -> np.ndarray | None:
        """The scene as the agent's camera sees it, uint8 (256, 256, 3)."""
        if self.render_mode is None:
            return None
        self._renderer = self._renderer or self.environment.make_renderer(256)
        return self._renderer.render().transpose(1, 2, 0)


def make_env(
    task: str,
    obs: str = "pixels",
    seed: int | None = None,
    preset: str = "fast",
    render_mode: str | None = None,
    **options,
) -> GymEnvironment:
    """A task as a gymnasium.Env. `options` are the fields of `config.Env`, such as size=84 or action_repeat=2.

    What is not given is what the preset would train with; without a seed, each environment has its own. UserError for a
    name or value that does not fit; for a camera that is not there, or without GL, at the first reset.
    """
    known = sorted(item.name for item in dataclasses.fields(Env))
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"unknown option '{unknown[0]}'{nearest(unknown[0], known)}")
    if render_mode not in (None, *GymEnvironment.metadata["render_modes"]):
        raise UserError(
            f"unknown render_mode '{render_mode}'; there are {', '.join(GymEnvironment.metadata['render_modes'])}"
        )
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    of_env = {f"env.{name}": value for name, value in options.items()}
    config = presets.configure({"task": task, "obs": obs, "preset": preset, "seed": seed} | of_env)
    return GymEnvironment(tasks.find(task), config.obs, config.env, config.seed, render_mode)


make_env.metadata = GymEnvironment.metadata  # type: ignore[attr-defined]  # gymnasium.make looks for render modes there
