"""cart, pendulum, and poles on a cart, side by side or in a chain: dm_control's models, edited."""

import collections
from functools import partial

import numpy as np
from dm_control.rl import control
from dm_control.suite import base, cartpole
from dm_control.suite.common import ASSETS
from dm_control.utils import rewards
from lxml import etree

from pixel_ddpg.envs.tasks import common


class Cart(base.Task):
    """Bring a mass on a rail to rest at 0.

    r = near(|x|; 0.05, 1) * (1 + tolerance(v; margin 2)) / 2 - 0.01 a^2, in [-0.01, 1]. Starts with x in +-1.5 m and
    v in +-1 m/s.
    """

    def initialize_episode(self, physics):
        physics.data.qpos[:] = self.random.uniform(-1.5, 1.5)
        physics.data.qvel[:] = self.random.uniform(-1, 1)
        super().initialize_episode(physics)

    def get_observation(self, physics):
        return collections.OrderedDict(position=physics.position(), velocity=physics.velocity())

    def get_reward(self, physics):
        still = (1 + rewards.tolerance(float(physics.data.qvel[0]), margin=2)) / 2
        return common.near(abs(physics.data.qpos[0]), 0.05, 1) * still - common.action_cost(physics)


class Pendulum(base.Task):
    """Swing a pendulum up against a torque limit, and balance it.

    r = ((1 + cos) / 2 + [within 8 degrees of upright, margin 0.2 of cos]) / 2 - 0.01 a^2, in [-0.01, 1]. Starts
    anywhere in [-pi, pi), at rest.
    """

    def initialize_episode(self, physics):
        physics.data.qpos[:] = self.random.uniform(-np.pi, np.pi)
        super().initialize_episode(physics)

    def get_observation(self, physics):
        orientation = physics.named.data.xmat["pole", ["zz", "xz"]]
        return collections.OrderedDict(orientation=orientation, velocity=physics.velocity())

    def get_reward(self, physics):
        cosine = float(physics.named.data.xmat["pole", "zz"])
        bonus = rewards.tolerance(cosine, (np.cos(np.deg2rad(8)), 1), margin=0.2)
        return ((1 + cosine) / 2 + bonus) / 2 - common.action_cost(physics)


def cart() -> control.Environment:
    """A cart on its rail."""
    mjcf = common.model("cartpole.xml")
    pole = common.find(mjcf, "body", "pole_1")
    pole.getparent().remove(pole)
    return common.environment(mjcf, Cart(), 0.01)


def pendulum() -> control.Environment:
    """dm_control's pendulum with a smooth reward."""
    return common.environment(common.model("pendulum.xml"), Pendulum(), 0.02)


LENGTHS = (1.0, 0.5, 0.25)  # poles of one length could not be told apart by a force on the cart


def parallel_poles(poles: int) -> control.Environment:
    """Poles hinged side by side on one cart, 1, 0.5 and 0.25 m long, 0.1 kg a metre, within 2 degrees of upright.

    dm_control's reward for balance: r = mean((1 + cos) / 2) * (1 + tolerance(x; margin 2)) / 2
    * (4 + tolerance(a; margin 1, quadratic)) / 5 * (1 + min tolerance(angular velocity; margin 5)) / 2, in [0, 1].
    """
    mjcf = common.model("cartpole.xml")
    first = common.find(mjcf, "body", "pole_1")
    cart = first.getparent()
    cart.remove(first)
    materials = ("self", "effector", "target")
    for number, (length, material) in enumerate(zip(LENGTHS[:poles], materials), 1):
        depth = 0.1 * ((poles + 1) / 2 - number)  # shorter ones in front
        cart.extend(common.fragment(
            f'<body name="pole_{number}" childclass="pole" pos="0 {depth} 0"><joint name="hinge_{number}"/>'
            f'<geom name="pole_{number}" fromto="0 0 0 0 0 {length}" material="{material}" mass="{0.1 * length}"/>'
            f'</body>'
        ))  # fmt: skip
    return _balance(mjcf, swing_up=False)


def serial_poles(poles: int) -> control.Environment:
    """dm_control's chain of poles, hanging at first, with dm_control's reward and a camera that sees all of it."""
    mjcf = etree.fromstring(cartpole.get_model_and_assets(num_poles=poles)[0])
    common.find(mjcf, "camera", "fixed").set("pos", f"0 {-1 - 2.4 * poles} 1")
    return _balance(mjcf, swing_up=True)


def _balance(mjcf: etree._Element, swing_up: bool) -> control.Environment:
    physics = cartpole.Physics.from_xml_string(common.text(mjcf), ASSETS)
    task = cartpole.Balance(swing_up=swing_up, sparse=False)
    return control.Environment(physics, task, time_limit=common.STEPS * 0.01)


TASKS = {
    "cart": cart,
    "pendulum": pendulum,
    "cartpoleParallelDouble": partial(parallel_poles, 2),
    "cartpoleParallelTriple": partial(parallel_poles, 3),
    "cartpoleSerialDouble": partial(serial_poles, 2),
    "cartpoleSerialTriple": partial(serial_poles, 3),
}
