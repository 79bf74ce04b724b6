"""A benchmark's JSON as tables and a plot."""

import json
import pathlib
import statistics
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

from experiments.panels import STYLE
from pixel_ddpg import files
from pixel_ddpg.config import UserError

FOLDER = pathlib.Path(__file__).parent / "results"
OURS, PLAIN, HALF = "ours", "torch's path", "bfloat16"
PEERS = ("Stable-Baselines3", "DrQ-v2's code")
SMALL, STATE, DRQV2 = "three 3x3 convolutions, pixels", "400/300 at batch 64, state", "drqv2, pixels"


def _spread(values: list[float]) -> str:
    """Median (least to most) of the rounds."""
    middle, least, most = (
        f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({least} to {most})"


def milliseconds(turn: dict) -> str:
    """Of one contestant's turns."""
    return _spread([1000 * seconds for seconds in turn["seconds"]])


def times(ratio: dict) -> str:
    """Median (least to most) of the rounds' ratios."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def learner_line(row: dict) -> str:
    """One case in a line of text."""
    others = ", ".join(f"{times(ratio)} x {name}" for name, ratio in row["times_as_fast_as"].items())
    return (
        f"{row['name']}, {row['threads']} threads: {milliseconds(row['turns'][OURS])} ms an update, "
        f"{row['of_floor']:.2f} x floor; {others}"
    )


def rendering_line(row: dict) -> str:
    """One scene in a line of text."""
    others = ", ".join(f"{ratio['median']:.1f} x {name}" for name, ratio in row["times_as_fast"].items())
    return f"{row['task']} at {row['size']}: {milliseconds(row['turns']['dm_control'])} ms by dm_control; {others}"


def environment_line(row: dict) -> str:
    """One preset in a line of text."""
    return f"{row['preset']}: " + ", ".join(f"{name} {steps_per_second(row, name)} steps/s" for name in row["turns"])


def training_line(row: dict) -> str:
    """One run in a line of text."""
    return f"{' '.join(row['words'])}, {row['threads']} threads: {frames_per_second(row)} frames/s"


def tried_line(row: dict) -> str:
    """One way in a line of text."""
    return f"{row['case']}, {row['way']}: {times(row['times_as_fast'])} times as fast"


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def learner(rows: list[dict]) -> str:
    """Updates: ours, the floor, and others' in the same process."""
    header = ["update", "threads", "ms", "floor, ms", "of floor", "products and convolutions alone, ms"]
    header += ["times as fast as torch's path", "as a peer", "ms with agent.precision=bfloat16"]

    def cells(row: dict) -> list[str]:
        ratio = row["times_as_fast_as"]
        peer = next((f"{times(ratio[name])}: {name}" for name in PEERS if name in ratio), "")
        return [
            row["name"], str(row["threads"]), milliseconds(row["turns"][OURS]), f"{1000 * row['floor']:.3g}",
            f"{row['of_floor']:.2f}", f"{1000 * row['products_alone']:.3g}", times(ratio[PLAIN]), peer,
            milliseconds(row["turns"][HALF]) if HALF in row["turns"] else "",
        ]  # fmt: skip

    return _table(header, map(cells, rows))


def stages(rows: list[dict]) -> str:
    """Where an update's time goes."""
    names = list(dict.fromkeys(name for row in rows for name in row["stages"]))
    return _table(
        ["update", "threads", *names],
        ([row["name"], str(row["threads"]), *(f"{100 * row['stages'].get(n, 0):.0f}%" for n in names)] for row in rows),
    )


def rendering(rows: list[dict]) -> str:
    """Pictures: dm_control's and ours at each quality."""
    labels = list(rows[0]["times_as_fast"])
    header = ["task", "side", "dm_control, ms", *(f"{name}: times as fast, difference of 255" for name in labels)]
    return _table(
        header,
        (
            [row["task"], str(row["size"]), milliseconds(row["turns"]["dm_control"])]
            + [f"{row['times_as_fast'][name]['median']:.1f}, {row['difference'][name]:.4f}" for name in labels]
            for row in rows
        ),
    )


def environment(rows: list[dict]) -> str:
    """Steps without an agent."""
    header = ["preset", "frames a step, state", "steps/s", "frames a step, pixels", "pictures a step"]
    header += ["physics alone, steps/s", "pictures alone, steps/s", "both, steps/s"]

    def cells(row: dict) -> list[str]:
        state, *parts = (steps_per_second(row, name) for name in ("state", "physics", "pictures", "both"))
        return [
            row["preset"], str(row["frames"]["state"]), state, str(row["frames"]["pixels"]), str(row["pictures"]),
            *parts,
        ]  # fmt: skip

    return _table(header, map(cells, rows))


def steps_per_second(row: dict, name: str) -> str:
    """Of one part of an environment's steps."""
    return _spread([1 / seconds for seconds in row["turns"][name]["seconds"]])


def training(rows: list[dict]) -> str:
    """Whole runs."""
    header = ["run", "threads", "frames/s", "updates/s", "pictures/s", "memory, MiB"]

    def cells(row: dict) -> list[str]:
        each = _per_frame(row)
        rates = [f"{row['median'] * each[name]:.3g}" for name in ("updates", "pictures")]
        memory = f"{row['memory_bytes'] / 2**20:.0f}"
        return [" ".join(row["words"]), str(row["threads"]), frames_per_second(row), *rates, memory]

    return _table(header, map(cells, rows))


def frames_per_second(row: dict, runs: int = 1) -> str:
    """Of whole runs together, or of each of so many."""
    return _spread([value / runs for value in row["frames_per_second"]])


def _per_frame(row: dict) -> dict[str, float]:
    """What a frame of whole runs had, by their counts over all rounds: updates, pictures."""
    counts = [turn for together in row["turns"] for turn in together]
    total = {name: sum(turn[name] or 0 for turn in counts) for name in ("frames", "updates", "pictures")}
    return {name: count / total["frames"] for name, count in total.items()}


def growth(found: dict) -> str:
    """Cost against work."""
    updates = [
        [quantity, str(row["value"]), f"{1000 * row['median']:.3g}", f"{1000 * row['floor']:.3g}"]
        for quantity, rows in found["update"].items()
        for row in rows
    ]
    memory = [[f"{row['capacity']:,}", f"{row['bytes'] / 2**20:.0f}"] for row in found["memory"]]
    sharing = [
        [str(row["at_once"]), frames_per_second(row, row["at_once"]), frames_per_second(row)]
        for row in found["sharing"]
    ]
    environments = [
        [row["preset"], str(row["envs"]), "yes" if row["overlap"] else "no", frames_per_second(row)]
        for row in found["environments"]
    ]
    return "\n\n".join(
        [
            _table(["of an update of fast from pixels", "value", "ms", "floor, ms"], updates),
            _table(["transitions of 64x64", "MiB"], memory),
            _table(["runs at once", "frames/s of one", "of all"], sharing),
            _table(["a run from pixels", "envs", "steps while it learns", "frames/s"], environments),
        ]
    )


def tried(rows: list[dict]) -> str:
    """Ways that an update might be made with, one thread."""
    return _table(
        ["update", "changed to", "ms", "times as fast as it is", "first update, s"],
        (
            [
                row["case"],
                row["way"],
                milliseconds(row["turns"]["changed"]),
                times(row["times_as_fast"]),
                f"{row['first']:.2g}",
            ]
            for row in rows
        ),
    )


PARTS: dict[str, tuple[str, Callable]] = {
    "learner": ("Updates of the learner, sampling included", learner),
    "rendering": ("Pictures", rendering),
    "environment": ("Steps of cheetah-run without an agent", environment),
    "training": ("Whole runs on cheetah-run", training),
    "growth": ("How it grows", growth),
    "tried": ("What else was tried", tried),
}


def as_text(found: dict) -> str:
    """All tables of a benchmark, as Markdown."""
    facts = found["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    parts = [f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores; Python {facts['python']}, {versions}."]
    for name, (title, table) in PARTS.items():
        if name in found:
            made = found["made"][name]
            by = f"`{made['command']}`, {made['date']}, commit {(made['commit'] or 'unknown')[:9]}"
            parts += [f"## {title}", by, table(found[name])]
            if name == "learner":
                parts.append(stages(found[name]))
    return "\n\n".join(parts)


ROWS: dict[str, tuple[tuple[str, ...], Callable[[dict], str]]] = {  # what tells rows apart, and one in a line of text
    "learner": (("name", "threads"), learner_line),
    "rendering": (("task", "size"), rendering_line),
    "environment": (("preset",), environment_line),
    "training": (("words", "threads"), training_line),
    "tried": (("case", "way"), tried_line),
}


def read(path: pathlib.Path) -> dict:
    """A benchmark's JSON, empty where there is none yet; UserError for one that this version cannot show."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        as_text(found)
        goals(found)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UserError(f"{path} is no benchmark of this version ({why}): choose another out=, or delete it") from None
    return found


def _row(found: dict, name: str, threads: int = 1) -> dict | None:
    rows = (row for row in found.get("learner", []) if (row["name"], row["threads"]) == (name, threads))
    return next(rows, None)


def goals(found: dict) -> str:
    """What was aimed at, and what was measured, one thread."""
    rows = []

    def at_least(what: str, aim: float, value: float | None) -> None:
        add(what, f"{aim:g} or more", value, value is not None and value >= aim)

    def add(what: str, aim: str, value: float | None, met: bool) -> None:
        rows.append([what, aim, *(["not measured", ""] if value is None else [f"{value:.3f}", "yes" if met else "no"])])

    for name, what, peer, aim in (
        (STATE, "state, 400/300, batch 64", PEERS[0], 2.0),
        (DRQV2, "drqv2's recipe, pixels", PEERS[1], 2.5),
    ):
        row = _row(found, name) or {"times_as_fast_as": {}, "bfloat16_times_as_fast_as": {}}
        at_least(f"update: {what}, times as fast as {peer}", aim, row["times_as_fast_as"].get(peer, {}).get("median"))
        if half := row["bfloat16_times_as_fast_as"].get(peer):
            at_least("the same with agent.precision=bfloat16", aim, half["median"])
    for name, what, aim in ((STATE, "state, 400/300, batch 64", 1.3), (SMALL, "three 3x3 convolutions, 64x64", 1.5)):
        value = (_row(found, name) or {}).get("of_floor")
        add(f"update: {what}, times the floor", f"{aim:g} or less", value, value is not None and value <= aim)
    pictures = found.get("rendering", [])
    for label, aim, bound in (("render=exact", 4.0, 0.01), ("render=fast", 10.0, 1.0)):
        slowest = min((row["times_as_fast"][label]["median"] for row in pictures), default=None)
        at_least(f"{label}, times as fast as dm_control's, least of {len(pictures)}", aim, slowest)
        value = max((row["difference"][label] for row in pictures), default=None)
        what = f"{label}, mean difference of 255, most of {len(pictures)}"
        add(what, f"below {bound:g}", value, value is not None and value < bound)
    return _table(["goal", "aim", "measured", "met"], rows)


RUNS_OF_PAPER, FRAMES_OF_PAPER = 27 * 5, 2_500_000  # tasks times seeds, from state and from pixels each
H100_FLOPS, H100_BANDWIDTH, H100_CORES = 67e12, 3.35e12, 16  # float32 and bytes a second, by NVIDIA's data sheet (SXM)
H100_OPERATION = 2e-6  # seconds that each operation of a graph takes at least: assumed, not measured
GPUS = 64


def paper_cost(found: dict) -> str:
    """What the paper's whole experiment takes: here, by measured speeds, and on GPUs, on paper. With the arithmetic."""
    runs = {
        row["words"][1].removeprefix("obs="): row
        for row in found.get("training", [])
        if row["threads"] == 1 and "preset=ddpg2016" in row["words"]
    }
    updates = {obs: _row(found, f"ddpg2016, {obs}") for obs in runs}
    if not (runs and all(updates.values()) and "growth" in found):
        return "The paper's whole experiment: not measured here."
    return f"{_paper_here(found, runs)}\n\n{_paper_on_gpus(runs, updates)}"


def _paper_here(found: dict, runs: dict[str, dict]) -> str:
    frames = RUNS_OF_PAPER * FRAMES_OF_PAPER
    speeds = {obs: row["median"] for obs, row in runs.items()}
    hours = {obs: frames / speed / 3600 for obs, speed in speeds.items()}
    cores = found["facts"]["cores"]
    sharing = {row["at_once"]: row["median"] for row in found["growth"]["sharing"]}
    at_once = max(n for n in sharing if n <= cores)
    gain = sharing[at_once] / sharing[1]
    days = sum(hours.values()) / gain / 24
    return (
        f"The paper's whole experiment is {RUNS_OF_PAPER} runs (27 tasks, 5 seeds) of {FRAMES_OF_PAPER:,} frames from "
        f"each, {frames / 1e6:g} million frames. `ddpg2016` on one core trains at {_each(speeds, 'frames/s')}, without "
        f"evaluations: {_each(hours, 'h')}. {at_once} of them with a run each (`fast` from pixels) do {gain:.2f} times "
        f"the work of one: {days:,.0f} days."
    )


def _paper_on_gpus(runs: dict[str, dict], updates: dict[str, dict]) -> str:
    learning, rest = {}, {}  # seconds of a frame: its updates on a GPU, and on a core all but the updates
    for obs, row in updates.items():
        work, count = row["work"], _per_frame(runs[obs])["updates"]
        flops = work["product_flops"] + work["convolution_flops"]
        moving = work["bytes"] / H100_BANDWIDTH
        learning[obs] = count * (flops / H100_FLOPS + moving + work["operations"] * H100_OPERATION)
        rest[obs] = 1 / runs[obs]["median"] - count * row["turns"][OURS]["median"]
    frames = RUNS_OF_PAPER * FRAMES_OF_PAPER
    on_gpu, on_cores = (frames * sum(part.values()) / 3600 for part in (learning, rest))
    on_cores /= H100_CORES
    one = max(on_gpu, on_cores)
    longest = FRAMES_OF_PAPER * max(learning[obs] + rest[obs] for obs in runs) / 3600
    learned, rested = ({obs: 1e3 * part[obs] for obs in runs} for part in (learning, rest))
    operations = {obs: row["work"]["operations"] for obs, row in updates.items()}
    return (
        f"On an H100 nothing was measured; on paper it is this. By their flops and bytes (67 Tflop/s in float32 and "
        f"3.35 TB/s, NVIDIA's data sheet) and 2 µs, assumed, for each of an update's {_each(operations, 'operations')} "
        f"in a graph, the updates of a frame take {_each(learned, 'ms')} there, {on_gpu:,.0f} h for all frames. The "
        f"rest of a frame, physics and pictures, takes {_each(rested, 'ms')} of a core of this machine, "
        f"{on_cores:,.0f} h on {H100_CORES} such cores. So one H100 with {H100_CORES} cores needs {one:,.0f} h, with "
        f"several runs at a time, and {GPUS} of them in a Ray cluster {max(one / GPUS, longest):.1f} h, where a single "
        f"run takes {longest:.1f} h: at best, as runs do not share a GPU without loss."
    )


def _each(values: dict[str, float], unit: str) -> str:
    return " and ".join(f"{values[obs]:,.3g} {unit} from {obs}" for obs in sorted(values))


def write(path: pathlib.Path) -> None:
    """The tables of a benchmark's JSON beside it."""
    text = as_text(json.loads(path.read_text()))
    files.write_atomically(path.with_suffix(".md"), f"# {path.stem}\n\n{text}\n".encode())


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
