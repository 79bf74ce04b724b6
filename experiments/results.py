"""python -m experiments.results: runs, baselines and benchmarks as the tables and figures of README.md and docs/."""

import collections
import dataclasses
import functools
import importlib
import inspect
import json
import math
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks import tables
from experiments.figures import learning_curves
from experiments.profiles import PROFILES
from experiments.report import page, panels, runs
from pixel_ddpg import files, presets
from pixel_ddpg.command import command
from pixel_ddpg.config import Config, fields_of, value_of
from pixel_ddpg.envs import rendering, tasks
from pixel_ddpg.errors import UserError
from pixel_ddpg.planning import baselines
from pixel_ddpg.runtime.memory import format_bytes
from pixel_ddpg.training.cost import format_hours, replay_bytes
from pixel_ddpg.training.rows import EvalRow, PartRow, read_rows

FOLDER = pathlib.Path(__file__).parent / "results"
ROOT = FOLDER.parent.parent
DOCS = ROOT / "docs"
SIX = FOLDER / "six"  # PlaNet's six tasks
MEASURED = ("six", "figure2", "rerun/after", "resources")  # whose runs tell memory and speed
PRESETS = {"pixels": ["fast"], "state": ["fast", "ddpg2016"]}  # that are compared
PUBLISHED = {
    "pixels": (
        "DrQ-v2 (action repeat 2)",
        "MR.Q",
        "DreamerV3",
        "DrQ",
        "ResAct (AAAI 2025; the policy outputs a change of the previous action)",
    ),
    "state": ("DDPG (DreamerV3's)", "SAC", "MR.Q", "BRO (2 updates a step)", "SimbaV2 (2 updates a step)", "TD-MPC2"),
}
METHODS = "dmcontrol_100k.csv"
FRAMES = 100_000
MADE = ("command", "commit", "date")
NO_ENDS = ("tried", "failures", "runs", "suites", "calls of a run", "slowest_seconds")
POLICIES = ("random", *baselines.SETTINGS)


@dataclass
class Results:
    """The command has no options."""


def published(obs: str) -> dict[str, dict[str, float]]:
    """Method -> task -> mean return at 100k frames, from this kind of observation."""
    found = {row["method"]: row for row in panels.reference(METHODS) if row["obs"] == obs}
    return {name: {task: float(found[name][task]) for task in tasks.PLANET6} for name in PUBLISHED[obs]}


def _runs_in(folders: list[pathlib.Path]) -> list[runs.Run]:
    return [runs.read(path) for path in runs.find([str(folder) for folder in folders])]


def final_return(run: runs.Run) -> float | None:
    """The mean return of the first evaluation at 100k frames or after; None for a run that is not there yet."""
    return next((value for frame, value in run.curve if frame >= FRAMES), None)


def measured(made: list[runs.Run]) -> dict[tuple[str, str], list[float]]:
    """(preset, task) -> final return of each seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in made:
        if (value := final_return(run)) is not None:
            found.setdefault((run.settings.preset, run.task), []).append(value)
    return found


def comparison_table(folder: pathlib.Path, obs: str) -> str:
    """Markdown: ours by task and seed beside published means; a missing run is shown as missing."""
    made = [run for run in _runs_in([folder]) if run.settings.obs == obs]
    for one, other, words in runs.mixed(run for run in made if final_return(run) is not None):
        raise UserError(f"{one.folder} and {other.folder} differ in {' '.join(words)}: they are not one cell")
    ours, others = measured(made), published(obs)
    repeats = {run.task: run.settings.env.action_repeat for run in made if run.settings.preset == "fast"}
    short = {name: name.split(" (")[0] for name in others}
    header = ["task", "action repeat of fast", *PRESETS[obs], *short.values(), "score of fast"]
    lines = [header, ["---"] * len(header)]
    for task in tasks.PLANET6:
        cells = [_seeds(ours.get((preset, task), [])) for preset in PRESETS[obs]]
        cells += [f"{other[task]:.0f}" for other in others.values()]
        lines.append([task, str(repeats.get(task, "")), *cells, _score(task, ours.get(("fast", task)))])
    done = [task for task in tasks.PLANET6 if ("fast", task) in ours]
    below = {}
    if done:
        mine = {preset: {task: _average(ours.get((preset, task))) for task in done} for preset in PRESETS[obs]}
        means = [_mean_of(each, done) for each in (*mine.values(), *others.values())]
        lines.append([f"mean of {len(done)}", "", *means, ""])
        below = {name: [task for task in done if mine["fast"][task] < other[task]] for name, other in others.items()}
    said = [
        f"{short[name]} on {', '.join(found) if found != done else 'all'}" for name, found in below.items() if found
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"Published means above those of `fast`: {'; '.join(said)}." if said else ""
    known = sum(row["obs"] == obs for row in panels.reference(METHODS))
    notes = f"Published, {len(others)} of the {known} methods in `experiments/reference/{METHODS}`"
    notes += f": {'; '.join(name for name in others if name != short[name])}."
    return "\n\n".join(part for part in (table, note, notes, runs.changes_since(made)) if part)


def _average(values: list[float] | None) -> float:
    return float(np.mean(values)) if values else math.nan


def _mean_of(returns: dict[str, float], names: list[str]) -> str:
    value = _average([returns[name] for name in names])
    return "missing" if math.isnan(value) else f"{value:.0f}"


def _score(task: str, values: list[float] | None) -> str:
    score = baselines.score(task, float(np.mean(values))) if values else None
    return "missing" if score is None else f"{score:.2f}"


def _seeds(values: list[float]) -> str:
    if not values:
        return "missing"
    return f"{np.mean(values):.0f}" + (f" ({', '.join(f'{value:.0f}' for value in values)})" if len(values) > 1 else "")


def provenance_table(folder: pathlib.Path) -> str:
    """Markdown: command, commit and machine of each run."""
    lines = ["| run | return at 100k | hours | threads | commit |", "|---|---|---|---|---|"]
    for run in _runs_in([folder]):
        threads = sorted({str(part.threads) for part in run.parts})
        value = final_return(run)
        shown = "missing" if value is None else f"{value:.1f}"
        cells = [f"`{' '.join(run.words)}`", shown, f"{run.hours:.2f}", ", ".join(threads), ", ".join(run.commits)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def screening_table(folder: pathlib.Path) -> str:
    """Markdown: what each try changed, by the words of its command, and its return by frame.

    A try's fields may be gone from the configuration since, so its config.yaml is not read.
    """
    frames = (10_000, 20_000, 30_000, 40_000, 60_000, 80_000, FRAMES)
    everywhere = ("task=", "obs=", "seed=", "frames=", "eval.", "checkpoint_minutes=", "noise.random_frames=")
    columns = ["try", "task", "seed", *(f"{frame // 1000}k" for frame in frames), "words", "commit"]
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    for path in sorted(folder.rglob("command.txt")):
        given = path.read_text("utf-8").split()
        seed = next(word.split("=")[1] for word in given if word.startswith("seed="))
        rows = read_rows(path.with_name("metrics.jsonl"))
        returns = {row.frame // 1000 * 1000: f"{row.return_:.0f}" for row in rows if isinstance(row, EvalRow)}
        commits = dict.fromkeys((row.commit or "unknown")[:9] for row in rows if isinstance(row, PartRow))
        words = " ".join(word for word in given[3:] if not word.startswith(everywhere)).replace("agent.", "")
        name = str(path.parent.parent.relative_to(folder))
        cells = [name, path.parent.name, seed, *(returns.get(frame, "") for frame in frames), words, ", ".join(commits)]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def measured_baselines() -> dict[str, dict[str, dict]]:
    """Task -> policy -> what `python -m pixel_ddpg.baseline` has measured; UserError for what has since changed."""
    found: dict[str, dict[str, dict]] = {}
    for path in baselines.MEASURED.glob("*.json"):
        result = baselines.read(path)
        task, policy = result["task"], result["policy"]
        repeat = presets.action_repeat(task)
        settings = json.loads(json.dumps(baselines.planner_settings(policy, task)))
        if (result["action_repeat"], result["settings"]) != (repeat, settings):
            raise UserError(f"{path} was made with other settings than {policy} has now: run it again")
        found.setdefault(task, {})[policy] = result
    return {task: found[task] for task in tasks.CATALOGUE if task in found}


def baseline_table() -> str:
    """Markdown: the returns of random actions and of the planners, and which of them is the 1."""
    columns = [
        "task",
        "paper's Table 1",
        "repeat",
        *(f"{policy} (sd, n)" for policy in POLICIES),
        "the 1",
        "horizon, s",
    ]
    columns += ["minutes an episode", "commits"]
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    rows = {task.same_as: task.name for task in tasks.CATALOGUE.values() if "table1" in task.tags}
    for task, results in measured_baselines().items():
        planned = {policy: results[policy] for policy in POLICIES[1:] if policy in results}
        episodes = [episode for result in results.values() for episode in result["episodes"]]
        minutes = [f"{np.mean([each['minutes'] for each in result['episodes']]):.1f}" for result in planned.values()]
        cells = [task, rows.get(task, "")]
        cells.append(", ".join(sorted({str(result["action_repeat"]) for result in results.values()})))
        cells += [_spread(results.get(policy)) for policy in POLICIES]
        cells += [
            baselines.better_planner(task) or "missing",
            ", ".join(str(result["settings"]["horizon"]) for result in planned.values()),
            ", ".join(minutes),
        ]
        cells.append(", ".join(sorted({(each["commit"] or "unknown")[:9] for each in episodes})))
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{_duration()}"


def _duration() -> str:
    """What five episodes of the paper's rows take on two cores."""
    found, told = measured_baselines(), []
    rows = [task for task in tasks.CATALOGUE.values() if "table1" in task.tags and task.simulator == "mujoco"]
    better = [(task, baselines.better_planner(task.name)) for task in rows]
    for name, pairs in (
        ("the better planner", better),
        ("both", [(task, each) for task in rows for each in POLICIES[1:]]),
    ):
        results = [found[task.same_as][policy] for task, policy in pairs if policy in found.get(task.same_as, {})]
        minutes = sum(np.mean([each["minutes"] for each in result["episodes"]]) for result in results)
        told.append(f"{5 * minutes / 2 / 60:.1f} hours with {name} ({len(results)} of {len(pairs)} measured)")
    return f"On two cores, one episode a core, five episodes of each row of Table 1 take {', '.join(told)}."


def _spread(result: dict | None) -> str:
    if not result:
        return ""
    number = len(result["episodes"])
    spread = f"{result['sd']:.1f}" if number > 1 else "-"
    return f"{result['return']:.1f} ({spread}, {number})"


def paper_table() -> str:
    """Markdown: the paper's 27 rows, what each is here, and its two references."""
    lines = ["| row of Table 1 | made from | state (nq + nv), action | ends early | random (0) | planner (1) |"]
    lines.append("|---|---|---|---|---|---|")
    found = measured_baselines()
    for task in tasks.CATALOGUE.values():
        if "table1" in task.tags:
            results, ends = found.get(task.same_as, {}), "yes" if task.terminates else ""
            one = "none" if task.simulator == "box2d" else _mean(results, baselines.better_planner(task.name))
            cells = [task.name, task.origin, f"{task.state_dim or 'not counted'}, {task.action_dim}", ends]
            lines.append(f"| {' | '.join([*cells, _mean(results, 'random'), one])} |")
    return "\n".join(lines)


def _mean(results: dict[str, dict], policy: str | None) -> str:
    """A policy's return and how it came about; missing where there is none."""
    if policy not in results:
        return "missing"
    number = len(results[policy]["episodes"])
    return f"{results[policy]['return']:.0f} ({policy}, {number} episode{'s' * (number > 1)})"


def planet_table() -> str:
    """Markdown: the planners beside the published one (PlaNet's, with the true simulator)."""
    lines = ["| task | repeat | published | ours, sampling (sd, n) | ours, iLQG (sd, n) |", "|---|---|---|---|---|"]
    found = measured_baselines()
    for row in panels.reference("planner_published.csv"):
        results = found.get(row["task"], {})
        cells = [_spread(results.get(policy)) or "missing" for policy in POLICIES[1:]]
        lines.append(f"| {row['task']} | {row['action_repeat']} | {row['return']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def task_table() -> str:
    """Markdown: every task of the paper with the numbers that the paper leaves open, from the code itself."""
    lines = ["| task | made from | state, action, observation | control step, s | reward, start, end |"]
    lines.append("|---|---|---|---|---|")
    rows: dict[str, str] = {}  # text -> the first task that has it
    for task in tasks.CATALOGUE.values():
        if "paper" in task.tags:
            text = " ".join(" ".join(_docstrings(task)).split())
            first = task.name if task.family == "suite" else rows.setdefault(text, task.name)
            text = f"{_variant(task)} {text if first == task.name else f'As {first}.'}".strip()
            dimensions = f"{task.state_dim or 'not counted'}, {task.action_dim}, {task.observation_dim}"
            cells = [task.name, task.origin, dimensions, str(task.control_timestep), text]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _variant(task: tasks.Task) -> str:
    """What a task is built with, where several are built alike: links 3, fixed."""
    builder = None if task.family == "suite" else _builder(task)
    if not isinstance(builder, functools.partial):
        return ""
    given = inspect.signature(builder.func).bind(*builder.args, **builder.keywords).arguments
    said = [name.replace("_", " ") if value is True else f"{name} {value}" for name, value in given.items() if value]
    return f"({', '.join(said)})" if said else ""


def _builder(task: tasks.Task) -> Callable:
    return importlib.import_module(f"pixel_ddpg.envs.tasks.{task.family}").TASKS[task.name]


def _docstrings(task: tasks.Task) -> list[str]:
    """What the code says of a task: of what builds it, and of its reward."""
    if task.family == "suite":
        return ["dm_control's own"]
    if sys.flags.optimize > 1:
        raise UserError("docs/tasks.md is made of docstrings, which python -OO leaves out: unset PYTHONOPTIMIZE")
    builder = _builder(task)
    said = [(builder.func if isinstance(builder, functools.partial) else builder).__doc__ or ""]
    if task.simulator == "mujoco":
        owner = type(task.load(0).task)
        said.append((inspect.getdoc(owner) or "") if owner.__module__.startswith("pixel_ddpg") else "")
    return said


def resources_table(folders: list[pathlib.Path]) -> str:
    """Markdown: memory and speed by preset, observation and machine: of runs with today's settings, where there are."""
    columns = ["preset", "from", "machine", "runs", "memory of a run", "a million frames of replay", "frames/s"]
    lines = [f"| {' | '.join([*columns, f'{FRAMES:,} frames'])} |", "|---|---|---|---|---|---|---|---|"]
    groups: dict[tuple[str, str, str], list[runs.Run]] = {}
    for run in _runs_in(folders):
        part = run.parts[-1]
        if any(row.updates_per_second for row in run.trains):
            host = part.gpu or f"{part.cpu}, {part.threads} thread{'s' * (part.threads != 1)}"
            groups.setdefault((*run.variant, host), []).append(run)
    for (preset, obs, host), found in sorted(groups.items()):
        found = [run for run in found if not run.changes] or found
        memory = max(row.memory_bytes for run in found for row in run.trains)
        million = max(replay_bytes(dataclasses.replace(run.settings, frames=1_000_000)) for run in found)
        speeds = [run.frames_per_second for run in found if run.frames_per_second]
        middle = float(np.median(speeds))
        cells = [preset, obs, host, str(len(found)), *(format_bytes(number) for number in (memory, million))]
        spread = f" ({min(speeds):.3g} to {max(speeds):.3g})" if len(speeds) > 1 else ""
        whole = [run.hours for run in found if run.is_whole and run.settings.frames == FRAMES]
        took = format_hours(float(np.median(whole))) if whole else f"over {format_hours(FRAMES / middle / 3600)}"
        cells += [f"{middle:.3g}{spread}", took]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_tables() -> str:
    """Markdown: for each machine that was measured, goals beside what was reached, and the paper's experiment."""
    parts = []
    for folder, of_machine in (
        (tables.FOLDER, (tables.goals, tables.paper_cost)),
        (tables.GPUS_FOLDER, (tables.gpu_goals, tables.paper_cost_on_gpus)),
    ):
        for path in sorted(folder.glob("*.json")):
            found = json.loads(path.read_bytes())
            facts = found["facts"]
            link = f"all tables: `{path.relative_to(ROOT).with_suffix('.md')}`"
            parts.append(f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores ({link}):")
            parts += [table(found) for table in of_machine]
    return "\n\n".join(parts)


def quick_note(found: runs.Found) -> str:
    """What `profile=quick` takes on two cores: so many runs as its first seed had, at the median of their hours."""
    seeds, said, total = PROFILES["quick"]["seeds"], [], 0.0
    for obs, count in sorted(collections.Counter(run.settings.obs for run in found.runs).items()):
        hours = float(np.median([run.hours for run in found.runs if run.settings.obs == obs]))
        said.append(f"{count} runs from {obs}, {format_hours(hours)} each")
        total += seeds * count * hours / 2
    return f"`profile=quick` is {seeds} seeds of {' and '.join(said)}: {format_hours(total)} on two cores."


def field_table() -> str:
    """Markdown: every field of a run's configuration, its default, its bounds and what it means."""
    lines = ["| field | default | may be | what it is |", "|---|---|---|---|"]
    for key, item in fields_of(Config).items():
        known, default = item.metadata, value_of(Config(), key)
        bounds = [f"at least {known['least']}"] if known["least"] is not None else []
        bounds += [f"at most {known['most']:,}"] if known["most"] is not None else []
        may_be = ", ".join(known["choices"]) or ", ".join(bounds)
        lines.append(f"| `{key}` | `{default}` | {may_be} | {known['text']} |")
    return "\n".join(lines)


def faults_table() -> str:
    """Markdown: each kind of fault, how often it was put in, how the commands ended, and what should not have been."""
    lines = ["| fault | tried | how it ended | failures | commit |", "|---|---|---|---|---|"]
    for name, row in json.loads((FOLDER / "faults.json").read_bytes()).items():
        ends = "; ".join(f"{end} {row[end]}" for end in row if end not in (*NO_ENDS, *MADE))
        lines.append(f"| {name} | {row['tried']:,} | {ends} | {len(row['failures'])} | {row['commit'][:9]} |")
    return "\n".join(lines)


def fill(path: pathlib.Path, name: str, text: str) -> None:
    """Replace what stands between <!-- name --> and <!-- end name -->; ValueError where they do not stand."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
    new, count = re.subn(pattern, lambda m: m[1] + text + "\n" + m[2], path.read_text("utf-8"), flags=re.S)
    if count != 1:
        raise ValueError(f"{path} has no <!-- {name} -->")
    files.write_atomically(path, new.encode())


@command("experiments.results", Results)
def main(options: Results) -> None:
    rendering.choose_backend()
    comparisons, screening = {obs: comparison_table(SIX, obs) for obs in PUBLISHED}, FOLDER / "screening"
    compared = page.make([str(FOLDER / "figure2")], FOLDER / "report")
    resources = resources_table([FOLDER / name for name in MEASURED])
    for path, name, text in (
        *(
            (path, obs, table)
            for path in (ROOT / "README.md", DOCS / "results.md")
            for obs, table in comparisons.items()
        ),
        (DOCS / "results.md", "figure2", page.summary(compared)),
        (DOCS / "speed.md", "resources", f"{resources}\n\n{quick_note(compared)}"),
        (DOCS / "speed.md", "speed", speed_tables()),
        (DOCS / "tasks.md", "paper", paper_table()),
        (DOCS / "tasks.md", "tasks", task_table()),
        (DOCS / "scores.md", "baselines", baseline_table()),
        (DOCS / "scores.md", "planet", planet_table()),
        (DOCS / "configuration.md", "fields", field_table()),
        (DOCS / "reliability.md", "faults", faults_table()),
        (FOLDER / "README.md", "provenance", provenance_table(SIX)),
        (FOLDER / "README.md", "figure2 provenance", provenance_table(FOLDER / "figure2")),
        (screening / "README.md", "tries", screening_table(screening)),
    ):
        fill(path, name, text)
    for path in tables.FOLDER.glob("*.json"):
        tables.write(path)
    for path in tables.GPUS_FOLDER.glob("*.json"):
        tables.write(path, tables.gpu)
    learning_curves(_runs_in([SIX]), DOCS / "learning_curves.png")
    shutil.copyfile(FOLDER / "report" / "figures" / "figure2.png", DOCS / "figure2.png")
    print(f"the tables and figures of {ROOT / 'README.md'}, {DOCS} and {FOLDER}")


if __name__ == "__main__":
    sys.exit(main())
