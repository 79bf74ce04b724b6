"""A planar arm with a gripper that brings an object to a target: dm_control's manipulator.xml, with stiff fingertips.

gripper and gripperRandom carry a ball, blockworld1 a block that falls from above, movingGripper stands on two slides.
"""

import collections
from functools import partial

import numpy as np
from dm_control.rl import control

from pixel_ddpg.envs.tasks import common

ARM = ("arm_root", "arm_shoulder", "arm_elbow", "arm_wrist")
HAND = ("finger", "thumb")
POSE = (-1.0, -1.9, -1.0, 0.8)  # where the arm starts, when it is not random: the hand above the object
OBJECT, TARGET = (0.1, 0.1), (-0.2, 0.35)  # x, z: where they start, when they are not random
FALL = 0.5  # metres above the floor from where a block falls


class Bring(common.Placed):
    """Reach the object, then bring it to the target.

    r = carry(hand, object, target; 0.02 m, 0.3 m) - 0.01 mean(a^2), in [-0.01, 1]. The hand starts open. Fixed: the arm
    within 0.1 rad of one pose, above the object, that within 0.02 m of (0.1, 0.1), a block 0.5 m above the floor, the
    target at (-0.2, 0.35). Random: the arm anywhere, the object in +-0.4 by 0.03 to 0.4 m, the target in +-0.4 by 0.1
    to 0.4 m, 0.06 m or more from the object.
    """

    def __init__(self, random_start: bool, falls: bool):
        super().__init__()
        self._random_start, self._falls = random_start, falls

    def place(self, physics):
        uniform, model, qpos = self.random.uniform, physics.named.model, physics.named.data.qpos
        if self._random_start:
            low, high = model.jnt_range[list(ARM)].T
            qpos[list(ARM)] = uniform(np.where(low < high, low, -np.pi), np.where(low < high, high, np.pi))
            thing = uniform(-0.4, 0.4), uniform(0.03, 0.4)
            target = uniform(-0.4, 0.4), uniform(0.1, 0.4)
        else:
            qpos[list(ARM)] = POSE + uniform(-0.1, 0.1, len(ARM))
            thing, target = OBJECT + uniform(-0.02, 0.02, 2), TARGET
        qpos[list(HAND)] = 0
        qpos[["object_x", "object_z", "object_y"]] = *(thing if not self._falls else (thing[0], FALL)), 0
        model.body_pos["target", ["x", "z"]] = target

    def is_clear(self, physics):
        return common.distance(physics, "object", "target") > 0.06 and super().is_clear(physics)

    def get_observation(self, physics):
        data = physics.named.data
        angles = data.qpos[list(ARM + HAND)]
        return collections.OrderedDict(
            position=np.concatenate([np.sin(angles), np.cos(angles), physics.data.qpos[: -len(ARM + HAND) - 3]]),
            velocity=physics.velocity(),
            touch=np.log1p(physics.data.sensordata),
            hand=data.site_xpos["grasp", ["x", "z"]],
            object=np.append(data.site_xpos["object", ["x", "z"]], data.qpos["object_y"]),
            target=data.site_xpos["target", ["x", "z"]],
            to_object=(data.site_xpos["object"] - data.site_xpos["grasp"])[[0, 2]],
            to_target=(data.site_xpos["target"] - data.site_xpos["object"])[[0, 2]],
        )

    def get_reward(self, physics):
        return common.carry(physics, "grasp", 0.02, 0.3) - common.action_cost(physics)


def gripper(random_start: bool = False, moving: bool = False, block: bool = False) -> control.Environment:
    """The arm, and what it carries: a ball of radius 0.022 m or a block of 0.04 m.

    The moving arm's slides go +-0.3 m across and +-0.15 m up (spring 400 N/m), damping 20, motors of 40 N.
    """
    mjcf = common.model("manipulator.xml")
    mjcf.find("option").set("timestep", "0.002")  # twice dm_control's: half the time of an episode
    common.find(mjcf, "camera", "fixed").set("fovy", "3.2")  # closer, so that the object has some pixels
    world = mjcf.find("worldbody")
    for name in ("ball", "peg", "slot", "cup", "target_ball", "target_peg"):
        world.remove(common.find(mjcf, "body", name))
    for name in ("thumbtip", "fingertip"):
        common.find(mjcf, "body", name).remove(common.find(mjcf, "joint", name))
    shape = 'type="box" size=".02 .02 .02"' if block else 'type="sphere" size=".022"'
    world.extend(common.fragment(
        f'<body name="object" childclass="object"><joint name="object_x" type="slide" axis="1 0 0"/>'
        f'<joint name="object_z" type="slide" axis="0 0 1"/><joint name="object_y" type="hinge" axis="0 1 0"/>'
        f'<geom name="object" {shape} material="decoration"/><site name="object" type="sphere"/></body>'
        f'<body name="target" pos="0 .001 0" childclass="ghost">'
        f'<geom name="target" {shape}/><site name="target" type="sphere"/></body>'
    ))  # fmt: skip
    if moving:
        arm = common.find(mjcf, "body", "upper_arm")
        arm[:0] = common.fragment(
            '<joint name="base_x" type="slide" axis="1 0 0" range="-.3 .3" damping="20"/>'
            '<joint name="base_z" type="slide" axis="0 0 1" range="-.15 .15" damping="20" stiffness="400"/>'
        )
        for axis in ("base_x", "base_z"):
            motor = f'<motor name="{axis}" joint="{axis}" ctrlrange="-1 1" gear="40"/>'
            mjcf.find("actuator").extend(common.fragment(motor))
    return common.environment(mjcf, Bring(random_start, block), 0.01)


TASKS = {
    "gripper": gripper,
    "gripperRandom": partial(gripper, random_start=True),
    "movingGripper": partial(gripper, moving=True),
    "movingGripperRandom": partial(gripper, random_start=True, moving=True),
    "blockworld1": partial(gripper, block=True),
}
