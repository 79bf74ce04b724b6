"""From a dm_env task to what an agent sees: action repeat, frames, stacks."""

import collections
import contextlib
import math
from dataclasses import dataclass

import dm_env
import numpy as np

from pixel_ddpg.config import Env
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.errors import UserError

UNBOUNDED = 1e6  # an action bound beyond this is none (lqr's is 1e10): the action is passed as it is


@dataclass(frozen=True)
class Step:
    """What an environment answers to a reset or an action.

    `observation` is, for pixels, the last `frame_stack` steps as uint8 (3 * renderings * frame_stack, size, size),
    oldest first. For state, it is the flat float32 vectors of those steps. `element` is the newest step alone, which is
    all that a replay needs to keep.
    """

    observation: np.ndarray
    element: np.ndarray
    reward: float  # the sum over the frames of the step; 0 after a reset
    discount: float  # 0 only where the task terminated
    last: bool  # the episode ends here
    frames: int  # of the episode so far


class Environment:
    """A task as the agent meets it: float32 actions in [-1, 1], each held for `action_repeat` frames."""

    def __init__(self, task: tasks.Task, obs: str, options: Env, seed: int):
        self.task_env = task.load(seed)
        self.task, self._obs, self._options = task, obs, options
        self._camera = task.camera if options.camera < 0 else options.camera
        cameras = self.task_env.physics.model.ncam if task.simulator == "mujoco" else 1
        if self._camera >= cameras:
            raise UserError(f"env.camera={self._camera}: this task has cameras 0 to {cameras - 1}")
        self._renderer = self.make_renderer(options.size) if obs == "pixels" else None
        spec = self.task_env.action_spec()
        bounded = np.abs(spec.minimum).max() < UNBOUNDED and np.abs(spec.maximum).max() < UNBOUNDED
        low, high = np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
        self._offset = (high + low) / 2 if bounded else np.zeros(spec.shape)
        self._scale = (high - low) / 2 if bounded else np.ones(spec.shape)
        self._stack: collections.deque[np.ndarray] = collections.deque(maxlen=options.frame_stack)
        self.over = True
        self._frames = 0  # of the current episode
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
        """Reset the task's random stream; takes effect at the next reset."""
        self._random.seed(tasks.for_numpy(seed))

    def reset(self) -> Step:
        """Start an episode; the stack is filled with its first element."""
        self._random_at_reset = self._random.get_state()
        self._actions = []
        self._frames, self.over = 0, False
        with rendering.gl_failures_explained() if self.task.resets_need_gl else contextlib.nullcontext():
            time_step = self.task_env.reset()
        first = self._state(time_step) if self._renderer is None else self._element([self._renderer.render()])
        self._stack.extend([first] * self._options.frame_stack)
        return self._step(0.0, 1.0)

    def step(self, action: np.ndarray) -> Step:
        """Hold the action for `action_repeat` frames or to the episode's end; rewards are summed.

        UserError for an action that does not fit, and where the simulation fails, which ends the episode.
        """
        if self.over:
            raise ValueError("no episode is running: call reset() before step()")
        action = np.array(action, np.float32)  # a copy: its caller may use the array again
        if action.shape != self._scale.shape:
            raise UserError(f"an action of {self.task.name} has shape {self._scale.shape}, not {action.shape}", code=1)
        if not np.isfinite(action).all():
            raise UserError(f"an action of {self.task.name} is not finite: {action}", code=1)
        self._actions.append(action)
        self.over = True  # until the step has succeeded
        reward, discount, pictures = 0.0, 1.0, []
        apart = self._options.action_repeat // self._options.renderings
        for repeat in range(1, self._options.action_repeat + 1):
            time_step = self._task_step(self.to_task(action))
            reward += time_step.reward
            discount *= time_step.discount
            self._frames += 1
            if self._renderer is not None and (repeat % apart == 0 or time_step.last()):
                pictures.append(self._renderer.render())
            if time_step.last():
                break
        self._stack.append(self._state(time_step) if self._renderer is None else self._element(pictures))
        if not math.isfinite(reward):
            raise UserError(
                f"the reward of {self.task.name} is {reward}, {self._frames} frames into an episode", code=1
            )
        self.over = time_step.last()
        return self._step(float(reward), float(discount))

    def _element(self, pictures: list[np.ndarray]) -> np.ndarray:
        """What a step adds to an observation; the last picture stands for those that an episode's end left out."""
        return np.concatenate(pictures + [pictures[-1]] * (self._options.renderings - len(pictures)))

    def _state(self, time_step: dm_env.TimeStep) -> np.ndarray:
        state = flat(time_step.observation)
        if not np.isfinite(state).all():
            raise UserError(
                f"an observation of {self.task.name} is not finite, {self._frames} frames into an episode", code=1
            )
        return state

    def _step(self, reward: float, discount: float) -> Step:
        return Step(np.concatenate(self._stack), self._stack[-1], reward, discount, self.over, self._frames)

    def _task_step(self, action: np.ndarray) -> dm_env.TimeStep:
        from dm_control.rl import control

        try:
            return self.task_env.step(action)
        except control.PhysicsError as error:
            raise UserError(
                f"the simulation of {self.task.name} diverged {self._frames:,} frames into an episode "
                f"({str(error).splitlines()[0]}); with another seed= it takes another course",
                code=1,
            ) from error

    def close(self) -> None:
        """Free GL contexts and pictures; nothing but another `close` may follow."""
        self._renderer = None
        if self.task.simulator == "mujoco":
            self.task_env.physics.free()

    def state_dict(self) -> dict:
        """What brings this environment back to where it is: the random state before the episode and its actions."""
        name, keys, position, has_gauss, gauss = self._random_at_reset
        random = [name, np.asarray(keys).tolist(), position, has_gauss, gauss]
        return {"random": random, "actions": [action.tolist() for action in self._actions]}

    def load_state_dict(self, state: dict) -> Step:
        """Play the saved episode again up to its last step, and return that step."""
        name, keys, *rest = state["random"]
        self._random.set_state((name, np.array(keys, np.uint32), *rest))
        step = self.reset()
        for action in state["actions"]:
            step = self.step(np.array(action, np.float32))
        return step


def element_shape(task: tasks.Task, obs: str, options: Env) -> tuple[int, ...]:
    """What one step adds to an observation: (3 * renderings, size, size) of pixels, (d,) of state."""
    return (3 * options.renderings, options.size, options.size) if obs == "pixels" else (task.observation_dim,)


def observation_shape(task: tasks.Task, obs: str, options: Env) -> tuple[int, ...]:
    """The elements of `frame_stack` steps, one after the other."""
    first, *rest = element_shape(task, obs, options)
    return (first * options.frame_stack, *rest)


def observation_dtype(obs: str) -> type:
    """numpy's type of observations."""
    return np.uint8 if obs == "pixels" else np.float32


def flat(observation) -> np.ndarray:
    """A task's observation, one value after the other: float32 (d,)."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)
