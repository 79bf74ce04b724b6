"""Locomotion: cheetah without springs, hopper and walker that may fall, and a quadruped of HyQ's build."""

import collections
import pathlib

import numpy as np
from dm_control import suite
from dm_control.rl import control
from dm_control.suite import base
from dm_control.utils import rewards
from lxml import etree

from pixel_ddpg.envs.tasks import common

FALL = -1.0  # the reward of the step with which an episode ends


class Legged(base.Task):
    """A task that ends with a fall: discount 0, reward FALL."""

    def fallen(self, physics) -> bool:
        """Whether the torso is too low or too far from upright."""
        raise NotImplementedError

    def get_termination(self, physics):
        return 0.0 if self.fallen(physics) else None


class Hopper(Legged):
    """Keep a monoped from falling; it starts upright, hip -0.6, knee 1.2, ankle -0.6, all give or take 0.05.

    r = (1 + cos(pitch)) / 2 * tolerance(height of torso above foot; 0.6 to 2 m, margin 0.6)
    * (1 + tolerance(torso before or behind foot; margin 0.3)) / 2 - 0.01 mean(a^2), in [-0.01, 1]; -1 at a fall, which
    is a height below 0.45 m or a torso more than 1 rad from upright.
    """

    def initialize_episode(self, physics):
        physics.named.data.qpos[["hip", "knee", "ankle"]] = -0.6, 1.2, -0.6
        physics.data.qpos[2:] += self.random.uniform(-0.05, 0.05, physics.model.nq - 2)
        physics.named.data.qpos["rootz"] -= 0.3
        common.put_on_ground(physics, "rootz")
        super().initialize_episode(physics)

    def _torso_from_foot(self, physics, axis: str) -> float:
        """Metres from the foot's centre of mass to the torso's."""
        return float(physics.named.data.xipos["torso", axis] - physics.named.data.xipos["foot", axis])

    def fallen(self, physics):
        return self._torso_from_foot(physics, "z") < 0.45 or abs(physics.named.data.qpos["rooty"][0]) > 1

    def get_observation(self, physics):
        touch = np.log1p(physics.named.data.sensordata[["touch_toe", "touch_heel"]])
        position = physics.data.qpos[1:].copy()
        return collections.OrderedDict(position=position, velocity=physics.velocity(), touch=touch)

    def get_reward(self, physics):
        if self.fallen(physics):
            return FALL
        upright = (1 + physics.named.data.xmat["torso", "zz"]) / 2
        standing = rewards.tolerance(self._torso_from_foot(physics, "z"), (0.6, 2), margin=0.6)
        above = (1 + rewards.tolerance(self._torso_from_foot(physics, "x"), margin=0.3)) / 2
        return float(upright * standing * above - common.action_cost(physics))


class Walker2d(Legged):
    """Go forward as fast as possible without falling; it starts upright, give or take 0.05.

    r = (1 + cos(pitch)) / 2 * (1 + 5 min(max(v, 0) / 8, 1)) / 6 - 0.01 mean(a^2), in [-0.01, 1], v the speed of the
    centre of mass in m/s; -1 at a fall, which is a torso below 0.8 m or more than 1 rad from upright.
    """

    def initialize_episode(self, physics):
        physics.data.qpos[2:] += self.random.uniform(-0.05, 0.05, physics.model.nq - 2)
        common.put_on_ground(physics, "rootz")
        super().initialize_episode(physics)

    def fallen(self, physics):
        data = physics.named.data
        return data.xpos["torso", "z"] < 0.8 or data.xmat["torso", "zz"] < np.cos(1)

    def get_observation(self, physics):
        orientations = physics.named.data.xmat[1:, ["xx", "xz"]].ravel()
        height = physics.named.data.xpos["torso", "z"]
        return collections.OrderedDict(orientations=orientations, height=height, velocity=physics.velocity())

    def get_reward(self, physics):
        if self.fallen(physics):
            return FALL
        upright = (1 + physics.named.data.xmat["torso", "zz"]) / 2
        speed = np.clip(physics.named.data.sensordata["torso_subtreelinvel"][0] / 8, 0, 1)
        return float(upright * (1 + 5 * speed) / 6 - common.action_cost(physics))


class Stand(Legged):
    """Keep a quadruped from falling.

    Its feet start 2 to 6 cm above the ground, every velocity in +-0.5, every joint within 0.1 rad.
    r = (1 + zz) / 2 * tolerance(height; 0.5 to 2 m, margin 0.3) - 0.01 mean(a^2), in [-0.01, 1], zz the cosine between
    the torso's axis and the vertical; -1 at a fall, which is a torso below 0.3 m or zz < 0.5.
    """

    def initialize_episode(self, physics):
        for leg in LEGS:
            physics.named.data.qpos[[f"{leg}_hip", f"{leg}_knee"]] = 0.6, -1.2
        physics.data.qpos[7:] += self.random.uniform(-0.1, 0.1, physics.model.nq - 7)
        physics.data.qvel[:] = self.random.uniform(-0.5, 0.5, physics.model.nv)
        super().initialize_episode(physics)

    def fallen(self, physics):
        data = physics.named.data
        return data.xpos["torso", "z"] < 0.3 or data.xmat["torso", "zz"] < 0.5

    def get_observation(self, physics):
        data = physics.named.data
        return collections.OrderedDict(
            height=data.xpos["torso", "z"],
            orientation=data.xmat["torso"].copy(),
            joints=physics.data.qpos[7:].copy(),
            velocity=physics.velocity(),
            sensors=physics.data.sensordata.copy(),
        )

    def get_reward(self, physics):
        if self.fallen(physics):
            return FALL
        data = physics.named.data
        upright = (1 + data.xmat["torso", "zz"]) / 2
        height = rewards.tolerance(float(data.xpos["torso", "z"]), (0.5, 2), margin=0.3)
        return float(upright * height - common.action_cost(physics))


LEGS = ("left_front", "right_front", "left_hind", "right_hind")


def hyq() -> control.Environment:
    """A torso on four legs with three hinges each; the state counts 7 + 12 + 6 + 12 = 37 as the paper's."""
    mjcf = etree.parse(pathlib.Path(__file__).parent / "quadruped.xml").getroot()
    torso, actuators = common.find(mjcf, "body", "torso"), mjcf.find("actuator")
    for leg in LEGS:
        x, y = (0.32 if "front" in leg else -0.32), (0.16 if "left" in leg else -0.16)
        torso.extend(common.fragment(
            f'<body name="{leg}_hip" pos="{x} {y} 0" childclass="leg">'
            f'<joint name="{leg}_side" axis="1 0 0" range="-40 40"/>'
            f'<joint name="{leg}_hip" axis="0 1 0" range="-60 80"/>'
            f'<geom name="{leg}_thigh" fromto="0 0 0 0 0 -.33" size=".04"/>'
            f'<body name="{leg}_shin" pos="0 0 -.33"><joint name="{leg}_knee" axis="0 1 0" range="-140 -10"/>'
            f'<geom name="{leg}_shin" fromto="0 0 0 0 0 -.31" size=".028"/>'
            f'<geom name="{leg}_foot" type="sphere" pos="0 0 -.33" size=".035" material="effector"/></body></body>'
        ))  # fmt: skip
        for joint, gear in (("side", 80), ("hip", 100), ("knee", 100)):
            motor = f'<motor name="{leg}_{joint}" joint="{leg}_{joint}" gear="{gear}"/>'
            actuators.extend(common.fragment(motor))
    return common.environment(mjcf, Stand(), 0.02)


def hard_cheetah() -> control.Environment:
    """dm_control's cheetah-run with the stiffness of its joints removed."""
    environment = suite.load("cheetah", "run")
    environment.physics.model.jnt_stiffness[:] = 0
    return environment


TASKS = {
    "hardCheetah": hard_cheetah,
    "hopper": lambda: common.environment(common.model("hopper.xml"), Hopper(), 0.02),
    "walker2d": lambda: common.environment(common.model("walker.xml"), Walker2d(), 0.025),
    "hyq": hyq,
}
