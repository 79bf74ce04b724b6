"""Atomic checkpoints: tensors as safetensors (which cannot run code), the rest as JSON, the replay in pieces.

checkpoints/000000050000/{tensors.safetensors,state.json}     the last two are kept
checkpoints/replay/000000000000-000000006300.safetensors      slots written since the last one; of several environments
checkpoints/replay/000000000000-000000006300.1.safetensors    each after the first has its number
"""

import json
import os
import pathlib
import re
import shutil
import sys

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pixel_ddpg.agent.replay import Replay, Stream
from pixel_ddpg.errors import UserError
from pixel_ddpg.files import sync_folder, write_atomically
from pixel_ddpg.runtime.memory import element_bytes

FORMAT = 2  # 1 had one environment and no list of them; it is read too
KEPT = 2
START_AGAIN = "start again with resume=false overwrite=true"
PIECE_BYTES = 2**26  # of the replay at a time: saving needs three times as much memory beside it


def save_checkpoint(run_dir: pathlib.Path, frame: int, tensors: dict[str, Tensor], state: dict, replay: Replay) -> None:
    """Write a checkpoint; of the replay only what came since the last one."""
    root = run_dir / "checkpoints"
    pieces = root / "replay"
    pieces.mkdir(parents=True, exist_ok=True)
    last = newest(run_dir)
    known = _read_state(last)["replay_pieces"] if last else []
    slot_bytes = element_bytes(replay.elements.shape[1:], replay.actions.shape[1])
    now = []
    for number, stream in enumerate(replay.streams):
        own = [number] * (number > 0)
        ranges = next_pieces([piece[:2] for piece in known if piece[2:] == own], stream, slot_bytes)
        for piece in ranges:
            if piece + own not in known:
                write_atomically(_piece(run_dir, piece + own), save(stream.slots_between(*piece)))
        now += [piece + own for piece in ranges]
    state = state | {
        "format": FORMAT, "replay_pieces": now, "replay": replay.state_dict(), "replay_device": replay.device.type
    }  # fmt: skip

    target = root / f"{frame:012d}"
    if last and frame_of(last) == frame:
        target = target.with_suffix(f".{_repeat_of(last) + 1}")
    temporary = root / f".{frame:012d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(temporary / "tensors.safetensors", save(contiguous))
    write_atomically(temporary / "state.json", json.dumps(state).encode())
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
    named = {_piece(run_dir, piece).name for path in found[-KEPT:] for piece in _read_state(path)["replay_pieces"]}
    for path in [*found[:-KEPT], *(run_dir / "checkpoints").glob(".*.tmp")]:
        shutil.rmtree(path)
    for path in (run_dir / "checkpoints" / "replay").iterdir():
        if path.name not in named:
            path.unlink()


def drop_replay(run_dir: pathlib.Path) -> None:
    """Keep only what acting takes: the newest checkpoint's networks. The run cannot be resumed."""
    for path in checkpoints(run_dir)[:-1]:
        shutil.rmtree(path)
    shutil.rmtree(run_dir / "checkpoints" / "replay", ignore_errors=True)


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


def to_do(run_dir: pathlib.Path, frames: int) -> float:
    """The share of a run of this many frames that comes after its newest checkpoint."""
    found = newest(run_dir)
    return max(0.0, 1 - frame_of(found) / frames) if found else 1.0


def has_replay(run_dir: pathlib.Path) -> bool:
    """Whether a run can be resumed: see drop_replay."""
    return (run_dir / "checkpoints" / "replay").exists()


def load_checkpoint(
    run_dir: pathlib.Path, device: torch.device | str = "cpu", replay: Replay | None = None
) -> tuple[dict[str, Tensor], dict]:
    """Tensors and state of the newest checkpoint that can be read; UserError if none can.

    Whoever trains here gives the replay: it is filled, and newer checkpoints that cannot be read are deleted.
    """
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir} has no checkpoint")
    if replay is not None and not has_replay(run_dir):
        raise UserError(
            f"{run_dir} has ended and its replay was deleted, so it cannot be resumed: choose another folder, or "
            f"{START_AGAIN}"
        )
    unreadable: list[pathlib.Path] = []
    for path in reversed(found):
        try:
            state = _read_state(path)
            if state.get("format") not in (1, FORMAT):
                raise UserError(
                    f"{path} was written by another version (format {state.get('format')}, this one reads {FORMAT}): "
                    f"use that version, or {START_AGAIN}"
                )
            if replay is not None:
                _refuse_other_devices(run_dir, state, torch.device(device), replay)
            tensors = load_file(path / "tensors.safetensors", device=str(device))
            if replay is not None:
                _load_replay(run_dir, state, replay)
                for newer in unreadable:
                    shutil.rmtree(newer)
            return tensors, state
        except (FileNotFoundError, ValueError, SafetensorError) as error:
            then = "" if path == found[0] else "; trying the one before"
            print(f"pixel_ddpg: {path} cannot be read ({error}){then}", file=sys.stderr)
            unreadable.append(path)
        except OSError as error:  # it may pass: a network disk, too many open files
            raise UserError(f"{path} cannot be read ({error}); nothing was changed, try again", code=1) from None
    raise UserError(f"no checkpoint in {run_dir} can be read: {START_AGAIN}", code=1)


def without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors whose names begin with it, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_other_devices(run_dir: pathlib.Path, state: dict, device: torch.device, replay: Replay) -> None:
    """Random streams resume only on the kind of device that they began on."""
    for what, here in (("device", device.type), ("replay_device", replay.device.type)):
        if state.get(what, here) != here:
            word = "trained" if what == "device" else "begun with its replay"
            raise UserError(
                f"{run_dir} was {word} on {state[what]}, not on {here}; its random streams resume only there"
            )


def _load_replay(run_dir: pathlib.Path, state: dict, replay: Replay) -> None:
    for piece in state["replay_pieces"]:
        stream = replay.streams[piece[2] if len(piece) > 2 else 0]
        stream.load_slots(piece[0], load_file(_piece(run_dir, piece)))
    replay.load_state_dict(state["replay"])


def _piece(run_dir: pathlib.Path, piece: list[int]) -> pathlib.Path:
    name = ".".join([f"{piece[0]:012d}-{piece[1]:012d}", *map(str, piece[2:]), "safetensors"])
    return run_dir / "checkpoints" / "replay" / name


def _read_state(path: pathlib.Path) -> dict:
    state = json.loads((path / "state.json").read_text())
    if not isinstance(state, dict):
        raise ValueError("state.json holds no state")
    return state
