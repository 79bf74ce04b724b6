"""DDPG end to end from pixels on dm_control.

env = pixel_ddpg.make_env("cheetah-run", obs="pixels", seed=0)
env = gymnasium.make("pixel_ddpg/cheetah-run-pixels-v0")
agent = pixel_ddpg.load("runs/cheetah-run/pixels/fast/seed0")
"""

import os
import sys

_module = dict(zip(sys.orig_argv, sys.orig_argv[1:])).get("-m", "")
_is_command = _module.split(".")[0] in ("pixel_ddpg", "experiments")


def _tell(kind: type, error: BaseException, trace) -> None:
    if kind is KeyboardInterrupt:
        print("pixel_ddpg: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if _is_command:  # Ctrl-C while its modules are imported; later it is config.command that tells
    sys.excepthook = _tell

# Read when torch is loaded: threads that wait for each other spin for microseconds, then sleep. OpenMP's own spinning
# for milliseconds makes an update 20 times slower beside other work, and hardly faster alone.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

try:
    import gymnasium
except ModuleNotFoundError as error:
    if not _is_command:
        raise
    sys.exit(f"pixel_ddpg: {error.name} is missing here: `make install`, then `. .venv/bin/activate`")

from pixel_ddpg import tasks  # noqa: E402


def list_tasks() -> list[tasks.Task]:
    """Every task: name, tags, origin and dimensions."""
    return [*tasks.CATALOGUE.values()]  # `list` is a module of this package


def make_env(task: str, obs: str = "pixels", seed: int | None = None, **options):
    """A task as a gymnasium.Env; `options` as in the configuration's `env`, such as size or action_repeat."""
    from pixel_ddpg import environment

    return environment.make_env(task, obs, seed, **options)


def load(run: str):
    """The agent of a run's newest checkpoint, on the CPU: `agent.act(observation)` gives its action, without noise."""
    from pixel_ddpg import trainer

    return trainer.load_agent(run)


for _task in tasks.CATALOGUE:
    for _obs in ("pixels", "state"):
        gymnasium.register(
            f"pixel_ddpg/{_task}-{_obs}-v0", "pixel_ddpg.environment:make_env", kwargs={"task": _task, "obs": _obs}
        )
