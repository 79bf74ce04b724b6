"""What trains the encoder beside Q, whose gradient alone trains it slowly.

From pixels two auxiliary losses, of the actions between two observations and of the picture before its random shift.
Their weights scale with the critic's loss, so they stay small until there is a reward. From state a model of what
follows, which trains the encoder alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixel_ddpg.agent.networks import Layers, RunningNorm, dense
from pixel_ddpg.agent.replay import Batch
from pixel_ddpg.config import Agent


class Inverse(nn.Module):
    """From a latent and the one n steps later, (B, f) each: the actions between them (B, n, a)."""

    def __init__(self, width: int, action_dim: int, n_step: int, settings: Agent, layers: Layers):
        super().__init__()
        self._shape = n_step, action_dim
        hidden = settings.hidden[-1]
        self.layers = layers.stack(
            dense(2 * width, hidden, layers, layer_norm=True), layers.linear(hidden, n_step * action_dim)
        )

    def forward(self, latent: Tensor, later: Tensor) -> Tensor:
        return self.layers(torch.cat([latent, later], 1)).unflatten(1, self._shape)

    def loss(self, latent: Tensor, later: Tensor, actions: Tensor, complete: Tensor) -> Tensor:
        """Mean squared error of the n actions between (Pathak et al., 2017, eq. 3; Lamb et al., 2022, eq. 1).

        `later` is the target critic's, so the gradient reaches the encoder through `latent` alone. Windows that an
        episode's end cuts, which are not `complete`, count as no error.
        """
        error = (self(latent, later) - actions).square().mean((1, 2))
        return (error * complete).mean()


class Model(nn.Module):
    """Of a latent z and an action an embedding (B, w), which Q is of, and from it the next latent and the reward.

    After MR.Q (Fujimoto et al., 2025, "Towards general-purpose model-free reinforcement learning"), which also predicts
    terminations, and rewards by classes.
    """

    ACTION_WIDTH = 64

    def __init__(self, action_dim: int, width: int, layers: Layers):
        super().__init__()
        self.action = layers.stack(dense(action_dim, self.ACTION_WIDTH, layers, layer_norm=False))
        inputs = width + self.ACTION_WIDTH
        hidden = [dense(size, width, layers, layer_norm=True) for size in (inputs, width)]
        self.layers = layers.stack(*hidden, layers.linear(width, width))
        self.head = layers.stack(layers.linear(width, width + 1))

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([latent, self.action(action)], 1))

    def loss(self, embedded: Tensor, later: Tensor, batch: Batch) -> Tensor:
        """Unroll the batch's actions: squared errors of the latents `later` (B, n, w) and of the rewards.

        The mean over the batch of the sum over the steps; those after an episode's end count as no error. `later` is
        the target encoder's, so the gradient reaches the encoder through `embedded`, of the first step, alone.
        """
        total, steps = torch.zeros((), device=embedded.device), batch.actions.shape[1]
        for step in range(steps):
            predicted = self.head(embedded)
            latent, reward = predicted[:, :-1], predicted[:, -1]
            error = (latent - later[:, step]).square().mean(1) + (reward - batch.rewards[:, step]).square()
            total = total + (error * batch.whole[:, step]).mean()
            if step + 1 < steps:
                embedded = self(latent, batch.actions[:, step + 1])
        return total


class Decoder(nn.Module):
    """From a latent (B, f) the picture it stands for, averaged over POOL by POOL pixels and normalised: (B, d)."""

    POOL = 4

    def __init__(self, width: int, channels: int, side: int, settings: Agent, layers: Layers):
        super().__init__()
        size, hidden = channels * (side // self.POOL) ** 2, settings.hidden[-1]
        self.norm = RunningNorm(size, floor=2 / 255)
        self.layers = layers.stack(dense(width, hidden, layers, layer_norm=True), layers.linear(hidden, size))

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)

    @torch.no_grad()
    def learn(self, pictures: Tensor) -> Tensor:
        """Targets for `forward`: block averages of uint8 pictures (B, C, H, W), normalised by running statistics.

        The pictures update the statistics first.
        """
        side = pictures.shape[2] // self.POOL * self.POOL
        sums = pictures[..., :side, :side]
        for axis in (2, 3):  # whole numbers: avg_pool2d of float pictures takes three times as long
            sums = sums.unflatten(axis, (-1, self.POOL)).sum(axis + 1, dtype=torch.int16)
        averages = sums.flatten(1) / (255 * self.POOL**2)
        self.norm.learn(averages)
        return self.norm(averages)

    def loss(self, latent: Tensor, averages: Tensor) -> Tensor:
        """Mean squared error (Yarats et al., 2021, "Improving sample efficiency ...", eq. 2) to what `learn` gave."""
        return functional.mse_loss(self(latent), averages)
