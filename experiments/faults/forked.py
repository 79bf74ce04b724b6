"""Commands in forks of a process that has imported them already: a fraction of a second each, not seconds."""

import collections
import importlib
import importlib.util
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST = 8.0  # seconds that a command may work before it gets Ctrl-C
WHOLE_RUN = 300.0  # the same of a run that is to end by itself
PATIENCE = 30.0  # seconds that it may then take to end
MEMORY = 2**34  # bytes that a command may have, as one may ask for more than there is


@dataclass
class Ended:
    """How a command ended."""

    code: int | None  # None: it had to be killed
    out: str
    err: str
    seconds: float

    @property
    def complaint(self) -> str:
        """What a user should not have been shown; empty if there is nothing."""
        if self.code is None:
            return "hung"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        if "Traceback" in self.out + self.err:
            lines = (self.out + self.err).strip().splitlines()
            places = [line.strip() for line in lines if line.startswith('  File "') and "frozen" not in line]
            return f"{lines[-1]} ({'; '.join(places[-2:])})"
        lines = self.err.splitlines()
        if self.code not in (0, 130) and not (lines and all(line.startswith("pixel_ddpg: ") for line in lines)):
            return f"exit code {self.code} with {self.err!r}"
        return ""

    def must_end_with(self, code: int) -> None:
        """RuntimeError where a run that others are compared with did not."""
        if self.code != code:
            raise RuntimeError(f"exit code {self.code}: {self.err}")


class Failures(list[str]):
    """What went wrong; each is shown at once, as a part may take hours."""

    def append(self, failure: str) -> None:
        super().append(failure)
        print(f"    {failure}", file=sys.stderr, flush=True)


@dataclass
class Tally:
    """How commands ended, and what is wrong with which of them."""

    ends: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: Failures = field(default_factory=Failures)
    slowest: float = 0.0

    def add(self, what: str, end: str, complaint: str, seconds: float = 0.0) -> None:
        """One more; no complaint, no failure."""
        self.ends[end] += 1
        self.slowest = max(self.slowest, seconds)
        if complaint:
            self.failures.append(f"{what}: {complaint}")

    def row(self) -> dict:
        """As faults.json has it."""
        slowest = {"slowest_seconds": round(self.slowest, 1)} if self.slowest else {}
        return {"tried": self.ends.total(), **self.ends, **slowest, "failures": self.failures}


def main_of(module: str) -> Callable[[list[str]], int]:
    """The main function of `python -m module`."""
    spec = importlib.util.find_spec(module)
    package = spec is not None and spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if package else module).main


def call(
    module: str,
    words: list[str],
    folder: pathlib.Path,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], object] = lambda: None,
    longest: float = LONGEST,
) -> Ended:
    """`python -m module words` in a folder, with `before` and `after` in the same process; Ctrl-C after a while."""
    main, start = main_of(module), time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush(), sys.stderr.flush()
        child = os.fork()
        if not child:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os._exit(_code(main, words, before, after))
        code = _wait(child, longest)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(code, texts[0], texts[1], time.monotonic() - start)


def _code(main: Callable, words: list[str], before: Callable, after: Callable) -> int:
    sys.argv = sys.orig_argv = ["python", *words]
    try:
        before()
        code = main(words)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    after()
    sys.stdout.flush(), sys.stderr.flush()
    return code if isinstance(code, int) else 1 if code else 0


def _wait(child: int, longest: float) -> int | None:
    for number, patience in ((signal.SIGINT, longest), (signal.SIGKILL, PATIENCE)):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.killpg(child, number)
    os.waitpid(child, 0)
    return None
