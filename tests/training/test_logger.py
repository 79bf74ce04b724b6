"""metrics.jsonl, and W&B's copy of it."""

import concurrent.futures
import dataclasses
import errno
import fcntl
import json
import math
import os
import pathlib
import resource
import signal
import struct
import subprocess
import sys
import types

import pytest

from pixel_ddpg import files
from pixel_ddpg.errors import UserError
from pixel_ddpg.training.logger import Metrics, WandbMirror, has_wandb_key
from pixel_ddpg.training.rows import EvalRow, PartRow, Row, TrainRow, read_rows

ROWS = [
    PartRow(cpu="a name", threads=2),
    EvalRow(hours=0.1, return_=1.5, returns=[1.0, 2.0]),
    TrainRow(frame=1000, step=500, update=300, hours=0.2, return_=0.1 + 0.2),
    TrainRow(frame=2000, step=1000, update=800, hours=0.3, return_=-3.0, q=12.5),
]


def write_rows(path: pathlib.Path, rows: list[Row], length: int = 0) -> int:
    metrics = Metrics(path, length)
    for row in rows:
        metrics.write(row)
    metrics.sync()
    written = metrics.length
    metrics.close()
    return written


# --- metrics.jsonl ---


def test_another_name_of_the_file_keeps_its_rows(tmp_path):
    """A copy made of hard links, as backups are, into which a resumed run writes."""
    path, copy = tmp_path / "metrics.jsonl", tmp_path / "copy.jsonl"
    length = write_rows(path, ROWS)
    os.link(path, copy)
    write_rows(path, ROWS[:1], length)
    assert [len(read_rows(each)) for each in (path, copy)] == [len(ROWS) + 1, len(ROWS)]


@pytest.mark.parametrize("edit", ["a row was deleted", "line ends of Windows"])
def test_rows_that_were_edited_are_cut_between_rows(edit, tmp_path, capsys):
    """A row that is cut in its middle, and joined to the next part's first one."""
    path = tmp_path / "metrics.jsonl"
    length = write_rows(path, ROWS[:-1])
    write_rows(path, ROWS[-1:], length)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:] if edit == "a row was deleted" else lines).replace(
        b"\n", b"\n" if edit == "a row was deleted" else b"\r\n"
    ))  # fmt: skip
    metrics = Metrics(path, length, ROWS[-2].step)
    metrics.write(ROWS[-1])
    metrics.close()
    assert read_rows(path) == (ROWS[1:] if edit == "a row was deleted" else ROWS)
    assert "was edited: its rows up to step" in capsys.readouterr().err


def test_two_that_write_one_file_do_not_meet(tmp_path):
    """One that moves the other's half as its own, or finds it gone."""
    path = tmp_path / "file"

    def write(data):
        for _ in range(40):
            files.write_atomically(path, data)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, [b"a" * 1000, b"b" * 10]))
    assert path.read_bytes() in (b"a" * 1000, b"b" * 10) and os.listdir(tmp_path) == ["file"]


def test_a_long_name_is_written_too(tmp_path):
    """A film of many minutes whose name has no room for a suffix."""
    files.write_atomically(tmp_path / f"{'n' * 251}.mp4", b"film")
    assert (tmp_path / f"{'n' * 251}.mp4").read_bytes() == b"film"


@pytest.mark.parametrize("write", ["sync rows", "replace a file", "rename a folder"])
def test_what_a_failing_disk_refuses_has_a_name(tmp_path, monkeypatch, write):
    """A traceback for an error that names no file: fsync knows a number, not a path."""

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as caught:
        match write:
            case "sync rows":
                metrics.sync()
            case "replace a file":
                files.write_atomically(path, b"")
            case "rename a folder":
                files.sync_folder(path)
    assert caught.value.filename == str(path)


def test_rows_that_cannot_be_written_name_their_file_when_it_is_closed_too(tmp_path):
    """A traceback on closing: what could not be written is tried again there."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for write in (lambda: metrics.write(ROWS[0]), metrics.close):
            with pytest.raises(OSError) as caught:
                write()
            assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    """A traceback on network disks that have no flock, or that do not sync folders."""

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(os, "fsync", fail)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        with files.locked(tmp_path / str(number), "run_dir"):
            files.sync_folder(tmp_path)
        assert "has no locks: let no other process write there" in capsys.readouterr().err
    number = errno.EIO
    with pytest.raises(UserError, match=r"cannot lock .*choose another run_dir="), files.locked(tmp_path, "run_dir"):
        pass


def test_rows_come_back_as_they_were(tmp_path):
    """A number that is rounded on the way, or a row that is lost."""
    path = tmp_path / "metrics.jsonl"
    assert write_rows(path, ROWS) == path.stat().st_size
    assert read_rows(path) == ROWS
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row.as_json() for row in ROWS]


def test_rows_are_there_at_once(tmp_path):
    """Rows that a killed process takes with it."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write(ROWS[0])
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS[:1]
    metrics.close()


def test_no_file_has_no_rows(tmp_path):
    """A run that has not written yet."""
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_cut_last_line_is_left_out(tmp_path):
    """A crash in the middle of a line that makes the whole file unreadable, wherever the line was cut."""
    path = tmp_path / "metrics.jsonl"
    length, before = write_rows(path, ROWS), write_rows(tmp_path / "three", ROWS[:3])
    whole = path.read_bytes()
    for end in (before + 1, (before + length) // 2, length - 1):
        path.write_bytes(whole[:end])
        assert read_rows(path) == ROWS[:3]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("eval", "return", "abc"), ("eval", "returns", [1.0, "2"]), ("eval", "frame", 1.5), ("eval", "hours", None),
        ("train", "step", None), ("run", "versions", None), ("run", "commit", 5), ("values", "q", None),
        ("values", "observed", 1.0), (["eval"], "frame", 0), ("eval", "frame", 10**400), ("eval", "return", 10**400),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_damaged_line(kind, key, value, tmp_path):
    """A traceback of whatever reads it first, long after."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": kind, "frame": 0, "hours": 0.0, "return": 0.0, key: value}) + "\n")
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_rows(path)
    Metrics(path, length=path.stat().st_size, step=10).close()
    assert path.read_bytes() == b""  # a run that resumes makes it again


def test_not_finite_becomes_null_with_a_warning(tmp_path, capsys):
    """NaN in the file, which is not JSON."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.write(TrainRow(q=math.nan, critic_loss=math.inf, return_=2.0))
    metrics.write(EvalRow(returns=[1.0, -math.inf]))
    metrics.close()
    train, evaluation = (json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())
    assert (train["q"], train["critic_loss"], train["return"]) == (None, None, 2.0)
    assert evaluation["returns"] == [1.0, None]
    warned = capsys.readouterr()
    assert warned.out == "" and [line.split(" is ")[0] for line in warned.err.splitlines()] == [
        "pixel_ddpg: critic_loss", "pixel_ddpg: q", "pixel_ddpg: returns",
    ]  # fmt: skip


def test_length_cuts_what_the_checkpoint_does_not_know(tmp_path):
    """Rows after the checkpoint that a resumed run has twice, a cut line among them."""
    path = tmp_path / "metrics.jsonl"
    length = write_rows(path, ROWS[:2])
    write_rows(path, ROWS[2:], length)
    assert read_rows(path) == ROWS
    path.write_bytes(path.read_bytes() + b'{"kind": "tr')
    assert write_rows(path, ROWS[3:], length) > length
    assert read_rows(path) == [*ROWS[:2], ROWS[3]]


def test_length_zero_starts_over_and_never_pads(tmp_path):
    """A run without a checkpoint that keeps old rows; a length beyond the file that fills it with zero bytes."""
    path = tmp_path / "metrics.jsonl"
    write_rows(path, ROWS)
    write_rows(path, ROWS[:1])
    assert read_rows(path) == ROWS[:1]
    write_rows(path, ROWS[1:2], 10**6)
    assert read_rows(path) == ROWS[:2]


# --- the key ---


@pytest.fixture
def home(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty home, and no key in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    return tmp_path


def write_netrc(home: pathlib.Path, text: str) -> None:
    (home / ".netrc").write_text(text)
    (home / ".netrc").chmod(0o600)


def test_no_key(home, monkeypatch):
    """Training that stops to ask for a key."""
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_wandb_key()


def test_no_key_where_there_is_no_home(home, monkeypatch):
    """A traceback in a container whose user has no entry and no HOME."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert not has_wandb_key()


def test_key_in_the_environment(home, monkeypatch):
    """A key that is not seen."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n", True),
        ("machine example.org\n  login user\n  password secret\n", False),
        ("this is not a netrc file\n", False),
        ("", False),
    ],
)
def test_key_in_netrc(home, text, found):
    """A key that is not seen, another machine's taken for it, or a traceback over a broken file."""
    write_netrc(home, text)
    assert has_wandb_key() is found


def test_a_netrc_in_another_encoding_has_no_key(home):
    """A traceback over the password of a server that has nothing to do with W&B."""
    write_netrc(home, "")
    (home / ".netrc").write_bytes(b"machine git.example.org login me password p\xe4ssword\n")
    assert not has_wandb_key()


@pytest.mark.parametrize("file", [".netrc", "_netrc", "elsewhere"])
@pytest.mark.parametrize("server", ["https://api.forge.coreweave.com", "http://wandb.example:8080"])
def test_the_key_of_the_server_in_use_is_found_where_wandb_looks(home, monkeypatch, server, file):
    """A user who has logged in, and whose runs stay offline without a word."""
    write_netrc(home, f"machine {server.partition('//')[2]}\n  login user\n  password {'0' * 40}\n")
    (home / ".netrc").rename(home / file)
    if file == "elsewhere":
        monkeypatch.setenv("NETRC", str(home / file))
    settings = types.SimpleNamespace(base_url=server)
    monkeypatch.setattr("wandb.setup", lambda: types.SimpleNamespace(settings=settings))
    assert has_wandb_key()
    settings.base_url = "https://another.example"
    assert not has_wandb_key()


def test_a_key_for_wandbs_own_server_is_none_for_another(home, monkeypatch):
    """A self-hosted server that is asked for without a key: W&B stops to ask for one."""
    write_netrc(home, f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    settings = types.SimpleNamespace(base_url="http://wandb.example:8080")
    monkeypatch.setattr("wandb.setup", lambda: types.SimpleNamespace(settings=settings))
    assert not has_wandb_key()


# --- the mirror, with a stand-in for wandb ---


class FakeConfig(dict):
    """As wandb's: a value changes only where that is allowed."""

    def update(self, values, allow_val_change=False):
        assert allow_val_change or not set(values) & set(self)
        super().update(values)


class FakeRun:
    """Remembers what is logged."""

    def __init__(self, starting_step: int):
        self.starting_step, self.logged, self.finished, self.config = starting_step, [], False, FakeConfig()

    def define_metric(self, *args, **kwargs):
        self.metric = args, kwargs

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def fake(monkeypatch):
    """wandb whose server already has `fake.step` rows; `fake.options` are those of the last init."""
    module = types.ModuleType("wandb")
    module.step, module.options, module.run = 0, None, None

    def init(**options):
        module.options, module.run = options, FakeRun(module.step)
        return module.run

    module.init, module.Settings, module.mode, module.teardown = init, dict, "online", lambda: None
    module.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=module.mode))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def mirror(folder: pathlib.Path, mode: str) -> WandbMirror:
    return WandbMirror(folder, mode, "project", "id", {})


def test_auto_is_offline_without_a_key_and_online_with_one(fake, home, monkeypatch):
    """A run that asks for a login, or one that stays at home although there is a key."""
    mirror(home, "auto")
    assert fake.options["mode"] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    mirror(home, "auto")
    assert fake.options["mode"] == "online"
    assert (fake.options["id"], fake.options["resume"], fake.options["project"]) == ("id", "allow", "project")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_auto_does_what_wandb_has_been_told(fake, home, monkeypatch, mode):
    """`wandb offline` or `wandb disabled`, after which runs are uploaded."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    fake.mode = mode
    mirror(home, "auto")
    assert (fake.options or {}).get("mode") == (None if mode == "disabled" else mode)


def test_off_does_nothing(fake, tmp_path):
    """wandb=off that starts wandb, or leaves its folder."""
    written = mirror(tmp_path, "off")
    written.write(ROWS[1])
    written.close()
    assert fake.options is None and list(tmp_path.iterdir()) == []


def test_the_project_is_the_users(fake, tmp_path, monkeypatch):
    """WANDB_PROJECT that is ignored, or that wins over what the command says."""
    for own, given, expected in (("", "", "pixel-ddpg"), ("mine", "", "mine"), ("mine", "theirs", "theirs")):
        monkeypatch.setenv("WANDB_PROJECT", own)
        WandbMirror(tmp_path, "offline", given, "id", {})
        assert fake.options["project"] == expected


def test_rows_are_numbers_named_by_kind(fake, tmp_path):
    """A return of training in the curve of evaluations; texts and lists where W&B wants numbers."""
    written = mirror(tmp_path, "offline")
    for row in ROWS:
        written.write(row)
    written.close()
    common = {key: getattr(ROWS[1], key) for key in ("frame", "step", "update", "hours")}
    assert fake.run.logged[0] == (0, {**common, "eval/return": 1.5, "eval/length": 0.0})
    assert fake.run.config["run"]["threads"] == 2
    assert "train/q" not in fake.run.logged[1][1] and fake.run.logged[2][1]["train/q"] == 12.5
    assert [step for step, _ in fake.run.logged] == [0, 1, 2] and fake.run.finished
    assert fake.run.metric == (("*",), {"step_metric": "frame"})


@pytest.mark.parametrize("method", ["init", "define_metric", "log", "finish"])
def test_what_wandb_raises_ends_the_mirror_alone(method, fake, tmp_path, monkeypatch, capsys):
    """A training run that ends because its mirror does."""

    def fail(*args, **options):
        raise RuntimeError("the server is on fire")

    monkeypatch.setattr(fake if method == "init" else FakeRun, method, fail)
    written = mirror(tmp_path, "offline")
    for row in ROWS:
        written.write(row)
    written.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "W&B mirroring stopped" in err and "on fire" in err


def test_settings_that_wandb_refuses_end_the_mirror_alone(fake, home, monkeypatch, capsys):
    """WANDB_BASE_URL=wandb.example.com: training that never begins."""

    def fail():
        raise ValueError("base_url: invalid URL")

    monkeypatch.setattr(fake, "setup", fail)
    mirror(home, "auto").write(ROWS[1])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "W&B mirroring stopped (base_url: invalid URL)" in err and fake.options is None


def test_what_wandb_refuses_is_told_with_its_reason(fake, tmp_path, monkeypatch, capsys):
    """WANDB_MODE=foo: '1 validation error for Settings', and not of what."""

    def fail(*args, **options):
        raise ValueError("1 validation error for Settings\nmode\n  Input should be 'online' or 'offline'")

    monkeypatch.setattr(fake, "init", fail)
    mirror(tmp_path, "offline")
    assert "for Settings; mode; Input should be 'online'" in capsys.readouterr().err


@pytest.mark.parametrize("known", [0, 1, 2, 3])
@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_online_sends_only_what_the_server_lacks(fake, tmp_path, known, kept):
    """A resumed run that sends rows twice or leaves some out, also where the server has more than the checkpoint."""
    write_rows(tmp_path / "metrics.jsonl", ROWS[:kept])
    fake.step = known
    written = mirror(tmp_path, "online")
    for row in [dataclasses.replace(ROWS[0], threads=1), *ROWS[kept:]]:
        written.write(row)
    assert [step for step, _ in fake.run.logged] == list(range(known, 3))
    assert [values["frame"] for _, values in fake.run.logged] == [row.frame for row in ROWS[1 + known :]]
    assert fake.run.config["run"]["threads"] == 1


# --- the mirror, with wandb itself ---


SCRIPT = """if True:
    import os, pathlib, sys, time
    from pixel_ddpg.training.logger import Metrics, WandbMirror
    from pixel_ddpg.training.rows import TrainRow
    folder, first, last, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    path = folder / "metrics.jsonl"
    metrics = Metrics(path, path.stat().st_size if path.exists() else 0)
    mirror = WandbMirror(folder, "offline", "project", "abc123", {"seed": 3})
    for i in range(first, last):
        row = TrainRow(10 * i, i, i, 0.1, i + 0.5)
        metrics.write(row)
        mirror.write(row)
    if end == "close":
        mirror.close()
    print("written", flush=True)
    time.sleep(60 * (end == "wait"))
"""


def run_script(folder: pathlib.Path, first: int, last: int, end: str, **variables: str) -> None:
    """Write rows in a process of its own; with end="wait" it is killed without a chance to finish."""
    words = [sys.executable, "-c", SCRIPT, str(folder), str(first), str(last), end]
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | variables
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout.readline() == "written\n"
    if end == "wait":
        process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stdout.close()


def scan(data: bytes):
    """The whole records of a .wandb file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    assert data[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # a block's end that is too short for a header is padding
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        position += 7
        record += data[position : position + length]
        position += length
        if kind in (1, 4) and position <= len(data):  # whole, or the last part
            yield record
            record = b""


def offline_file(folder: pathlib.Path) -> tuple[set[str], list[dict]]:
    """Run ids and rows of the only offline run in a folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    ids, rows = set(), []
    for data in scan(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
        elif record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    return ids, rows


def test_offline_run_survives_a_kill(tmp_path):
    """A W&B run that lacks the rows which a killed process had written, or that has some twice."""
    run_script(tmp_path, 0, 400, "wait")  # more than one block of 32 KiB
    run_script(tmp_path, 400, 403, "wait")
    run_script(tmp_path, 403, 405, "close")
    ids, rows = offline_file(tmp_path)
    assert ids == {"abc123"}
    assert [row["frame"] for row in rows] == [10 * i for i in range(405)]
    assert [row["train/return"] for row in rows] == [i + 0.5 for i in range(405)]
    assert [row["_step"] for row in rows] == list(range(405))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 405


def test_wandb_writes_to_the_runs_folder_alone(tmp_path):
    """Logs in the user's home, and two folders in TMPDIR for every run that was killed: thousands on a cluster."""
    elsewhere = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    for path in elsewhere.values():
        path.mkdir()
    (tmp_path / "run").mkdir()
    for first, end in enumerate(["wait", "wait", "close", "close"]):
        run_script(tmp_path / "run", first, first + 1, end, **{name: str(path) for name, path in elsewhere.items()})
        if end == "close":
            assert not list(tmp_path.glob("run/wandb/tmp*"))
    assert [path for each in elsewhere.values() for path in each.rglob("*") if path.is_file()] == []
    assert [path.name for path in elsewhere["TMPDIR"].iterdir()] == []


def test_importing_the_logger_does_not_import_wandb():
    """A second of every start, and a thread, for a run with wandb=off."""
    code = "import sys, pixel_ddpg.training.logger; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
