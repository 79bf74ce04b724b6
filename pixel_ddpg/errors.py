"""What a user reads when something does not work."""

import contextlib
import difflib
import importlib.util
import itertools
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO

STOP = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class UserError(Exception):
    """A mistake or a lack that the user can fix: told in one line, without a traceback. `code` is the exit code."""

    def __init__(self, message: str, *, code: int = 2):
        super().__init__(message)
        self.code = code


def nearest(word: str, names: Sequence[str], all_names: str = "see --help") -> str:
    """'; did you mean ...?' for a mistyped name; else the names if they are few, or where all of them are listed."""
    plain = {name.replace("_", "").replace("-", ""): name for name in names}
    found = difflib.get_close_matches(word.replace("_", "").replace("-", ""), list(plain), n=3, cutoff=0.6)
    if found:
        return f"; did you mean {' or '.join(plain[name] for name in found)}?"
    if len(names) <= 8:
        return f"; choose from {', '.join(names)}" if names else "; this command has no options"
    return f"; {all_names}"


def warn(message: str) -> None:
    """One line on stderr, if anyone still reads it."""
    try:
        print(f"pixel_ddpg: {message}", file=sys.stderr)
    except BrokenPipeError:
        leave(sys.stderr)


def leave(stream: IO[str]) -> None:
    """Redirect a stream to /dev/null, once its reader has gone or its disk is full."""
    with open(os.devnull, "wb") as nowhere, contextlib.suppress(OSError, AttributeError):  # one in memory has no number
        os.dup2(nowhere.fileno(), stream.fileno())


def first_line(error: BaseException) -> str:
    """What an error says, or its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_command() -> bool:
    """Whether this process was started as `python -m` of one of this project's packages."""
    pairs = itertools.pairwise(sys.orig_argv)  # Python's -m is the first: --multirun has that letter too
    module = next((name for option, name in pairs if re.fullmatch("-[A-Za-z]*m", option)), "")
    package = sys.modules.get(module.split(".")[0])
    here = pathlib.Path(__file__).parents[1]
    return package is not None and here in pathlib.Path(package.__file__ or "").parents


def tell_interrupts() -> None:
    """In a command: Ctrl-C while its modules are imported prints one line; later command.one_line_errors does."""

    def tell(kind: type[BaseException], error: BaseException, trace) -> None:
        if issubclass(kind, KeyboardInterrupt):
            warn("interrupted")
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = tell


def refuse_deleted_folder() -> None:
    """In a command: one line where the working directory is gone, at which torch's libraries abort."""
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("pixel_ddpg: the working directory has been deleted: change to another one")


stopped_by: list[int] = []  # signals that `interrupt` has met since the command began


def interrupt(number: int, frame: object) -> None:
    """KeyboardInterrupt, and a note of it: where it is raised in a callback, a library may lose it."""
    stopped_by.append(number)
    raise KeyboardInterrupt


@contextlib.contextmanager
def on_stop(handler: Callable) -> Iterator[None]:
    """In here what asks a process to end goes to `handler`: Ctrl-C, SIGTERM, a closed terminal, Slurm's SIGUSR1.

    SIGHUP stays ignored under nohup; Python allows no handler outside the main thread, so there is none.
    """
    numbers = [getattr(signal, name) for name in STOP if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {
        number: signal.signal(number, handler)
        for number in numbers  # a shell's background job ignores Ctrl-C, but is to hear a kill -INT
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def require(extra: str, *modules: str) -> None:
    """Ends a command with one line, and an import with ModuleNotFoundError, where an extra is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{missing[0]} is missing here: `pip install 'pixel-ddpg[{extra}]'`, or `make install`"
        if is_command():
            sys.exit(f"pixel_ddpg: {message}")
        raise ModuleNotFoundError(message, name=missing[0])
