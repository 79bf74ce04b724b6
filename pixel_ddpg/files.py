"""Files that are written whole or not at all, and folders that one process at a time writes to."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from pixel_ddpg.config import UserError


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """All of `data` or nothing is at `path`, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """The names in a folder survive a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: pathlib.Path, option: str) -> Iterator[None]:
    """Only one process writes to a folder; the lock goes with the process, however it ends.

    UserError names the option that chooses another. The file stays: deleting it would let two processes in.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another {option}=") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process writes to {folder}: wait, or choose another {option}=", 1) from None
        yield
