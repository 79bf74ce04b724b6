"""python -m experiments.grid tag=table1 agent=planner: one video of many tasks side by side."""

import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np

import pixel_ddpg
from pixel_ddpg import baseline, config, files, play, presets
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.episodes import film
from pixel_ddpg.envs.video import Video, opencv
from pixel_ddpg.errors import UserError, nearest
from pixel_ddpg.planning import baselines

FRAMES_PER_SECOND = 20
COLUMNS = 7


@dataclass
class Grid:
    """Options of the command."""

    tag: str = option("table1", "the tasks")
    agent: str = option("planner", "or random, zero, sampling, ilqg; random where a task has no planner")
    seed: int = option(0, "of each episode", least=0)
    size: int = option(128, "of each picture")
    seconds: float = option(5.0, "of each task's own time", least=0.1, most=100)
    out: str = option("videos/grid.mp4", "beside it, a folder of this name keeps the episodes' videos", own=True)


def film_task(name: str, agent: str, seed: int, size: int, seconds: float, path: str, threads: int) -> dict:
    """The first seconds of an episode as an mp4."""
    environment, policy = play.make_agent(play.Play(task=name, agent=agent, seed=seed), threads)
    value, frames = film(environment, policy, pathlib.Path(path), size, seconds)
    return {"return": value, "frames": frames}


@functools.cache
def code() -> str:
    """A hash of what a film depends on: the package's modules and models."""
    package = pathlib.Path(pixel_ddpg.__file__).parent
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".xml", ".csv"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def film_name(name: str, agent: str, *how) -> str:
    """Another one for another size, seed, length, planner or state of the code."""
    made = [*how, presets.action_repeat(name), baselines.planner_settings(agent, name), code()]
    return f"{name}-{agent}-{hashlib.sha256(json.dumps(made).encode()).hexdigest()[:10]}.mp4"


def pictures(path: pathlib.Path, count: int) -> Iterator[np.ndarray]:
    """`count` pictures at FRAMES_PER_SECOND, uint8 (size, size, 3); the last one stays, darker."""
    try:
        yield from _pictures(path, count)
    except av.error.FFmpegError:
        raise UserError(f"{path} is damaged: delete it and run this again", code=1) from None


def _pictures(path: pathlib.Path, count: int) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        decoded = container.decode(video=0)
        frame = next(decoded)
        after, over = next(decoded, None), False
        for number in range(count):
            while after is not None and after.time <= number / FRAMES_PER_SECOND:
                frame, after = after, next(decoded, None)
            over = over or (after is None and number / FRAMES_PER_SECOND > frame.time + 0.2)
            picture = frame.to_ndarray(format="rgb24")
            yield picture // 2 if over else picture


def compose(films: dict[str, pathlib.Path], size: int, seconds: float, out: pathlib.Path) -> None:
    """All side by side, each under its name."""
    strip = size // 16 * 2  # even, as the codec wants it
    cv2, count, rows = opencv(), round(seconds * FRAMES_PER_SECOND), -(-len(films) // COLUMNS)
    sources = {name: pictures(path, count) for name, path in films.items()}
    with Video(out, FRAMES_PER_SECOND) as video:
        for _ in range(count):
            canvas = np.zeros((rows * (size + strip), COLUMNS * size, 3), np.uint8)
            for place, (name, source) in enumerate(sources.items()):
                top, left = place // COLUMNS * (size + strip), place % COLUMNS * size
                canvas[top + strip : top + strip + size, left : left + size] = next(source)
                at = (left + 3, top + strip * 3 // 4)
                cv2.putText(canvas, name, at, cv2.FONT_HERSHEY_SIMPLEX, size / 420, (255,) * 3, 1, cv2.LINE_AA)
            video.add(canvas.transpose(2, 0, 1))


@command("experiments.grid", Grid)
def main(options: Grid) -> None:
    chosen = tasks.select("*", options.tag)
    if options.agent not in play.NAMED:
        raise UserError(f"unknown agent '{options.agent}'{nearest(options.agent, list(play.NAMED))}")
    config.check_video_size(options.size, "size", least=32)
    out = pathlib.Path(options.out)
    if out.suffix != ".mp4":
        raise UserError(f"out={out} must end in .mp4")
    folder = out.with_suffix("")
    with files.locked(folder, "out"):
        make(options, chosen, folder)
    print(out)


def make(options: Grid, chosen: list[tasks.Task], folder: pathlib.Path) -> None:
    """Film the episodes that are missing, and compose all."""
    films, jobs = {}, []
    for task in chosen:
        plans = options.agent in ("planner", *baselines.SETTINGS)
        agent = "random" if plans and task.simulator != "mujoco" else baselines.planner_named(options.agent, task.name)
        path = folder / film_name(task.name, agent, options.seed, options.size, options.seconds)
        films[f"{task.name} ({agent})" if plans and agent == "random" else task.name] = path
        if not path.exists():
            jobs.append((task.name, agent, options.seed, options.size, options.seconds, str(path)))
    for number, ((name, agent, *_), done) in enumerate(baseline.in_processes(film_task, jobs), 1):
        if isinstance(done, UserError):
            raise UserError(f"{name} {agent}: {done}", code=1)
        print(
            f"{number}/{len(jobs)} {name} {agent}: return {done['return']:.1f} in {done['frames']} frames", flush=True
        )
    compose(films, options.size, options.seconds, pathlib.Path(options.out))


if __name__ == "__main__":
    sys.exit(main())
