"""Exploration noise: Ornstein-Uhlenbeck, and Gaussian with a schedule."""

import numpy as np

from pixel_ddpg.config import Noise


def scheduled_scale(noise: Noise, frame: int) -> float:
    """The Gaussian noise's standard deviation at a frame: from `start` to `end` in `frames` frames."""
    mix = min(frame / noise.frames, 1.0)
    return (1 - mix) * noise.start + mix * noise.end


class Exploration:
    """Turns the policy's action into the one taken, clipped to [-1, 1]; random at first."""

    def __init__(self, noise: Noise, action_dim: int, seed: int):
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._state = np.zeros(action_dim)
        self._held: np.ndarray | None = None  # a random action that is being held

    def reset(self) -> None:
        """An episode begins (Algorithm 1 initialises the process)."""
        self._state = np.zeros_like(self._state)
        self._held = None

    def is_random(self, frame: int) -> bool:
        """Whether all actions are still random."""
        return frame < self._noise.random_frames

    def random_action(self) -> np.ndarray:
        """Uniform over the action's range; with `hold`, half of the steps have a random corner of it, which is held.

        White noise reaches little where a body swings; of corners alone a critic learns slopes that lead to them.
        """
        hold = self._noise.hold
        if not hold or (self._held is None and self._random.random() < hold / (1 + hold)):
            return self._random.uniform(-1, 1, self._state.shape).astype(np.float32)
        if self._held is None:
            self._held = self._random.choice([-1.0, 1.0], self._state.shape).astype(np.float32)
        action = self._held
        if self._random.random() < 1 / hold:
            self._held = None
        return action

    def __call__(self, action: np.ndarray, frame: int) -> np.ndarray:
        """The action with noise."""
        normal = self._random.standard_normal(self._state.shape)
        if self._noise.kind == "ou":
            noise = self._noise
            self._state = self._state - noise.theta * self._state * noise.dt + noise.sigma * noise.dt**0.5 * normal
            perturbation = self._state
        else:
            perturbation = scheduled_scale(self._noise, frame) * normal
        return np.clip(action + perturbation, -1, 1).astype(np.float32)

    def state_dict(self) -> dict:
        """The process and its random stream, as JSON can hold them."""
        return {
            "state": self._state.tolist(), "random": self._random.bit_generator.state,
            "held": None if self._held is None else self._held.tolist(),
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Resume from a `state_dict`."""
        self._state = np.array(state["state"])
        held = state.get("held")
        self._held = None if held is None else np.array(held, np.float32)
        self._random.bit_generator.state = state["random"]
