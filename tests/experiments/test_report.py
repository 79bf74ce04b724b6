"""From runs to the report."""

import base64
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from small import call

from experiments import figures
from experiments.profiles import CONTROLS
from experiments.report import __main__ as report
from experiments.report import page, panels, runs
from pixel_ddpg import config, files, presets
from pixel_ddpg.envs.video import Video
from pixel_ddpg.errors import UserError
from pixel_ddpg.planning import baselines
from pixel_ddpg.training import run_folder
from pixel_ddpg.training.logger import Metrics
from pixel_ddpg.training.rows import EvalRow, PartRow, TrainRow, ValuesRow

LEVELS = {"random": 100.0, "planner": 900.0}


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Every task but torcs has 100 as its 0 and 900 as its 1."""
    monkeypatch.setattr(baselines, "references", lambda task: None if task == "torcs" else tuple(LEVELS.values()))


def write_run(root, words: str, *returns: float, frames: int = 20_000):
    """A run that was evaluated at 0, 10,000, ...; it is whole if the last is at `frames`."""
    settings = presets.compose(["obs=pixels", *words.split(), f"frames={frames}"])
    folder = root / settings.task / settings.obs / settings.preset / f"seed{settings.seed}"
    folder.mkdir(parents=True)
    run_folder.write_config(settings, folder)
    metrics = Metrics(folder / "metrics.jsonl")
    versions = {"torch": "2.0", "wandb": "1"}
    metrics.write(PartRow(commit="0123456789abcdef", cpu="a CPU", threads=1, versions=versions))
    for i, value in enumerate(returns):
        counters = {"frame": 10_000 * i, "hours": 0.1 * i}
        metrics.write(TrainRow(**counters, return_=value, frames_per_second=200.0))
        metrics.write(EvalRow(**counters, return_=value, returns=[value]))
    metrics.write(ValuesRow(**counters, q=[1.0, 2.0], observed=[1.5, 2.5]))
    metrics.close()
    return folder


@pytest.fixture
def three_tasks(tmp_path):
    root = tmp_path / "runs"
    for seed, (pixels, state) in enumerate([(500.0, 900.0), (700.0, 800.0)]):
        write_run(root, f"task=cart seed={seed}", 100.0, 200.0, pixels)
        write_run(root, f"task=cart obs=state seed={seed}", 100.0, 300.0, state)
    write_run(root, "task=cart obs=state preset=fast_no_target", 100.0, 100.0, 180.0)
    write_run(root, "task=cheetah-run", 100.0, 740.0, 740.0)
    write_run(root, "task=cheetah-run obs=state", 100.0, 340.0)  # unfinished
    write_run(root, "task=torcs obs=state", -30.0, -20.0, -10.0)
    return root


def test_table1_has_average_and_best_beside_the_papers(three_tasks, tmp_path):
    """A mean over the wrong runs, an unfinished run that counts, another task's row, a difference of the wrong sign."""
    found = runs.collect([str(three_tasks)])
    section = page.table1_section(found, tmp_path / "out")
    table = {row["task"]: row for row in section["rows"]}
    texts = {task: [cell["text"] for cell in row["cells"]] for task, row in table.items()}
    assert texts["cart"] == ["0.94", "1.00", "0.62", "0.75", "0.10", "0.10"]
    assert texts["cheetah-run"] == ["at 10,000", "at 10,000", "0.80", "0.80", "missing", "missing"]
    assert texts["torcs"] == ["-10", "-10", "missing", "missing", "missing", "missing"]
    assert [cell["paper"] for cell in table["cart"]["cells"]] == ["0.94", "1.34", "1.10", "1.26", "0.34", "1.22"]
    assert table["cheetah-run"]["cells"][2]["paper"] == "0.46" and table["torcs"]["cells"][1]["paper"] == "1840"
    assert table["cheetah-run"]["cells"][2]["share"] == round(60 * (0.8 - 0.457))
    assert table["cart"]["cells"][3]["share"] == round(60 * (0.75 - 1.258)) and table["torcs"]["cells"][0]["share"] == 0
    assert table["cart"]["returns"] == ["900, 800", "500, 700", "180"]
    rows = list(csv.DictReader((tmp_path / "out" / "figures" / "table1.csv").open()))
    assert {row["seeds"] for row in rows if row["task"] == "cart"} == {"1", "2"}


def test_a_mean_over_seeds_is_drawn_where_episodes_end_early(three_tasks, tmp_path):
    """Seeds that are evaluated some frames later than others, and no mean at all but for frame 0."""
    curves = [(0, 1.0), (10_000, 2.0), (20_001, 4.0)], [(0, 3.0), (10_001, 4.0), (20_000, 6.0)]
    mean = panels._mean([*curves])
    assert [frame for frame, _ in mean] == [0, 10_001, 20_000]
    assert [value for _, value in mean] == pytest.approx([2.0, 3.0, 5.0], abs=1e-3)
    shorter = panels._mean([curves[0], curves[1][:2]])
    assert [frame for frame, _ in shorter] == [0, 10_001]
    later = panels._mean([curves[0], curves[1][1:]])  # its first evaluation was not finite
    assert [frame for frame, _ in later] == [10_001, 20_000]
    assert panels._mean([curves[0][:1], curves[1][1:]]) == []


def test_an_evaluation_without_a_finite_return_is_left_out_and_told(three_tasks, tmp_path):
    """A traceback, and no report of all the good runs beside it."""
    folder = write_run(three_tasks, "task=cart seed=5", 100.0, 300.0, float("nan"))
    found = page.make([str(three_tasks)], tmp_path / "out")
    assert next(run for run in found.runs if run.folder == folder).final is None
    assert "not finite: 1." in (tmp_path / "out" / "report.html").read_text()
    figures.learning_curves([runs.read(folder)], tmp_path / "figure.png")


def test_a_preset_that_a_reader_has_added_has_a_colour(three_tasks, tmp_path, monkeypatch):
    """A traceback at the end of a night."""
    monkeypatch.setitem(presets.PRESETS, "wide", "fast, wider")
    for obs in ("pixels", "state"):
        monkeypatch.setitem(presets.SETTINGS, ("wide", obs), presets.SETTINGS["fast", obs])
        write_run(three_tasks, f"task=cart preset=wide obs={obs}", 100.0, 300.0, 500.0)
    page.make([str(three_tasks)], tmp_path / "out")
    assert panels.COLOURS["wide", "pixels"] != panels.COLOURS["wide", "state"]


def test_the_answer_has_the_numbers_of_the_tasks_that_have_both(three_tasks):
    """A comparison over different tasks, state taken for pixels."""
    text = page.answer(runs.collect([str(three_tasks)]))
    assert "fast has an interquartile mean score of 0.62 [" in text and "of 0.94 [" in text and "; 1 task," in text
    assert "with probability 0.00" in text and "on 0 of 1 task " in text and "after 20,000 frames" in text


def test_what_weakens_the_numbers_is_said(three_tasks):
    """A small budget, runs that are missing, unfinished or of other settings, passed over in silence."""
    write_run(three_tasks, "task=cart seed=5 agent.tau=0.5", 100.0, 100.0, 100.0)
    wanted = [["cart", "pixels", "fast", 0], ["cart", "pixels", "fast", 9], ["pendulum", "state", "fast", 0]]
    (three_tasks / "suite.json").write_text(json.dumps({"make suite": wanted}))
    found = runs.collect([str(three_tasks)])
    said = " ".join(page.warnings(found))
    for words in (
        "20,000 frames a run; the paper's numbers are after 2,500,000", "Missing: 2 of 3 runs",
        "Unfinished runs: 1.",
        "Runs with settings other than their preset's today: 1 (agent.tau=0.5)",
        "Means over runs with different settings (agent.tau), which say little: cart, pixels, fast.",
        "fast is not the paper's algorithm",
        "different tasks (state, fast_no_target: 1; pixels, fast: 2; state, fast: 1)",
    ):  # fmt: skip
        assert words in said
    assert "One seed" not in said
    write_run(three_tasks, "task=cart obs=state seed=6 agent.tau=0.5", 100.0)  # unfinished
    assert "cart, state" not in " ".join(page.warnings(runs.collect([str(three_tasks)])))
    shutil.rmtree(three_tasks / "cart" / "pixels")
    assert "finished different tasks (" in " ".join(page.warnings(runs.collect([str(three_tasks)])))
    write_run(three_tasks, "task=cheetah-run seed=1", 100.0, 300.0)  # unfinished: no interval yet
    single = runs.collect([str(three_tasks / "cheetah-run")])
    assert "One seed per task and variant" in " ".join(page.warnings(single))
    assert found.commands == ["make suite"] and found.tasks[-1] == "cheetah-run" and "pendulum" in found.tasks


def test_an_unfinished_run_of_a_larger_budget_does_not_stretch_the_others(three_tasks):
    """Curves that are a sliver of their axis, and its budget told as that of all."""
    write_run(three_tasks, "task=cart seed=6", 100.0, 300.0, frames=400_000)
    found = runs.collect([str(three_tasks)])
    assert "Budgets differ: 20,000, 400,000 frames; the paper's" in " ".join(page.warnings(found))
    axis = Figure().subplots()
    panels.curves(axis, "cart", [run for run in found.runs if run.task == "cart"])
    assert 20 <= axis.get_xlim()[1] < 25  # thousands of frames


def test_other_action_repeats_are_said(tmp_path):
    """A score between policies that act more or less often, passed over in silence."""
    write_run(tmp_path, "task=cartpole preset=ddpg2016", 1.0, 2.0, 3.0)  # 3 frames; random and planner: 8
    said = " ".join(page.warnings(runs.collect([str(tmp_path)])))
    assert "another action repeat than the random and planner returns have: 1 (pixels, ddpg2016)" in said


def test_a_control_is_never_the_subject(three_tasks):
    """A column "from state" that shows the control, once fewer runs of the preset have started."""
    write_run(three_tasks, "task=torcs obs=state preset=fast_no_target", 1.0, 2.0, 3.0)
    shutil.rmtree(three_tasks / "cart" / "pixels")
    shutil.rmtree(three_tasks / "cart" / "state" / "fast")
    shutil.rmtree(three_tasks / "cheetah-run" / "pixels")
    found = runs.collect([str(three_tasks)])
    assert found.main == "fast" and found.control == ("fast_no_target", "state")
    write_run(three_tasks, "task=hopper preset=ddpg2016", 1.0)
    wanted = [["cart", "state", "fast_no_target", 0], ["torcs", "state", "fast_no_target", 0]]
    (three_tasks / "suite.json").write_text(json.dumps({"make suite": wanted}))  # those that are there count once
    found = runs.collect([str(three_tasks)])
    assert found.main == "fast"
    control = runs.collect([str(three_tasks / "cart")])
    assert control.main == "fast_no_target" and control.control is None


def test_the_preset_that_is_compared_can_be_chosen(three_tasks, tmp_path):
    """compare= that is read and forgotten: a table of the preset with most runs; or one without a single run."""
    write_run(three_tasks, "task=cart preset=drqv2", 100.0, 300.0, 340.0)
    report.main([f"runs={three_tasks}", f"out={tmp_path}/out", "compare=drqv2"])
    rows = list(csv.DictReader((tmp_path / "out" / "figures" / "table1.csv").open()))
    assert {(row["task"], float(row["ours"])) for row in rows if row["ours"]} == {("cart", 0.3)}
    with pytest.raises(UserError, match="no run of preset ddpg2016; there are drqv2, fast"):
        runs.collect([str(three_tasks)], "ddpg2016")


@pytest.mark.parametrize("embed", [False, True])
def test_films_lie_beside_the_page_or_in_it(embed, three_tasks, tmp_path):
    """A page that is sent alone and shows no film; the film of another task, or under another return."""
    for task, grey in (("cart", 60), ("cheetah-run", 190)):
        with Video(three_tasks / task / "pixels" / "fast" / "seed0" / "videos" / "20000.mp4", 25) as film:
            for _ in range(5):
                film.add(np.full((3, 64, 64), grey, np.uint8))
    report.main([f"runs={three_tasks}", f"out={tmp_path}/out", f"embed={str(embed).lower()}"])
    text = (tmp_path / "out" / "report.html").read_text()
    sources = re.findall(r'<video[^>]*src="([^"]+)"', text)
    told = re.findall(r"(cart|cheetah-run), pixels, seed 0: return (\d+)", text)
    assert told == [("cart", "500"), ("cheetah-run", "740")] and len(sources) == 2
    assert (tmp_path / "out" / "videos").exists() != embed
    for source, grey in zip(sources, (60, 190)):
        data = base64.b64decode(source.split(",")[1]) if embed else (tmp_path / "out" / source).read_bytes()
        with av.open(io.BytesIO(data)) as container:
            assert next(container.decode(video=0)).to_ndarray(format="rgb24").mean() == pytest.approx(grey, abs=3)


def test_a_run_that_continued_shows_its_last_evaluation(tmp_path):
    """The film, or the estimated Q, of its first end under its last return; the commits of its last part alone."""
    folder = write_run(tmp_path, "task=cart", 100.0, 200.0, 3.0)
    metrics = Metrics(folder / "metrics.jsonl", (folder / "metrics.jsonl").stat().st_size)
    metrics.write(PartRow(frame=20_000, hours=0.2, commit="fedcba9876543210"))
    (folder / "videos").mkdir()
    (folder / "videos" / "20000.mp4").write_bytes(b"a film")
    run = runs.read(folder)
    assert run.video.name == "20000.mp4" and run.values.observed == [1.5, 2.5]
    assert run.commits == ["012345678", "fedcba987"]
    metrics.write(TrainRow(frame=30_000, hours=0.3, frames_per_second=50.0))
    metrics.write(EvalRow(frame=30_000, hours=0.3, return_=777.0, returns=[777.0]))
    metrics.close()
    run = runs.read(folder)
    assert run.video is None and run.values is None
    assert run.frames_per_second == pytest.approx(20_000 / (10_000 / 200 + 10_000 / 50))  # not a mean of speeds


def test_a_runs_command_can_be_typed(tmp_path):
    """A list that a shell takes apart."""
    run = runs.read(write_run(tmp_path, "task=cart agent.hidden=[12,14]", 1.0))
    words = shlex.split(run.command)
    assert words[:3] == ["python", "-m", "pixel_ddpg.run"] and "agent.hidden=[12,14]" in words
    assert config.differences(run.settings, presets.compose(words[3:])) == []


def test_the_command_of_another_action_repeat_gives_the_same_settings(tmp_path):
    """The preset's discount for its own repeat left out, which the command's repeat then changes."""
    words = "task=cartpole-swingup obs=state env.action_repeat=8 agent.discount=0.99 noise.random_frames=2000"
    run = runs.read(write_run(tmp_path, words, 1.0))
    assert config.differences(run.settings, presets.compose(shlex.split(run.command)[3:])) == []


def test_equal_references_give_no_score(monkeypatch):
    """A division by zero that ends the whole report: acrobot-swingup_sparse, where a planner may find nothing."""
    monkeypatch.setattr(baselines, "references", lambda task: (0.0, 0.0))
    assert baselines.score("acrobot-swingup_sparse", 0.0) is None


def test_a_task_of_the_paper_by_its_other_name_is_in_figure_2(tmp_path):
    """An empty Figure 2 beside a Table 1 that has the paper's number."""
    write_run(tmp_path, "task=cartpole-swingup", 1.0, 2.0, 3.0)
    assert page.learning_curves(runs.collect([str(tmp_path)]), tmp_path / "out")["figure2"]["panels"]


def test_where_the_paper_is_better_is_said(three_tasks):
    """A worse result passed over in silence, a better one called worse, raw returns taken for scores."""
    found = runs.collect([str(three_tasks)])
    worse = "from pixels, cart; without target networks, cart"  # 0.62 and 0.10; the paper's are 1.10 and 0.34
    assert page.below_paper(found) == worse
    assert f"below the paper's average: {worse}." in " ".join(page.warnings(found))


def test_curves_are_the_runs_own(three_tasks, tmp_path):
    """Points that were smoothed, cut, scaled twice or given to another run."""
    found = runs.collect([str(three_tasks)])
    page.learning_curves(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "figures" / "figure2.csv").open()))
    assert {row["task"] for row in rows} == {"cart", "cheetah-run"}  # which is the paper's cheetah
    rows = [row for row in rows if row["task"] == "cart"]
    drawn = [
        (row["obs"], row["seed"], int(row["frame"]), float(row["score"])) for row in rows if row["preset"] == "fast"
    ]
    assert ("pixels", "1", 20_000, 0.75) in drawn and ("state", "0", 10_000, 0.25) in drawn and len(drawn) == 18
    means = [(row["obs"], float(row["score"])) for row in rows if row["seed"] == "mean"]
    assert means[:3] == [("pixels", 0.0), ("pixels", 0.125), ("pixels", 0.625)] and len(means) == 6
    rows = list(csv.DictReader((tmp_path / "figures" / "curves.csv").open()))
    assert [float(row["score"]) for row in rows if row["task"] == "torcs"] == [-30.0, -20.0, -10.0]


def test_a_thick_line_is_the_mean_of_all_seeds():
    """A mean over fewer seeds once some have ended."""
    curves = [[(0, 1.0), (10, 3.0), (20, 5.0)], [(0, 2.0), (10, 5.0)]]
    assert panels._mean(curves) == [(0, 1.5), (10, 4.0)]


def test_a_run_that_has_begun_takes_no_mean_away(three_tasks):
    """A mean over all runs, which ends where the shortest does."""
    write_run(three_tasks, "task=cart seed=2", 100.0)
    found = runs.collect([str(three_tasks)]).runs
    rows = panels.curves(Figure().gca(), "cart", [run for run in found if run.task == "cart"])
    means = [row["frame"] for row in rows if row["seed"] == "mean" and row["obs"] == "pixels"]
    assert means == [0, 10_000, 20_000]


def test_the_iqm_curve_ends_with_the_shortest_run(three_tasks, tmp_path):
    """A curve that continues with the runs that are left; its last value is the IQM of the finals."""
    write_run(three_tasks, "task=hopper", 100.0, 500.0, frames=10_000)
    found = runs.collect([str(three_tasks)])
    together = page.aggregates(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "figures" / "profile.csv").open()))
    for over, last in (("frame", 10_000), ("hours", 0.1)):
        pixels = [row for row in rows if row["obs"] == "pixels" and row.get(over)]
        assert float(pixels[-1][over]) == pytest.approx(last)
        assert float(pixels[-1]["iqm"]) == pytest.approx(np.mean([0.125, 0.5]))  # of 0.125, 0.125, 0.5 and 0.8
        assert pixels[-1]["low"] == pixels[-1]["iqm"] == pixels[-1]["high"]  # the seeds of cart are the same so far
    control = [row for row in rows if row["preset"] == "fast_no_target"]
    assert control and not any(row["low"] or row["high"] for row in control)  # one seed: no interval
    assert {(row["preset"], row["obs"]): row["failed"] for row in together["rows"]} == {
        ("fast", "pixels"): 0, ("fast", "state"): 0, ("fast_no_target", "state"): 0,
    }  # fmt: skip


def test_the_iqm_curve_has_no_point_where_a_run_has_none(tmp_path):
    """The end of one run beside the beginning of another, as if both had been evaluated at one frame."""
    write_run(tmp_path / "runs", "task=cart", 100.0, 500.0, frames=10_000)
    write_run(tmp_path / "runs", "task=cart seed=1", float("nan"), float("nan"), 700.0)
    page.make([str(tmp_path / "runs")], tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "figures" / "profile.csv").open()))
    assert rows and not any(row.get("iqm") for row in rows)


def test_the_page_asks_for_nothing_else(three_tasks, tmp_path):
    """A script, a font or a picture from elsewhere; a figure without its files; text that is taken for HTML."""
    (three_tasks / "suite.json").write_text(json.dumps({"run a<b&c": []}))
    page.make([str(three_tasks)], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    addresses = re.findall(r'(?:src|href|url)=?["\'(]+([^"\')]+)', text)
    assert len(addresses) > 20 and not [each for each in addresses if each.startswith(("http", "//"))]
    for each in addresses:
        if not each.startswith(("#", "data:")):
            assert (tmp_path / "out" / each).exists(), each
    assert "<script" not in text and "run a&lt;b&amp;c" in text and text.count("<svg") >= 8
    for name in ("figure2", "curves", "figure3", "state_pixels", "profile", "published"):
        for kind in ("png", "svg", "csv"):
            assert (tmp_path / "out" / "figures" / f"{name}.{kind}").stat().st_size > 30, (name, kind)


def test_a_figure_or_a_film_of_other_runs_does_not_stay(three_tasks, tmp_path):
    """Yesterday's figure beside today's report, and in W&B's; films that no page names."""
    (tmp_path / "out" / "videos").mkdir(parents=True)
    of_others = [tmp_path / "out" / "videos" / name for name in ("cart-state-fast-seed9.mp4", "evaluation-9.mp4")]
    for film in of_others:
        film.touch()
    for folder in (three_tasks, three_tasks / "torcs"):
        page.make([str(folder)], tmp_path / "out")
    assert [film.exists() for film in of_others] == [False, True]
    there = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert "curves.png" in there and not {"figure2.png", "state_pixels.svg", "profile.csv"} & there


def test_figure3_has_the_pairs_that_runs_recorded(three_tasks, tmp_path):
    """Axes that are swapped."""
    page.figure3(runs.collect([str(three_tasks)]), tmp_path)
    rows = list(csv.DictReader((tmp_path / "figures" / "figure3.csv").open()))
    assert {(row["observed"], row["q"]) for row in rows} == {("1.5", "1.0"), ("2.5", "2.0")}


def test_the_health_of_a_learner_is_drawn_where_it_is_recorded(three_tasks, tmp_path):
    """Another metric's numbers, rows that older versions wrote without them, rows from before the first update."""
    assert page.health(runs.collect([str(three_tasks)]), tmp_path / "older")["panels"] == []
    folder = next(three_tasks.glob("cart/state/fast/seed0"))
    metrics = Metrics(folder / "metrics.jsonl", 10**9)
    for frame, error in ((1000, None), (2000, 3.0), (3000, 2.0)):
        told = {"td_error": error, "pre_tanh": error and error / 10, "saturated": error and error / 100}
        metrics.write(TrainRow(frame=frame, return_=1.0, frames_per_second=9.0, **told))
    metrics.close()
    section = page.health(runs.collect([str(three_tasks)]), tmp_path)
    assert len(section["panels"]) == len(panels.HEALTH) == 3
    rows = list(csv.DictReader((tmp_path / "figures" / "health.csv").open()))
    for key, factor in {"td_error": 1, "pre_tanh": 0.1, "saturated": 0.01}.items():
        found = [(int(row["frame"]), float(row[key])) for row in rows if row[key]]
        assert found == [(2000, pytest.approx(3 * factor)), (3000, pytest.approx(2 * factor))]


def test_only_the_last_evaluation_is_shown(three_tasks, tmp_path):
    """Figure 3 of a run that went on, with what its critic said before; the film of another command."""
    folder = three_tasks / "cart" / "pixels" / "fast" / "seed0"
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "values", "frame": 20_000, "hours": 1, "q": [7.0], "observed": [8.0]}) + "\n")
    (folder / "videos").mkdir()
    for name in ("9000.mp4", "20000.mp4", "evaluation-30000.mp4"):
        (folder / "videos" / name).touch()
    found = runs.collect([str(three_tasks)])
    (run, _) = found.of("cart", found.pixels)
    assert run.video.name == "20000.mp4"
    figure, axis = panels.plt.subplots()
    rows = panels.q_against_return(axis, "cart", [run])
    panels.plt.close(figure)
    assert [(row["observed"], row["q"]) for row in rows] == [(8.0, 7.0)]


def test_published_results_are_those_of_the_same_task(tmp_path):
    """The paper's cheetah beside another task's curve; marks beyond the budget."""
    folder = write_run(tmp_path, "task=cheetah", *([1.0] * 11), frames=100_000)
    figure, axis = panels.plt.subplots()
    rows = panels.beside_published(axis, "cheetah", [runs.read(folder)])
    panels.plt.close(figure)
    marks = {row["preset"]: row["return"] for row in rows if row["seed"] in ("mean", 0)}
    assert marks == {"DDPG, published": 154.7, "D4PG, published": 89.3, "SAC, published": 94.6, "fast": 1.0}
    assert {row["frame"] for row in rows if row["seed"] == "mean"} == {100_000}
    seeds = panels.published_curve("cheetah-run", 100_000)
    grey = [row for row in rows if row["preset"] == "DrQ-v2, published"]
    assert {row["seed"] for row in grey} == set(seeds) and len(grey) == sum(map(len, seeds.values())) > 10
    assert panels.published_curve("cheetah", 100_000) == seeds
    assert not panels.has_published("cart", 10**6) and panels.has_published("cheetah", 10**6)


def test_two_folders_of_the_same_run_are_refused(three_tasks, tmp_path):
    """A seed that counts twice."""
    write_run(tmp_path / "more", "task=cart seed=1", 1.0, 1.0, 1.0)
    with pytest.raises(UserError, match=r"are the same task, variant and seed \(one may be a copy\)"):
        runs.collect([str(three_tasks), str(tmp_path / "more")])
    write_run(tmp_path / "sweep", "task=cart seed=1 agent.tau=0.5", 1.0, 1.0, 1.0)
    with pytest.raises(UserError, match=r"they differ in agent.tau=0.01"):
        runs.collect([str(three_tasks), str(tmp_path / "sweep")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("suite.json", b"{"),
        ("suite.json", b"[]"),
        ("suite.json", b'{"command": "x", "runs": []}'),
        ("cart/pixels/fast/seed0/videos/20000.mp4", b"no film"),
    ],
)
def test_a_damaged_file_is_told_by_name(name, content, three_tasks, tmp_path):
    """A traceback of a JSON or film reader."""
    (three_tasks / name).parent.mkdir(exist_ok=True)
    (three_tasks / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: delete it"):
        page.make([str(three_tasks)], tmp_path / "out")


def test_a_run_that_may_have_been_killed_is_not_called_running(tmp_path):
    """A run that was killed last week, and is running for ever."""
    folder = write_run(tmp_path, "task=cheetah", 1.0, frames=100_000)
    run_folder.write_status(folder, "running", frame=0)
    (row,) = page.runs_table(runs.collect([str(tmp_path)]))
    assert row["frame"].endswith("of 100,000, running or killed")


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_told(three_tasks, tmp_path):
    """A comparison from which seeds are missing, without a word."""
    secret = three_tasks / "cart" / "pixels"
    secret.chmod(0)
    line = [sys.executable, "-m", "experiments.report", f"runs=[{three_tasks}]", f"out={tmp_path}/report"]
    if os.geteuid() == 0:
        powers = "-dac_override,-dac_read_search"
        line = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", *line]
    done = subprocess.run(line, capture_output=True, text=True)
    secret.chmod(0o755)
    assert done.returncode == 1 and f"{secret}: Permission denied" in done.stderr and done.stderr.count("\n") == 1


def test_rows_without_a_configuration_are_told(three_tasks, capsys):
    """A run that has lost its config.yaml and is missing in the figures."""
    (three_tasks / "torcs" / "state" / "fast" / "seed0" / "config.yaml").unlink()
    found = runs.find([str(three_tasks)])
    assert len(found) == 7 and "no config.yaml: it is left out" in capsys.readouterr().err


def test_runs_behind_links_are_found_once(three_tasks, tmp_path):
    """A report of fewer runs, without a word; the same run twice; a loop without end."""
    whole = runs.find([str(three_tasks)])
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(three_tasks)
    (tmp_path / "links" / "b").symlink_to(three_tasks)
    (three_tasks / "loop").symlink_to(three_tasks)
    assert len(runs.find([str(tmp_path / "links")])) == len(whole) == len(runs.find([str(three_tasks)]))


@pytest.mark.parametrize("word", ["task: nothing", "preset: nothing", "obs: sounds"])
def test_a_run_of_something_unknown_is_told_by_name(word, three_tasks, tmp_path, capsys):
    """A traceback, or a task that no table has."""
    path = next(three_tasks.rglob("config.yaml"))
    key = word.split(":")[0]
    path.write_text("\n".join(word if line.startswith(f"{key}:") else line for line in path.read_text().split("\n")))
    found = page.make([str(three_tasks)], tmp_path / "out")
    assert len(found.runs) == 7 and found.left_out == [str(path.parent)]
    said = capsys.readouterr().err
    assert "config.yaml is damaged or of another version: it says" in said and word.split()[1] in said


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], lines[1][:20] + b"\n", *lines[2:]],
        lambda lines: [*lines, b'{"kind": "of a later version", "frame": 1}\n'],
        lambda lines: [line.replace(b'"return"', b'"Return"') for line in lines],
        lambda lines: [],
    ],
    ids=["a line cut short", "an unknown kind", "evaluations without a return", "no rows"],
)
def test_a_damaged_run_does_not_stop_a_report_of_others(damage, three_tasks, tmp_path, capsys):
    """A report that one bad line prevents, or that counts a return that is not there as 0."""
    path = three_tasks / "cart" / "pixels" / "fast" / "seed1" / "metrics.jsonl"
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    found = page.make([str(three_tasks)], tmp_path / "out")
    assert len(found.runs) == 7 and [run.settings.seed for run in found.of("cart", found.pixels)] == [0]
    assert f"{path.parent} is left out: {path}" in capsys.readouterr().err
    assert f"and are left out: {path.parent}." in (tmp_path / "out" / "report.html").read_text()
    code, _, err = call("experiments.figures", f"runs={path.parent}", f"out={tmp_path}/a.png")
    assert code == 2 and "no runs in" in err
    code, _, _ = call("experiments.figures", f"runs={three_tasks}", f"out={tmp_path}/a.png")
    assert code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which runs? runs=runs/quick"),
        (["runs=[nowhere]"], "nowhere is not a folder"),
        (["runs=[{}]"], "no runs in"),
        (["--dryrun"], "unknown option --dryrun; see --help"),
    ],
)
def test_mistakes_are_told_in_one_line(words, said, tmp_path):
    code, out, err = call("experiments.report", *(word.format(tmp_path) for word in words), f"out={tmp_path}/out")
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and said in err
    assert not (tmp_path / "out").exists()


def test_two_reports_do_not_meet_in_one_folder(three_tasks, tmp_path):
    """A page of one with the figures of the other."""
    with files.locked(tmp_path / "out", "out"):
        code, _, err = call("experiments.report", f"runs={three_tasks}", f"out={tmp_path}/out")
    assert code == 1 and err.count("\n") == 1 and "another process writes to" in err and "another out=" in err


def test_every_variant_has_a_colour_of_its_own_beside_its_control():
    """Two lines that cannot be told apart."""
    assert set(panels.COLOURS) == set(presets.SETTINGS)
    for preset, control in CONTROLS.items():
        chosen = [(preset, "state"), (preset, "pixels"), (control, "state"), ("ddpg2016_no_bn", "state")]
        assert len({panels.COLOURS[variant] for variant in chosen}) == 4


def test_wandb_wants_a_place(capsys):
    """A report that is sent nowhere, without a word."""
    with pytest.raises(SystemExit) as end:
        report.main(["runs=[.]", "--wandb"])
    assert end.value.code == 2 and "--wandb needs a value" in capsys.readouterr().err
