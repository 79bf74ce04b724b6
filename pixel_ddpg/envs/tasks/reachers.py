"""Planar arms of one to five links that reach for a target: dm_control's reacher.xml, with other links.

The target (and the obstacle) stand on two slides each, as the paper's state counts tell (2 * (joints + 2)); nothing
moves them within an episode.
"""

import collections
from functools import partial

import numpy as np
from dm_control.rl import control
from lxml import etree

from pixel_ddpg.envs.tasks import common

REACH = 0.24  # metres from the shoulder to the finger's centre with all links in a line
FIXED = {1: (0.0, REACH), 2: (-0.08, 0.14), 3: (-0.08, 0.14)}  # the fixed targets, by links
TARGET_SIZE = 0.02
OBSTACLE = 0.03  # its radius


class Reacher(common.Placed):
    """Bring the finger to the target.

    r = near(distance; 0.02 m, 0.2 m) - 0.01 mean(a^2), in [-0.01, 1]. The joints start at random; the target is fixed
    at (0, 0.24) for one link, else at (-0.08, 0.14), or random, 0.06 to 0.22 m from the shoulder (0.24 m for one link).
    The obstacle, of 0.03 m, stands 0.1 to 0.2 m from the shoulder, clear of the target.
    """

    def __init__(self, links: int, fixed: bool, obstacle: bool):
        super().__init__()
        self._links, self._fixed, self._obstacle = links, fixed, obstacle

    def place(self, physics):
        qpos, uniform = physics.named.data.qpos, self.random.uniform
        physics.data.qpos[0] = uniform(-np.pi, np.pi)
        physics.data.qpos[1 : self._links] = uniform(-2.5, 2.5, self._links - 1)
        nearest, farthest = (REACH, REACH) if self._links == 1 else (0.06, 0.22)
        target = FIXED[self._links] if self._fixed else _around(self.random, nearest, farthest)
        qpos[["target_x", "target_y"]] = target
        if self._obstacle:
            qpos[["obstacle_x", "obstacle_y"]] = _around(self.random, 0.1, 0.2)

    def is_clear(self, physics):
        apart = not self._obstacle or common.distance(physics, "target", "obstacle") > OBSTACLE + 0.03
        return apart and super().is_clear(physics)

    def get_observation(self, physics):
        observation = _seen(physics, self._links)
        if self._obstacle:
            observation["obstacle"] = physics.named.data.site_xpos["obstacle", :2].copy()
        return observation

    def get_reward(self, physics):
        distance = common.distance(physics, "finger", "target")
        return common.near(distance, TARGET_SIZE, 0.2) - common.action_cost(physics)


class Hit(common.Placed):
    """canada2d: hit a puck with the stick at the arm's end, so that it reaches a target.

    r = carry(stick, puck, target; 0.03 m, 0.2 m) - 0.01 mean(a^2), in [-0.01, 1]. The arm starts at random, the puck
    0.1 to 0.2 m and the target 0.08 to 0.25 m from the shoulder, 0.06 m or more from the puck. The puck weighs 20 g,
    its slides have a damping of 0.02 and end at the walls, 0.28 m from the middle.
    """

    def place(self, physics):
        physics.data.qpos[:3] = self.random.uniform((-np.pi, -1.5, -1.5), (np.pi, 1.5, 1.5))
        for name, low, high in (("object", 0.1, 0.2), ("target", 0.08, 0.25)):
            physics.named.data.qpos[[f"{name}_x", f"{name}_y"]] = _around(self.random, low, high)

    def is_clear(self, physics):
        return common.distance(physics, "object", "target") > 0.06 and super().is_clear(physics)

    def get_observation(self, physics):
        data = physics.named.data
        observation = _seen(physics, 3)
        observation["object"] = data.site_xpos["object", :2].copy()
        observation["object_velocity"] = data.qvel[["object_x", "object_y"]].copy()
        observation["to_object"] = (data.site_xpos["object"] - data.site_xpos["finger"])[:2]
        return observation

    def get_reward(self, physics):
        return common.carry(physics, "finger", 0.03, 0.2) - common.action_cost(physics)


def _around(random: np.random.RandomState, nearest: float, farthest: float) -> tuple[float, float]:
    """A point at random, so far from the shoulder."""
    angle = random.uniform(0, 2 * np.pi)
    radius = nearest if nearest == farthest else random.uniform(nearest, farthest)
    return radius * np.cos(angle), radius * np.sin(angle)


def _seen(physics, links: int) -> collections.OrderedDict:
    """Joints, velocities, target, and the way from the finger to it."""
    data = physics.named.data
    return collections.OrderedDict(
        joints=np.concatenate([np.sin(physics.data.qpos[:links]), np.cos(physics.data.qpos[:links])]),
        velocity=physics.data.qvel[:links].copy(),
        target=data.site_xpos["target", :2].copy(),
        to_target=(data.site_xpos["target"] - data.site_xpos["finger"])[:2],
    )


def _arm(links: int, tip: str, reach: float = REACH) -> etree._Element:
    """The arena with an arm of links of equal length, `tip` in the frame of its end."""
    mjcf = common.model("reacher.xml")
    world = mjcf.find("worldbody")
    world.remove(common.find(mjcf, "body", "arm"))
    world.remove(common.find(mjcf, "geom", "target"))
    common.find(mjcf, "camera", "fixed").set("pos", "0 0 .7")
    length = reach / links
    body = f'<body name="tip" pos="{length} 0 0">{tip}<site name="finger"/></body>'
    for number in reversed(range(links)):
        limits = 'limited="true" range="-150 150"' if number else ""
        body = (
            f'<body name="link_{number}" pos="{length if number else 0} 0 {0 if number else 0.01}">'
            f'<joint name="joint_{number}" {limits}/>'
            f'<geom name="link_{number}" type="capsule" fromto="0 0 0 {length} 0 0" size=".01" material="self"/>'
            f"{body}</body>"
        )
    world.extend(common.fragment(body))
    motors = "".join(f'<motor name="joint_{number}" joint="joint_{number}"/>' for number in range(links))
    mjcf.find("actuator")[:] = common.fragment(motors)
    return mjcf


def _contact_between(mjcf: etree._Element, *names: str) -> None:
    """Contact on, but only between the geoms whose names begin so."""
    mjcf.find("option/flag").set("contact", "enable")
    for geom in mjcf.find("worldbody").iter("geom"):
        if not geom.get("name").startswith(names):
            geom.set("contype", "0"), geom.set("conaffinity", "0")


def _on_slides(name: str, shape: str, material: str, mass: float = 1, damping: float = 10, reach: float = 0) -> str:
    limits = f' limited="true" range="-{reach} {reach}"' if reach else ""
    slides = "".join(
        f'<joint name="{name}_{axis}" type="slide" axis="{direction}" damping="{damping}"{limits}/>'
        for axis, direction in (("x", "1 0 0"), ("y", "0 1 0"))
    )
    return (
        f'<body name="{name}" pos="0 0 .01">{slides}<site name="{name}"/>'
        f'<geom name="{name}" {shape} mass="{mass}" material="{material}"/></body>'
    )


def reacher(links: int, fixed: bool = False, obstacle: bool = False) -> control.Environment:
    """An arm of this many links, 0.24 m in all."""
    mjcf = _arm(links, '<geom name="finger" type="sphere" size=".012" material="effector"/>')
    world = mjcf.find("worldbody")
    world.extend(common.fragment(_on_slides("target", f'type="sphere" size="{TARGET_SIZE}"', "target")))
    if obstacle:
        world.extend(
            common.fragment(_on_slides("obstacle", f'type="sphere" size="{OBSTACLE}"', "decoration", damping=1e4))
        )
        _contact_between(mjcf, "link", "obstacle")
    return common.environment(mjcf, Reacher(links, fixed, obstacle), 0.02)


def canada2d() -> control.Environment:
    """Three links with a stick across the end, a puck that slides on the ground, a target that nothing moves."""
    blade = '<geom name="stick" type="capsule" fromto="0 -.04 0 0 .04 0" size=".01" material="effector"/>'
    mjcf = _arm(3, blade)
    mjcf.find("worldbody").extend(common.fragment(
        _on_slides("object", 'type="cylinder" size=".02 .01"', "decoration", mass=0.02, damping=0.02, reach=0.28)
        + _on_slides("target", 'type="cylinder" size=".03 .002"', "target")
    ))  # fmt: skip
    _contact_between(mjcf, "stick", "object")
    return common.environment(mjcf, Hit(), 0.02)


TASKS = {
    "reacherSingle": partial(reacher, 1),
    "reacherDouble": partial(reacher, 2),
    "reacher": partial(reacher, 3),
    "fixedReacherSingle": partial(reacher, 1, fixed=True),
    "fixedReacherDouble": partial(reacher, 2, fixed=True),
    "fixedReacher": partial(reacher, 3, fixed=True),
    "reacherObstacle": partial(reacher, 5, obstacle=True),
    "canada2d": canada2d,
}
