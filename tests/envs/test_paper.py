"""The paper's tasks: dimensions, rewards, endings, and whether the agent can see what matters."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from pixel_ddpg import config
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.envs.environment import Environment

rendering.choose_backend()
from pixel_ddpg.envs.tasks import common, walkers  # noqa: E402

# Lillicrap et al., 2016, supplementary Table 2: state and action dimensions. reacherDouble is printed as (6, 1) there,
# with the dimensions of reacherSingle, which two links cannot have; torcs' state is not given.
TABLE2 = {
    "blockworld1": (18, 5), "blockworld3da": (31, 9), "canada": (22, 7), "canada2d": (14, 3), "cart": (2, 1),
    "cartpole": (4, 1), "cartpoleBalance": (4, 1), "cartpoleParallelDouble": (6, 1), "cartpoleParallelTriple": (8, 1),
    "cartpoleSerialDouble": (6, 1), "cartpoleSerialTriple": (8, 1), "cheetah": (18, 6), "fixedReacher": (10, 3),
    "fixedReacherDouble": (8, 2), "fixedReacherSingle": (6, 1), "gripper": (18, 5), "gripperRandom": (18, 5),
    "hardCheetah": (18, 6), "hopper": (14, 4), "hyq": (37, 12), "movingGripper": (22, 7),
    "movingGripperRandom": (22, 7), "pendulum": (2, 1), "reacher": (10, 3), "reacher3daFixedTarget": (20, 7),
    "reacher3daRandomTarget": (20, 7),
    "reacherObstacle": (18, 5), "reacherSingle": (6, 1), "walker2d": (18, 6),
}  # fmt: skip
PAPER = {name: task for name, task in tasks.CATALOGUE.items() if "paper" in task.tags}
PHYSICAL = [name for name, task in PAPER.items() if task.simulator == "mujoco"]
OWN = [name for name in PHYSICAL if PAPER[name].family != "suite"]
EACH = pytest.mark.parametrize("name", PHYSICAL)
EACH_OWN = pytest.mark.parametrize("name", OWN)
NO_BOX2D = importlib.util.find_spec("Box2D") is None or importlib.util.find_spec("pygame") is None


def random_action(environment, random):
    spec = environment.action_spec()
    return random.uniform(spec.minimum, spec.maximum)


def test_dimensions_are_those_of_table_2():
    """A model with other joints or motors than the paper's."""
    assert {name: (PAPER[name].state_dim, PAPER[name].action_dim) for name in TABLE2} == TABLE2
    assert set(PAPER) - set(TABLE2) == {"torcs", "reacherDouble"}
    assert sum("table1" in task.tags for task in PAPER.values()) == 27


@EACH_OWN
def test_rewards_keep_their_bounds(name):
    """A reward above 1, or below what its docstring says, in 300 steps of random actions."""
    environment = PAPER[name].load(1)
    random, rewards = np.random.default_rng(1), []
    for _ in range(300):
        time_step = environment.step(random_action(environment, random))
        if not time_step.first():
            rewards.append(time_step.reward)
            fallen = time_step.last() and time_step.discount == 0
            assert time_step.reward == walkers.FALL if fallen else -common.ACTION_COST <= time_step.reward <= 1
            assert all(np.isfinite(value).all() for value in time_step.observation.values())
    assert np.std(rewards) > 0


def near(distance, radius, margin):
    """As docs/tasks.md has it."""
    return (1 / (1 + 9 * (distance / margin) ** 2) + 0.1 ** ((max(distance - radius, 0) / radius) ** 2)) / 2


def reach(hand, radius, margin):
    return lambda physics: near(common.distance(physics, hand, "target"), radius, margin)


def carry(hand, radius, margin):
    def equation(physics):
        to_object, to_target = (common.distance(physics, *pair) for pair in ((hand, "object"), ("object", "target")))
        return (1 / (1 + 9 * (to_object / margin) ** 2) + 3 * near(to_target, radius, margin)) / 4

    return equation


def cart(physics):
    return near(abs(physics.data.qpos[0]), 0.05, 1) * (1 + 0.1 ** ((physics.data.qvel[0] / 2) ** 2)) / 2


def pendulum(physics):
    cosine = np.cos(physics.data.qpos[0])
    return ((1 + cosine) / 2 + 0.1 ** ((max(np.cos(np.deg2rad(8)) - cosine, 0) / 0.2) ** 2)) / 2


def parallel_poles(physics):
    position, angles = physics.data.qpos[0], physics.data.qpos[1:]
    centred, small = (1 + 0.1 ** ((position / 2) ** 2)) / 2, (4 + max(0, 1 - physics.control()[0] ** 2)) / 5
    still = (1 + min(0.1 ** ((physics.data.qvel[1:] / 5) ** 2))) / 2
    return np.mean((1 + np.cos(angles)) / 2) * centred * small * still


def hopper(physics):
    before, _, height = physics.named.data.xipos["torso"] - physics.named.data.xipos["foot"]
    upright, above = (1 + np.cos(physics.named.data.qpos["rooty"][0])) / 2, (1 + 0.1 ** ((before / 0.3) ** 2)) / 2
    return upright * above * 0.1 ** ((max(0.6 - height, 0) / 0.6) ** 2)


def walker(physics):
    speed = physics.named.data.subtree_linvel["torso", "x"]
    return (1 + np.cos(physics.named.data.qpos["rooty"][0])) / 2 * (1 + 5 * min(max(speed, 0) / 8, 1)) / 6


def quadruped(physics):
    height = 0.1 ** ((max(0.5 - physics.named.data.xpos["torso", "z"], 0) / 0.3) ** 2)
    return (1 + physics.named.data.xmat["torso", "zz"]) / 2 * height


EQUATIONS = (
    {name: reach("finger", 0.02, 0.2) for name in OWN if "eacher" in name and "3da" not in name}
    | {name: reach("hand", 0.05, 0.4) for name in OWN if "reacher3da" in name}
    | {name: carry("grasp", 0.02, 0.3) for name in OWN if "ripper" in name or name == "blockworld1"}
    | {"blockworld3da": carry("hand", 0.03, 0.3), "canada": carry("stick", 0.04, 0.4)}
    | {"canada2d": carry("finger", 0.03, 0.2), "cart": cart, "pendulum": pendulum, "hopper": hopper}
    | {"cartpoleParallelDouble": parallel_poles, "cartpoleParallelTriple": parallel_poles}
    | {"walker2d": walker, "hyq": quadruped}
)


@pytest.mark.parametrize("name", list(EQUATIONS))
def test_rewards_are_what_their_docstrings_say(name):
    """Another site, radius, weight or cost than the table in docs/tasks.md tells."""
    environment = PAPER[name].load(3)
    random, compared = np.random.default_rng(3), 0
    for _ in range(100):
        action = random_action(environment, random)
        time_step = environment.step(action)
        if time_step.reward not in (None, walkers.FALL):
            cost = 0 if "Parallel" in name else 0.01 * np.mean(action**2)
            assert time_step.reward == pytest.approx(EQUATIONS[name](environment.physics) - cost, abs=1e-9)
            compared += 1
    assert compared > 20


def test_every_reward_of_our_own_has_an_equation():
    """A task that the test above leaves out; dm_control's own rewards are tested there."""
    assert set(OWN) - set(EQUATIONS) == {"hardCheetah", "cartpoleSerialDouble", "cartpoleSerialTriple"}


@pytest.mark.parametrize("name", [name for name in OWN if PAPER[name].terminates])
def test_a_fall_ends_the_episode_with_a_penalty(name):
    """A promised end that no policy reaches, or that looks like a time limit."""
    environment = PAPER[name].load(0)
    random, time_step = np.random.default_rng(0), environment.reset()
    while not time_step.last():
        time_step = environment.step(random_action(environment, random))
    assert (time_step.discount, time_step.reward) == (0.0, walkers.FALL)


@pytest.mark.parametrize("name", [name for name in OWN if PAPER[name].terminates])
def test_it_does_not_begin_with_a_fall(name):
    """A start from which nothing can be learned."""
    for seed in range(20):
        environment = PAPER[name].load(seed)
        environment.reset()
        spec = environment.action_spec()
        for _ in range(5):
            assert not environment.step(np.zeros(spec.shape)).last()


@EACH_OWN
def test_nothing_is_inside_of_something_else_at_the_start(name):
    """An arm that the table throws off in the first step."""
    environment = PAPER[name].load(0)
    for _ in range(30):
        environment.reset()
        assert environment.physics.data.contact.dist.min(initial=0.0) > -0.002


@pytest.mark.parametrize("name", [name for name in OWN if "canada" in name or "blockworld" in name or "ripper" in name])
def test_what_is_to_be_carried_does_not_start_at_the_target(name):
    """An episode that is won before its first step."""
    environment = PAPER[name].load(0)
    for _ in range(60):
        environment.reset()
        assert common.distance(environment.physics, "object", "target") > 0.05


def visible_pixels(name: str, geom: str, size: int = 64) -> int:
    """Pixels that change when a geom becomes invisible, in the first picture of an episode."""
    environment = Environment(PAPER[name], "pixels", config.Env(size=size, frame_stack=1, action_repeat=1), 2)
    before = environment.reset().observation.astype(int)
    model = environment.task_env.physics.named.model
    model.geom_matid[geom], model.geom_rgba[geom] = -1, 0
    after = environment._renderer.render().astype(int)
    return int((np.abs(after - before).max(0) > 20).sum())


@EACH_OWN
def test_target_and_object_are_visible_at_64_pixels(name):
    """A goal that only the state shows."""
    physics = PAPER[name].load(0).physics
    names = {physics.model.id2name(number, "geom") for number in range(physics.model.ngeom)}
    for geom in names & {"target", "object", "obstacle", "finger"}:
        assert visible_pixels(name, geom) >= 4, geom


@EACH
def test_the_picture_changes_when_the_scene_moves(name):
    """A camera that looks elsewhere."""
    environment = Environment(PAPER[name], "pixels", config.Env(size=64, frame_stack=1, action_repeat=1), 2)
    first = environment.reset().observation
    for _ in range(30):
        step = environment.step(np.ones(PAPER[name].action_dim))
        if step.last:
            break
    assert (np.abs(step.observation.astype(int) - first).max(0) > 20).sum() >= 8


def test_a_hard_cheetah_has_no_springs():
    """The one thing in which it differs from dm_control's."""
    assert not PAPER["hardCheetah"].load(0).physics.model.jnt_stiffness.any()
    assert PAPER["cheetah"].load(0).physics.model.jnt_stiffness.any()


@pytest.mark.parametrize(
    "name", ["gripper", "fixedReacher", "fixedReacherSingle", "reacher3daFixedTarget", "blockworld3da"]
)
def test_fixed_targets_are_fixed_and_others_are_not(name):
    """A random target that is not, or the other way round."""
    random = {"gripper": "gripperRandom", "fixedReacher": "reacher", "fixedReacherSingle": "reacherSingle",
              "reacher3daFixedTarget": "reacher3daRandomTarget", "blockworld3da": "canada"}[name]  # fmt: skip

    def places(task):
        found = []
        for seed in (1, 2):
            environment = PAPER[task].load(seed)
            environment.reset()
            found.append(environment.physics.named.data.site_xpos["target"].copy())
        return found

    assert np.array_equal(*places(name)) and not np.array_equal(*places(random))


@pytest.mark.skipif(NO_BOX2D, reason="needs box2d and pygame: pip install pixel-ddpg[racing]")
def test_racing_is_seeded_ends_and_earns():
    """A track that no seed reaches; an end that looks like a time limit; a car that cannot earn."""
    task = PAPER["torcs"]
    first, again, other = (task.load(seed).reset().observation["track"] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    environment = task.load(1)
    environment.reset()
    total, time_step = 0.0, None
    for _ in range(60):
        time_step = environment.step(np.array([0, 0.3, 0], np.float32))
        total += time_step.reward
    assert total > 10
    environment._game.car.hull.position = (1000, 0)  # off the field
    time_step = environment.step(np.zeros(3, np.float32))
    assert (time_step.discount, time_step.reward) == (0.0, -100)
    time_step, frames = environment.reset(), 0
    while not time_step.last():  # standing still
        time_step, frames = environment.step(np.array([0, 0, 1], np.float32)), frames + 1
    assert (time_step.discount, frames) == (1.0, 1000)


def test_a_missing_box2d_is_told():
    """A traceback from Gymnasium where an extra is not installed."""
    program = """
import sys
sys.modules["Box2D"] = None
from pixel_ddpg.command import one_line_errors
from pixel_ddpg.envs import tasks
with one_line_errors():
    tasks.find("torcs").load(0)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr.startswith("pixel_ddpg: task=torcs needs Box2D")
    assert told.stderr.count("\n") == 1
