"""The CPU as in a run, with one thread, so that tests neither fight over cores nor change with them; no stop-watch."""

import hypothesis
import pytest
import torch

from pixel_ddpg.envs import rendering
from pixel_ddpg.runtime import machine

machine.prepare_cpu(1)
rendering.choose_backend(1)  # once for all: which test imports mujoco first is chance
hypothesis.settings.register_profile("pixel_ddpg", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("pixel_ddpg")


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
