"""Atomic checkpoints: tensors as safetensors (which cannot run code), the rest as JSON, the replay in pieces.

checkpoints/000000050000/{tensors.safetensors,state.json}     the last two are kept
checkpoints/000000050000/SHA256SUMS                           of these and of its pieces: `sha256sum -c` reads it too
checkpoints/replay/000000000000-000000006300.safetensors      slots written since the last one; of several environments
checkpoints/replay/000000000000-000000006300.1.safetensors    each after the first has its number
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pixel_ddpg import config as configuration
from pixel_ddpg.agent.replay import Replay, Stream
from pixel_ddpg.config import Config
from pixel_ddpg.errors import UserError, warn
from pixel_ddpg.files import sync_folder, write_atomically
from pixel_ddpg.runtime.memory import element_bytes

FORMAT = 3  # 2 had no SHA256SUMS and 1 one environment and no list of them; they are read too
SUMS = "SHA256SUMS"
KEPT = 2
SAME = {"device": ("trained", "on"), "replay_device": ("started with its replay", "on"), "precision": ("trained", "in")}
START_AGAIN = "start again with resume=false overwrite=true"
PIECE_BYTES = 2**26  # of the replay at a time: saving needs three times as much memory beside it


def save_checkpoint(run_dir: pathlib.Path, frame: int, tensors: dict[str, Tensor], state: dict, replay: Replay) -> None:
    """Write a checkpoint; of the replay only what came since the last one."""
    root = run_dir / "checkpoints"
    (root / "replay").mkdir(parents=True, exist_ok=True)
    last = newest(run_dir)
    known = _pieces(last) if last else []
    sums_before = (_sums(last) if last else None) or {}
    slot_bytes = element_bytes(replay.elements.shape[1:], replay.actions.shape[1])
    now: list[list[int]] = []
    sums: dict[str, str] = {}
    for number, stream in enumerate(replay.streams):
        own = [number] if number else []  # as before there were several
        ranges = next_pieces([piece[:2] for piece in known if piece[2:] == own], stream, slot_bytes)
        for piece in (each + own for each in ranges):
            path = _piece(run_dir, piece)
            if piece not in known:
                _write(path, save(stream.slots_between(*piece[:2])), sums)
            else:
                sums[_name(path)] = sums_before.get(_name(path)) or _digest(path.read_bytes())
            now.append(piece)
    state = state | {"format": FORMAT, "replay_pieces": now, "replay": replay.state_dict()}

    target = root / f"{frame:012d}"
    if last and frame_of(last) == frame:
        target = target.with_suffix(f".{_repeat_of(last) + 1}")
    temporary = root / f".{frame:012d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(exist_ok=True)  # what could not be deleted
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(temporary / "tensors.safetensors", save(contiguous), sums)
    _write(temporary / "state.json", json.dumps(state).encode(), sums)
    write_atomically(temporary / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())
    os.replace(temporary, target)
    sync_folder(root)
    tidy(run_dir)


def next_pieces(known: list[list[int]], stream: Stream, slot_bytes: int) -> list[list[int]]:
    """[first, end] of the pieces that hold a stream: those that still matter and, if slots came since, new ones."""
    oldest = stream.next_slot - stream.slots
    kept = [piece for piece in known if piece[1] > oldest]
    if kept and kept[-1][1] == stream.next_slot:
        return kept
    first = max(0, oldest, kept[-1][1] - 1 if kept else 0)  # the last known slot had no action yet
    # two slots or more, so that a new piece never has the name of the last known one
    length = max(2, PIECE_BYTES // slot_bytes)
    firsts = range(first, stream.next_slot, length)
    return kept + [[first, min(first + length, stream.next_slot)] for first in firsts]


def tidy(run_dir: pathlib.Path) -> None:
    """Delete all but the last two checkpoints, and pieces of the replay that neither of these names."""
    found = checkpoints(run_dir)
    named = {_piece(run_dir, piece).name for path in found[-KEPT:] for piece in _pieces(path)}
    for path in [*found[:-KEPT], *(run_dir / "checkpoints").glob(".*.tmp")]:
        _discard(path)
    for path in (run_dir / "checkpoints" / "replay").iterdir():
        if path.name not in named:
            with contextlib.suppress(OSError):  # as in _discard; or a folder that some server puts everywhere
                path.unlink()


def _discard(path: pathlib.Path) -> None:
    """Delete a folder; what a network disk keeps, as another process reads it, is hidden until `tidy` tries again."""
    hidden = path if path.suffix == ".tmp" else path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(OSError):
        path.rename(hidden)
    for each in (path, hidden):
        shutil.rmtree(each, ignore_errors=True)


def drop_replay(run_dir: pathlib.Path) -> None:
    """Keep only what acting takes: the newest checkpoint's networks. The run cannot be resumed."""
    *others, last = checkpoints(run_dir)
    for path in [*others, run_dir / "checkpoints" / "replay"]:
        _discard(path)
    lines = (last / SUMS).read_text("ascii").splitlines(keepends=True)
    write_atomically(last / SUMS, "".join(line for line in lines if "../replay/" not in line).encode())


def checkpoints(run_dir: pathlib.Path) -> list[pathlib.Path]:
    """Complete checkpoints, oldest first; a second one of the same frame is called <frame>.1."""
    root = run_dir / "checkpoints"
    found = (path for path in root.iterdir() if re.fullmatch(r"\d{12}(\.\d+)?", path.name)) if root.is_dir() else ()
    return sorted(found, key=lambda path: (frame_of(path), _repeat_of(path)))


def frame_of(path: pathlib.Path) -> int:
    """The frame a checkpoint was made at."""
    return int(path.stem)


def _repeat_of(path: pathlib.Path) -> int:
    return int(path.suffix[1:] or 0)


def disk_bytes(run_dir: pathlib.Path) -> int:
    """What a run's checkpoints and its replay take of the disk."""
    return sum(path.stat().st_size for path in pathlib.Path(run_dir, "checkpoints").rglob("*") if path.is_file())


def newest(run_dir: pathlib.Path) -> pathlib.Path | None:
    """The last complete checkpoint."""
    found = checkpoints(run_dir)
    return found[-1] if found else None


def fraction_left(run_dir: pathlib.Path, frames: int) -> float:
    """The fraction of a run of this many frames that comes after its newest checkpoint."""
    found = newest(run_dir)
    return max(0.0, 1 - frame_of(found) / frames) if found else 1.0


def has_replay(run_dir: pathlib.Path) -> bool:
    """Whether a run can be resumed: see drop_replay."""
    return (run_dir / "checkpoints" / "replay").exists()


def load_checkpoint(
    run_dir: pathlib.Path, config: Config, replay: Replay | None = None, facts: dict[str, str] | None = None
) -> tuple[dict[str, Tensor], dict]:
    """Tensors, on the CPU, and state of the newest checkpoint that is whole; UserError if none is.

    UserError, too, for one of another run than `config` is of. Whoever trains here gives the replay, which is filled,
    and the facts that must be as they were (see SAME); newer checkpoints that are damaged are then deleted.
    """
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir} has no checkpoint yet: a run saves one every checkpoint_minutes= and at its end")
    if replay is not None and not has_replay(run_dir):
        raise UserError(
            f"{run_dir} has ended and its replay was deleted, so it cannot be resumed: choose another folder, or "
            f"{START_AGAIN}"
        )
    damaged: list[pathlib.Path] = []
    for path in reversed(found):
        try:
            sums = _sums(path)
            state = _read_state(path, sums)
            _refuse_others(path, state, config, facts or {})
            tensors = load(_read(path / "tensors.safetensors", sums))
            if replay is not None:
                _load_replay(path, state, sums, replay)
                for newer in damaged:
                    _discard(newer)
            return tensors, state
        except (FileNotFoundError, ValueError, SafetensorError) as error:
            if replay is None and not path.exists():  # the run still trains, and has deleted it
                return load_checkpoint(run_dir, config)
            then = "" if path == found[0] else "; trying the one before"
            warn(f"{path} cannot be read ({error}){then}")
            damaged.append(path)
        except OSError as error:  # it may pass: a network disk, too many open files
            raise UserError(f"{path} cannot be read ({error}); nothing was changed, try again", code=1) from None
    then = "" if replay is None else f": {START_AGAIN}"
    raise UserError(f"no checkpoint in {run_dir} can be read{then}", code=1)


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors whose names begin with it, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_others(path: pathlib.Path, state: dict, config: Config, facts: dict[str, str]) -> None:
    """UserError for a checkpoint of another version or run, or of a run that would not resume the same here."""
    if state.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} was written by another version (format {state.get('format')}, this one reads {FORMAT}): "
            f"use that version, or {START_AGAIN}"
        )
    saved_with = configuration.from_yaml(state["config"]) if "config" in state else config
    if changed := configuration.differences(saved_with, config):
        raise UserError(
            f"{path} was saved with {' '.join(changed)}, which the run's config.yaml does not say: put back the one "
            f"that belongs there, or {START_AGAIN}",
            code=1,
        )
    for what, here in facts.items():
        if state.get(what, here) != here:
            done, where = SAME[what]
            raise UserError(
                f"{path.parents[1]} was {done} {where} {state[what]}, not {where} {here}: it resumes only with that"
            )


def _load_replay(path: pathlib.Path, state: dict, sums: dict[str, str] | None, replay: Replay) -> None:
    for piece in state["replay_pieces"]:
        stream = replay.streams[piece[2] if len(piece) > 2 else 0]
        stream.load_slots(piece[0], load(_read(_piece(path.parents[1], piece), sums)))
    replay.load_state_dict(state["replay"])


def _piece(run_dir: pathlib.Path, piece: list[int]) -> pathlib.Path:
    name = ".".join([f"{piece[0]:012d}-{piece[1]:012d}", *map(str, piece[2:]), "safetensors"])
    return run_dir / "checkpoints" / "replay" / name


def _pieces(path: pathlib.Path) -> list[list[int]]:
    """Of the replay, what a checkpoint names; nothing where it is damaged, as it cannot be resumed."""
    try:
        return _read_state(path, _sums(path))["replay_pieces"]
    except (ValueError, FileNotFoundError):
        return []


def _read_state(path: pathlib.Path, sums: dict[str, str] | None) -> dict:
    state = json.loads(_read(path / "state.json", sums))
    if not isinstance(state, dict):
        raise ValueError("state.json holds no state")
    if state.get("format") == FORMAT and sums is None:
        raise ValueError(f"its {SUMS} is gone")
    return state


def _write(path: pathlib.Path, data: bytes, sums: dict[str, str]) -> None:
    """Write a file, and put its SHA-256 among the sums."""
    write_atomically(path, data)
    sums[_name(path)] = _digest(data)


def _read(path: pathlib.Path, sums: dict[str, str] | None) -> bytes:
    """A file of a checkpoint; ValueError for one that is not as it was written."""
    data = path.read_bytes()
    if sums is not None and sums.get(_name(path)) != _digest(data):
        raise ValueError(f"{path.name} is not as it was written")
    return data


def _name(path: pathlib.Path) -> str:
    """A file's name in SHA256SUMS: relative to the checkpoint."""
    return f"../replay/{path.name}" if path.parent.name == "replay" else path.name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sums(path: pathlib.Path) -> dict[str, str] | None:
    """The SHA-256 of each of a checkpoint's files; None where an older version wrote none."""
    try:
        lines = (path / SUMS).read_text("ascii").splitlines()
    except FileNotFoundError:
        return None
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
