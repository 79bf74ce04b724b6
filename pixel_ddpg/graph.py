"""The whole update as one CUDA graph: sampling, augmentation, both losses, Adam and targets, without the CPU."""

import torch
from torch import Tensor

from pixel_ddpg.agent import DDPG
from pixel_ddpg.replay import Replay

WARM_UPS = 3  # libraries choose their kernels and allocate before a capture may begin


def one_update(agent: DDPG, replay: Replay, batch_size: int) -> dict[str, Tensor]:
    """Draw and learn. What is captured: fixed shapes, and nothing that the CPU must know."""
    return agent.update(replay.draw(batch_size))


class GraphedUpdate:
    """`one_update`, captured once and replayed at each call: what eager calls do, with the same random numbers.

    It draws from the transitions last announced. The replay must lie on the agent's GPU, torch's current one, and hold
    a transition. Making it changes neither weights nor random streams.
    """

    def __init__(self, agent: DDPG, replay: Replay, batch_size: int):
        memory = {name: tensor.clone() for name, tensor in agent.tensors().items()}
        states = [(generator, generator.get_state()) for generator in (replay.draws, replay.shifts)]
        replay.announce()
        side = torch.cuda.Stream(agent.device)
        side.wait_stream(torch.cuda.current_stream(agent.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                one_update(agent, replay, batch_size)
        torch.cuda.current_stream(agent.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        for generator in (replay.draws, replay.shifts, agent.noise_draws):
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._metrics = one_update(agent, replay, batch_size)
        agent.load_tensors(memory)
        for generator, state in states:
            generator.set_state(state)

    def __call__(self) -> dict[str, Tensor]:
        """One update; 0-d tensors."""
        self._graph.replay()
        return {name: value.clone() for name, value in self._metrics.items()}
