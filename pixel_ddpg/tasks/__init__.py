"""The catalogue: every task by name, without importing a simulator."""

import csv
import pathlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task: where it comes from and what it looks like."""

    name: str  # domain-task, as in cheetah-run
    origin: str  # dm_control.suite
    tags: tuple[str, ...]
    state_dim: int  # nq + nv
    action_dim: int
    observation_dim: int  # the flat low-dimensional observation
    control_timestep: float  # seconds a frame
    time_limit: float  # seconds
    camera: int  # the fixed camera the agent looks through

    @property
    def episode_frames(self) -> int:
        """Frames until an episode runs out of time."""
        return round(self.time_limit / self.control_timestep)

    def load(self, seed: int):
        """The task's dm_env environment; its random stream derives from `seed`, its model is always the same one."""
        from pixel_ddpg import rendering

        rendering.choose_backend()
        with rendering.gl_failures_explained():
            from absl import logging
            from dm_control import suite

            logging.set_verbosity(logging.ERROR)  # dm_control's models use an attribute that mujoco calls deprecated
            limit = {"time_limit": self.time_limit} if self.name.startswith("lqr-") else {}  # endless in dm_control
            # lqr draws its springs when it is built: the fixed 0 makes it one system for all seeds
            environment = suite.load(*self.name.split("-"), task_kwargs={"random": 0, **limit})
        environment.task.random.seed(seed % 2**32)
        return environment


# lqr runs for ever in dm_control; here it ends after 1000 control steps like the other tasks.
_LQR_TIME_LIMIT = 30.0


def _read_suite() -> dict[str, Task]:
    rows = csv.DictReader((pathlib.Path(__file__).parent / "suite.csv").read_text().splitlines())
    tasks = [
        Task(
            name=f"{row['domain']}-{row['task']}",
            origin="dm_control.suite",
            tags=tuple(row["tags"].split("|")) if row["tags"] != "(none)" else (),
            state_dim=int(row["dim_state_nq_plus_nv"]),
            action_dim=int(row["dim_action"]),
            observation_dim=int(row["dim_obs_flat"]),
            control_timestep=float(row["control_timestep"]),
            time_limit=_LQR_TIME_LIMIT if row["domain"] == "lqr" else float(row["time_limit_s"]),
            camera=2 if row["domain"] == "quadruped" else 0,  # as DrQ-v2: the closer one
        )
        for row in rows
    ]
    return {task.name: task for task in tasks}


CATALOGUE: dict[str, Task] = _read_suite()
