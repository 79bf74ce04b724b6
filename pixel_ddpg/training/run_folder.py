"""A run's folder: its configuration, its status, and whether a command may resume it."""

import json
import pathlib
import shutil

import torch

from pixel_ddpg import config as configuration
from pixel_ddpg import files
from pixel_ddpg.agent.ddpg import DDPG
from pixel_ddpg.config import Config
from pixel_ddpg.errors import UserError, first_line
from pixel_ddpg.training import build, checkpoint
from pixel_ddpg.training.checkpoint import START_AGAIN
from pixel_ddpg.training.rows import read_rows

WRITTEN = ("checkpoints", "videos", "wandb", "config.yaml", "metrics.jsonl", "status.json", "evaluation.json")


def read_config(run_dir: pathlib.Path) -> Config:
    """The configuration a run was started with."""
    path = run_dir / "config.yaml"
    try:
        return configuration.from_yaml(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run_dir} is not a run: it has no config.yaml") from None
    except UserError as error:
        raise UserError(f"{path} is not of this version ({error})") from None
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): choose another folder, or {START_AGAIN}", code=1
        ) from None


def write_config(config: Config, run_dir: pathlib.Path) -> None:
    """Keep the configuration beside the run."""
    files.write_atomically(run_dir / "config.yaml", configuration.to_yaml(config).encode())


def write_status(run_dir: pathlib.Path, state: str, **facts) -> None:
    """status.json: running, done, stopped or failed."""
    files.write_atomically(run_dir / "status.json", json.dumps({"state": state, **facts}, indent=2).encode() + b"\n")


def read_status(run_dir: pathlib.Path) -> dict:
    """What status.json says; empty where there is none that can be read."""
    try:
        status = json.loads((run_dir / "status.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return status if isinstance(status, dict) and isinstance(status.get("frame"), int) else {}


def is_done(run_dir: pathlib.Path, frames: int) -> bool:
    """Whether a run has ended with this many frames or more."""
    status = read_status(run_dir)
    return status.get("state") == "done" and status.get("frame", 0) >= frames


def resumed(config: Config, run_dir: pathlib.Path) -> Config | None:
    """The configuration of the run that this command resumes; None where it starts one.

    UserError for what would mix or destroy a run. Changes nothing there.
    """
    if not (run_dir / "config.yaml").exists():
        if others := [name for name in WRITTEN if (run_dir / name).exists()]:
            raise UserError(
                f"{run_dir} has {others[0]} but no config.yaml, so it is not a run: choose another run_dir="
            )
        return None
    if not config.resume:
        if not config.overwrite:
            raise UserError(
                f"{run_dir} has a run; add overwrite=true to delete it, or leave out resume=false to resume"
            )
        return None
    started = refuse_changes(config, run_dir)
    if checkpoint.checkpoints(run_dir):
        return started
    saved = read_status(run_dir).get("state", "done") in ("done", "stopped")  # else: killed before it was
    if saved and read_rows(run_dir / "metrics.jsonl"):
        raise UserError(
            f"{run_dir} has results but no checkpoint: choose another run_dir=, or resume=false overwrite=true"
        )
    return None


def refuse_changes(config: Config, run_dir: pathlib.Path) -> Config:
    """The configuration the run was started with; UserError if the command now says something else that matters."""
    started = read_config(run_dir)
    if changed := configuration.differences(started, config):
        raise UserError(
            f"{run_dir} was started with {' '.join(changed)}: repeat that, choose another run_dir=, or {START_AGAIN}"
        )
    return started


def delete_run(run_dir: pathlib.Path) -> None:
    """Delete what a run writes, and nothing else."""
    for name in WRITTEN:
        path = run_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in run_dir.glob(f".{'?' * 16}.tmp"):  # of a write that was killed: see files.write_atomically
        path.unlink()


def load_run(run_dir: str | pathlib.Path) -> tuple[Config, DDPG, int]:
    """Configuration, agent and frame of a run's newest checkpoint, on the CPU."""
    run_dir = pathlib.Path(run_dir)
    config = read_config(run_dir)
    tensors, state = checkpoint.load_checkpoint(run_dir, config)
    agent = build.make_agent(config, torch.device("cpu"))
    agent.load_networks(checkpoint.without_prefix(tensors, "agent."))
    return config, agent, state["frame"]
