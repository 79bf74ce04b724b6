"""The update against independent computations: DrQ-v2's and the paper's equations, and problems with known answers."""

import copy
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import solve_discrete_are
from torch import nn

from pixel_ddpg.agent.auxiliary import Decoder
from pixel_ddpg.agent.ddpg import DDPG, _noisy
from pixel_ddpg.agent.networks import PLAIN
from pixel_ddpg.agent.replay import Batch, Replay
from pixel_ddpg.config import Agent, Noise
from pixel_ddpg.presets import compose

ACTIONS = 3
LOSSES = ("critic_loss", "actor_loss", "q", "td_error", "pre_tanh", "saturated")  # what an update returns
PIXELS = (9, 32, 32)
SMALL = ["agent.conv=[[4,3,2,0],[4,3,1,0],[4,3,1,0],[4,3,1,0]]", "agent.hidden=[24,24]", "agent.feature_dim=10"]
SMALL_PAPER = ["agent.conv=[[4,7,4,0],[4,3,1,0]]", "agent.hidden=[24,24]"]


def make(preset, obs, shape, *words, noise_scale=0.5, **seeds):
    """An agent whose actions are large enough for the clips to matter."""
    config = compose([f"preset={preset}", f"obs={obs}", *words])
    agent = DDPG(shape, ACTIONS, config.agent, config.noise, **seeds)
    agent.noise_scale.fill_(noise_scale)
    with torch.no_grad():
        agent.actor.policy[-1].weight.normal_(generator=torch.Generator().manual_seed(5))
    return agent


def make_small(*words, **seeds):
    return make("drqv2", "pixels", PIXELS, *SMALL, *words, **seeds)


def make_paper(*words, **seeds):
    return make("ddpg2016", "state", (5,), "agent.hidden=[24,24]", *words, **seeds)


@torch.no_grad()
def scatter(agent):
    """Targets and BatchNorm statistics unlike the networks' own, so that using the wrong ones shows."""
    generator = torch.Generator().manual_seed(6)
    for target in agent.targets.parameters():
        target.add_(torch.randn(target.shape, generator=generator) * (0.01 + 0.1 * target.square().mean().sqrt()))
    for name, statistics in agent.named_buffers():
        if "running" in name:
            statistics.add_(torch.rand(statistics.shape, generator=generator) * 0.2)
    return agent


def random_batch(shape, size=6, seed=0, n_step=3):
    generator = torch.Generator().manual_seed(seed)

    def observations():
        if len(shape) == 3:
            return torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator)
        return torch.randn(size, *shape, generator=generator)

    action = torch.rand(size, ACTIONS, generator=generator) * 2 - 1
    reward, discount = torch.randn(size, generator=generator), torch.full((size,), 0.97)
    discount[::3] = 0
    next_actions = torch.rand(size, n_step - 1, ACTIONS, generator=generator) * 2 - 1
    actions = torch.cat([action[:, None], next_actions], 1)
    both = observations(), observations()
    whole = torch.arange(n_step) < torch.tensor([n_step, 1, *[n_step] * (size - 2)])[:, None]
    rewards = torch.randn(size, n_step, generator=generator)
    following = torch.stack([observations() for _ in range(n_step - 1)] + [both[1]], 1)
    return Batch(both[0], action, reward, discount, both[1], actions, rewards, whole, following, observations())


# --- a naive computation of the update, from the papers ---


def linear(x, weights):
    return x @ next(weights).T + next(weights)


def layer_norm(x, weights):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * next(weights) + next(weights)


def batch_norm(x, net):
    """Nothing where the net has none. In training the batch's own statistics, which also move the running ones."""
    statistics = next(net.statistics, None)
    if statistics is None:
        return x
    mean, variance = statistics
    if net.training:
        batch_mean, batch_variance = x.mean(0), x.var(0, correction=0)
        mean.mul_(0.9).add_(0.1 * batch_mean.detach())
        variance.mul_(0.9).add_(0.1 * x.var(0).detach())
        mean, variance = batch_mean, batch_variance
    return (x - mean) / (variance + 1e-5).sqrt() * next(net.weights) + next(net.weights)


def convolutions(x, net, strides):
    for stride in strides:
        x = F.conv2d(x, next(net.weights), next(net.weights), stride).relu()
    return x.flatten(1)


def trunk(x, net):
    return layer_norm(linear(x, net.weights), net.weights).tanh()


class DrQv2:
    """Yarats et al., 2021, section 3 and appendix; critics (2, B)."""

    def encode(self, pixels, net):
        return convolutions(pixels.float() / 255 - 0.5, net, [2, 1, 1, 1])

    def act(self, features, net):
        x = trunk(features, net)
        x = linear(x, net.weights).relu()
        x = linear(x, net.weights).relu()
        return linear(x, net.weights).tanh()

    def value(self, features, action, net):
        both = torch.cat([trunk(features, net), action], 1)
        estimates = []
        for _ in range(2):
            x = linear(both, net.weights).relu()
            x = linear(x, net.weights).relu()
            estimates.append(linear(x, net.weights)[:, 0])
        return torch.stack(estimates)


class Paper:
    """Lillicrap et al., 2016, section 7; one critic (1, B); BatchNorm where the agent has it."""

    def encode(self, observation, net):
        if observation.dtype == torch.uint8:
            return convolutions(observation.float() / 255, net, [4, 1, 1])
        return observation

    def act(self, features, net):
        x = batch_norm(features, net)
        x = batch_norm(linear(x, net.weights), net).relu()
        x = batch_norm(linear(x, net.weights), net).relu()
        return linear(x, net.weights).tanh()

    def value(self, features, action, net):
        x = batch_norm(features, net)
        x = batch_norm(linear(x, net.weights), net).relu()
        x = linear(torch.cat([x, action], 1), net.weights).relu()
        return linear(x, net.weights).T


class Adam:
    """Kingma and Ba, algorithm 1, with L2 added to the gradient of weights, not of biases and gains."""

    def __init__(self, rate, decay):
        self.rate, self.decay, self.time, self.moments = rate, decay, 0, {}

    def step(self, weights, gradients):
        self.time += 1
        for index, (weight, gradient) in enumerate(zip(weights, gradients)):
            gradient = gradient + self.decay * weight.detach() * (weight.ndim > 1)
            first, second = self.moments.get(index, (0, 0))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            self.moments[index] = first, second
            size = self.rate / (1 - 0.9**self.time)
            weight.data -= size * first / ((second / (1 - 0.999**self.time)).sqrt() + 1e-8)


class NaiveAgent:
    """Copies of an agent's numbers; `update` does by hand what the agent's should."""

    NETWORKS = ("encoder", "actor", "critic")

    def __init__(self, agent, equations, rates, tau, noise_seed=None):
        self.equations, self.tau = equations, tau
        self.adams = {name: Adam(*rate) for name, rate in rates.items()}
        self.draws = torch.Generator().manual_seed(noise_seed) if noise_seed is not None else None
        self.follow(agent)

    def follow(self, agent):
        """Start the next update from the agent's numbers, so that rounding errors do not add up."""
        self.weights = {name: self.copied(getattr(agent, name).parameters()) for name in self.NETWORKS}
        self.slow = {name: self.copied(target.parameters()) for name, target in agent.targets.items()}
        statistics = {name: self.norms(getattr(agent, name)) for name in self.NETWORKS}
        self.statistics = statistics | {f"slow {name}": self.norms(target) for name, target in agent.targets.items()}

    @staticmethod
    def copied(parameters):
        return [parameter.detach().clone().requires_grad_() for parameter in parameters]

    @staticmethod
    def norms(module):
        found = [each for each in module.modules() if isinstance(each, nn.BatchNorm1d)]
        return [(norm.running_mean.clone(), norm.running_var.clone()) for norm in found]

    def online(self, name):
        return SimpleNamespace(weights=iter(self.weights[name]), statistics=iter(self.statistics[name]), training=True)

    def target(self, name):
        if name not in self.slow:
            return self.online(name)
        statistics = iter(self.statistics[f"slow {name}"])
        return SimpleNamespace(weights=iter(self.slow[name]), statistics=statistics, training=False)

    def noisy(self, action):
        """DrQ-v2's TruncatedNormal.sample(clip=0.3) at standard deviation 0.5."""
        if self.draws is None:
            return action
        moved = action + (torch.randn(action.shape, generator=self.draws) * 0.5).clamp(-0.3, 0.3)
        clipped = moved.clamp(-1 + 1e-6, 1 - 1e-6)
        return moved - moved.detach() + clipped.detach()

    def update(self, batch):
        """Losses and gradients of one update."""
        net = self.equations
        features = net.encode(batch.observation, self.online("encoder"))
        with torch.no_grad():
            next_features = net.encode(batch.next_observation, self.target("encoder"))
            next_action = self.noisy(net.act(next_features, self.target("actor")))
            next_value = net.value(next_features, next_action, self.target("critic")).min(0).values
            y = batch.reward + batch.discount * next_value
        values = net.value(features, batch.action, self.online("critic"))
        critic_loss = sum(((value - y) ** 2).mean() for value in values)
        gradients = self.gradients(critic_loss, "critic", "encoder")
        self.adams["critic"].step(self.weights["critic"], gradients["critic"])

        features = features.detach()
        action = self.noisy(net.act(features, self.online("actor")))
        actor_loss = -net.value(features, action, self.online("critic")).min(0).values.mean()
        gradients |= self.gradients(actor_loss, "actor")
        for name in ("actor", "encoder"):
            self.adams[name].step(self.weights[name], gradients[name])
        self.move_targets()
        return {"critic_loss": critic_loss, "actor_loss": actor_loss, "q": values.mean()}, gradients

    def gradients(self, loss, *names):
        weights = [weight for name in names for weight in self.weights[name]]
        gradients = iter(torch.autograd.grad(loss, weights, retain_graph=True))
        return {name: [next(gradients) for _ in self.weights[name]] for name in names}

    def move_targets(self):
        for name, weights in self.slow.items():
            for slow, weight in zip(weights, self.weights[name]):
                slow.data = self.tau * weight.data + (1 - self.tau) * slow.data
            for slow, online in zip(self.statistics[f"slow {name}"], self.statistics[name]):
                for mine, yours in zip(slow, online):
                    mine.copy_(self.tau * yours + (1 - self.tau) * mine)


def assert_near(got, expected, message, floor=1e-12):
    """Equal within a ten-thousandth of the largest number."""
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=floor), message


def assert_updates_are_naive(agent, naive, batches):
    """Losses, gradients, Adam's steps, targets and statistics of a few updates: the later ones see Adam's memory."""
    for batch in batches:
        naive.follow(agent)
        before = copy.deepcopy(naive.weights)
        metrics = agent.update(batch)
        losses, gradients = naive.update(batch)
        for name, loss in losses.items():
            torch.testing.assert_close(metrics[name], loss.detach(), rtol=1e-4, atol=1e-4)
        for name, expected in gradients.items():
            assert_gradients_are_naive(getattr(agent, name), expected, name)
            assert_steps_are_naive(getattr(agent, name), naive.weights[name], before[name], expected, naive.adams[name])
        assert_targets_are_naive(agent, naive)


def floor_of(gradients):
    """Below it is nothing but rounding, as in biases before BatchNorm, which have no gradient."""
    return 0.01 * max((gradient.abs().max() for gradient in gradients), default=0)


def assert_gradients_are_naive(network, expected, name):
    for index, (parameter, gradient) in enumerate(zip(network.parameters(), expected)):
        assert_near(parameter.grad, gradient, f"gradient {index} of the {name}", floor_of(expected))


def assert_steps_are_naive(network, weights, before, gradients, adam):
    """In units of the learning rate, where gradients are clear: Adam makes whole steps of rounding errors."""
    for parameter, weight, old, gradient in zip(network.parameters(), weights, before, gradients):
        clear = gradient.abs() > 0.01 * gradient.abs().max().clamp(min=floor_of(gradients))
        steps, expected = ((new.detach() - old.detach())[clear] / adam.rate for new in (parameter, weight))
        assert (steps - expected).abs().sum() <= 2e-3 * clear.sum()


def assert_targets_are_naive(agent, naive):
    assert set(naive.slow) == set(agent.targets)
    for name, target in agent.targets.items():
        for parameter, expected in zip(target.parameters(), naive.slow[name]):
            assert_near(parameter, expected, f"target {name}")
        for module, key in ((target, f"slow {name}"), (getattr(agent, name), name)):
            for got, expected in zip(naive.norms(module), naive.statistics[key]):
                for mine, yours in zip(got, expected):
                    assert_near(mine, yours, f"running statistics of the {key}")


@pytest.mark.parametrize("size, words, batch", [(32, SMALL, 8), (84, [], 4)], ids=["small", "full"])
def test_drqv2_updates_as_its_equations_say(size, words, batch):
    """Any slip in DrQ-v2's losses, in what is detached, in noise and clips, in Adam or in the targets."""
    agent = scatter(make("drqv2", "pixels", (9, size, size), *words, noise_seed=11))
    rates = dict.fromkeys(("encoder", "actor", "critic"), (1e-4, 0))
    naive = NaiveAgent(agent, DrQv2(), rates, tau=0.01, noise_seed=11)
    assert_updates_are_naive(agent, naive, [random_batch((9, size, size), batch, seed) for seed in (0, 1)])


def test_the_papers_state_agent_updates_as_its_equations_say():
    """The same for BatchNorm (batch statistics online, running ones in the targets), L2, and the action's layer."""
    agent = scatter(make("ddpg2016", "state", (17,)))
    naive = NaiveAgent(agent, Paper(), {"encoder": (0, 0), "actor": (1e-4, 0), "critic": (1e-3, 1e-2)}, tau=0.001)
    assert_updates_are_naive(agent, naive, [random_batch((17,), 64, seed) for seed in (0, 1, 2)])


def test_the_papers_pixel_agent_updates_as_its_equations_say():
    """The same with convolutions, which the critic's optimiser decays too, and targets with their own encoder."""
    agent = scatter(make("ddpg2016", "pixels", (9, 64, 64)))
    naive = NaiveAgent(agent, Paper(), {"actor": (1e-4, 0)} | dict.fromkeys(("encoder", "critic"), (1e-3, 1e-2)), 0.001)
    assert_updates_are_naive(agent, naive, [random_batch((9, 64, 64), 4, seed) for seed in (0, 1, 2)])


# --- the deterministic policy gradient, where Q is known ---


class Quadratic(nn.Module):
    """Q(s, a) = -(s'Ms + 2 s'Na + a'Ra)."""

    def __init__(self, state_dim):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        half = torch.randn(ACTIONS, ACTIONS, generator=generator, dtype=torch.float64)
        self.M = torch.eye(state_dim, dtype=torch.float64)
        self.N = torch.randn(state_dim, ACTIONS, generator=generator, dtype=torch.float64)
        self.R = half @ half.T

    def forward(self, s, a):
        return -((s @ self.M * s).sum(1) + 2 * (s @ self.N * a).sum(1) + (a @ self.R * a).sum(1))[None]

    def action_gradient(self, s, a):
        return -2 * (s @ self.N + a @ self.R)


@pytest.fixture
def known():
    """An agent in float64 whose critic is a known quadratic, and some states."""
    agent = make("ddpg2016_no_bn", "state", (4,), "agent.hidden=[8,8]").double()
    agent.critic = Quadratic(4)
    return agent, torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_the_gradient_of_a_linear_policy_is_the_analytic_one(known):
    """The deterministic policy gradient theorem, for a = tanh(K s): dJ/dK = mean of (1 - a^2) dQ/da s'."""
    agent, states = known
    agent.actor.policy = layer = nn.Linear(4, ACTIONS, bias=False).double()
    agent.actor_loss(states)[0].backward()
    action = (states @ layer.weight.detach().T).tanh()
    slope = (1 - action**2) * agent.critic.action_gradient(states, action)
    torch.testing.assert_close(layer.weight.grad, -slope.T @ states / len(states), rtol=1e-5, atol=1e-10)


def test_the_saturation_penalty_pulls_the_output_before_tanh_to_zero(known):
    """A weight that is not applied, or is applied after tanh, where saturated outputs feel nothing."""
    agent, states = known
    gradients = []
    for weight in (0.0, 0.25):
        agent.settings.saturation_penalty = weight
        agent.actor.zero_grad()
        agent._add_penalty(*agent.actor_loss(states)).backward()
        gradients.append([parameter.grad.clone() for parameter in agent.actor.parameters()])
    output = agent.actor.policy(states)
    pull = 2 * 0.25 * output.detach() / output.numel()
    expected = torch.autograd.grad(output, list(agent.actor.parameters()), pull)
    for without, with_penalty, pull in zip(*gradients, expected):
        torch.testing.assert_close(with_penalty - without, pull, rtol=1e-9, atol=1e-12)


def test_the_penaltys_weight_holds_the_size_of_the_output():
    """A weight that falls where it must rise, ignores its least value or its bound, is not saved, or has a gradient."""
    agent = make_small("agent.saturation_penalty=0.01", "agent.output_rms=0.5")
    features = agent.encoder(random_batch(PIXELS).observation)
    weight = 0.01
    for gain in (1.0, 1.2, 40.0, 0.1, 1.0):
        with torch.no_grad():
            agent.actor.policy[-1].weight.mul_(gain)
            output = agent.actor.policy(features)
            size = output.square().mean().item()
            weight = max(0.01, weight * math.exp(0.01 * min(1.0, max(-1.0, size / 0.25 - 1))))
            q = agent.critic(features, output.tanh()).min(0).values.mean().item()
        loss = agent._add_penalty(*agent.actor_loss(features))
        assert loss.item() == pytest.approx(weight * size - q, rel=1e-4, abs=1e-5)
        loss.backward()
    assert weight > 0.01 and agent.penalty.item() == pytest.approx(weight, rel=1e-5)
    assert not agent.penalty.requires_grad and "network.penalty" in agent.tensors()


def test_the_gradient_of_the_actor_is_the_chain_rule(known):
    """The same through tanh and hidden layers: mean of (d mu / d theta)' dQ/da, one action component at a time."""
    agent, states = known
    parameters = list(agent.actor.parameters())
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    for state in states.split(1):
        action = agent.actor(state)
        slope = agent.critic.action_gradient(state, action.detach())
        for component in range(ACTIONS):
            jacobian = torch.autograd.grad(action[0, component], parameters, retain_graph=True)
            for total, part in zip(expected, jacobian):
                total -= slope[0, component] * part / len(states)
    agent.actor_loss(states)[0].backward()
    for parameter, gradient in zip(parameters, expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-10)


# --- a problem whose optimum is known ---


class Regulator:
    """A noisy linear system with quadratic cost, actions in [-1, 1], and its optimal gain."""

    A, B = np.array([[0.9, 0.3], [0.0, 0.8]]), np.array([[0.0], [0.5]])
    Q, R = np.diag([1.0, 0.2]), np.array([[1.0]])
    GAMMA, SPREAD = 0.99, 0.25

    def __init__(self):
        root = self.GAMMA**0.5
        self.P = solve_discrete_are(root * self.A, root * self.B, self.Q, self.R)
        inner = self.R + self.GAMMA * self.B.T @ self.P @ self.B
        self.gain = -np.linalg.solve(inner, self.GAMMA * self.B.T @ self.P @ self.A)

    def cost(self, state, action):
        return (state @ self.Q * state).sum(-1) + (action @ self.R * action).sum(-1)

    def step(self, state, action, random):
        return state @ self.A.T + action @ self.B.T + random.normal(0, self.SPREAD, state.shape)

    def discounted_cost(self, policy, steps=600):
        """From 200 random states, always with the same disturbances."""
        random, total = np.random.default_rng(0), 0.0
        state = random.uniform(-1, 1, (200, 2))
        for time in range(steps):
            action = policy(state)
            total += self.GAMMA**time * self.cost(state, action).mean()
            state = self.step(state, action, random)
        return total

    def optimal_cost(self):
        """E x'Px at the start, plus the disturbances' share: what Riccati's equation promises."""
        return np.trace(self.P) * (1 / 3 + self.GAMMA / (1 - self.GAMMA) * self.SPREAD**2)


def play(problem, replay, policy, random, steps=5):
    """An episode from a random state, cut by a time limit; yields after each step. Rewards are centred near zero."""
    state = random.uniform(-1, 1, 2)
    replay.begin(state.astype(np.float32))
    for step in range(steps):
        action = np.clip(policy(state.astype(np.float32)) + random.normal(0, 0.4, 1), -1, 1)
        reward = 0.33 - problem.cost(state, action)
        state = problem.step(state, action, random)
        replay.add(state.astype(np.float32), action.astype(np.float32), reward, 1.0, step == steps - 1)
        yield


def train_regulator(problem, updates, seed=1):
    """Random steps first, then one update a step; the learning rates fall to nearly nothing. Any seed will do."""
    random, rates = np.random.default_rng(seed), {"actor_lr": 2e-4, "critic_lr": 2e-3}
    settings = Agent(discount=problem.GAMMA, tau=0.01, critics=1, hidden=[128, 128], target_actor=True, **rates)
    agent = DDPG((2,), 1, settings, Noise(target_clip=0.0), init_seed=seed)
    replay = Replay((2,), 1, 60_000, discount=problem.GAMMA, seed=seed)
    while len(replay) < 30_000:
        for _ in play(problem, replay, lambda state: 0, random):
            pass
    done = 0
    while done < updates:
        for _ in play(problem, replay, agent.act, random):
            agent.update(replay.sample(128))
            done += 1
        agent.schedule(0.0, min(1, 1.4 * max(0, 1 - done / updates) + 0.03))
    return agent


def test_ddpg_solves_a_linear_quadratic_regulator():
    """Everything together: within 5% of the optimal discounted cost, which Riccati's equation tells."""
    problem = Regulator()
    optimum = problem.discounted_cost(lambda state: state @ problem.gain.T)
    assert optimum == pytest.approx(problem.optimal_cost(), rel=0.03)  # the simulation and the theory agree
    assert problem.discounted_cost(lambda state: 0 * state[:, :1]) > 2 * optimum
    agent = train_regulator(problem, updates=4000)
    with torch.no_grad():
        reached = problem.discounted_cost(lambda state: agent.actor(torch.as_tensor(state).float()).numpy())
    assert reached < 1.05 * optimum


# --- docs/silent_bugs.md, by number ---


def gradients_of(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def assert_all_close(got, expected, equal=True):
    close = [torch.allclose(mine, yours, rtol=1e-4, atol=1e-7) for mine, yours in zip(got, expected, strict=True)]
    assert all(close) if equal else not any(close)


def test_9_every_parameter_stands_in_one_optimiser():
    """An encoder that two optimisers step, parameters that none does, targets that any does."""
    agent = make_small()
    held = [number for name in agent.optimizers for number in optimised(agent, name)]
    trained = [p for name in ("encoder", "actor", "critic") for p in getattr(agent, name).parameters()]
    assert sorted(held) == sorted(map(id, trained))
    assert set(map(id, agent.encoder.parameters())) == optimised(agent, "encoder")


def test_9_the_critics_loss_alone_trains_the_encoder():
    """An actor's loss that reaches the encoder, or a critic's that does not."""
    agent, batch = make_small("agent.critic_lr=0", "noise.target_clip=0"), random_batch(PIXELS)
    expected = gradients_of(agent.critic_loss(agent.encoder(batch.observation), batch)[0], agent.encoder)
    agent.update(batch)
    assert_all_close([parameter.grad for parameter in agent.encoder.parameters()], expected)


def test_9_the_actors_loss_does_not_move_the_encoder():
    """The same, told by the weights after an update in which only the actor's loss has a gradient."""
    agent, batch = make_small("noise.target_clip=0"), random_batch(PIXELS)
    none = torch.zeros(1)
    agent.critic_loss = lambda features, batch, *_: (0 * agent.critic(features, batch.action).sum(), {}, none, none)
    before = copy.deepcopy(agent.encoder)
    agent.update(batch)
    assert all(map(torch.equal, before.parameters(), agent.encoder.parameters()))


@pytest.mark.parametrize("slow", [False, True])
def test_9_targets_see_through_the_named_encoder(slow):
    """target_encoder=true that uses the online encoder, or the other way round."""
    words = ["noise.target_clip=0", f"agent.target_encoder={str(slow).lower()}"]
    agent, batch = scatter(make_small(*words)), random_batch(PIXELS)
    assert ("encoder" in agent.targets) == slow
    encoder = agent.targets["encoder"] if slow else agent.encoder
    with torch.no_grad():
        features = encoder(batch.next_observation)
        next_q = agent.targets["critic"](features, agent.actor(features)).amin(0)
        features = agent.encoder(batch.observation)
        q = agent.critic(features, batch.action)
        expected = (q - batch.reward - batch.discount * next_q).square().mean(1).sum()
        torch.testing.assert_close(agent.critic_loss(features, batch)[0], expected)


def buffers(network):
    return [buffer.clone() for buffer in network.buffers()]


def test_11_targets_follow_the_running_statistics():
    """Statistics left at their first values, or copied: those of other weights than the target's, which distort it."""
    agent = scatter(make_paper())
    old = copy.deepcopy(agent.targets)
    agent.update(random_batch((5,), 16))
    for name in ("actor", "critic"):
        three = (buffers(each) for each in (old[name], getattr(agent, name), agent.targets[name]))
        for before, online, target in zip(*three):
            if before.is_floating_point():
                assert not torch.equal(before, online)
                torch.testing.assert_close(target, 0.999 * before + 0.001 * online)


def test_11_a_target_is_worth_what_its_own_weights_say():
    """Q' of 7 after 5000 updates of a cartpole that has earned 0.4: statistics of the online net in the lagging target.

    Where the online weights have shrunk and the target's have not, these divide by numbers that are too small.
    """
    agent = make_paper()
    state, action = torch.randn(64, 5), torch.rand(64, ACTIONS) * 2 - 1
    for norm in (each for each in agent.critic.modules() if isinstance(each, nn.BatchNorm1d)):
        norm.running_var.fill_(1e-4)
    before = agent.targets["critic"](state, action)
    agent.update_targets()
    assert (agent.targets["critic"](state, action) - before).abs().max() < 0.01 * before.abs().max()


def test_11_acting_uses_and_keeps_the_running_statistics():
    """Acting in training mode: it would move the statistics, or fail on a batch of one."""
    agent = scatter(make_paper())
    agent.update(random_batch((5,), 16))
    observation, before = np.ones(5, np.float32), buffers(agent)
    action = agent.act(observation)
    assert all(map(torch.equal, before, buffers(agent)))
    together = agent.actor(torch.randn(7, 5).index_fill_(0, torch.tensor([3]), 1.0))[3]
    np.testing.assert_allclose(action, together.detach(), atol=1e-6)  # others in the batch do not matter
    agent.actor.policy[1].running_mean += 1
    assert np.abs(agent.act(observation) - action).max() > 1e-3


def test_12_acting_has_no_noise():
    """Exploration or update noise in the policy itself: evaluations would have it."""
    agent = make_small(noise_scale=10.0)
    observation = np.random.default_rng(0).integers(0, 256, PIXELS, np.uint8)
    before = agent.noise_draws.get_state()
    first, second = agent.act(observation), agent.act(observation)
    assert first.shape == (ACTIONS,) and first.dtype == np.float32 and np.abs(first).max() <= 1
    assert np.array_equal(first, second) and torch.equal(before, agent.noise_draws.get_state())


def test_14_the_actors_loss_leaves_the_critic_alone():
    """Critic gradients that hold the actor's loss too."""
    agent, batch = make_small("noise.target_clip=0"), random_batch(PIXELS)
    expected = gradients_of(agent.critic_loss(agent.encoder(batch.observation), batch)[0], agent.critic)
    for _ in range(2):  # left-overs of an earlier update, too
        fresh = copy.deepcopy(agent.state_dict())
        agent.update(batch)
        assert_all_close([parameter.grad for parameter in agent.critic.parameters()], expected)
        agent.load_state_dict(fresh)


def test_14_targets_are_computed_without_gradient():
    """A target y that pulls the actor, the encoder (through the next observation) or the target networks."""
    agent, batch = make_small(), random_batch(PIXELS)
    features = agent.encoder(batch.observation).detach()
    loss = agent.critic_loss(features, batch)[0]
    elsewhere = [*agent.encoder.parameters(), *agent.actor.parameters()]
    assert torch.autograd.grad(loss, elsewhere, allow_unused=True) == (None,) * len(elsewhere)
    agent.update(batch)
    assert not any(target.requires_grad or target.grad is not None for target in agent.targets.parameters())


def test_the_state_is_normalised_alike_everywhere():
    """Statistics that lack a batch, or that acting, the target or Q do not have."""
    agent = make("fast", "state", (5,), "agent.state_norm=true", "noise.target_clip=0", "agent.hidden=[8,8]")
    plain = make("fast", "state", (5,), "agent.state_norm=false", "noise.target_clip=0", "agent.hidden=[8,8]")
    batches = [random_batch((5,), 16, seed) for seed in (1, 2)]
    for number, batch in enumerate(batches, 1):
        plain.load_state_dict(agent.state_dict(), strict=False)
        seen = torch.cat([one.observation for one in batches[:number]])
        mean, std = seen.mean(0), seen.std(0, correction=0)
        by_hand = copy.deepcopy(batch)
        by_hand.observation, by_hand.next_observation = (
            ((observation - mean) / std).clamp(-5, 5) for observation in (batch.observation, batch.next_observation)
        )
        expected, got = plain.update(by_hand), agent.update(batch)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)
    state = batches[0].observation[0]
    action = agent.act(state.numpy())
    assert_all_close([torch.as_tensor(action)], [agent.actor(((state - mean) / std).clamp(-5, 5)[None])[0].detach()])


def test_a_mean_of_critics_is_what_target_and_actor_take():
    """The smallest one left in one of the two places."""
    agent = scatter(make_small("agent.ensemble=mean", "noise.target_clip=0"))
    batch, features = random_batch(PIXELS), None
    with torch.no_grad():
        features, next_features = agent.encoder(batch.observation), agent.encoder(batch.next_observation)
        next_q = agent.targets["critic"](next_features, agent.actor(next_features)).mean(0)
        y = batch.reward + batch.discount * next_q
        expected = (agent.critic(features, batch.action) - y).square().mean(1).sum()
        torch.testing.assert_close(agent.critic_loss(features, batch)[0], expected)
        torch.testing.assert_close(agent.actor_loss(features)[0], -agent.critic(features, agent.actor(features)).mean())
        q = agent.critic(features[:1], batch.action[:1]).mean().item()
    assert agent.value(batch.observation[0].numpy(), batch.action[0].numpy()) == pytest.approx(q, rel=1e-4)


def test_the_inverse_loss_is_that_of_its_equation():
    """Actions in another order, the online latent for the target's, windows that an end cuts."""
    words = ("agent.inverse_loss=0.7", "agent.target_encoder=true", "noise.target_clip=0")
    agent = scatter(make_small(*words, n_step=3))
    batch = random_batch(PIXELS)
    with torch.no_grad():
        latent = agent.critic.trunk(agent.encoder(batch.observation))
        ahead = agent.targets["critic"].trunk(agent.targets["encoder"](batch.next_observation))
        total = 0.0
        for row in range(len(latent)):
            guess = agent.inverse.layers(torch.cat([latent[row], ahead[row]])[None])[0]
            total += batch.whole[row, -1] * (guess - torch.cat([*batch.actions[row]])).square().mean() / len(latent)
    loss = agent.inverse.loss(latent, ahead, batch.actions, batch.whole[:, -1])
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)


def test_the_inverse_loss_trains_encoder_head_and_inverse_alone():
    """A gradient into the target latent, the actor or the estimates; an inverse model that no optimiser steps."""
    agent = make_small("agent.inverse_loss=1", n_step=3)
    batch = random_batch(PIXELS)
    latent = agent.critic.trunk(agent.encoder(batch.observation))
    ahead = agent.critic.trunk(agent.encoder(batch.next_observation)).detach()
    agent.inverse.loss(latent, ahead, batch.actions, batch.whole[:, -1]).backward()
    moved = {name.split(".")[0] for name, parameter in agent.named_parameters() if parameter.grad is not None}
    assert moved == {"encoder", "critic", "inverse"}
    assert all(parameter.grad is None for parameter in agent.critic.estimates.parameters())
    assert {id(p) for p in agent.inverse.parameters()} == optimised(agent, "inverse")


def test_the_model_learns_and_q_is_of_what_its_equations_say():
    """Steps after an episode's end, the online latent for the target's, a gradient of Q in the encoder."""
    agent = scatter(make("fast", "state", (5,), "agent.model_width=12", "agent.hidden=[16,16]", "noise.target_clip=0"))
    batch = random_batch((5,))
    model, features = agent.model, agent.encoder(batch.observation)
    loss, auxiliary, q, _ = agent.critic_loss(features, batch)
    with torch.no_grad():
        total = 0.0
        for row in range(len(features)):
            latent = agent.encoder(batch.observation[row : row + 1])
            for step in range(3):
                ahead = agent.targets["encoder"](batch.following[row : row + 1, step])
                out = model.head(model(latent, batch.actions[row : row + 1, step]))
                latent, reward = out[:, :-1], out[0, -1]
                error = (latent - ahead).square().mean() + (reward - batch.rewards[row, step]).square()
                total += batch.whole[row, step] * error / len(features)
        ahead = agent.targets["encoder"](batch.next_observation)
        action = agent.actor(ahead)
        critic, embed = agent.targets["critic"], agent.targets["model"]
        y = batch.reward + batch.discount * critic.values(embed(ahead, action), action).mean(0)
        values = agent.critic.values(model(features, batch.action), batch.action)
        torch.testing.assert_close(q, values)
        torch.testing.assert_close(loss, (values - y).square().mean(1).sum())
        taken = agent.actor(features)
        expected = -agent.critic.values(model(features, taken), taken).mean()
        torch.testing.assert_close(agent.actor_loss(features)[0], expected)
    assert auxiliary["model_loss"].item() == pytest.approx(total.item(), rel=1e-4)
    assert moved_by(agent, loss) == {"critic"}
    assert moved_by(agent, auxiliary["model_loss"]) == {"encoder", "model"}


def test_an_update_of_the_model_moves_each_network_by_its_own_loss():
    """A model that no optimiser steps, or that the actor's loss moves; running statistics that stand still."""
    words = ("agent.model_width=12", "agent.hidden=[16,16]", "noise.target_clip=0", "agent.saturation_penalty=0")
    agent, batch = make("fast", "state", (5,), *words), random_batch((5,))
    agent.update(batch)
    twin = make("fast", "state", (5,), *words)
    twin.encoder.learn(batch.observation)
    loss, auxiliary, _, _ = twin.critic_loss(twin.encoder(batch.observation), batch)
    (loss + auxiliary["model_loss"]).backward()
    for name in ("critic", "encoder", "model"):
        twin.optimizers[name].step()
        for wanted, given in zip(getattr(twin, name).parameters(), getattr(agent, name).parameters()):
            torch.testing.assert_close(given, wanted)
        assert {id(parameter) for parameter in getattr(agent, name).parameters()} == optimised(agent, name)
    assert agent.encoder.count == len(batch.observation)


def moved_by(agent, loss):
    """The networks that a loss has gradients of."""
    agent.zero_grad()
    loss.backward(retain_graph=True)
    return {name.split(".")[0] for name, parameter in agent.named_parameters() if parameter.grad is not None}


def optimised(agent, name):
    """The parameters that an optimiser steps."""
    return {id(parameter) for group in agent.optimizers[name].param_groups for parameter in group["params"]}


def test_the_reconstruction_loss_is_that_of_its_equation():
    """The shifted picture for the one before, another order of the averages, or statistics that lack this batch."""
    agent, batch = make_small("agent.reconstruction_loss=3"), random_batch(PIXELS)
    pictures = batch.unshifted.double().numpy() / 255
    blocks = [
        [[[p[c, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() for x in range(8)] for y in range(8)] for c in range(9)]
        for p in pictures
    ]
    low = np.array(blocks).reshape(len(pictures), -1)
    wanted = (low - low.mean(0)) / np.sqrt(low.var(0) + (2 / 255) ** 2)
    with torch.no_grad():
        latent = agent.critic.trunk(agent.encoder(batch.observation))
        total = ((agent.decoder.layers(latent).numpy() - wanted.clip(-5, 5)) ** 2).mean()
        assert agent.decoder.loss(latent, agent.decoder.learn(batch.unshifted)).item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("side", [8, 30])
def test_the_decoder_averages_whole_blocks(side):
    """Sums that overflow; an edge that fills no block."""
    pictures = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8)
    pictures[0] = 255
    decoder = Decoder(10, 3, side, Agent(), PLAIN)
    wanted = F.avg_pool2d(pictures.double() / 255, 4).flatten(1)
    decoder.norm.learn(wanted.float())
    wanted = decoder.norm(wanted.float())
    decoder = Decoder(10, 3, side, Agent(), PLAIN)
    assert torch.allclose(decoder.learn(pictures), wanted, atol=1e-4)
    assert decoder(torch.zeros(5, 10)).shape == wanted.shape


def test_auxiliary_losses_count_in_units_of_the_running_td_loss():
    """A weight that a task's scale of rewards decides, or a gradient through the unit."""
    words = ("agent.reconstruction_loss=3", "agent.inverse_loss=0.7", "noise.target_clip=0")
    agent, batch = scatter(make_small(*words, n_step=3)), random_batch(PIXELS)
    agent.td_loss.fill_(2.0)
    features = agent.encoder(batch.observation)
    averages = agent.decoder.learn(batch.unshifted)
    loss, auxiliary, _, td = agent.critic_loss(features, batch, None, averages)
    loss, td_loss = agent._add_auxiliary(loss, auxiliary), td.square().mean(1).sum()
    torch.testing.assert_close(agent.td_loss, (0.99 * 2 + 0.01 * td_loss).detach())
    latent = agent.critic.trunk(features)
    ahead = agent.targets["critic"].trunk(agent.encoder(batch.next_observation))
    told = {
        "inverse_loss": agent.inverse.loss(latent, ahead, batch.actions, batch.whole[:, -1]),
        "reconstruction_loss": agent.decoder.loss(latent, averages),
    }
    others = 3 * told["reconstruction_loss"] + 0.7 * told["inverse_loss"]
    torch.testing.assert_close(loss, td_loss + agent.td_loss * others, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(auxiliary, told)
    assert not agent.td_loss.requires_grad
    assert set(agent.update(batch)) == {*LOSSES, *told}


def test_the_reconstruction_trains_encoder_head_and_decoder_alone():
    """A gradient into the actor or the estimates; a decoder that no optimiser steps."""
    agent, batch = make_small("agent.reconstruction_loss=1"), random_batch(PIXELS)
    latent = agent.critic.trunk(agent.encoder(batch.observation))
    agent.decoder.loss(latent, agent.decoder.learn(batch.unshifted)).backward()
    moved = {name.split(".")[0] for name, parameter in agent.named_parameters() if parameter.grad is not None}
    assert moved == {"encoder", "critic", "decoder"}
    assert all(parameter.grad is None for parameter in agent.critic.estimates.parameters())
    assert {id(p) for p in agent.decoder.parameters()} == optimised(agent, "decoder")


@pytest.mark.parametrize("rate", [float, torch.tensor], ids=["a number", "a tensor, which a CUDA graph reads"])
def test_learning_rates_are_the_scheduled_share(rate):
    """A schedule that an optimiser misses, or that compounds."""
    steps = []
    for share in (1.0, 0.25):
        agent, batch = make_small(), random_batch(PIXELS)
        for group in (group for optimizer in agent.optimizers.values() for group in optimizer.param_groups):
            group["lr"] = rate(group["lr"])
        agent.schedule(0.5, 0.5), agent.schedule(0.5, share)
        before = [parameter.detach().clone() for parameter in trained(agent)]
        agent.update(batch)
        steps.append([(new.detach() - old).abs().mean().item() for new, old in zip(trained(agent), before)])
    assert steps[1] == pytest.approx([0.25 * step for step in steps[0]], rel=0.01)


def trained(agent):
    return [parameter for parameter in agent.parameters() if parameter.requires_grad]


def test_noise_scale_and_clip_bound_the_updates_noise():
    """Noise that ignores its schedule or its clip, or that stays when both are off."""
    agent, action = make_small(noise_scale=0.1), torch.zeros(5000, ACTIONS)
    assert agent._draw_noise(action).std().item() == pytest.approx(0.1, rel=0.05)
    agent.noise_scale.fill_(5.0)
    noise = agent._draw_noise(action)
    assert noise.abs().max().item() == pytest.approx(0.3) and torch.equal(_noisy(action, noise), noise)
    assert _noisy(action + 1, noise).max() < 1
    assert make_small("noise.target_clip=0", noise_scale=5.0)._draw_noise(action) is None
    assert _noisy(action, None) is action


@pytest.mark.parametrize("preset", ["dpg_replay", "dpg", "offpolicy_dpg"])
def test_without_target_networks_targets_equal_the_networks(preset):
    """tau = 1, the ladder's rungs without target networks: BatchNorm's statistics too."""
    agent = scatter(make(preset, "state", (5,), "agent.hidden=[24,24]"))
    agent.update(random_batch((5,), 16))
    for name, target in agent.targets.items():
        for (key, online), slow in zip(getattr(agent, name).state_dict().items(), target.state_dict().values()):
            assert torch.equal(online, slow) or "num_batches" in key, key


@pytest.mark.parametrize("build, shape", [(make_small, PIXELS), (make_paper, (5,))])
def test_an_update_never_waits_for_the_device(monkeypatch, build, shape):
    """A number read from the device within the update: each would stall a GPU."""
    agent, batch = build(), random_batch(shape)
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"):

        def forbidden(*args, name=name):
            raise AssertionError(f"Tensor.{name} within the update")

        monkeypatch.setattr(torch.Tensor, name, forbidden)
    metrics = agent.update(batch)
    monkeypatch.undo()
    assert set(metrics) == set(LOSSES)
    for value in metrics.values():
        assert value.shape == () and not value.requires_grad and value.isfinite()


@pytest.mark.parametrize("build, shape", [(make_small, PIXELS), (make_paper, (5,))])
def test_a_pickled_agent_learns_as_the_original_does(build, shape):
    """Optimisers or targets of another agent's weights; a random stream that begins again."""
    agent, batch = build(), random_batch(shape)
    agent.update(batch)
    again = pickle.loads(pickle.dumps(agent))
    for each in (agent, again):
        each.update(batch)
    wanted, got = agent.tensors(), again.tensors()
    assert wanted.keys() == got.keys() and all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.parametrize("build, shape", [(make_small, PIXELS), (make_paper, (5,))])
def test_an_update_leaves_its_batch_as_it_was(build, shape):
    """A batch changed in place: rewards or pixels of the ring itself, where gathering returns views."""
    batch = random_batch(shape)
    kept = copy.deepcopy(batch)
    build().update(batch)
    assert all(map(torch.equal, vars(batch).values(), vars(kept).values()))


BUILDS = {
    "drqv2": (make_small, PIXELS),
    "target-encoder": (lambda **seeds: make_small("agent.target_encoder=true", **seeds), PIXELS),
    "paper-state": (make_paper, (5,)),
    "paper-pixels": (lambda **seeds: make("ddpg2016", "pixels", PIXELS, *SMALL_PAPER, **seeds), PIXELS),
}


@pytest.mark.parametrize("build, shape", BUILDS.values(), ids=BUILDS)
def test_13_a_restored_agent_continues_exactly(build, shape):
    """Weights, targets, statistics, Adam's memory or the noise's stream that a checkpoint loses."""
    agent, fresh = build(init_seed=1, noise_seed=2), build(init_seed=3, noise_seed=4)
    for step in range(3):
        agent.update(random_batch(shape, seed=step))
    fresh.load_tensors({name: tensor.clone().contiguous() for name, tensor in agent.tensors().items()})
    for step in (3, 4):
        one, other = (each.update(random_batch(shape, seed=step)) for each in (agent, fresh))
        assert one == other
    saved = fresh.tensors()
    assert all(torch.equal(tensor, saved.pop(name)) for name, tensor in agent.tensors().items()) and not saved


def test_13_updates_follow_their_seeds():
    """Update noise from torch's global generator, or of one seed for all."""
    losses = []
    for global_seed, noise_seed in ((0, 1), (7, 1), (0, 2)):
        torch.manual_seed(global_seed)
        losses.append(make_small(noise_seed=noise_seed).update(random_batch(PIXELS))["critic_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_a_restored_agent_keeps_nothing_of_its_own():
    """An agent that is rolled back to before its first update, but with Adam's memory of it."""
    agent, other = make_small(), make_small()
    first = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    agent.update(random_batch(PIXELS, seed=1))
    agent.load_tensors(first)
    for each in (agent, other):
        each.update(random_batch(PIXELS, seed=2))
    assert all(map(torch.equal, agent.parameters(), other.parameters()))


def test_an_agent_of_an_older_checkpoint_loads():
    """Agents lost to a module that has got another name."""
    agent, fresh = make_small(init_seed=1), make_small(init_seed=2)
    older = {name.replace("critic.trunk.", "critic.head."): tensor for name, tensor in agent.tensors().items()}
    assert older.keys() != agent.tensors().keys()
    fresh.load_networks(older)
    assert all(map(torch.equal, agent.parameters(), fresh.parameters()))


def test_an_observation_that_is_not_finite_is_refused_and_a_view_is_not():
    """An action of NaN; torch's own complaint about strides."""
    agent = make_paper()
    observation = np.linspace(0, 1, agent.observation_shape[0], dtype=np.float32)
    np.testing.assert_array_equal(agent.act(observation[::-1]), agent.act(observation[::-1].copy()))
    with pytest.raises(ValueError, match="not finite"):
        agent.act(np.full_like(observation, np.nan))


@pytest.mark.parametrize("observation", [np.zeros(PIXELS, np.float32), np.zeros(PIXELS[1:], np.uint8), [0.0, 1.0]])
def test_an_observation_of_another_kind_is_refused(observation):
    """Pixels that were divided by 255 already, which look black."""
    with pytest.raises(ValueError, match="an observation is uint8"):
        make_small().act(observation)
