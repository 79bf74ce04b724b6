"""What the critic expects beside what then comes: the data of the paper's Figure 3."""

from collections.abc import Callable

import numpy as np

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.envs.environment import Step

POINTS = 400  # of one evaluation, evenly spread over its steps
TAIL = 0.1  # where time ends an episode, a return counts if less than this share of its weights lies beyond the end


class Values:
    """Acts with a policy and records Q(s, a) and the discounted return that follows, step by step."""

    def __init__(self, agent: DDPG, policy: Callable[[np.ndarray], np.ndarray]):
        self._agent, self._policy, self._discount = agent, policy, agent.settings.discount
        self._q: list[float] = []
        self._rewards: list[float] = []
        self.q: list[float] = []  # of all episodes
        self.observed: list[float] = []

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The policy's action."""
        action = self._policy(observation)
        self._q.append(self._agent.value(observation, action))
        return action

    def watch(self, step: Step) -> None:
        """A step has been made; the last one of an episode tells the returns of all."""
        if step.frames == 0:
            self._q, self._rewards = [], []
            return
        self._rewards.append(step.reward)
        if step.last:
            kept = observed_returns(self._rewards, self._discount, step.discount == 0.0)
            self.q += self._q[: len(kept)]
            self.observed += kept

    def pairs(self) -> dict[str, list[float]]:
        """Some of the pairs, for metrics.jsonl."""
        chosen = np.unique(np.linspace(0, len(self.q) - 1, POINTS).round().astype(int)).tolist() if self.q else []
        return {name: [float(f"{getattr(self, name)[i]:.5g}") for i in chosen] for name in ("q", "observed")}


def observed_returns(rewards: list[float], discount: float, terminated: bool) -> list[float]:
    """The discounted returns from each step on, of those steps after which enough of the episode follows (TAIL)."""
    returns, total = [], 0.0
    for left, reward in enumerate(reversed(rewards), 1):
        total = reward + discount * total
        if terminated or discount**left <= TAIL:
            returns.append(total)
    return returns[::-1]
