"""Sizes and first weights of the networks, as the papers and the comments in presets.py have them."""

import math

import pytest
import torch
from torch import nn

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.networks import PLAIN, Actor, Critic, Encoder, RunningNorm, SpatialSoftmax
from pixel_ddpg.presets import compose
from pixel_ddpg.runtime.layers import OPTIMIZED


def build(preset, obs, shape, action_dim, *words, **options):
    config = compose([f"preset={preset}", f"obs={obs}", *words])
    return DDPG(shape, action_dim, config.agent, config.noise, **options)


def count(*networks):
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def linear_layers(network):
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.fixture(scope="module")
def drqv2():
    return build("drqv2", "pixels", (9, 84, 84), 6)


@pytest.fixture(scope="module")
def paper():
    """The paper's agents, by observation, with the bound of their last layers."""
    state = build("ddpg2016", "state", (17,), 6)
    pixels = build("ddpg2016", "pixels", (9, 64, 64), 1)
    return [(state, 3e-3), (pixels, 3e-4)]


# --- sizes ---


def test_the_papers_state_networks_have_the_size_it_tells():
    """ "About 130,000 parameters": a layer or the action's entry at the wrong place."""
    agent = build("ddpg2016_no_bn", "state", (17,), 6)
    assert (count(agent.actor), count(agent.critic)) == (129_306, 129_601)


def test_batch_norm_stands_on_the_input_and_before_each_relu(paper):
    """BatchNorm after the action entered, or missing on the state."""
    agent = paper[0][0]
    norms = [
        [module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
        for network in (agent.actor, agent.critic)
    ]
    assert norms == [[17, 400, 300], [17, 400]]
    assert count(agent.actor) == 129_306 + 2 * (17 + 400 + 300)


def test_the_papers_pixel_networks_have_the_size_it_tells(paper):
    """ "About 430,000 parameters": the last map must be 7 x 7 x 32."""
    agent = paper[1][0]
    assert agent.encoder(torch.zeros(1, 9, 64, 64, dtype=torch.uint8)).shape == (1, 7 * 7 * 32)
    assert count(agent.encoder, agent.actor) == 427_801
    assert count(agent.encoder, agent.critic) == 427_801 + 200  # the action's weights
    assert not any(isinstance(module, nn.BatchNorm1d) for module in agent.modules())


def test_drqv2_has_the_authors_shapes(drqv2):
    """Encoder 9 x 84 x 84 to 39,200 features, trunk of 50, the action beside the trunk."""
    assert drqv2.encoder(torch.zeros(1, 9, 84, 84, dtype=torch.uint8)).shape == (1, 39_200)
    assert [tuple(layer.weight.shape) for layer in linear_layers(drqv2.actor)] == [
        (50, 39_200), (1024, 50), (1024, 1024), (6, 1024)
    ]  # fmt: skip
    estimate = [(1024, 56), (1024, 1024), (1, 1024)]
    assert [tuple(layer.weight.shape) for layer in linear_layers(drqv2.critic)] == [(50, 39_200), *estimate, *estimate]


@pytest.mark.parametrize("action_layer", [0, 1, 2])
def test_the_action_enters_where_the_settings_say(action_layer):
    """An action that enters a layer too early or too late."""
    words = ["agent.hidden=[11,12,13]", f"agent.action_layer={action_layer}"]
    critic = build("fast", "state", (5,), 3, *words).critic
    widths = [layer.in_features for layer in linear_layers(critic.estimates[0])]
    plain = [5, 11, 12, 13]
    assert widths == [width + 3 * (index == action_layer) for index, width in enumerate(plain)]


def test_outputs_have_their_shapes_and_ranges(drqv2):
    """Actions (B, a) inside [-1, 1], Q (critics, B) that depends on the action."""
    features = torch.randn(5, 39_200) * 100
    with torch.no_grad():
        action = drqv2.actor(features)
        one, other = drqv2.critic(features, action), drqv2.critic(features, -action)
    assert action.shape == (5, 6) and action.abs().max() <= 1
    assert one.shape == (2, 5) and not torch.allclose(one, other)


@pytest.mark.parametrize("offset, least", [(0.0, 0.0), (0.5, -0.5)])
def test_16_pixels_are_divided_by_255(offset, least):
    """Bytes that reach the convolutions as 0 to 255, or shifted by another preset's offset."""
    words = ["agent.conv=[[1,1,1,0]]", "agent.spatial_softmax=false", "agent.precision=float32"]
    words.append(f"agent.pixel_offset={offset}")
    settings, pixels = compose(["obs=pixels", *words]).agent, torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for layers in (PLAIN, OPTIMIZED):
        encoder = Encoder(1, settings, layers)
        with torch.no_grad():
            encoder.convolutions[0].weight.fill_(1), encoder.convolutions[0].bias.fill_(0.5)  # ReLU lets all pass
            scaled = encoder(pixels)
        assert scaled.dtype == torch.float32
        torch.testing.assert_close(scaled[0], torch.linspace(least, least + 1, 256) + 0.5)


# --- first weights ---


def assert_uniform(parameter, bound):
    """Inside U(-bound, bound) and filling it; small tensors may fill it less."""
    assert parameter.abs().max() <= bound
    if parameter.numel() >= 200:
        assert parameter.abs().max() > 0.95 * bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_the_papers_layers_start_within_their_fan_in(paper):
    """Section 7: U(+-1/sqrt(f)), weights and biases; torch's own biases would pass only by chance."""
    for agent, _ in paper:
        for network in (agent.encoder, agent.actor, agent.critic):
            layers = linear_layers(network)
            for layer in layers if network is agent.encoder else layers[:-1]:
                bound = layer.weight[0].numel() ** -0.5
                assert_uniform(layer.weight, bound), assert_uniform(layer.bias, bound)


def test_the_papers_last_layers_start_small(paper):
    """Section 7: 3e-3 from state, 3e-4 from pixels, biases too; larger ones saturate tanh and the first Q."""
    for agent, bound in paper:
        for network in (agent.actor, agent.critic):
            last = linear_layers(network)[-1]
            assert_uniform(last.weight, bound), assert_uniform(last.bias, bound)


def test_drqv2_starts_orthogonal(drqv2):
    """W W' = gain^2 I with gain sqrt(2) for convolutions and 1 for linear layers; no bias."""
    for network in (drqv2.encoder, drqv2.actor, drqv2.critic):
        for layer in linear_layers(network):
            weight = layer.weight.detach().flatten(1)
            weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
            gain = 2**0.5 if isinstance(layer, nn.Conv2d) else 1.0
            torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=2e-5, rtol=0)
            assert not layer.bias.any()


@pytest.mark.parametrize("preset", ["drqv2", "fast"])
def test_two_critics_differ_from_the_start(preset):
    """Two equal estimates stay equal: their minimum would be one critic."""
    critic = build(preset, "state", (5,), 2).critic
    one, other = (dict(estimate.named_parameters()) for estimate in critic.estimates)
    assert all(
        not torch.equal(one[name], other[name]) for name in one if name.endswith("weight") and one[name].ndim > 1
    )


def test_targets_start_as_copies_of_their_networks(paper):
    """A target with its own first weights, or one that shares its network's memory."""
    for agent, _ in paper:
        for name, target in agent.targets.items():
            for slow, fast in zip(target.state_dict().values(), getattr(agent, name).state_dict().values()):
                assert torch.equal(slow, fast) and slow.data_ptr() != fast.data_ptr()


@pytest.mark.parametrize("preset, obs, shape", [("fast", "pixels", (9, 64, 64)), ("ddpg2016", "state", (5,))])
def test_13_first_weights_follow_init_seed_alone(preset, obs, shape):
    """Weights that torch's global generator or the noise's seed can change."""
    weights = []
    for global_seed, init_seed, noise_seed in ((0, 1, 1), (5, 1, 2), (0, 2, 1)):
        torch.manual_seed(global_seed)
        agent = build(preset, obs, shape, 2, init_seed=init_seed, noise_seed=noise_seed)
        weights.append(torch.cat([parameter.flatten() for parameter in agent.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_classes_can_be_used_alone():
    """Actor and Critic built without an agent."""
    settings = compose(["preset=fast", "obs=state"]).agent
    features = torch.randn(4, 7)
    assert Critic(7, 2, settings)(features, Actor(7, 2, settings)(features)).shape == (settings.critics, 4)


def test_a_running_norm_has_the_mean_and_deviation_of_all_it_was_given():
    """Batches weighed unequally, a deviation of means that is left out, or numbers that are not clipped."""
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(size, 3, generator=draw) * 4 + shift for size, shift in ((5, 0.0), (64, 2.0), (31, -7.0))]
    norm = RunningNorm(3)
    for batch in batches:
        norm.learn(batch)
    everything = torch.cat(batches)
    torch.testing.assert_close(norm.mean, everything.mean(0))
    torch.testing.assert_close(norm.variance, everything.var(0, correction=0))
    expected = (everything - everything.mean(0)) / everything.std(0, correction=0)
    torch.testing.assert_close(norm(everything), expected.clamp(-5, 5), rtol=1e-4, atol=1e-4)
    assert norm(1e6 * torch.ones(1, 3)).tolist() == [[5, 5, 5]]


def test_a_constant_component_of_the_state_is_passed_as_zero():
    """A division by its deviation, which is 0."""
    norm = RunningNorm(2)
    norm.learn(torch.tensor([[3.0, 1.0], [3.0, 2.0]]))
    assert norm(torch.tensor([[3.0, 1.5]])).tolist() == [[0, 0]]


def test_a_spatial_softmax_tells_the_mean_place_of_each_map():
    """Rows for columns, a softmax over filters or the batch, a gain that is not applied, places in another order."""
    places = SpatialSoftmax()
    places.log_gain.data.fill_(math.log(2))
    maps = torch.rand(3, 5, 6, 8, generator=torch.Generator().manual_seed(0)) * 4
    told = places(maps)
    for row in range(3):
        for channel in range(5):
            weights = (2 * maps[row, channel]).exp().double().numpy()
            weights /= weights.sum()
            y = sum(weights[i, j] * (-5 + 10 * i / 5) for i in range(6) for j in range(8))
            x = sum(weights[i, j] * (-5 + 10 * j / 7) for i in range(6) for j in range(8))
            assert told[row, 2 * channel : 2 * channel + 2].tolist() == pytest.approx([y, x], abs=1e-4)


def test_places_have_a_trunk_of_their_own():
    """Places that the maps' trunk sees too, or a trunk that the one of the two does not reach."""
    agent = build("fast", "pixels", (9, 64, 64), 2, "agent.spatial_softmax=true")
    maps, filters, width = 2048, agent.settings.conv[-1][0], agent.settings.feature_dim
    features = agent.encoder(
        torch.randint(0, 255, (4, 9, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    assert features.shape == (4, maps + 2 * filters)
    torch.testing.assert_close(features[:, maps:], agent.encoder.softmax(features[:, :maps].view(4, filters, 8, 8)))
    for trunk in (agent.critic.trunk, agent.actor.policy[0]):
        latent = trunk(features)
        other = trunk(features + torch.cat([torch.zeros(maps), torch.ones(2 * filters)]))
        assert latent.shape == (4, 2 * width) and torch.equal(latent[:, :width], other[:, :width])
        assert not torch.isclose(latent[:, width:], other[:, width:]).any()
