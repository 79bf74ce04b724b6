"""python -m experiments.report runs=[runs/quick] out=report: one HTML file of any number of runs, and its figures."""

import base64
import csv
import functools
import html
import io
import json
import os
import pathlib
import shutil
import sys
from dataclasses import dataclass, field

import av
import numpy as np

from experiments import panels, runs, statistics
from experiments.figures import REFERENCE
from experiments.panels import Variant
from experiments.profiles import CONTROLS, FIGURE2
from experiments.runs import Run
from pixel_ddpg import config, files, presets, tasks, trainer

FAILED = 0.1  # a seed whose final score is below
NEAR = 0.05  # of a score: as good as
PAPER_FRAMES = 2_500_000
FIGURE3 = ("pendulum", "cartpole", "cheetah")
PLAN = "suite.json"  # in the folder of a suite


@dataclass
class Report:
    """Options of the command."""

    runs: list[str] = field(default_factory=list)  # folders of runs, at any depth
    out: str = "report"
    preset: str = ""  # that Table 1 and the comparisons are of; default: the one with most runs
    embed: bool = False  # the films too, so that report.html needs no other file
    wandb: str = ""  # entity/project: mirror the runs there, and make a W&B Report; the same as --wandb entity/project


config.register_command("report", Report, "experiments")


@dataclass
class Found:
    """All runs of a report, and those that a suite's plan wants."""

    runs: list[Run]
    wanted: list[tuple[str, str, str, int]]  # (task, obs, preset, seed)
    commands: list[str]  # of the suites
    main: str  # the preset that is compared

    @property
    def tasks(self) -> list[str]:
        """In the catalogue's order: Table 1's."""
        names = {run.task for run in self.runs} | {task for task, *_ in self.wanted}
        return [name for name in tasks.CATALOGUE if name in names]

    @property
    def variants(self) -> list[Variant]:
        """All (preset, obs), those of the main preset last: they are drawn on top."""
        pairs = {run.variant for run in self.runs} | {(preset, obs) for _, obs, preset, _ in self.wanted}
        return sorted(pairs, key=lambda pair: (pair[0] == self.main, list(presets.PRESETS).index(pair[0]), pair[1]))

    @property
    def state(self) -> Variant:
        return self.main, "state"

    @property
    def pixels(self) -> Variant:
        return self.main, "pixels"

    @property
    def control(self) -> Variant | None:
        """The main preset without target networks, from state."""
        name = CONTROLS.get(self.main)
        return (name, "state") if (name, "state") in self.variants else None

    def of(self, task: str, variant: Variant) -> list[Run]:
        """By seed."""
        found = [run for run in self.runs if run.task == task and run.variant == variant]
        return sorted(found, key=lambda run: run.settings.seed)

    def scores(self, variant: Variant) -> statistics.Scores:
        """Final scores by task; tasks without a measured planner are left out."""
        found = {task: [run.score for run in self.of(task, variant) if run.score is not None] for task in self.tasks}
        return {task: scores for task, scores in found.items() if scores}

    def missing(self) -> list[tuple[str, str, str, int]]:
        """What a suite wants and nothing is there of."""
        there = {(run.task, run.settings.obs, run.settings.preset, run.settings.seed) for run in self.runs}
        return [each for each in self.wanted if each not in there]


def collect(folders: list[str], preset: str = "") -> Found:
    """Read runs and plans; UserError where there are none, or two folders hold the same run."""
    found = [runs.read(folder) for folder in runs.find(folders)]
    found = [run for run in found if run.rows]
    if not found:
        raise config.UserError(f"no runs in {', '.join(folders)}")
    seen: dict[tuple, Run] = {}
    for run in found:
        other = seen.setdefault((run.task, run.variant, run.settings.seed), run)
        if other is not run:
            raise config.UserError(f"{other.folder} and {run.folder} are the same task, variant and seed: name one")
    plans = [json.loads(path.read_text()) for folder in folders for path in sorted(pathlib.Path(folder).rglob(PLAN))]
    wanted = list(dict.fromkeys(tuple(each) for plan in plans for each in plan["runs"]))
    names = [run.settings.preset for run in found]
    if preset and preset not in names:
        raise config.UserError(f"no run of preset={preset}; there are {', '.join(dict.fromkeys(names))}")
    main = preset or max((name for name in presets.PRESETS if name in names), key=names.count)
    return Found(found, wanted, list(dict.fromkeys(plan["command"] for plan in plans)), main)


# --- pieces of HTML ---


def tag(name: str, *content: str, **attributes: str) -> str:
    """An element; its content is HTML already."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return f"<{name}{given}>{''.join(content)}</{name}>"


esc = html.escape


def made(found: Found, of: list[Run]) -> str:
    """Budget, seeds, commit, versions, machine and command of some runs, for below a figure."""
    if not of:
        return ""
    facts = [run.facts for run in of]
    frames = sorted({run.settings.frames for run in of})
    budget = f"{frames[0]:,}" if len(frames) == 1 else f"{frames[0]:,} to {frames[-1]:,}"
    seeds = sorted({run.settings.seed for run in of})
    commits = sorted({(each.get("commit") or "unknown")[:9] for each in facts})
    machines = sorted({f"{each.get('gpu') or each.get('cpu')}, {each.get('threads')} thread" for each in facts})
    versions = sorted({f"{name} {version}" for each in facts for name, version in each.get("versions", {}).items()
                       if name in ("torch", "mujoco", "dm-control")})  # fmt: skip
    unfinished = sum(not run.is_whole for run in of)
    text = f"{len(of)} runs ({', '.join(sorted({panels.label(run.variant) for run in of}))}) of {budget} frames, "
    text += f"seeds {', '.join(map(str, seeds))}" + (f"; {unfinished} unfinished" if unfinished else "")
    text += f". Commit {', '.join(commits)}; {'; '.join(machines)}; {', '.join(versions)}. "
    commands = found.commands or ["python -m pixel_ddpg.run with the words of the table of runs"]
    return tag("p", esc(text), *(tag("code", esc(command)) + " " for command in commands), class_="made")


def figure(found: Found, name: str, drawn: list[str], of: list[Run], out: pathlib.Path, style: str = "") -> str:
    """Panels side by side, links to the same as files, and how they were made."""
    links = " ".join(
        tag("a", kind, href=f"figures/{name}.{kind.lower()}") for kind in ("PNG", "SVG")
    ) + " " + csv_link(out / "figures" / f"{name}.csv")  # fmt: skip
    return tag("div", *drawn, class_=f"panels {style}".strip()) + tag("p", links, class_="made") + made(found, of)


def csv_link(path: pathlib.Path) -> str:
    """A link that holds the file."""
    data = base64.b64encode(path.read_bytes()).decode()
    return tag("a", "CSV", href=f"data:text/csv;base64,{data}", download=path.name)


def legend(variants: list[Variant]) -> str:
    """Which colour is which."""
    items = [
        tag("span", tag("i", style=f"background:{panels.colour(variant)}"), esc(panels.label(variant)))
        for variant in variants
    ]
    return tag("div", *items, class_="key")


# --- sections ---


def answer(found: Found) -> str:
    """State against pixels in a sentence with its numbers."""
    state, pixels = found.scores(found.state), found.scores(found.pixels)
    common = sorted(state.keys() & pixels.keys())
    if not common:
        return tag("p", "No task has a finished run from state and one from pixels yet.", class_="answer")
    state, pixels = ({task: each[task] for task in common} for each in (state, pixels))
    near = sum(np.mean(pixels[task]) >= np.mean(state[task]) - NEAR for task in common)
    frames = sorted({run.settings.frames for run in found.runs if run.variant in (found.state, found.pixels)})
    text = (
        f"From pixels, {found.main} reaches {spread(statistics.iqm, pixels)} of the way from random actions to the "
        f"planner, from state {spread(statistics.iqm, state)} (interquartile mean over {len(common)} tasks, after "
        f"{' to '.join(f'{each:,}' for each in frames)} frames). A run from pixels beats one from state of the same "
        f"task with probability {spread(statistics.probability_of_improvement, pixels, state)}; on {near} of "
        f"{len(common)} tasks pixels are as good as state or better, give or take {NEAR} of a score."
    )
    return tag("p", esc(text), class_="answer")


def spread(statistic, *scores: statistics.Scores) -> str:
    """A number with its 95% interval; none where each task has one seed."""
    value = f"{statistic(*scores):.2f}"
    if all(len(each) == 1 for one in scores for each in one.values()):
        return value
    low, high = statistics.interval(statistic, *scores)
    return f"{value} [{low:.2f}, {high:.2f}]"


@functools.cache
def paper_rows() -> dict[str, dict[str, float]]:
    """Table 1 as printed, by the name that a task's runs have here too."""
    rows = csv.DictReader((REFERENCE / "paper_table1.csv").open())
    return {
        tasks.CATALOGUE[row["environment"]].same_as: {k: float(v) for k, v in row.items() if k != "environment"}
        for row in rows
    }


TABLE1_NOTE = f"""Scores: 0 is random actions, 1 the planner. Large: ours, average and best over seeds; small: the paper's
after {PAPER_FRAMES:,} steps and five runs. Green where ours is higher, red where it is lower, the stronger the more. The
paper does not publish the constants of its rewards, so a row is the same task in words only. A task without a score (no
planner was measured) shows returns, without colour."""
COLUMNS = (("state", "lowd"), ("pixels", "pix"), ("control", "cntrl"))


def table1(found: Found, out: pathlib.Path) -> str:
    """Average and best over seeds beside the paper's, normalised."""
    variants = {"state": found.state, "pixels": found.pixels, "control": found.control}
    names = {"state": "from state", "pixels": "from pixels", "control": "state, no target network"}
    head = tag("tr", tag("th"), *(tag("th", names[name], colspan=2, class_="group") for name, _ in COLUMNS))
    head += tag("tr", tag("th", "task"), *(tag("th", word) for _ in COLUMNS for word in ("average", "best")))
    body, raw, rows = [], [], []
    for task in found.tasks:
        paper = paper_rows().get(tasks.CATALOGUE[task].same_as, {})
        cells, returns = [], []
        for name, column in COLUMNS:
            members = found.of(task, variants[name]) if variants[name] else []
            finals = [run.final for run in members if run.is_whole]
            scored = [panels.score_of(task, value) for value in finals]
            for word, pick in (("avg", np.mean), ("best", np.max)):
                printed = paper.get(f"{column}_{word}")
                ours = float(pick(scored)) if scored else None
                cells.append(cell(ours, printed, runs.references(task) is not None, members))
                rows.append(
                    {"task": task, "column": f"{name} {word}", "ours": ours, "paper": printed, "seeds": len(finals)}
                )
            returns.append(tag("td", esc(", ".join(f"{value:.0f}" for value in finals) or "missing")))
        body.append(tag("tr", tag("td", esc(task)), *cells))
        ends = runs.references(task)
        ends = [f"{value:.0f}" for value in ends] if ends else ["-", "-"]
        raw.append(tag("tr", tag("td", esc(task)), *returns, *(tag("td", value) for value in ends)))
    panels.write_csv(rows, out / "figures" / "table1.csv")
    raw_head = tag("tr", *(tag("th", word) for word in ("task", *names.values(), "random (0)", "planner (1)")))
    return (
        tag("p", esc(TABLE1_NOTE), class_="note")
        + tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")
        + tag("p", csv_link(out / "figures" / "table1.csv"), class_="made")
        + made(found, [run for run in found.runs if run.variant in variants.values()])
        + tag("details", tag("summary", "Raw returns, every seed"),
              tag("div", tag("table", tag("thead", raw_head), tag("tbody", *raw)), class_="scroll"))
    )  # fmt: skip


def cell(ours: float | None, paper: float | None, scored: bool, members: list[Run]) -> str:
    """One number of Table 1 beside the paper's, coloured by their difference."""
    small = f"{paper:.2f}" if paper is not None and abs(paper) < 100 else "" if paper is None else f"{paper:.0f}"
    beside = tag("small", small)
    if ours is None:
        standing = f"at {max(run.frame for run in members):,}" if members else "missing"
        return tag("td", standing, beside, class_="missing")
    if not scored:
        return tag("td", f"{ours:.0f}", beside)
    colour = ""
    if paper is not None:
        share = round(60 * min(1.0, abs(ours - paper)))
        colour = f"background:color-mix(in srgb, {'#2da44e' if ours > paper else '#cf222e'} {share}%, #fff)"
    return tag("td", f"{ours:.2f}", beside, style=colour)


def figure2(found: Found, out: pathlib.Path) -> str:
    """Learning curves; the paper's ten panels first, then all other tasks."""
    ten = [task for task in FIGURE2 if task in found.tasks]
    rest = [task for task in found.tasks if task not in ten]
    text = tag(
        "p",
        "A thin line is a seed, a thick one the mean of all. Dotted: random actions (0), the planner (1).",
        class_="note",
    )
    for name, names, title in (("figure2", ten, ""), ("curves", rest, "Other tasks")):
        of = [run for run in found.runs if run.task in names]
        if of:
            drawn = panels.draw(
                [functools.partial(panels.curves, task=task, runs=ordered(found, task)) for task in names if ordered(found, task)],
                out / "figures", name, (2.7, 2.1),
            )  # fmt: skip
            text += (tag("h3", title) if title else "") + figure(found, name, drawn, of, out)
    return legend(found.variants) + text


def ordered(found: Found, task: str) -> list[Run]:
    """A task's runs, the main preset's last."""
    return [run for variant in found.variants for run in found.of(task, variant)]


FIGURE3_NOTE = """Each run's last evaluation, without noise: Q(s, mu(s)) (of two critics the smaller one, as in the target)
over the discounted sum of rewards that followed; on the dotted line they agree. A step near the time limit is left out,
as what would follow is not observed."""


def figure3(found: Found, out: pathlib.Path) -> str:
    """Estimated Q against observed returns."""
    with_values = {run.task for run in found.runs if run.of_kind("values")}
    chosen = [task for task in FIGURE3 if task in found.tasks] or sorted(with_values)[:3]
    drawn, of = [], []
    for variant in (found.state, found.pixels):
        for task in chosen:
            if members := [run for run in found.of(task, variant) if run.of_kind("values")]:
                of += members
                drawn.append(functools.partial(panels.q_against_return, task=task, runs=members))
    if not drawn:
        return tag("p", "No finished run has recorded them yet.")
    text = tag("p", esc(FIGURE3_NOTE), class_="note")
    return text + figure(found, "figure3", panels.draw(drawn, out / "figures", "figure3", (2.9, 2.7)), of, out)


def dots(found: Found, out: pathlib.Path) -> str:
    """State against pixels, one dot a task."""
    state, pixels = found.scores(found.state), found.scores(found.pixels)
    if not state.keys() & pixels.keys():
        return tag("p", "No task has a finished run of both yet.")
    drawn = panels.draw(
        [functools.partial(panels.state_against_pixels, state=state, pixels=pixels)],
        out / "figures",
        "state_pixels",
        (5.4, 5.2),
    )
    of = [run for run in found.runs if run.variant in (found.state, found.pixels) and run.score is not None]
    return tag("p", "Means over seeds. Above the dotted line pixels are better.", class_="note") + figure(
        found, "state_pixels", drawn, of, out, "one"
    )


AGGREGATES_NOTE = f"""Interquartile mean over all tasks and seeds with 95% intervals of the stratified bootstrap (seeds are
drawn anew within each task; none where each has one seed). A failed seed is a finished run with a score below {FAILED}.
Tasks without a measured planner do not count. frames/s without evaluations; machines may have run other things beside."""


def aggregates(found: Found, out: pathlib.Path) -> str:
    """IQM, failed seeds and speed of each variant; performance profile; curves over frames and hours."""
    scores = {variant: found.scores(variant) for variant in found.variants}
    scores = {variant: each for variant, each in scores.items() if each}
    if not scores:
        return tag("p", "No finished run has a score yet.")
    head = tag(
        "tr",
        *(
            tag("th", word)
            for word in ("variant", "tasks", "runs", "IQM [95%]", "failed seeds", "frames/s", "hours a run")
        ),
    )
    body, rows = [], []
    for variant, each in scores.items():
        finals = [score for one in each.values() for score in one]
        whole = [run for run in found.runs if run.variant == variant and run.is_whole]
        failed = sum(score < FAILED for score in finals)
        speed = np.mean([run.frames_per_second for run in whole if run.frames_per_second])
        hours = np.mean([run.hours for run in whole])
        cells = [
            len(each),
            len(finals),
            spread(statistics.iqm, each),
            f"{failed} of {len(finals)}",
            f"{speed:.0f}",
            f"{hours:.2f}",
        ]
        body.append(tag("tr", tag("td", esc(panels.label(variant))), *(tag("td", esc(str(value))) for value in cells)))
        rows.append({"preset": variant[0], "obs": variant[1], "tasks": len(each), "runs": len(finals), "iqm": statistics.iqm(each),
                     "failed": failed, "frames_per_second": speed, "hours": hours})  # fmt: skip
    panels.write_csv(rows, out / "figures" / "aggregates.csv")
    of = [run for run in found.runs if run.score is not None]
    members = {variant: [run for run in of if run.variant == variant] for variant in scores}
    drawn = panels.draw(
        [
            functools.partial(panels.profile, scores=scores),
            functools.partial(panels.iqm_curve, variants=members, over="frame"),
            functools.partial(panels.iqm_curve, variants=members, over="hours"),
        ],
        out / "figures", "aggregates_figure", (4.2, 3.2),
    )  # fmt: skip
    return (
        tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")
        + tag("p", csv_link(out / "figures" / "aggregates.csv"), class_="made")
        + tag("p", esc(AGGREGATES_NOTE), class_="note")
        + figure(found, "aggregates_figure", drawn, of, out, "large")
    )


PUBLISHED_NOTE = """Light lines: DrQ-v2 from pixels, each of its seeds (action repeat 2). Marks: means of ten seeds of D4PG
(square) and DDPG (triangle up) from state and SAC from pixels (triangle down). Sources: experiments/reference/README.md."""


def published(found: Found, out: pathlib.Path) -> str:
    """Returns beside published ones, where the task is the same."""
    members = {task: ordered(found, task) for task in found.tasks}
    members = {t: of for t, of in members.items() if of and panels.has_published(t, max(run.frame for run in of))}
    if not members:
        return tag("p", "None of these tasks has published results at as few frames.")
    drawn = panels.draw(
        [functools.partial(panels.beside_published, task=task, runs=of) for task, of in members.items()],
        out / "figures", "published", (2.9, 2.3),
    )  # fmt: skip
    return (
        legend(found.variants)
        + tag("p", esc(PUBLISHED_NOTE), class_="note")
        + figure(found, "published", drawn, [run for of in members.values() for run in of], out)
    )


def videos(found: Found, out: pathlib.Path, embed: bool) -> str:
    """The last film of each task's first seed."""
    shown = []
    for task in found.tasks:
        for variant in (found.pixels, found.state):
            film = next((run for run in found.of(task, variant) if run.video), None)
            if film is None:
                continue
            name = f"{task}-{variant[1]}-{variant[0]}-seed{film.settings.seed}.mp4"
            source = (
                f"data:video/mp4;base64,{base64.b64encode(film.video.read_bytes()).decode()}"
                if embed
                else f"videos/{name}"
            )
            if not embed:
                (out / "videos").mkdir(exist_ok=True)
                shutil.copyfile(film.video, out / "videos" / name)
            caption = (
                f"{task}, {variant[1]}, seed {film.settings.seed}: return {film.of_kind('eval')[-1]['returns'][0]:.0f}"
            )
            element = tag(
                "video", src=source, poster=poster(film.video), controls="", preload="none", loop="", playsinline=""
            )
            shown.append(tag("figure", element, tag("figcaption", esc(caption))))
    if not shown:
        return tag("p", "The runs' folders hold no films.")
    return tag("p", "The first episode of each last evaluation, without noise.", class_="note") + tag(
        "div", *shown, class_="videos"
    )


def poster(path: pathlib.Path) -> str:
    """A picture from the first third of a film, as a data address."""
    with av.open(str(path)) as container:
        wanted = container.streams.video[0].frames // 3
        picture = next(frame for number, frame in enumerate(container.decode(video=0)) if number >= wanted)
    data = io.BytesIO()
    picture.to_image().resize((160, 160)).save(data, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def runs_table(found: Found) -> str:
    """Every run with where it stands and what makes it."""
    head = tag(
        "tr",
        *(tag("th", word) for word in ("run", "return", "score", "frames", "hours", "frames/s", "commit", "command")),
    )
    body = []
    for task in found.tasks:
        for run in ordered(found, task):
            ended = run.final
            score = "" if run.score is None else f"{run.score:.2f}"
            status = trainer.read_status(run.folder)
            stands = f"{run.frame:,}" + (
                "" if run.is_whole else f" of {run.settings.frames:,}, {status.get('state', 'unfinished')}"
            )
            speed = "" if run.frames_per_second is None else f"{run.frames_per_second:.0f}"
            name = f"{task}, {panels.label(run.variant)}, seed {run.settings.seed}"
            cells = ["" if ended is None else f"{ended:.1f}", score, stands, f"{run.hours:.2f}", speed]
            cells.append((run.facts.get("commit") or "unknown")[:9])
            body.append(tag("tr", tag("td", esc(name)), *(tag("td", esc(value)) for value in cells),
                            tag("td", tag("code", esc(run.command)), class_="text")))  # fmt: skip
    for task, obs, preset, seed in found.missing():
        body.append(
            tag(
                "tr",
                tag("td", esc(f"{task}, {obs}, {preset}, seed {seed}")),
                tag("td", "missing", class_="missing"),
                *[tag("td")] * 6,
            )
        )
    return tag("details", tag("summary", f"{len(found.runs)} runs, {len(found.missing())} missing"),
               tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll"))  # fmt: skip


def warnings(found: Found) -> str:
    """What a reader must know before any number."""
    said = []
    frames = sorted({run.settings.frames for run in found.runs})
    if frames[-1] < PAPER_FRAMES:
        said.append(
            f"The budget is {frames[-1]:,} frames a run, the paper's {PAPER_FRAMES:,} steps: the numbers are not comparable one to one."
        )
    if len(frames) > 1:
        said.append(f"Budgets differ: {', '.join(f'{each:,}' for each in frames)} frames.")
    if found.main != "ddpg2016":
        said.append(f"{found.main} is not the paper's algorithm (ddpg2016).")
    if count := len(found.missing()):
        said.append(f"{count} of {len(found.wanted)} runs are missing.")
    if count := sum(not run.is_whole for run in found.runs):
        said.append(f"{count} runs are unfinished; their curves are shown, they do not count in tables.")
    if changed := [run for run in found.runs if run.changes]:
        words = sorted({word for run in changed for word in run.changes})
        said.append(
            f"{len(changed)} runs differ from their preset: {' '.join(words[:12])}{' ...' if len(words) > 12 else ''}."
        )
    return tag("ul", *(tag("li", esc(each)) for each in said), class_="warn") if said else ""


def make(folders: list[str], out: pathlib.Path, preset: str = "", embed: bool = False) -> Found:
    """Write report.html, figures/ and videos/."""
    found = collect(folders, preset)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    sections = {
        "Table 1": table1(found, out), "Figure 2: learning curves": figure2(found, out),
        "Figure 3: estimated Q": figure3(found, out), "State against pixels": dots(found, out),
        "All tasks together": aggregates(found, out), "Beside published results": published(found, out),
        "Videos": videos(found, out, embed), "Runs": runs_table(found),
    }  # fmt: skip
    links = [tag("a", esc(title), href=f"#s{number}") for number, title in enumerate(sections)]
    body = [tag("h2", esc(title), id=f"s{number}") + text for number, (title, text) in enumerate(sections.items())]
    title = f"DDPG from state and from pixels: {len(found.tasks)} tasks, {found.main}"
    whole = sum(run.is_whole for run in found.runs)
    total = sum(run.hours for run in found.runs)
    lead = f"{whole} finished runs, {total:.1f} hours of training in all. After Lillicrap et al., Continuous control with deep reinforcement learning, ICLR 2016."
    style = (pathlib.Path(__file__).parent / "report.css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        + tag("title", esc(title)) + tag("style", style) + "</head><body>" + tag("h1", esc(title))
        + tag("p", esc(lead), class_="note") + answer(found) + warnings(found) + tag("nav", *links) + "".join(body) + "</body></html>\n"
    )  # fmt: skip
    files.write_atomically(out / "report.html", page.encode())
    return found


@config.command("report")
def main(options: Report) -> None:
    if not options.runs:
        raise config.UserError("which runs? runs=[runs/quick]")
    if missing := [folder for folder in options.runs if not os.path.isdir(folder)]:
        raise config.UserError(f"{missing[0]} is not a folder")
    out = pathlib.Path(options.out)
    found = make(options.runs, out, options.preset, options.embed)
    print(out / "report.html")
    if options.wandb:
        from experiments import wandb_report

        print(wandb_report.publish(found.runs, options.wandb, out))


def words(given: list[str]) -> list[str]:
    """--wandb entity/project and --wandb=entity/project as wandb=entity/project."""
    told = iter(given)
    return [
        f"wandb={next(told, '')}"
        if word == "--wandb"
        else word.removeprefix("--")
        if word.startswith("--wandb=")
        else word
        for word in told
    ]


if __name__ == "__main__":
    sys.argv[1:] = words(sys.argv[1:])
    sys.exit(main())
