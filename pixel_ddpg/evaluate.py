"""python -m pixel_ddpg.evaluate run=...: returns of a trained policy, without noise."""

import json
import os
import pathlib
import sys
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from pixel_ddpg import config, files, tasks
from pixel_ddpg.environment import Environment
from pixel_ddpg.episodes import run_episodes


@dataclass
class Evaluate:
    """Options of the command."""

    run: str = ""  # a run's folder
    episodes: int = 10
    seed: int = 1000
    video: bool = False
    video_size: int = 256


config.register_command("evaluate", Evaluate)


@config.command("evaluate")
def main(options: Evaluate) -> None:
    if not options.run:
        raise config.UserError("which run? run=runs/<task>/<obs>/<preset>/seed0")
    if options.episodes < 1:
        raise config.UserError(f"episodes={options.episodes} must be at least 1")
    if options.seed < 0:
        raise config.UserError(f"seed={options.seed} must be at least 0")
    config.check_video_size(options.video_size, "video_size")
    from pixel_ddpg import trainer

    run_dir = pathlib.Path(options.run)
    settings, agent, frame = trainer.load_run(run_dir)
    if not os.access(run_dir, os.W_OK):
        raise config.UserError(f"{run_dir} cannot be written to: evaluate a copy of it", 1)
    environment = Environment(tasks.CATALOGUE[settings.task], settings.obs, settings.env, options.seed)
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
    table.add_row("mean", f"{result['return']:.1f} +- {result['sd']:.1f}", "")
    Console(stderr=True).print(table)
    print(json.dumps(result))
    files.write_atomically(run_dir / "evaluation.json", json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
