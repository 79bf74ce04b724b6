"""Planning with full access to the dynamics: what a perfect model is worth, the 1 of the normalised score.

Both planners are model-predictive control with the true model and state: at each step of the agent they improve the
plan of the step before, and only its first action is taken.
"""

import os

import mujoco
import numpy as np
from mujoco import rollout
from scipy.interpolate import PchipInterpolator

FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS


class Model:
    """A task's dynamics and reward, for many plans at once: physics on all cores, the reward as the task defines it."""

    def __init__(self, environment, action_repeat: int):
        self.task, self.repeat = environment.task, action_repeat
        self.physics = environment.physics.copy(share_model=True)
        self.model, self.data = self.physics.model.ptr, self.physics.data.ptr
        self.substeps = environment._n_sub_steps * action_repeat
        self._size = mujoco.mj_stateSize(self.model, FULL)
        threads = len(os.sched_getaffinity(0))
        self._pool = rollout.Rollout(nthread=threads)
        self._scratch = [mujoco.MjData(self.model) for _ in range(threads)]

    def state_of(self, physics) -> np.ndarray:
        """Everything the simulation goes on from."""
        state = np.empty(self._size)
        mujoco.mj_getState(self.model, physics.data.ptr, state, FULL)
        return state

    def substates(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Plans (n, steps, a) from a state each (n, s): states after each step of the simulation (n, all, s)."""
        control = np.repeat(actions, self.substeps, axis=1)
        return self._pool.rollout(self.model, self._scratch, states, control)[0]

    def returns(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Sums of rewards (n,) of plans (n, steps, a) from one state.

        A step's reward is the one of its last frame times the action repeat; nothing is earned after a termination.
        """
        states = self.substates(np.tile(state, (len(actions), 1)), actions)[:, self.substeps - 1 :: self.substeps]
        returns = np.zeros(len(actions))
        for plan, (places, taken) in enumerate(zip(states, actions)):
            for place, action in zip(places, taken):
                reward, over = self.reward(place, action)
                returns[plan] += reward
                if over:
                    break
        return returns

    def reward(self, state: np.ndarray, action: np.ndarray) -> tuple[float, bool]:
        """What a step earns that ends in this state, and whether it ends the episode."""
        mujoco.mj_setState(self.model, self.data, state, FULL)
        return self._reward(action), self.task.get_termination(self.physics) == 0.0

    def _reward(self, action: np.ndarray) -> float:
        self.data.ctrl[:] = action
        mujoco.mj_step1(self.model, self.data)
        return self.repeat * float(self.task.get_reward(self.physics))


class Sampling:
    """The cross-entropy method over the knots of a spline, warm-started from the shifted plan."""

    def __init__(
        self,
        environment,
        action_repeat: int,
        bounds: tuple[np.ndarray, np.ndarray],
        seed: int,
        *,
        steps: int,
        knots: int,
        samples: int,
        iterations: int,
        elites: int,
        spread: float,
    ):
        self.model, self.physics = Model(environment, action_repeat), environment.physics
        self.low, self.high = bounds
        self.samples, self.iterations, self.elites, self.spread = samples, iterations, elites, spread
        self._draws = np.random.default_rng(seed)
        self._steps, self._times = np.arange(steps), np.linspace(0, steps - 1, knots)
        self._knots = np.tile((self.low + self.high) / 2, (knots, 1))

    def act(self) -> np.ndarray:
        """The action for the environment's current state."""
        state = self.model.state_of(self.physics)
        mean = self._spline(self._knots)(np.minimum(self._times + 1, self._steps[-1]))
        deviation = np.full_like(mean, self.spread) * (self.high - self.low) / 2
        for _ in range(self.iterations):
            knots = mean + deviation * self._draws.standard_normal((self.samples, *mean.shape))
            knots[0] = mean
            knots = knots.clip(self.low, self.high)
            plans = self._spline(knots.swapaxes(0, 1))(self._steps).swapaxes(0, 1).clip(self.low, self.high)
            best = np.argsort(-self.model.returns(state, plans))[: self.elites]
            mean, deviation = knots[best].mean(0), knots[best].std(0) + 0.02 * (self.high - self.low)
        self._knots = knots[best[0]]
        return plans[best[0], 0]

    def _spline(self, knots: np.ndarray) -> PchipInterpolator:
        return PchipInterpolator(self._times, knots, axis=0)
