"""The report's drawings, one function a panel; each draws into an axis and returns the numbers that it shows."""

import csv
import io
import pathlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.report import statistics
from experiments.report.runs import Curve, Run, Variant
from pixel_ddpg import presets
from pixel_ddpg.envs import tasks
from pixel_ddpg.files import write_atomically
from pixel_ddpg.planning.baselines import score

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


class _Colours(dict[Variant, str]):
    """Of the presets here; one that a reader has added gets a colour too."""

    def __missing__(self, variant: Variant) -> str:
        number = 2 * list(presets.PRESETS).index(variant[0]) + (variant[1] == "pixels")
        return to_hex(plt.get_cmap("tab20")(number % 20))


# As in the paper's Figure 2: light grey without target networks, dark without BatchNorm; green state, blue pixels.
COLOURS = _Colours({
    ("fast", "state"): "#2da44e", ("fast", "pixels"): "#1f6feb", ("fast_no_target", "state"): "#b5b9bf",
    ("ddpg2016", "state"): "#116329", ("ddpg2016", "pixels"): "#0a3069", ("dpg_replay", "state"): "#b5b9bf",
    ("ddpg2016_no_bn", "state"): "#57606a", ("drqv2", "state"): "#1b7c83", ("drqv2", "pixels"): "#8250df",
    ("offpolicy_dpg", "state"): "#d4a72c", ("dpg", "state"): "#cf222e", ("fast_no_target", "pixels"): "#a5c8ff",
    ("dpg_replay", "pixels"): "#a5c8ff", ("ddpg2016_no_bn", "pixels"): "#3192aa",
    ("offpolicy_dpg", "pixels"): "#bc4c00", ("dpg", "pixels"): "#bf3989",
})  # fmt: skip
STYLE: dict = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.labelsize": 8,
    "axes.titlelocation": "left", "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "pixel_ddpg", "font.family": "sans-serif",
    "axes.edgecolor": "#8c959f", "xtick.color": "#424a53", "ytick.color": "#424a53",
}  # fmt: skip
BARE = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no metadata in SVG: the same numbers, the same file
Rows = list[dict]
Draw = Callable[[plt.Axes], Rows]


def label(variant: Variant) -> str:
    """As in legends."""
    return f"{variant[1]}, {variant[0]}"


def reference(name: str) -> list[dict[str, str]]:
    """The rows of a table of published numbers."""
    return [*csv.DictReader((REFERENCE / name).read_text("utf-8").splitlines())]


def published_curve(task: str, last_frame: int) -> dict[str, list[tuple[int, float]]]:
    """DrQ-v2's curves of a task by seed, up to a frame; empty where there are none."""
    name = tasks.find(task).same_as.replace("ball_in_cup", "cup").replace("-", "_")
    path = f"drqv2_curves/dmc_{name}.csv"
    seeds: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in reference(path) if (REFERENCE / path).exists() else []:
        if int(row["frame"]) <= last_frame:
            seeds[row["seed"]].append((int(row["frame"]), float(row["episode_reward"])))
    return seeds


def thousands(curve: Curve) -> tuple[list[float], list[float]]:
    """A curve's x and y, x in thousand frames."""
    return [frame / 1000 for frame, _ in curve], [value for _, value in curve]


def score_of(task: str, value: float) -> float:
    """The score, or the return where the task has none."""
    found = score(task, value)
    return value if found is None else found


def curves(axis: plt.Axes, task: str, runs: list[Run]) -> Rows:
    """Scores of one task: a thin line a seed, a thick one the mean of finished runs; 0 is random, 1 the planner."""
    rows = []
    by_variant: dict[Variant, list[Run]] = defaultdict(list)
    for run in runs:
        by_variant[run.variant].append(run)
    for variant, members in sorted(by_variant.items(), key=lambda item: item[0][1]):
        for run in members:
            points = [(x, score_of(task, value)) for x, value in run.curve]
            axis.plot(*thousands(points), color=COLOURS[variant], linewidth=0.8, alpha=0.55 if len(members) > 1 else 1)
            rows += _numbers(task, variant, run.settings.seed, points, "score")
        whole = [run.curve for run in members if run.is_whole]
        if len(whole) > 1:
            mean = _mean(whole)
            points = [(x, score_of(task, value)) for x, value in mean]
            axis.plot(*thousands(points), color=COLOURS[variant], linewidth=2.2)
            rows += _numbers(task, variant, "mean", points, "score")
    scored = score(task, 0.0) is not None
    for level in (0, 1) if scored else ():
        axis.axhline(level, color="#8c959f", linewidth=0.7, linestyle=":", zorder=0)
    axis.set(title=task, xlabel=_UNITS["frame"], ylabel="score" if scored else "return")
    axis.set_xlim(0, 1.02 * max(run.frame for run in runs) / 1000 or None)
    return rows


_UNITS = {"frame": "thousand frames", "hours": "hours"}


def _numbers(task: str, variant: Variant, seed: int | str, points: Curve, name: str) -> Rows:
    """A curve's rows of a CSV; the variant of a published one is (method, obs)."""
    given = {"task": task, "preset": variant[0], "obs": variant[1], "seed": seed}
    return [{**given, "frame": frame, name: value} for frame, value in points]


def _mean(curves: list[Curve]) -> Curve:
    """Mean over seeds from where all have a value to where the shortest ends, at the frames of the shortest.

    The others are interpolated: where episodes end early, each seed is evaluated some frames later than another.
    """
    first = max(curve[0][0] for curve in curves)
    frames = [frame for frame, _ in min(curves, key=lambda curve: curve[-1][0]) if frame >= first]
    means = np.mean([np.interp(frames, *np.array(curve).T) for curve in curves], 0)
    return list(zip(frames, means.tolist()))


def beside_published(axis: plt.Axes, task: str, runs: list[Run]) -> Rows:
    """Returns of one task and, in grey, what others have published of it up to the same frame."""
    rows, last = [], max((run.frame for run in runs), default=0)
    for seed, curve in published_curve(task, last).items():
        axis.plot(*thousands(curve), color="0.8", linewidth=0.7)
        rows += _numbers(task, ("DrQ-v2, published", "pixels"), seed, curve, "return")
    for (algorithm, obs), points in published_points(task, last).items():
        style = {"D4PG": "s", "DDPG": "^", "SAC": "v"}[algorithm]
        axis.plot(*thousands(points), style, color="0.55", markersize=5)
        rows += _numbers(task, (f"{algorithm}, published", obs), "mean", points, "return")
    for run in runs:
        axis.plot(*thousands(run.curve), color=COLOURS[run.variant], linewidth=1.2)
        rows += _numbers(task, run.variant, run.settings.seed, run.curve, "return")
    axis.set(title=task, xlabel=_UNITS["frame"], ylabel="return")
    return rows


def published_points(task: str, last: int) -> dict[tuple[str, str], Curve]:
    """(algorithm, obs) -> published means of a task, up to a frame."""
    name = tasks.find(task).same_as
    found: dict[tuple[str, str], Curve] = defaultdict(list)
    for row in reference("published_points.csv"):
        if row["task"] == name and int(row["frame"]) <= 1.05 * last:
            found[row["algorithm"], row["obs"]].append((int(row["frame"]), float(row["return"])))
    return found


def has_published(task: str, last: int) -> bool:
    """Whether `beside_published` has something to show."""
    return bool(published_points(task, last)) or len(published_curve(task, last)) > 0


def q_against_return(axis: plt.Axes, task: str, runs: list[Run]) -> Rows:
    """Density of Q(s, mu(s)) over the discounted return that followed, in the last evaluation's episodes."""
    pairs = [
        (run.settings.seed, *pair) for run in runs if run.values for pair in zip(run.values.observed, run.values.q)
        if None not in pair
    ]  # fmt: skip
    variant = runs[0].variant
    axis.set(title=f"{task}, {variant[1]}", xlabel="observed return, discounted", ylabel="estimated Q")
    if not pairs:
        axis.text(0.5, 0.5, "no pairs", ha="center", transform=axis.transAxes)
        return []
    _, observed, estimated = np.array(pairs).T
    low, high = min(observed.min(), estimated.min()), max(observed.max(), estimated.max())
    room = 0.05 * (high - low) or 1.0
    extent = (low - room, high + room) * 2
    axis.hexbin(observed, estimated, gridsize=24, extent=extent, cmap="Blues" if variant[1] == "pixels" else "Greens",
                mincnt=1, bins="log", linewidths=0.1)  # fmt: skip
    axis.plot(extent[:2], extent[:2], color="#8c959f", linewidth=0.8, linestyle=":")
    axis.set(xlim=extent[:2], ylim=extent[2:])
    given = {"task": task, "preset": variant[0], "obs": variant[1]}
    return [{**given, "seed": seed, "observed": x, "q": y} for seed, x, y in pairs]


HEALTH = {
    "td_error": "RMS TD error", "pre_tanh": "|output before tanh|", "saturated": "share beyond 0.95",
}  # fmt: skip


def health(axis: plt.Axes, task: str, key: str, runs: list[Run]) -> Rows:
    """One of HEALTH, by episode: a line a run."""
    rows = []
    for run in runs:
        points = [(row.frame, getattr(row, key)) for row in run.trains if getattr(row, key) is not None]
        axis.plot(*thousands(points), color=COLOURS[run.variant], linewidth=0.9)
        rows += _numbers(task, run.variant, run.settings.seed, points, key)
    axis.set(title=task, xlabel=_UNITS["frame"], ylabel=HEALTH[key])
    axis.set_ylim(bottom=0)
    return rows


def state_against_pixels(axis: plt.Axes, state: statistics.Scores, pixels: statistics.Scores) -> Rows:
    """One dot a task, the mean over seeds of each; above the line pixels are better."""
    rows: Rows = [
        {"task": task, "state": float(np.mean(state[task])), "pixels": float(np.mean(pixels[task]))}
        for task in state
        if task in pixels
    ]
    ends = [value for row in rows for value in (row["state"], row["pixels"])] + [0.0, 1.0]
    low, high = min(ends) - 0.08, max(ends) + 0.08
    axis.plot((low, high), (low, high), color="#8c959f", linewidth=0.8, linestyle=":")
    taken: list[tuple[float, float, float]] = []  # left and right end and height of the names so far
    line, letter = 0.026 * (high - low), 0.013 * (high - low)
    for row in rows:
        x, y = row["state"], row["pixels"]
        axis.plot(x, y, "o", color="#1f6feb", markersize=5)
        side = -1 if x > (low + high) / 2 else 1
        left, right = sorted((x + side * letter, x + side * letter * (1 + len(row["task"]))))
        others = [height for start, end, height in taken if left < end and start < right]
        heights = [y + step * line for step in sorted(range(-40, 41), key=abs)]
        free = (at for at in heights if low < at < high and all(abs(at - other) >= line for other in others))
        taken.append((left, right, next(free, y)))
        axis.annotate(row["task"], (x, y), (x + side * letter, taken[-1][2]), fontsize=6.5, color="#424a53",
                      va="center", ha="right" if side < 0 else "left",
                      arrowprops={"arrowstyle": "-", "color": "#8c959f", "linewidth": 0.5, "shrinkA": 0,
                                  "relpos": (1 if side < 0 else 0, 0.5)})  # fmt: skip
    axis.set(xlim=(low, high), ylim=(low, high), xlabel="score from state", ylabel="score from pixels", aspect="equal")
    return rows


def profile(axis: plt.Axes, scores: dict[Variant, statistics.Scores]) -> Rows:
    """Fraction of runs above each score, with 95% intervals of the stratified bootstrap."""
    thresholds, rows = np.linspace(0, 1.2, 61), []
    for variant, each in scores.items():
        values = statistics.performance_profile(each, thresholds)
        axis.plot(thresholds, values, color=COLOURS[variant], label=label(variant))
        bounds: tuple = ()
        if statistics.varies(each):
            bounds = statistics.interval(lambda one: statistics.performance_profile(one, thresholds), each)
            axis.fill_between(thresholds, *bounds, color=COLOURS[variant], alpha=0.15, linewidth=0)
        for x, y, *ends in zip(thresholds, values, *bounds):
            row = {"preset": variant[0], "obs": variant[1], "score": x, "fraction": y}
            rows.append(row | dict(zip(("low", "high"), ends)))
    axis.set(xlabel="score", ylabel="fraction of runs above it", ylim=(0, 1.02))
    axis.legend()
    return rows


def iqm_curve(axis: plt.Axes, variants: dict[Variant, list[Run]], over: str) -> Rows:
    """IQM of the scores of all tasks and seeds over frames or hours, as long as every run has come so far."""
    rows = []
    for variant, runs in variants.items():
        curves = {id(run): run.curve if over == "frame" else run.hours_curve for run in runs}
        first = max(curve[0][0] for curve in curves.values())
        last = min(curve[-1][0] for curve in curves.values())
        if last < first:
            continue
        mine: Rows = []
        for x in np.linspace(first, last, 21) if last > first else [first]:
            scores: dict[str, list[float]] = defaultdict(list)
            for run in runs:
                at, values = zip(*curves[id(run)])
                if (value := score(run.task, float(np.interp(x, at, values)))) is not None:
                    scores[run.task].append(value)
            bounds = statistics.interval(statistics.iqm, scores) if statistics.varies(scores) else ()
            row = {"preset": variant[0], "obs": variant[1], over: float(x), "iqm": statistics.iqm(scores)}
            mine.append(row | dict(zip(("low", "high"), bounds)))
        x = [row[over] / (1000 if over == "frame" else 1) for row in mine]
        axis.plot(x, [row["iqm"] for row in mine], color=COLOURS[variant], label=label(variant))
        if bounds:
            low, high = ([row[end] for row in mine] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=COLOURS[variant], alpha=0.15, linewidth=0)
        rows += mine
    axis.set(xlabel=_UNITS[over], ylabel="IQM of the scores")
    if rows:
        axis.legend()
    return rows


def draw(
    panels: Sequence[Draw], folder: pathlib.Path, name: str, size: tuple[float, float], columns: int = 5
) -> list[str]:
    """Write <name>.png, .svg and .csv with all panels; returns each panel as SVG of its own."""
    columns = min(columns, len(panels))
    shape = (-(-len(panels) // columns), columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            *shape, figsize=(size[0] * shape[1], size[1] * shape[0]), squeeze=False, layout="constrained"
        )
        rows, single = [], []
        for axis, panel in zip(axes.flat, panels):
            rows += panel(axis)
            single.append(_alone(panel, size))
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        save(figure, folder / f"{name}.svg", metadata=BARE)
        save(figure, folder / f"{name}.png", dpi=140)
        plt.close(figure)
    write_csv(rows, folder / f"{name}.csv")
    return single


def save(figure: Figure, path: pathlib.Path, **options: Any) -> None:
    """The figure as a file of the kind that its name says, whole or not at all."""
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:], **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.getvalue())


def _alone(panel: Draw, size: tuple[float, float]) -> str:
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    panel(axis)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=BARE)
    plt.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def write_csv(rows: Rows, path: pathlib.Path) -> None:
    """The numbers of a figure or table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
