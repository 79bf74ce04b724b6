"""Ways to make an update faster, each beside the one that is used: what did not pay, and what did."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks import learner
from experiments.benchmarks.timing import alternate, ratios
from pixel_ddpg.adam import Adam
from pixel_ddpg.agent import DDPG
from pixel_ddpg.replay import Batch, Replay

STATE, PIXELS = "fast, state", "fast, pixels"
CASES = ("400/300 at batch 64, state", STATE, PIXELS)
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


def unscaled(agent: DDPG, replay: Replay) -> None:
    """Pictures of 0 to 255: what a division by 255 within the first layer's weights could gain at most."""
    encoder = agent.encoder
    encoder.forward = lambda pictures: encoder.convolutions(
        pictures.contiguous(memory_format=torch.channels_last).to(torch.float32)
    ).flatten(1)


def seen_together(agent: DDPG, replay: Replay) -> None:
    """Both observations of a batch in one pass of the encoder, where each has its own, the next one's without graph."""
    encoder, update = agent.encoder, agent.update
    see = encoder.forward

    def together(batch: Batch) -> dict[str, Tensor]:
        halves = iter(see(torch.cat([batch.observation, batch.next_observation])).split(len(batch.reward)))
        encoder.forward = lambda pictures: next(halves)
        return update(batch)

    agent.update = together


class Together(nn.Module):
    """All estimates of a critic as one stack of batched products: features (B, f), actions (B, a) to (critics, B)."""

    def __init__(self, critic: nn.Module):
        super().__init__()
        self.head, self._kinds = critic.head, []
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        modules = [[m for m in estimate.after.modules() if not list(m.children())] for estimate in critic.estimates]
        for alike in zip(*modules):
            self._kinds.append(type(alike[0]))
            if not isinstance(alike[0], nn.ReLU):
                weights = torch.stack([module.weight.detach() for module in alike])
                linear = isinstance(alike[0], nn.Linear)
                self.weights.append(weights.transpose(1, 2).contiguous() if linear else weights[:, None])
                self.biases.append(torch.stack([module.bias.detach() for module in alike])[:, None])

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return self.values(self.head(features), action)

    def values(self, head: Tensor, action: Tensor) -> Tensor:
        """As Critic.values."""
        x = torch.cat([head, action], dim=-1).expand(len(self.weights[0]), -1, -1)
        parameters = iter(zip(self.weights, self.biases))
        for kind in self._kinds:
            if kind is nn.ReLU:
                x = functional.relu(x)
                continue
            weight, bias = next(parameters)
            if issubclass(kind, nn.Linear):
                x = torch.baddbmm(bias, x, weight)
            else:
                x = functional.layer_norm(x, x.shape[-1:]) * weight + bias
        return x.squeeze(-1)


def critics_together(agent: DDPG, replay: Replay) -> None:
    """Both critics in one batched product a layer."""
    target = Together(agent.targets["critic"])
    agent.critic, agent.targets["critic"] = Together(agent.critic), target.requires_grad_(False)
    agent.optimizers["critic"] = Adam(agent.critic, agent.optimizers["critic"].lr)
    agent._averages = [([*target.parameters()], [*agent.critic.parameters()], agent.settings.tau)]


def _scaled(agent: DDPG, pictures: Tensor) -> Tensor:
    return pictures.to(torch.float32).div_(255).sub_(agent.settings.pixel_offset)


PLAIN = (  # the ways below know one trunk, and targets of the critic alone
    "agent.spatial_softmax=false", "agent.target_encoder=false", "agent.target_actor=false", "agent.inverse_loss=0",
    "agent.reconstruction_loss=0", "agent.precision=float32",
)  # fmt: skip
WAYS: dict[str, tuple[Callable[[DDPG, Replay], None], bool, tuple[str, ...]]] = {  # ..., torch's path, for which cases
    "torch.compile of the losses": (compiled, True, CASES),
    "torch.optim's Adam": (torchs_adam, False, CASES),
    "both critics in one batched product": (critics_together, False, (STATE, PIXELS)),
    "channels first": (channels_first, False, (PIXELS,)),
    f"the encoder in chunks of {CHUNK}": (in_chunks, False, (PIXELS,)),
    "both observations in one pass of the encoder": (seen_together, False, (PIXELS,)),
    "the first convolution as im2col and product": (columns, False, (PIXELS,)),
    "pictures not divided by 255": (unscaled, False, (PIXELS,)),
    "crops by index": (by_index, False, (PIXELS,)),
    "batches drawn by another thread": (drawn_ahead, False, CASES),
}


def measure(rounds: int) -> Iterator[dict]:
    """One thread: seconds of an update with each way, how many times as fast as without, and the first update's."""
    for case in CASES:
        words = (*learner.CASES[case], *PLAIN)
        for name, (change, plain, cases) in WAYS.items():
            if case not in cases:
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
