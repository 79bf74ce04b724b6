"""The presets of the paper and of DrQ-v2 learn what they learned at the commit that as_before.json names.

`python tests/agent/test_as_before.py` prints the numbers of the present code. On one machine they are equal bit for
bit between two commits; the test allows for the rounding of another processor, which adds up in another order.
"""

import json
import pathlib

import numpy as np
import pytest
import torch

from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.agent.exploration import Exploration
from pixel_ddpg.agent.replay import Replay
from pixel_ddpg.presets import compose
from pixel_ddpg.runtime.layers import OPTIMIZED

STORED = pathlib.Path(__file__).with_name("as_before.json")
PRESETS = ("dpg", "offpolicy_dpg", "dpg_replay", "ddpg2016_no_bn", "ddpg2016", "drqv2")
CASES = [f"{preset} {obs}" for preset in PRESETS for obs in ("state", "pixels")]
ACTIONS, STEPS, UPDATES = 2, 60, 5
BATCH = {"dpg": 1, "offpolicy_dpg": 1}


def numbers(case: str) -> list[list[float]]:
    """Losses and Q of some updates from a replay of random steps, then the sum and the size of all weights."""
    torch.set_num_threads(1)
    preset, obs = case.split()
    config = compose([f"preset={preset}", f"obs={obs}", "agent.hidden=[24,20]"])
    stack, draw = config.env.frame_stack, np.random.default_rng(7)
    shape = (3 * config.env.renderings, 40, 40) if obs == "pixels" else (5,)
    agent = DDPG((shape[0] * stack, *shape[1:]), ACTIONS, config.agent, config.noise, layers=OPTIMIZED)
    agent.noise_scale.fill_(0.4)
    replay = Replay(
        shape, ACTIONS, 50, frame_stack=stack, n_step=config.replay.n_step, discount=config.agent.discount,
        random_shift=config.agent.random_shift,
    )  # fmt: skip
    explore = Exploration(config.noise, ACTIONS, 3)

    def element():
        return draw.integers(0, 256, shape, np.uint8) if obs == "pixels" else draw.standard_normal(5, np.float32)

    for step in range(STEPS):
        if step % 20 == 0:
            replay.begin(element())
        action = explore(draw.uniform(-1, 1, ACTIONS), 2 * step)
        replay.add(element(), action, draw.standard_normal(), float(step % 20 != 19), step % 20 == 19)
    rows = []
    for _ in range(UPDATES):
        metrics = agent.update(replay.sample(BATCH.get(preset, 16)))
        rows.append([metrics[name].item() for name in ("critic_loss", "actor_loss", "q")])
    weights = [tensor.double() for tensor in agent.state_dict().values()]
    return [*rows, [sum(w.sum().item() for w in weights), sum(w.square().sum().item() for w in weights)]]


@pytest.mark.parametrize("case", CASES)
def test_a_preset_learns_what_it_learned_before(case):
    stored = json.loads(STORED.read_text())[case]
    got = numbers(case)
    assert [len(row) for row in got] == [len(row) for row in stored]
    for mine, theirs in zip(got, stored):
        assert mine == pytest.approx(theirs, rel=2e-4, abs=2e-5)


if __name__ == "__main__":
    print(json.dumps({case: numbers(case) for case in CASES}, indent=0))
