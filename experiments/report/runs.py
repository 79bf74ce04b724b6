"""Folders of runs, read back: all that tables, figures and reports know of them."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from experiments.profiles import CONTROLS
from experiments.report import statistics
from pixel_ddpg import config, presets
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError, warn
from pixel_ddpg.planning import baselines
from pixel_ddpg.training import run_folder
from pixel_ddpg.training.rows import EvalRow, PartRow, Row, TrainRow, ValuesRow, read_rows

Curve = list[tuple[int, float]]  # (frame, value)
Variant = tuple[str, str]  # (preset, obs)
PLANS = "suite.json"  # in the folder of a suite: its commands, and the runs that each wants


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: pathlib.Path
    settings: config.Config
    rows: tuple[Row, ...]  # one or more

    @property
    def task(self) -> str:
        return self.settings.task

    @property
    def variant(self) -> Variant:
        """(preset, obs)."""
        return self.settings.preset, self.settings.obs

    @property
    def frame(self) -> int:
        """Where it stands."""
        return self.rows[-1].frame

    @property
    def hours(self) -> float:
        """Wall clock so far."""
        return self.rows[-1].hours

    @property
    def is_whole(self) -> bool:
        """Whether it was evaluated at the end of its budget."""
        return bool(self.curve) and self.curve[-1][0] >= self.settings.frames

    @property
    def curve(self) -> Curve:
        """Mean returns of the evaluations."""
        return [(row.frame, row.return_) for row in self.evals if row.return_ is not None]

    @property
    def hours_curve(self) -> list[tuple[float, float]]:
        """The same over hours of wall clock."""
        return [(row.hours, row.return_) for row in self.evals if row.return_ is not None]

    @property
    def evaluated(self) -> int:
        """The frame of its last evaluation; 0 before the first."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def final(self) -> float | None:
        """Mean return of the last evaluation of a whole run."""
        return self.curve[-1][1] if self.is_whole else None

    @property
    def score(self) -> float | None:
        """`final` as a score; None where the task has no measured baselines."""
        return None if self.final is None else baselines.score(self.task, self.final)

    @property
    def frames_per_second(self) -> float | None:
        """Of the second half of its episodes together, evaluations left out."""
        frames, seconds, before = 0, 0.0, 0
        for number, row in enumerate(self.trains):
            if number >= len(self.trains) // 2 and row.frames_per_second:
                frames += row.frame - before
                seconds += (row.frame - before) / row.frames_per_second
            before = row.frame
        return frames / seconds if seconds else None

    @property
    def video(self) -> pathlib.Path | None:
        """The film of its last evaluation, if that was filmed."""
        film = self.folder / "videos" / f"{self.evaluated}.mp4"
        return film if film.exists() else None

    @property
    def values(self) -> ValuesRow | None:
        """Estimated Q and observed returns of its last evaluation, if they were recorded."""
        found = [row for row in self.rows if isinstance(row, ValuesRow) and row.frame == self.evaluated]
        return found[-1] if found else None

    @functools.cached_property
    def trains(self) -> list[TrainRow]:
        """One an episode."""
        return [row for row in self.rows if isinstance(row, TrainRow)]

    @functools.cached_property
    def evals(self) -> list[EvalRow]:
        """One an evaluation."""
        return [row for row in self.rows if isinstance(row, EvalRow)]

    @functools.cached_property
    def parts(self) -> list[PartRow]:
        """Commit, versions and machine of each of its parts: a resumed run has one more."""
        return [row for row in self.rows if isinstance(row, PartRow)]

    @property
    def commits(self) -> list[str]:
        """Those it was made with, in their order."""
        return list(dict.fromkeys((part.commit or "unknown")[:9] for part in self.parts)) or ["unknown"]

    @property
    def command(self) -> str:
        """What makes it again."""
        changes = [word.replace(", ", ",") for word in self.changes]
        return f"python -m pixel_ddpg.run {shlex.join([*self.words, *changes])}"

    @property
    def words(self) -> list[str]:
        settings = self.settings
        words = [f"task={settings.task}", f"obs={settings.obs}", f"preset={settings.preset}", f"seed={settings.seed}"]
        return [*words, f"frames={settings.frames}", f"threads={settings.threads}"]

    @functools.cached_property
    def changes(self) -> list[str]:
        """The fields, as key=value, in which it differs from its preset, as that is now, with its action repeat."""
        return presets.changes(self.settings)


def find(folders: list[str]) -> list[pathlib.Path]:
    """The folders at or below the given ones that hold a run."""
    found = []
    for folder in sorted({path.parent for path in _files(folders, "metrics.jsonl")}):
        if (folder / "config.yaml").exists():
            found.append(folder)
        else:
            warn(f"{folder} has rows but no config.yaml: it is left out")
    return found


def _files(folders: list[str], name: str) -> Iterator[pathlib.Path]:
    """All of that name at or below the folders, also behind links; each folder once."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a run has just deleted it
            raise error

    seen = set()
    walk = functools.partial(os.walk, onerror=refuse, followlinks=True)
    for root, below, names in itertools.chain.from_iterable(map(walk, folders)):
        if (real := os.path.realpath(root)) in seen:
            below.clear()
        elif name in names:
            yield pathlib.Path(root, name)
        seen.add(real)


def read(folder: pathlib.Path) -> Run:
    """One of them; UserError for one that is damaged, empty, or whose task or preset is unknown here."""
    settings = run_folder.read_config(folder)
    if settings.task not in tasks.CATALOGUE or (settings.preset, settings.obs) not in presets.SETTINGS:
        what = f"task={settings.task} preset={settings.preset} obs={settings.obs}"
        raise UserError(f"{folder / 'config.yaml'} is damaged or of another version: it says {what}", code=1)
    rows = tuple(read_rows(folder / "metrics.jsonl"))
    if not rows:
        raise UserError(f"{folder / 'metrics.jsonl'} has no rows", code=1)
    return Run(folder, settings, rows)


def read_all(folders: list[str]) -> tuple[list[Run], list[str]]:
    """The runs at or below the folders, and the folders of those that cannot be read, with a warning for each.

    UserError where there is no run.
    """
    found, left_out = [], []
    for folder in find(folders):
        try:
            found.append(read(folder))
        except UserError as error:
            warn(f"{folder} is left out: {error}")
            left_out.append(str(folder))
    if not found:
        raise UserError(f"no runs in {', '.join(folders)}")
    return found, left_out


def read_plans(path: pathlib.Path) -> dict[str, list[tuple]]:
    """What a suite wants: (task, obs, preset, seed) of each run, by command; UserError for a damaged file."""
    try:
        return {
            command: [(task, obs, preset, int(seed)) for task, obs, preset, seed in wanted]
            for command, wanted in json.loads(path.read_bytes()).items()
        }
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete it and run this again", code=1) from None


@dataclass
class Found:
    """All runs of a report, and those that a suite's plan wants."""

    runs: list[Run]
    wanted: list[tuple[str, str, str, int]]  # (task, obs, preset, seed)
    commands: list[str]  # of the suites
    main: str  # the preset that is compared
    left_out: list[str]  # folders of runs that cannot be read

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
        name = CONTROLS.get(self.main, "")
        return (name, "state") if (name, "state") in self.variants else None

    def of(self, task: str, variant: Variant | None) -> list[Run]:
        """By seed."""
        found = [run for run in self.runs if run.task == task and run.variant == variant]
        return sorted(found, key=lambda run: run.settings.seed)

    def like(self, names: list[str]) -> list[str]:
        """The tasks that are the same as one of these, in their order: some have a name of dm_control's too."""
        same = [tasks.find(name).same_as for name in names]
        found = [task for task in self.tasks if tasks.find(task).same_as in same]
        return sorted(found, key=lambda task: same.index(tasks.find(task).same_as))

    def ordered(self, task: str) -> list[Run]:
        """A task's runs by variant."""
        return [run for variant in self.variants for run in self.of(task, variant)]

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
    found, left_out = read_all(folders)
    seen: dict[tuple, Run] = {}
    for run in found:
        other = seen.setdefault((run.task, run.variant, run.settings.seed), run)
        if other is not run:
            words = " ".join(config.differences(other.settings, run.settings))
            differ = f"they differ in {words}" if words else "one may be a copy"
            raise UserError(f"{other.folder} and {run.folder} are the same task, variant and seed ({differ}): name one")
    plans: dict[str, list[tuple]] = {}
    for path in sorted(_files(folders, PLANS)):
        plans |= read_plans(path)
    wanted = list(dict.fromkeys(each for plan in plans.values() for each in plan))
    names = [run.settings.preset for run in found]
    if preset and preset not in names:
        raise UserError(f"no run of preset {preset}; there are {', '.join(dict.fromkeys(names))}")
    names += [preset for task, obs, preset, seed in wanted if (task, (preset, obs), seed) not in seen]
    controls = {CONTROLS.get(name) for name in names}
    subjects = [name for name in presets.PRESETS if name in names and name not in controls]
    main = preset or max(subjects, key=names.count)
    return Found(found, wanted, list(plans), main, left_out)


def changes_since(found: list[Run]) -> str:
    """A sentence on runs that differ from what their preset is now; empty where there are none."""
    changed = [run for run in found if run.changes]
    words = sorted({word for run in changed for word in run.changes})
    return f"Runs with settings other than their preset's today: {len(changed)} ({' '.join(words)})." if words else ""


def mixed(found: Iterable[Run]) -> Iterator[tuple[Run, Run, list[str]]]:
    """Two runs of one task and variant, and the settings of the first that differ: a mean of them would say nothing."""
    first: dict[tuple, Run] = {}
    for run in found:
        other = first.setdefault((run.task, *run.variant), run)
        same_seed = dataclasses.replace(run.settings, seed=other.settings.seed)
        words = config.differences(other.settings, same_seed)
        if run.settings.frames != other.settings.frames:  # over which schedules span
            words.append(f"frames={other.settings.frames}")
        if words:
            yield other, run, words
