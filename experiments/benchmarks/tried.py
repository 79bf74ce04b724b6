"""Ways to make an update faster, each beside the one that is used: what did not pay, and what did."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks import learner
from experiments.benchmarks.timing import alternate, ratios
from pixel_ddpg.agent import DDPG
from pixel_ddpg.replay import Batch, Replay

CASES = ("400/300 at batch 64, state", "fast, state", "fast, pixels")
CHUNK = 16


class TorchsAdam(torch.optim.Adam):
    """torch.optim's, fused, with this project's names."""

    def __init__(self, network: nn.Module, lr: float):
        super().__init__(network.parameters(), lr=lr, fused=True)
        self.parameters = list(network.parameters())

    def tensors(self) -> dict[str, Tensor]:
        return {"0.step": self.state[self.parameters[0]].get("step", torch.zeros(()))}


def torchs_adam(agent: DDPG, replay: Replay) -> None:
    """torch.optim.Adam(fused=True) in place of one call of its kernel."""
    for name, optimizer in agent.optimizers.items():
        agent.optimizers[name] = TorchsAdam(getattr(agent, name), optimizer.lr)


def compiled(agent: DDPG, replay: Replay) -> None:
    """torch.compile of both losses, which makes its own kernels of torch's path."""
    agent.compile_losses()


def channels_first(agent: DDPG, replay: Replay) -> None:
    """Pictures and convolutions as planes, where they are used with their channels last."""
    encoder = agent.encoder.to(memory_format=torch.contiguous_format)
    encoder.forward = lambda pictures: encoder.convolutions(_scaled(agent, pictures)).flatten(1)


def in_chunks(agent: DDPG, replay: Replay) -> None:
    """The encoder on a few pictures at a time, whose maps stay in a core's own cache."""
    whole = agent.encoder.forward
    agent.encoder.forward = lambda pictures: torch.cat([whole(part) for part in pictures.split(CHUNK)])


def columns(agent: DDPG, replay: Replay) -> None:
    """The first convolution as im2col and a matrix product."""
    first, *rest = agent.encoder.convolutions
    then = nn.Sequential(*rest)

    def forward(pictures: Tensor) -> Tensor:
        side = (pictures.shape[-1] + 2 * first.padding[0] - first.kernel_size[0]) // first.stride[0] + 1
        patches = functional.unfold(_scaled(agent, pictures), first.kernel_size, 1, first.padding, first.stride)
        maps = first.weight.flatten(1) @ patches + first.bias[:, None]
        return then(maps.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)).flatten(1)

    agent.encoder.forward = forward


def by_index(agent: DDPG, replay: Replay) -> None:
    """Crops by one gather, as on a GPU, where a CPU copies slices."""
    replay._crops_by_slices = replay._crops_by_index


def drawn_ahead(agent: DDPG, replay: Replay) -> None:
    """The next batch is drawn by a thread of its own while the agent learns from this one."""
    worker, draw = concurrent.futures.ThreadPoolExecutor(1), replay.sample
    waiting: list[concurrent.futures.Future[Batch]] = []

    def sample(batch_size: int) -> Batch:
        batch = waiting.pop().result() if waiting else draw(batch_size)
        waiting.append(worker.submit(draw, batch_size))
        return batch

    replay.sample = sample


def _scaled(agent: DDPG, pictures: Tensor) -> Tensor:
    return pictures.to(torch.float32).div_(255).sub_(agent.settings.pixel_offset)


WAYS: dict[str, tuple[Callable[[DDPG, Replay], None], bool, bool]] = {  # ..., torch's path, pixels only
    "torch.compile of the losses": (compiled, True, False),
    "torch.optim's Adam": (torchs_adam, False, False),
    "channels first": (channels_first, False, True),
    f"the encoder in chunks of {CHUNK}": (in_chunks, False, True),
    "the first convolution as im2col and product": (columns, False, True),
    "crops by index": (by_index, False, True),
    "batches drawn by another thread": (drawn_ahead, False, False),
}


def measure(rounds: int) -> Iterator[dict]:
    """One thread: seconds of an update with each way, how many times as fast as without, and the first update's."""
    for case in CASES:
        words = learner.CASES[case]
        for name, (change, plain, of_pixels) in WAYS.items():
            if of_pixels and "obs=pixels" not in words:
                continue
            ours, changed = learner.updater(words), learner.updater(words, plain)
            change(*changed[2:])
            start = time.perf_counter()
            changed[0]()
            first = time.perf_counter() - start
            turns = alternate({"ours": ours[:2], "changed": changed[:2]}, rounds)
            yield {
                "case": case, "way": name, "first": first,
                "turns": {key: turn.as_json() for key, turn in turns.items()},
                "times_as_fast": ratios(turns["ours"].seconds, turns["changed"].seconds),
            }  # fmt: skip
