"""The catalogue: every task by name, without importing a simulator.

suite.csv has dm_control's own tasks, paper.csv those of the DDPG paper (Lillicrap et al., 2016, supplementary 9.1 and
Table 2), by the paper's names.
"""

import csv
import fnmatch
import importlib
import pathlib
from dataclasses import dataclass

import numpy as np

from pixel_ddpg.errors import UserError, nearest


@dataclass(frozen=True)
class Task:
    """One task: where it comes from and what it looks like."""

    name: str  # domain-task of dm_control, as in cheetah-run, or the paper's own, as in hardCheetah
    family: str  # suite, or the module of this folder that builds it
    origin: str  # dm_control.suite, or what the paper's task is made from
    tags: tuple[str, ...]  # dm_control's, planet6; paper, and table1 where the paper's Table 1 has a row
    terminates: bool  # whether an episode can end before its time
    state_dim: int  # nq + nv
    action_dim: int
    observation_dim: int  # the flat low-dimensional observation
    control_timestep: float  # seconds a frame
    time_limit: float  # seconds
    camera: int  # the fixed camera the agent looks through

    @property
    def simulator(self) -> str:
        """mujoco or box2d."""
        return "box2d" if self.family == "racing" else "mujoco"

    @property
    def resets_need_gl(self) -> bool:
        """Whether each reset uploads a new terrain to where pictures are drawn, from state too."""
        return self.name == "quadruped-escape"

    @property
    def same_as(self) -> str:
        """dm_control's name of one of its own tasks, as cheetah-run for the paper's cheetah; else the task's name."""
        return self.origin.split()[-1] if self.family == "suite" and "-" not in self.name else self.name

    @property
    def episode_frames(self) -> int:
        """Frames until an episode runs out of time."""
        return round(self.time_limit / self.control_timestep)

    def load(self, seed: int):
        """The task's dm_env environment; its random stream derives from `seed`, its model is always the same one."""
        from pixel_ddpg.envs import rendering

        rendering.choose_backend()
        with rendering.logging_kept():
            with rendering.gl_failures_explained():
                from dm_control import suite  # noqa: F401  (loads GL; what builds a task imports it again)
            environment = self._build()
        environment.task.random.seed(for_numpy(seed))
        return environment

    def _build(self):
        if self.family != "suite":
            return importlib.import_module(f"pixel_ddpg.envs.tasks.{self.family}").TASKS[self.name]()
        from dm_control import suite

        domain, task = self.same_as.split("-")
        limit = {"time_limit": self.time_limit} if domain == "lqr" else {}  # endless in dm_control
        # lqr draws its springs when it is built: the fixed 0 makes it one system for all seeds
        return suite.load(domain, task, task_kwargs={"random": 0, **limit})


def for_numpy(seed: int) -> int | list[int]:
    """A seed of any size as RandomState takes it: one of 32 bits as it is, a larger one as several numbers."""
    return seed if seed < 2**32 else np.random.SeedSequence(seed).generate_state(4).tolist()


# lqr runs for ever in dm_control; here it ends after 1000 control steps like the other tasks.
_LQR_TIME_LIMIT = 30.0


# The six on which PlaNet (Hafner et al., 2019) and its successors are compared.
PLANET6 = (
    "cartpole-swingup", "reacher-easy", "ball_in_cup-catch", "cheetah-run", "finger-spin", "walker-walk",
)  # fmt: skip


def _suite_tags(row: dict[str, str]) -> tuple[str, ...]:
    own = tuple(row["tags"].split("|")) if row["tags"] != "(none)" else ()
    return (*own, "planet6") if f"{row['domain']}-{row['task']}" in PLANET6 else own


def _read_suite() -> dict[str, Task]:
    rows = csv.DictReader((pathlib.Path(__file__).parent / "suite.csv").read_text("utf-8").splitlines())
    tasks = [
        Task(
            name=f"{row['domain']}-{row['task']}",
            family="suite",
            origin="dm_control.suite",
            tags=_suite_tags(row),
            terminates=row["domain"] == "lqr",
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


def _read_paper() -> dict[str, Task]:
    rows = csv.DictReader((pathlib.Path(__file__).parent / "paper.csv").read_text("utf-8").splitlines())
    tasks = [
        Task(
            name=row["name"],
            family=row["family"],
            origin="dm_control " + row["source"] if row["family"] == "suite" else row["source"],
            tags={"1": ("paper", "table1"), "0": ("paper",), "": ()}[row["table1"]],
            terminates=row["terminates"] == "1",
            state_dim=int(row["dim_state_nq_plus_nv"]),
            action_dim=int(row["dim_action"]),
            observation_dim=int(row["dim_obs_flat"]),
            control_timestep=float(row["control_timestep"]),
            time_limit=1000 * float(row["control_timestep"]),
            camera=0,
        )
        for row in rows
    ]
    return {task.name: task for task in tasks}


CATALOGUE: dict[str, Task] = _read_paper() | _read_suite()
ALL_TASKS = "`python -m pixel_ddpg.list` shows all"


def find(name: str) -> Task:
    """The task of that name; UserError, with the nearest one, where there is none."""
    if name not in CATALOGUE:
        if "," in name:
            raise UserError(f"task={name}: name one; --multirun runs one after the other")
        raise UserError(f"unknown task '{name}'{nearest(name, list(CATALOGUE), ALL_TASKS)}")
    return CATALOGUE[name]


def select(name: str, tag: str) -> list[Task]:
    """The tasks whose name matches the pattern and that have the tag; UserError where there are none."""
    tags = sorted({tag for task in CATALOGUE.values() for tag in task.tags})
    if tag and tag not in tags:
        raise UserError(f"unknown tag '{tag}'{nearest(tag, tags)}")
    tagged = [task for task in CATALOGUE.values() if not tag or tag in task.tags]
    found = [task for task in tagged if fnmatch.fnmatch(task.name, name)]
    if not found:
        where = f" with tag={tag}" if tag else ""
        raise UserError(f"no task{where} is called '{name}'{nearest(name, [t.name for t in tagged], ALL_TASKS)}")
    return found
