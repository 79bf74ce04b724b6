"""Faults put in by hand: a handful of what `python -m experiments.faults` puts in by hundreds."""

import json

import pytest
from small import command

from experiments.faults import forked


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
        pytest.param(["parts=[damaged checkpoints]", "flips=10"], marks=pytest.mark.long),
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


def test_an_unknown_part_is_refused(tmp_path):
    code, _, err = command("experiments.faults", "parts=[kils]", f"out={tmp_path / 'faults.json'}")
    assert code == 2 and "unknown part 'kils'" in err
