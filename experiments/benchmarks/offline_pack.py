"""python -m experiments.benchmarks.offline_pack: the wheels that gpu_check needs beside torch, where no network is.

dm_control and mujoco come without folders that nothing there uses and that are most of their size.
"""

import base64
import fnmatch
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass

from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import machine

WHEELS = (
    "numpy", "scipy", "mujoco", "dm-control", "dm-env", "dm-tree", "absl-py", "lxml", "glfw", "PyOpenGL", "pyparsing",
    "protobuf", "PyYAML", "gymnasium", "cloudpickle", "Farama-Notifications", "rich",
    "markdown-it-py", "mdurl", "Pygments", "psutil", "safetensors", "pytest", "iniconfig", "pluggy", "packaging",
    "hypothesis", "sortedcontainers",
)  # fmt: skip
PYTHONS = ("3.11", "3.12")
UNUSED = {
    "dm_control": (
        "dm_control/locomotion/*", "dm_control/manipulation/*", "dm_control/entities/*", "dm_control/blender/*",
        "dm_control/suite/dog_assets/*", "dm_control/mujoco/testing/*", "dm_control/mjcf/test_assets/*",
    ),
    "mujoco": ("mujoco/experimental/*", "mujoco/_render_filament*"),
    "numpy": ("numpy/*tests/*",),
    "scipy": ("scipy/*tests/*", *(f"scipy/{name}/*" for name in (
        "optimize", "sparse", "stats", "spatial", "io", "interpolate", "signal", "integrate", "fft", "fftpack",
        "cluster", "odr", "datasets", "differentiate",
    ))),
}  # fmt: skip


@dataclass
class OfflinePack:
    """Options of the command."""

    out: str = option("offline-pack", "a folder")
    python: str = option("", "of the other machine, as 3.12; none: this one's")


def pip(*words: str) -> None:
    """pip, quietly; UserError with its last word where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.splitlines() or ["failed"])[-1]
        raise UserError(f"pip {words[0]} ({why}): it needs the network, or a folder of wheels (PIP_FIND_LINKS)", code=1)


def pinned(names: tuple[str, ...]) -> list[str]:
    """The versions that are installed here."""
    versions = {name: machine.version(name) for name in names}
    if missing := [name for name, version in versions.items() if version is None]:
        raise UserError(f"{missing[0]} is missing here: `make install`", code=1)
    return [f"{name}=={version}" for name, version in versions.items()]


def without(wheel: pathlib.Path, patterns: tuple[str, ...]) -> None:
    """Rewrite the wheel without files of these names; its RECORD lists what is left."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as place:
        smaller = pathlib.Path(place) / wheel.name
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
            lines = [f"{record},,"]
            for name in old.namelist():
                if name != record and not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    data = old.read(name)
                    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                    new.writestr(name, data)
                    lines.append(f"{name},sha256={digest},{len(data)}")
            new.writestr(record, "\n".join(lines) + "\n")
        smaller.replace(wheel)


@command("experiments.benchmarks.offline_pack", OfflinePack)
def main(options: OfflinePack) -> None:
    out = pathlib.Path(options.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out} is not empty: choose another folder")
    if options.python not in ("", *PYTHONS):
        raise UserError(f"python={options.python}: this project needs {' or '.join(PYTHONS)}")
    python = ["--python-version", options.python] if options.python else []
    with tempfile.TemporaryDirectory() as place:  # so that `out` is whole, or not there
        wheels = pathlib.Path(place) / "wheels"
        pip("download", "--quiet", "--no-deps", "--only-binary=:all:", *python, "--dest", str(wheels), *pinned(WHEELS))
        for name, patterns in UNUSED.items():
            for wheel in wheels.glob(f"{name}-*.whl"):
                without(wheel, patterns)
        shutil.copytree(wheels, out, dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {len(list(out.iterdir()))} wheels, {size / 1e6:.1f} MB. On the machine with torch, in a checkout:")
    print(f"    python3 -m pip install --no-index --no-deps {out}/*.whl")
    print("    python3 -m experiments.benchmarks.gpu_check")


if __name__ == "__main__":
    sys.exit(main())
