"""What a suite tells: the plan before it begins, and where each run stands."""

import contextlib
import heapq
import pathlib
import shutil
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.suite.plan import Job, Suite
from experiments.suite.worker import Estimate
from pixel_ddpg.command import is_terminal
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import memory
from pixel_ddpg.training import checkpoint
from pixel_ddpg.training.cost import format_hours
from pixel_ddpg.training.rows import EvalRow, TrainRow, read_rows


def makespan(hours: list[float], at_once: int) -> float:
    """Hours until all are done, each started as soon as there is room."""
    ends = [0.0] * at_once
    for each in hours:
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return max(ends)


def print_plan(
    console: Console, plan: Suite, jobs: list[Job], costs: dict[Job, Estimate], at_once: int, why: str
) -> None:
    """What is going to happen, at what cost; UserError where no run can begin or the disk is too small."""
    variants = list(dict.fromkeys(f"{job.preset} {job.obs}" for job in jobs))
    known = [cost for cost in costs.values() if not cost.why]
    memory_of_one = max((cost.memory for cost in known), default=0)
    disk_of_one = max((cost.disk for cost in known), default=0)
    there = {job: checkpoint.disk_bytes(job.run_dir) for job in costs}
    growth = sorted(max(0, cost.disk - there[job]) for job, cost in costs.items() if not cost.why)
    needed = sum(growth) if plan.keep_replay else sum(growth[-at_once:]) + sum(cost.kept for cost in known)
    existing = next(folder for folder in (pathlib.Path(plan.out), *pathlib.Path(plan.out).parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    size = memory.format_bytes
    hours, without = sum(cost.hours for cost in known), len(costs) - len(known)
    rows = {
        "tasks": f"{len(plan.tasks)}: {', '.join(plan.tasks)}",
        "variants": ", ".join(variants),
        "runs": f"{len(jobs)} of {plan.frames:,} frames, seeds {', '.join(map(str, plan.seeds))}; "
        f"{len(jobs) - len(costs)} are done",
        "at once": f"{at_once}: {why}",
        "memory": f"up to {size(memory_of_one)} a run",
        "disk": f"up to {size(disk_of_one)} a run, {size(needed)} in all; {size(free)} are free",
        "time": f"about {format_hours(makespan([cost.hours for cost in known], at_once))}"
        f" ({hours:.1f} run hours), measured just now" + f"; without {without} runs that could not be" * (without > 0),
        "out": plan.out,
    }
    for name, value in rows.items() if known else list(rows.items())[:3]:
        console.print(Text(f"{name:9}", "bold"), value)
    reasons: dict[str, list[str]] = {}
    for job, cost in costs.items():
        if cost.why:
            reasons.setdefault(cost.why, []).append(f"{job.task} {job.obs}")
    if costs and not known:
        raise UserError(f"no run can begin: {'; '.join(reasons)}", code=1)
    for why_not, names in reasons.items():
        alike = ", ".join(dict.fromkeys(names))
        console.print(Text("not measured", "red"), f"{alike}: {why_not}")
    if needed > free:
        raise UserError(
            f"the runs need {size(needed)} of disk, {size(free)} are free for {plan.out}: free some, choose another "
            "out=, or a smaller replay.capacity=",
            code=1,
        )


class Board:
    """Where each run stands: one live table in a terminal, a line an event elsewhere."""

    def __init__(self, console: Console, plan: Suite, jobs: list[Job], costs: dict[Job, Estimate], at_once: int):
        self._console, self._plan, self._costs, self._at_once = console, plan, costs, at_once
        self.total, self.waiting = len(jobs), list(costs)
        self.running: dict[Job, dict] = {}
        self.done = len(jobs) - len(costs)
        self.failed: dict[Job, str] = {}
        self._since = dict.fromkeys(costs, time.time())  # when it was given to Ray
        live = is_terminal(console.file)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False) if live else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error) -> None:
        if self._live:
            self._live.update("", refresh=True)
            self._live.stop()

    def look(self) -> None:
        """Read the runs' folders."""
        for job in [job for job in self.waiting if self._has_begun(job)]:
            self.waiting.remove(job)
            self.running[job] = {}
            self.say(f"started {job.name}")
        for job in self.running:
            self.running[job] = self._standing(job)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def end(self, job: Job, why: str = "") -> None:
        """A run has ended, well unless it is said why."""
        if job in self.waiting:
            self.waiting.remove(job)
        self.running.pop(job, None)
        if why:
            self.failed[job] = why
            self.say(f"failed  {job.name}: {why}")
            return
        self.done += 1
        standing = self._standing(job)
        took = f"return {standing['return']:.1f}, {format_hours(standing['hours'])}" if standing else "unreadable"
        self.say(f"done    {job.name}: {took}  ({self.done} of {self.total}, about {format_hours(self.left())} left)")

    def lose(self, job: Job, why: str) -> None:
        """A run is given to Ray again."""
        self.running.pop(job, None)
        self.waiting = [job, *(each for each in self.waiting if each != job)]
        self._since[job] = time.time()
        self.say(f"lost    {job.name}: {why}; it resumes from its last checkpoint")

    def left(self) -> float:
        """Hours to the end of the suite."""
        hours = [standing.get("left", self._estimate(job)) for job, standing in self.running.items()]
        return makespan(sorted(hours) + [self._estimate(job) for job in self.waiting], self._at_once)

    def _estimate(self, job: Job) -> float:
        return self._costs[job].hours

    def _has_begun(self, job: Job) -> bool:
        log = job.run_dir / "log.txt"
        return log.exists() and log.stat().st_mtime >= self._since[job]

    def _standing(self, job: Job) -> dict:
        """Frame, return, speed and hours left of a run, as far as it has told."""
        standing: dict[str, float] = {}
        found = []
        with contextlib.suppress(UserError):  # a damaged file is the run's own affair
            found = read_rows(job.run_dir / "metrics.jsonl")
        for row in found:
            if isinstance(row, EvalRow):
                standing |= {"return": row.return_, "hours": row.hours}
            elif isinstance(row, TrainRow):
                left = row.hours * max(0.0, self._plan.frames / row.frame - 1)
                standing |= {"frame": row.frame, "speed": row.frames_per_second, "left": left}
        return standing

    def say(self, text: str) -> None:
        """A line, with the time."""
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"))

    def _table(self) -> Group:
        table = Table("running", "frames", "return", "frames/s", "left", box=None, pad_edge=False)
        for job, standing in self.running.items():
            left = format_hours(standing.get("left", self._estimate(job)))
            cells = [f"{standing[key]:,.0f}" if key in standing else "-" for key in ("frame", "return", "speed")]
            table.add_row(job.name, *cells, left)
        counts = f"{self.done} of {self.total} done, {len(self.running)} running, {len(self.waiting)} waiting, "
        return Group(table, Text(f"{counts}{len(self.failed)} failed, about {format_hours(self.left())} left"))
