"""A long run from state and one from pixels: memory, speed and files at the end, beside those of a replay just full."""

import pathlib
import statistics

import torch

from experiments.faults.forked import Failures
from experiments.faults.kills import leave_alone
from pixel_ddpg.config import Config
from pixel_ddpg.training import build, checkpoint, cost, run_folder
from pixel_ddpg.training.rows import TrainRow, read_rows

SHARE = {"state": 1, "pixels": 5}  # a run from pixels has a fifth of the frames
REPEAT = 8
FILLS = 5  # the ring is full after a fifth of the run, as long as no episode ends early
WORDS = [
    "task=cartpole-swingup", f"env.action_repeat={REPEAT}", "train.updates_per_step=0.25", "replay.batch_size=64",
    "eval.episodes=1", "threads=1", "wandb=off",
]  # fmt: skip
MEMORY, SPEED = 1.02, 0.95  # at the end, of what they were


def measure(frames: int, folder: pathlib.Path) -> dict:
    """One run of `frames` from state, one of a fifth of them from pixels."""
    found: dict = {"tried": len(SHARE)}
    failures = Failures()
    for obs, share in SHARE.items():
        run_dir, length = folder / obs, frames // share
        capacity = max(1, length // (FILLS * REPEAT))
        leave_alone([*WORDS, f"obs={obs}", f"frames={length}", f"replay.capacity={capacity}"], run_dir)
        rows = [row for row in read_rows(run_dir / "metrics.jsonl") if isinstance(row, TrainRow)]
        row, wrong = judge(rows, checkpoint.disk_bytes(run_dir), planned_bytes(run_folder.read_config(run_dir)))
        found |= {f"{obs}: {key}": value for key, value in row.items()}
        for what in wrong:
            failures.append(f"{obs}: {what}")
    return found | {"failures": failures}


def judge(rows: list[TrainRow], disk: int, planned: int) -> tuple[dict, list[str]]:
    """What a run took, and what is wrong with it, over a tenth of it once the replay is full, and over its last tenth.

    Memory is a median over episodes; speed is the 90th percentile, as other work on the machine slows some down.
    """
    frames = rows[-1].frame
    full = [row for row in rows if 0 <= row.frame - frames / FILLS <= frames / 10]
    end = [row for row in rows if row.frame >= 0.9 * frames]
    memory, last_memory = (statistics.median(row.memory_bytes for row in part) for part in (full, end))
    speed, last_speed = (sorted(row.frames_per_second for row in part)[int(0.9 * len(part))] for part in (full, end))
    row = {
        "frames": frames, "MiB of memory with a full replay": round(memory / 2**20),
        "MiB of memory at the end": round(last_memory / 2**20), "frames/s with a full replay": round(speed),
        "frames/s at the end": round(last_speed), "MiB of checkpoints": round(disk / 2**20, 1),
        "MiB of checkpoints planned": round(planned / 2**20, 1),
    }  # fmt: skip
    checks = {
        "memory has grown": last_memory <= MEMORY * memory,
        "it has slowed down": last_speed >= SPEED * speed,
        "checkpoints take more than planned": disk <= planned,
    }
    return row, [what for what, holds in checks.items() if not holds]


def planned_bytes(config: Config) -> int:
    """What the plan of a run says that its checkpoints take at most."""
    device = torch.device("cpu")
    networks = cost.checkpoint_bytes(build.make_agent(config, device))
    return cost.Cost(0.0, cost.replay_bytes(config), networks, device, "").disk
