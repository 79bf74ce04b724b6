"""The command line of every command: `key=value` words to typed options, --help, --multirun, mistakes in one line."""

import contextlib
import errno
import functools
import gc
import io
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from pixel_ddpg.config import check_fields, fields_of, set_values, to_yaml, value_of, words_of
from pixel_ddpg.errors import UserError, interrupt, leave, on_stop, stopped_by, warn

FLAGS = {"-h": "--help", "--help": "--help", "-m": "--multirun", "--multirun": "--multirun", "--cfg": "--cfg"}
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def command(
    name: str, schema: type, read: Callable[[list[str]], Any] | None = None, more_help: str = ""
) -> Callable[[Callable[[Any], int | None]], Callable[..., int]]:
    """The main function of `python -m <name>`, from one that takes the options, an instance of the dataclass `schema`.

    `read` makes the options of the words, where they are more than fields set to values. The function that comes out
    takes the words, by default those of the command line, and returns the exit code.
    """
    read = read or functools.partial(options_of, schema)

    def decorate(function: Callable[[Any], int | None]) -> Callable[..., int]:
        @functools.wraps(function)
        def main(argv: list[str] | None = None) -> int:
            _open_closed_streams()
            _print_any_text()
            with one_line_errors():
                flags, words = _flags(sys.argv[1:] if argv is None else argv, schema)
                if "--help" in flags:
                    return print_help(name, schema, read([]), more_help)
                jobs = [read(each) for each in (combinations(words) if "--multirun" in flags else [words])]
                if "--cfg" in flags:
                    print("---\n".join(to_yaml(job) for job in jobs), end="")
                    return 0
                _refuse_shared_outputs(jobs)
                return function(jobs[0]) or 0 if len(jobs) == 1 else _each(function, jobs)

        return main

    return decorate


def options_of(schema: type, words: list[str]) -> Any:
    """An instance of the dataclass with the fields that the words set."""
    options = schema()
    set_values(options, words_of(words))
    check_fields(options)
    return options


def _refuse_shared_outputs(jobs: list[Any]) -> None:
    """UserError where one job of several would write over another's."""
    for key, field in fields_of(type(jobs[0])).items():
        given = [getattr(job, key) for job in jobs] if field.metadata.get("own") else []
        if shared := next((each for each in given if each and given.count(each) > 1), None):
            how = ", with a field that differs between them, as ${seed}" if key == "run_dir" else ""
            raise UserError(f"several --multirun jobs would write to {key}={shared}: name another for each{how}")


def _each(function: Callable[[Any], int | None], jobs: list[Any]) -> int:
    """Run the jobs one after another, even after a failure; returns the worst exit code."""
    codes = []
    for job in jobs:
        try:
            with one_line_errors():
                codes.append(function(job) or 0)
        except SystemExit as end:
            if end.code == 130:  # Ctrl-C ends them all
                raise
            codes.append(int(end.code or 0))
        except Exception:
            traceback.print_exc()
            codes.append(1)
        gc.collect()  # what a job leaves behind is not the next one's to count with
    return max(codes)


def _flags(argv: list[str], schema: type) -> tuple[set[str], list[str]]:
    """Flags and words; a field that is a flag too is a word then. UserError for a flag that there is not."""
    flags, words, rest = set(), [], iter(argv)
    for word in rest:
        name, equals, value = word.lstrip("-").partition("=")
        field = fields_of(schema).get(name.replace("-", "_"))
        if word in FLAGS:
            flags.add(FLAGS[word])
        elif not word.startswith("-"):
            words.append(word)
        elif field is not None and field.metadata.get("flag"):
            value = value if equals else "true" if field.type is bool else next(rest, "")
            if not value:
                raise UserError(f"--{name} needs a value")
            words.append(f"{field.name}={value}")
        elif field is not None:
            raise UserError(f"--{name}: write {field.name}=..., without dashes")
        else:
            raise UserError(f"unknown option {word}; see --help")
    return flags, words


def combinations(words: list[str]) -> list[list[str]]:
    """Every combination of the values that commas separate outside brackets, the last word's running fastest."""
    choices = []
    for word in words:
        key, equals, text = word.partition("=")
        values, depth = [""], 0
        for letter in text:
            depth += (letter == "[") - (letter == "]")
            if letter == "," and depth == 0:
                values.append("")
            else:
                values[-1] += letter
        choices.append([f"{key}{equals}{value}" for value in values])
    return [list(each) for each in itertools.product(*choices)]


def print_help(name: str, schema: type, defaults: Any, more: str) -> int:
    """Every key with its default and what it means."""
    print(f"python -m {name} key=value ...", more, sep="\n")
    rows = [(f"{key}={_shown(value_of(defaults, key))}", item.metadata) for key, item in fields_of(schema).items()]
    width = max((len(left) for left, _ in rows if len(left) < 40), default=0)
    for left, known in rows:
        print(f"{left:{width}}  {known.get('text', '')}".rstrip())
    return 0


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_terminal(stream: Any) -> bool:
    """Whether a live line can be drawn there; a logger in a stream's place may not say."""
    return bool(getattr(stream, "isatty", bool)())


class Output(Console):
    """Standard output or error, where text stands as it is; where its reader has gone, a command continues without."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)  # a folder may be called a[/b] or :a:

    def on_broken_pipe(self) -> None:
        """Rich's own ends the process."""
        self.quiet = True
        leave(self.file)


# --- how a command ends ---


def _open_closed_streams() -> None:
    """Reopen streams that the caller closed (>&-) on /dev/null, so that no other file gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _print_any_text() -> None:
    """What the terminal's encoding does not have, as a folder's name, is printed in backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """UserError, what the disk refuses, and signals to stop become one line on stderr and an exit code."""
    try:
        with _interrupted():
            yield
            if hasattr(sys.stdout, "flush"):  # while what it raises can still be told
                sys.stdout.flush()
        return
    except UserError as error:
        message, code = str(error), error.code
    except BrokenPipeError:  # the reader has seen enough
        leave(sys.stdout)
        sys.exit(0)
    except OSError as error:
        message, code = _refused(error), 1
    except (MemoryError, RuntimeError) as error:  # RuntimeError: torch's
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        message = "out of memory: ask for less (of a run: replay.batch_size, env.size, agent.hidden)"
        code = 1
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    warn(one_line(message))
    sys.exit(code)


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """Signals to stop raise KeyboardInterrupt; once more where a callback had it, whose exceptions Python ignores."""

    def again(ignored: Any) -> None:
        if ignored.exc_type is KeyboardInterrupt:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()  # once this callback has ended
        else:
            before(ignored)

    before, sys.unraisablehook = sys.unraisablehook, again
    try:
        with on_stop(interrupt):
            yield
    except Exception as error:  # what fails after a signal fails because of it, as GL that had it in a callback
        if stopped_by and getattr(error, "code", None) != 130:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = before
        stopped_by.clear()


def _refused(error: OSError) -> str:
    """What the system did not do, and what helps; raises what a user cannot help."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if not error.filename:  # stdout's, perhaps, which would be written once more at the end
            leave(sys.stdout)
        return f"the disk is full ({error.filename or 'while writing'}): free some space and run it again"
    if error.errno == errno.EFBIG:
        return f"{error.filename or 'a file'}: {error.strerror}; raise the limit (ulimit -f)"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN):
        return f"{error.strerror}: ask for fewer environments or runs, or raise the limits (ulimit -n, ulimit -u)"
    if str(error.filename).startswith("/dev/shm/"):
        return f"{error.filename}: {error.strerror}; processes share memory there, envs=1 needs none"
    if error.filename:
        return f"{error.filename}: {error.strerror}; choose another file or folder"
    if "temporary directory" in str(error):  # tempfile's, which may be needed by any package
        return f"{error.strerror}: set TMPDIR= to a folder that can be written"
    raise error


def one_line(text: str) -> str:
    """With what does not print, as a line break that a user has typed, in backslashes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
