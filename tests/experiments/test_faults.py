"""Faults put in by hand: a handful of what `python -m experiments.faults` puts in by hundreds."""

import json

import pytest
from small import command

from experiments.faults import forked, long_runs
from pixel_ddpg.training.rows import TrainRow


@pytest.mark.parametrize(
    ("code", "err", "said"),
    [
        (0, "a table\n", ""), (130, "", ""), (1, "pixel_ddpg: no\n", ""), (1, "", "exit code 1"), (1, "no\n", "no"),
        (-11, "", "ended by signal 11"), (None, "", "hung"), (0, 'Traceback\n  File "a.py", line 3\nE: no', "E: no"),
    ],
)  # fmt: skip
def test_what_a_user_should_not_see_is_a_failure(code, err, said):
    """A check of endings that passes everything."""
    complaint = forked.Ended(code, "", err, 0.0).complaint
    assert said in complaint and bool(said) == bool(complaint)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["parts=[kills]", "kills=2"], marks=pytest.mark.long),
        pytest.param(["parts=[damaged checkpoints]", "cuts=2", "flips=10"], marks=pytest.mark.long),
        pytest.param(["parts=[refused writes]", "every=26"], marks=pytest.mark.long),
        ["parts=[command lines]", "lines=20"],
        ["parts=[damaged files]", "files=15"],
    ],
    ids=lambda words: words[0],
)
def test_faults_cost_nothing(words, tmp_path):
    """Kills, rot and full disks after which a run is another one; words and files that end in a traceback."""
    code, out, err = command("experiments.faults", *words, f"out={tmp_path / 'faults.json'}")
    assert (code, err) == (0, ""), (out, err)
    for row in json.loads((tmp_path / "faults.json").read_text()).values():
        assert row["tried"] > 1 and not row["failures"]


@pytest.mark.parametrize(
    ("memory", "speed", "disk", "wrong"),
    [
        (1000, 100.0, 50, []), (1001, 96.0, 60, []), (1030, 100.0, 50, ["memory has grown"]),
        (1000, 90.0, 50, ["it has slowed down"]), (1000, 100.0, 61, ["checkpoints take more than planned"]),
    ],
)  # fmt: skip
def test_a_long_run_that_grows_or_slows_down_fails(memory, speed, disk, wrong):
    """The end is compared with a full replay, not with the beginning, in which memory grows and updates are few."""
    first = [TrainRow(frame=frame, memory_bytes=frame, frames_per_second=500.0) for frame in range(100, 2000, 100)]
    full = [TrainRow(frame=frame, memory_bytes=1000, frames_per_second=100.0) for frame in range(2000, 9000, 100)]
    end = [TrainRow(frame=frame, memory_bytes=memory, frames_per_second=speed) for frame in range(9000, 10001, 100)]
    row, found = long_runs.judge([*first, *full, *end], disk, planned=60)
    assert found == wrong and row["frames"] == 10000 and row["frames/s at the end"] == round(speed)


@pytest.mark.long
def test_long_runs_are_made_and_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(long_runs, "SHARE", {"state": 1})
    row = long_runs.measure(10_000, tmp_path)
    assert row["state: frames"] == 10_000
    assert 0 < row["state: MiB of checkpoints"] <= row["state: MiB of checkpoints planned"]
    assert all("slowed down" in failure for failure in row["failures"])  # other tests run beside it


def test_an_unknown_part_is_refused(tmp_path):
    code, _, err = command("experiments.faults", "parts=[kils]", f"out={tmp_path / 'faults.json'}")
    assert code == 2 and "unknown part 'kils'" in err
