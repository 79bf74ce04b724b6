"""Exploration noise: Ornstein-Uhlenbeck, or Gaussian with a schedule; and bursts of random actions."""

import numpy as np

from pixel_ddpg.config import Noise

BURST = 4  # agent steps that a burst lasts on average


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
        self._burst: np.ndarray | None = None  # the action of a burst that is under way

    def reset(self) -> None:
        """An episode begins (Algorithm 1 initialises the process)."""
        self._state = np.zeros_like(self._state)
        self._burst = None

    def is_random(self, frame: int) -> bool:
        """Whether all actions are still random."""
        return frame < self._noise.random_frames

    def random_action(self) -> np.ndarray:
        """Uniform over the action's range."""
        return self._random.uniform(-1, 1, self._state.shape).astype(np.float32)

    def __call__(self, action: np.ndarray, frame: int) -> np.ndarray:
        """The action with noise, or that of a burst."""
        self._next_burst()
        if self._burst is not None:
            return self._burst
        normal = self._random.standard_normal(self._state.shape)
        if self._noise.kind == "ou":
            noise = self._noise
            self._state = self._state - noise.theta * self._state + noise.sigma * normal
            perturbation = self._state
        else:
            perturbation = scheduled_scale(self._noise, frame) * normal
        return np.clip(action + perturbation, -1, 1).astype(np.float32)

    def _next_burst(self) -> None:
        """A burst, one random action that is held, may begin or end; a share of `bursts` of the steps lies in one.

        Once a policy has settled, small noise reaches no new states and large noise ruins the rest of the episode.
        A burst leads to another state, from which the policy acts again (Dabney et al., 2021; Pislar et al., 2022).
        """
        share = self._noise.bursts
        if not share:
            return
        if self._burst is None:
            if self._random.random() < share / (1 - share) / BURST:
                self._burst = self.random_action()
        elif self._random.random() < 1 / BURST:
            self._burst = None

    def state_dict(self) -> dict:
        """The process and its random stream, as JSON can hold them."""
        return {
            "state": self._state.tolist(), "random": self._random.bit_generator.state,
            "burst": None if self._burst is None else self._burst.tolist(),
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Resume from a `state_dict`."""
        self._state = np.array(state["state"])
        burst = state.get("burst")
        self._burst = None if burst is None else np.array(burst, np.float32)
        self._random.bit_generator.state = state["random"]
