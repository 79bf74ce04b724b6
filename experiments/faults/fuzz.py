"""Command lines of real keys and odd values, and damaged files: one line and an exit code, whatever was asked."""

import json
import pathlib
import shutil

import numpy as np

from experiments.benchmarks.__main__ import Benchmarks
from experiments.faults import forked
from experiments.faults.small_runs import PIXELS, STATE
from experiments.figures import Figures
from experiments.grid import Grid
from experiments.report.__main__ import Report
from experiments.suite.plan import Suite
from pixel_ddpg.baseline import Baseline
from pixel_ddpg.config import Config, fields_of
from pixel_ddpg.doctor import Doctor
from pixel_ddpg.evaluate import Evaluate
from pixel_ddpg.list import List
from pixel_ddpg.play import Play

COMMANDS = {
    "pixel_ddpg.run": Config, "pixel_ddpg.evaluate": Evaluate, "pixel_ddpg.play": Play, "pixel_ddpg.list": List,
    "pixel_ddpg.baseline": Baseline, "pixel_ddpg.doctor": Doctor, "experiments.report": Report,
    "experiments.figures": Figures, "experiments.grid": Grid, "experiments.benchmarks": Benchmarks,
    "experiments.suite": Suite,
}  # fmt: skip
SHARES = {"pixel_ddpg.run": 20, "pixel_ddpg.evaluate": 4, "pixel_ddpg.play": 4}  # others 1
MARK = "code-was-executed"  # a file that none of the values below may make
PICKLE = b"cposix\nsystem\n(S'touch " + MARK.encode() + b"'\ntR."
VALUES = [
    "", " ", "0", "-0", "1", "-1", "2", "3", "7", "0.5", "1.5", "-0.5", "1e-320", "1e309", "nan", "-nan", "inf", "-inf",
    "1e5", "1_000", "0x10", "00", "2147483648", "99999999999999999999", "9" * 400, "null", "None", "~", "true", "FALSE",
    "yes", "off", "auto", "min", "state", "pixels", "fast", "[]", "[[]]", "[0]", "[-1,0]", "[1,2", "1,2", "]", "[nan]",
    "[[32,3,2,1]]", "[[1,1,1,1],[1,99,1,0]]", "[[0,0,0,0]]", "[[16,3,2]]", "[a,b]", "{}", "{a: 1}", "{", "a: b", "- a",
    "a=b", "=", "==", "&a *a", "*a", "!!int x", f"!!python/object/apply:os.system ['touch {MARK}']", "${oc.env:HOME}",
    "$HOME", "$(touch " + MARK + ")", "%s%n", "{0.__class__}", "\\", "'", '"', "''", "`", ";", "|", "#", "# a", "\t",
    "\n", "a\nb", "\r", "ünïcödé", "雪", "\U0001f600", "\u202egnp", "\ud800", "a" * 5000, "/dev/null", "/dev/full",
    "/proc/1/mem", "/no/such/folder", "..", ".", "a/b/c", "~/a", "-", "--", "cartpole-swingup", "cartpole-swingp",
    "reacher-easy,cart", "cuda", "cuda:7", "cpu", "mps", "cuda:-1", "_target_", "os.system", "on", "egl",
]  # fmt: skip
JSON_VALUES = [None, True, -1, 1.5, 10**400, "", "a", [], [None], {}, {"a": None}]
OF_KIND: dict[object, list[str]] = {  # values of the right kind: they get further
    int: ["0", "1", "2", "3", "5", "8", "16", "50", "1000", "100000", "10000000000", "-1"], bool: ["true", "false"],
    float: ["0", "0.5", "1", "2", "100", "1e-8", "1e-3", "1e6", "1e30", "-1"],
    list[int]: ["[]", "[1]", "[3,2,1]", "[1000000]", "[0]"],
    list[list[int]]: ["[[4,3,1,1]]", "[[1,1,1,0],[2,2,2,0]]", "[[4,16,1,0]]", "[[4,3,1,1000000]]", "[[100000,3,1,1]]"],
}  # fmt: skip
# what these would write to the checkout, if out= said nothing
OWN_FOLDERS = {"pixel_ddpg.baseline": "out=made", "experiments.benchmarks": "out=made.json"}
FLAGS = ["--help", "-h", "--cfg", "--multirun", "-m", "--no-such", "-x", "--frames=3", "--", "-"]
LOOSE = ["", "=", "=1", "a", "a=b", "agent", "agent=", "agent.=1", ".=1", "agent.hidden.0=3", "agent[hidden]=1",
         "_target_=os.system", "__class__=1", "frames==3", "+frames=3", "~frames", "frames", "FRAMES=3"]  # fmt: skip


def command_line(random: np.random.Generator) -> tuple[str, list[str]]:
    """A command, and the words of a run of a second with odd ones among them; of the others odd ones alone."""
    names = list(COMMANDS)
    weights = np.array([SHARES.get(name, 1) for name in names], float)
    module = str(random.choice(names, p=weights / weights.sum()))
    keys = [*fields_of(COMMANDS[module]), *(fields_of(Config) if module == "experiments.suite" else [])] or ["frames"]
    words = list([STATE, PIXELS][random.integers(2)]) if module == "pixel_ddpg.run" else []
    odd = [_odd_word(COMMANDS[module], _any(random, keys), random) for _ in range(random.choice([1, 1, 1, 2, 3]))]
    odd += [_any(random, source) for source in (FLAGS, LOOSE) if random.random() < 0.1]
    random.shuffle(odd)
    words += odd
    if module in OWN_FOLDERS:
        words = [word for word in words if not word.startswith("out=")] + [OWN_FOLDERS[module]]
    return module, words


def _odd_word(schema: type, key: str, random: np.random.Generator) -> str:
    item = fields_of(schema).get(key)
    fits = [*item.metadata.get("choices", ()), *OF_KIND.get(item.type, ())] if item else []
    return f"{key}={_any(random, fits if fits and random.random() < 0.7 else VALUES)}"


def _any(random: np.random.Generator, choices: list[str]) -> str:
    return choices[random.integers(len(choices))]


def lines(count: int, random: np.random.Generator, folder: pathlib.Path) -> dict:
    """`count` random command lines."""
    deep = folder / "a" / "b" / "c" / "d"  # for names like ..
    run_dir = folder / "run"
    forked.call(
        "pixel_ddpg.run", [*STATE, "frames=400", f"run_dir={run_dir}"], folder, longest=forked.WHOLE_RUN
    ).must_end_with(0)
    tally = forked.Tally()
    for _ in range(count):
        shutil.rmtree(deep, ignore_errors=True)
        deep.mkdir(parents=True)
        module, words = command_line(random)
        if module in ("pixel_ddpg.evaluate", "pixel_ddpg.play"):
            words = [f"{'run' if module.endswith('evaluate') else 'agent'}={run_dir}", *words]
        ended = forked.call(module, words, deep)
        _add(tally, f"{module} {json.dumps(words)}", ended, folder)
    return tally.row()


def _add(tally: forked.Tally, what: str, ended: forked.Ended, folder: pathlib.Path) -> None:
    executed = "code was executed" if list(folder.rglob(MARK)) else ""
    end = "killed" if ended.code is None else f"exit code {ended.code}"
    tally.add(what, end, ended.complaint or executed, ended.seconds)


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """A file with a few odd things in it."""
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(data) + 1))
        odd = _any(random, VALUES).encode(errors="surrogatepass")
        parts = data.split(b"\n")
        line = int(random.integers(len(parts)))
        how = random.integers(8)
        if how == 0:
            data = data[:at]
        elif how == 1:
            data = data[:at] + odd + data[at:]
        elif how == 2:
            data = data[:at] + bytes(random.integers(0, 256, 5, np.uint8)) + data[at + 5 :]
        elif how == 3:  # a value
            head, separator, _ = parts[line].rpartition(b": ")
            parts[line] = head + separator + odd
            data = b"\n".join(parts)
        elif how == 4:
            data = b"\n".join(parts[:line] + parts[line + 1 :])
        elif how == 5:
            data = b"\n".join(parts[: line + 1] + parts[line:])
        elif how == 6:
            parts[line] = _other_value(parts[line], random)
            data = b"\n".join(parts)
        else:
            random.shuffle(parts)
            data = b"\n".join(parts)
    return data


def _other_value(line: bytes, random: np.random.Generator) -> bytes:
    """A row of metrics.jsonl that is still JSON, with a value of another type."""
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict) or not row:
        return line
    row[_any(random, list(row))] = JSON_VALUES[random.integers(len(JSON_VALUES))]
    return json.dumps(row).encode()


def files(count: int, random: np.random.Generator, folder: pathlib.Path) -> dict:
    """`count` damaged config.yaml and metrics.jsonl, and pickles in place of tensors, each read by one command."""
    whole, run_dir = folder / "whole", folder / "r"
    forked.call(
        "pixel_ddpg.run", [*STATE, "frames=800", f"run_dir={whole}"], folder, longest=forked.WHOLE_RUN
    ).must_end_with(0)
    readers = {
        "experiments.report": [f"runs=[{folder}/r]", f"out={folder}/report"], "pixel_ddpg.run": [*STATE, "frames=1200"],
        "pixel_ddpg.evaluate": [f"run={folder}/r", "episodes=1"], "pixel_ddpg.play": [f"agent={folder}/r", "size=16"],
        "experiments.figures": [f"runs=[{folder}/r]", f"out={folder}/curves.png"],
    }  # fmt: skip
    tally = forked.Tally()
    for number in range(count):
        module = list(readers)[number % len(readers)]
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(whole, run_dir)
        if number % 25 == 0:
            for path in run_dir.rglob("tensors.safetensors"):
                path.write_bytes(PICKLE)
                (path.parent / "SHA256SUMS").unlink()
        else:
            path = run_dir / ("config.yaml" if random.random() < 0.5 else "metrics.jsonl")
            path.write_bytes(damaged(path.read_bytes(), random))
        words = readers[module] + ([f"run_dir={run_dir}"] if module == "pixel_ddpg.run" else [])
        ended = forked.call(module, words, folder)
        _add(tally, f"{module}, file {number}", ended, folder)
    return tally.row()
