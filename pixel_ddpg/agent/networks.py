"""Encoder, Actor and Critic, and their initialisations."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixel_ddpg.config import Agent


class Convolutions(nn.Sequential):
    """Convolutions and ReLUs over uint8 pixels (B, C, H, W), which are first brought to [-offset, 1 - offset]."""

    def __init__(self, layers: list[nn.Module], settings: Agent):
        super().__init__(*layers)
        self.offset = settings.pixel_offset

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.float() / 255 - self.offset)


@dataclass(frozen=True)
class Layers:
    """The layers that networks are made of; whoever builds an agent may hand in faster ones."""

    convolutions: Callable[[list[nn.Module], Agent], nn.Module] = Convolutions
    stack: Callable[..., nn.Sequential] = nn.Sequential
    linear: Callable[[int, int], nn.Linear] = nn.Linear


PLAIN = Layers()


class Encoder(nn.Module):
    """Convolutions over uint8 pixels (B, C, H, W) to the flat last maps and their spatial softmax, (B, features)."""

    def __init__(self, channels: int, settings: Agent, layers: Layers = PLAIN):
        super().__init__()
        convolutions: list[nn.Module] = []
        for filters, kernel, stride, padding in settings.conv:
            convolutions += [nn.Conv2d(channels, filters, kernel, stride, padding), nn.ReLU()]
            channels = filters
        self.convolutions = layers.convolutions(convolutions, settings)
        self.softmax = SpatialSoftmax() if settings.spatial_softmax else None

    def forward(self, observation: Tensor) -> Tensor:
        maps = self.convolutions(observation)
        features = maps.flatten(1)
        return torch.cat([features, self.softmax(maps.float())], 1) if self.softmax else features


class SpatialSoftmax(nn.Module):
    """Expected coordinates of each filter's activation: maps (B, C, H, W) to their means under a softmax, (B, 2C).

    Rows and columns run from -SCALE to SCALE (Levine et al., 2016, section 5.1; Finn et al., 2016, eq. 1, for the
    learned temperature).
    """

    SCALE = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(()))  # minus the logarithm of the temperature

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[2:]
        rows = torch.linspace(-self.SCALE, self.SCALE, height, dtype=maps.dtype, device=maps.device)
        columns = torch.linspace(-self.SCALE, self.SCALE, width, dtype=maps.dtype, device=maps.device)
        share = (maps.flatten(2) * self.log_gain.exp()).softmax(2).unflatten(2, (height, width))
        return torch.stack([share.sum(3) @ rows, share.sum(2) @ columns], 2).flatten(1)


class Trunks(nn.Module):
    """Two of DrQ-v2's trunks, of the flat maps and of the spatial softmax: features (B, f) to (B, 2 * width).

    In a shared trunk the thousands of map features would fit the critic's error before the few coordinates could.
    """

    def __init__(self, features: int, places: int, width: int, layers: Layers):
        super().__init__()
        self._split = [features - places, places]
        self.trunks = nn.ModuleList([_trunk(size, width, layers) for size in self._split])

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split(self._split, 1)
        return torch.cat([trunk(part) for trunk, part in zip(self.trunks, parts)], 1)


class Actor(nn.Module):
    """The deterministic policy mu: features (B, f) to actions (B, a) in [-1, 1]."""

    def __init__(self, features: int, action_dim: int, settings: Agent, layers: Layers = PLAIN):
        super().__init__()
        trunk, width = _make_trunk(features, settings, layers)
        hidden: list[nn.Module] = [nn.BatchNorm1d(width)] if settings.batch_norm else []
        for size in settings.hidden:
            hidden.append(dense(width, size, layers, settings.layer_norm, settings.batch_norm))
            width = size
        hidden.append(layers.linear(width, action_dim))
        parallel = isinstance(trunk, Trunks)  # a stack holds a sequence
        self.policy = nn.Sequential(trunk, layers.stack(*hidden)) if parallel else layers.stack(trunk, *hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.policy(features).tanh()


class Critic(nn.Module):
    """One or more estimates Q(s, a) on one shared trunk: features (B, f), actions (B, a) to (critics, B)."""

    def __init__(self, features: int, action_dim: int, settings: Agent, layers: Layers = PLAIN):
        super().__init__()
        self.trunk, self.width = _make_trunk(features, settings, layers)
        self.estimates = nn.ModuleList([_Q(self.width, action_dim, settings, layers) for _ in range(settings.critics)])

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return self.values(self.trunk(features), action)

    def values(self, latent: Tensor, action: Tensor) -> Tensor:
        """Q from what the shared trunk makes of the features."""
        first, *others = (estimate(latent, action) for estimate in self.estimates)
        return torch.stack([first, *others]) if others else first[None]  # a view, where there is nothing to copy


class _Q(nn.Module):
    """One estimate (B,); the action enters at hidden layer `action_layer`, BatchNorm stands only before it."""

    def __init__(self, width: int, action_dim: int, settings: Agent, layers: Layers):
        super().__init__()
        before: list[nn.Module] = [nn.BatchNorm1d(width)] if settings.batch_norm else []
        after: list[nn.Module] = []
        for index, size in enumerate(settings.hidden):
            if index < settings.action_layer:
                before.append(dense(width, size, layers, settings.layer_norm, settings.batch_norm))
            else:
                width += action_dim * (index == settings.action_layer)
                after.append(dense(width, size, layers, settings.layer_norm))
            width = size
        self.before, self.after = layers.stack(*before), layers.stack(*after, layers.linear(width, 1))

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.after(torch.cat([self.before(latent), action], dim=-1)).squeeze(-1)


def dense(inputs: int, outputs: int, layers: Layers, layer_norm: bool, batch_norm: bool = False) -> nn.Sequential:
    """A hidden layer: product, norm, ReLU."""
    parts: list[nn.Module] = [layers.linear(inputs, outputs)]
    if batch_norm:
        parts.append(nn.BatchNorm1d(outputs))
    if layer_norm:
        parts.append(nn.LayerNorm(outputs))
    return nn.Sequential(*parts, nn.ReLU())


def _make_trunk(features: int, settings: Agent, layers: Layers) -> tuple[nn.Module, int]:
    """DrQ-v2's trunk, or nothing; and its width."""
    if not settings.feature_dim:
        return layers.stack(), features
    width = settings.feature_dim
    if settings.spatial_softmax and settings.conv:
        return Trunks(features, 2 * settings.conv[-1][0], width, layers), 2 * width
    return _trunk(features, width, layers), width


def _trunk(features: int, width: int, layers: Layers) -> nn.Module:
    return layers.stack(layers.linear(features, width), nn.LayerNorm(width), nn.Tanh())


class RunningNorm(nn.Module):
    """Normalise each component of a state (B, d) by its running mean and standard deviation, clipped to +-5.

    `floor` bounds the standard deviation from below.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, floor: float = 1e-4):
        super().__init__()
        self._least = floor**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.tensor(0.0))

    @torch.no_grad()
    def learn(self, state: Tensor) -> None:
        """Take a batch into the mean and the variance (Chan et al., 1979)."""
        batch_mean = state.mean(0)
        batch_variance = (state - batch_mean).square().mean(0)  # var_mean takes twenty times as long
        self.count += len(state)
        share = len(state) / self.count
        delta = batch_mean - self.mean
        self.variance += share * (batch_variance - self.variance + (1 - share) * delta.square())
        self.mean += share * delta

    def forward(self, state: Tensor) -> Tensor:
        return ((state - self.mean) * (self.variance + self._least).rsqrt()).clamp(-5, 5)


class StateEncoder(RunningNorm):
    """A normalised state (B, d) as a latent (B, w), which a model of what follows trains: `auxiliary.Model`."""

    def __init__(self, size: int, width: int, layers: Layers = PLAIN):
        super().__init__(size)
        self.layers = layers.stack(*(dense(inputs, width, layers, layer_norm=True) for inputs in (size, width, width)))

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(super().forward(state))


@torch.no_grad()
def initialise(network: nn.Module, settings: Agent, generator: torch.Generator) -> None:
    """DrQ-v2's orthogonal weights or the paper's U(+-1/sqrt(fan-in)); last layers U(+-final_init) where that is set."""
    module: Any
    for module in network.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if settings.init == "orthogonal":
            gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0
            nn.init.orthogonal_(module.weight, gain, generator=generator)
            bias: Any = module.bias
            bias.zero_()
        else:
            _uniform(module, 1 / math.sqrt(module.weight[0].numel()), generator)
    if settings.final_init:
        for last in _last_layers(network):
            _uniform(last, settings.final_init, generator)


def _last_layers(network: nn.Module) -> list[Any]:
    if isinstance(network, Actor):
        return [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    estimates: Any = network.estimates if isinstance(network, Critic) else []
    return [estimate.after[-1] for estimate in estimates]


def _uniform(module: Any, bound: float, generator: torch.Generator) -> None:
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
