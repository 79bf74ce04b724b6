"""A benchmark's JSON, and gpu_check's, as tables."""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator

from pixel_ddpg import files, presets
from pixel_ddpg.errors import UserError

FOLDER = pathlib.Path(__file__).parent / "results"
GPUS_FOLDER = FOLDER / "gpu"
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
    """Of whole runs together, or of each of them."""
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


PARTS: dict[str, tuple[str, Callable]] = {
    "learner": ("Updates of the learner, sampling included", learner),
    "rendering": ("Pictures", rendering),
    "environment": ("Steps of cheetah-run without an agent", environment),
    "training": ("Whole runs on cheetah-run", training),
    "growth": ("How it grows", growth),
}


def _versions(facts: dict) -> str:
    installed = [f"{name} {version}" for name, version in facts["versions"].items() if version]
    return ", ".join([f"Python {facts['python']}", *installed])


def _made_by(made: dict, commit: str | None) -> str:
    return f"`{made['command']}`, {made['date']}, commit {(commit or 'unknown')[:9]}"


def as_text(found: dict) -> str:
    """All tables of a benchmark, as Markdown."""
    facts = found["facts"]
    parts = [f"{facts['gpu'] or facts['cpu']}, {facts['cores']} cores; {_versions(facts)}."]
    for name, (title, table) in PARTS.items():
        if name in found:
            made = found["made"][name]
            parts += [f"## {title}", _made_by(made, made["commit"]), table(found[name])]
            if name == "learner":
                parts.append(stages(found[name]))
    return "\n\n".join(parts)


ROWS: dict[str, tuple[tuple[str, ...], Callable[[dict], str]]] = {  # what tells rows apart, and one in a line of text
    "learner": (("name", "threads"), learner_line),
    "rendering": (("task", "size"), rendering_line),
    "environment": (("preset",), environment_line),
    "training": (("words", "threads"), training_line),
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
    for name, what, peer, aim in (
        (STATE, "state, 400/300, batch 64", PEERS[0], 2.0),
        (DRQV2, "drqv2's recipe, pixels", PEERS[1], 2.5),
    ):
        row = _row(found, name) or {"times_as_fast_as": {}, "bfloat16_times_as_fast_as": {}}
        ratio = row["times_as_fast_as"].get(peer, {}).get("median")
        rows.append(_at_least(f"update: {what}, times as fast as {peer}", aim, ratio))
        if half := row["bfloat16_times_as_fast_as"].get(peer):
            rows.append(_at_least("the same with agent.precision=bfloat16", aim, half["median"]))
    for name, what, aim in ((STATE, "state, 400/300, batch 64", 1.3), (SMALL, "three 3x3 convolutions, 64x64", 1.5)):
        value = (_row(found, name) or {}).get("of_floor")
        met = value is not None and value <= aim
        rows.append(_goal(f"update: {what}, times the floor", f"{aim:g} or less", value, met))
    return _goals_table([*rows, *_picture_goals(found.get("rendering", []))])


def _picture_goals(pictures: list[dict]) -> Iterator[list[str]]:
    of = f"{len(pictures)} task{'s' * (len(pictures) != 1)}"
    for label, aim, bound in (("render=exact", 4.0, 0.01), ("render=fast", 10.0, 1.0)):
        slowest = min((row["times_as_fast"][label]["median"] for row in pictures), default=None)
        yield _at_least(f"{label}, times as fast as dm_control's, minimum of {of}", aim, slowest)
        value = max((row["difference"][label] for row in pictures), default=None)
        what = f"{label}, mean difference of 255, maximum of {of}"
        yield _goal(what, f"below {bound:g}", value, value is not None and value < bound)


def _at_least(what: str, aim: float, value: float | None) -> list[str]:
    return _goal(what, f"{aim:,g} or more", value, value is not None and value >= aim)


def _goal(what: str, aim: str, value: float | None, met: bool) -> list[str]:
    if value is None:
        return [what, aim, "not measured", ""]
    return [what, aim, f"{value:,.0f}" if value >= 100 else f"{value:.3f}", "yes" if met else "no"]


def _goals_table(rows: list[list[str]]) -> str:
    return _table(["goal", "aim", "measured", "met"], rows)


def gpu(found: dict) -> str:
    """All tables of a gpu_check, as Markdown; what failed is named. `made` may have a person's note."""
    facts, tests, made = found["facts"], found["tests"], found["made"]
    failed = "; ".join([*tests.get("failed", []), *broken(found)])
    updates = [
        [row["name"], way, milliseconds(turn), times(row["times_as_fast_as_the_last"][way])]
        for row in _whole(found, "learner")
        for way, turn in row["turns"].items()
    ]
    pictures = _whole(found, "rendering")
    trained = [
        [" ".join(row["words"]), str(row["at_once"]), frames_per_second(row)]
        + [f"{row['median'] * _per_frame(row)['updates']:.3g}", f"{row['memory_bytes'] / 2**30:.1f}"]
        for row in _whole(found, "training")
    ]
    parts = [
        f"{facts['gpu']}, {facts['cores']} cores of {facts['cpu']}; {_versions(facts)}.",
        f"{_made_by(made, facts['commit'])}. Tests: {tests.get('summary', 'none')}. {failed}".rstrip(),
        made.get("note", ""),
        "## Updates of the learner, sampling included",
        _table(["update", "way", "ms", "times as fast as its last way"], updates),
        "## Pictures",
        *(f"Drawn by {row['drawn_by']}." for row in pictures),
        rendering(pictures) if pictures else "",
        "## Whole runs on cheetah-run",
        _table(["run", "at once", "frames/s of all", "updates/s of all", "RAM of one, GiB"], trained),
    ]
    return "\n\n".join(filter(None, parts))


def _parts(found: dict, name: str) -> list[dict]:
    part = found.get(name, [])
    return part if isinstance(part, list) else [part]


def _whole(found: dict, name: str) -> list[dict]:
    return [part for part in _parts(found, name) if "error" not in part]


def broken(found: dict) -> list[str]:
    """How parts of a gpu_check failed."""
    names = ("tests", "drawing", "command", "learner", "rendering", "training")
    return [part["error"] for name in names for part in _parts(found, name) if "error" in part]


def gpu_goals(found: dict) -> str:
    """What was aimed at on a GPU, and what was measured: over the numbers of environments, the fastest."""
    rows = []
    for envs, aim in ((1, 600), (16, 2500)):
        of_these = [row for row in _whole(found, "training") if row["at_once"] == 1 and _environments(row) == envs]
        best: dict = max(of_these, key=lambda row: row["median"], default={"words": [], "median": None})
        what = f"drqv2's recipe from pixels, {envs} environment{'s' * (envs > 1)}, frames/s ({' '.join(best['words'])})"
        rows.append(_at_least(what, aim, best["median"]))
    return _goals_table([*rows, *_picture_goals(_whole(found, "rendering"))])


def _environments(row: dict) -> int:
    return next((int(word.removeprefix("envs=")) for word in row["words"] if word.startswith("envs=")), 1)


RUNS_OF_PAPER, FRAMES_OF_PAPER = 27 * 5, 2_500_000  # tasks times seeds, from state and from pixels each
GPUS = 64


def paper_cost(found: dict) -> str:
    """What the paper's whole experiment takes here, by measured speeds. With the arithmetic."""
    runs = {
        row["words"][1].removeprefix("obs="): row
        for row in found.get("training", [])
        if row["threads"] == 1 and "preset=ddpg2016" in row["words"]
    }
    if not (runs and "growth" in found):
        return "The paper's whole experiment: not measured here."
    frames = RUNS_OF_PAPER * FRAMES_OF_PAPER
    speeds = {obs: row["median"] for obs, row in runs.items()}
    hours = {obs: frames / speed / 3600 for obs, speed in speeds.items()}
    cores = found["facts"]["cores"]
    sharing = {row["at_once"]: row["median"] for row in found["growth"]["sharing"]}
    at_once = max(n for n in sharing if n <= cores)
    gain = sharing[at_once] / sharing[1]
    days = sum(hours.values()) / gain / 24
    return (
        f"The paper's whole experiment, ablations apart, is {RUNS_OF_PAPER} runs (27 tasks, 5 seeds) of "
        f"{FRAMES_OF_PAPER:,} frames from pixels, and as many from state: {frames / 1e6:g} million frames each. "
        f"`ddpg2016` on one core trains at {_each(speeds, 'frames/s')}, without evaluations: {_each(hours, 'h')}. "
        f"{at_once} cores with a run each do {gain:.2f} times the work of one (measured with "
        f"`fast` from pixels), so the whole takes {days:,.0f} days."
    )


def paper_cost_on_gpus(found: dict) -> str:
    """The same on such GPUs: between what updates and pictures alone take, and a run after another."""
    updates = {row["name"]: row["turns"]["graph, float32"]["median"] for row in _whole(found, "learner")}
    pictures, commands = _whole(found, "rendering"), _whole(found, "command")
    if not (pictures and commands and all(f"ddpg2016, {obs}" in updates for obs in ("pixels", "state"))):
        return "The paper's whole experiment on such GPUs: not measured."
    of_picture = pictures[0]["turns"]["render=fast"]["median"]
    frame = {}  # seconds of one: its updates and pictures
    for obs in ("pixels", "state"):
        settings = presets.compose(["task=cheetah-run", "preset=ddpg2016", f"obs={obs}"])
        of_step = settings.train.updates_per_step * updates[f"ddpg2016, {obs}"]
        of_step += settings.env.renderings * of_picture if obs == "pixels" else 0
        frame[obs] = of_step / settings.env.action_repeat
    busy = RUNS_OF_PAPER * FRAMES_OF_PAPER * sum(frame.values()) / 3600
    trained = [row["frames_per_second"] for row in commands[0]["rows"] if row["kind"] == "train"]
    speed = statistics.median(trained)
    alone = FRAMES_OF_PAPER / speed / 3600
    runs = len(frame) * RUNS_OF_PAPER
    return (
        f"The paper's whole experiment on such GPUs, estimated from these measurements: a frame's updates of "
        f"`ddpg2016`, run as CUDA graphs in float32, and its images (cheetah-run's at {pictures[0]['size']} pixels, "
        f"`render=fast`) take {_each({obs: 1e3 * seconds for obs, seconds in frame.items()}, 'ms')}. However runs "
        f"share it, this takes at least {busy:,.0f} h on one GPU and {busy / GPUS:.1f} h on {GPUS} in a Ray cluster. "
        f"The run that gpu_check made, from pixels, trained at {speed:.0f} frames/s ({min(trained):.0f} to "
        f"{max(trained):.0f} by episode), {alone:.1f} h for {FRAMES_OF_PAPER:,}. One after another, all {runs} take at "
        f"that speed {runs * alone:,.0f} h on one GPU and {math.ceil(runs / GPUS) * alone:.0f} h on {GPUS}."
    )


def _each(values: dict[str, float], unit: str) -> str:
    return " and ".join(f"{values[obs]:,.3g} {unit} from {obs}" for obs in sorted(values))


def write(path: pathlib.Path, as_tables: Callable[[dict], str] = as_text) -> None:
    """The tables of a benchmark's JSON, or of gpu_check's, beside it."""
    text = as_tables(json.loads(path.read_text()))
    files.write_atomically(path.with_suffix(".md"), f"# {path.stem}\n\n{text}\n".encode())
