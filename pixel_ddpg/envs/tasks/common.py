"""What the paper's tasks share: dm_control's models to start from, and the terms of their rewards."""

import numpy as np
from dm_control import mujoco
from dm_control.rl import control
from dm_control.suite import base
from dm_control.suite.common import ASSETS, read_model
from dm_control.utils import rewards
from lxml import etree

ACTION_COST = 0.01
STEPS = 1000  # control steps of an episode, as in dm_control


def model(name: str) -> etree._Element:
    """One of dm_control's models, to be changed: cartpole.xml, reacher.xml, ..."""
    return etree.fromstring(read_model(name))


def fragment(xml: str) -> list[etree._Element]:
    """Elements written as MJCF text."""
    return list(etree.fromstring(f"<fragment>{xml}</fragment>"))


def find(mjcf: etree._Element, tag: str, name: str) -> etree._Element:
    """The element of a model with that name; KeyError where there is none."""
    for element in mjcf.iter(tag):
        if element.get("name") == name:
            return element
    raise KeyError(f"no {tag} '{name}'")


def text(mjcf: etree._Element) -> bytes:
    """The model as MuJoCo reads it."""
    return etree.tostring(mjcf)


def environment(mjcf: etree._Element, task: base.Task, control_timestep: float) -> control.Environment:
    """A model and a task as an environment of `STEPS` control steps."""
    physics = mujoco.Physics.from_xml_string(text(mjcf), ASSETS)
    limit = STEPS * control_timestep
    return control.Environment(physics, task, time_limit=limit, control_timestep=control_timestep)


class Placed(base.Task):
    """A task whose episodes begin where `place` puts things, asked again until the start is clear."""

    def initialize_episode(self, physics):
        clear = False
        while not clear:
            self.place(physics)
            physics.after_reset()
            clear = self.is_clear(physics)
        super().initialize_episode(physics)

    def place(self, physics) -> None:
        """Set the positions that an episode begins with."""
        raise NotImplementedError

    def is_clear(self, physics) -> bool:
        """Whether an episode can begin so: nothing touches."""
        return physics.data.ncon == 0


def action_cost(physics) -> float:
    """ACTION_COST * mean(a^2), in [0, ACTION_COST]."""
    return ACTION_COST * float(np.square(physics.control()).mean())


def near(distance: float, radius: float, margin: float) -> float:
    """(s + b) / 2: s = 1 / (1 + 9 (distance / margin)^2) is smooth in the distance, b a bonus, 1 within the radius."""
    smooth = rewards.tolerance(distance, margin=margin, sigmoid="long_tail")
    return (smooth + rewards.tolerance(distance, (0, radius), margin=radius)) / 2


def distance(physics, first: str, second: str) -> float:
    """Metres between two sites."""
    return float(np.linalg.norm(physics.named.data.site_xpos[first] - physics.named.data.site_xpos[second]))


def carry(physics, hand: str, radius: float, margin: float) -> float:
    """(reach + 3 bring) / 4: the hand's way to the object, and near() for the object's way to the target; in [0, 1].

    reach = 1 / (1 + 9 (d / margin)^2) for the distance d between the sites of hand and object.
    """
    reach = rewards.tolerance(distance(physics, hand, "object"), margin=margin, sigmoid="long_tail")
    return (reach + 3 * near(distance(physics, "object", "target"), radius, margin)) / 4


def put_on_ground(physics, root: str) -> None:
    """Move a root's vertical joint so that the deepest contact just touches."""
    physics.after_reset()
    depth = physics.data.contact.dist.min(initial=0.0)
    physics.named.data.qpos[root] -= depth
    physics.after_reset()
