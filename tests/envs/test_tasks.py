"""The static catalogue against dm_control itself, and seeding of the tasks."""

import importlib.util

import numpy as np
import pytest

from pixel_ddpg.envs import rendering, tasks

rendering.choose_backend()  # before dm_control imports mujoco: quadruped-escape needs GL even from state
from dm_control import suite  # noqa: E402

NAMES = list(tasks.CATALOGUE)
SUITE = [name for name, task in tasks.CATALOGUE.items() if task.origin == "dm_control.suite"]
NEEDS_BOX2D = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="needs pip install box2d pygame")
EACH_TASK = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[NEEDS_BOX2D] * (name == "torcs")) for name in NAMES]
)


def flat(observation) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()])


def first_observation(name: str, seed: int) -> np.ndarray:
    return flat(tasks.find(name).load(seed).reset().observation)


def test_names_are_those_of_the_suite():
    """A task that dm_control has and the catalogue lacks, or the other way round."""
    assert set(SUITE) == {f"{domain}-{task}" for domain, task in suite.ALL_TASKS}
    assert len(SUITE) == len(suite.ALL_TASKS) == 51
    assert all(task.name == name for name, task in tasks.CATALOGUE.items())


def test_tags_are_those_of_the_suite():
    """A tag that `list` shows and the suite does not have."""
    for name in SUITE:
        task, (domain, short) = tasks.find(name), name.split("-")
        real = {tag for tag in suite._DOMAINS[domain].SUITE.tags() if (domain, short) in suite._get_tasks(tag)}
        assert set(task.tags) - {"planet6"} == real, name
    assert {name for name, task in tasks.CATALOGUE.items() if "planet6" in task.tags} == set(tasks.PLANET6)


@EACH_TASK
def test_numbers_are_those_of_the_task(name):
    """A wrong dimension, control timestep, episode length or camera in suite.csv."""
    task = tasks.find(name)
    environment = task.load(0)
    assert task.action_dim == environment.action_spec().shape[0]
    assert task.observation_dim == flat(environment.reset().observation).size
    assert task.episode_frames == 1000
    assert np.ceil(round(environment._step_limit, 6)) == task.episode_frames
    if task.simulator == "mujoco":
        physics = environment.physics
        assert task.state_dim == physics.model.nq + physics.model.nv
        assert task.control_timestep == pytest.approx(environment.control_timestep(), rel=1e-9)
        assert task.camera < physics.model.ncam


@EACH_TASK
def test_seed_decides_the_first_observation(name):
    """A task that draws from a random stream of its own, which no seed reaches."""
    first = first_observation(name, 3)
    assert np.array_equal(first, first_observation(name, 3))
    assert not np.array_equal(first, first_observation(name, 4))


@pytest.mark.parametrize("name", ["pendulum-swingup", "lqr-lqr_2_1"])
def test_an_episode_has_as_many_frames_as_the_catalogue_says(name):
    """A time limit that the environment does not keep; lqr has none of its own."""
    environment = tasks.find(name).load(0)
    environment.reset()
    action = np.full(environment.action_spec().shape, 0.5)
    frames = 1
    while not environment.step(action).last():
        frames += 1
    assert frames == tasks.find(name).episode_frames
