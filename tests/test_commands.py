"""The real commands, as a stranger would type and kill them."""

import contextlib
import errno
import io
import json
import os
import pathlib
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import av
import numpy as np
import pytest
from small import PIXELS, STATE, assert_same_run, call, command, rows, start, train

from pixel_ddpg import doctor, errors, files, presets
from pixel_ddpg import list as list_tasks
from pixel_ddpg.command import Output
from pixel_ddpg.command import command as command_of
from pixel_ddpg.runtime import machine
from pixel_ddpg.training import run_folder

RUN = "pixel_ddpg.run"


def test_pythons_own_m_names_the_module(monkeypatch):
    """The -m of --multirun after it, with which an interrupt is a traceback."""
    for option in ("-m", "-um"):
        monkeypatch.setattr(sys, "orig_argv", ["python", option, RUN, "-m", "task=cartpole-swingup"])
        assert errors.is_command()


def test_a_check_leaves_no_file_behind_a_link(tmp_path):
    """out= that is a link to nowhere: an empty file where it leads, and the link gone."""
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    files.check_writable(link)
    assert link.is_symlink() and not (tmp_path / "nowhere").exists()


def wait_for_rows(run_dir, count, process, seconds=120):
    """Until metrics.jsonl has this many rows; the process must not have ended before."""
    end = time.monotonic() + seconds
    path = run_dir / "metrics.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)


def assert_one_line(err, *parts):
    assert err.startswith("pixel_ddpg: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_ctrl_c_saves_and_the_run_continues(number, tmp_path):
    """Ctrl-C, a closed terminal or a cluster's warning that loses the minutes since the last checkpoint."""
    words = [*STATE, "frames=2400", f"run_dir={tmp_path}/run"]
    process = start(RUN, *words)
    wait_for_rows(tmp_path / "run", 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_one_line(err, "saved", "the same command resumes it")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    code, out, _ = command(RUN, *words)
    assert code == 0 and "resumes at frame" in out
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    train(words, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


LOST = {
    "in a callback": (
        "kept = set(); alive = weakref.ref(kept, lambda _: signal.raise_signal(signal.SIGINT)); del kept\n"
        "    while True: time.sleep(0.1)"
    ),
    "taken for a failure": (
        "try: signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt: raise UserError('no pictures') from None"
    ),
}


@pytest.mark.parametrize("lines", LOST.values(), ids=LOST)
def test_ctrl_c_that_python_or_a_library_loses_ends_a_command(lines):
    """A command that continues after an "Exception ignored in: ..."; GL that asks for packages, and exit code 1."""
    code = "import signal, time, weakref; from pixel_ddpg.command import one_line_errors\n"
    code += f"from pixel_ddpg.errors import UserError\nwith one_line_errors():\n    {lines}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, "pixel_ddpg: interrupted\n")


def test_ctrl_c_that_a_library_loses_stops_a_run_before_it_trains(tmp_path):
    """A run that trains for hours although it was told to stop while it began."""
    code = (
        "import contextlib, signal, sys; from pixel_ddpg import run\n"
        "def lose_it(*args, **options):\n"
        "    with contextlib.suppress(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)\n"
        "run.print_plan = lose_it\n"
        "run.main(sys.argv[1:])"
    )
    line = [sys.executable, "-c", code, *STATE, f"run_dir={tmp_path}/run"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 130
    assert_one_line(done.stderr, "stopped at frame 0", "the same command resumes it")


@pytest.mark.parametrize("word", ["replay.n_step=50", "env.action_repeat=400"])
def test_a_plan_can_be_made_for_any_run(word, tmp_path):
    """A window longer than the steps that are tried, an episode shorter than these: a traceback."""
    code, out, err = command(RUN, *STATE, "frames=2000", "train.start_steps=2", word, f"run_dir={tmp_path}/run")
    assert (code, err) == (0, "") and "measured just now" in out


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    """run | head: hours of training, gone with the pipe."""
    words = [*STATE, "frames=400", f"run_dir={tmp_path}/run"]
    line = ["bash", "-o", "pipefail", "-c", '"$0" "$@" | head -1', sys.executable, "-m", RUN, *words]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_terminal_sees_how_far_a_run_is(tmp_path):
    """Hours of silence between two evaluations, or a bar that stands where it began."""
    master, slave = pty.openpty()
    words = [*STATE, "eval.every=1600", f"run_dir={tmp_path}/run"]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-m", RUN, *words], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the run has ended
        while part := os.read(master, 4096):
            seen += part
    os.close(master)
    assert process.wait() == 0
    frames = [int(found.replace(b",", b"")) for found in re.findall(rb"([\d,]+)/1,600 frames", seen)]
    assert frames == sorted(frames) and frames[0] == 0 and frames[-1] == 1600 and b"frames/s  left" in seen
    assert re.search(rb"return \d+\.\d", seen)


def closed_pipe():
    """A file descriptor whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_warning_that_nobody_reads_ends_nothing():
    """2> >(head): a run that resumes on other threads, says so, and ends there with exit code 0."""
    code = "from pixel_ddpg.errors import warn; warn('one'); warn('two'); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=closed_pipe(), text=True)
    assert (done.returncode, done.stdout) == (0, "still here\n")


@pytest.mark.parametrize("words", [["pixel_ddpg.list", "tag=easy"], ["pixel_ddpg.list", "--help"]], ids=" ".join)
@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_what_nobody_reads_or_no_disk_takes_ends_in_one_line(words, buffered):
    """list | head: "Exception ignored in", exit code 120."""
    line, environment = [sys.executable, "-m", *words], os.environ | buffered
    done = subprocess.run(line, stdout=closed_pipe(), stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert_one_line(done.stderr, "the disk is full")


@pytest.mark.parametrize("name", ["a[/b]c", "exp[a]", "c:smile:d"])
def test_a_folder_is_named_as_it_is(name, tmp_path):
    """Rich's markup: a traceback, or 'done: ' and the name of a folder that is not there."""
    code, out, err = command(RUN, *STATE, "frames=200", f"run_dir={tmp_path}/{name}")
    assert (code, err) == (0, "")
    assert f" in {tmp_path}/{name}\n" in out and f"done: {tmp_path}/{name}/metrics.jsonl" in out


def test_a_deleted_working_directory_is_told(tmp_path):
    """Intel oneMKL FATAL ERROR."""
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["bash", "-c", f"rmdir '{gone}'; exec '{sys.executable}' -m pixel_ddpg.list"], cwd=gone, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 1
    assert_one_line(done.stderr, "the working directory has been deleted")


def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """A script beside the checkout, which is called pixel_ddpg itself: an empty package without make_env."""
    for name in ("pixel_ddpg", "experiments"):
        (tmp_path / name).mkdir()
    code = "import experiments, pixel_ddpg; print(pixel_ddpg.__file__, experiments.__file__)"
    (tmp_path / "mine.py").write_text(code)
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("__init__.py") == 2, done.stderr


@pytest.mark.parametrize("module", ["experiments.figures", "experiments.report"])
def test_a_limit_on_the_size_of_files_is_told_and_leaves_no_half_file(module, tmp_path):
    """ulimit -f: a traceback, and half of a figure in the place of the former one."""
    train([*STATE, "frames=400"], tmp_path / "run")
    out = tmp_path / ("figure.png" if module == "experiments.figures" else "report")
    code, _, err = command(
        module, f"runs={tmp_path}/run", f"out={out}",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )  # fmt: skip
    assert code == 1
    assert_one_line(err, "ulimit -f")
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".svg", ".tmp", ".html")]


def test_an_evaluation_that_cannot_be_written_is_shown(tmp_path, monkeypatch):
    """A full disk: minutes of work thrown away."""
    train([*STATE, "frames=400"], tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_atomically", full)
    code, out, err = call("pixel_ddpg.evaluate", f"run={tmp_path}", "episodes=1")
    assert (code, out) == (1, "") and "mean" in err and "the disk is full" in err
    assert "+-" not in err  # of one episode


def test_a_run_that_cannot_be_written_to_is_evaluated(tmp_path, monkeypatch):
    """A colleague's run: refused, though playing and reporting it work."""
    train([*STATE, "frames=400"], tmp_path)
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)
    code, out, err = call("pixel_ddpg.evaluate", f"run={tmp_path}", "episodes=1")
    assert code == 0 and json.loads(out)["frame"] == 400 and "evaluation.json is not saved" in err
    assert not (tmp_path / "evaluation.json").exists()
    code, _, err = call("pixel_ddpg.evaluate", f"run={tmp_path}", "video=true")
    assert code == 1
    assert_one_line(err, "cannot be written to", "without video=true")


def test_an_evaluation_that_nobody_reads_is_kept(tmp_path, monkeypatch):
    """evaluate | head: the same."""
    train([*STATE, "frames=400"], tmp_path)
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    monkeypatch.setattr("pixel_ddpg.command.leave", lambda stream: None)
    code, _, _ = call("pixel_ddpg.evaluate", f"run={tmp_path}", "episodes=1")
    assert code == 0 and json.loads((tmp_path / "evaluation.json").read_text())["frame"] == 400


def test_a_new_name_for_wandb_is_taken_and_the_old_one_kept(tmp_path):
    """A copy of a run that continues the original's W&B run, though it was given another."""
    words = [*STATE, f"run_dir={tmp_path}"]
    for frames, given, expected in ((400, ["wandb_id=one"], "one"), (800, [], "one"), (1200, ["wandb_id=two"], "two")):
        code, _, err = call(RUN, *words, *given, f"frames={frames}")
        assert (code, err) == (0, "") and run_folder.read_config(tmp_path).wandb_id == expected


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_is_deleted_or_moved_ends_the_run(moved, tmp_path):
    """A run that trains for hours, ends with 'done' and has written nothing, or names a file that is not there."""
    process = start(RUN, *STATE, "frames=1000000", f"run_dir={tmp_path}/run")
    wait_for_rows(tmp_path / "run", 3, process)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere") if moved else shutil.rmtree(tmp_path / "run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert_one_line(err, "metrics.jsonl was deleted or moved")
    assert not moved or rows(tmp_path / "elsewhere")


@pytest.mark.long
def test_a_run_from_beginning_to_end(tmp_path):
    """The plan, one line an evaluation, the video, evaluate, play, figures; what a finished or other run answers."""
    run_dir = tmp_path / "run"
    words = [*PIXELS, "eval.video_size=64", f"run_dir={run_dir}"]
    code, out, err = command(RUN, *words)
    assert (code, err) == (0, "")
    for part in (
        "cartpole-swingup from pixels",
        "fast, seed 0",
        "1 CPU thread",
        "in RAM",
        "iB in",
        "measured",
        "frame     1,600",
    ):
        assert part in out, part
    with av.open(run_dir / "videos" / "1600.mp4") as film:
        assert film.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in film.decode(video=0)) == 126
    facts = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])
    assert facts["kind"] == "run" and facts["versions"]["mujoco"] and facts["cpu"] and "commit" in facts

    code, out, _ = command(RUN, *words)
    assert code == 0 and "is done" in out
    code, _, err = command(RUN, *words, "agent.tau=0.5")
    assert code == 2
    assert_one_line(err, "agent.tau=0.01", "overwrite=true")
    code, _, err = command(RUN, *words, "resume=false")
    assert code == 2
    assert_one_line(err, "has a run")

    code, out, _ = command("pixel_ddpg.evaluate", f"run={run_dir}", "episodes=2", "video=true", "video_size=64")
    result = json.loads(out)
    assert code == 0 and len(result["returns"]) == 2 and os.path.exists(result["video"])
    assert json.loads((run_dir / "evaluation.json").read_text()) == result
    code, out, _ = command("pixel_ddpg.play", f"agent={run_dir}", "size=64", f"out={tmp_path}/film.mp4", "window=off")
    assert code == 0 and "return" in out and (tmp_path / "film.mp4").stat().st_size > 1000
    code, out, _ = command("experiments.figures", f"runs=[{tmp_path}]", f"out={tmp_path}/curves.png")
    assert code == 0 and (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"

    before = rows(run_dir)
    assert command(RUN, *words, "resume=false", "overwrite=true")[0] == 0
    assert rows(run_dir) == before


@pytest.mark.long
def test_ctrl_c_in_an_evaluation_ends_it_and_the_run_continues_the_same(tmp_path):
    """Ctrl-C that waits for the end of a long evaluation, or one that is skipped when the run resumes."""
    words = [*STATE, "frames=1000", "eval.every=1000", "eval.episodes=60"]
    train(words, tmp_path / "whole")
    process = start(RUN, *words, f"run_dir={tmp_path}/parts")
    wait_for_rows(tmp_path / "parts", 3, process)  # run, eval, train: now the evaluation at frame 1,000 begins
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_one_line(err, "stopped at frame 1,000", "the same command resumes it")
    assert len(rows(tmp_path / "parts")) == 2
    assert command(RUN, *words, f"run_dir={tmp_path}/parts")[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_nothing_is_deleted_before_all_is_checked(tmp_path):
    """overwrite=true that destroys a run and then finds no such device; results without checkpoints that are wiped."""
    words = [*STATE, "frames=400", f"run_dir={tmp_path}"]
    train(words, tmp_path)
    (tmp_path / "a file of the user").touch()
    before = rows(tmp_path)
    assert command(RUN, *words, "resume=false", "overwrite=true", "device=cuda:9")[0] == 2
    assert rows(tmp_path) == before != []
    shutil.rmtree(tmp_path / "checkpoints")
    code, _, err = command(RUN, *words, "frames=800")
    assert code == 2
    assert_one_line(err, "results but no checkpoint")
    run_folder.write_status(tmp_path, "stopped", frame=400)
    assert_one_line(command(RUN, *words, "frames=800")[2], "results but no checkpoint")
    assert rows(tmp_path) == before
    assert command(RUN, *words, "resume=false", "overwrite=true")[0] == 0
    assert (tmp_path / "a file of the user").exists()


@pytest.mark.parametrize("status", [None, "", "{", "[]", '{"state": "done"}', '{"state": "done", "frame": "x"}'])
def test_a_run_killed_before_its_first_row_starts_over(status, tmp_path):
    """'has results but no checkpoint' where there are no results, or a traceback from half a status.json."""
    words = [*STATE, "frames=400", f"run_dir={tmp_path}/run"]
    settings = presets.compose(words)
    (tmp_path / "run").mkdir()
    run_folder.write_config(settings, tmp_path / "run")
    if status is not None:
        (tmp_path / "run" / "status.json").write_text(status)
    code, out, err = command(RUN, *words)
    assert (code, err) == (0, "") and "done:" in out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [1,\nb: }{"), ("config.yaml", b"\xff\xfe\x00"), ("config.yaml", b"[1]"),
        ("checkpoints/000000000400/state.json", b"[]"), ("metrics.jsonl", b"nothing\n"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(name, content, tmp_path):
    """A traceback of a YAML or JSON reader, or a run that is deleted because one of its files cannot be read."""
    words = [*STATE, "frames=400", f"run_dir={tmp_path}"]
    train(words, tmp_path)
    for path in tmp_path.glob(name.replace("000000000400", "*")):
        path.write_bytes(content)
    module, *words = (["experiments.figures", f"runs=[{tmp_path}]", f"out={tmp_path}/curves.png"]
                      if name == "metrics.jsonl" else [RUN, *words, "frames=800"])  # fmt: skip
    code, _, err = command(module, *words)
    assert code in (1, 2) and "Traceback" not in err
    assert name.split("/")[-1] in err or "no checkpoint" in err


def test_names_of_others_among_the_checkpoints_are_left_alone(tmp_path):
    """A copy that a user made by hand stops the run, or is deleted."""
    words = [*STATE, f"run_dir={tmp_path}"]
    train([*words, "frames=400"], tmp_path)
    (tmp_path / "checkpoints" / "5.bak").touch()
    (tmp_path / "checkpoints" / "1abc").mkdir()
    code, out, err = command(RUN, *words, "frames=800")
    assert (code, err) == (0, "") and "resumes at frame" in out
    assert (tmp_path / "checkpoints" / "5.bak").exists() and (tmp_path / "checkpoints" / "1abc").exists()


def test_lost_rows_are_told(tmp_path):
    """A metrics.jsonl that begins in the middle, without a word."""
    words = [*STATE, f"run_dir={tmp_path}"]
    train([*words, "frames=400"], tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    code, _, err = command(RUN, *words, "frames=800")
    assert code == 0
    assert_one_line(err, "has lost rows")


def test_any_locale_will_do(tmp_path):
    """A run that cannot read its own config.yaml, or print its folder's name, where the system speaks ASCII."""
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii:strict"}
    words = [*STATE, f"run_dir={tmp_path}/\u00fc"]
    for frames in (400, 800):
        code, out, err = command(RUN, *words, f"frames={frames}", env=plain)
        assert (code, err) == (0, ""), err
    assert "resumes at frame" in out and "\\udcc3" in out
    code, out, err = command("experiments.report", f"runs=[{tmp_path}]", f"out={tmp_path}/report", env=plain)
    assert (code, err) == (0, "") and (tmp_path / "report" / "report.html").exists()


def test_a_link_in_a_runs_folder_is_removed_not_followed(tmp_path):
    """A traceback for checkpoints that were moved to a larger disk; or what they hold is deleted."""
    words = [*STATE, "frames=400", f"run_dir={tmp_path}/run"]
    train(words, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "moved")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "moved")
    code, out, err = command(RUN, *words, "frames=800")
    assert (code, err) == (0, "") and "resumes at frame" in out
    code, _, err = command(RUN, *words, "resume=false", "overwrite=true")
    assert (code, err) == (0, "") and list((tmp_path / "moved").iterdir())
    assert not (tmp_path / "run" / "checkpoints").is_symlink()


def test_closed_streams():
    """A traceback where stdout is closed."""
    line = f"{sys.executable} -m pixel_ddpg.list tag=easy >&-"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_of_other_things_is_not_deleted(tmp_path):
    """A new run in a folder that has videos/ or metrics.jsonl of something else."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "holiday.mp4").touch()
    code, _, err = command(RUN, *STATE, f"run_dir={tmp_path}")
    assert code == 2 and (tmp_path / "videos" / "holiday.mp4").exists()
    assert_one_line(err, "videos", "is not a run")


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    """Two runs that mix their metrics."""
    words = [*STATE, "frames=100000", f"run_dir={tmp_path}"]
    process = start(RUN, *words)
    wait_for_rows(tmp_path, 2, process)
    code, _, err = command(RUN, *words)
    process.kill()
    process.communicate()
    assert code == 1
    assert_one_line(err, "another process")


@pytest.mark.parametrize("agent", ["random", "zero"])
def test_play_needs_no_run(agent, tmp_path):
    """The first thing a visitor types."""
    words = ["task=reacher-easy", f"agent={agent}", "size=32", "window=off", f"out={tmp_path}/film.mp4"]
    code, out, err = command("pixel_ddpg.play", *words)
    assert (code, err) == (0, "") and (tmp_path / "film.mp4").exists() and "1000 frames" in out


CV2 = """
import sys

assert "av" not in sys.modules, "PyAV's libxcb makes the windows of an OpenCV that is loaded later hang"
CAP_PROP_FPS = 5


class VideoCapture:
    def __init__(self, path):
        self.left = 9

    def get(self, what):
        return 25.0

    def read(self):
        self.left -= 1
        return self.left >= 0, "picture"


def imshow(name, picture):
    with open(name + ".shown", "a") as file:
        file.write(picture)


def waitKey(pause):
    return -1


def destroyAllWindows():
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what DISPLAY means")
def test_play_shows_a_window_where_there_is_a_display(tmp_path, monkeypatch):
    """A window that hangs because av was imported first, or misses frames."""
    film = tmp_path / "film.mp4"
    (tmp_path / "cv2.py").write_text(CV2)
    words = ["task=reacher-easy", "size=32", f"out={film}"]
    env = {"PYTHONPATH": str(tmp_path), "DISPLAY": ":7"}
    code, _, err = command("pixel_ddpg.play", *words, env=env)
    assert (code, err) == (0, "") and (tmp_path / "film.mp4.shown").read_text() == "picture" * 9


@pytest.mark.skipif(sys.platform != "linux", reason="what DISPLAY means")
@pytest.mark.parametrize("window, expected", [("auto", 0), ("on", 1)])
def test_a_display_that_does_not_answer_costs_only_the_window(tmp_path, window, expected):
    """A stale DISPLAY: Qt ends the process it is in."""
    film = tmp_path / "film.mp4"
    words = ["task=reacher-easy", "size=32", f"out={film}", f"window={window}"]
    code, out, err = command("pixel_ddpg.play", *words, env={"DISPLAY": ":987"})
    assert code == expected and film.exists() and "1000 frames" in out
    assert_one_line(err, "no window")


def test_a_window_is_refused_where_there_is_no_display(tmp_path, monkeypatch):
    """window=on that is found impossible after the episode."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code, _, err = command("pixel_ddpg.play", "window=on", f"out={tmp_path}/film.mp4")
    if sys.platform == "linux":
        assert code == 1 and not (tmp_path / "film.mp4").exists()
        assert_one_line(err, "no display")


class Terminal(io.StringIO):
    """One that is narrow."""

    def isatty(self):
        return True


def test_list_is_complete_and_can_be_filtered(monkeypatch):
    """A task that cannot be found, or whose name a terminal cuts off."""
    code, out, _ = command("pixel_ddpg.list", "--json")
    assert code == 0 and len(json.loads(out)) == 51 + 31
    code, out, _ = command("pixel_ddpg.list", "tag=easy", "name=p*")
    assert code == 0 and "point_mass-easy" in out and "cheetah" not in out
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    assert list_tasks.main(["name=cartpole-three_poles"]) == 0
    assert "cartpole-three_poles" in terminal.getvalue() and "dm_control.suite" in terminal.getvalue()
    monkeypatch.undo()
    code, _, err = command("pixel_ddpg.list", "name=nothing")
    assert code == 2
    assert_one_line(err, "nothing")


def test_doctor_tells_what_fixes_each_lack():
    """A lack without its remedy, or with exit code 0."""
    code, out, _ = command("pixel_ddpg.doctor")
    assert code == 0 and out.count("\n") == out.count("ok ") == len(doctor.CHECKS)
    code, out, _ = command("pixel_ddpg.doctor", env={"MUJOCO_GL": "nonsense"})
    assert code == 1 and "fails rendering" in out and "fix it: " in out


def test_doctor_finds_what_no_check_foresees(capsys):
    """A traceback of W&B's settings in place of the other checks."""

    def fail():
        raise ValueError("base_url: invalid URL")

    assert doctor.examine({"W&B": fail, "Python": doctor.check_python}, Output()) == 1
    out = capsys.readouterr().out
    assert "fails W&B        base_url: invalid URL" in out and "ok    Python" in out


def test_other_jobs_run_after_one_that_fails(capsys):
    """A sweep that ends with its first bug."""
    done = []

    @command_of("pixel_ddpg.list", list_tasks.List)
    def main(options):
        done.append(1 / len(options.name))

    assert main(["--multirun", "name=,a"]) == 1 and done == [1.0]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_state_trains_without_any_gl(tmp_path):
    """A headless machine without libEGL cannot train from state; from pixels it gets one line."""
    words = [*STATE, "frames=800", "eval.video_size=64", f"run_dir={tmp_path}"]
    code, _, err = command(RUN, *words, env={"MUJOCO_GL": "disable"})
    assert code == 0, err
    code, _, err = command(RUN, *PIXELS, f"run_dir={tmp_path}/pixels", env={"MUJOCO_GL": "disable"})
    assert code == 1
    assert_one_line(err, "apt-get install")


@pytest.mark.parametrize("module", ["pixel_ddpg.list", "experiments.figures"])
def test_ctrl_c_before_a_command_begins_is_told_in_one_line(module, tmp_path):
    """A traceback out of an import: those take seconds, in which many change their mind."""
    (tmp_path / "gymnasium.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    code, out, err = command(module, env={"PYTHONPATH": path})
    assert code != 0 and (out, err) == ("", "pixel_ddpg: interrupted\n")


MISTAKES = {
    ("pixel_ddpg.evaluate", "run=nowhere"): "is not a run",
    ("pixel_ddpg.evaluate",): "name a run",
    ("pixel_ddpg.play", "task=cheetah-ru"): "cheetah-run",
    ("pixel_ddpg.play", "size=63"): "even",
    ("pixel_ddpg.play", "agent=nowhere"): "neither a run's folder nor a policy; choose from random",
    ("pixel_ddpg.play", "agent=planer"): "did you mean planner",
    ("pixel_ddpg.play", "agent=."): "is not a run",
    ("pixel_ddpg.baseline", "task=cart", "episodes=1000000000"): "at most",
    ("pixel_ddpg.doctor", "foo=1"): "unknown key 'foo'; this command has no options",
    ("pixel_ddpg.baseline", "task=cart", "out=/dev/null"): "choose another out=",
    ("pixel_ddpg.run", "run_dir=/proc/nothing"): "cannot",
    ("pixel_ddpg.run", "replay.capacity=100000000", "frames=1000000000", "run_dir=here"): "GiB",
    ("pixel_ddpg.run", "device=cuda:9"): "CUDA",
    ("pixel_ddpg.run", "overwrite=true"): "needs resume=false",
    ("pixel_ddpg.run", "run_dir=here/${agent.taau}"): "${agent.taau}, which is no field; did you mean agent.tau",
    ("pixel_ddpg.run", "run_dir=here/${run_dir}"): "which is no field",
    ("pixel_ddpg.run", "replay.n_step=1001"): "at most 1,000",
    ("pixel_ddpg.run", "env.frame_stack=9999999999999999999"): "at most 1,000,000,000,000",
    ("pixel_ddpg.run", "replay.capacity=9000000000000000000", "replay.batch_size=9000000000000000000"): "at most",
    ("pixel_ddpg.run", "agent.conv=[[9000000000000000000,3,1,0]]"): "agent.conv",
    ("pixel_ddpg.run", "--multirun", "task=cheeta-run,walker-walk"): "did you mean cheetah-run",
    ("pixel_ddpg.run", "task=cheetah-run,walker-walk"): "--multirun",
    ("pixel_ddpg.list", "name=zz*"): "`python -m pixel_ddpg.list` shows all",
    ("pixel_ddpg.play", "task=reacher-easy", "size=32", "out=/proc/film.mp4"): "/proc/film.mp4: ",
    ("pixel_ddpg.play", "seed=-1"): "at least 0",
    ("pixel_ddpg.evaluate", "run=nowhere", f"seed={9 * 10**400}"): "with fewer than 20 digits",
    ("pixel_ddpg.evaluate", "run=nowhere", f"seed={'9' * 5000}"): "with fewer than 20 digits",
    ("pixel_ddpg.list", "a\nb=1"): r"'a\nb=1' is not of the form",
    ("pixel_ddpg.evaluate", "run=nowhere", "seed=-1"): "at least 0",
    ("experiments.figures", "runs=[nowhere]"): "no runs",
    ("experiments.figures", "runs=[nowhere]", "out=c.xyz"): "must end in .png",
    ("experiments.figures", "runs=[nowhere]", "sheet=true"): "name one of",
    ("experiments.figures",): "name one of",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_get_one_line(words, tmp_path, monkeypatch):
    """A traceback, or exit code 0, for a user's mistake."""
    monkeypatch.chdir(tmp_path)
    code, _, err = (command if RUN in words else call)(*words)
    assert code in (1, 2)
    assert_one_line(err, MISTAKES[words])
    assert not list(tmp_path.rglob("seed0")) and not (tmp_path / "here").exists()


def test_a_commit_is_this_projects_own(tmp_path, monkeypatch):
    """The commit of whatever repository surrounds an installation; one without a module that it does not have."""
    package = tmp_path / "site-packages" / "pixel_ddpg" / "runtime"
    package.mkdir(parents=True)
    (package / "machine.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "other"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    assert machine.commit() is None
    shutil.move(tmp_path / "site-packages" / "pixel_ddpg", tmp_path / "pixel_ddpg")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "pixel_ddpg" / "runtime" / "machine.py"))
    assert machine.commit() is None  # as after `pip install --target .`
    module = tmp_path / "pixel_ddpg" / "__init__.py"
    module.write_text("")
    for words in (["add", "-A"], ["commit", "-qm", "its own"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert machine.commit() == head
    module.with_name("new.py").write_text("")
    assert machine.commit() == head + "+"


def test_a_commit_is_not_another_repositorys_and_locks_nothing(tmp_path, monkeypatch):
    """Provenance of the repository that a hook's variables name; a user's commit that fails as the index is locked."""
    expected = machine.commit()
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    log = tmp_path / "log"
    fake = tmp_path / "git"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {shutil.which("git")} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert machine.commit() == expected
    assert all("--no-optional-locks" in line for line in log.read_text().splitlines())


def test_make_builds_an_environment_again_whose_python_is_gone(tmp_path):
    """`make install` that has nothing to do, after an upgrade of the system's Python."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(pathlib.Path(__file__).parents[1] / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    for target, expected in ((sys.executable, False), ("/nowhere/python", True)):
        python.unlink(missing_ok=True)
        python.symlink_to(target)
        (tmp_path / ".venv" / "installed").touch()
        done = subprocess.run(["make", "-n", "install"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert ("venv --clear .venv" in done.stdout) == expected, done.stdout


def test_make_alone_lists_its_targets():
    """A target above help that becomes the one that is made where none is named."""
    done = subprocess.run(["make"], cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert {"install", "demo", "suite", "test"} <= set(done.stdout.split())


def test_nohup_stays_deaf_to_a_closed_terminal(tmp_path):
    """A run under nohup that ends with its terminal."""
    process = start(
        RUN, *STATE, "frames=2400", f"run_dir={tmp_path}/run",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    wait_for_rows(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err


class Deaf:
    """In stdout's place, with no more than print needs."""

    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_command_is_called_in_a_thread_with_a_logger_for_stdout(monkeypatch):
    """A notebook or a service: no isatty, and no handlers of signals outside the main thread."""
    monkeypatch.setattr(sys, "stdout", Deaf())
    codes = []
    thread = threading.Thread(target=lambda: codes.append(list_tasks.main([])))
    thread.start()
    thread.join(60)
    assert codes == [0] and "cheetah-run" in sys.stdout.text


def test_an_agent_can_be_sent_to_a_process_that_is_spawned(tmp_path):
    """'unable to resize file', from the random stream that it carries."""
    train([*STATE, "frames=400"], tmp_path / "run")
    code = """
import multiprocessing, sys, numpy, pixel_ddpg
agent = pixel_ddpg.load(sys.argv[1])
observation = numpy.zeros(agent.observation_shape, numpy.float32)
with multiprocessing.get_context("spawn").Pool(1) as pool:
    (action,) = pool.map_async(agent.act, [observation]).get(60)
    assert action.tolist() == agent.act(observation).tolist()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True, timeout=120)


def test_an_agent_acts_in_forked_processes(tmp_path):
    """A pool of a user's that never answers, as torch waits for threads that a fork does not copy."""
    train([*STATE, "frames=400"], tmp_path / "run")
    code = """
import multiprocessing, sys, numpy, torch, pixel_ddpg
torch.set_num_threads(2)
agent = pixel_ddpg.load(sys.argv[1])
large = torch.ones(700, 700)
large @ large  # starts the threads
observation = numpy.zeros(agent.observation_shape, numpy.float32)

def act(_):
    large @ large
    return agent.act(observation).tolist()

with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.map_async(act, range(2)).get(60) == 2 * [agent.act(observation).tolist()]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True, timeout=120)


@pytest.mark.parametrize(
    "words",
    [
        (RUN, "task=cartpole-balance", "seed=0,1", "run_dir={}/run", "resume=false", "overwrite=true"),
        (RUN, "task=cartpole-balance", "agent.tau=0.01,0.05"),
        ("pixel_ddpg.play", "task=cartpole-balance", "agent=random,zero", "out={}/film.mp4"),
        ("pixel_ddpg.play", "task=cartpole-balance", "seed=0,1"),
        ("pixel_ddpg.evaluate", "run={}/run", "seed=0,1"),
        ("experiments.figures", "runs=[a],[b]"),
    ],
)
def test_jobs_that_would_write_over_each_other_are_refused(words, tmp_path):
    """A sweep of which the last run alone is left."""
    code, _, err = call(words[0], "--multirun", *(word.format(tmp_path) for word in words[1:]))
    assert code == 2 and "several --multirun jobs would write to" in err
    assert not list(tmp_path.iterdir())


def test_colours_that_are_forced_make_no_terminal_of_a_file(tmp_path):
    """A live line's control codes in a log, thousands of them."""
    code, out, err = command(RUN, *STATE, "frames=200", f"run_dir={tmp_path}/run", env={"FORCE_COLOR": "1"})
    assert code == 0 and not err and "frames/s" not in out


@pytest.mark.parametrize("module", ["experiments.figures", "experiments.report", "experiments.benchmarks"])
def test_a_notebooks_backend_of_matplotlib_does_not_matter(module, tmp_path):
    """A traceback where a program inherits a backend that is not installed."""
    code, _, err = command(module, "runz=[a]", env={"MPLBACKEND": "module://not_there"}, cwd=tmp_path)
    assert code == 2 and "unknown key" in err and "Traceback" not in err


def test_a_readers_own_style_of_matplotlib_does_not_matter(tmp_path):
    """A traceback where LaTeX is asked for and is not there; figures that look as somebody's slides do."""
    train([*STATE, "frames=400"], tmp_path / "run")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: black\nfont.size: 30\n")
    words = [f"runs=[{tmp_path}/run]", "out=figure.png"]
    code, _, err = command("experiments.figures", *words, cwd=tmp_path)
    assert code == 0 and not err
    (tmp_path / "plain").mkdir()
    assert command("experiments.figures", *words, cwd=tmp_path / "plain")[0] == 0
    assert (tmp_path / "figure.png").read_bytes() == (tmp_path / "plain" / "figure.png").read_bytes()


@pytest.mark.long
def test_an_installed_wheel_works_outside_the_checkout(tmp_path):
    """A module, a table or a measured return that only the checkout has."""
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    root = pathlib.Path(__file__).parents[1]
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".*", "results", "runs", "site", "*.egg-info", "tests", "docs", "__pycache__")
    shutil.copytree(root, source, ignore=kept)
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {str(path.relative_to(source)) for path in source.glob("experiments/faults/*.*")}
    assert files <= set(zipfile.ZipFile(wheel).namelist())
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(str(pathlib.Path(np.__file__).parents[1]))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run([str(python), "-m", *words], cwd=elsewhere, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "hopper" in run("pixel_ddpg.list", "tag=table1")
    run(RUN, *STATE, "task=hopper", "env.action_repeat=2", "frames=400", "run_dir=run")
    assert json.loads(run("pixel_ddpg.evaluate", "run=run", "episodes=1"))["returns"]
    run("experiments.report", "runs=[run]", "out=report")
    assert "score" in (elsewhere / "report" / "figures" / "figure2.csv").read_text()
    facts = json.loads((elsewhere / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert facts["commit"] is None and facts["versions"]["pixel-ddpg"]


@pytest.mark.long
def test_an_agent_learns_from_pixels(tmp_path):
    """Everything above, and still nothing is learned: random actions return 110 on cart, with a deviation of 81."""
    words = ["task=cart", "obs=pixels", "threads=1", "frames=6000", "noise.frames=4000", "eval.every=6000"]
    code, _, err = command(RUN, *words, "eval.episodes=4", "eval.video_size=0", "wandb=off", f"run_dir={tmp_path}/run")
    assert code == 0, err
    last = [row for row in rows(tmp_path / "run") if row["kind"] == "eval"][-1]
    assert last["return"] > 300, last
