"""DDPG: the whole algorithm (Lillicrap et al., 2016, Algorithm 1; Yarats et al., 2021, for what its successors add).

`actions` is mu(s); exploration.py adds the noise of eq. 7, replay.py stores the transition and samples the batch, and
`update` is the rest: encode, the target of eq. 5, the critic's loss of eq. 4, the actor's gradient of eq. 6, and the
soft update of the targets.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pixel_ddpg.agent.auxiliary import Decoder, Inverse, Model
from pixel_ddpg.agent.networks import PLAIN, Actor, Critic, Encoder, Layers, RunningNorm, StateEncoder, initialise
from pixel_ddpg.agent.replay import Batch
from pixel_ddpg.config import Agent, Noise

SATURATED = 0.95  # of an action's bound; tanh's slope is below 0.1 there
TD_LOSS_STEP = 0.01  # of the running mean of the critic's loss, an update
PENALTY_STEP = 0.01  # of the logarithm of the saturation penalty's weight, an update, at most
EDGE = 1 - 1e-6  # noisy actions of the update stay this far inside [-1, 1], as in DrQ-v2


class DDPG(nn.Module):
    """Actor, critic, shared encoder, their targets and optimisers.

    `observation_shape` is (C, H, W) for uint8 pixels, (d,) for float32 state. `layers` and `compiled`, which is applied
    to both losses, make it fast.
    """

    inverse: Inverse | None
    decoder: Decoder | None
    model: Model | None
    td_loss: Tensor  # the running mean of the critic's loss
    penalty: Tensor  # weight of the squared output before tanh
    noise_scale: Tensor  # standard deviation of the noise on the update's actions

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        action_dim: int,
        settings: Agent,
        noise: Noise,
        *,
        n_step: int = 1,
        layers: Layers = PLAIN,
        compiled: Callable[[Callable], Callable] | None = None,
        device: torch.device | str = "cpu",
        init_seed: int = 0,
        noise_seed: int = 1,
    ):
        super().__init__()
        self.settings, self.noise, self.device = settings, noise, torch.device(device)
        self.observation_shape = observation_shape
        self.encoder = _encoder(observation_shape, settings, layers)
        features = self.encoder(torch.zeros(1, *observation_shape)).shape[1]
        self.actor = Actor(features, action_dim, settings, layers)
        self.critic = Critic(features, action_dim, settings, layers)
        self.inverse, self.decoder, self.model = None, None, None
        if isinstance(self.encoder, StateEncoder):
            self.model = Model(action_dim, settings.model_width, layers)
        pixels = isinstance(self.encoder, Encoder)
        if pixels and settings.inverse_loss:
            self.inverse = Inverse(self.critic.width, action_dim, n_step, settings, layers)
        if pixels and settings.reconstruction_loss:
            self.decoder = Decoder(self.critic.width, observation_shape[0], observation_shape[1], settings, layers)
        generator = torch.Generator().manual_seed(init_seed)
        for network in (self.encoder, self.actor, self.critic, self.inverse, self.decoder, self.model):
            if network:
                initialise(network, settings, generator)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.targets = nn.ModuleDict({"critic": copy.deepcopy(self.critic)})
        if settings.target_actor:
            self.targets["actor"] = copy.deepcopy(self.actor)
        if (settings.target_encoder and pixels) or self.model:
            self.targets["encoder"] = copy.deepcopy(self.encoder)
        if self.model:
            self.targets["model"] = copy.deepcopy(self.model)
        self.targets.requires_grad_(False)
        if self.inverse or self.decoder:
            self.register_buffer("td_loss", torch.tensor(0.0))
        if settings.output_rms:
            self.register_buffer("penalty", torch.tensor(settings.saturation_penalty))
        self.register_buffer("noise_scale", torch.tensor(0.0), persistent=False)
        self.eval().to(self.device)
        self.noise_draws = torch.Generator(self.device).manual_seed(noise_seed)
        if compiled:
            self.critic_loss = compiled(self.critic_loss)  # type: ignore[method-assign]
            self.actor_loss = compiled(self.actor_loss)  # type: ignore[method-assign]
        self._make_optimizers()
        self._averages = [(_averaged(target), _averaged(getattr(self, name))) for name, target in self.targets.items()]

    def _make_optimizers(self) -> None:
        """One Adam for each network that learns."""
        settings, decay = self.settings, self.settings.critic_weight_decay
        self.optimizers = {
            "critic": _adam(self.critic, settings.critic_lr, decay),
            "actor": _adam(self.actor, settings.actor_lr),
        }
        if isinstance(self.encoder, Encoder | StateEncoder):
            self.optimizers["encoder"] = _adam(self.encoder, settings.critic_lr, decay)
        for name, network in (("inverse", self.inverse), ("decoder", self.decoder), ("model", self.model)):
            if network:
                self.optimizers[name] = _adam(network, settings.critic_lr)

    # --- acting ---

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The policy's action mu(s), without noise: float32 (a,) in [-1, 1] for one observation.

        ValueError for one of another shape or type, such as pixels already divided by 255, or that is not finite.
        """
        kind = np.uint8 if len(self.observation_shape) == 3 else np.float32
        observation = np.asarray(observation)
        if observation.shape != self.observation_shape or observation.dtype != kind:
            wanted, given = f"{kind.__name__} {self.observation_shape}", f"{observation.dtype} {observation.shape}"
            raise ValueError(f"an observation is {wanted}, not {given}")
        if not np.isfinite(observation).all():
            raise ValueError("an observation is not finite")
        return self.actions(torch.as_tensor(observation.copy()[None], device=self.device)).cpu().numpy()[0]

    @torch.no_grad()
    def actions(self, observations: Tensor) -> Tensor:
        """mu(s) for a batch of observations (B, ...) on the agent's device: actions (B, a)."""
        return self.actor(self.encoder(observations))

    @torch.no_grad()
    def value(self, observation: np.ndarray, action: np.ndarray) -> float:
        """Q(s, a) of one observation and action; of several critics as in the target."""
        state = self.encoder(torch.as_tensor(observation, device=self.device)[None])
        taken = torch.as_tensor(action, device=self.device)[None]
        return self._combined(self.critic(self._embedded(state, taken), taken)).item()

    # --- learning ---

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on the critic, one on the actor, one of the targets; returns 0-d tensors."""
        self._batch_norm_learns(True)
        if isinstance(self.encoder, RunningNorm):
            self.encoder.learn(batch.observation)
        averages = self.decoder.learn(batch.unshifted) if self.decoder else None
        features = self.encoder(batch.observation)
        next_noise, noise = self._draw_noise(batch.action), self._draw_noise(batch.action)

        critic_loss, auxiliary, q, td_error = self.critic_loss(features, batch, next_noise, averages)
        critic_loss = self._add_auxiliary(critic_loss, auxiliary)
        self._zero_grad()
        critic_loss.backward()
        self.optimizers["critic"].step()

        self._critic_learns(False)  # eq. 6 moves the actor alone
        actor_loss, output = self.actor_loss(features, noise)
        actor_loss = self._add_penalty(actor_loss, output)
        self._critic_learns(True)
        actor_loss.backward()
        self.optimizers["actor"].step()

        for name in ("encoder", "inverse", "decoder", "model"):
            if name in self.optimizers:
                self.optimizers[name].step()
        self.update_targets()
        self._batch_norm_learns(False)
        size = output.detach().abs()
        return {
            "critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach(), "q": q.detach().mean(),
            "td_error": td_error.detach().square().mean().sqrt(), "pre_tanh": size.mean(),
            "saturated": (size.tanh() > SATURATED).float().mean(),
            **{name: loss.detach() for name, loss in auxiliary.items()},
        }  # fmt: skip

    def critic_loss(
        self, features: Tensor, batch: Batch, noise: Tensor | None = None, averages: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Eq. 4, the mean squared error of Q(s, a) to the target y of eq. 5: R + discount * Q'(s', mu'(s') + noise).

        Also returns the auxiliary losses, by the names of their weights; Q(s, a); and the TD error.
        """
        with torch.no_grad():
            encoder, critic = self._target("encoder"), self._target("critic")
            if self.model:
                later = encoder(batch.following.flatten(0, 1)).unflatten(0, batch.whole.shape)
                next_features = later[:, -1]
            else:
                next_features = encoder(batch.next_observation)
            next_action = _noisy(self._target("actor")(next_features), noise)
            next_latent = critic.trunk(self._embedded(next_features, next_action, target=True))
            next_q = self._combined(critic.values(next_latent, next_action))
            y = batch.reward + batch.discount * next_q
        embedded = self._embedded(features, batch.action)
        latent = self.critic.trunk(
            embedded.detach() if self.model else embedded
        )  # the model alone trains what it is of
        q = self.critic.values(latent, batch.action)
        loss = functional.mse_loss(q, y.expand_as(q), reduction="sum") / len(y)
        auxiliary = {}
        if self.model:
            auxiliary["model_loss"] = self.model.loss(embedded, later, batch)
        if self.inverse:
            auxiliary["inverse_loss"] = self.inverse.loss(latent, next_latent, batch.actions, batch.whole[:, -1])
        if self.decoder and averages is not None:
            auxiliary["reconstruction_loss"] = self.decoder.loss(latent, averages)
        return loss, auxiliary, q, q - y

    def actor_loss(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-Q(s, mu(s) + noise), whose gradient is eq. 6, the chain rule through the action; and mu before its tanh."""
        features = features.detach()  # the critic alone trains the encoder
        output = self.actor.policy(features)
        action = _noisy(output.tanh(), noise)
        return -self._combined(self.critic(self._embedded(features, action), action)).mean(), output

    def _add_auxiliary(self, loss: Tensor, auxiliary: dict[str, Tensor]) -> Tensor:
        """Add the model's loss, and the auxiliary losses scaled by a running mean of the critic's, updated first."""
        if self.inverse or self.decoder:
            self.td_loss.lerp_(loss.detach(), TD_LOSS_STEP)
        for name, other in auxiliary.items():
            loss = loss + (other if name == "model_loss" else getattr(self.settings, name) * self.td_loss * other)
        return loss

    def _add_penalty(self, loss: Tensor, output: Tensor) -> Tensor:
        """The actor's loss and a weight, which adapts here, on its squared output before tanh.

        Adam takes full steps on the smallest gradients of Q, which can saturate tanh until the actor no longer learns.
        With `output_rms` the weight rises while the output is larger than that, else it falls, as SAC's temperature
        follows its entropy (Haarnoja et al., 2018, "... Applications", section 5).
        """
        weight: Tensor | float = self.settings.saturation_penalty
        if not weight:
            return loss
        size = output.square().mean()
        if self.settings.output_rms:
            excess = (size.detach() / self.settings.output_rms**2 - 1).clamp(-1, 1)
            weight = self.penalty.mul_((PENALTY_STEP * excess).exp()).clamp_(min=weight).clone()
        return weight * size + loss

    @torch.no_grad()
    def update_targets(self) -> None:
        """theta' <- tau * theta + (1 - tau) * theta', BatchNorm's running statistics included."""
        for slow, online in self._averages:
            torch._foreach_lerp_(slow, online, self.settings.tau)

    def schedule(self, noise_scale: float, lr_share: float) -> None:
        """Set the update noise's standard deviation, and the learning rates to a share of the initial ones."""
        self.noise_scale.fill_(noise_scale)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                rate = lr_share * group["initial_lr"]
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _target(self, name: str) -> Any:
        return self.targets[name] if name in self.targets else getattr(self, name)

    def _embedded(self, features: Tensor, action: Tensor, target: bool = False) -> Tensor:
        """What the critic sees beside the action: the model's embedding of both, or without a model the features."""
        if not self.model:
            return features
        return (self.targets["model"] if target else self.model)(features, action)

    def _critic_learns(self, now: bool) -> None:
        """Whether a loss has gradients of the critic, and of the model below it."""
        for network in (self.critic, self.model):
            if network:
                network.requires_grad_(now)

    def _combined(self, q: Tensor) -> Tensor:
        """Combine the critics, (critics, B) to (B,): their mean or their minimum."""
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
            self.actor.train(now)
            self.critic.train(now)

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    # --- saving ---

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and for processes that are spawned, to which torch cannot hand a random stream."""
        return self.__dict__ | {"noise_draws": self.noise_draws.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        draws = torch.Generator(state["device"])
        draws.set_state(state["noise_draws"])
        super().__setstate__(state | {"noise_draws": draws})

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: networks, targets, optimisers, the noise's random stream."""
        tensors = {f"network.{name}": tensor for name, tensor in self.state_dict().items()}
        for name, state in self._optimizer_states():
            tensors |= {f"optimizer.{name}.{field}": value for field, value in state.items()}
        return tensors | {"noise_draws": self.noise_draws.get_state()}

    def load_networks(self, tensors: dict[str, Tensor]) -> None:
        """Networks and targets alone: enough to act, on any device."""
        own = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
        # older checkpoints call a critic's trunk its head
        self.load_state_dict({name.replace("critic.head.", "critic.trunk."): tensor for name, tensor in own.items()})

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Resume from `tensors()`; optimiser states that are missing there are reset to zero."""
        self.load_networks(tensors)
        self.noise_draws.set_state(tensors["noise_draws"].cpu())
        for name, state in self._optimizer_states():
            for field, value in state.items():
                saved = tensors.get(f"optimizer.{name}.{field}")
                value.zero_() if saved is None else value.copy_(saved)

    def _optimizer_states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(name of the network and number of the parameter, Adam's memory of it)."""
        for name, optimizer in self.optimizers.items():
            for number, parameter in enumerate(getattr(self, name).parameters()):
                yield f"{name}.{number}", optimizer.state[parameter]


def _encoder(observation_shape: tuple[int, ...], settings: Agent, layers: Layers) -> Encoder | RunningNorm | nn.Flatten:
    """Convolutions for pixels; for state its running normalisation, or nothing."""
    if len(observation_shape) == 3:
        return Encoder(observation_shape[0], settings, layers)
    if settings.model_width:
        return StateEncoder(observation_shape[0], settings.model_width, layers)
    return RunningNorm(observation_shape[0]) if settings.state_norm else nn.Flatten()


def _adam(network: nn.Module, lr: float, decay: float = 0.0) -> torch.optim.Adam:
    """Adam; L2 pulls at weights, not at biases or BatchNorm's gains, which it would drive to 0 where Q is flat."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1 or not decay]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1 and decay]
    groups: list[dict] = [{"params": weights, "weight_decay": decay, "initial_lr": lr}]
    if others:
        groups.append({"params": others, "initial_lr": lr})
    optimizer = torch.optim.Adam(groups, lr=lr, fused=True)
    for parameter in network.parameters():  # at once, so that all of it is there to be saved and loaded
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def _noisy(action: Tensor, noise: Tensor | None) -> Tensor:
    """Action plus noise, clamped to [-1, 1] with a straight-through gradient."""
    if noise is None:
        return action
    noisy = action + noise
    return noisy + (noisy.clamp(-EDGE, EDGE) - noisy).detach()


def _averaged(network: nn.Module) -> list[Tensor]:
    """What is averaged into a target, BatchNorm's statistics included, which belong to its weights."""
    return [tensor for tensor in network.state_dict(keep_vars=True).values() if tensor.is_floating_point()]
