"""Folders of runs, read back: all that tables, figures and reports know of them."""

import functools
import pathlib
from dataclasses import dataclass

from pixel_ddpg import baseline, config, trainer
from pixel_ddpg.logger import read_rows

Curve = list[tuple[int, float]]  # (frame, value)


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: pathlib.Path
    settings: config.Config
    rows: tuple[dict, ...]

    @property
    def task(self) -> str:
        return self.settings.task

    @property
    def variant(self) -> tuple[str, str]:
        """(preset, obs)."""
        return self.settings.preset, self.settings.obs

    @property
    def frame(self) -> int:
        """Where it stands."""
        return self.rows[-1]["frame"] if self.rows else 0

    @property
    def hours(self) -> float:
        """Wall clock so far."""
        return self.rows[-1]["hours"] if self.rows else 0.0

    @property
    def is_whole(self) -> bool:
        """Whether it was evaluated at the end of its budget."""
        return bool(self.curve) and self.curve[-1][0] >= self.settings.frames

    @property
    def curve(self) -> Curve:
        """Mean returns of the evaluations."""
        return [(row["frame"], row["return"]) for row in self.of_kind("eval")]

    @property
    def hours_curve(self) -> Curve:
        """The same over hours of wall clock."""
        return [(row["hours"], row["return"]) for row in self.of_kind("eval")]

    @property
    def final(self) -> float | None:
        """Mean return of the last evaluation of a whole run."""
        return self.curve[-1][1] if self.is_whole else None

    @property
    def score(self) -> float | None:
        """`final` as a score; None where the task has no measured baselines."""
        return None if self.final is None else score(self.task, self.final)

    @property
    def frames_per_second(self) -> float | None:
        """Mean while training, evaluations left out."""
        train = self.of_kind("train")
        speeds = [row["frames_per_second"] for row in train[len(train) // 2 :]]
        return sum(speeds) / len(speeds) if speeds else None

    @property
    def video(self) -> pathlib.Path | None:
        """The last film of its policy."""
        films = sorted(self.folder.glob("videos/*.mp4"), key=lambda path: path.stat().st_mtime)
        return films[-1] if films else None

    def of_kind(self, kind: str) -> list[dict]:
        """The rows of metrics.jsonl of one kind."""
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def facts(self) -> dict:
        """Commit, versions and machine of its last part."""
        return (self.of_kind("run") or [{}])[-1]

    @property
    def command(self) -> str:
        """What makes it again, but for what it has changed from its preset."""
        return " ".join(["python -m pixel_ddpg.run", *self.words, *self.changes])

    @property
    def words(self) -> list[str]:
        settings = self.settings
        words = [f"task={settings.task}", f"obs={settings.obs}", f"preset={settings.preset}", f"seed={settings.seed}"]
        return [*words, f"frames={settings.frames}", f"threads={settings.threads}"]

    @functools.cached_property
    def changes(self) -> list[str]:
        """The fields, as key=value, in which it differs from its preset as that is now."""
        return config.differences(self.settings, config.compose(self.words))


references = functools.cache(baseline.references)


def score(task: str, value: float) -> float | None:
    """As baseline.score, which reads the references anew each time."""
    if (ends := references(task)) is None:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def find(folders: list[str]) -> list[pathlib.Path]:
    """The folders at or below the given ones that hold a run."""
    return sorted({path.parent for folder in folders for path in pathlib.Path(folder).rglob("metrics.jsonl")})


def read(folder: pathlib.Path) -> Run:
    """One of them."""
    return Run(folder, trainer.read_config(folder), tuple(read_rows(folder / "metrics.jsonl")))
