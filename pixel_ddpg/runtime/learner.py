"""How a run learns and acts: eagerly, or as CUDA graphs, as its configuration asks."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.config import Config
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime.graphs import GraphedPolicy, GraphedUpdate


class Learner:
    """Each call draws a batch and makes one update; it gives the update's metrics, 0-d tensors.

    UserError where a graph is asked for and the replay lies elsewhere than the agent.
    """

    def __init__(self, config: Config, agent: DDPG, replay: Replay):
        if config.train.cuda_graph and replay.device != agent.device:
            raise UserError(f"train.cuda_graph=true needs the replay on {agent.device} too, where it does not fit")
        self._agent, self._replay, self._batch_size = agent, replay, config.replay.batch_size
        self._as_graph = config.train.cuda_graph
        self._graph: GraphedUpdate | None = None

    def __call__(self) -> dict[str, Tensor]:
        """Learn from the transitions last published, one or more."""
        if self._as_graph:
            self._graph = self._graph or GraphedUpdate(self._agent, self._replay, self._batch_size)
            return self._graph()
        batch = self._replay.draw(self._batch_size)
        if self._agent.device != self._replay.device:
            moved = {name: tensor.to(self._agent.device) for name, tensor in vars(batch).items()}
            batch = dataclasses.replace(batch, **moved)
        return self._agent.update(batch)


class Policy:
    """The agent's actions for several observations (B, ...) at once, without noise: float32 (B, a)."""

    def __init__(self, config: Config, agent: DDPG):
        self._agent = agent
        self._actions: Callable[[np.ndarray], np.ndarray] = self._eager
        if config.train.cuda_graph:
            self._actions = GraphedPolicy(agent)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        return self._actions(observations)

    def _eager(self, observations: np.ndarray) -> np.ndarray:
        return self._agent.actions(torch.as_tensor(observations, device=self._agent.device)).cpu().numpy()
