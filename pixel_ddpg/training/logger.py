"""metrics.jsonl, which is the truth, and W&B, which mirrors it."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any

from pixel_ddpg import files
from pixel_ddpg.errors import UserError, first_line, warn
from pixel_ddpg.training.rows import PartRow, Row, read_rows, row_of

TIMEOUT = 15  # seconds until a server that does not answer is given up
COUNTERS = ("frame", "step", "update", "hours")


class Metrics:
    """Appends rows to metrics.jsonl."""

    def __init__(self, path: pathlib.Path, length: int = 0, step: float = math.inf):
        """Resume after the first `length` bytes, which a checkpoint of this step knows; what follows is made again.

        Where someone has edited the file, so that these do not end with a row of the checkpoint, all rows up to the
        step are kept.
        """
        known = path.read_bytes() if path.exists() else b""
        kept = known[:length]
        if kept and not (kept.endswith(b"\n") and _step_of(kept.splitlines()[-1]) <= step):
            warn(f"{path} was edited: its rows up to step {step:,} are kept")
            kept = b"".join(line.rstrip() + b"\n" for line in known.splitlines() if _step_of(line) <= step)
        elif len(known) < length:
            warn(f"{path} has lost rows: it is shorter than when the checkpoint was made")
        if kept != known[:length] or (known and path.stat().st_nlink > 1):  # another name of the file keeps its rows
            files.write_atomically(path, kept)
        self._file = open(path, "ab")  # noqa: SIM115
        with files.naming(path):
            self._file.truncate(len(kept))
            self._file.seek(0, os.SEEK_END)

    @property
    def length(self) -> int:
        """Bytes written."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, row: Row) -> None:
        """Append a row; a number that is not finite becomes null, with a warning.

        UserError where someone has deleted or moved the file.
        """
        clean = {key: _finite(key, value) for key, value in row.as_json().items()}
        self._refuse_if_gone()
        with files.naming(self._file.name):
            self._file.write(json.dumps(clean).encode() + b"\n")
            self._file.flush()

    def _refuse_if_gone(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._file.name), os.fstat(self._file.fileno())):
                return
        raise UserError(f"{self._file.name} was deleted or moved while the run was writing it", code=1)

    def sync(self) -> None:
        """Wait until all rows are on the disk; UserError as `write`."""
        self._refuse_if_gone()
        with files.naming(self._file.name):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more rows."""
        with files.naming(self._file.name):
            self._file.close()


def _step_of(line: bytes) -> float:
    """Of a row; infinite where it cannot be read."""
    try:
        return row_of(json.loads(line)).step
    except ValueError:
        return math.inf


def _finite(key: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    odd = [isinstance(each, float) and not math.isfinite(each) for each in values]
    if not any(odd):
        return value
    warn(f"{key} is {values[odd.index(True)]}; metrics.jsonl has null")
    return [None if is_odd else each for each, is_odd in zip(values, odd)] if isinstance(value, list) else None


class WandbMirror:
    """Sends every row of metrics.jsonl once to one W&B run; its step is the row's number among those it logs.

    Rows of kind "run" go to its config: there is one for each part of the run, the other rows are the same however
    often it was stopped. So online a run resumes after the last row the server has, which may be newer than the
    checkpoint. Offline files are written again from metrics.jsonl, because a killed process leaves one that is cut
    short: the last file always holds all rows.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        mode: str,
        project: str,
        run_id: str,
        config: dict,
        folder: pathlib.Path | None = None,
    ):
        """`project` may be entity/project; W&B's own files go to `folder`, or to the run's; `failed`: why it ended."""
        self._run, self._rows, self.failed = None, 0, ""
        with self._no_mirror_is_worth_a_run():
            folder = (folder or run_dir) / "wandb"
            before = [*folder.glob("offline-run-*"), *folder.glob("tmp*wandb-*")]
            if mode == "auto":
                mode = os.environ.get("WANDB_MODE") or _usual_mode(folder)
            if mode in ("off", "disabled"):
                return
            wandb = _wandb(folder)
            project = project or os.environ.get("WANDB_PROJECT") or "pixel-ddpg"
            entity, _, project = project.rpartition("/")
            with logs_in(folder):
                self._run = wandb.init(
                    entity=entity or None, project=project, id=run_id, name=str(run_dir), dir=folder.parent,
                    config=config, mode=mode, resume="allow",
                    settings=wandb.Settings(silent=True, console="off", x_disable_meta=True, init_timeout=TIMEOUT),
                )  # fmt: skip
            self._run.define_metric("*", step_metric="frame")
            self._sent = self._run.starting_step if mode == "online" else 0
            for old in before:
                shutil.rmtree(old)
        for row in read_rows(run_dir / "metrics.jsonl"):
            self.write(row)

    @contextlib.contextmanager
    def _no_mirror_is_worth_a_run(self) -> Iterator[None]:
        """Whatever W&B raises ends the mirror, with one line."""
        try:
            yield
        except Exception as error:
            lines = str(error).splitlines()[:3] or [first_line(error)]
            self._run, self.failed = None, "; ".join(line.strip() for line in lines)
            warn(f"W&B mirroring stopped ({self.failed}); wandb=offline or wandb=off avoids this")

    def write(self, row: Row) -> None:
        """Mirror one row: its numbers are named kind/key."""
        if self._run is None:
            return
        with self._no_mirror_is_worth_a_run():
            if isinstance(row, PartRow):
                self._run.config.update({"run": row.as_json()}, allow_val_change=True)
                return
            if self._rows >= self._sent:
                self._run.log(_named_numbers(row), step=self._rows)
            self._rows += 1

    def close(self) -> None:
        """Finish the W&B run, and end W&B's own process, which would leave a socket where this one is killed."""
        if self._run is not None:
            with self._no_mirror_is_worth_a_run():
                self._run.finish()
                _wandb().teardown()


def _named_numbers(row: Row) -> dict[str, float]:
    """The numbers of a row that are finite, as W&B shows them: kind/key, but for the counters."""
    numbers = {key: value for key, value in row.as_json().items() if isinstance(value, int | float)}
    finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
    return {key if key in COUNTERS else f"{row.kind}/{key}": value for key, value in finite.items()}


def _wandb(folder: pathlib.Path | None = None) -> Any:
    """The module. Where it is not imported yet, the temporary folders that it then makes lie in `folder`."""
    before = tempfile.tempdir
    if folder and "wandb" not in sys.modules:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(folder)
    try:
        import wandb
    finally:
        tempfile.tempdir = before
    return wandb


@contextlib.contextmanager
def logs_in(folder: pathlib.Path) -> Iterator[None]:
    """W&B's process begins in here, and logs to this folder, where the user names no other."""
    given = "WANDB_CACHE_DIR" in os.environ
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder))
    try:
        yield
    finally:
        if not given:
            del os.environ["WANDB_CACHE_DIR"]


def _usual_mode(folder: pathlib.Path) -> str:
    """What `wandb offline` or `wandb disabled` has set; else online where there is a key."""
    mode = _wandb(folder).setup().settings.mode
    return "offline" if mode == "online" and not has_wandb_key() else mode


def has_wandb_key() -> bool:
    """Whether W&B would log in to its server, or to one that the user has set, without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    home = pathlib.Path(os.path.expanduser("~"))  # where there is none, a folder that is not there
    paths = [pathlib.Path(os.environ["NETRC"])] if os.environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return False
    import netrc

    try:
        known = netrc.netrc(path)
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
    host = urllib.parse.urlsplit(_wandb().setup().settings.base_url).netloc
    hosts = [host] + ["api.wandb.ai"] * host.endswith(".coreweave.com")  # W&B's own server, by its two names
    return any(known.authenticators(host) for host in hosts)
