"""A seven-joint arm (arm.xml) in three dimensions: it reaches, lifts a block, or hits a puck with a hockey stick."""

import collections
import pathlib
from functools import partial

import numpy as np
from dm_control.rl import control
from lxml import etree

from pixel_ddpg.envs.tasks import common

JOINTS = 7
# Where the arm starts, give or take 0.1, when it is not random: to reach, to lift from above, to hit along the table.
REACH = np.array([0.0, 0.2, 0.0, 1.2, 0.0, 0.3, 0.0])
LIFT = np.array([0.0, -0.15, 0.0, 1.55, 0.0, -0.2, 0.0])
HIT = np.array([0.0, -0.25, 0.0, 1.9, 0.0, -0.7, 0.0])
LOW, HIGH = np.array([-1.2, -0.6, -0.5, 0.2, -0.5, -0.5, -0.5]), np.array([1.2, 0.6, 0.5, 1.8, 0.5, 0.5, 0.5])


class Arm(common.Placed):
    """What the tasks of the arm share."""

    def is_clear(self, physics):
        return physics.data.contact.dist.min(initial=0.0) >= -0.002  # the block lies on the table

    def near_pose(self, pose: np.ndarray) -> np.ndarray:
        """Joint angles within 0.1 rad of a pose."""
        return pose + self.random.uniform(-0.1, 0.1, JOINTS)

    def arm_observation(self, physics, target: str) -> collections.OrderedDict:
        """Angles, velocities, and where hand and target are."""
        angles, sites = physics.data.qpos[:JOINTS], physics.named.data.site_xpos
        return collections.OrderedDict(
            angles=np.concatenate([np.sin(angles), np.cos(angles)]),
            velocity=physics.velocity(),
            hand=sites["hand"].copy(),
            target=sites[target].copy(),
            to_target=sites[target] - sites["hand"],
        )


class Reach(Arm):
    """Bring the hand to the target.

    r = near(distance; 0.05 m, 0.4 m) - 0.01 mean(a^2), in [-0.01, 1]. The target is at (0.3, 0.2, 0.5) and the arm
    starts within 0.1 rad of one pose; or the target is anywhere in 0.2 to 0.42, +-0.25, 0.15 to 0.6 m, the arm at
    random.
    """

    def __init__(self, fixed: bool):
        super().__init__()
        self._fixed = fixed

    def place(self, physics):
        angles = self.near_pose(REACH) if self._fixed else self.random.uniform(LOW, HIGH)
        physics.data.qpos[:JOINTS] = angles
        low, high = (0.2, -0.25, 0.15), (0.42, 0.25, 0.6)
        target = (0.3, 0.2, 0.5) if self._fixed else self.random.uniform(low, high)
        physics.named.data.qpos[["target_x", "target_y", "target_z"]] = target

    def get_observation(self, physics):
        return self.arm_observation(physics, "target")

    def get_reward(self, physics):
        return common.near(common.distance(physics, "hand", "target"), 0.05, 0.4) - common.action_cost(physics)


class Lift(Arm):
    """Grab a block on the table and lift it to a fixed target.

    r = carry(hand, block, target; 0.03 m, 0.3 m) - 0.01 mean(a^2), in [-0.01, 1]. The block, of 0.05 m, starts at
    0.35 +- 0.03, +-0.1 m, the target is at (0.35, 0, 0.3).
    """

    def place(self, physics):
        physics.data.qpos[:JOINTS] = self.near_pose(LIFT)
        qpos = physics.named.data.qpos
        qpos["object"] = 0.35 + self.random.uniform(-0.03, 0.03), self.random.uniform(-0.1, 0.1), 0.026, 1, 0, 0, 0
        qpos[["finger_left", "finger_right"]] = 0.03

    def get_observation(self, physics):
        data = physics.named.data
        observation = self.arm_observation(physics, "target")
        observation["fingers"] = data.qpos[["finger_left", "finger_right"]].copy()
        observation["object"] = np.concatenate([data.site_xpos["object"], data.xmat["object"]])
        observation["to_object"] = data.site_xpos["object"] - data.site_xpos["hand"]
        return observation

    def get_reward(self, physics):
        return common.carry(physics, "hand", 0.03, 0.3) - common.action_cost(physics)


class Hit(Arm):
    """Hit a puck that lies on the table, so that it reaches a target.

    r = carry(stick, puck, target; 0.04 m, 0.4 m) - 0.01 mean(a^2), in [-0.01, 1]. The puck starts at 0.38 to 0.48,
    +-0.15 m, the target at 0.6 to 0.8, +-0.3 m. The puck's slides have a damping of 0.2.
    """

    def place(self, physics):
        physics.data.qpos[:JOINTS] = self.near_pose(HIT)
        uniform, qpos = self.random.uniform, physics.named.data.qpos
        qpos[["object_x", "object_y"]] = uniform((0.38, -0.15), (0.48, 0.15))
        qpos[["target_x", "target_y"]] = uniform((0.6, -0.3), (0.8, 0.3))

    def get_observation(self, physics):
        sites = physics.named.data.site_xpos
        observation = self.arm_observation(physics, "target")
        observation["stick"] = sites["stick"].copy()
        observation["object"] = sites["object", :2].copy()
        observation["to_object"] = sites["object"] - sites["stick"]
        observation["object_to_target"] = (sites["target"] - sites["object"])[:2]
        return observation

    def get_reward(self, physics):
        return common.carry(physics, "stick", 0.04, 0.4) - common.action_cost(physics)


def _model() -> etree._Element:
    return etree.parse(pathlib.Path(__file__).parent / "arm.xml").getroot()


def _placed(name: str, axes: str, shape: str, z: float) -> str:
    directions = {"x": "1 0 0", "y": "0 1 0", "z": "0 0 1"}
    slides = "".join(f'<joint name="{name}_{axis}" axis="{directions[axis]}"/>' for axis in axes)
    return (
        f'<body name="{name}" pos="0 0 {z}" childclass="placed" gravcomp="1">{slides}'
        f'<geom name="{name}" {shape}/><site name="{name}"/></body>'
    )


def reach(fixed: bool) -> control.Environment:
    """reacher3daFixedTarget and reacher3daRandomTarget."""
    mjcf = _model()
    mjcf.find("worldbody").extend(common.fragment(_placed("target", "xyz", 'type="sphere" size=".05"', 0)))
    return common.environment(mjcf, Reach(fixed), 0.02)


def lift() -> control.Environment:
    """blockworld3da: two sliding fingers on the hand, a free block, a target 30 cm above the table."""
    mjcf = _model()
    hand = common.find(mjcf, "body", "hand")
    for name, side in (("left", 1), ("right", -1)):
        hand.extend(common.fragment(
            f'<body name="{name}" pos=".06 0 0">'
            f'<joint name="finger_{name}" type="slide" axis="0 {side} 0" range="0 .05" damping="4"/>'
            f'<geom name="{name}" type="box" pos=".03 {0.01 * side} 0" size=".035 .006 .014" friction="2"'
            f' material="effector"/></body>'
        ))  # fmt: skip
        motor = f'<motor name="finger_{name}" joint="finger_{name}" gear="8"/>'
        mjcf.find("actuator").extend(common.fragment(motor))
    mjcf.find("worldbody").extend(common.fragment(
        '<body name="object"><freejoint name="object"/><site name="object"/>'
        '<geom name="object" type="box" size=".025 .025 .025" density="300" friction="2" material="decoration"/></body>'
        '<body name="target" pos=".35 0 .3"><site name="target"/>'
        '<geom name="target" type="box" size=".026 .026 .026" contype="0" conaffinity="0" material="target"/></body>'
    ))  # fmt: skip
    return common.environment(mjcf, Lift(), 0.02)


def hit() -> control.Environment:
    """canada: a stick on the hand, a puck on two slides."""
    mjcf = _model()
    common.find(mjcf, "camera", "fixed").set("pos", "1.29 -.87 .9")
    common.find(mjcf, "body", "hand").extend(common.fragment(
        '<geom name="shaft" fromto=".06 0 0 .2 0 0" size=".012" material="decoration"/>'
        '<geom name="blade" fromto=".2 -.05 0 .2 .05 0" size=".016" material="effector"/>'
        '<site name="stick" pos=".2 0 0"/>'
    ))  # fmt: skip
    puck = 'type="cylinder" size=".035 .02" contype="1" conaffinity="1" material="decoration"'
    mjcf.find("worldbody").extend(common.fragment(
        _placed("object", "xy", puck, 0.021)
        + _placed("target", "xy", 'type="cylinder" size=".05 .002" pos="0 0 -.018"', 0.021)
    ))  # fmt: skip
    for axis in "xy":
        joint = common.find(mjcf, "joint", f"object_{axis}")
        joint.set("armature", "0"), joint.set("damping", ".2")
    return common.environment(mjcf, Hit(), 0.02)


TASKS = {
    "reacher3daFixedTarget": partial(reach, fixed=True),
    "reacher3daRandomTarget": partial(reach, fixed=False),
    "blockworld3da": lift,
    "canada": hit,
}
