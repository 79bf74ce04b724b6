"""From a dm_env task to what an agent sees: action repeat, frames, stacks; with dm_env's and Gymnasium's interfaces."""

import collections
import contextlib
import dataclasses

import dm_env
import gymnasium
import numpy as np
from dm_env import specs

from pixel_ddpg import config as config_module
from pixel_ddpg import rendering, tasks

UNBOUNDED = 1e6  # an action bound beyond this is none (lqr's is 1e10): the action is passed as it is


class Environment(dm_env.Environment):
    """A task as the agent meets it: float32 actions in [-1, 1], each held for `action_repeat` frames.

    An observation is, for pixels, the last `frame_stack` steps as uint8 (3 * renderings * frame_stack, size, size),
    oldest first. For state, it is the flat float32 vectors of those steps. `element` is the newest step alone, which is
    all a replay needs to keep.
    """

    def __init__(self, task: tasks.Task, obs: str, options: config_module.Env, seed: int):
        self.task_env = task.load(seed)
        self.task, self._obs, self._options = task, obs, options
        self._camera = task.camera if options.camera < 0 else options.camera
        cameras = self.task_env.physics.model.ncam if task.simulator == "mujoco" else 1
        if self._camera >= cameras:
            raise config_module.UserError(f"env.camera={self._camera}: this task has cameras 0 to {cameras - 1}")
        self._renderer = self.make_renderer(options.size) if obs == "pixels" else None
        spec = self.task_env.action_spec()
        bounded = np.abs(spec.minimum).max() < UNBOUNDED and np.abs(spec.maximum).max() < UNBOUNDED
        low, high = np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
        self._offset = (high + low) / 2 if bounded else np.zeros(spec.shape)
        self._scale = (high - low) / 2 if bounded else np.ones(spec.shape)
        self._stack: collections.deque[np.ndarray] = collections.deque(maxlen=options.frame_stack)
        self.over = True
        self.frames = 0  # of the current episode
        self._actions: list[np.ndarray] = []
        self._random_at_reset = self._random.get_state()

    @property
    def _random(self) -> np.random.RandomState:
        return self.task_env.task.random

    def make_renderer(self, size: int) -> rendering.Renderer:
        """Another picture of the same scene, for a video."""
        if self.task.simulator != "mujoco":
            return self.task_env.make_renderer(size)
        options = self._options
        quality = (options.shadow_size, options.slices, options.stacks)
        return rendering.Renderer(self.task_env.physics, size, self._camera, *quality)

    def drawn_by(self) -> str:
        """Backend and renderer, as rendering.describe says."""
        mujoco = self.task.simulator == "mujoco"
        return rendering.describe(self.task_env.physics) if mujoco else "pygame, software"

    @property
    def element(self) -> np.ndarray:
        """The newest step's part of the observation."""
        return self._stack[-1]

    @property
    def action_repeat(self) -> int:
        """Frames of one agent step."""
        return self._options.action_repeat

    @property
    def step_seconds(self) -> float:
        """Simulated time of one agent step."""
        return self.task.control_timestep * self.action_repeat

    def to_task(self, action: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1] (..., a) as the task's own."""
        return self._offset + self._scale * np.clip(action, -1, 1)

    def seed(self, seed: int) -> None:
        """Begin the task's random stream anew; takes effect at the next reset."""
        self._random.seed(seed % 2**32)

    def reset(self) -> dm_env.TimeStep:
        """Start an episode; the stack is filled with its first element."""
        self._random_at_reset = self._random.get_state()
        self._actions = []
        self.frames, self.over = 0, False
        own_reset_draws = self.task.name == "quadruped-escape"
        with rendering.gl_failures_explained() if own_reset_draws else contextlib.nullcontext():
            time_step = self.task_env.reset()
        pixels = self._obs == "pixels"
        first = self._element([self._renderer.render()]) if pixels else flat(time_step.observation)
        self._stack.extend([first] * self._options.frame_stack)
        return dm_env.restart(self._observation())

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """Hold the action for `action_repeat` frames or to the episode's end; rewards are summed."""
        if self.over:
            return self.reset()
        action = np.asarray(action, np.float32)
        self._actions.append(action)
        reward, discount, pictures = 0.0, 1.0, []
        apart = self._options.action_repeat // self._options.renderings
        for repeat in range(1, self._options.action_repeat + 1):
            time_step = self._task_step(self.to_task(action))
            reward += time_step.reward
            discount *= time_step.discount
            self.frames += 1
            if self._obs == "pixels" and (repeat % apart == 0 or time_step.last()):
                pictures.append(self._renderer.render())
            if time_step.last():
                break
        if self._obs == "pixels":
            self._stack.append(self._element(pictures))
        else:
            self._stack.append(flat(time_step.observation))
        self.over = time_step.last()
        return dm_env.TimeStep(time_step.step_type, float(reward), float(discount), self._observation())

    def _element(self, pictures: list[np.ndarray]) -> np.ndarray:
        """What a step adds to an observation; the last picture stands for those that an episode's end left out."""
        return np.concatenate(pictures + [pictures[-1]] * (self._options.renderings - len(pictures)))

    def _task_step(self, action: np.ndarray) -> dm_env.TimeStep:
        from dm_control.rl import control

        try:
            return self.task_env.step(action)
        except control.PhysicsError as error:
            if not np.isfinite(action).all():
                raise config_module.UserError(f"an action of {self.task.name} is not finite: {action}", 1) from None
            raise config_module.UserError(
                f"the simulation of {self.task.name} diverged {self.frames:,} frames into an episode "
                f"({str(error).splitlines()[0]}); with another seed= it takes another course",
                code=1,
            ) from error

    def _observation(self) -> np.ndarray:
        return np.concatenate(self._stack)

    def observation_spec(self) -> specs.Array:
        """uint8 (C, size, size) or float32 (d,)."""
        shape = observation_shape(self.task, self._obs, self._options)
        if self._obs == "pixels":
            return specs.BoundedArray(shape, np.uint8, 0, 255, name="pixels")
        return specs.Array(shape, np.float32, name="state")

    def action_spec(self) -> specs.BoundedArray:
        """float32 in [-1, 1], mapped to the task's own bounds."""
        return specs.BoundedArray(self._scale.shape, np.float32, -1.0, 1.0, name="action")

    def state_dict(self) -> dict:
        """What brings this environment back to where it is: the random state before the episode and its actions."""
        name, keys, position, has_gauss, gauss = self._random_at_reset
        random = [name, keys.tolist(), position, has_gauss, gauss]
        return {"random": random, "actions": [action.tolist() for action in self._actions]}

    def load_state_dict(self, state: dict) -> dm_env.TimeStep:
        """Play the saved episode again up to its last step, and return that step."""
        name, keys, *rest = state["random"]
        self._random.set_state((name, np.array(keys, np.uint32), *rest))
        time_step = self.reset()
        for action in state["actions"]:
            time_step = self.step(np.array(action, np.float32))
        return time_step


def element_shape(task: tasks.Task, obs: str, options: config_module.Env) -> tuple[int, ...]:
    """What one step adds to an observation: (3 * renderings, size, size) of pixels, (d,) of state."""
    return (3 * options.renderings, options.size, options.size) if obs == "pixels" else (task.observation_dim,)


def observation_shape(task: tasks.Task, obs: str, options: config_module.Env) -> tuple[int, ...]:
    """The elements of `frame_stack` steps, one after the other."""
    first, *rest = element_shape(task, obs, options)
    return (first * options.frame_stack, *rest)


def flat(observation) -> np.ndarray:
    """A task's observation, one value after the other: float32 (d,)."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


class GymEnvironment(gymnasium.Env):
    """The same with Gymnasium's interface. A time limit truncates; only the task's own end terminates."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, environment: Environment, render_mode: str | None = None, render_size: int = 256):
        self.environment, self.render_mode, self._render_size = environment, render_mode, render_size
        self.metadata = self.metadata | {"render_fps": round(1 / environment.step_seconds)}
        self._renderer: rendering.Renderer | None = None
        spec = environment.observation_spec()
        low, high = (0, 255) if spec.dtype == np.uint8 else (-np.inf, np.inf)
        self.observation_space = gymnasium.spaces.Box(low, high, spec.shape, spec.dtype)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, environment.action_spec().shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.environment.seed(seed)
        return self.environment.reset().observation, {}

    def step(self, action):
        if self.environment.over:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step()")
        time_step = self.environment.step(action)
        terminated = time_step.last() and time_step.discount == 0.0
        truncated = time_step.last() and not terminated
        return time_step.observation, time_step.reward, terminated, truncated, {"discount": time_step.discount}

    def render(self) -> np.ndarray | None:
        """The scene as the task's camera sees it, uint8 (256, 256, 3)."""
        if self.render_mode is None:
            return None
        self._renderer = self._renderer or self.environment.make_renderer(self._render_size)
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

    What is not given is what the preset would train with; without a seed, each environment has its own. Raises
    UserError for a name or value that does not fit.
    """
    known = {item.name for item in dataclasses.fields(config_module.Env)}
    if unknown := sorted(set(options) - known):
        raise config_module.UserError(
            f"unknown option '{unknown[0]}'{config_module.nearest(unknown[0], sorted(known))}"
        )
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    words = [f"task={task}", f"obs={obs}", f"seed={seed}", f"preset={preset}"]
    config = config_module.compose(words + [f"env.{key}={value}" for key, value in options.items()])
    config_module.check(config)
    environment = Environment(tasks.CATALOGUE[config.task], config.obs, config.env, config.seed)
    return GymEnvironment(environment, render_mode)
