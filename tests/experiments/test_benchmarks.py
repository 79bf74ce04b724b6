"""The benchmark counts what it times, and its floor and tables say what they mean."""

import itertools
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from small import STATE, call, command, spawned, start

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import (
    compare,
    environment,
    gpu_check,
    learner,
    offline_pack,
    peers,
    tables,
    timing,
    training,
)
from pixel_ddpg import presets
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime import layers, machine
from pixel_ddpg.training.rows import TrainRow

TINY = ("preset=fast", "obs=pixels", "env.size=32", "replay.batch_size=4", "agent.hidden=[8]")
QUICK_RUN = (*TINY, "train.start_steps=30", "env.renderings=1", "env.action_repeat=4")


def test_contestants_do_equal_work_in_turn():
    """One that is timed for less work, or always after another has warmed the caches."""
    order, done = [], {"a": 0, "b": 0}

    def work(name):
        order.append(name)
        done[name] += 1

    turns = timing.alternate(
        {name: (lambda name=name: work(name), lambda name=name: done[name]) for name in done},
        3,
        2,
    )
    assert "".join(order).endswith("aabb" * 3)
    assert {name: turn.count for name, turn in turns.items()} == {"a": 7, "b": 7} and len(turns["a"].seconds) == 3
    with pytest.raises(AssertionError, match="not the same work"):
        timing.alternate({"a": (lambda: work("a"), lambda: done["a"]), "b": (lambda: None, lambda: done["b"])}, 1, 1)


@pytest.mark.long
def test_whole_runs_are_watched_in_turn():
    """A run that trains on while another is timed, turns of other work, or processes that outlive the measurement."""
    contestants = [training.Runs((*QUICK_RUN, "train.updates_per_step=0.5")), training.Runs(QUICK_RUN, at_once=2)]
    alone, two = training.measure(contestants, 2, 1.0)
    assert multiprocessing.active_children() == []
    assert [len(together) for together in alone["turns"] + two["turns"]] == [1, 1, 2, 2]
    for turn in alone["turns"][0] + alone["turns"][1]:
        assert turn["frames"] == 4 * turn["steps"] == 8 * turn["updates"] > 0 and turn["seconds"] > 0.5
        assert 0 <= turn["pictures"] - turn["steps"] <= 1 + turn["steps"] / 200  # one more where an episode begins
    spans = [[(turn["begin"], turn["end"]) for turn in together] for together in alone["turns"] + two["turns"]]
    for one, other in itertools.combinations(spans, 2):
        assert all(a[1] <= b[0] or b[1] <= a[0] for a in one for b in other)
    speeds = [sum(turn["frames"] / turn["seconds"] for turn in together) for together in two["turns"]]
    assert two["frames_per_second"] == speeds and min(speeds) <= two["median"] <= max(speeds)
    assert alone["memory_bytes"] > 2**27 and alone["drawn_by"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("preset=fats",), "preset"),
        ((*QUICK_RUN, "frames=200"), "ask for fewer"),
        (("train.start_steps=-1",), "start_"),
    ],
)
def test_a_run_that_cannot_be_watched_tells_why(words, message):
    """A measurement that waits for ever for a process that is gone."""
    with pytest.raises(UserError, match=message):
        training.measure([training.Runs((*words, "obs=state"))], 1, 600)
    assert multiprocessing.active_children() == []


def test_a_run_that_is_killed_between_its_turns_is_told(monkeypatch):
    """A broken pipe, which ends a command as if the reader of its output had gone: exit code 0, no result."""
    go, rounds = training._Run.go, []

    def kill_first(run):
        if rounds:
            run._process.kill()
            run._process.join()
        rounds.append(run)
        go(run)

    monkeypatch.setattr(training._Run, "go", kill_first)
    with pytest.raises(UserError, match="exit code -9") as caught:
        training.measure([training.Runs((*QUICK_RUN, "obs=state"))], 2, 0.2)
    assert caught.value.code == 1 and not os.path.exists(rounds[0]._folder.name)


def test_a_stopwatch_counts_each_second_once():
    """A part within a part counted twice."""

    class Machine:
        def inner(self):
            time.sleep(0.02)

        def outer(self):
            time.sleep(0.01)
            self.inner()

    machine, watch = Machine(), timing.Stopwatch()
    watch.watch(machine, "inner", "inner")
    watch.watch(machine, "outer", "outer")
    start = time.perf_counter()
    machine.outer()
    total = time.perf_counter() - start
    assert watch.seconds["inner"] >= 0.02 and watch.seconds["outer"] >= 0.01
    assert sum(watch.seconds.values()) <= total
    assert sum(share for _, share in watch.shares(total)) == pytest.approx(1)


def test_the_floor_counts_the_updates_flops():
    """Products or passes left out: a floor that is easy to come near. One layer by hand."""
    words = ("preset=ddpg2016_no_bn", "obs=state", "replay.batch_size=8", "agent.hidden=[16]", "agent.action_layer=0")
    work = learner.work_of(words)
    observation, actions, batch, width = 17, 6, 8, 16
    actor, critic = (
        2 * batch * (n * width + width * m) for n, m in ((observation, actions), (observation + actions, 1))
    )
    of_inputs = 2 * batch * observation * width, 2 * batch * (observation + actions) * width
    forward = 2 * actor + 3 * critic  # mu' and mu; Q', Q of the batch and of mu
    backward = (2 * critic - of_inputs[1]) + critic + (2 * actor - of_inputs[0])
    assert work["product_flops"] == forward + backward and work["convolution_flops"] == 0
    rates = timing.Rates(product=1e9, convolution=1e9, bandwidth=1e9)
    assert learner.floor(work, rates) == pytest.approx((forward + backward + work["bytes"]) / 1e9)
    assert learner.work_of(TINY)["convolution_flops"] > 0


def test_a_case_is_measured_with_its_stages(monkeypatch):
    """Shares that are not of one whole; a path that is called plain and is not."""
    monkeypatch.setitem(learner.CASES, "tiny", TINY)
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.01)
    row = json.loads(json.dumps(learner.measure("tiny", 2, "")))
    assert (
        set(row["turns"]) == {"ours", "torch's path", "bfloat16"}
        and len({turn["count"] for turn in row["turns"].values()}) == 1
    )
    assert sum(row["stages"].values()) == pytest.approx(1) and min(row["stages"].values()) >= 0
    available = layers.AVAILABLE
    with learner.plain_path():
        assert not layers.AVAILABLE
    assert available == layers.AVAILABLE
    assert "ms an update" in tables.learner_line(row) and "tiny" in tables.learner([row])


def test_an_environments_steps_are_counted_and_shown():
    """A part that is timed with fewer steps or pictures than the others."""
    row = json.loads(json.dumps(environment.measure("ddpg2016", 1, units=3)))
    assert len({turn["count"] for turn in row["turns"].values()}) == 1
    assert row["pictures"] == 3 and row["frames"]["pixels"] == 3 and row["drawn_by"]
    assert list(row["turns"]) == ["state", "physics", "pictures", "both"]
    assert "| ddpg2016 | " in tables.environment([row]) and "both" in tables.environment_line(row)


def test_stable_baselines3_does_the_same_updates():
    """A peer with another net or batch."""
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed: pip install -e .[bench]")
    settings, agent, replay = learner.make(learner.LIKE_SB3)
    update, updates = peers.stable_baselines3(settings, replay)
    update()
    assert updates() == 1
    theirs = update.__closure__
    model = next(cell.cell_contents for cell in theirs if hasattr(cell.cell_contents, "policy"))
    sizes = lambda module: sorted(tuple(p.shape) for p in module.parameters())  # noqa: E731
    assert sizes(model.actor) == sizes(agent.actor) and sizes(model.critic) == sizes(agent.critic)
    assert model.batch_size == settings.replay.batch_size


def test_drqv2_that_is_not_there_is_told():
    """A traceback from an import."""
    code, _, err = call(
        "experiments.benchmarks.__main__", "parts=[learner]", "cases=[drqv2]", "drqv2=nowhere", "out=a.json"
    )
    assert code == 2 and "drqv2=nowhere (No module" in err and err.count("\n") == 1


def test_another_checkout_than_drqv2s_is_told(tmp_path, monkeypatch):
    """A traceback from within other code of that name, after minutes."""
    for name in ("drqv2", "replay_buffer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "drqv2.py").touch()
    (tmp_path / "replay_buffer.py").touch()
    with pytest.raises(UserError, match="no DrQV2Agent"):
        peers.import_drqv2(str(tmp_path))
    for name in ("drqv2", "replay_buffer"):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("parts=[lerner]", "did you mean learner"), ("cases=[slow]", "unknown case"), ("rounds=0", "above 0"),
        ("out=a.txt", "must end in .json"), ("threads=[0]", "above 0"), ("threads=[1000]", "cores"),
        ("seconds=nan", "finite"), ("parts=[]", "must name something"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(word, part):
    """A traceback, or hours of measuring before it."""
    code, _, err = call("experiments.benchmarks.__main__", word)
    assert code == 2 and err.startswith("pixel_ddpg: ") and err.count("\n") == 1 and part in err


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured():
    """Minutes of measuring whose result has no place."""
    code, printed, err = call("experiments.benchmarks.__main__", "parts=[learner]", "out=/proc/a.json")
    assert (code, printed) == (1, "") and "/proc/a.json" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"facts": {}, "learner": [{"name": "old"}]}'])
def test_a_file_that_cannot_be_shown_is_left_alone(content, tmp_path):
    """A traceback after minutes of measuring, or a file of something else that is written over."""
    out = tmp_path / "speed.json"
    out.write_text(content)
    code, _, err = call("experiments.benchmarks.__main__", "parts=[learner]", f"out={out}")
    assert code == 2 and "no benchmark of this version" in err and err.count("\n") == 1
    assert out.read_text() == content


@pytest.mark.parametrize("unlike", ["2" * 40, "1" * 40 + "+", None])
def test_rows_are_kept_as_they_come_and_none_is_lost(tmp_path, monkeypatch, capsys, unlike):
    """Minutes of measuring that Ctrl-C takes; rows of a case that is not measured again; rows of two codes in one."""

    def row(name, threads, seconds):
        turns = {"ours": {"seconds": [seconds], "median": seconds}}
        ratio = {"torch's path": {"median": 1.0, "least": 1.0, "most": 1.0}}
        kept = {"of_floor": 1.0, "floor": 1.0, "products_alone": 1.0, "stages": {}, "bfloat16_times_as_fast_as": {}}
        return {"name": name, "threads": threads, "turns": turns, "times_as_fast_as": ratio, **kept}

    def interrupted():
        yield row("a", 1, 3.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["benchmarks", "rounds=1"])
    facts = {"versions": {}, "gpu": None, "cpu": "a", "cores": 2, "python": "3", "commit": "1" * 40}
    found = benchmarks.Found(tmp_path / "a.json", facts)
    found.add("learner", iter([row("a", 1, 1.0), row("b", 1, 1.0), row("a", 2, 1.0)]))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "cases=[a]"])
    found = benchmarks.Found(tmp_path / "a.json", facts)
    part = benchmarks.Benchmarks(cases=["a"])
    found.refuse_losses(part)
    with pytest.raises(KeyboardInterrupt):
        found.add("learner", interrupted())
    read = tables.read(tmp_path / "a.json")
    medians = {(row["name"], row["threads"]): row["turns"]["ours"]["median"] for row in read["learner"]}
    assert medians == {("a", 1): 3.0, ("b", 1): 1.0, ("a", 2): 1.0} and capsys.readouterr().out.count("ms") == 4
    commands = read["made"]["learner"]["command"]
    assert commands.endswith("benchmarks rounds=1; python -m experiments.benchmarks 'cases=[a]'")
    later = benchmarks.Found(tmp_path / "a.json", facts | {"commit": unlike})
    with pytest.raises(UserError, match="learner of other code"):
        later.refuse_losses(part)
    later.refuse_losses(benchmarks.Benchmarks(parts=["training"], threads=[1]))
    for name in ("c", "d"):
        later.add("learner", iter([row(name, 1, 1.0)]))
    names = [row["name"] for row in tables.read(tmp_path / "a.json")["learner"]]
    assert names == (["c", "d"] if unlike == "2" * 40 else ["d"])
    with pytest.raises(UserError, match="of another machine"):
        benchmarks.Found(tmp_path / "a.json", facts | {"cpu": "another"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_stopped_leaves_no_process_and_no_folder(tmp_path, number):
    """Tracebacks of runs that were importing; 90 MB in /tmp; half a minute until it ends."""
    words = ["parts=[training]", f"out={tmp_path / 'a.json'}", "threads=[1]"]
    (tmp_path / "tmp").mkdir()
    folders = {"TMPDIR": str(tmp_path / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # torch keeps its cache
    process = start("experiments.benchmarks", *words, start_new_session=True, env=folders)
    while not (begun := spawned(process)) and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (130, "pixel_ddpg: interrupted\n")
    assert not any(run.is_running() for run in begun) and list((tmp_path / "tmp").iterdir()) == []


def test_the_command_measures_and_draws(tmp_path):
    """The whole of it, for one case; what was measured before of other parts is kept."""
    out = tmp_path / "new" / "speed.json"
    out.parent.mkdir()
    turn = {"seconds": [1.0], "median": 1.0, "count": 1}
    kept = {"preset": "old", "frames": {"state": 1, "pixels": 1}, "pictures": 1, "drawn_by": "nobody"}
    kept["turns"] = dict.fromkeys(("state", "physics", "pictures", "both"), turn)
    made = {"command": "before", "commit": "0" * 40, "date": "2026-01-01"}
    facts = machine.facts(torch.device("cpu"), 1) | {"commit": "0" * 40}
    out.write_text(json.dumps({"facts": facts, "environment": [kept], "made": {"environment": made}}))
    words = ["parts=[learner]", "cases=[400/300]", "rounds=1", "threads=[1]", f"out={out}"]
    code, printed, err = command("experiments.benchmarks", *words)
    assert code == 0, err
    found = json.loads(out.read_text())
    assert found["learner"][0]["name"].startswith("400/300") and found["environment"] == [kept]
    assert out.with_suffix(".png").stat().st_size > 10_000 and "of floor" in printed
    assert found["made"]["environment"] == made and found["made"]["learner"]["command"].endswith(shlex.join(words))
    goals = tables.goals(found).splitlines()
    assert len(goals) == 2 + 8 and sum("not measured" in line for line in goals) >= 6


@pytest.mark.speed
def test_this_checkout_beside_another_commit():
    """Run by hand: BASE=<commit> pytest -m speed -s. Prints the ratio; only the work must be the same."""
    for obs in ("state", "pixels"):
        words = ["task=cheetah-run", f"obs={obs}", "frames=3000"]
        found = compare.compare(os.environ.get("BASE", "HEAD~1"), words, rounds=3)
        print(f"\n{compare.as_text(found)}")
        assert found["updates"]["base"] == found["updates"]["this"]


def test_a_comparison_says_which_is_faster_and_refuses_what_it_cannot_time(monkeypatch):
    """JSON whose ratio may mean either; a division by no episodes; a word that is overridden without a word."""
    seconds = {"base": [2.0, 3.0], "this": [1.0, 1.0]}
    updates = {"base": [10], "this": [9]}
    found = {"words": ["obs=state"], "seconds": seconds, "updates": updates, "ratio": timing.ratios(*seconds.values())}
    assert compare.as_text(found) == (
        "obs=state: this checkout is 2.50 (2.00 to 3.00) times as fast as the base; 9 updates, the base 10"
    )
    monkeypatch.setattr(compare, "read_rows", lambda path: [TrainRow()])
    words = [*STATE, "frames=100", "eval.every=9000"]
    with pytest.raises(UserError, match="ask for more frames="):
        compare.train(compare.ROOT, words)
    code, _, err = call("experiments.benchmarks.compare", "run=['obs=state']")
    assert code == 2 and "compare sets that itself" in err


def test_a_base_that_is_no_commit_is_told():
    """git's traceback."""
    with pytest.raises(UserError, match="base=nothing-of-this-name"), compare.worktree("nothing-of-this-name"):
        pass


def test_rates_are_positive():
    """A rate of nothing, by which any floor is infinite."""
    rates = timing.measure_rates()
    assert min(rates.product, rates.convolution, rates.bandwidth) > 1e8


def test_gpu_check_without_a_gpu_is_one_line():
    """Minutes of tests that all skip, and a JSON of nothing."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, _, err = call("experiments.benchmarks.gpu_check")
    assert code == 2 and "no CUDA device here" in err and err.count("\n") == 1


@pytest.mark.long
def test_gpu_check_leaves_one_json_whatever_fails(tmp_path, monkeypatch):
    """Names that nobody has called before a GPU does. Here a CPU stands for it, and eager updates for the graph."""

    class Eager:
        def __init__(self, *arguments):
            self._arguments = arguments

        def __call__(self):
            self._arguments[1].publish()
            agent, replay, batch_size = self._arguments
            return agent.update(replay.draw(batch_size))

    def compare(name, rounds):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check, "GraphedUpdate", Eager)
    monkeypatch.setattr(gpu_check, "CASES", ("tiny",))
    for more, _ in gpu_check.RUNS:
        presets.compose(["task=cheetah-run", "preset=drqv2", "obs=pixels", *more])
    tiny = [*TINY, "task=cheetah-run", "eval.episodes=1", "eval.video_size=0", "wandb=off", "threads=1"]
    monkeypatch.setattr(gpu_check, "COMMAND", (*tiny, "env.action_repeat=50", "eval.every=9000"))
    monkeypatch.setattr(gpu_check, "FRAMES", (50, 100))
    monkeypatch.setattr(gpu_check, "RUNS", (((*QUICK_RUN, "agent.conv=[[4,5,4,2]]"), 1),))
    monkeypatch.setattr(gpu_check, "run_tests", lambda: {"code": 0, "summary": "9 passed"})
    monkeypatch.setattr(gpu_check, "measure_compiled", compare)
    monkeypatch.setattr(gpu_check.rendering_benchmark, "PICTURES", 2)
    monkeypatch.setattr(gpu_check.machine, "prepare_cpu", lambda threads: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setitem(learner.CASES, "tiny", TINY)
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.01)
    words = ["rounds=1", "seconds=1", f"out={tmp_path / 'a.json'}"]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *words])
    code, printed, _ = call("experiments.benchmarks.gpu_check", *words)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["training"][0]["median"] > 0 and found["rendering"]["times_as_fast"]["render=fast"]["median"] > 0
    tiny, compiled = found["learner"]
    ways = ["graph, bfloat16", "graph, tf32", "graph, float32", "eager, float32"]
    assert list(tiny["turns"]) == ways and len({turn["count"] for turn in tiny["turns"].values()}) == 1
    assert tiny["times_as_fast_as_the_last"]["eager, float32"]["median"] == 1
    assert [row["kind"] for row in found["command"]["rows"]].count("run") == 2 and "cuda_numbers" in found["drawing"]
    assert code == 1 and compiled["error"] == "compiled: RuntimeError: no compiler"
    assert compiled["error"] in printed and "9 passed" in printed and "| tiny | graph, tf32 | " in printed
    assert found["made"]["command"].startswith("python -m experiments.benchmarks.gpu_check rounds=1")
    for word, part in (("rounds=0", "must be above 0"), ("seconds=nan", "must be a finite number")):
        code, _, err = call("experiments.benchmarks.gpu_check", word)
        assert code == 2 and part in err
    part = {name: found[name] for name in ("made", "facts", "tests", "learner")}  # as a machine leaves it that is lost
    assert "| goal |" in tables.gpu_goals(part) and "graph, tf32" in tables.gpu(part)
    assert "not measured" in tables.paper_cost_on_gpus(part)


def test_a_wheel_without_a_folder_is_a_wheel(tmp_path):
    """A RECORD that names files which are gone, or has other hashes: pip refuses it."""
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    contents = {"thing/__init__.py": b"VALUE = 3\n", "thing/big/data.bin": bytes(10**5)}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "all of it, as it was\n")
    offline_pack.without(wheel, ("thing/big/*",))
    target = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    assert (target / "thing/__init__.py").read_bytes() == contents["thing/__init__.py"]
    assert not (target / "thing/big").exists()
    with zipfile.ZipFile(wheel) as archive:
        assert "thing/big" not in archive.read("thing-1.0.dist-info/RECORD").decode()


@pytest.mark.parametrize("word, part", [("python=3.9", "3.11 or 3.12"), ("python=3.12", "needs the network")])
def test_an_offline_pack_that_cannot_be_made_leaves_nothing(word, part, tmp_path, monkeypatch):
    """Half a folder, which the next try finds not empty."""
    for name, value in {"INDEX_URL": "http://127.0.0.1:9", "RETRIES": "0", "NO_INDEX": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    code, _, err = call("experiments.benchmarks.offline_pack", f"out={tmp_path / 'pack'}", word)
    assert code != 0 and part in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_an_offline_pack_overwrites_nothing(tmp_path):
    """Wheels of another version among those of this one."""
    (tmp_path / "a.txt").touch()
    code, _, err = call("experiments.benchmarks.offline_pack", f"out={tmp_path}")
    assert code == 2 and "is not empty" in err and err.count("\n") == 1
