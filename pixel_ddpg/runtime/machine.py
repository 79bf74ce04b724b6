"""The machine: devices, threads, precision, versions, commit."""

import ctypes
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

import psutil
import torch

from pixel_ddpg import container
from pixel_ddpg.config import Config
from pixel_ddpg.envs import rendering
from pixel_ddpg.errors import UserError

PACKAGES = ("pixel-ddpg", "torch", "mujoco", "dm-control", "gymnasium", "numpy", "wandb", "opencv-python", "av")
CODE = (":(top)", ":(top,exclude)experiments/benchmarks/results", ":(top,exclude)experiments/results")


def find_device(name: str) -> torch.device:
    """The device for auto, cpu or cuda[:k], with its number; UserError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}'; there are auto, cpu, cuda and cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs"
        hint = "" if torch.version.cuda else ", as it is no CUDA build"
        raise UserError(f"device={name}: {seen} here{hint}; try device=cpu")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def prepare(config: Config, device: torch.device) -> int:
    """Threads, precision and renderer as a run on this device has them, before mujoco is imported; returns threads.

    A GPU becomes torch's own current one, where graphs are captured.
    """
    threads = prepare_cpu(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    use_precision(resolved_precision(config.agent.precision, device))
    rendering.choose_backend(threads, (device.index or 0) if device.type == "cuda" else None)
    return threads


def prepare_cpu(threads: int) -> int:
    """Set torch's threads, and keep freed memory in the process: fresh pages cost half of a small update.

    Numbers below 1e-38 become 0: weight decay makes many of them, and a CPU takes several times as long for each.
    Returns the number of threads.
    """
    threads = threads or container.available_threads()
    torch.set_flush_denormal(True)  # before torch's own threads start: they take it from this one
    torch.set_num_threads(threads)
    if glibc := _glibc():
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        glibc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not give the heap's end back
    return threads


def give_memory_back() -> None:
    """Return freed memory that `prepare_cpu` keeps in the process to the system."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None


@functools.cache
def survive_forks() -> None:
    """In a process forked from this one torch has one thread: it would wait for ever for those it had before."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def use_precision(precision: str) -> None:
    """Products and convolutions of float32 on a GPU: to the last bit, or as TF32 (10 bits, several times as fast).

    torch's own default is neither: TF32 in convolutions alone.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"


def resolved_precision(precision: str, device: torch.device) -> str:
    """What agent.precision= means on a device: auto is bfloat16 where the processor multiplies in it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and "avx512_bf16" in _cpuinfo("flags").split()
    return "bfloat16" if native else "float32"


def is_intel() -> bool:
    """Whether the processor is Intel's, as far as Linux tells."""
    return _cpuinfo("vendor_id") == "GenuineIntel"


def facts(device: torch.device, threads: int) -> dict:
    """What a result depends on: commit, versions, hardware."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": str(device),
        "threads": threads,
    }


def version(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this code, with + for changes and modules that are not committed; None outside a checkout of it.

    What experiments and benchmarks write is no code.
    """
    package = pathlib.Path(__file__).resolve().parents[1]
    # Whoever owns it, without a lock that a commit at the same time would meet, and whatever repository the caller's
    # own variables name, as in a hook.
    git = ["git", "--no-optional-locks", "-c", f"safe.directory={package.parent}", "-C", str(package)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    run = functools.partial(subprocess.run, capture_output=True, text=True, env=variables)
    try:
        top, head = run([*git, "rev-parse", "--show-toplevel", "HEAD"], check=True).stdout.split("\n")[:2]
        if pathlib.Path(top).resolve() != package.parent:  # some other project's repository, around an installation
            return None
        run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True)  # or installed into its top folder
        changed = run([*git, "status", "--porcelain", "-uno", "--", *CODE]).stdout.strip()
        changed += run([*git, "ls-files", "--others", "--exclude-standard", "--", "*.py"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core; empty elsewhere."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
