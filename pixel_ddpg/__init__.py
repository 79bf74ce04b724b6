"""DDPG end to end from pixels on dm_control.

env = pixel_ddpg.make_env("cheetah-run", obs="pixels", seed=0)
env = gymnasium.make("pixel_ddpg/cheetah-run-pixels-v0")
agent = pixel_ddpg.load("runs/cheetah-run/pixels/fast/seed0")
"""

import os
import sys

from pixel_ddpg import errors

if errors.is_command():
    errors.tell_interrupts()
    errors.refuse_deleted_folder()

# Read when torch is loaded: threads that wait for each other spin for microseconds, then sleep. OpenMP's own spinning
# for milliseconds makes an update 20 times slower beside other work, and hardly faster alone.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

try:
    import gymnasium
except ModuleNotFoundError as error:
    if not errors.is_command():
        raise
    sys.exit(f"pixel_ddpg: {error.name} is missing here: `make install`, then `. .venv/bin/activate`")

from pixel_ddpg.envs import tasks


def make_env(task: str, obs: str = "pixels", seed: int | None = None, **options):
    """A task as a gymnasium.Env; `options`: preset, render_mode, and the fields of the configuration's `env`."""
    from pixel_ddpg import gym

    return gym.make_env(task, obs, seed, **options)


def load(run: str):
    """The agent of a run's newest checkpoint, on the CPU: `agent.act(observation)` gives its action, without noise."""
    from pixel_ddpg.runtime import machine
    from pixel_ddpg.training import run_folder

    machine.survive_forks()
    return run_folder.load_run(run)[1]


for _task in tasks.CATALOGUE:
    for _obs in ("pixels", "state"):
        gymnasium.register(
            f"pixel_ddpg/{_task}-{_obs}-v0", "pixel_ddpg.gym:make_env", kwargs={"task": _task, "obs": _obs}
        )
