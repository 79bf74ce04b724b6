"""python -m pixel_ddpg.evaluate run=...: returns of a trained policy, without noise."""

import json
import os
import pathlib
import sys
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from pixel_ddpg import config, files
from pixel_ddpg.command import Output, command
from pixel_ddpg.config import option
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import Environment
from pixel_ddpg.envs.episodes import run_episodes
from pixel_ddpg.errors import UserError, warn


@dataclass
class Evaluate:
    """Options of the command."""

    run: str = option("", "a run's folder", own=True)
    episodes: int = option(10, "how many", least=1)
    seed: int = option(1000, "of the task", least=0, most=2**63 - 1)
    video: bool = option(False, "film the first episode")
    video_size: int = option(256, "width and height of the film, in pixels")


@command("pixel_ddpg.evaluate", Evaluate)
def main(options: Evaluate) -> None:
    if not options.run:
        raise UserError("name a run: run=runs/<task>/<obs>/<preset>/seed0")
    config.check_video_size(options.video_size, "video_size")
    from pixel_ddpg.training import run_folder

    run_dir = pathlib.Path(options.run)
    settings, agent, frame = run_folder.load_run(run_dir)
    writable = os.access(run_dir, os.W_OK)
    if options.video and not writable:
        raise UserError(f"{run_dir} cannot be written to: evaluate a copy of it, or without video=true", code=1)
    environment = Environment(tasks.find(settings.task), settings.obs, settings.env, options.seed)
    video = run_dir / "videos" / f"evaluation-{frame}.mp4" if options.video else None
    returns, lengths = run_episodes(environment, agent.act, options.episodes, video, options.video_size)
    result = {
        "run": options.run, "task": settings.task, "obs": settings.obs, "preset": settings.preset, "frame": frame,
        "seed": options.seed, "return": float(np.mean(returns)), "sd": float(np.std(returns)), "returns": returns,
        "lengths": lengths, "video": str(video) if video else None,
    }  # fmt: skip
    table = Table(
        "episode", "return", "frames", title=f"{settings.task} from {settings.obs}, {settings.preset}, frame {frame}"
    )
    for index, (value, length) in enumerate(zip(returns, lengths)):
        table.add_row(str(index), f"{value:.1f}", str(length))
    spread = f" +- {result['sd']:.1f}" if len(returns) > 1 else ""
    table.add_row("mean", f"{result['return']:.1f}{spread}", "")
    Output(stderr=True).print(table)
    if writable:
        files.write_atomically(run_dir / "evaluation.json", json.dumps(result, indent=2).encode() + b"\n")
    else:
        warn(f"{run_dir} cannot be written to: evaluation.json is not saved")
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
