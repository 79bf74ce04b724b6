"""What this process may have of the machine, within its container's limits: cores and memory."""

import contextlib
import math
import os
import pathlib

import psutil

GROUPS = pathlib.Path("/sys/fs/cgroup")
MEMORY = (  # folder, limit, what all its processes take, and the part of that which is only cache
    (".", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_threads() -> int:
    """CPU cores that this process may use: those it is bound to, or fewer where its time is limited."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # not this kind of container, or one without a limit
            quota, period = (int(word) for file in files for word in (GROUPS / file).read_text().split())
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return cores


def free_ram() -> int:
    """Bytes."""
    free = psutil.virtual_memory().available
    for name, limit, used, cache in MEMORY:
        folder = GROUPS / name
        with contextlib.suppress(OSError, ValueError):  # as above
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(facts.get(cache, 0))
            free = min(free, int((folder / limit).read_text()) - taken)
    return free
