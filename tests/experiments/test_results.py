"""From runs to the tables of the README."""

import functools
import json
import shutil

import av
import numpy as np
import pytest
from small import STATE, call, command, rows, train

from experiments import grid, results
from experiments.benchmarks import tables as benchmark_tables
from experiments.report import page, panels, runs
from pixel_ddpg import presets
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError
from pixel_ddpg.planning import baselines
from pixel_ddpg.training import run_folder
from pixel_ddpg.training.logger import Metrics
from pixel_ddpg.training.rows import EvalRow, PartRow


def fake_run(folder, value, *words):
    """What is kept of a run: its configuration and one evaluation at the end."""
    settings = presets.compose(["obs=pixels", *words, "run_dir=elsewhere"])
    run = folder / settings.task / settings.obs / settings.preset / f"seed{settings.seed}"
    run.mkdir(parents=True)
    run_folder.write_config(settings, run)
    metrics = Metrics(run / "metrics.jsonl")
    metrics.write(PartRow(commit="0123456789abc", threads=1))
    metrics.write(EvalRow(frame=10_000, hours=0.5, return_=-1.0))
    metrics.write(EvalRow(frame=100_000, hours=0.5, return_=value))
    metrics.close()
    return run


def cells(table, task):
    line = next(line for line in table.splitlines() if line.startswith(f"| {task} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_comparison_has_every_seed_and_says_what_is_missing(tmp_path, monkeypatch):
    """A seed left out, a mean over the wrong tasks, a worse result that is not said, a gap that is not shown."""
    fake_run(tmp_path, 600.0, "task=cartpole-swingup")
    fake_run(tmp_path, 700.0, "task=cartpole-swingup", "seed=1")
    fake_run(tmp_path, 100.0, "task=walker-walk")
    fake_run(tmp_path, 50.0, "task=walker-walk", "obs=state", "preset=ddpg2016")
    monkeypatch.setattr(baselines, "MEASURED", tmp_path / "baselines")
    for policy, value in (("random", 50.0), ("sampling", 850.0), ("ilqg", 400.0)):
        write_baseline(tmp_path / "baselines", "cartpole-swingup", policy, value)
    table = results.comparison_table(tmp_path, "pixels")
    assert cells(table, "cartpole-swingup")[1:] == ["8", "650 (600, 700)", "626", "478", "550", "759", "819", "0.75"]
    assert cells(table, "walker-walk")[1:3] == ["2", "100"] and cells(table, "walker-walk")[-1] == "missing"
    assert cells(table, "cheetah-run")[1:3] == ["", "missing"] and baselines.score("cartpole", 450.0) == 0.5
    assert cells(table, "mean of 2")[2:4] == ["375", "398"]
    assert "Published means above those of `fast`: DrQ-v2 on walker-walk; MR.Q on walker-walk; " in table
    assert "; DrQ on all; ResAct on all." in table
    table = results.comparison_table(tmp_path, "state")
    assert cells(table, "walker-walk")[1:5] == ["", "missing", "50", "353"] and "mean" not in table
    assert results.provenance_table(tmp_path).count("012345678 |") == 4


def test_a_run_of_a_preset_that_has_changed_is_told(tmp_path):
    """A result of other settings that passes under the preset's name."""
    fake_run(tmp_path / "now", 1.0, "task=walker-walk")
    assert "as it is now" not in results.comparison_table(tmp_path, "pixels")
    fake_run(tmp_path / "then", 1.0, "task=cheetah-run", "agent.tau=0.5")
    said = "Runs with settings other than their preset's today: 1 (agent.tau=0.5)."
    assert results.comparison_table(tmp_path, "pixels").endswith(said)


def test_runs_of_different_settings_are_not_averaged(tmp_path):
    """A mean of two presets under one name."""
    fake_run(tmp_path / "now", 1.0, "task=walker-walk")
    fake_run(tmp_path / "then", 1.0, "task=walker-walk", "agent.tau=0.5", "seed=1")
    with pytest.raises(UserError, match=r"differ in agent\.tau"):
        results.comparison_table(tmp_path, "pixels")


def test_runs_of_different_budgets_are_not_averaged(tmp_path):
    """A run that has hardly begun to lower its learning rate; a run of other settings that is in no mean."""
    fake_run(tmp_path / "now", 1.0, "task=walker-walk")
    fake_run(tmp_path / "then", 1.0, "task=walker-walk", "seed=1", "frames=1000000")
    with pytest.raises(UserError, match="differ in frames=100000"):
        results.comparison_table(tmp_path, "pixels")


def test_curves_of_unfinished_runs_and_real_rows(tmp_path):
    """A figure that needs a finished run, or a published curve."""
    train(STATE, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(rows(tmp_path / "a")) > 1
    code, _, err = command("experiments.figures", f"runs=[{tmp_path}]", f"out={tmp_path}/curves.png")
    assert (code, err) == (0, "") and (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_published_curves_are_counted():
    """'Ten seeds' over a curve that has eight."""
    counts = {task: len(panels.published_curve(task, 10**6)) for task in tasks.PLANET6}
    assert counts["ball_in_cup-catch"] == 8 and counts["cartpole-swingup"] == 10


def write_baseline(folder, task, policy, *returns):
    folder.mkdir(exist_ok=True)
    result = {
        "task": task,
        "policy": policy,
        "action_repeat": 2,
        "settings": {"horizon": 0.5} if policy != "random" else {},
    }
    made = {"frames": 1000, "minutes": 2.0, "commit": "0123456789abc"}
    episodes = [{"seed": seed, "return": value} | made for seed, value in enumerate(returns)]
    result |= {"return": float(np.mean(returns)), "sd": float(np.std(returns)), "episodes": episodes}
    (folder / f"{task}-{policy}.json").write_text(json.dumps(result))


def test_baselines_name_the_better_planner(tmp_path, monkeypatch):
    """The worse planner as the 1; a planner that was not run shown as if it were."""
    monkeypatch.setattr(baselines, "MEASURED", tmp_path / "baselines")
    monkeypatch.setattr(baselines, "planner_settings", lambda policy, _: {"horizon": 0.5} if policy != "random" else {})
    write_baseline(tmp_path / "baselines", "walker2d", "random", 1.0, 3.0)
    write_baseline(tmp_path / "baselines", "walker2d", "sampling", 500.0)
    write_baseline(tmp_path / "baselines", "walker2d", "ilqg", 600.0, 700.0)
    write_baseline(tmp_path / "baselines", "hopper", "random", 5.0)
    table = results.baseline_table()
    assert cells(table, "walker2d") == [
        "walker2d", "walker2d", "2", "2.0 (1.0, 2)", "500.0 (-, 1)", "650.0 (50.0, 2)", "ilqg", "0.5, 0.5",
        "2.0, 2.0", "012345678",
    ]  # fmt: skip
    assert baselines.better_planner("walker2d") == "ilqg" and baselines.better_planner("hopper") is None
    assert cells(table, "hopper")[3:7] == ["5.0 (-, 1)", "", "", "missing"]
    write_baseline(tmp_path / "baselines", "cart", "random", 5.0)  # whose repeat is 4
    with pytest.raises(UserError, match="other settings"):
        results.baseline_table()


def test_what_was_measured_is_what_would_be_measured_now():
    """Settings that were changed and whose baselines were not run again."""
    assert {"cartpole-swingup", "cart"} <= set(results.measured_baselines())


def test_the_tables_are_those_of_the_files():
    """Results, docstrings or fields that `python -m experiments.results` has not seen."""
    compared = runs.collect([str(results.FOLDER / "figure2")])
    resources = results.resources_table([results.FOLDER / name for name in results.MEASURED])
    screening, docs = results.FOLDER / "screening", results.DOCS
    comparisons = [results.comparison_table(results.SIX, obs) for obs in results.PUBLISHED]
    folders = results.SIX, results.FOLDER / "figure2"
    expected = {
        results.ROOT / "README.md": comparisons,
        docs / "results.md": [*comparisons, page.summary(compared)],
        docs / "speed.md": [results.quick_note(compared), results.speed_tables(), resources],
        docs / "tasks.md": [results.paper_table(), results.task_table()],
        docs / "scores.md": [results.baseline_table(), results.planet_table()],
        docs / "configuration.md": [results.field_table()],
        docs / "reliability.md": [results.faults_table()],
        results.FOLDER / "README.md": [results.provenance_table(folder) for folder in folders],
        screening / "README.md": [results.screening_table(screening)],
    }
    for path, found in expected.items():
        for table in found:
            assert table in path.read_text(), path
    for path in benchmark_tables.FOLDER.glob("*.json"):
        assert benchmark_tables.as_text(json.loads(path.read_text())) in path.with_suffix(".md").read_text()
    for path in benchmark_tables.GPUS_FOLDER.glob("*.json"):
        assert benchmark_tables.gpu(json.loads(path.read_text())) in path.with_suffix(".md").read_text()


def test_open_numbers_of_every_task_are_listed():
    """A task without its reward, or a row that a | cuts in two."""
    table = results.task_table().splitlines()
    listed = {line.split(" | ")[0].strip("| "): line for line in table[2:]}
    assert set(listed) == {name for name, task in tasks.CATALOGUE.items() if "paper" in task.tags}
    assert all(line.replace("\\|", "").count("|") == 6 for line in table)
    own = {name for name, line in listed.items() if "dm_control's own" in line}
    assert own == {"cartpole", "cartpoleBalance", "cheetah"}
    plain = own | {"hardCheetah", "cartpoleSerialDouble", "cartpoleSerialTriple"}  # dm_control's reward, as they say
    said = {name: listed[name] if " As " not in line else listed[line.split(" As ")[1].split(".")[0]]
            for name, line in listed.items()}  # fmt: skip
    assert all("r = " in line for name, line in said.items() if name not in plain)
    assert "(links 1, fixed)" in listed["fixedReacherSingle"] and "(random start)" in listed["gripperRandom"]


def test_a_task_may_be_built_by_a_function_without_a_docstring(monkeypatch):
    """A traceback in place of all tables, where such a function is given arguments."""
    for builder in (lambda links: None, functools.partial(lambda links: None, 1)):
        monkeypatch.setattr(results, "_builder", lambda task, builder=builder: builder)
        assert "r = " in " ".join(results._docstrings(tasks.find("fixedReacher")))


def test_a_grid_shows_every_task(tmp_path):
    """A task left out of the picture; an episode that has ended shown as if it went on."""
    films = {name: tmp_path / f"{name}.mp4" for name in ("cart", "pendulum")}
    for path, shade, length in zip(films.values(), (100, 200), (40, 10)):
        with grid.Video(path, 20) as video:
            for _ in range(length):
                video.add(np.full((3, 64, 64), shade, np.uint8))
    grid.compose(films, 64, 2.0, tmp_path / "grid.mp4")
    with av.open(str(tmp_path / "grid.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 40 and frames[0].shape == (72, 64 * grid.COLUMNS, 3)
    shades = [
        (frame[12:, :60].mean().round(-1), frame[12:, 70:120].mean().round(-1)) for frame in (frames[0], frames[-1])
    ]
    assert shades == [(100, 200), (100, 100)]


def test_a_grid_is_filmed_once(tmp_path):
    """Films that are whole episodes, or made again by the same command."""
    words = ["tag=easy", "agent=random", "seconds=0.2", "size=32", f"out={tmp_path}/grid.mp4"]
    out = [command("experiments.grid", *words)[1] for _ in range(2)]
    names = [name for name, task in tasks.CATALOGUE.items() if "easy" in task.tags]
    assert all(f"{name} random: return" in out[0] for name in names) and "return" not in out[1]
    with av.open(str(tmp_path / "grid.mp4")) as container:
        assert len(list(container.decode(video=0))) == 4
    next((tmp_path / "grid").glob("*.mp4")).write_bytes(b"no film")
    code, _, err = command("experiments.grid", *words)
    assert code == 1 and "is damaged" in err and err.count("\n") == 1


def test_a_grid_does_not_show_an_older_planner(monkeypatch):
    """Films of other settings, or of another state of the code, taken for what is asked for."""
    how = ("cart", "ilqg", 0, 64, 2.0)
    names = [grid.film_name(*how), grid.film_name(*how[:2], 1, 64, 2.0), grid.film_name("cart", "sampling", 0, 64, 2.0)]
    monkeypatch.setattr(baselines, "planner_settings", lambda *_: {"horizon": 9.0})
    names.append(grid.film_name(*how))
    monkeypatch.setattr(grid, "code", lambda: "another")
    names.append(grid.film_name(*how))
    assert len(set(names)) == 5 and grid.film_name(*how) == names[-1]


def test_a_grid_sees_a_change_that_is_not_committed(tmp_path, monkeypatch):
    """Films of a task as it was before someone changed it."""
    hashes = []
    for text in ("camera = 0", "camera = 1"):
        (tmp_path / "tasks.py").write_text(text)
        monkeypatch.setattr(grid.pixel_ddpg, "__file__", str(tmp_path / "__init__.py"))
        grid.code.cache_clear()
        hashes.append(grid.code())
    monkeypatch.undo()
    grid.code.cache_clear()
    assert grid.code() not in hashes and hashes[0] != hashes[1]


def test_mistakes_in_a_grid_are_told_in_one_line():
    """A traceback for a misspelt tag or agent."""
    for words, part in ((["tag=tabel1"], "did you mean table1"), (["agent=planer"], "did you mean planner"),
                        (["out=a.gif"], "must end in .mp4"), (["size=33"], "even")):  # fmt: skip
        code, _, err = call("experiments.grid", *words)
        assert code == 2 and err.startswith("pixel_ddpg: ") and err.count("\n") == 1 and part in err
