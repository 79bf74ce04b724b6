"""Each fast path beside the plain one that it stands for."""

import copy
import dataclasses
import gc
import shutil

import numpy as np
import pytest
import torch
from small import command
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pixel_ddpg import presets
from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.networks import PLAIN, Encoder
from pixel_ddpg.agent.replay import Batch, Replay
from pixel_ddpg.config import Agent
from pixel_ddpg.runtime import layers, machine
from pixel_ddpg.runtime.graphs import GraphedPolicy, GraphedUpdate
from pixel_ddpg.runtime.layers import OPTIMIZED, Convolutions, Linear, Stack
from pixel_ddpg.runtime.learner import Learner, Policy
from pixel_ddpg.training import build

needs_onednn = pytest.mark.skipif(not layers.AVAILABLE, reason="this torch has no oneDNN: there is only the plain path")


# --- stacks of layers ---


def layers_of(kind: str, width: int) -> list[nn.Module]:
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
    plain = nn.Sequential(*layers_of(kind, width)).requires_grad_(trained)
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


STATE_ADDITIONS = "fast agent.state_norm=true agent.ensemble=mean agent.model_width=16"
PIXELS_ADDITIONS = (
    "fast agent.target_encoder=true agent.spatial_softmax=true agent.inverse_loss=1 agent.reconstruction_loss=1"
)
PRESETS = [
    ("fast", "pixels"), ("fast", "state"), ("drqv2", "pixels"), ("ddpg2016", "state"), ("ddpg2016", "pixels"),
    (PIXELS_ADDITIONS, "pixels"), (STATE_ADDITIONS, "state"),
]  # fmt: skip


def nearly_all_equal(one: torch.Tensor, other: torch.Tensor, most: float, spare: int) -> bool:
    """But for less than one in twenty and a few to spare, none of them by `most` or more.

    Adam turns rounding errors of tiny gradients into whole steps, so weights may differ by a few of those.
    """
    far = (one - other).abs()
    return (far > 1e-5).sum() - spare < 0.05 * far.numel() and far.max() < most


@needs_onednn
@pytest.mark.parametrize("small, spare", [(0, 2), (layers.SMALL, 0)])
@pytest.mark.parametrize("preset,obs", PRESETS)
def test_updates_are_those_of_the_plain_path(preset, obs, small, spare, monkeypatch):
    """Everything together, as the presets have it: losses and weights after some updates."""
    monkeypatch.setattr(layers, "SMALL", small)
    settings = presets.compose([*f"preset={preset}".split(), f"obs={obs}", "env.size=64", "agent.hidden=[40,30]"])
    shape = (9, 64, 64) if obs == "pixels" else (9,)
    draws = torch.Generator().manual_seed(2)

    def observation() -> torch.Tensor:
        if obs == "pixels":
            return torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=draws)
        return torch.randn(8, *shape, generator=draws)

    rows = [torch.rand(8, 2, generator=draws) * 2 - 1, torch.rand(8, generator=draws), torch.full((8,), 0.9)]
    first, second, steps = observation(), observation(), settings.replay.n_step
    actions = torch.rand(8, steps, 2, generator=draws) * 2 - 1
    rewards, following = torch.rand(8, steps, generator=draws), torch.stack([first] * (steps - 1) + [second], 1)
    whole = (torch.arange(8) > 1)[:, None].expand(-1, steps)
    batch = Batch(first, *rows, second, actions, rewards, whole, following, first)
    results = []
    for kind in (PLAIN, OPTIMIZED):
        agent = DDPG(shape, 2, settings.agent, settings.noise, n_step=steps, layers=kind)
        losses = [agent.update(batch) for _ in range(3)]
        results.append(({name: torch.stack([loss[name] for loss in losses]) for name in losses[0]}, agent.state_dict()))
    (plain_losses, plain), (fast_losses, fast) = results
    for name in plain_losses:
        torch.testing.assert_close(fast_losses[name], plain_losses[name], rtol=2e-3, atol=2e-4)
    rate = max(settings.agent.actor_lr, settings.agent.critic_lr)
    for name in plain:
        assert nearly_all_equal(fast[name], plain[name], 7 * rate, spare), name


@needs_onednn
@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_gradients_are_as_near_to_float64s_as_the_plain_paths(obs, monkeypatch):
    """Rounding that is coarser, or that leans to one side, which thousands of updates add up."""
    monkeypatch.setattr(layers, "SMALL", 0)
    agent, replay = small_pair("fast", obs, "cpu", 40, hidden="[256,256]")
    batch = replay.sample(64)

    def gradients(fast: bool, agent: DDPG, batch: Batch) -> torch.Tensor:
        monkeypatch.setattr(layers, "AVAILABLE", fast)
        agent = copy.deepcopy(agent)  # losses keep running means
        features = agent.encoder(batch.observation)
        averages = agent.decoder.learn(batch.unshifted) if agent.decoder else None
        loss, auxiliary, *_ = agent.critic_loss(features, batch, None, averages)
        (agent._add_auxiliary(loss, auxiliary) + agent._add_penalty(*agent.actor_loss(features))).backward()
        found = [parameter.grad.double().flatten() for parameter in agent.parameters() if parameter.requires_grad]
        return torch.cat(found)

    plain, fast = gradients(False, agent, batch), gradients(True, agent, batch)
    agent.double()
    for network in agent.modules():
        if isinstance(network, Convolutions):
            network._dtype = torch.float64
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    wide = {name: tensor.double() for name, tensor in vars(batch).items() if tensor.is_floating_point()}
    exact = gradients(False, agent, dataclasses.replace(batch, **wide))
    assert (fast - exact).norm() < 3 * (plain - exact).norm() < 1e-4 * exact.norm()
    assert abs((fast - exact) @ exact) < 1e-5 * exact @ exact


# --- precision ---


def half(settings: Agent) -> Agent:
    return dataclasses.replace(settings, precision="bfloat16")


@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_onednn), False])
def test_an_encoder_in_bfloat16_is_that_of_float32_rounded(fast, monkeypatch):
    """A layer or gradient left out, weights that are rounded for good, features that critics get as bfloat16."""
    monkeypatch.setattr(layers, "AVAILABLE", fast)
    settings = presets.compose(["preset=fast", "obs=pixels"]).agent
    torch.manual_seed(0)
    exact = Encoder(9, settings, OPTIMIZED).to(memory_format=torch.channels_last)
    rounded = Encoder(9, half(settings), OPTIMIZED).to(memory_format=torch.channels_last)
    rounded.load_state_dict(exact.state_dict())
    pictures = torch.randint(0, 256, (8, 9, 64, 64), dtype=torch.uint8)
    for encoder in (exact, rounded):
        features = encoder(pictures)
        assert features.dtype == torch.float32
        (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
    assert far(rounded(pictures), exact(pictures)) < 0.03
    assert not torch.equal(rounded(pictures), exact(pictures))
    for one, other in zip(rounded.parameters(), exact.parameters()):
        assert one.dtype == one.grad.dtype == torch.float32 and torch.equal(one, other)
        assert far(one.grad, other.grad) < 0.15


@needs_onednn
def test_a_processor_without_bfloat16_has_torchs_own_layers(monkeypatch):
    """A run of bfloat16 that another machine cannot even play."""
    monkeypatch.setattr(layers, "bfloat16_available", lambda: False)
    encoder = Encoder(3, half(presets.compose(["preset=fast", "obs=pixels"]).agent), OPTIMIZED)
    features = encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert features.grad_fn is not None and "_NodeBackward" not in str(graph_of(features))


def graph_of(tensor: torch.Tensor) -> list[str]:
    """Names of all autograd nodes behind a tensor."""
    names, waiting = [], [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        names.append(node.name())
        waiting += [below for below, _ in node.next_functions if below is not None]
    return names


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    """Distance of one vector from another, in lengths of this."""
    return ((one - other).norm() / other.norm()).item()


def test_a_gpu_is_told_its_precision():
    """TF32 where float32 was asked for, as torch has it in convolutions; settings that torch cannot read back."""
    for precision, tf32 in (("tf32", True), ("bfloat16", True), ("float32", False)):
        machine.use_precision(precision)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.parametrize("flags, wanted", [("fpu avx512_bf16", torch.bfloat16), ("fpu avx512f", torch.float32)])
def test_precision_auto_is_what_the_processor_multiplies_in(flags, wanted, monkeypatch):
    """bfloat16 that a laptop computes in software, or float32 where half of the bytes would do."""
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: flags)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    settings = presets.compose(["task=cheetah-run", "obs=pixels", "agent.precision=auto"])
    assert build.make_agent(settings, torch.device("cpu")).encoder.convolutions._dtype == wanted
    settings.agent.precision = "float32"
    assert build.make_agent(settings, torch.device("cpu")).encoder.convolutions._dtype == torch.float32


def test_agents_begin_the_same_on_every_processor(monkeypatch):
    """Weights whose names, or first values, depend on who made the processor: a checkpoint that stays on one."""
    settings = presets.compose(["task=reacher-easy", "obs=pixels", "agent.precision=float32"])
    agents = []
    for intel in (True, False):
        monkeypatch.setattr(machine, "is_intel", lambda intel=intel: intel)
        agents.append(build.make_agent(settings, torch.device("cpu")))
    one, other = agents
    assert [isinstance(agent.critic.estimates[0].after, Stack) for agent in agents] == [False, True]
    assert one.tensors().keys() == other.tensors().keys()
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


# --- the update as a graph ---


class Recorder(TorchDispatchMode):
    """Every operation with its shapes; refuses those that make the CPU wait for a number."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), operation
        result = operation(*args, **(kwargs or {}))
        shapes = [tuple(x.shape) for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
        self.operations.append((str(operation), *shapes))
        return result


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset,obs", PRESETS)
def test_an_update_can_be_captured(preset, obs, precision, monkeypatch):
    """A number that the CPU must know, a shape or an operation that depends on data: no graph could hold it."""
    monkeypatch.setattr(layers, "AVAILABLE", False)
    agent, replay = small_pair(preset, obs, "cpu", 40, precision)
    recorded = []
    for _ in range(3):
        replay.publish()
        with Recorder() as recorder:
            agent.update(replay.draw(8))
        recorded.append(recorder.operations)
        for _ in range(7):
            add_steps(replay, 7)
    assert recorded[0] == recorded[1] == recorded[2] and len(recorded[0]) > 50


def small_pair(preset, obs, device, steps, precision="float32", hidden="[40,30]", compiled=None):
    """An agent of fast layers and a replay with some transitions."""
    words = [*f"preset={preset}".split(), f"obs={obs}", "env.size=64"]
    words += [f"agent.hidden={hidden}", f"agent.precision={precision}"]
    settings = presets.compose(words)
    shape = (3 * settings.env.renderings, 64, 64) if obs == "pixels" else (9,)
    stack = settings.env.frame_stack
    steps_ahead = settings.replay.n_step
    agent = DDPG((shape[0] * stack, *shape[1:]), 2, settings.agent, settings.noise, n_step=steps_ahead,
                 layers=OPTIMIZED, compiled=compiled, device=device)  # fmt: skip
    options = {"frame_stack": stack, "n_step": steps_ahead, "random_shift": settings.agent.random_shift}
    options |= {"unshifted": settings.agent.reconstruction_loss > 0, "following": settings.agent.model_width > 0}
    replay = Replay(shape, 2, 60, device=device, compiled=compiled, **options)
    add_steps(replay, steps)
    return agent, replay


def compile_part(part):
    return torch.compile(part, dynamic=False)


def add_steps(replay, steps):
    """Whole episodes of five steps and one that continues."""
    random = np.random.default_rng(replay.streams[0].next_slot)
    shape = replay.elements.shape[1:]

    def element():
        return random.integers(0, 256, shape, np.uint8) if len(shape) == 3 else random.random(shape, np.float32)

    for number in range(steps):
        if number % 5 == 0:
            replay.begin(element())
        replay.add(element(), random.uniform(-1, 1, 2).astype(np.float32), random.random(), 1.0, number % 5 == 4)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "preset,obs,precision,compiled",
    [
        *((*pair, precision, False) for precision in ("float32", "bfloat16") for pair in PRESETS),
        *(("drqv2", "pixels", precision, True) for precision in ("float32", "bfloat16")),
    ],
)
def test_a_graph_does_what_eager_updates_do(preset, obs, precision, compiled):
    """Weights that a warm-up moved, random numbers that a graph repeats, transitions that it never sees."""
    if compiled and not shutil.which("gcc"):
        pytest.skip("torch.compile needs a C compiler here")
    results, streams = [], []
    for graphed in (False, True):
        torch.manual_seed(0)
        kernels = compile_part if graphed and compiled else None
        agent, replay = small_pair(preset, obs, "cuda", 40, precision, compiled=kernels)
        graph = GraphedUpdate(agent, replay, 8) if graphed else None
        losses = []
        for _ in range(5):
            replay.publish()
            losses.append(graph() if graph else agent.update(replay.draw(8)))
            add_steps(replay, 7)
        results.append((losses, agent.tensors()))
        streams.append([generator.get_state() for generator in (replay.draws, replay.shifts, agent.noise_draws)])
    (eager_losses, eager), (graph_losses, graphed) = results
    tolerance = 1e-2 if precision == "bfloat16" else 1e-4
    for mine, yours in zip(streams[0], streams[1]):
        assert torch.equal(mine, yours)
    for one, other in zip(eager_losses, graph_losses):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance / 10)
    assert all(torch.isfinite(tensor).all() for tensor in graphed.values() if tensor.is_floating_point())
    rate = max(agent.settings.actor_lr, agent.settings.critic_lr)
    for name in eager:
        if name.startswith("network."):
            assert nearly_all_equal(eager[name], graphed[name], 11 * rate, 2), name


@pytest.mark.cuda
def test_a_graph_keeps_what_it_reads():
    """Memory that another tensor has been given, once nobody else held the replay."""
    losses = []
    for forgotten in (False, True):
        agent, replay = small_pair("fast", "state", "cuda", 40)
        graph = GraphedUpdate(agent, replay, 8)
        if forgotten:
            del agent, replay
            gc.collect()
            _others = [torch.full((size,), 10**9, device="cuda") for size in (2, 8, 64, 512, 4096) for _ in range(99)]
        losses.append([graph()["critic_loss"].item() for _ in range(3)])
    assert losses[0] == losses[1]


def eager(agent, observations):
    return agent.actions(torch.as_tensor(observations, device=agent.device)).cpu().numpy()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset,obs", PRESETS)
def test_a_graphed_policy_acts_as_the_agent_does(preset, obs, precision):
    """Weights of the day it was captured; observations of another call, or of another number of environments."""
    agent, replay = small_pair(preset, obs, "cuda", 40, precision)
    policy = GraphedPolicy(agent)
    for number in (1, 3, 1, 3):
        observations = replay.sample(number).observation.cpu().numpy()
        np.testing.assert_allclose(policy(observations), eager(agent, observations), atol=1e-5)
        agent.update(replay.sample(8))


@pytest.mark.cuda
@pytest.mark.skipif(not shutil.which("gcc"), reason="torch.compile needs a C compiler here")
def test_a_compiled_policy_acts_as_the_agent_does():
    """A graph of other kernels, or of those for a batch of updates."""
    agent, replay = small_pair("drqv2", "pixels", "cuda", 40)
    observations = replay.sample(3).observation.cpu().numpy()
    plain = eager(agent, observations)
    agent.encoder.compile(dynamic=False)
    np.testing.assert_allclose(GraphedPolicy(agent)(observations), plain, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("obs", ["pixels", "state"])
def test_a_gpu_is_never_waited_for(obs):
    """A copy or a number for which the CPU stops until all updates before it are done."""
    agent, replay = small_pair("drqv2", obs, "cuda", 40)
    graph = GraphedUpdate(agent, replay, 8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for update in (graph, lambda: agent.update(replay.draw(8))):
            add_steps(replay, 7)
            replay.publish()
            update()
            agent.noise_scale.fill_(0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_channels_beyond_a_layers_own_change_nothing():
    """Padding, which bfloat16 on a GPU brings, that has weights."""
    torch.manual_seed(0)
    settings = presets.compose(["preset=fast", "obs=pixels"]).agent
    convolutions = Convolutions([nn.Conv2d(9, 4, 3, 2, 1), nn.ReLU()], settings)
    x = torch.randn(2, 16, 8, 8)
    expected = nn.Sequential(*convolutions)(x[:, :9].contiguous())
    torch.testing.assert_close(convolutions._with_more_channels(x, 7), expected)


def test_a_product_of_half_precision_is_nearly_the_whole_one():
    """A result, or gradients of the weights, that stay in half precision."""
    torch.manual_seed(0)
    layer, x = Linear(50, 7), torch.randn(8, 50).bfloat16()
    y = layer(x)
    y.square().sum().backward()
    half = [y, layer.weight.grad, layer.bias.grad]
    layer.zero_grad()
    plain = functional.linear(x.float(), layer.weight, layer.bias)
    plain.square().sum().backward()
    for mine, yours in zip(half, [plain, layer.weight.grad, layer.bias.grad]):
        assert mine.dtype == torch.float32 and far(mine, yours) < 0.01


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("preset, obs", [("fast", "state"), (STATE_ADDITIONS, "state")])
def test_compiled_losses_are_eager_ones(preset, obs, monkeypatch):
    """A gradient that compiling loses, weights that it keeps; a break of the graph, as at a draw from a generator."""
    monkeypatch.setattr(layers, "AVAILABLE", False)
    results = []
    for compiled in (None, compile_part):
        agent, replay = small_pair(preset, obs, "cpu", 40, compiled=compiled)
        agent.noise_scale.fill_(0.5)
        torch._dynamo.utils.counters.clear()
        losses = [agent.update(replay.sample(8)) for _ in range(3)]
        assert not torch._dynamo.utils.counters["graph_break"]
        results.append([loss[name] for loss in losses for name in loss])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# --- the learner ---


def test_a_learner_is_a_draw_and_an_update(monkeypatch):
    """A batch of another size, or one that is moved for nothing; a policy that is not the agent's."""
    settings = presets.compose(["obs=state", "replay.batch_size=8"])
    pairs = [small_pair("fast", "state", "cpu", 40) for _ in range(2)]
    (agent, replay), (other, other_replay) = pairs
    learn = Learner(settings, agent, replay)
    for each in (replay, other_replay):
        each.publish()
    assert learn() == other.update(other_replay.draw(8))
    observations = np.random.default_rng(0).standard_normal((3, 9), np.float32)
    actions = Policy(settings, agent)(observations)
    np.testing.assert_allclose(actions, [agent.act(each) for each in observations], atol=1e-6)


@pytest.mark.parametrize("word", ["train.cuda_graph=true", "train.compile=true", "agent.precision=tf32"])
def test_what_only_a_gpu_does_is_refused_in_one_line(word, tmp_path):
    """A CUDA error, after minutes of random steps; an option that does nothing."""
    code, _, err = command("pixel_ddpg.run", word, "device=cpu", "wandb=off", f"run_dir={tmp_path}/run")
    assert code == 2 and f"{word} is for a GPU" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
