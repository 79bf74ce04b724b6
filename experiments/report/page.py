"""The report's page: what each of its sections shows of some runs, and the template that is filled with it."""

import base64
import functools
import io
import pathlib
import shutil
from collections.abc import Sequence

import av
import jinja2
import numpy as np
from markupsafe import Markup

from experiments.profiles import FIGURE2
from experiments.report import panels, runs, statistics
from experiments.report.panels import Draw
from experiments.report.runs import Found, Run
from pixel_ddpg import files, presets
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError
from pixel_ddpg.planning import baselines
from pixel_ddpg.training import run_folder

FAILED = 0.1  # a seed whose final score is below
NEAR = 0.05  # of a score: as good as
PAPER_FRAMES = 2_500_000
FIGURE3 = ["pendulum", "cartpole", "cheetah"]
COLUMNS = {"state": "lowd", "pixels": "pix", "control": "cntrl"}  # of Table 1: here, and in paper_table1.csv


# --- parts of sections ---


def data_address(data: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def figure(
    name: str, drawn: Sequence[Draw], size: tuple[float, float], of: list[Run], out: pathlib.Path, columns: int = 5
) -> dict:
    """Panels for the page, also written as files, with what they were made of."""
    for kind in () if drawn else ("png", "svg", "csv"):  # of other runs, whose report was here
        (out / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
    single = panels.draw(drawn, out / "figures", name, size, columns) if drawn else []
    return {"panels": [Markup(svg) for svg in single], "made": made(of)} | (numbers(name, out) if drawn else {})


def numbers(name: str, out: pathlib.Path) -> dict:
    """A figure's or table's CSV."""
    return {"name": name, "csv": data_address((out / "figures" / f"{name}.csv").read_bytes(), "text/csv")}


def made(of: list[Run]) -> str:
    """Budget, seeds, commit, machine and versions of some runs."""
    if not of:
        return ""
    parts = [part for run in of for part in run.parts]
    frames = sorted({run.settings.frames for run in of})
    variants = sorted({panels.label(run.variant) for run in of})
    seeds = sorted({run.settings.seed for run in of})
    machines = {f"{part.gpu or part.cpu}, {part.threads} CPU thread(s) a run" for part in parts}
    names = ("torch", "mujoco", "dm-control")
    versions = {f"{name} {part.versions[name]}" for part in parts for name in names if name in part.versions}
    unfinished = sum(not run.is_whole for run in of)
    return (
        f"{len(of)} runs ({'; '.join(variants)}) of {frames[0]:,}"
        + (f" to {frames[-1]:,}" if len(frames) > 1 else "")
        + f" frames, seeds {', '.join(map(str, seeds))}"
        + (f", {unfinished} unfinished" if unfinished else "")
        + f". Commit {', '.join(sorted({commit for run in of for commit in run.commits}))}. "
        + f"{'; '.join(sorted(machines))}. {', '.join(sorted(versions))}."
    )


def spread(statistic, *scores: statistics.Scores) -> str:
    """A number with its 95% interval; none where each task has one seed."""
    value = f"{statistic(*scores):z.2f}"
    if not statistics.varies(*scores):
        return value
    low, high = statistics.interval(statistic, *scores)
    return f"{value} [{low:z.2f}, {high:z.2f}]"


# --- sections: what the template shows ---


def answer(found: Found) -> str:
    """State against pixels in a sentence with its numbers."""
    state, pixels = found.scores(found.state), found.scores(found.pixels)
    common = sorted(state.keys() & pixels.keys())
    if not common:
        return "No task has a finished run from state and one from pixels yet."
    state, pixels = ({task: each[task] for task in common} for each in (state, pixels))
    near = sum(np.mean(pixels[task]) >= np.mean(state[task]) - NEAR for task in common)
    members = [run for task in common for variant in (found.state, found.pixels) for run in found.of(task, variant)]
    frames = sorted({run.settings.frames for run in members if run.is_whole})
    count = f"{len(common)} task{'s' * (len(common) > 1)}"
    return (
        f"{found.main} has an interquartile mean score of {spread(statistics.iqm, pixels)} from pixels and of "
        f"{spread(statistics.iqm, state)} from state (0: random actions, 1: the planner; {count}, after "
        f"{' to '.join(f'{each:,}' for each in frames)} frames). A run from pixels beats one from state of the same "
        f"task with probability {spread(statistics.probability_of_improvement, pixels, state)}; on {near} of "
        f"{count} the mean score from pixels is at most {NEAR} below that from state."
    )


def warnings(found: Found) -> list[str]:
    """What a reader must know before any number."""
    said = []
    frames = sorted({run.settings.frames for run in found.runs})
    if len(frames) > 1 or frames[-1] < PAPER_FRAMES:
        listed = ", ".join(f"{each:,}" for each in frames)
        budget = f"Budgets differ: {listed} frames" if len(frames) > 1 else f"The budget is {listed} frames a run"
        said.append(f"{budget}; the paper's numbers are after {PAPER_FRAMES:,} steps.")
    seeds = [sum(run.is_whole for run in found.of(task, each)) for task in found.tasks for each in found.variants]
    if max(seeds) == 1:
        said.append("One seed per task and variant, so no confidence intervals.")
    other = [run for run in found.runs if run.settings.env.action_repeat != presets.action_repeat(run.task)]
    if other:
        names = ", ".join(dict.fromkeys(panels.label(run.variant) for run in other))
        said.append(
            f"Runs with another action repeat than the random and planner returns have: {len(other)} ({names})."
        )
    if found.main != "ddpg2016":
        said.append(f"{found.main} is not the paper's algorithm; ddpg2016 is.")
    if found.left_out:
        said.append(f"Runs that cannot be read, and are left out: {', '.join(found.left_out)}.")
    if count := len(found.missing()):
        said.append(f"Missing: {count} of {len(found.wanted)} runs.")
    if count := sum(not run.is_whole for run in found.runs):
        said.append(f"Unfinished runs: {count}. Their curves are shown, but they do not count in means and tables.")
    if count := sum(row.return_ is None for run in found.runs for row in run.evals):
        said.append(f"Evaluations whose return is not finite: {count}. They are left out.")
    done = {panels.label(variant): frozenset(found.scores(variant)) for variant in found.variants}
    if len(set(done.values())) > 1:
        counts = "; ".join(f"{name}: {len(names)}" for name, names in done.items())
        said.append(f"Variants have finished different tasks ({counts}): their means cannot be compared.")
    if below := below_paper(found):
        said.append(f"Tasks with a score more than {NEAR} below the paper's average: {below}.")
    if mixed := list(runs.mixed(run for run in found.runs if run.is_whole)):
        names = "; ".join(dict.fromkeys(f"{run.task}, {panels.label(run.variant)}" for run, _, _ in mixed))
        words = " ".join(sorted({word.partition("=")[0] for *_, words in mixed for word in words}))
        said.append(f"Means over runs with different settings ({words}), which say little: {names}.")
    if changed := runs.changes_since(found.runs):
        said.append(changed)
    return said


@functools.cache
def paper_rows() -> dict[str, dict[str, str]]:
    """Table 1 as printed, by the name that results have here."""
    return {tasks.find(row["environment"]).same_as: row for row in panels.reference("paper_table1.csv")}


def table1(found: Found) -> list[dict]:
    """Average and best over seeds beside the paper's, and every seed's return; a dict a task."""
    variants = {"state": found.state, "pixels": found.pixels, "control": found.control}
    rows = []
    for task in found.tasks:
        paper = paper_rows().get(tasks.find(task).same_as, {})
        row: dict = {"task": task, "cells": [], "returns": [], "ends": baselines.references(task), "numbers": []}
        for name, column in COLUMNS.items():
            members = found.of(task, variants[name])
            finals = [run.final for run in members if run.final is not None]
            for word, pick in (("avg", np.mean), ("best", np.max)):
                ours = panels.score_of(task, float(pick(finals))) if finals else None
                printed = float(paper[f"{column}_{word}"]) if paper else None
                row["cells"].append(cell(ours, printed, row["ends"] is not None, members))
                row["numbers"].append({"task": task, "column": f"{name} {word}", "ours": ours, "paper": printed,
                                       "seeds": len(finals)})  # fmt: skip
            row["returns"].append(", ".join(f"{value:z.0f}" for value in finals) or "missing")
        rows.append(row)
    return rows


def below_paper(found: Found) -> str:
    """The tasks of each of Table 1's columns where ours is the worse average."""
    worse: dict[str, list[str]] = {}
    for row in table1(found):
        for number in row["numbers"][::2] if row["ends"] else ():
            if None not in (number["ours"], number["paper"]) and number["ours"] < number["paper"] - NEAR:
                worse.setdefault(number["column"].removesuffix(" avg"), []).append(row["task"])
    said = {name: ", ".join(names) if len(names) <= 6 else f"{len(names)} tasks" for name, names in worse.items()}
    columns = {"state": "from state", "pixels": "from pixels", "control": "without target networks"}
    return "; ".join(f"{columns[name]}, {text}" for name, text in said.items())


def summary(found: Found) -> str:
    """Markdown: the answer, the warnings, and the averages of Table 1 with the paper's."""
    lines = ["| task | pixels | state | state, no target network | paper: pixels | paper: state | seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in table1(found):
        state, _, pixels, _, control, _ = (cell["text"] for cell in row["cells"])
        seeds = ", ".join(str(row["numbers"][column]["seeds"]) for column in (2, 0, 4))
        paper = [row["cells"][column]["paper"] for column in (2, 0)]
        lines.append(f"| {' | '.join([row['task'], pixels, state, control, *paper, seeds])} |")
    return "\n".join([answer(found), "", *(f"- {said}" for said in warnings(found)), "", *lines])


def table1_section(found: Found, out: pathlib.Path) -> dict:
    """The same with its CSV."""
    rows = table1(found)
    panels.write_csv([number for row in rows for number in row["numbers"]], out / "figures" / "table1.csv")
    of = [run for run in found.runs if run.variant in (found.state, found.pixels, found.control)]
    return {"rows": rows, "made": made(of), **numbers("table1", out)}


def cell(ours: float | None, paper: float | None, scored: bool, members: list[Run]) -> dict:
    """One number of Table 1 beside the paper's; `share`: how much of a colour, red below 0."""
    digits = 2 if scored else 0
    beside = "" if paper is None else f"{paper:.{digits}f}"
    if ours is None:
        standing = f"at {max(run.frame for run in members):,}" if members else "missing"
        return {"text": standing, "paper": beside, "missing": True}
    share = round(60 * max(-1.0, min(1.0, ours - paper))) if scored and paper is not None else 0
    return {"text": f"{ours:z.{digits}f}", "paper": beside, "share": share}


def learning_curves(found: Found, out: pathlib.Path) -> dict[str, dict]:
    """The paper's ten panels, and all other tasks."""
    sections, papers = {}, found.like(FIGURE2)
    for name, names in (("figure2", papers), ("curves", [task for task in found.tasks if task not in papers])):
        of = {task: found.ordered(task) for task in names if found.ordered(task)}
        drawn = [functools.partial(panels.curves, task=task, runs=members) for task, members in of.items()]
        sections[name] = figure(name, drawn, (2.7, 2.1), [run for members in of.values() for run in members], out)
    return sections


def figure3(found: Found, out: pathlib.Path) -> dict:
    """Estimated Q against observed returns."""
    recorded = [run for run in found.runs if run.values and run.variant in (found.state, found.pixels)]
    names = {run.task for run in recorded}
    chosen = [task for task in found.like(FIGURE3) if task in names] or sorted(names)[:3]
    groups = [
        (task, [run for run in found.of(task, variant) if run in recorded])
        for variant in (found.state, found.pixels)
        for task in chosen
    ]
    groups = [(task, members) for task, members in groups if members]
    drawn = [functools.partial(panels.q_against_return, task=task, runs=members) for task, members in groups]
    return figure("figure3", drawn, (2.9, 2.7), [run for _, members in groups for run in members], out)


def health(found: Found, out: pathlib.Path) -> dict:
    """What shows a sick learner, where runs have recorded it: three panels a task."""
    recorded = [run for run in found.runs if any(row.td_error is not None for row in run.trains)]
    of = {task: [run for run in found.ordered(task) if run in recorded] for task in found.tasks}
    drawn = [
        functools.partial(panels.health, task=task, key=key, runs=members)
        for task, members in of.items()
        if members
        for key in panels.HEALTH
    ]
    return figure("health", drawn, (2.9, 2.1), recorded, out, columns=len(panels.HEALTH))


def state_against_pixels(found: Found, out: pathlib.Path) -> dict:
    """One dot a task."""
    state, pixels = found.scores(found.state), found.scores(found.pixels)
    common = state.keys() & pixels.keys()
    of = [run for run in found.runs if run.variant in (found.state, found.pixels) and run.task in common]
    drawn = [functools.partial(panels.state_against_pixels, state=state, pixels=pixels)] if common else []
    return figure("state_pixels", drawn, (5.4, 5.2), of, out)


def aggregates(found: Found, out: pathlib.Path) -> dict:
    """IQM, failed seeds and speed of each variant; performance profile; IQM over frames and hours."""
    scores = {variant: each for variant in found.variants if (each := found.scores(variant))}
    of = {
        variant: [run for run in found.runs if run.variant == variant and run.score is not None] for variant in scores
    }
    rows = []
    for variant, each in scores.items():
        failed = sum(score < FAILED for seeds in each.values() for score in seeds)
        speeds = [run.frames_per_second for run in of[variant] if run.frames_per_second]
        rows.append({
            "preset": variant[0], "obs": variant[1], "tasks": len(each), "runs": len(of[variant]),
            "iqm": spread(statistics.iqm, each), "failed": failed,
            "frames_per_second": round(float(np.mean(speeds)), 1) if speeds else "",
            "hours": round(float(np.mean([run.hours for run in of[variant]])), 3),
        })  # fmt: skip
    panels.write_csv(rows, out / "figures" / "aggregates.csv")
    drawn = [
        functools.partial(panels.profile, scores=scores),
        functools.partial(panels.iqm_curve, variants=of, over="frame"),
        functools.partial(panels.iqm_curve, variants=of, over="hours"),
    ]
    members = [run for each in of.values() for run in each]
    shown = figure("profile", drawn if scores else [], (4.2, 3.2), members, out)
    return {"rows": rows, "table": numbers("aggregates", out), "figure": shown}


def published(found: Found, out: pathlib.Path) -> dict:
    """Returns beside published ones, where the task is the same."""
    members = {task: found.ordered(task) for task in found.tasks}
    of = {t: each for t, each in members.items() if each and panels.has_published(t, max(run.frame for run in each))}
    drawn = [functools.partial(panels.beside_published, task=task, runs=each) for task, each in of.items()]
    return figure("published", drawn, (2.9, 2.3), [run for each in of.values() for run in each], out)


def videos(found: Found, out: pathlib.Path, embed: bool) -> list[dict]:
    """The last film of each task from pixels and from state; deletes those of an earlier report."""
    shown = []
    for old in (out / "videos").glob("*-seed*.mp4"):
        old.unlink()
    for task in found.tasks:
        for variant in (found.pixels, found.state):
            run = next((run for run in found.of(task, variant) if run.video), None)
            if run is None or (film := run.video) is None:
                continue
            name = f"{task}-{variant[1]}-{variant[0]}-seed{run.settings.seed}.mp4"
            if not embed:
                (out / "videos").mkdir(exist_ok=True)
                shutil.copyfile(film, out / "videos" / name)
            source = data_address(film.read_bytes(), "video/mp4") if embed else f"videos/{name}"
            value = next(iter(run.evals[-1].returns), None)  # of the film's episode
            caption = f"{task}, {variant[1]}, seed {run.settings.seed}"
            caption += "" if value is None else f": return {value:z.0f}"
            shown.append({"source": source, "poster": poster(film), "caption": caption})
    return shown


def poster(path: pathlib.Path) -> str:
    """A picture from the first third of a film, as a data address."""
    try:
        with av.open(str(path)) as container:
            wanted = container.streams.video[0].frames // 3
            picture = next(frame for number, frame in enumerate(container.decode(video=0)) if number >= wanted)
    except (av.error.FFmpegError, IndexError, StopIteration):
        raise UserError(f"{path} is damaged: delete it and run this again", code=1) from None
    data = io.BytesIO()
    picture.to_image().resize((160, 160)).save(data, "JPEG", quality=70)
    return data_address(data.getvalue(), "image/jpeg")


def runs_table(found: Found) -> list[dict]:
    """Where every run stands."""
    rows = []
    for run in (run for task in found.tasks for run in found.ordered(task)):
        status = run_folder.read_status(run.folder).get("state", "unknown")
        status = "running or killed" if status == "running" else status
        state = "" if run.is_whole else f" of {run.settings.frames:,}, {status}"
        rows.append({
            "name": f"{run.task}, {panels.label(run.variant)}, seed {run.settings.seed}", "final": run.final,
            "score": run.score, "frame": f"{run.frame:,}{state}", "hours": run.hours, "speed": run.frames_per_second,
            "commit": ", ".join(run.commits), "command": run.command,
        })  # fmt: skip
    return rows


def make(folders: list[str], out: pathlib.Path, preset: str = "", embed: bool = False) -> Found:
    """Write report.html, figures/ and videos/; UserError where there are no runs."""
    found = runs.collect(folders, preset)
    here = pathlib.Path(__file__).parent
    loader = jinja2.FileSystemLoader(here)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.get_template("report.html").render(
        css=Markup((here / "report.css").read_text("utf-8")), found=found, answer=answer(found),
        warnings=warnings(found),
        colours={panels.label(variant): panels.COLOURS[variant] for variant in found.variants},
        table1=table1_section(found, out), curves=learning_curves(found, out), figure3=figure3(found, out),
        health=health(found, out), dots=state_against_pixels(found, out), together=aggregates(found, out),
        published=published(found, out), videos=videos(found, out, embed), alone=embed, runs=runs_table(found),
        failed_below=FAILED, paper_frames=PAPER_FRAMES, hours=sum(run.hours for run in found.runs),
        whole=sum(run.is_whole for run in found.runs),
    )  # fmt: skip
    files.write_atomically(out / "report.html", page.encode(errors="surrogateescape"))
    return found
