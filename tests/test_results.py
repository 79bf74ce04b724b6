"""From runs to the tables of the README."""

import shutil

import pytest
from small import STATE, command, rows, train

from experiments import figures, results
from pixel_ddpg import config, trainer
from pixel_ddpg.logger import Metrics


def fake_run(folder, value, *words):
    """What is kept of a run: its configuration and one evaluation at the end."""
    settings = config.compose(["obs=pixels", *words, "run_dir=elsewhere"])
    run = folder / settings.task / settings.obs / settings.preset / f"seed{settings.seed}"
    run.mkdir(parents=True)
    trainer.write_config(settings, run)
    metrics = Metrics(run / "metrics.jsonl")
    row = {"kind": "eval", "frame": 100_000, "return": value, "hours": 0.5}
    metrics.write({"kind": "run", "frame": 0, "commit": "0123456789abc", "threads": 1, "hours": 0.0})
    metrics.write(row | {"frame": 10_000, "return": -1.0})
    metrics.write(row)
    metrics.close()
    return run


def cells(table, task):
    line = next(line for line in table.splitlines() if line.startswith(f"| {task} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_comparison_has_every_seed_and_says_what_is_missing(tmp_path):
    """A seed left out, a mean over the wrong tasks, a difference with the wrong sign, a gap that is not shown."""
    fake_run(tmp_path, 600.0, "task=cartpole-swingup")
    fake_run(tmp_path, 700.0, "task=cartpole-swingup", "seed=1")
    fake_run(tmp_path, 100.0, "task=walker-walk")
    fake_run(tmp_path, 50.0, "task=walker-walk", "obs=state", "preset=ddpg2016")
    table = results.comparison_table(tmp_path)
    assert cells(table, "cartpole-swingup") == [
        "cartpole-swingup", "8", "650 (600, 700)", "missing", "missing", "626", "759", "819", "+24", "-109",
    ]  # fmt: skip
    assert cells(table, "walker-walk")[1:5] == ["2", "100", "missing", "50"]
    assert cells(table, "cheetah-run")[2] == "missing"
    assert "(2 of 6)" in table and "ours 375, DrQ-v2 398" in table
    assert results.provenance_table(tmp_path).count("012345678 |") == 4


def test_a_run_of_a_preset_that_has_changed_is_refused(tmp_path):
    """A result of other settings under the preset's name."""
    fake_run(tmp_path, 1.0, "task=walker-walk", "agent.tau=0.5")
    with pytest.raises(config.UserError, match=r"agent\.tau=0\.5"):
        results.comparison_table(tmp_path)


def test_curves_of_unfinished_runs_and_real_rows(tmp_path):
    """A figure that needs a finished run, or a published curve."""
    train(STATE, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(rows(tmp_path / "a")) > 1
    code, _, err = command("experiments.figures", f"runs=[{tmp_path}]", f"out={tmp_path}/curves.png")
    assert (code, err) == (0, "") and (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_published_curves_are_counted():
    """'Ten seeds' over a curve that has eight."""
    counts = {task: len(figures.published_curve(task, 10**6)) for task in results.TASKS}
    assert counts["ball_in_cup-catch"] == 8 and counts["cartpole-swingup"] == 10
