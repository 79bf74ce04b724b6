"""python -m experiments.figures: learning curves of runs, beside published ones, and what the agent sees."""

import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist

from experiments.report import panels, runs
from pixel_ddpg import presets
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError

plt.rcdefaults()  # a figure is the same whatever stands in its reader's matplotlibrc


@dataclass
class Figures:
    """Options of the command."""

    runs: list[str] = option([], "folders of runs, at any depth")
    out: str = option("figure.png", own=True)
    observations: list[str] = option([], "instead: tasks, as the agent sees them")
    sheet: bool = option(False, "instead: every task of the paper, at 256 and at 64 pixels")


def learning_curves(found: list[runs.Run], out: pathlib.Path) -> None:
    """One panel a task: every seed of ours, and those of DrQ-v2 in grey."""
    by_task = defaultdict(list)
    for run in found:
        by_task[run.task].append(run)
    columns = min(3, len(by_task))
    rows = -(-len(by_task) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(by_task) :]:
        axis.remove()
    named: dict[str, Artist] = {}
    for axis, (task, members) in zip(axes.flat, sorted(by_task.items())):
        draw_panel(axis, task, members)
        named |= {label: line for line, label in zip(*axis.get_legend_handles_labels()) if label not in named}
    figure.legend(named.values(), named, loc="outside lower center", ncols=min(4, len(by_task) + 1), frameon=False)
    panels.save(figure, out, dpi=130)
    plt.close(figure)


def draw_panel(axis, task: str, members: list[runs.Run]) -> None:
    """The curves of one task; the x axis counts thousand frames."""
    last = max((frame for run in members for frame, _ in run.curve), default=0)
    published = panels.published_curve(task, last)
    label = "DrQ-v2's seeds, action repeat 2"
    for number, curve in enumerate(published.values()):
        axis.plot(*panels.thousands(curve), color="0.75", linewidth=0.8, label=label if number == 0 else None)
    seen = set()
    for run in members:
        name = None if run.variant in seen else panels.label(run.variant)
        axis.plot(*panels.thousands(run.curve), marker=".", color=panels.COLOURS[run.variant], label=name)
        seen.add(run.variant)
    lowest = min((value for run in members for _, value in run.curve), default=0)
    axis.set(title=task, xlabel="thousand frames", ylabel="return", ylim=(0 if lowest >= 0 else None, None))
    axis.spines[["top", "right"]].set_visible(False)


def images(task: str, size: int, steps: int) -> Iterator[np.ndarray]:
    """The newest frame that the agent sees after each of its steps with random actions, uint8 (size, size, 3)."""
    from pixel_ddpg.gym import make_env

    env = make_env(task, obs="pixels", seed=0, size=size)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        yield env.step(env.action_space.sample())[0][-3:].transpose(1, 2, 0)
    env.close()


def observation_rows(names: list[str], out: pathlib.Path, columns: int = 6) -> None:
    """One row a task: every third observation under random actions."""
    size = (1.5 * columns, 1.75 * len(names))
    figure, axes = plt.subplots(len(names), columns, figsize=size, squeeze=False, layout="constrained")
    for row, task in zip(axes, names):
        for axis, image in zip(row, list(images(task, 64, 3 * columns))[2::3]):
            _show(axis, image)
        row[0].set_title(task, fontsize=9, loc="left")
    panels.save(figure, out, dpi=100)
    plt.close(figure)


def contact_sheet(out: pathlib.Path, columns: int = 4) -> None:
    """Every task of the paper after a few random actions, at 256 pixels and beside it at the 64 the agent sees."""
    names = [task.name for task in tasks.CATALOGUE.values() if "paper" in task.tags]
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, 2 * columns, figsize=(3.2 * columns, 1.8 * rows), layout="constrained")
    for axis in axes.flat[2 * len(names) :]:
        axis.remove()
    for (large, small), name in zip(axes.reshape(-1, 2), names):
        for axis, size in ((large, 256), (small, 64)):
            *_, image = images(name, size, 10)
            _show(axis, image)
        large.set_title(name, fontsize=9, loc="left")
    panels.save(figure, out, dpi=100)
    plt.close(figure)


def _show(axis: plt.Axes, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_axis_off()


@command("experiments.figures", Figures)
def main(options: Figures) -> None:
    out = pathlib.Path(options.out)
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"out={out} must end in .png, .svg or .pdf")
    if bool(options.runs) + bool(options.observations) + options.sheet != 1:
        raise UserError("name one of runs=runs, observations=cheetah-run and sheet=true")
    if options.observations:
        for task in options.observations:
            presets.compose([f"task={task}"])
        observation_rows(options.observations, out)
    elif options.sheet:
        contact_sheet(out)
    else:
        learning_curves(runs.read_all(options.runs)[0], out)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
