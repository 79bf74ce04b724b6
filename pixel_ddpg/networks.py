"""Encoder, Actor and Critic, and their initialisations."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixel_ddpg.config import Agent
from pixel_ddpg.onednn import Stack

HALF_CHANNELS = 16  # a GPU's convolutions in bfloat16 want their input's channels in multiples of this


class Conv2d(nn.Conv2d):
    """nn.Conv2d that ignores input channels beyond its own."""

    def forward(self, x: Tensor) -> Tensor:
        more = x.shape[1] - self.in_channels
        weight = functional.pad(self.weight, (0,) * 5 + (more,)) if more else self.weight
        return self._conv_forward(x, weight, self.bias)


class Linear(nn.Linear):
    """nn.Linear whose product is in its input's type; float32 comes out."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).float()


class Encoder(nn.Module):
    """Convolutions over uint8 pixels (B, C, H, W); returns the flat last map, and its places, (B, features).

    float32; with precision bfloat16 on a GPU, bfloat16, where half of the bytes are half of the time.
    """

    def __init__(self, channels: int, settings: Agent):
        super().__init__()
        layers: list[nn.Module] = []
        for filters, kernel, stride, padding in settings.conv:
            layers += [Conv2d(channels, filters, kernel, stride, padding), nn.ReLU()]
            channels = filters
        self.convolutions = Stack(*layers)
        self.softmax = SpatialSoftmax() if settings.spatial_softmax else None
        self._dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self.register_buffer("_offset", torch.tensor(-settings.pixel_offset, dtype=self._dtype), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        half, gpu = self._dtype == torch.bfloat16, observation.device.type != "cpu"
        if half and gpu:
            observation = functional.pad(observation, (0,) * 5 + (-observation.shape[1] % HALF_CHANNELS,))
        pixels = observation.contiguous(memory_format=torch.channels_last).to(self._dtype)  # in turn: bytes move faster
        pixels = torch.add(self._offset, pixels, alpha=1 / 255, out=None if gpu else pixels)
        with torch.autocast(pixels.device.type, torch.bfloat16, half, cache_enabled=False):  # as a graph needs it
            maps = self.convolutions(pixels)
        if self.softmax or not gpu:
            maps = maps.float()
        features = maps.flatten(1)
        return torch.cat([features, self.softmax(maps)], 1) if self.softmax else features


class SpatialSoftmax(nn.Module):
    """Where each filter sees most: maps (B, C, H, W) to the mean place under their softmax, (B, 2C) within +-SCALE.

    (Levine et al., 2016, section 5.1; Finn et al., 2016, eq. 1, for the learned temperature.)
    """

    SCALE = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(()))  # minus the logarithm of the temperature

    def forward(self, maps: Tensor) -> Tensor:
        of = {"dtype": maps.dtype, "device": maps.device}
        rows, columns = (torch.linspace(-self.SCALE, self.SCALE, n, **of) for n in maps.shape[2:])
        share = (maps.flatten(2) * self.log_gain.exp()).softmax(2).unflatten(2, maps.shape[2:])
        return torch.stack([share.sum(3) @ rows, share.sum(2) @ columns], 2).flatten(1)


class Trunks(nn.Module):
    """DrQ-v2's trunk twice, of what the last maps hold and of the places they tell: features (B, f) to (B, 2 * width).

    In one trunk the thousands of numbers of the maps fit the critic's errors before the few places do.
    """

    def __init__(self, features: int, places: int, width: int):
        super().__init__()
        self._split = [features - places, places]
        self.trunks = nn.ModuleList([_trunk(size, width) for size in self._split])

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split(self._split, 1)
        return torch.cat([trunk(part) for trunk, part in zip(self.trunks, parts)], 1)


class Actor(nn.Module):
    """The deterministic policy: features (B, f) to actions (B, a) in [-1, 1]."""

    def __init__(self, features: int, action_dim: int, settings: Agent):
        super().__init__()
        head, width = _head(features, settings)
        layers: list[nn.Module] = [nn.BatchNorm1d(width)] if settings.batch_norm else []
        for size in settings.hidden:
            layers.append(_layer(width, size, settings.layer_norm, settings.batch_norm))
            width = size
        layers.append(Linear(width, action_dim))
        self.policy = nn.Sequential(head, Stack(*layers)) if isinstance(head, Trunks) else Stack(head, *layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.policy(features).tanh()


class Critic(nn.Module):
    """One or more estimates Q(s, a) on one shared head: features (B, f), actions (B, a) to (critics, B)."""

    def __init__(self, features: int, action_dim: int, settings: Agent):
        super().__init__()
        self.head, self.width = _head(features, settings)
        self.estimates = nn.ModuleList([_Q(self.width, action_dim, settings) for _ in range(settings.critics)])

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return self.values(self.head(features), action)

    def values(self, head: Tensor, action: Tensor) -> Tensor:
        """Q from what the shared head makes of the features."""
        first, *others = (estimate(head, action) for estimate in self.estimates)
        return torch.stack([first, *others]) if others else first[None]  # a view, where there is nothing to copy


class RunningNorm(nn.Module):
    """State (B, d), each component less its mean and over its deviation in all that was learned from, within +-5.

    A deviation far below `floor` counts as that.
    """

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


class Inverse(nn.Module):
    """From a latent and the one n steps later, (B, f) each: the actions between them (B, n, a)."""

    def __init__(self, width: int, action_dim: int, steps: int, settings: Agent):
        super().__init__()
        self._shape = steps, action_dim
        hidden = settings.hidden[-1]
        self.layers = Stack(_layer(2 * width, hidden, True, False), Linear(hidden, steps * action_dim))

    def forward(self, latent: Tensor, later: Tensor) -> Tensor:
        return self.layers(torch.cat([latent, later], 1)).unflatten(1, self._shape)


class Decoder(nn.Module):
    """From a latent (B, f) the picture it stands for, averaged over POOL by POOL pixels and normalised: (B, d)."""

    POOL = 4

    def __init__(self, width: int, channels: int, side: int, settings: Agent):
        super().__init__()
        size = channels * (side // self.POOL) ** 2
        self.norm = RunningNorm(size, floor=2 / 255)
        self.layers = Stack(_layer(width, settings.hidden[-1], True, False), Linear(settings.hidden[-1], size))

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)

    def averages(self, pictures: Tensor) -> Tensor:
        """Of uint8 (B, C, H, W), within [0, 1]."""
        return functional.avg_pool2d(pictures.float() / 255, self.POOL).flatten(1)


class _Q(nn.Module):
    """One estimate (B,); the action enters at hidden layer `action_layer`, BatchNorm stands only before it."""

    def __init__(self, width: int, action_dim: int, settings: Agent):
        super().__init__()
        before: list[nn.Module] = [nn.BatchNorm1d(width)] if settings.batch_norm else []
        after: list[nn.Module] = []
        for index, size in enumerate(settings.hidden):
            if index < settings.action_layer:
                before.append(_layer(width, size, settings.layer_norm, settings.batch_norm))
            else:
                width += action_dim * (index == settings.action_layer)
                after.append(_layer(width, size, settings.layer_norm, False))
            width = size
        self.before, self.after = Stack(*before), Stack(*after, Linear(width, 1))

    def forward(self, head: Tensor, action: Tensor) -> Tensor:
        return self.after(torch.cat([self.before(head), action], dim=-1)).squeeze(-1)


def _head(features: int, settings: Agent) -> tuple[nn.Module, int]:
    """DrQ-v2's trunk, or nothing; and its width."""
    if not settings.feature_dim:
        return Stack(), features
    width = settings.feature_dim
    if settings.spatial_softmax and settings.conv:
        return Trunks(features, 2 * settings.conv[-1][0], width), 2 * width
    return _trunk(features, width), width


def _trunk(features: int, width: int) -> nn.Module:
    return Stack(Linear(features, width), nn.LayerNorm(width), nn.Tanh())


def _layer(inputs: int, outputs: int, layer_norm: bool, batch_norm: bool) -> nn.Sequential:
    norms = [nn.BatchNorm1d(outputs)] * batch_norm + [nn.LayerNorm(outputs)] * layer_norm
    return nn.Sequential(Linear(inputs, outputs), *norms, nn.ReLU())


@torch.no_grad()
def initialise(network: nn.Module, settings: Agent, generator: torch.Generator) -> None:
    """DrQ-v2's orthogonal weights or the paper's U(+-1/sqrt(fan-in)); last layers U(+-final_init) where that is set."""
    for module in network.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if settings.init == "orthogonal":
            gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0
            nn.init.orthogonal_(module.weight, gain, generator=generator)
            module.bias.zero_()
        else:
            _uniform(module, 1 / math.sqrt(module.weight[0].numel()), generator)
    if settings.final_init:
        for last in _last_layers(network):
            _uniform(last, settings.final_init, generator)


def _last_layers(network: nn.Module) -> list[nn.Linear]:
    if isinstance(network, Actor):
        return [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    return [estimate.after[-1] for estimate in network.estimates] if isinstance(network, Critic) else []


def _uniform(module: nn.Linear | nn.Conv2d, bound: float, generator: torch.Generator) -> None:
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
