"""DDPG: the whole algorithm (Lillicrap et al., 2016, Algorithm 1; Yarats et al., 2021, for what its successors add)."""

import copy
import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pixel_ddpg.adam import Adam
from pixel_ddpg.config import Agent, Noise
from pixel_ddpg.networks import Actor, Critic, Decoder, Encoder, Inverse, RunningNorm, initialise
from pixel_ddpg.replay import Batch

SATURATED = 0.95  # of an action's bound; tanh's slope is below 0.1 there
PENALTY_STEP = 0.01  # of the logarithm of the saturation penalty's weight, an update, at most
EDGE = 1 - 1e-6  # noisy actions of the update stay this far inside [-1, 1], as in DrQ-v2


class DDPG(nn.Module):
    """Actor, critic, shared encoder, their targets and optimisers.

    `observation_shape` is (C, H, W) for uint8 pixels, (d,) for float32 state. `noise_scale` is the standard deviation
    of the Gaussian noise on the update's actions; whoever trains sets it.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        action_dim: int,
        settings: Agent,
        noise: Noise,
        device: torch.device | str = "cpu",
        init_seed: int = 0,
        noise_seed: int = 1,
        n_step: int = 1,
    ):
        super().__init__()
        self.settings, self.noise, self.device = settings, noise, torch.device(device)
        pixels = len(observation_shape) == 3
        self.encoder = Encoder(observation_shape[0], settings) if pixels else nn.Flatten()
        if settings.state_norm and not pixels:
            self.encoder = RunningNorm(observation_shape[0])
        features = self.encoder(torch.zeros(1, *observation_shape)).shape[1]
        self.actor = Actor(features, action_dim, settings)
        self.critic = Critic(features, action_dim, settings)
        self.inverse: nn.Module | None = None
        if settings.inverse_loss and pixels:
            self.inverse = Inverse(self.critic.width, action_dim, n_step, settings)
        self.decoder: nn.Module | None = None
        if settings.reconstruction_loss and pixels:
            self.decoder = Decoder(self.critic.width, *observation_shape[:2], settings)
        generator = torch.Generator().manual_seed(init_seed)
        for network in (self.encoder, self.actor, self.critic, self.inverse, self.decoder):
            if network:
                initialise(network, settings, generator)
        self.encoder.to(memory_format=torch.channels_last)
        self.targets = nn.ModuleDict({"critic": copy.deepcopy(self.critic)})
        if settings.target_actor:
            self.targets["actor"] = copy.deepcopy(self.actor)
        if settings.target_encoder and pixels:
            self.targets["encoder"] = copy.deepcopy(self.encoder)
        self.targets.requires_grad_(False)
        self.eval().to(self.device)
        if self.inverse or self.decoder:
            self.register_buffer("td_loss", torch.tensor(0.0, device=self.device))
        if settings.output_rms:
            self.register_buffer("penalty", torch.tensor(settings.saturation_penalty, device=self.device))
        self.register_buffer("noise_scale", torch.tensor(0.0, device=self.device), persistent=False)
        self.noise_draws = torch.Generator(self.device).manual_seed(noise_seed)

        decay = settings.critic_weight_decay
        self.optimizers = {
            "critic": Adam(self.critic, settings.critic_lr, decay),
            "actor": Adam(self.actor, settings.actor_lr),
        }
        if pixels:
            self.optimizers["encoder"] = Adam(self.encoder, settings.critic_lr, decay)
        for name in ("inverse", "decoder"):
            if network := getattr(self, name):
                self.optimizers[name] = Adam(network, settings.critic_lr)
        taus = {"encoder": settings.encoder_tau or settings.tau}
        self._averages = [
            (_averaged(target), _averaged(getattr(self, name)), taus.get(name, settings.tau))
            for name, target in self.targets.items()
        ]

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The policy's action, without noise: float32 (a,) in [-1, 1] for one observation."""
        return self.act_all(observation[None])[0]

    def act_all(self, observations: np.ndarray) -> np.ndarray:
        """The same for several observations: float32 (B, a)."""
        return self.actions(torch.as_tensor(observations, device=self.device)).cpu().numpy()

    @torch.no_grad()
    def actions(self, observations: Tensor) -> Tensor:
        """The same where they lie."""
        return self.actor(self.encoder(observations))

    @torch.no_grad()
    def value(self, observation: np.ndarray, action: np.ndarray) -> float:
        """Q(s, a) of one observation and action; of several critics as in the target."""
        state = self.encoder(torch.as_tensor(observation, device=self.device)[None])
        q = self.critic(state, torch.as_tensor(action, device=self.device)[None])
        return self._one(q).item()

    def compile_losses(self) -> None:
        """From now on encoder and losses are torch.compile's kernels, of each number of observations its own.

        The first update takes up to a minute.
        """
        self.encoder.compile(dynamic=False)
        self.critic_loss = torch.compile(self.critic_loss, dynamic=False)
        self.actor_loss = torch.compile(self.actor_loss, dynamic=False)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on the critic, one on the actor, one of the targets; returns 0-d tensors."""
        self._batch_norm_learns(True)
        if isinstance(self.encoder, RunningNorm):
            self.encoder.learn(batch.observation)
        features = self.encoder(batch.observation)
        next_noise, noise = self._draw_noise(batch.action), self._draw_noise(batch.action)

        critic_loss, q, td = self.critic_loss(features, batch, next_noise)
        self._zero_grad()
        critic_loss.backward(retain_graph=self._actor_trains_encoder)
        self.optimizers["critic"].step()

        self.critic.requires_grad_(False)
        actor_loss, output = self.actor_loss(features, noise)
        self.critic.requires_grad_(True)
        actor_loss.backward()
        self.optimizers["actor"].step()

        for name in ("encoder", "inverse", "decoder"):
            if name in self.optimizers:
                self.optimizers[name].step()
        self.update_targets()
        self._batch_norm_learns(False)
        size = output.detach().abs()
        return {
            "critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "q": q.detach().mean(),
            "td_error": td.detach().square().mean().sqrt(), "pre_tanh": size.mean(),
            "saturated": (size.tanh() > SATURATED).float().mean(),
        }  # fmt: skip

    def critic_loss(self, features: Tensor, batch: Batch, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean squared error to y = R + discount * Q'(s', mu'(s') + noise); beside it Q(s, a) and its error."""
        with torch.no_grad():
            next_features = self._target("encoder")(batch.next_observation)
            critic = self.targets["critic"]
            next_action = _noisy(self._target("actor")(next_features), noise)
            next_latent = critic.head(next_features)
            next_q = self._one(critic.values(next_latent, next_action))
            y = batch.reward + batch.discount * next_q
        latent = self.critic.head(features)
        q = self.critic.values(latent, batch.action)
        loss = functional.mse_loss(q, y.expand_as(q), reduction="sum") / len(y)
        if self.inverse or self.decoder:
            self.td_loss.lerp_(loss.detach(), 0.01)
        if self.inverse:
            loss = loss + self.settings.inverse_loss * self.td_loss * self.inverse_loss(latent, next_latent, batch)
        if self.decoder:
            loss = loss + self.settings.reconstruction_loss * self.td_loss * self.reconstruction_loss(latent, batch)
        return loss, q, q - y

    def reconstruction_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the picture before its random shift: what is seen, before Q has a use for it.

        (Yarats et al., 2021, "Improving sample efficiency ...", eq. 2, of the unshifted picture, in low resolution.)
        """
        averages = self.decoder.averages(batch.unshifted)
        self.decoder.norm.learn(averages)
        return functional.mse_loss(self.decoder(latent), self.decoder.norm(averages))

    def inverse_loss(self, latent: Tensor, next_latent: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the n_step actions between (Pathak et al., 2017, eq. 3; Lamb et al., 2022, eq. 1).

        What Q says of a picture teaches the encoder slowly; what its actions did to it, from the first step on.
        Windows that an episode's end cuts are left out.
        """
        error = (self.inverse(latent, next_latent) - batch.actions).square().mean((1, 2))
        return (error * batch.whole).mean()

    def actor_loss(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-Q(s, mu(s) + noise): its gradient is the deterministic policy gradient, the chain rule through the action.

        Beside it a weight on the square of the output before tanh: Adam turns the smallest slope of Q into full steps,
        which can drive tanh so far that its gradient is gone, and with it what the actor sees. Returns that output too.
        """
        if not self._actor_trains_encoder:
            features = features.detach()
        output = self.actor.policy(features)
        loss = -self._one(self.critic(features.detach(), _noisy(output.tanh(), noise))).mean()
        if self.settings.saturation_penalty:
            size = output.square().mean()
            loss = self._penalty_weight(size.detach()) * size + loss
        return loss, output

    def _penalty_weight(self, size: Tensor) -> Tensor | float:
        """The saturation penalty's weight: rises while `size`, the output's mean square, is too large, else falls.

        (As SAC's temperature follows its entropy: Haarnoja et al., 2018, "... Algorithms and Applications", section 5.)
        """
        least = self.settings.saturation_penalty
        if not self.settings.output_rms:
            return least
        excess = (size / self.settings.output_rms**2 - 1).clamp(-1, 1)
        return self.penalty.mul_((PENALTY_STEP * excess).exp()).clamp_(min=least).clone()

    @torch.no_grad()
    def update_targets(self) -> None:
        """theta' <- tau * theta + (1 - tau) * theta', BatchNorm's running statistics included."""
        for slow, online, tau in self._averages:
            torch._foreach_lerp_(slow, online, tau)

    @property
    def _actor_trains_encoder(self) -> bool:
        return "encoder" in self.optimizers and self.settings.encoder_trained_by == "both"

    def _target(self, name: str) -> nn.Module:
        return self.targets[name] if name in self.targets else getattr(self, name)

    def _one(self, q: Tensor) -> Tensor:
        """What stands for the estimates of several critics, (critics, B) to (B,)."""
        return q.mean(0) if self.settings.ensemble == "mean" else functools.reduce(torch.minimum, q.unbind())

    def _draw_noise(self, action: Tensor) -> Tensor | None:
        """Clipped Gaussian noise for the update's actions (DrQ-v2, eq. 3); None where there is none."""
        clip = self.noise.target_clip
        if not clip:
            return None
        noise = torch.randn(action.shape, generator=self.noise_draws, device=self.device) * self.noise_scale
        return noise.clamp(-clip, clip)

    def _batch_norm_learns(self, now: bool) -> None:
        """Statistics of the batch while updating, running ones otherwise; nothing else here has two modes."""
        if self.settings.batch_norm:
            self.actor.train(now), self.critic.train(now)

    def schedule(self, noise_scale: float, learning_rate: float) -> None:
        """The noise's standard deviation, and the share of the learning rates, of the updates that follow."""
        self.noise_scale.fill_(noise_scale)
        for optimizer in self.optimizers.values():
            optimizer.schedule(learning_rate)

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: networks, targets, optimisers, the noise's random stream."""
        tensors = {f"network.{name}": tensor for name, tensor in self.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.tensors().items()}
        return tensors | {"noise_draws": self.noise_draws.get_state()}

    def load_networks(self, tensors: dict[str, Tensor]) -> None:
        """Networks and targets alone: enough to act, on any device."""
        self.load_state_dict({name[8:]: tensor for name, tensor in tensors.items() if name.startswith("network.")})

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors()`."""
        self.load_networks(tensors)
        self.noise_draws.set_state(tensors["noise_draws"].cpu())
        for name, optimizer in self.optimizers.items():
            begin = f"optimizer.{name}."
            own = {key.removeprefix(begin): tensor for key, tensor in tensors.items() if key.startswith(begin)}
            optimizer.load_tensors(own)


def _noisy(action: Tensor, noise: Tensor | None) -> Tensor:
    """Within [-1, 1]; the gradient passes this bound unchanged."""
    if noise is None:
        return action
    noisy = action + noise
    return noisy + (noisy.clamp(-EDGE, EDGE) - noisy).detach()


def _averaged(network: nn.Module) -> list[Tensor]:
    """What a target follows slowly: statistics that belong to other weights than the target's would distort it."""
    return [tensor for tensor in network.state_dict(keep_vars=True).values() if tensor.is_floating_point()]
