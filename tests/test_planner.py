"""The planner's model against the environment itself, and what planning is worth."""

import json

import numpy as np
import pytest
from small import command

from pixel_ddpg import baseline, tasks
from pixel_ddpg.planner import Model

BASELINE = "pixel_ddpg.baseline"


@pytest.mark.parametrize("name, repeat", [("pendulum", 2), ("cheetah-run", 4), ("hopper", 3), ("gripper", 1)])
def test_returns_of_plans_are_those_of_the_environment(name, repeat):
    """A model with other physics, a reward of another state, or one that goes on earning after a fall."""
    steps, task = 30, tasks.CATALOGUE[name]
    environment = task.load(3)
    environment.reset()
    spec = environment.action_spec()
    plans = np.random.default_rng(0).uniform(spec.minimum, spec.maximum, (3, steps, *spec.shape))
    model = Model(environment, repeat)
    got = model.returns(model.state_of(environment.physics), plans)
    for plan, value in zip(plans, got):
        environment = task.load(3)
        time_step, expected = environment.reset(), 0.0
        for action in plan:
            for _ in range(repeat):
                time_step = environment.step(action)
                if time_step.last():
                    break
            expected += repeat * time_step.reward
            if time_step.last():
                break
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_planning_leaves_the_environment_as_it_is():
    """A planner that moves the simulation it plans for."""
    environment = tasks.CATALOGUE["cheetah"].load(0)
    environment.reset()
    model = Model(environment, 4)
    before = model.state_of(environment.physics)
    model.returns(before, np.ones((2, 5, 6)))
    assert np.array_equal(before, model.state_of(environment.physics))


@pytest.mark.parametrize("name", ["pendulum", "fixedReacher"])
def test_the_planner_beats_random_actions(name, monkeypatch):
    """Plans that are not better than noise."""
    monkeypatch.setattr(baseline.tasks.Task, "load", short(tasks.Task.load, 150))
    task = tasks.CATALOGUE[name]
    planned, random = (baseline.run_episode(task, policy, 4, 0.6, seed=1)[0] for policy in ("planner", "random"))
    assert planned > 1.5 * max(random, 1)


def short(load, frames):
    def shorter(task, seed):
        environment = load(task, seed)
        environment._step_limit = frames
        return environment

    return shorter


def test_the_command_writes_what_it_measured(tmp_path):
    """A table that cannot say how its numbers were made."""
    code, out, _ = command(BASELINE, "task=pendulum", "episodes=2", "seed=3", f"out={tmp_path}/a.json")
    result = json.loads((tmp_path / "a.json").read_text())
    assert code == 0 and out.strip() == f"{tmp_path}/a.json"
    assert len(result["returns"]) == 2 and result["lengths"] == [1000, 1000]
    assert result["return"] == pytest.approx(np.mean(result["returns"])) and result["action_repeat"] == 2
    again = baseline.run_episode(tasks.CATALOGUE["pendulum"], "random", 2, 0.6, seed=4)
    assert again == (result["returns"][1], 1000)


@pytest.mark.parametrize(
    "words, part",
    [
        (["policy=planer"], "did you mean planner"), (["episodes=0"], "at least 1"), (["seed=-1"], "at least 0"),
        (["horizon=nan"], "seconds"), (["task=torcs", "policy=planner"], "not made with"),
        (["task=cart-pole"], "cartpole"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(words, part):
    """A traceback, or a table made with another policy."""
    code, _, err = command(BASELINE, *words)
    assert code == 2 and err.startswith("pixel_ddpg: ") and err.count("\n") == 1 and part in err
