"""A benchmark's plots, and its pictures side by side; what it measures needs no matplotlib."""

import pathlib
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from experiments.benchmarks import rendering
from experiments.benchmarks.tables import HALF, OURS, PEERS, PLAIN
from experiments.report.panels import STYLE


def draw_scenes(path: pathlib.Path, names: tuple[str, ...] = ("cheetah-run", "walker-walk"), size: int = 64) -> None:
    """The same picture at each quality, and below it ten times its difference to dm_control's."""
    qualities: dict[str, dict | None] = {"dm_control": None, **rendering.QUALITIES}
    with plt.rc_context(STYLE):
        shape = (2 * len(names), len(qualities))
        figure, axes = plt.subplots(*shape, figsize=(2 * shape[1], 2 * shape[0]), layout="constrained")
        for row, name in enumerate(names):
            theirs = rendering.Scene(name, size, None).film()[-1]
            for column, (label, quality) in enumerate(qualities.items()):
                ours = rendering.Scene(name, size, quality).film()[-1]
                difference = np.abs(ours - theirs)
                above, below = axes[2 * row, column], axes[2 * row + 1, column]
                above.imshow(ours)
                above.set_title(f"{name}\n{label}" if column == 0 else label)
                below.imshow(np.minimum(10 * difference, 255))
                below.set_title(f"x 10; mean {difference.mean():.3f} of 255", fontsize=7)
        for axis in axes.flat:
            axis.set_axis_off()
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)


def plot(found: dict, path: pathlib.Path) -> None:
    """Updates against their floors, pictures against dm_control's, growth."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
        draw = [_updates, _pictures, *(_swept(name) for name in ("batch", "image size", "encoder width")), _shared]
        needed = ["learner", "rendering", *["growth"] * 4]
        for axis, panel, part in zip(axes.flat, draw, needed):
            if part in found:
                panel(axis, found)
            else:
                axis.set_axis_off()
        figure.suptitle(
            f"{found['facts']['gpu'] or found['facts']['cpu']}, one thread; lower is better but in the last panel"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


def _updates(axis: plt.Axes, found: dict) -> None:
    rows = [row for row in found["learner"] if row["threads"] == 1]
    for index, row in enumerate(reversed(rows)):
        turns = {name: turn["median"] / row["floor"] for name, turn in row["turns"].items()}
        for name, value in turns.items():
            marker, colour = {OURS: ("o", "#1f6feb"), PLAIN: ("|", "#57606a"), HALF: ("+", "#1a7f37")}.get(
                name, ("x", "#cf222e")
            )
            axis.plot(value, index, marker, color=colour, markersize=8)
            if name in PEERS:
                axis.annotate(name, (value, index), (0, 6), textcoords="offset points", fontsize=7, ha="center")
    axis.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axis.axvline(1, color="#8c959f", linewidth=0.8)
    axis.set(
        title="An update, in times its floor",
        xlabel="o ours, + in bfloat16, | torch's own path, x a peer",
        xlim=(0, None),
    )


def _pictures(axis: plt.Axes, found: dict) -> None:
    rows = [row for row in found["rendering"] if row["size"] == 64]
    labels = list(rows[0]["turns"])
    for index, label in enumerate(labels):
        places = [position + 0.8 * (index / len(labels) - 0.4) for position in range(len(rows))]
        axis.bar(places, [1000 * row["turns"][label]["median"] for row in rows], 0.8 / len(labels), label=label)
    axis.set_xticks(range(len(rows)), [row["task"].replace("-", "\n") for row in rows])
    axis.set(title="A picture of 64x64", ylabel="ms")
    axis.legend()


def _swept(quantity: str) -> Callable:
    def draw(axis: plt.Axes, found: dict) -> None:
        rows = found["growth"]["update"][quantity]
        values = [row["value"] for row in rows]
        axis.plot(values, [1000 * row["median"] for row in rows], "o-", color="#1f6feb", label="ours")
        axis.plot(values, [1000 * row["floor"] for row in rows], "--", color="#8c959f", label="floor")
        axis.set(title=f"An update of fast from pixels over {quantity}", ylabel="ms", xscale="log", yscale="log")
        axis.set_xticks(values, [str(value) for value in values], minor=False)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend()

    return draw


def _shared(axis: plt.Axes, found: dict) -> None:
    rows = found["growth"]["sharing"]
    axis.plot([row["at_once"] for row in rows], [row["median"] for row in rows], "o-", color="#1f6feb",
              label="runs at once: all together, fast")  # fmt: skip
    for preset, colour in (("fast", "#57606a"), ("ddpg2016", "#0a3069")):
        own = [row for row in found["growth"]["environments"] if row["preset"] == preset and row["overlap"]]
        axis.plot([row["envs"] for row in own], [row["median"] for row in own], "s--", color=colour,
                  label=f"environments of one run: {preset}")  # fmt: skip
    axis.set(title="From pixels, over runs or environments", ylabel="frames/s", ylim=(0, None))
    axis.set_xticks([row["at_once"] for row in rows])
    axis.legend()
