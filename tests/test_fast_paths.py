"""Each fast path beside the plain one that it stands for."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pixel_ddpg import config, onednn
from pixel_ddpg.adam import Adam
from pixel_ddpg.agent import DDPG
from pixel_ddpg.onednn import Stack
from pixel_ddpg.replay import Batch, Replay

needs_onednn = pytest.mark.skipif(not onednn.AVAILABLE, reason="this torch has no oneDNN: there is only the plain path")


# --- stacks of layers ---


def layers(kind: str, width: int) -> list[nn.Module]:
    """A stack as the networks have them, of one kind."""
    if kind == "convolutions":
        return [
            nn.Conv2d(9, width, 5, 4, 2), nn.ReLU(), nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)
        ]  # fmt: skip
    head = [nn.Linear(9, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, width)]
    between = {"layer_norm": [nn.LayerNorm(width)], "batch_norm": [nn.BatchNorm1d(width)], "plain": []}[kind]
    return [
        *head,
        nn.Sequential(*between, nn.ReLU()),
        nn.Sequential(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, 2),
    ]


def run(stack: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and statistics of one pass."""
    stack.zero_grad()
    y = stack(x)
    if y.requires_grad:
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    gradients = {f"d{name}": p.grad for name, p in stack.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **gradients, **{f"b{name}": b.clone() for name, b in stack.named_buffers()}}


@needs_onednn
@pytest.mark.parametrize("kind", ["convolutions", "layer_norm", "batch_norm", "plain"])
@pytest.mark.parametrize("width", [7, 300])
@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("batch", [1, 70])
def test_a_stack_is_nn_sequential(kind, width, of_input, trained, batch):
    """A layer's slip forward or backward, a product below or above the threshold, a gradient that nobody asked for."""
    torch.manual_seed(0)
    plain = nn.Sequential(*layers(kind, width)).requires_grad_(trained)
    plain.train(kind == "batch_norm" and batch > 1)
    fast = Stack(*copy.deepcopy(plain))
    fast.train(plain.training)
    shape = (batch, 9, 33, 33) if kind == "convolutions" else (batch, 9)
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(of_input) for _ in "pf"]
    expected, got = run(plain, inputs[0]), run(fast, inputs[1])
    assert expected.keys() == got.keys() and len(got) > (3 if trained else 0)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)
    if of_input:
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
        assert fast(inputs[1]).grad_fn.name() == "_NodeBackward"


@needs_onednn
def test_a_copy_of_a_stack_has_its_own_weights():
    """A target network that keeps its original's layers."""
    stack, x = Stack(nn.Linear(3, 2)), torch.ones(1, 3)
    before = stack(x)
    target = copy.deepcopy(stack)
    with torch.no_grad():
        target[0].weight.add_(1)
    assert torch.equal(stack(x), before) and not torch.equal(target(x), before)


PRESETS = [
    ("fast", "pixels"), ("fast", "state"), ("drqv2", "pixels"), ("ddpg2016", "state"), ("ddpg2016", "pixels")
]  # fmt: skip


@needs_onednn
@pytest.mark.parametrize("preset,obs", PRESETS)
def test_updates_are_those_of_the_plain_path(preset, obs, monkeypatch):
    """Everything together, as the presets have it: losses and weights after some updates.

    Adam turns rounding errors of tiny gradients into whole steps, so weights may differ by a few of those.
    """
    settings = config.compose([f"preset={preset}", f"obs={obs}", "env.size=64", "agent.hidden=[40,30]"])
    shape = (9, 64, 64) if obs == "pixels" else (9,)
    draws = torch.Generator().manual_seed(2)

    def observation() -> torch.Tensor:
        if obs == "pixels":
            return torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=draws)
        return torch.randn(8, *shape, generator=draws)

    rows = [torch.rand(8, 2, generator=draws) * 2 - 1, torch.rand(8, generator=draws), torch.full((8,), 0.9)]
    batch = Batch(observation(), *rows, observation())
    results = []
    for fast in (False, True):
        monkeypatch.setattr(onednn, "AVAILABLE", fast)
        agent = DDPG(shape, 2, settings.agent, settings.noise)
        losses = [agent.update(batch) for _ in range(3)]
        results.append(({name: torch.stack([loss[name] for loss in losses]) for name in losses[0]}, agent.state_dict()))
    (plain_losses, plain), (fast_losses, fast) = results
    for name in plain_losses:
        torch.testing.assert_close(fast_losses[name], plain_losses[name], rtol=2e-3, atol=2e-4)
    rate = max(settings.agent.actor_lr, settings.agent.critic_lr)
    for name in plain:
        far = (fast[name] - plain[name]).abs() > 1e-5
        assert far.float().mean() < 0.05 and (fast[name] - plain[name]).abs().max() < 7 * rate, name


# --- Adam ---


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adam_is_torchs(decay):
    """A wrong moment, bias correction or decay; and a memory that does not survive being stored."""
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    yours = copy.deepcopy(mine)
    adam = Adam(mine, 1e-2, decay)
    groups = [{"params": [p], "weight_decay": decay if p.ndim > 1 else 0.0} for p in yours.parameters()]
    reference = torch.optim.Adam(groups, lr=1e-2)
    for number in range(6):
        x = torch.randn(5, 3, 4, 4)
        for network, optimizer in ((mine, adam), (yours, reference)):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        for p, q in zip(mine.parameters(), yours.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        if number == 2:
            memory = {name: tensor.clone() for name, tensor in adam.tensors().items()}
            adam = Adam(mine, 1e-2, decay)
            adam.load_tensors(memory)


def test_adams_memory_of_nothing_is_a_new_ones():
    """Moments of another life, where a checkpoint has none."""
    network = nn.Linear(2, 1)
    adam = Adam(network, 1e-2)
    network(torch.ones(1, 2)).sum().backward()
    adam.step()
    adam.load_tensors({})
    assert all((tensor == 0).all() for tensor in adam.tensors().values())


# --- crops ---


@given(st.data())
def test_crops_by_slices_are_those_by_index(data):
    """An edge, a stack that wraps or repeats its first element, a shift in the wrong direction."""
    stack, shift, batch = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 4)), 5
    replay = Replay((3, 6, 5), 1, 12, frame_stack=stack, random_shift=shift)
    replay.elements = torch.randint(0, 256, replay.elements.shape, dtype=torch.uint8)
    newest = torch.tensor(data.draw(st.lists(st.integers(0, replay.slots - 1), min_size=batch, max_size=batch)))
    back = torch.tensor(data.draw(st.lists(st.integers(0, stack - 1), min_size=batch, max_size=batch)))
    stacked = (newest[:, None] - torch.minimum(torch.arange(stack - 1, -1, -1), back[:, None])) % replay.slots
    moves = st.lists(st.integers(-shift, shift), min_size=2 * batch, max_size=2 * batch)
    shifts = torch.tensor(data.draw(moves)).view(2, batch)
    by_slices, by_index = replay._crops_by_slices(stacked, shifts), replay._crops_by_index(stacked, shifts)
    assert np.array_equal(by_slices, by_index)
