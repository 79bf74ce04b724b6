"""What an agent sees of a task: action repeat, frames, stacks, endings, pictures, and Gymnasium's interface."""

import concurrent.futures
import copy
import dataclasses
import errno
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import types
import warnings

import av
import dm_env
import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker

import pixel_ddpg
from pixel_ddpg import config, presets
from pixel_ddpg.envs import episodes, rendering, tasks, video
from pixel_ddpg.envs.environment import Environment, Step, element_shape, observation_shape
from pixel_ddpg.errors import UserError
from pixel_ddpg.gym import GymEnvironment, make_env

NAMES = list(tasks.CATALOGUE)
NEEDS_BOX2D = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="needs pip install box2d pygame")
EACH_TASK = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[NEEDS_BOX2D] * (name == "torcs")) for name in NAMES]
)
EACH_OBS = pytest.mark.parametrize("obs", ["state", "pixels"])
SMALL = {"size": 16, "shadow_size": 16}
ZERO = np.zeros(1, np.float32)


def make(name: str, obs: str = "state", seed: int = 0, limit: int | None = None, **options) -> Environment:
    """An environment, small if nothing else is asked for, with episodes of `limit` frames."""
    options = {"action_repeat": 1, "frame_stack": 1, **SMALL, **options}
    environment = Environment(tasks.find(name), obs, config.Env(**options), seed)
    if limit:
        environment.task_env._step_limit = limit
    return environment


def make_gym(name: str, obs: str = "state", limit: int | None = None, **options) -> GymEnvironment:
    """The same with Gymnasium's interface."""
    options = {"action_repeat": 1, "frame_stack": 1, **SMALL, **options}
    environment = GymEnvironment(tasks.find(name), obs, config.Env(**options), 0)
    if limit:
        environment.environment.task_env._step_limit = limit
    return environment


def random_actions(environment: Environment, count: int, seed: int = 0) -> list[np.ndarray]:
    shape = (count, environment.task.action_dim)
    return list(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def advance(environment: Environment, actions) -> list[Step]:
    """A step for each action, or a reset where an episode has ended."""
    return [environment.reset() if environment.over else environment.step(action) for action in actions]


def play(environment: Environment, actions) -> list[Step]:
    """The first step of an episode and one for each action."""
    return [environment.reset()] + [environment.step(action) for action in actions]


def assert_same(one: list[Step], other: list[Step]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other):
        for key in ("reward", "discount", "last", "frames"):
            assert getattr(first, key) == getattr(second, key)
        np.testing.assert_array_equal(first.observation, second.observation, strict=True)
        np.testing.assert_array_equal(first.element, second.element, strict=True)


def applied_controls(environment: Environment, action: np.ndarray) -> np.ndarray:
    """What reaches the task for one action of the agent."""
    seen, step = [], environment.task_env.step

    def spy(control):
        seen.append(control)
        return step(control)

    environment.task_env.step = spy
    environment.reset()
    environment.step(action)
    return seen[0]


def python(code: str, **variables) -> subprocess.CompletedProcess:
    """A fresh interpreter; a variable of None is unset."""
    env = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


# --- both interfaces, on every task ---


@pytest.fixture(scope="module", params=[(name, obs) for name in NAMES for obs in ("state", "pixels")], ids="-".join)
def small(request) -> GymEnvironment:
    """Each task once, for the two tests below; a GL context is dear."""
    name, obs = request.param
    environment = make_gym(name, obs, action_repeat=2, frame_stack=2)
    environment.spec = gymnasium.spec(f"pixel_ddpg/{name}-{obs}-v0")
    return environment


def test_a_step_is_what_it_says(small, monkeypatch):
    """Shapes and types of the specification; an episode that does not begin, continue and end as it must."""
    environment = small.environment
    monkeypatch.setattr(environment.task_env, "_step_limit", 3)
    options = config.Env(action_repeat=2, frame_stack=2, **SMALL)
    shapes = [shape(environment.task, environment._obs, options) for shape in (observation_shape, element_shape)]
    for _ in range(2):
        steps = play(environment, random_actions(environment, 2))
        assert [step.frames for step in steps] == [0, 2, 3] and [step.last for step in steps] == [False, False, True]
        assert steps[0].reward == 0 and all(0 <= step.discount <= 1 for step in steps)
        for step in steps:
            assert [step.observation.shape, step.element.shape] == shapes
            assert step.observation.dtype == step.element.dtype == small.observation_space.dtype
            np.testing.assert_array_equal(step.observation[-len(step.element) :], step.element)
        with pytest.raises(ValueError, match="reset"):
            environment.step(random_actions(environment, 1)[0])


@NEEDS_BOX2D
def test_the_race_starts_where_warnings_are_errors():
    """A crash of the interpreter in Box2D's import."""
    program = "import pixel_ddpg; pixel_ddpg.make_env('torcs', obs='state').reset()"
    warned = "import warnings; warnings.simplefilter('error'); "
    subprocess.run([sys.executable, "-c", "import torch, dm_control.suite, gymnasium; " + warned + program], check=True)


def check(environment: gymnasium.Env, **skips) -> None:
    """Gymnasium's checker, whose warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*(minimum value is -infinity|maximum value is infinity)")
        env_checker.check_env(environment, **skips)


def test_passes_gymnasiums_checker(small):
    """Observations outside their space, resets that ignore the seed, buffers that are used twice, and so on."""
    check(small, skip_render_check=True, skip_close_check=True)


@EACH_OBS
def test_passes_all_of_gymnasiums_checker(obs):
    """As above, with gymnasium.make, rendering and closing."""
    check(gymnasium.make(f"pixel_ddpg/cartpole-swingup-{obs}-v0", render_mode="rgb_array", **SMALL).unwrapped)


def test_all_tasks_are_registered():
    """A task that gymnasium.make does not know."""
    ids = {f"pixel_ddpg/{name}-{obs}-v0" for name in NAMES for obs in ("pixels", "state")}
    assert ids == {name for name in gymnasium.registry if name.startswith("pixel_ddpg/")}


def test_a_specification_makes_the_same_with_other_options():
    """A limit in steps, which cuts the episodes of a smaller action repeat."""
    environment = gymnasium.make("pixel_ddpg/cartpole-swingup-state-v0", action_repeat=50)
    for made, steps in ((environment, 20), (gymnasium.make(environment.spec, action_repeat=25), 40)):
        made.reset(seed=0)
        ends = [made.step(np.zeros(1, np.float32))[2:4] for _ in range(steps)]
        assert not any(sum(ends[:-1], ())) and ends[-1] == (False, True)


def test_gymnasium_make_honours_options():
    """Options that gymnasium.make drops on the way."""
    environment = gymnasium.make("pixel_ddpg/cheetah-run-pixels-v0", size=24, frame_stack=2, render_mode="rgb_array")
    assert environment.observation_space == gymnasium.spaces.Box(0, 255, (6, 24, 24), np.uint8)
    environment.reset(seed=1)
    picture = environment.render()
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8 and picture.std() > 1


# --- make_env ---


def test_make_env_takes_the_presets_options():
    """An environment unlike the one that the preset trains with."""
    assert make_env("cartpole-swingup", "pixels").environment.step_seconds == pytest.approx(0.08)
    assert make_env("cartpole-swingup", "state").environment.step_seconds == pytest.approx(0.02)
    assert make_env("cartpole-swingup", "state", preset="ddpg2016").environment.step_seconds == pytest.approx(0.01)
    paper = make_env("cartpole-swingup", preset="ddpg2016")
    assert paper.observation_space.shape == (9, 64, 64)
    assert paper.environment.step_seconds == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"size": 16}, (9, 16, 16)),
        ({"size": 16, "frame_stack": 1}, (3, 16, 16)),
        ({"size": 16, "frame_stack": 2, "renderings": 2}, (12, 16, 16)),
    ],
)
def test_make_env_honours_options_of_pixels(options, shape):
    """An option that changes nothing."""
    environment = pixel_ddpg.make_env("cartpole-swingup", **options)
    assert environment.reset()[0].shape == environment.observation_space.shape == shape


def test_make_env_honours_repeat_camera_and_quality():
    """An option that changes nothing."""
    assert make_env("cheetah-run", "state", action_repeat=5).environment.step_seconds == pytest.approx(0.05)
    assert make_env("cheetah-run", "state", frame_stack=3).observation_space.shape == (51,)
    pictures = [
        make_env("cheetah-run", seed=1, **options).reset()[0]
        for options in ({}, {"camera": 0}, {"camera": 1}, {"shadow_size": 8}, {"slices": 28})
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[3])
    assert not np.array_equal(pictures[0], pictures[4])


def test_without_a_seed_each_environment_has_its_own():
    """gymnasium.make_vec of environments that all begin alike."""
    starts = gymnasium.make_vec("pixel_ddpg/cartpole-swingup-state-v0", num_envs=3).reset()[0]
    assert len({tuple(start) for start in starts.tolist()}) == 3


def test_a_step_outside_an_episode_is_refused():
    """A reward of None, or an episode that begins with a step."""
    environment = make_env("cartpole-swingup", "state", seed=0, action_repeat=500)
    for _ in range(2):
        with pytest.raises(gymnasium.error.ResetNeeded):
            environment.step(ZERO)
        environment.reset()
        assert not environment.step(ZERO)[3] and environment.step(ZERO)[3]


def test_render_fps_is_that_of_the_task():
    """Gymnasium's videos at another speed than the simulated one."""
    for repeat, fps in ((2, 50), (8, 12.5), (200, 0.5)):
        assert make_env("cartpole-swingup", "state", action_repeat=repeat).metadata["render_fps"] == fps


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("cheeta-run", {}, "cheetah-run"),
        ("cheetah-run", {"sise": 3}, "did you mean size"),
        ("cheetah-run", {"action_repeats": 3}, "did you mean action_repeat"),
        ("cheetah-run", {"obs": "pixel"}, "did you mean pixels"),
        ("cheetah-run", {"preset": "drq"}, "did you mean drqv2"),
        ("cheetah-run", {"size": "big"}, "env.size"),
        ("cheetah-run", {"frame_stack": 0}, "env.frame_stack=0"),
        ("cheetah-run", {"seed": -1}, "seed=-1"),
        ("cheetah-run", {"renderings": 3}, "env.renderings=3"),
    ],
)
def test_make_env_refuses_what_does_not_fit(task, options, words):
    """A mistyped option that is silently ignored, or that ends in a traceback."""
    with pytest.raises(UserError, match=words) as caught:
        make_env(task, **options)
    assert "\n" not in str(caught.value)


@EACH_OBS
def test_camera_out_of_range(obs):
    """A camera that is not there; from state it would only be missed by the video, at the end of training."""
    with pytest.raises(UserError, match=r"env\.camera=2: this task has cameras 0 to 1"):
        make("cartpole-swingup", obs, camera=2)


def test_size_beyond_the_framebuffer():
    """mujoco's ValueError of six lines (the suite's framebuffers are 640x480) instead of a picture."""
    picture = make("cartpole-swingup", "pixels", size=512).reset().observation
    assert picture.shape[1:] == (512, 512) and picture[:, -40:, -40:].std() > 1


def test_video_beyond_the_framebuffer(tmp_path):
    """A video size that fails with a traceback, at the end of training and before its last checkpoint."""
    environment = make("cartpole-swingup", "pixels", limit=2)
    before = environment.reset().observation
    episodes.film(environment, lambda observation: ZERO, tmp_path / "a.mp4", 512)
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (512, 512)
    assert environment.reset().observation.shape == before.shape


def test_any_seed_that_gymnasium_allows():
    """A seed of 2**32 or more that RandomState refuses, or that begins as a smaller one does; numpy's integers."""
    environment = make_env("cartpole-swingup", "state", seed=2**32)
    seeds = [5, 2**32 + 5, 2**40 + 5, 2**64 + 5]
    first, again = ([environment.reset(seed=seed)[0] for seed in seeds] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len({state.tobytes() for state in first}) == len(seeds)
    np.testing.assert_array_equal(environment.reset(seed=np.int64(5))[0], first[0])
    begun = [make_env("cartpole-swingup", "state", seed=seed).reset()[0].tobytes() for seed in (0, 2**32)]
    assert begun[0] != begun[1]


# --- action repeat and endings ---


class Counting(dm_env.Environment):
    """A fake task: frame k pays k, and has its own discount; it lasts `length` frames."""

    def __init__(self, length: int, discounts=None):
        self._length, self._discounts = length, discounts or [1.0] * length
        self.task, self.frame = self, 0
        self.physics = types.SimpleNamespace(model=types.SimpleNamespace(ncam=1))
        self.random = np.random.RandomState(0)

    def reset(self):
        self.frame = 0
        return dm_env.restart({"frame": np.zeros(1)})

    def step(self, action):
        assert self.frame < self._length, "stepped beyond the last frame"
        self.frame += 1
        kind = dm_env.StepType.LAST if self.frame == self._length else dm_env.StepType.MID
        return dm_env.TimeStep(
            kind, float(self.frame), self._discounts[self.frame - 1], {"frame": np.full(1, self.frame, float)}
        )

    def observation_spec(self):
        return {"frame": dm_env.specs.Array((1,), float)}

    def action_spec(self):
        return dm_env.specs.BoundedArray((1,), float, -1, 1)


@dataclasses.dataclass(frozen=True)
class FakeTask(tasks.Task):
    """A catalogue entry for Counting."""

    discounts: tuple[float, ...] = ()

    def load(self, seed: int):
        return Counting(round(self.time_limit), self.discounts)


def make_fake(length: int, discounts=(), **options) -> Environment:
    task = FakeTask("fake-task", "test", "test", (), False, 1, 1, 1, 1.0, length, 0, discounts)
    return Environment(task, "state", config.Env(**{"frame_stack": 1, **options}), 0)


def test_7_action_repeat_sums_rewards_and_stops_at_the_last_frame():
    """Silent bug 7: 10 frames with repeat 4 are steps of 4, 4 and 2 frames."""
    environment = make_fake(10, action_repeat=4)
    steps = play(environment, [ZERO] * 3)
    assert [step.reward for step in steps] == [0, 1 + 2 + 3 + 4, 5 + 6 + 7 + 8, 9 + 10]
    assert [step.observation[0] for step in steps] == [0, 4, 8, 10]
    assert [step.last for step in steps] == [False, False, False, True]
    assert steps[-1].frames == 10


def test_7_a_real_episode_has_all_its_frames_whatever_the_repeat():
    """Silent bug 7 on a real task: 1000 frames with repeat 7, the last step holds 6 of them."""
    plain, repeated = make("cartpole-swingup"), make("cartpole-swingup", action_repeat=7)
    held = random_actions(plain, 143)
    one = play(plain, np.repeat(held, 7, axis=0)[:1000])
    other = play(repeated, held)
    assert one[-1].last and other[-1].last and other[-1].frames == 1000
    assert [step.last for step in other].count(True) == 1
    np.testing.assert_array_equal(one[-1].observation, other[-1].observation)
    rewards = [sum(step.reward for step in one[1 + i : 8 + i]) for i in range(0, 1000, 7)]
    np.testing.assert_allclose([step.reward for step in other[1:]], rewards, rtol=1e-12)


def test_discounts_are_multiplied():
    """The discount of a step is that of all its frames, not of the last one."""
    steps = play(make_fake(6, (1.0, 0.5, 0.5, 1.0, 0.5, 1.0), action_repeat=3), [ZERO] * 2)
    assert [step.discount for step in steps] == [1, 0.25, 0.5]
    ended = play(make_fake(3, (1.0, 1.0, 0.0), action_repeat=3), [ZERO])
    assert ended[-1].discount == 0.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reward": float("nan")}, "the reward of fake-task is nan"),
        ({"observation": {"frame": np.full(1, np.inf)}}, "an observation of fake-task is not finite"),
    ],
)
def test_a_reward_or_observation_that_is_not_finite_is_refused(given, said):
    """NaN that is found in a loss, thousands of frames later, and blamed on the learning rate."""
    environment = make_fake(10, action_repeat=2)
    environment.reset()
    step = environment._task_step
    environment._task_step = lambda action: step(action)._replace(**given)
    with pytest.raises(UserError, match=f"{said}, 2 frames into an episode"):
        environment.step(ZERO)
    with pytest.raises(ValueError, match="call reset"):
        environment.step(ZERO)


def test_only_failures_of_gl_are_told_as_such():
    """'no pictures with MUJOCO_GL=...' about an environment that draws nothing."""
    environment = make("cheetah-run")

    def fail():
        raise ValueError("something else")

    environment.task_env.reset = fail
    with pytest.raises(ValueError, match="something else"):
        environment.reset()


def test_a_mistake_in_a_task_is_told_as_it_is(monkeypatch):
    """'no pictures with MUJOCO_GL=...' to whoever writes a task whose builder fails."""

    def fail(task):
        raise KeyError("my_task")

    monkeypatch.setattr(tasks.Task, "_build", fail)
    with pytest.raises(KeyError, match="my_task"):
        tasks.find("cheetah-run").load(0)


def test_an_action_that_its_caller_uses_again_is_kept():
    """One buffer for all actions: an episode that is played again with the last of them."""
    environment, buffer = make("pendulum-swingup"), np.empty(1, np.float32)
    environment.reset()
    for value in (0.5, -0.5, 1.0):
        buffer[:] = value
        environment.step(buffer)
    assert environment.state_dict()["actions"] == [[0.5], [-0.5], [1.0]]


def test_a_simulation_that_diverges_says_so():
    """dm_control's PhysicsError as a traceback in the middle of a run."""
    environment = make("cheetah-run")
    environment.reset()
    environment.task_env.physics.data.qpos[:] = np.nan
    with pytest.raises(UserError, match="simulation of cheetah-run diverged") as told:
        environment.step(np.zeros(6, np.float32))
    assert told.value.code == 1
    with pytest.raises(ValueError, match="call reset"):  # mujoco has begun again, from a state of its own
        environment.step(np.zeros(6, np.float32))


@pytest.mark.parametrize("name", ["cheetah-run", pytest.param("torcs", marks=NEEDS_BOX2D)])
def test_an_action_of_another_shape_or_that_is_not_finite_is_refused(name):
    """One number that becomes six equal torques; NaN in an error of the game."""
    environment = make(name)
    environment.reset()
    with pytest.raises(UserError, match=r"has shape \(\d,\), not \(1,\)"):
        environment.step(np.array([0.5]))
    with pytest.raises(UserError, match=f"action of {name} is not finite"):
        environment.step(np.full(environment.task.action_dim, np.nan))


@NEEDS_BOX2D
def test_a_picture_of_torcs_needs_a_track():
    """The game's own AttributeError."""
    environment = pixel_ddpg.make_env("torcs", obs="state", render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        environment.render()


@EACH_TASK
def test_1_a_time_limit_is_a_truncation(name):
    """Silent bugs 1 and 2: running out of time must not look like a termination."""
    environment = make_gym(name, limit=4, action_repeat=3)
    environment.reset()
    action = np.zeros(environment.action_space.shape, np.float32)
    assert environment.step(action)[2:4] == (False, False)
    _, _, terminated, truncated, info = environment.step(action)
    assert (terminated, truncated, info["discount"]) == (False, True, 1.0)


@pytest.mark.parametrize("name", ["lqr-lqr_2_1", "lqr-lqr_6_2"])
def test_1_lqr_terminates(name):
    """Silent bug 1: the one termination of the suite has discount 0.0, which is falsy."""
    environment = make_gym(name, action_repeat=4)
    environment.reset()
    with environment.environment.task_env.physics.reset_context():
        pass  # at rest, where the task ends
    action = np.zeros(environment.action_space.shape, np.float32)
    _, _, terminated, truncated, info = environment.step(action)
    assert (terminated, truncated, info["discount"]) == (True, False, 0.0)


# --- stacks and renderings ---


def stacked(elements: list[np.ndarray], depth: int) -> list[np.ndarray]:
    """The naive reference for one episode: the last `depth` elements, oldest first."""
    padded = [elements[0]] * (depth - 1) + elements
    return [np.concatenate(padded[i : i + depth]) for i in range(len(elements))]


@EACH_OBS
def test_5_stack_is_oldest_first_and_forgets_the_last_episode(obs):
    """Silent bugs 5 and 7: a wrong order, a reset that does not repeat the first frame, a frame of the last episode."""
    plain, deep = (make("cheetah-run", obs, limit=8, action_repeat=2, frame_stack=depth) for depth in (1, 3))
    actions = random_actions(plain, 4)
    for _ in range(2):
        expected = stacked([step.observation for step in play(plain, actions)], 3)
        seen = [step.observation for step in play(deep, actions)]
        np.testing.assert_array_equal(seen, expected)
        assert not np.array_equal(np.split(seen[-1], 3)[0], np.split(seen[-1], 3)[1])


def test_observations_are_not_overwritten():
    """A buffer that is used again changes an observation which somebody still holds."""
    environment = make("cheetah-run", "pixels", frame_stack=1)
    steps = play(environment, random_actions(environment, 3))
    copies = [step.observation.copy() for step in steps]
    play(environment, random_actions(environment, 3))
    for step, before in zip(steps, copies):
        np.testing.assert_array_equal(step.observation, before)


@pytest.mark.parametrize(("repeat", "limit"), [(3, 9), (6, 12), (3, 7), (6, 9)])
def test_renderings_are_of_one_step_and_do_not_overlap(repeat, limit):
    """The paper's observation: three pictures, evenly spread over the frames of a step; a short last step repeats."""
    plain = make("cheetah-run", "pixels", limit=limit)
    paper = make("cheetah-run", "pixels", limit=limit, action_repeat=repeat, renderings=3)
    held = random_actions(plain, -(-limit // repeat))
    frames = [step.observation for step in play(plain, np.repeat(held, repeat, axis=0)[:limit])]
    seen = [step.observation for step in play(paper, held)]
    np.testing.assert_array_equal(seen[0], np.tile(frames[0], (3, 1, 1)))
    for step, observation in enumerate(seen[1:]):
        wanted = [min(step * repeat + (i + 1) * repeat // 3, limit) for i in range(3)]
        np.testing.assert_array_equal(observation, np.concatenate([frames[i] for i in wanted]))


# --- actions ---


@EACH_TASK
def test_actions_reach_the_tasks_bounds(name):
    """[-1, 1] must be the task's whole range (quadruped's goes to 1.1); lqr's has no bounds and is passed as it is."""
    environment = make(name)
    spec = environment.task_env.action_spec()
    shape = (environment.task.action_dim,)
    for sign, bound in ((-1, spec.minimum), (1, spec.maximum)):
        if name.startswith("lqr"):
            bound = sign
        control = applied_controls(environment, np.full(shape, sign, np.float32))
        np.testing.assert_allclose(control, np.broadcast_to(bound, shape), rtol=1e-6)


@pytest.mark.parametrize("name", ["quadruped-walk", "lqr-lqr_2_1", "cheetah-run"])
def test_actions_outside_are_clipped(name):
    """An action beyond [-1, 1] must do what the nearest one inside does."""
    environment = make(name)
    shape = (environment.task.action_dim,)
    far, near = np.full(shape, 7.0, np.float32), np.ones(shape, np.float32)
    np.testing.assert_array_equal(applied_controls(environment, far), applied_controls(environment, near))
    np.testing.assert_array_equal(applied_controls(environment, -far), applied_controls(environment, -near))


def test_lqr_actions_are_not_scaled():
    """Bounds of 1e10 taken for a scale."""
    environment = make("lqr-lqr_2_1")
    np.testing.assert_allclose(applied_controls(environment, np.array([0.3], np.float32)), [0.3], rtol=1e-6)


# --- pictures ---


def test_pixels_are_bytes_and_show_the_motion():
    """Floats, channels last, a constant picture, or one that stays the same while the scene moves."""
    environment = make("cartpole-swingup", "pixels", size=64, shadow_size=256, frame_stack=3, action_repeat=8)
    first = environment.reset().observation
    assert first.dtype == np.uint8 and first.shape == (9, 64, 64) and first.flags.c_contiguous
    assert first.std() > 5
    for _ in range(5):
        last = environment.step(np.ones(1, np.float32)).observation
    assert not np.array_equal(first[-3:], last[-3:])


@pytest.mark.parametrize("size", [64, 84])
@pytest.mark.parametrize(
    ("quality", "bound"),
    [({"shadow_size": 256, "slices": 14}, 0.5), (presets.RENDER["fast"][1], 1.0), (presets.RENDER["exact"][1], 0.0)],
)
@pytest.mark.parametrize("name", ["cartpole-swingup", "walker-walk", "cheetah-run"])
def test_cheap_pictures_change_little_and_exact_ones_do_not(name, quality, bound, size):
    """A cheaper picture that is another picture; or one that is upside down or has its channels swapped."""
    environment = make(name, "pixels", seed=1, size=size, **quality)
    mine = environment.reset().observation
    reference = tasks.find(name).load(1)
    reference.reset()
    theirs = reference.physics.render(size, size, camera_id=environment.task.camera).transpose(2, 0, 1)
    assert np.abs(mine.astype(int) - theirs.astype(int)).mean() <= bound
    assert mine.std() > 5


def test_15_backend_is_chosen_before_mujoco():
    """Silent bug 15: mujoco reads MUJOCO_GL once, when it is imported."""
    code = """if True:
        import os, sys
        import pixel_ddpg
        assert not {"mujoco", "dm_control"} & set(sys.modules), "imported too early"
        environment = pixel_ddpg.make_env("cartpole-swingup", size=16)
        assert environment.reset()[0].std() > 0
        print(os.environ["MUJOCO_GL"], "mujoco" in sys.modules)"""
    result = python(code, MUJOCO_GL=None)
    assert result.returncode == 0, result.stderr
    backend, imported = result.stdout.split()
    assert backend in rendering.LIBRARIES and imported == "True"


def test_a_gpu_draws_for_the_run_that_it_trains():
    """All runs of a machine that draw on its first GPU: EGL has an order of its own. The user's choice stays."""
    code = """if True:
        import os
        from pixel_ddpg import make_env
        from pixel_ddpg.envs import rendering
        devices = rendering.cuda_numbers()
        assert all(number is None or number >= 0 for number in devices), devices
        rendering.cuda_numbers = lambda: [{numbers}]
        rendering.choose_backend(1, gpu=1)
        environment = make_env("cartpole-swingup", size=16)
        assert environment.reset()[0].std() > 0
        print(os.environ.get("MUJOCO_EGL_DEVICE_ID"), environment.environment.drawn_by())"""
    for numbers, own, chosen in (("1, 0", None, "0"), ("0", None, "None"), ("0, 1", "0", "0")):
        result = python(code.replace("{numbers}", numbers), MUJOCO_GL=None, MUJOCO_EGL_DEVICE_ID=own)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{chosen} egl, ")


TRY = """if True:
    import pixel_ddpg
    from pixel_ddpg.errors import UserError
    try:
        print(pixel_ddpg.make_env("{name}", obs="{obs}", size=16).reset()[0].shape)
    except UserError as error:
        print(len(str(error).splitlines()), error)"""


def without(backend: str) -> bool:
    return backend not in rendering.LIBRARIES or not rendering._loads(rendering.LIBRARIES[backend])


def test_a_backend_that_comes_too_late_is_told():
    """'leave MUJOCO_GL unset' told to one who did, and whose mujoco was imported before anything was chosen."""
    code = "import mujoco\n" + TRY.format(name="cartpole-swingup", obs="pixels")
    result = python(code, MUJOCO_GL=None, DISPLAY=None)
    assert "set MUJOCO_GL=egl before mujoco" in result.stdout and result.stderr == ""
    result = python("import mujoco\n" + TRY.format(name="cartpole-swingup", obs="state"), MUJOCO_GL=None, DISPLAY=None)
    assert (result.returncode, result.stdout) == (0, "(5,)\n"), result.stderr


@pytest.mark.parametrize("backend", ["osmesa", "bogus", "disable", "glfw"])
def test_a_backend_that_is_not_there_is_told_in_one_line(backend):
    """A traceback from the depths of OpenGL; a text that does not name MUJOCO_GL."""
    if not without(backend):
        pytest.skip(f"{backend} works here")
    result = python(TRY.format(name="cartpole-swingup", obs="pixels"), MUJOCO_GL=backend, DISPLAY=None)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"1 no pictures with MUJOCO_GL={backend}") and result.stderr == ""


def test_state_needs_no_gl():
    """A machine without GL that cannot train from state."""
    result = python(TRY.format(name="cartpole-swingup", obs="state"), MUJOCO_GL="disable")
    assert (result.returncode, result.stdout) == (0, "(5,)\n"), result.stderr


def test_the_one_task_that_needs_gl_for_its_state_says_so():
    """quadruped-escape draws a new terrain at each reset, which asks for a GL context: a traceback."""
    result = python(TRY.format(name="quadruped-escape", obs="state"), MUJOCO_GL="disable")
    assert result.returncode == 0, result.stderr.splitlines()[-1]
    assert result.stdout.startswith("(101,)") or "MUJOCO_GL=disable" in result.stdout


def test_a_gl_context_that_is_lost_is_told(monkeypatch):
    """A traceback of MuJoCo where a driver was reset in the middle of a run."""
    import mujoco

    def fail(*arguments):
        raise mujoco.FatalError("OpenGL error 0x505")

    environment = make("cartpole-swingup", "pixels")
    environment.reset()
    monkeypatch.setattr(mujoco, "mjr_render", fail)
    with pytest.raises(UserError, match=r"could not be drawn \(OpenGL error 0x505\).* the same command resumes"):
        environment.step(ZERO)


@EACH_OBS
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("name", ["reacher-easy", pytest.param("torcs", marks=NEEDS_BOX2D)])
def test_a_copy_of_an_environment_plays_on_the_same(obs, copied, name):
    """A GL camera that is copied byte by byte: another error each time. A game that cannot be copied at all."""
    environment = make_gym(name, obs)
    environment.reset(seed=3)
    for action in random_actions(environment.environment, 2):
        environment.step(action)
    other = copied(environment)
    for action in random_actions(environment.environment, 3):
        np.testing.assert_array_equal(environment.step(action)[0], other.step(action)[0])
    np.testing.assert_array_equal(environment.reset()[0], other.reset()[0])


def test_the_seed_that_an_environment_names_is_its_own():
    """np_random_seed that brings back another episode."""
    first = pixel_ddpg.make_env("cartpole-swingup", obs="state")
    observation, _ = first.reset()
    again = pixel_ddpg.make_env("cartpole-swingup", obs="state")
    np.testing.assert_array_equal(observation, again.reset(seed=first.np_random_seed)[0])


def test_render_modes_are_those_that_there_are():
    """A window that is asked for and never shown; a mode that means nothing."""
    environment = gymnasium.make("pixel_ddpg/cartpole-swingup-state-v0", render_mode="rgb_array_list")
    environment.reset()
    assert environment.render()[0].shape == (256, 256, 3)
    with pytest.raises(UserError, match="unknown render_mode 'foo'; there are rgb_array"):
        pixel_ddpg.make_env("cartpole-swingup", render_mode="foo")


def test_another_librarys_choice_of_gl_does_not_stop_state():
    """PYOPENGL_PLATFORM, as other projects advise it, beside a MUJOCO_GL that is chosen here."""
    result = python(TRY.format(name="cartpole-swingup", obs="state"), PYOPENGL_PLATFORM="osmesa")
    assert (result.returncode, result.stdout) == (0, "(5,)\n"), result.stderr


# --- saving and resuming ---


def second_episode_then_restored(name: str, obs: str, other_seed: int, **options):
    """An environment in its second episode, and a fresh one that was brought there through JSON."""
    original = make(name, obs, 5, limit=9, action_repeat=2, **options)
    play(original, random_actions(original, 5))  # 9 frames, the whole first episode
    last = play(original, random_actions(original, 2, seed=1))[-1]
    copy = make(name, obs, other_seed, limit=9, action_repeat=2, **options)
    assert_same([copy.load_state_dict(json.loads(json.dumps(original.state_dict())))], [last])
    assert last.frames == 4
    return original, copy


def assert_go_on_alike(original: Environment, copy: Environment) -> None:
    """To the end of this episode, into the next and the one after."""
    actions = random_actions(original, 12, seed=2)
    one, other = (advance(environment, actions) for environment in (original, copy))
    assert_same(one, other)
    assert sum(step.frames == 0 for step in one) == 2


@EACH_TASK
def test_13_restored_environment_continues_to_the_bit(name):
    """Silent bug 13: a resumed run that sees other starts, states or rewards than the uninterrupted one."""
    assert_go_on_alike(*second_episode_then_restored(name, "state", 77))


@pytest.mark.parametrize(
    "name", ["cartpole-swingup", "reacher-easy", "cheetah-run", "finger-spin", "manipulator-bring_ball",
             "quadruped-walk", "quadruped-escape", "swimmer-swimmer6"],
)  # fmt: skip
def test_13_restored_pixels_go_on_to_the_bit(name):
    """Silent bug 13: a picture, or a stack, that is not brought back."""
    assert_go_on_alike(*second_episode_then_restored(name, "pixels", 77, frame_stack=3))


def test_lqr_is_the_same_system_for_every_seed():
    """The evaluation's environment has another seed than training's: it must not be another system."""
    one, other = (make("lqr-lqr_2_1", seed=seed).task_env.physics.model for seed in (1, 2))
    np.testing.assert_array_equal(one.jnt_stiffness, other.jnt_stiffness)
    np.testing.assert_array_equal(one.dof_damping, other.dof_damping)


def test_restored_at_the_end_of_an_episode():
    """A checkpoint between two episodes."""
    original = make("cheetah-run", limit=4)
    play(original, random_actions(original, 4))
    copy = make("cheetah-run", seed=9, limit=4)
    assert copy.load_state_dict(json.loads(json.dumps(original.state_dict()))).last
    assert_same([original.reset()], [copy.reset()])


def test_seed_takes_effect_at_the_next_reset():
    """An evaluation that depends on what its environment did before."""
    used, fresh = make("reacher-easy", seed=1, limit=4), make("reacher-easy", seed=2, limit=4)
    play(used, random_actions(used, 3))
    used.seed(11), fresh.seed(11)
    assert_same(play(used, random_actions(used, 4)), play(fresh, random_actions(used, 4)))


def test_12_environments_share_no_random_numbers(tmp_path):
    """Silent bug 12: evaluating, or filming, in one environment must not change what another sees."""

    def starts(disturb) -> list[np.ndarray]:
        training, evaluation = make("reacher-easy", seed=1, limit=3), make("reacher-easy", seed=1, limit=3)
        np.random.seed(0)
        seen = []
        for _ in range(3):
            seen += [step.observation for step in play(training, random_actions(training, 3))]
            if disturb:
                np.random.seed(1)
                policy = lambda observation: np.ones(2, np.float32)  # noqa: E731
                episodes.run_episodes(evaluation, policy, 2, tmp_path / "a.mp4", 32)
        return seen

    np.testing.assert_array_equal(starts(True), starts(False))


# --- episodes and films ---


def test_run_episodes_returns_and_lengths():
    """Returns of the first step only, or lengths in steps instead of frames."""
    seen = []

    def policy(observation):
        seen.append(observation[0])
        return ZERO

    returns, lengths = episodes.run_episodes(make_fake(10, action_repeat=4), policy, 2)
    assert returns == [55.0, 55.0] and lengths == [10, 10]
    assert seen == [0, 4, 8] * 2


@EACH_OBS
def test_film_is_an_mp4_that_plays_in_the_tasks_time(obs, tmp_path):
    """A film that no player opens, of the wrong size or speed, that lacks frames or shows nothing."""
    environment = make("cheetah-run", obs, limit=11, action_repeat=4)
    path = tmp_path / "videos" / "0.mp4"
    total, frames = episodes.film(environment, lambda observation: np.ones(6, np.float32), path, 96)
    assert frames == 11 and np.isfinite(total)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 96, 96)
        assert stream.average_rate == 25  # 4 frames of 10 ms
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 4  # the first one and three steps
    assert all(picture.std() > 5 for picture in pictures)
    assert np.abs(pictures[0].astype(int) - pictures[-1].astype(int)).mean() > 0.5


def test_a_film_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A good film lost to Ctrl-C or a full disk, or half of one that looks whole."""
    path, picture = tmp_path / "a.mp4", np.zeros((3, 32, 32), np.uint8)
    path.write_bytes(b"a good one")

    def film(interrupt: bool, to):
        with video.Video(to, 20) as film:
            film.add(picture)
            if interrupt:
                raise KeyboardInterrupt

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    for to in (path, tmp_path / "b.mp4"):
        with pytest.raises(KeyboardInterrupt):
            film(True, to)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as told:
        film(False, path)
    assert told.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"] and path.read_bytes() == b"a good one"


def test_filming_does_not_change_the_episode(tmp_path):
    """A film's renderer that touches the physics or the pictures of the agent."""
    plain, filmed = (make("cheetah-run", "pixels", size=32, limit=8) for _ in range(2))
    results = []

    def policy(observation):
        return np.tanh(observation[0, :6, 3] / 255 - 0.5).astype(np.float32)

    results.append(episodes.run_episode(plain, policy))
    results.append(episodes.film(filmed, policy, tmp_path / "a.mp4", 64))
    assert results[0] == results[1]
    np.testing.assert_array_equal(plain._stack, filmed._stack)


# --- processes, threads, and the end ---


def test_environments_of_forked_processes_say_what_helps():
    """A vector environment that hangs for ever, because its processes are forked from one that has drawn."""
    code = """if True:
        import gymnasium, pixel_ddpg
        name = "pixel_ddpg/cartpole-swingup-pixels-v0"
        environments = gymnasium.make_vec(name, num_envs=2, vectorization_mode="async", size=16)
        print(environments.reset(seed=0)[0].std() > 0)
        environments.close()
        gymnasium.make(name, size=16).reset(seed=0)  # from here on this process has drawn
        environments = gymnasium.make_vec(name, num_envs=2, vectorization_mode="async", size=16)
        try:
            environments.reset(seed=0)
        except Exception as error:
            print(error)
        environments.close(terminate=True)"""
    result = python(code)
    assert result.stdout.startswith("True\n") and "GL does not survive a fork" in result.stdout, result.stderr


def test_pictures_of_another_thread_are_refused_in_one_line():
    """Pages of EGL's text in a web server that calls each time from another thread."""
    environment = make_env("cartpole-swingup", size=16)
    environment.reset(seed=0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="only from the thread"):
        pool.submit(environment.step, ZERO).result()
    environment.reset()  # that step had moved the simulation, and has no picture
    assert environment.step(ZERO)[0].std() > 0


@EACH_OBS
def test_a_closed_environment_is_closed(obs):
    """A second close that fails, a step that draws with a context that is gone."""
    environment = gymnasium.make(f"pixel_ddpg/cartpole-swingup-{obs}-v0", **SMALL).unwrapped
    environment.reset(seed=0)
    environment.close(), environment.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="is closed"):
        environment.reset()


def test_closing_frees_what_draws():
    """Memory of every environment that was ever made, as long as anybody holds it."""
    code = """if True:
        import psutil, pixel_ddpg
        def rss(): return psutil.Process().memory_info().rss / 2**20
        held = [pixel_ddpg.make_env("cheetah-run", seed=0) for _ in range(8)]
        for each in held: each.reset()
        before = rss()
        for each in held: each.close()
        print(before - rss())"""
    result = python(code)
    assert float(result.stdout) > 40, result.stderr  # MiB, of eight


def test_an_empty_variable_is_as_unset():
    """`MUJOCO_EGL_DEVICE_ID= python ...`, as scripts that pass on what they have."""
    result = python(TRY.format(name="cartpole-swingup", obs="pixels"), MUJOCO_GL="", MUJOCO_EGL_DEVICE_ID="")
    assert result.stdout == "(9, 16, 16)\n", result.stderr


def test_equal_films_have_equal_bytes(tmp_path):
    """A codec that reads memory which nobody has written."""
    code = f"""if True:
        import pathlib, numpy
        from pixel_ddpg.envs.video import Video
        pictures = numpy.random.default_rng(0).integers(0, 256, (3, 64, 64), numpy.uint8)
        with Video(pathlib.Path("{tmp_path}/film.mp4"), 20) as film:
            for shift in range(60):
                film.add(numpy.roll(pictures // 2 + shift, shift, 1))"""
    films = set()
    for filled_with in ("0", "85", "200"):
        assert python(code, MALLOC_PERTURB_=filled_with).returncode == 0
        films.add((tmp_path / "film.mp4").read_bytes())
    assert len(films) == 1
