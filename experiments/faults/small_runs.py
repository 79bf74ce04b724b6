"""Runs of seconds, and whether two of them are the same."""

import pathlib

import torch

from pixel_ddpg.training import checkpoint, run_folder
from pixel_ddpg.training.rows import read_rows

ANY = [
    "task=cartpole-swingup", "frames=1600", "threads=1", "wandb=off", "env.action_repeat=8", "agent.hidden=[12,12]",
    "replay.batch_size=8", "train.start_steps=20", "train.updates_per_step=0.5", "noise.random_frames=200",
    "eval.every=700", "eval.episodes=1", "eval.video_size=0", "agent.discount=0.97",
]  # fmt: skip
STATE = [*ANY, "obs=state"]
PIXELS = [*ANY, "obs=pixels", "env.size=16", "agent.conv=[[4,4,4,0],[4,2,1,0]]", "agent.random_shift=2"]
VOLATILE = ("hours", "frames_per_second", "updates_per_second", "memory_bytes")


def rows(run_dir: pathlib.Path) -> list[dict]:
    """All metrics that must not depend on when and where a run was made."""
    found = [row.as_json() for row in read_rows(run_dir / "metrics.jsonl")]
    kept = [row for row in found if row["kind"] != "run"]
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in kept]


def final_tensors(run_dir: pathlib.Path) -> dict[str, torch.Tensor]:
    """Weights, optimisers and random streams of the newest checkpoint."""
    return checkpoint.load_checkpoint(run_dir, run_folder.read_config(run_dir))[0]


def difference(first: pathlib.Path, second: pathlib.Path, with_rows: bool = True) -> str:
    """The first tensor in which two runs differ by a bit, or metrics.jsonl; empty where there is none."""
    one, other = final_tensors(first), final_tensors(second)
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            return name
    return "metrics.jsonl" if with_rows and rows(first) != rows(second) else ""
