"""python -m experiments.suite profile=quick: tasks x {state, pixels} x seeds on Ray, and the report of it.

The same command goes on with what is unfinished. Words of `python -m pixel_ddpg.run`, as env.size=84, go to every run.
"""

import contextlib
import dataclasses
import heapq
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments import report, runs, worker
from experiments.profiles import LADDER, PROFILES, SETS
from pixel_ddpg import checkpoint, config, files, machine, rendering, tasks, trainer
from pixel_ddpg.logger import read_rows
from pixel_ddpg.run import Output, format_hours

POLL_SECONDS = 2.0
SAVE_SECONDS = 120  # that runs get to save a checkpoint after Ctrl-C


@dataclass
class Suite:
    """Options of the command."""

    profile: str = "quick"  # smoke, quick or paper; what is empty below is the profile's own
    tasks: Any = None  # names, or sets: paper, figure2, planet6, dmc_easy, dmc_medium, dmc_hard, dmc28, ladder
    observations: Any = None  # written obs=: [pixels,state] or one of them
    presets: Any = None  # written preset=: one, or several in brackets
    controls: Any = None  # presets that run from state alone
    seeds: Any = None  # how many, from 0 on; or which, as [3,4]
    frames: Any = None  # of each run
    run: list[str] = field(default_factory=list)  # what goes to every run; words as env.size=84 are put here
    out: str = ""  # folder of the runs and the report; default: runs/<profile>
    threads: int = 1  # CPU threads a run
    address: str = ""  # of a Ray cluster, as auto or 10.0.0.1:6379; default: this machine alone
    runs_per_gpu: int = 1  # where there are GPUs
    retries: int = 2  # of a run whose process or machine is lost
    keep_replay: bool = False  # after a run's end too, so that a larger frames= makes it go on
    dry_run: bool = False  # the same as --dry-run: print the plan, and stop


config.register_command("suite", Suite, "experiments")
PRESETS = config.CHOICES["preset"]
# What the suite itself decides of a run.
OWN = ("task", "obs", "preset", "seed", "frames", "threads", "run_dir", "resume", "overwrite", "wandb_id")


@dataclass(frozen=True)
class Job:
    """One run that is wanted."""

    task: str
    obs: str
    preset: str
    seed: int
    run_dir: pathlib.Path
    words: tuple[str, ...]  # of python -m pixel_ddpg.run

    @property
    def name(self) -> str:
        return f"{self.task} {self.obs} {self.preset} seed {self.seed}"


# Hydra takes these words for its groups, which hold one name each.
NAMES = {"obs": "observations", "preset": "presets"}


def hydra_words(words: list[str]) -> list[str]:
    """The command's words as Hydra's: --dry-run, obs= and preset= by their fields' names, a run's own in run=[...]."""
    words = ["dry_run=true" if word == "--dry-run" else word for word in words]
    words = [re.sub(r"^(obs|preset)=", lambda found: f"{NAMES[found[1]]}=", word) for word in words]
    own = {item.name for item in dataclasses.fields(Suite)}
    theirs = {key for key in config.words(config.Config) if key not in OWN} - own
    dotted = re.compile(r"[+~]*(?!hydra\.)\w+\.[\w.]+=")
    passed = [word for word in words if word.lstrip("+~").split("=")[0] in theirs or dotted.match(word)]
    if not passed:
        return words
    return [word for word in words if word not in passed] + [f"run=[{','.join(map(config.quote, passed))}]"]


def settle(options: Suite) -> Suite:
    """The options with the profile's in place of null, as lists; UserError for what does not fit."""
    if options.profile not in PROFILES:
        raise config.UserError(f"unknown profile '{options.profile}'{config.nearest(options.profile, list(PROFILES))}")
    profile, given = PROFILES[options.profile], vars(options)
    if given["tasks"] is not None and "ladder" in _listed(given["tasks"]):
        profile = profile | {"presets": LADDER, "controls": []}
    elif given["presets"] is not None:
        profile = profile | {"controls": []}
    settled = {key: profile[key] if given[key] is None else given[key] for key in profile}
    settled["tasks"] = _tasks([str(name) for name in _listed(settled["tasks"])])
    for key, names in (("observations", config.CHOICES["obs"]), ("presets", PRESETS), ("controls", PRESETS)):
        settled[key] = _names(key, _listed(settled[key]), names)
    settled["seeds"] = _seeds(settled["seeds"])
    settled["frames"] = _whole("frames", settled["frames"], 1)
    settled["run"] = [*profile["run"], *options.run]
    for key, least in (("threads", 1), ("runs_per_gpu", 1), ("retries", 0)):
        _whole(key, given[key], least)
    return dataclasses.replace(options, **settled, out=options.out or f"runs/{options.profile}")


def _names(key: str, values: list, known: list[str]) -> list[str]:
    """The values, each of which must be known."""
    for value in values:
        if value not in known:
            said = next((word for word, name in NAMES.items() if name == key), key)
            raise config.UserError(f"unknown {said} '{value}'{config.nearest(str(value), known)}")
    return values


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _whole(key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise config.UserError(f"{key}={value} must be a whole number, at least {least}")
    return value


def _seeds(value: Any) -> list[int]:
    """n: 0 to n - 1; a list: itself."""
    seeds = list(value) if isinstance(value, list) else list(range(_whole("seeds", value, 1)))
    return list(dict.fromkeys(_whole("seeds", seed, 0) for seed in seeds))


def _tasks(names: list[str]) -> list[str]:
    """Sets in place of their names; none twice."""
    chosen = [task for name in names for task in SETS.get(name, [name])]
    for name in chosen:
        if name not in tasks.CATALOGUE:
            raise config.UserError(f"unknown task or set '{name}'{config.nearest(name, [*tasks.CATALOGUE, *SETS])}")
    return list(dict.fromkeys(chosen))


def make_jobs(plan: Suite) -> list[Job]:
    """Every run, the first seed of all before the second of any."""
    variants = [(preset, obs) for preset in plan.presets for obs in plan.observations]
    variants += [(preset, "state") for preset in plan.controls if "state" in plan.observations]
    jobs = []
    for seed in plan.seeds:
        for task in plan.tasks:
            for preset, obs in dict.fromkeys(variants):
                run_dir = pathlib.Path(plan.out) / task / obs / preset / f"seed{seed}"
                words = [f"task={task}", f"obs={obs}", f"preset={preset}", f"seed={seed}", f"frames={plan.frames}"]
                words += [f"threads={plan.threads}", "wandb=off", *plan.run, f"run_dir={run_dir}"]
                jobs.append(Job(task, obs, preset, seed, run_dir, tuple(words)))
    if not jobs:
        raise config.UserError("no runs: tasks=, obs=, preset= and seeds= must each name something")
    return jobs


def unfinished(jobs: list[Job], frames: int) -> list[Job]:
    """Those that have not ended; UserError for a run that was made with other settings, or cannot go on."""
    checked, pending = set(), []
    for job in jobs:
        found = (job.run_dir / "config.yaml").exists()
        if found or (job.obs, job.preset) not in checked:
            shared = [word for word in job.words if not word.startswith(("seed=", "run_dir="))]
            wanted = dataclasses.replace(config.composed(*shared), seed=job.seed)
            config.check(wanted)
            checked.add((job.obs, job.preset))
        if found and (changed := config.differences(trainer.read_config(job.run_dir), wanted)):
            raise config.UserError(
                f"{job.run_dir} was started with {' '.join(changed)}: repeat that, or choose another out="
            )
        if trainer.is_done(job.run_dir, frames):
            continue
        if checkpoint.newest(job.run_dir) and not checkpoint.has_replay(job.run_dir):
            raise config.UserError(
                f"{job.run_dir} has ended and its replay was deleted, so it cannot go on to frames={frames}: choose "
                "another out=, or delete that folder"
            )
        pending.append(job)
    return pending


# --- Ray ---


@contextlib.contextmanager
def cluster(plan: Suite) -> Iterator[None]:
    """Ray, on this machine alone or on the cluster at `address`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if plan.address:
            ray.init(plan.address, **quiet)
        else:
            cores = rendering.available_threads()
            ray.init("local", num_cpus=cores, object_store_memory=80 * 2**20, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = config.first_line(error)
        mend = "start one with `ray start --head`, or leave out address=" if plan.address else "try again"
        raise config.UserError(f"no Ray at {plan.address or 'this machine'} ({why}): {mend}", 1) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set its own
    try:
        if plan.threads > (cores := largest_machine()):
            raise config.UserError(f"threads={plan.threads} is more than the {cores} cores of the largest machine")
        yield
    finally:
        ray.shutdown()


def largest_machine() -> int:
    """Cores of that one in the cluster."""
    return max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def slots(plan: Suite, costs: dict[Job, dict]) -> tuple[int, str]:
    """How many runs there is room for at once, and why."""
    total = ray.cluster_resources()
    each = share(plan)
    room = {f"{total['CPU']:.0f} cores, {each['num_cpus']} a run": int(total["CPU"] // each["num_cpus"])}
    if "num_gpus" in each:
        gpus = total["GPU"]
        shared = "1 GPU, {} runs on it" if gpus == 1 else f"{gpus:.0f} GPUs, {{}} runs on each"
        room[shared.format(plan.runs_per_gpu)] = int(gpus * plan.runs_per_gpu)
    if memory := max((cost["memory"] for cost in costs.values()), default=0):
        free = machine.format_bytes(int(total["memory"]))
        room[f"{free} of memory, up to {machine.format_bytes(memory)} a run"] = int(total["memory"] // memory)
    why = min(room, key=room.get)
    return max(1, room[why]), why


def share(plan: Suite) -> dict[str, float]:
    """What a run takes of a machine's cores, one for each of its environments too, and, where there are any, GPUs."""
    cores = {"num_cpus": max(plan.threads, min(config.composed(*plan.run).envs, largest_machine()))}
    if not ray.cluster_resources().get("GPU") or "device=cpu" in plan.run:
        return cores
    return cores | {"num_gpus": 1 / plan.runs_per_gpu}


def measure(jobs: list[Job], plan: Suite) -> dict[Job, dict]:
    """What each run will take, measured by short tries, as many at once as runs would be."""
    order = sorted(jobs, key=lambda job: job.obs)  # pixels first: see worker.measure
    alike: dict[tuple, list[Job]] = {}  # seeds cost the same
    for job in order:
        alike.setdefault((job.task, job.obs, job.preset), []).append(job)
    groups = list(alike.values())
    at_once, _ = slots(plan, {})
    parts = [part for i in range(at_once) if (part := groups[i::at_once])]
    remote = ray.remote(max_calls=1, **share(plan))(worker.measure)
    refs = [remote.remote([list(group[0].words) for group in part], time.time()) for part in parts]
    costs = {}
    for part, ref in zip(parts, refs):
        try:
            found = ray.get(ref)
        except ray.exceptions.RayError as error:
            found = [{"why": type(error).__name__}] * len(part)
        costs |= {job: dict(cost) for group, cost in zip(part, found) for job in group}
    most = max((cost.get("memory", 0) for cost in costs.values()), default=0)
    for job, cost in costs.items():
        cost.setdefault("memory", most)
        if "hours" in cost:
            cost["hours"] *= checkpoint.to_do(job.run_dir, plan.frames)
    return {job: costs[job] for job in jobs}


def makespan(hours: list[float], at_once: int) -> float:
    """Hours until all are done, each begun as soon as there is room."""
    ends = [0.0] * at_once
    for each in hours:
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return max(ends)


def print_plan(console: Console, plan: Suite, jobs: list[Job], costs: dict[Job, dict], at_once: int, why: str) -> None:
    """What is going to happen, at what cost; UserError where no run can begin or the disk is too small."""
    variants = list(dict.fromkeys(f"{job.preset} {job.obs}" for job in jobs))
    known = [cost for cost in costs.values() if "hours" in cost]
    largest = {key: max((cost[key] for cost in known), default=0) for key in ("memory", "disk")}
    there = {job: checkpoint.disk_bytes(job.run_dir) for job in costs}
    growth = sorted(max(0, cost["disk"] - there[job]) for job, cost in costs.items() if "disk" in cost)
    needed = sum(growth) if plan.keep_replay else sum(growth[-at_once:]) + sum(cost["kept"] for cost in known)
    existing = next(folder for folder in (pathlib.Path(plan.out), *pathlib.Path(plan.out).parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    size = machine.format_bytes
    hours, without = sum(cost["hours"] for cost in known), len(costs) - len(known)
    rows = {
        "tasks": f"{len(plan.tasks)}: {', '.join(plan.tasks)}",
        "variants": ", ".join(variants),
        "runs": f"{len(jobs)} of {plan.frames:,} frames, seeds {', '.join(map(str, plan.seeds))}; "
        f"{len(jobs) - len(costs)} are done",
        "at once": f"{at_once}: {why}",
        "memory": f"up to {size(largest['memory'])} a run",
        "disk": f"up to {size(largest['disk'])} a run, {size(needed)} in all; {size(free)} are free",
        "time": f"about {format_hours(makespan([cost['hours'] for cost in known], at_once))}"
        f" ({hours:.1f} run hours), measured just now" + f"; without {without} runs that could not be" * (without > 0),
        "out": plan.out,
    }
    for name, value in rows.items() if known else list(rows.items())[:3]:
        console.print(f"[bold]{name:9}[/bold] {value}")
    reasons: dict[str, list[str]] = {}
    for job, cost in costs.items():
        if "why" in cost:
            reasons.setdefault(cost["why"], []).append(f"{job.task} {job.obs}")
    if costs and not known:
        raise config.UserError(f"no run can begin: {'; '.join(reasons)}", 1)
    for why_not, names in reasons.items():
        alike = ", ".join(dict.fromkeys(names))
        console.print(f"[red]not measured[/red] {alike}: {why_not}")
    if needed > free:
        raise config.UserError(
            f"the runs need {size(needed)} of disk, {size(free)} are free for {plan.out}: free some, choose another "
            "out=, or a smaller replay.capacity=",
            1,
        )


# --- running ---


class Board:
    """Where each run stands: one live table in a terminal, a line an event elsewhere."""

    def __init__(self, console: Console, plan: Suite, jobs: list[Job], costs: dict[Job, dict], at_once: int):
        self._console, self._plan, self._costs, self._at_once = console, plan, costs, at_once
        self.total, self.waiting = len(jobs), list(costs)
        self.running: dict[Job, dict] = {}
        self.done = len(jobs) - len(costs)
        self.failed: dict[Job, str] = {}
        self._since = dict.fromkeys(costs, time.time())  # when it was given to Ray
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False) if console.is_terminal else None

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
            self.say(f"begun   {job.name}")
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
        self.say(f"lost    {job.name}: {why}; it goes on from its last checkpoint")

    def left(self) -> float:
        """Hours to the end of the suite."""
        hours = [standing.get("left", self._estimate(job)) for job, standing in self.running.items()]
        return makespan(sorted(hours) + [self._estimate(job) for job in self.waiting], self._at_once)

    def _estimate(self, job: Job) -> float:
        return self._costs[job].get("hours", 0.0)

    def _has_begun(self, job: Job) -> bool:
        log = job.run_dir / "log.txt"
        return log.exists() and log.stat().st_mtime >= self._since[job]

    def _standing(self, job: Job) -> dict:
        """Frame, return, speed and hours left of a run, as far as it has told."""
        standing, found = {}, []
        with contextlib.suppress(config.UserError):  # a damaged file is the run's own affair
            found = read_rows(job.run_dir / "metrics.jsonl")
        for row in found:
            if row["kind"] == "eval":
                standing |= {"return": row["return"], "hours": row["hours"]}
            elif row["kind"] == "train":
                left = row["hours"] * max(0.0, self._plan.frames / row["frame"] - 1)
                standing |= {"frame": row["frame"], "speed": row["frames_per_second"], "left": left}
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


def run_all(plan: Suite, costs: dict[Job, dict], board: Board) -> bool:
    """Run what is unfinished; False after Ctrl-C or SIGTERM, which let each run save first."""
    running, waiting, retries = {}, list(costs), dict.fromkeys(costs, plan.retries)
    start, cores = starter(plan), share(plan)["num_cpus"]
    try:
        while running or waiting:
            # Ray keeps no order among runs of different memory: it gets few at a time, also of a growing cluster.
            room = max(1, int(ray.cluster_resources().get("CPU", 0) // cores))
            while waiting and len(running) < 2 * room:
                job = waiting.pop(0)
                if why := too_large(costs[job]["memory"]):
                    board.end(job, why)
                else:
                    running[start(job, costs[job])] = job
            for ref in ray.wait(list(running), timeout=POLL_SECONDS)[0] if running else []:
                job = running.pop(ref)
                why, lost = outcome(ref, job)
                if lost and retries[job]:
                    retries[job] -= 1
                    board.lose(job, why)
                    running[start(job, costs[job])] = job
                else:
                    board.end(job, why)
            board.look()
        return True
    except KeyboardInterrupt:
        board.say("stopping: each run saves a checkpoint first; once more to stop at once")
        for ref in running:
            ray.cancel(ref)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=SAVE_SECONDS)
        return False


def starter(plan: Suite) -> Callable:
    """The function that gives a run to Ray: it begins in a fresh process as soon as there is room."""
    train = ray.remote(max_calls=1, max_retries=0, **share(plan))(worker.train)

    def start(job: Job, cost: dict) -> ray.ObjectRef:
        given = train.options(memory=cost["memory"], name=job.name)
        return given.remote(list(job.words), str(job.run_dir), os.getcwd(), plan.keep_replay)

    return start


def too_large(memory: int) -> str:
    """Why no machine can hold a run; empty if one can."""
    most = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
    if memory <= most:
        return ""
    needs = f"needs {machine.format_bytes(memory)} of memory, there are {machine.format_bytes(most)}"
    return f"{needs}: choose a smaller replay.capacity="


def outcome(ref: ray.ObjectRef, job: Job) -> tuple[str, bool]:
    """Why a run failed, empty if it did not; and whether its process or machine was lost, so that it may go on."""
    try:
        code = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return str(error).strip().splitlines()[-1], False
    except ray.exceptions.OutOfMemoryError:
        return "the machine ran out of memory; threads= lets fewer run at once", True
    except ray.exceptions.RayError as error:
        return f"its process was lost ({type(error).__name__})", True
    if code == 0:
        return "", False
    lines = (job.run_dir / "log.txt").read_text(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {code}"), False


@config.command("suite")
def main(options: Suite) -> int:
    plan = settle(options)
    jobs, out = make_jobs(plan), pathlib.Path(plan.out)
    console = Output(file=sys.stdout, highlight=False, soft_wrap=True)
    with contextlib.nullcontext() if plan.dry_run else files.locked(out, "out"):
        pending = unfinished(jobs, plan.frames)
        with cluster(plan):
            if pending:
                console.print(f"measuring what {len(pending)} run{'s' * (len(pending) > 1)} will take ...")
            costs = measure(pending, plan)
            at_once, why = slots(plan, costs)
            print_plan(console, plan, jobs, costs, at_once, why)
            if plan.dry_run:
                return 0
            write_plan(plan, jobs)
            with (
                Board(console, plan, jobs, costs, at_once) as board,
                open(out / "ray.log", "a") as log,
                contextlib.redirect_stdout(log),  # what Ray says
            ):
                whole = run_all(plan, costs, board)
    for job, reason in board.failed.items():
        console.print(Text(f"failed: {job.name}: {reason}; its log: {job.run_dir / 'log.txt'}"))
    console.print(f"{board.done} of {board.total} runs are done" + ("" if whole else "; the same command goes on"))
    reported = write_report(console, out)
    return 130 if not whole else 1 if board.failed or not reported else 0


def write_plan(plan: Suite, jobs: list[Job]) -> None:
    """The command and its runs, for reports, beside those of other commands for the same folder."""
    wanted = [(job.task, job.obs, job.preset, job.seed) for job in jobs]
    command = shlex.join(["python", *sys.orig_argv[1:]])  # as typed: sys.argv has Hydra's words
    path = pathlib.Path(plan.out, runs.PLANS)
    plans = runs.read_plans(path) if path.exists() else {}
    files.write_atomically(path, json.dumps(plans | {command: wanted}).encode())


def write_report(console: Console, out: pathlib.Path) -> bool:
    """The report of what there is; False where none can be made."""
    try:
        report.make([str(out)], out / "report")
    except config.UserError as error:
        console.print(Text(f"no report: {error}"))
        return False
    console.print(f"report: {out / 'report' / 'report.html'}")
    return True


if __name__ == "__main__":
    sys.argv[1:] = hydra_words(sys.argv[1:])
    sys.exit(main())
