"""Exploration noise: Ornstein-Uhlenbeck, and Gaussian with a schedule."""

import numpy as np

from pixel_ddpg.config import Noise


def scheduled_scale(noise: Noise, frame: int) -> float:
    """The Gaussian noise's standard deviation at a frame: from `start` to `end` in `frames` frames."""
    mix = min(frame / noise.frames, 1.0)
    return (1 - mix) * noise.start + mix * noise.end


class Exploration:
    """Turns the policy's action into the one taken, clipped to [-1, 1]; uniformly random at first."""

    def __init__(self, noise: Noise, action_dim: int, seed: int):
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._state = np.zeros(action_dim)

    def reset(self) -> None:
        """An episode begins (Algorithm 1 starts the process anew)."""
        self._state = np.zeros_like(self._state)

    def is_random(self, frame: int) -> bool:
        """Whether actions are still uniformly random."""
        return frame < self._noise.random_frames

    def random_action(self) -> np.ndarray:
        """Uniform over the action's range."""
        return self._random.uniform(-1, 1, self._state.shape).astype(np.float32)

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
        return {"state": self._state.tolist(), "random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`."""
        self._state = np.array(state["state"])
        self._random.bit_generator.state = state["random"]
