"""Atomic checkpoints: tensors as safetensors (which cannot run code), the rest as JSON, the replay in pieces.

checkpoints/000000050000/{tensors.safetensors,state.json}     the last two are kept
checkpoints/replay/000000000000-000000006300.safetensors      slots; each is written once
"""

import json
import os
import pathlib
import shutil
import sys

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pixel_ddpg.config import UserError
from pixel_ddpg.replay import Replay

FORMAT = 1
KEPT = 2


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """All of `data` or nothing is at `path`, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(run_dir: pathlib.Path, frame: int, tensors: dict[str, Tensor], state: dict, replay: Replay) -> None:
    """Write a checkpoint; of the replay only what came since the last one."""
    root = run_dir / "checkpoints"
    pieces = root / "replay"
    pieces.mkdir(parents=True, exist_ok=True)
    last = newest(run_dir)
    known = _read_state(last)["replay_pieces"] if last else []
    oldest = replay.next_slot - replay.slots
    known = [piece for piece in known if piece[1] > oldest]
    first = max(0, oldest, known[-1][1] - 1 if known else 0)  # the last known slot had no action yet
    if not known or known[-1][1] < replay.next_slot:
        known.append([first, replay.next_slot])
        write_atomically(_piece(run_dir, known[-1]), save(replay.slots_since(first)))
    state = state | {"format": FORMAT, "replay_pieces": known, "replay": replay.state_dict()}

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
    _sync_folder(root)
    tidy(run_dir)


def tidy(run_dir: pathlib.Path) -> None:
    """Delete all but the last two checkpoints, and pieces of the replay that neither of these names."""
    kept = checkpoints(run_dir)[-KEPT:]
    named = {_piece(run_dir, piece).name for path in kept for piece in _read_state(path)["replay_pieces"]}
    for path in (run_dir / "checkpoints").iterdir():
        if path.name != "replay" and path not in kept:
            shutil.rmtree(path)
    for path in (run_dir / "checkpoints" / "replay").iterdir():
        if path.name not in named:
            path.unlink()


def checkpoints(run_dir: pathlib.Path) -> list[pathlib.Path]:
    """Complete checkpoints, oldest first; a second one of the same frame is called <frame>.1."""
    root = run_dir / "checkpoints"
    found = (path for path in root.iterdir() if path.name[0].isdigit()) if root.is_dir() else ()
    return sorted(found, key=lambda path: (frame_of(path), _repeat_of(path)))


def frame_of(path: pathlib.Path) -> int:
    """The frame a checkpoint was made at."""
    return int(path.stem)


def _repeat_of(path: pathlib.Path) -> int:
    return int(path.suffix[1:] or 0)


def newest(run_dir: pathlib.Path) -> pathlib.Path | None:
    """The last complete checkpoint."""
    return (checkpoints(run_dir) or [None])[-1]


def load_checkpoint(
    run_dir: pathlib.Path, device: torch.device | str = "cpu", replay: Replay | None = None
) -> tuple[dict[str, Tensor], dict]:
    """Tensors and state of the newest checkpoint that can be read; UserError if none can.

    Whoever trains here gives the replay: it is filled, and checkpoints that cannot be read are deleted.
    """
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"{run_dir} has no checkpoint")
    for path in reversed(found):
        try:
            state = _read_state(path)
            if state.get("format") != FORMAT:
                raise UserError(
                    f"{path} was written by another version (format {state.get('format')}, this one reads {FORMAT}): "
                    "use that version, or start anew with resume=false overwrite=true"
                )
            if replay is not None and state["device"] != torch.device(device).type:
                raise UserError(f"{run_dir} was trained on {state['device']}; its random streams go on only there")
            tensors = load_file(path / "tensors.safetensors", device=str(device))
            if replay is not None:
                _load_replay(run_dir, state, replay)
            return tensors, state
        except (OSError, ValueError, SafetensorError) as error:
            print(f"pixel_ddpg: {path} cannot be read ({error}); trying the one before", file=sys.stderr)
            if replay is not None:
                shutil.rmtree(path)
    raise UserError(f"no checkpoint in {run_dir} can be read: start anew with resume=false overwrite=true", code=1)


def _load_replay(run_dir: pathlib.Path, state: dict, replay: Replay) -> None:
    for piece in state["replay_pieces"]:
        rows = load_file(_piece(run_dir, piece))
        skip = max(0, state["replay"]["next_slot"] - replay.slots - piece[0])
        replay.load_slots(piece[0] + skip, {name: table[skip:] for name, table in rows.items()})
    replay.load_state_dict(state["replay"])


def _piece(run_dir: pathlib.Path, piece: list[int]) -> pathlib.Path:
    return run_dir / "checkpoints" / "replay" / f"{piece[0]:012d}-{piece[1]:012d}.safetensors"


def _read_state(path: pathlib.Path) -> dict:
    return json.loads((path / "state.json").read_text())
