"""The rows of metrics.jsonl: one dataclass for each kind, and how they are read back."""

import dataclasses
import json
import pathlib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pixel_ddpg.errors import UserError


@dataclass
class Row:
    """Where a run stood."""

    kind: ClassVar[str] = ""
    frame: int = 0
    step: int = 0
    update: int = 0
    hours: float = 0.0  # wall clock, summed over all parts of the run

    def as_json(self) -> dict[str, Any]:
        """What stands in the file; `return_` is called return there."""
        named = {name.rstrip("_"): value for name, value in vars(self).items()}
        return {"kind": self.kind, **named}


@dataclass
class TrainRow(Row):
    """An episode has ended: its return, and means over the updates since the one before."""

    kind = "train"
    return_: float = 0.0
    critic_loss: float | None = None
    actor_loss: float | None = None
    q: float | None = None
    td_error: float | None = None
    pre_tanh: float | None = None
    saturated: float | None = None
    inverse_loss: float | None = None
    reconstruction_loss: float | None = None
    model_loss: float | None = None
    frames_per_second: float = 0.0
    updates_per_second: float = 0.0
    memory_bytes: int = 0


@dataclass
class EvalRow(Row):
    """An evaluation without noise."""

    kind = "eval"
    return_: float = 0.0  # the mean
    returns: list[float] = field(default_factory=list)
    length: float = 0.0  # frames, the mean


@dataclass
class ValuesRow(Row):
    """Q(s, a) and the discounted return that followed, of some steps of the last evaluation."""

    kind = "values"
    q: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)


@dataclass
class PartRow(Row):
    """A part of the run begins: commit, versions and machine that it is made with."""

    kind = "run"
    commit: str | None = None
    python: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    platform: str | None = None
    cpu: str | None = None
    cores: int | None = None
    ram_bytes: int | None = None
    gpu: str | None = None
    device: str | None = None
    threads: int | None = None
    drawn_by: str | None = None
    precision: str | None = None  # what agent.precision=auto was


NEEDED = {"frame", "return"}  # by all kinds that have them
KINDS: dict[str, type[Row]] = {kind.kind: kind for kind in (TrainRow, EvalRow, ValuesRow, PartRow)}


def row_of(found: dict[str, Any]) -> Row:
    """A row as it stood in the file; keys of other versions are left out. ValueError for what is no whole row."""
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str) or found["kind"] not in KINDS:
        raise ValueError("no row")
    kind = KINDS[found["kind"]]
    items = {item.name.rstrip("_"): item for item in dataclasses.fields(kind)}
    known = {key: value for key, value in found.items() if key in items}
    whole = NEEDED & items.keys() <= known.keys() and known.get("hours", 0) is not None
    if not whole or not all(_fits(value, items[key].type) for key, value in known.items()):
        raise ValueError("no row")
    return kind(**{items[key].name: value for key, value in known.items()})


def _fits(value: Any, declared: Any) -> bool:
    """Whether a value has its field's type; a number that was not finite is null."""
    if isinstance(declared, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(declared))
    if typing.get_origin(declared) is list:
        return isinstance(value, list) and all(_fits(each, *typing.get_args(declared)) for each in value)
    if typing.get_origin(declared) is dict:
        return isinstance(value, dict) and all(_fits(each, typing.get_args(declared)[1]) for each in value.values())
    if declared in (int, float):
        is_number = isinstance(value, int | declared) and abs(value) < 1e300  # more is no float, or not finite
        return is_number or (value is None and declared is float)
    return isinstance(value, declared)


def read_rows(path: pathlib.Path) -> list[Row]:
    """All whole rows of a metrics.jsonl; a line that a crash cut short is left out."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
        if line.endswith(b"\n"):
            try:
                rows.append(row_of(json.loads(line)))
            except ValueError:
                raise UserError(
                    f"{path}: line {number} is damaged, or of another version; delete that line and run this again",
                    code=1,
                ) from None
    return rows
