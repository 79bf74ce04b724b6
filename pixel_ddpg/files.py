"""Files that are written whole or not at all, and folders that one process at a time writes to."""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO

from pixel_ddpg.errors import UserError, warn

UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what a file system says of what it cannot do


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
    """An OSError within names this file: what writes to an open file, or syncs it, does not say which."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """All of `data` or nothing is at `path`, also after a power cut; of two processes the last one's."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with naming(path), open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_writable(path: pathlib.Path) -> None:
    """OSError, with the name, for a file that could not be written; nothing is left there."""
    was_there = path.exists()
    with open(path, "ab"):
        pass
    if not was_there:
        path.resolve().unlink()  # not a link that leads nowhere


def sync_folder(folder: pathlib.Path) -> None:
    """The names in a folder survive a power cut too, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: pathlib.Path, option: str) -> Iterator[None]:
    """Only one process writes to a folder; the lock goes with the process, however it ends.

    UserError names the option that chooses another. A folder made for it goes again if nothing was written there.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / ".lock"
    with _lock(path, option):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # another process has put something there, or deleted it
                if made and os.listdir(folder) == [path.name]:
                    path.unlink()
                    for each in made:
                        each.rmdir()


def _lock(path: pathlib.Path, option: str) -> IO:
    """The locked file of that path: not one that its last holder deleted between opening and locking."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write to {path.parent} ({error.strerror}): choose another {option}=") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"another process writes to {path.parent} or to a hard-linked copy of it: wait, or choose another "
                f"{option}=",
                code=1,
            ) from None
        except OSError as error:
            if error.errno not in UNKNOWN:
                file.close()
                raise UserError(f"cannot lock {path} ({error.strerror}): choose another {option}=", code=1) from None
            warn(f"the file system of {path.parent} has no locks: let no other process write there")
        with contextlib.suppress(FileNotFoundError):
            held = os.fstat(file.fileno())
            if os.path.samestat(held, path.stat()):
                if held.st_nlink == 1:
                    return file
                path.unlink()  # a copy made of hard links and what it is of have a lock each
        file.close()
