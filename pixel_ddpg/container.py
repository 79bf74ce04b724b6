"""What this process may have of the machine, within its container's limits: cores and memory."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

import psutil

GROUPS = pathlib.Path("/sys/fs/cgroup")
OWN_GROUPS = pathlib.Path("/proc/self/cgroup")
SHARES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")  # what a cluster that binds nothing says of this process
# For each version of control groups: its tree, and there the limit, what all processes take, and the part of that which
# is only cache.
MEMORY = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
CPU = (("", ["cpu.max"]), ("cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]))


def available_threads() -> int:
    """CPU cores that this process may use: those it is bound to, or fewer where its time or share is limited."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, files in _groups(CPU):
        with contextlib.suppress(OSError, ValueError):  # not this kind of container, or one without a limit
            quota, period = (int(word) for file in files for word in (folder / file).read_text().split())
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    shares = [os.environ.get(name, "").split(",")[0].strip() for name in SHARES]  # OpenMP takes one for each level
    return min([cores, *(int(share) for share in shares if share.isdecimal() and int(share))])


def free_ram() -> int:
    """Bytes."""
    free = psutil.virtual_memory().available
    for folder, limit, used, cache in _groups(MEMORY):
        with contextlib.suppress(OSError, ValueError):  # as above
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(facts.get(cache, 0))
            free = min(free, int((folder / limit).read_text()) - taken)
    return max(0, free)


def _groups(versions: tuple) -> Iterator[tuple]:
    """This process's own group and all around it, whose limits hold together: the folder of each, and its files.

    A group that a container does not see is a folder that is not there.
    """
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    for tree, *files in versions:
        own = next((path for _, controllers, path in lines if tree in controllers.split(",")), "/")
        inner = pathlib.PurePosixPath(own.lstrip("/"))
        for group in (inner, *inner.parents):
            yield GROUPS / tree / group, *files
