"""Runs on Ray: what they will take, how many fit at once, and running them all."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from experiments.suite import worker
from experiments.suite.board import Board
from experiments.suite.plan import Job, Suite
from experiments.suite.worker import Estimate
from pixel_ddpg import container
from pixel_ddpg.config import words_of
from pixel_ddpg.errors import UserError, first_line, on_stop
from pixel_ddpg.runtime.memory import format_bytes
from pixel_ddpg.training import checkpoint

POLL_SECONDS = 2.0
KNOCK_SECONDS = 10
LONGEST_TMPDIR = 40  # letters
SAVE_SECONDS = 120  # that runs get to save a checkpoint after Ctrl-C


@contextlib.contextmanager
def cluster(plan: Suite) -> Iterator[None]:
    """Ray, on this machine alone or on the cluster at `address`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if len(tempfile.gettempdir()) > LONGEST_TMPDIR:  # the names of Ray's sockets may have 107 letters
        quiet["_temp_dir"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    fix = "start one with `ray start --head`, or leave out address=" if plan.address else "try again"
    try:
        if plan.address:
            if ":" in plan.address:
                _knock(plan.address)  # Ray itself would try for minutes
                fix = "something else may listen there, another version of Ray, or one that wants RAY_AUTH_MODE=token"
            ray.init(plan.address, **quiet)
        else:
            cores = container.available_threads()
            ray.init("local", num_cpus=cores, object_store_memory=80 * 2**20, include_dashboard=False, **quiet)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"Ray wants a token ({first_line(error)}): see `ray get-auth-token --help`", code=1) from None
    except (OSError, RuntimeError, ValueError) as error:
        why = first_line(error)
        if isinstance(error, PermissionError):
            fix = "RAY_TMPDIR= names a folder that you may write to"
        elif isinstance(error, UnicodeError):
            fix = "Ray starts only where the folder's name is UTF-8"
        raise UserError(f"no Ray at {plan.address or 'this machine'} ({why}): {fix}", code=1) from None
    try:
        if plan.threads > (cores := largest_machine()):
            raise UserError(f"threads={plan.threads} is more than the {cores} cores of the largest machine")
        with on_stop(signal.default_int_handler):  # Ray has set its own
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(quiet.get("_temp_dir", ""), ignore_errors=True)


def _knock(address: str) -> None:
    """OSError where nothing listens at [ray://]host:port."""
    host, port = address.removeprefix("ray://").rsplit(":", 1)
    socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def largest_machine() -> int:
    """Cores of that one in the cluster."""
    return max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def slots(plan: Suite, costs: dict[Job, Estimate]) -> tuple[int, str]:
    """How many runs there is room for at once, and why."""
    total = ray.cluster_resources()
    each = share(plan)
    room = {f"{total['CPU']:.0f} cores, {each['num_cpus']} a run": int(total["CPU"] // each["num_cpus"])}
    if "num_gpus" in each:
        gpus = total["GPU"]
        shared = "1 GPU, {} runs on it" if gpus == 1 else f"{gpus:.0f} GPUs, {{}} runs on each"
        room[shared.format(plan.runs_per_gpu)] = int(gpus * plan.runs_per_gpu)
    if memory := max((cost.memory for cost in costs.values()), default=0):
        free = format_bytes(int(total["memory"]))
        room[f"{free} of memory, up to {format_bytes(memory)} a run"] = int(total["memory"] // memory)
    why = min(room, key=room.__getitem__)
    return max(1, room[why]), why


def share(plan: Suite) -> dict[str, Any]:
    """What a run takes of a machine's cores, one for each of its environments too, and, where there are any, GPUs."""
    cores = {"num_cpus": max(plan.threads, min(int(words_of(plan.run).get("envs", 1)), largest_machine()))}
    if not ray.cluster_resources().get("GPU") or "device=cpu" in plan.run:
        return cores
    return cores | {"num_gpus": 1 / plan.runs_per_gpu}


def measure(jobs: list[Job], plan: Suite) -> dict[Job, Estimate]:
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
    costs: dict[Job, Estimate] = {}
    for part, ref in zip(parts, refs):
        try:
            found = ray.get(ref)
        except ray.exceptions.RayError as error:
            found = [worker.Estimate(why=type(error).__name__)] * len(part)
        costs |= {job: dataclasses.replace(cost) for group, cost in zip(part, found) for job in group}
    most = max((cost.memory for cost in costs.values()), default=0)
    for job, cost in costs.items():
        cost.memory = cost.memory or most
        cost.hours *= checkpoint.fraction_left(job.run_dir, plan.frames)
    return {job: costs[job] for job in jobs}


def run_all(plan: Suite, costs: dict[Job, Estimate], board: Board) -> bool:
    """Run what is unfinished; False after Ctrl-C or SIGTERM, which let each run save first."""
    running: dict[ray.ObjectRef, Job] = {}
    waiting, retries = list(costs), dict.fromkeys(costs, plan.retries)
    start, cores = starter(plan), share(plan)["num_cpus"]
    try:
        while running or waiting:
            # Ray keeps no order among runs of different memory: it gets few at a time, also of a growing cluster.
            room = max(1, int(ray.cluster_resources().get("CPU", 0) // cores))
            while waiting and len(running) < 2 * room:
                job = waiting.pop(0)
                if why := too_large(costs[job].memory):
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

    def start(job: Job, cost: Estimate) -> ray.ObjectRef:
        given = train.options(memory=cost.memory, name=job.name)
        return given.remote(list(job.words), str(job.run_dir), os.getcwd(), plan.keep_replay)

    return start


def too_large(memory: int) -> str:
    """Why no machine can hold a run; empty if one can."""
    most = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
    if memory <= most:
        return ""
    needs = f"needs {format_bytes(memory)} of memory, there are {format_bytes(most)}"
    return f"{needs}: choose a smaller replay.capacity="


def outcome(ref: ray.ObjectRef, job: Job) -> tuple[str, bool]:
    """Why a run failed, empty if it did not; and whether its process or machine was lost, so that it may resume."""
    try:
        code = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return str(error).strip().splitlines()[-1], False
    except ray.exceptions.OutOfMemoryError:
        return "the machine ran out of memory; a larger threads= makes fewer runs share it", True
    except ray.exceptions.RayError as error:
        return f"its process was lost ({type(error).__name__})", True
    if code == 0:
        return "", False
    lines = (job.run_dir / "log.txt").read_text("utf-8", "replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {code}"), False
