"""CUDA graphs: work of fixed shapes that a GPU repeats without the CPU."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.replay import Replay

Result = TypeVar("Result")
WARM_UPS = 3  # libraries choose their kernels and allocate before a capture may begin


def capture(
    device: torch.device, work: Callable[[], Result], generators: Sequence[torch.Generator] = ()
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The work as a graph that draws from these generators, and where its results lie; after a warm-up."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


class GraphedUpdate:
    """A draw and an update (sampling, augmentation, losses, Adam, targets), captured once and replayed at each call.

    It does what eager calls do, with the same random numbers, on the transitions last published. The replay must lie on
    the agent's GPU, torch's current one, and hold a transition. Making it changes neither weights nor random streams.
    """

    def __init__(self, agent: DDPG, replay: Replay, batch_size: int):
        self._reads = agent, replay  # by address: they must not end before the graph does
        memory = {name: tensor.clone() for name, tensor in agent.tensors().items()}
        states = [(generator, generator.get_state()) for generator in (replay.draws, replay.shifts)]
        replay.publish()
        for optimizer in agent.optimizers.values():
            for group in optimizer.param_groups:  # the graph reads the learning rate at each replay
                group["lr"] = torch.tensor(float(group["lr"]), device=agent.device)
                group["capturable"] = True
        generators = (replay.draws, replay.shifts, agent.noise_draws)
        self._graph, self._metrics = capture(agent.device, lambda: agent.update(replay.draw(batch_size)), generators)
        agent.load_tensors(memory)
        for generator, state in states:
            generator.set_state(state)

    def __call__(self) -> dict[str, Tensor]:
        """One update; 0-d tensors."""
        self._graph.replay()
        return {name: value.clone() for name, value in self._metrics.items()}


class GraphedPolicy:
    """The agent's policy as graphs, one for each number of observations that it is asked for."""

    def __init__(self, agent: DDPG):
        self._agent = agent
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Actions (B, a) of observations (B, ...), whose shape and type are always the same."""
        if len(observations) not in self._graphs:
            seen = torch.as_tensor(observations, device=self._agent.device)
            self._graphs[len(observations)] = (*capture(seen.device, lambda: self._agent.actions(seen)), seen)
        graph, actions, seen = self._graphs[len(observations)]
        seen.copy_(torch.as_tensor(observations), non_blocking=True)
        graph.replay()
        return actions.cpu().numpy()
