"""Many runs: what is planned, and what survives."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
from unittest.mock import Mock

import psutil
import pytest
from rich.console import Console
from small import STATE, assert_same_run, command, rows, start, train

from experiments.profiles import FIGURE2, PROFILES, SETS
from experiments.report import runs
from experiments.suite import __main__ as suite
from experiments.suite import board, cluster, worker
from experiments.suite.board import makespan, print_plan
from experiments.suite.cluster import measure, share, slots
from experiments.suite.plan import Suite, make_jobs, read, unfinished
from experiments.suite.worker import Estimate
from pixel_ddpg import presets
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError
from pixel_ddpg.training import checkpoint, run_folder

OF_SUITE = ("task=", "obs=", "frames=", "threads=", "wandb=")
WORDS = [word for word in STATE if not word.startswith(OF_SUITE)]


def plan(*words: str) -> Suite:
    return read(list(words))


def test_rays_folder_of_another_user_is_told_with_what_helps(monkeypatch):
    """Advice to try again, which never helps."""
    monkeypatch.setattr(cluster.ray, "init", lambda *args, **options: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(UserError, match="RAY_TMPDIR= names a folder"), cluster.cluster(Suite()):
        pass


def test_an_address_without_ray_is_told_at_once(monkeypatch):
    """Minutes in which Ray tries it; advice to start a cluster that runs already, and wants a token."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        refusals = {
            "version of Ray, or one that wants RAY_AUTH_MODE=token": ConnectionError("no answer"),
            "Ray wants a token": cluster.ray.exceptions.AuthenticationError("none here"),
        }
        for told, error in refusals.items():
            monkeypatch.setattr(cluster.ray, "init", Mock(side_effect=error))
            with pytest.raises(UserError, match=told), cluster.cluster(Suite(address=address)):
                pass
    monkeypatch.setattr(cluster.ray, "init", Mock(side_effect=AssertionError))
    for nowhere in (address, f"ray://{address}"):
        with pytest.raises(UserError, match="ray start --head"), cluster.cluster(Suite(address=nowhere)):
            pass


def test_sets_hold_what_their_names_say():
    """A set with a task that does not exist, or one too few."""
    sizes = {name: len(set(names)) for name, names in SETS.items()}
    assert sizes == {
        "paper": 27, "figure2": 10, "planet6": 6, "dmc_easy": 9, "dmc_medium": 11, "dmc_hard": 3, "dmc28": 28,
        "ladder": 10,
    }  # fmt: skip
    assert {task for names in SETS.values() for task in names} <= set(tasks.CATALOGUE)
    assert set(FIGURE2) < set(SETS["paper"])


def test_every_profile_can_be_composed(tmp_path):
    """A profile with a word that a run refuses."""
    for name in PROFILES:
        settled = plan(f"profile={name}", f"out={tmp_path}", "seeds=1")
        one = {(job.preset, job.obs): job for job in make_jobs(settled)}
        assert unfinished(list(one.values()), settled.frames) == list(one.values())


def test_profiles_are_the_papers_experiment():
    """A variant, a seed or a budget too few."""
    paper = plan("profile=paper")
    jobs = make_jobs(paper)
    assert len(jobs) == 27 * 4 * 5 and paper.frames == 2_500_000
    assert {(job.preset, job.obs) for job in jobs} == {
        ("ddpg2016", "state"), ("ddpg2016", "pixels"), ("dpg_replay", "state"), ("ddpg2016_no_bn", "state"),
    }  # fmt: skip
    smoke = make_jobs(plan("profile=smoke"))
    assert {(job.task, job.obs) for job in smoke} == set(itertools.product(SETS["paper"], ("pixels", "state")))


def test_overrides_replace_the_profiles_own():
    """tasks=, obs=, seeds=, preset= and frames= that are ignored, or read in another way than they are written."""
    assert plan("tasks=planet6", "tasks=[cart,planet6,cart]").tasks == ["cart", *tasks.PLANET6]
    assert plan("seeds=3").seeds == [0, 1, 2] and plan("seeds=[4,2]").seeds == [4, 2]
    assert plan("obs=state").obs == ["state"] and plan("obs=[state,pixels]").obs[1] == "pixels"
    assert plan("frames=77").frames == 77 and plan().controls == ["fast_no_target"]
    drqv2 = plan("preset=drqv2")
    assert (drqv2.preset, drqv2.controls, drqv2.out) == (["drqv2"], [], "runs/quick")
    assert plan("tasks=ladder").preset == ["dpg", "offpolicy_dpg", "dpg_replay", "ddpg2016_no_bn", "ddpg2016"]
    assert plan("tasks=ladder", "preset=fast").preset == ["fast"]
    assert set(plan("tasks=ladder").preset) < set(presets.PRESETS)


def test_words_of_a_run_go_to_every_run():
    """A list, a quote or a dot that does not arrive as it was written."""
    given = ["agent.hidden=[12,12]", "env.size=84", "wandb_project=it's", "replay.n_step=5"]
    settled = plan("tasks=cart", *given, "seeds=2")
    assert settled.run == given
    for job in make_jobs(settled):
        assert set(given) < set(job.words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["profile=quik"], "unknown profile 'quik'; did you mean quick?"),
        (["tasks=papr"], "unknown task or set 'papr'"),
        (["obs=[state,pixel]"], "unknown obs 'pixel'; did you mean pixels?"),
        (["preset=fats"], "unknown preset 'fats'; did you mean fast?"),
        (["seeds=0"], "seeds=0 must be a whole number, at least 1"),
        (["seeds=[0,x]"], "seeds=x must be a whole number"),
        (["frames=1e5"], "must be a whole number"),
        (["threads=0"], "threads=0 must be at least 1"),
        (["task=cart"], "unknown key 'task'; did you mean tasks?"),
        (["run=[seed=5]"], "run=[seed=...]: the suite sets seed of each run itself"),
        (["run=[env.size=84,frames=600]"], "run=[frames=...]: the suite sets frames of each run itself"),
    ],
)
def test_mistakes_are_told(words, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[").replace("?", r"\?")):
        plan(*words)


def test_a_folder_keeps_its_dollars():
    """Runs in another folder than the suite looks in, because $$ and ${seed} have a meaning in a run's run_dir."""
    for job in make_jobs(plan("tasks=cart", "seeds=2", "out=us$$dollar/${seed}")):
        assert presets.compose(list(job.words)).run_dir == str(job.run_dir)
        assert job.run_dir.parts[:2] == ("us$$dollar", "${seed}")


def test_the_first_seed_of_all_comes_first():
    """A suite that is stopped halfway with five seeds of one task and none of another."""
    seeds = [job.seed for job in make_jobs(plan("seeds=3"))]
    assert seeds == sorted(seeds)


def test_a_run_that_continues_is_planned_for_its_rest(tmp_path):
    """Hours of a plan that count what is done already."""
    words = ["tasks=cartpole", "obs=state", "preset=fast", "seeds=1", "frames=100", f"out={tmp_path}"]
    (job,) = make_jobs(plan(*words))
    assert checkpoint.fraction_left(job.run_dir, 100) == 1
    for name in ("000000000050", "000000000075"):
        (job.run_dir / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.fraction_left(job.run_dir, 100) == 0.25 and checkpoint.fraction_left(job.run_dir, 60) == 0
    with pytest.raises(UserError, match="its replay was deleted, so it cannot be resumed to frames=100: choose"):
        unfinished([job], 100)
    (job.run_dir / "checkpoints" / "replay").mkdir()
    assert unfinished([job], 100) == [job]


def test_a_run_of_other_settings_is_refused(tmp_path):
    """A folder whose finished runs are taken for those that are asked for."""
    words = ["tasks=cartpole", "obs=state", "preset=fast", "seeds=1", "frames=100", f"out={tmp_path}"]
    (job,) = make_jobs(plan(*words))
    job.run_dir.mkdir(parents=True)
    run_folder.write_config(presets.compose(list(job.words)), job.run_dir)
    run_folder.write_status(job.run_dir, "done", frame=100)
    assert unfinished([job], 100) == [] and unfinished([job], 101) == [job]
    (other,) = make_jobs(plan(*words, "agent.tau=0.5"))
    with pytest.raises(UserError, match=r"was started with agent.tau=0.01: .*out="):
        unfinished([other], 100)
    (mistyped,) = make_jobs(plan(*words, "agent.criticlr=1"))
    with pytest.raises(UserError, match=r"unknown key 'agent.criticlr'; did you mean agent.critic_lr "):
        unfinished([mistyped], 100)


def test_commands_for_one_folder_are_all_kept(tmp_path, monkeypatch):
    """A report that names the last command as the one that made all runs, or forgets what an earlier one wants."""
    for task in ("cart", "pendulum", "cart"):
        settled = plan(f"tasks={task}", "obs=state", "preset=fast", "seeds=1", f"out={tmp_path}")
        monkeypatch.setattr(suite.sys, "orig_argv", ["python", "-m", "experiments.suite", f"tasks={task}"])
        suite.write_plan(settled, make_jobs(settled))
    assert runs.read_plans(tmp_path / "suite.json") == {
        "python -m experiments.suite tasks=cart": [("cart", "state", "fast", 0)],
        "python -m experiments.suite tasks=pendulum": [("pendulum", "state", "fast", 0)],
    }


def test_runs_are_measured_where_they_will_run(monkeypatch):
    """The speed of the CPU, and a replay in RAM, foretold of runs that get a GPU; more tries at once than runs."""
    asked = []

    def remote(**options):
        def submit(runs, start):
            asked.append(options)
            return [Estimate(hours=1.0) for _ in runs]

        return lambda function: types.SimpleNamespace(remote=submit)

    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 1.0})
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(cluster.ray, "remote", remote)
    monkeypatch.setattr(cluster.ray, "get", lambda results: results)
    settled = plan("tasks=[cart,pendulum,cheetah]", "obs=state", "preset=fast", "seeds=2", "runs_per_gpu=2")
    assert len(measure(make_jobs(settled), settled)) == 6
    assert asked == [{"max_calls": 1, "num_cpus": 1, "num_gpus": 0.5}] * 2
    on_cpu = plan("device=cpu")
    assert share(on_cpu) == {"num_cpus": 1} and slots(on_cpu, {}) == (16, "16 cores, 1 a run")
    assert share(plan("device=cpu", "envs=4")) == {"num_cpus": 4}
    assert share(plan("device=cpu", "envs=99")) == {"num_cpus": 8}  # what the largest machine has
    assert share(plan("device=cpu", "preset=ddpg2016", "env.renderings=3"))  # which the default preset refuses


def test_what_cannot_be_measured_stops_no_other(monkeypatch):
    """A crash of one task's renderer that ends the suite."""
    words = ["obs=state", "preset=fast", "frames=100", "threads=1"]
    monkeypatch.setattr(worker.machine.rendering, "choose_backend", lambda *_: None)
    real = worker.Environment

    def environment(task, *rest):
        if task.name == "cart":
            raise RuntimeError("no GL\nat all")
        return real(task, *rest)

    monkeypatch.setattr(worker, "Environment", environment)
    bad, good = worker.measure([["task=cart", *words], ["task=cartpole", *words]], time.time())
    assert bad == Estimate(why="no GL") and good.hours > 0, good


def test_a_suite_of_which_no_run_can_begin_is_refused(tmp_path, capsys):
    """Hours of runs that all fail, or exit code 0 of a plan for them; a line for each of 54 runs."""
    words = ["tasks=[cart,cartpole]", "obs=state", "preset=fast", "seeds=2", f"out={tmp_path}"]
    settled = plan(*words, "agent.precision=tf32", "device=cpu")
    jobs = make_jobs(settled)
    costs = dict(zip(jobs, worker.measure([list(job.words) for job in jobs], time.time())))
    with pytest.raises(UserError, match=r"no run can begin: agent\.precision=tf32 is for a GPU") as caught:
        print_plan(Console(quiet=True), settled, jobs, costs, 2, "")
    assert caught.value.code == 1 and str(caught.value).count("tf32") == 1
    costs[jobs[0]] = Estimate(1.0, 1, 1, 1)
    print_plan(Console(), settled, jobs, costs, 2, "")
    assert capsys.readouterr().out.count("not measured") == 1


def test_disk_that_a_run_has_taken_is_not_asked_again(tmp_path, monkeypatch):
    """A suite that cannot resume because its own replays fill the disk."""
    settled = plan("tasks=cartpole", "obs=state", "preset=fast", "seeds=1", f"out={tmp_path}")
    (job,) = make_jobs(settled)
    monkeypatch.setattr(board.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=6 * 2**20))
    costs = {job: Estimate(1.0, 1, 20 * 2**20, 2**20)}
    with pytest.raises(UserError, match=r"the runs need 21\.0 MiB of disk, 6\.0 MiB are free"):
        print_plan(Console(quiet=True), settled, [job], costs, 2, "")
    (job.run_dir / "checkpoints" / "replay").mkdir(parents=True)
    (job.run_dir / "checkpoints" / "replay" / "a").write_bytes(bytes(15 * 2**20))
    print_plan(Console(quiet=True), settled, [job], costs, 2, "")
    (one, *rest) = make_jobs(dataclasses.replace(settled, seeds=[0, 1, 2]))
    costs = {each: costs[job] for each in (one, *rest)}  # what one holds is of no use to another
    with pytest.raises(UserError, match=r"the runs need 43\.0 MiB of disk"):
        print_plan(Console(quiet=True), settled, [job], costs, 2, "")


def test_makespan_is_that_of_a_naive_queue():
    """An estimate that adds up what runs side by side."""
    draws = random.Random(0)
    for _ in range(20):
        hours, at_once = [draws.random() for _ in range(draws.randint(1, 12))], draws.randint(1, 4)
        ends = [0.0] * at_once
        for each in hours:
            ends[ends.index(min(ends))] += each
        assert makespan(hours, at_once) == pytest.approx(max(ends))


def test_a_finished_run_without_its_replay_can_act_but_not_resume(tmp_path):
    """A traceback, or a run that starts again unasked."""
    run = train(STATE, tmp_path)
    observation = run.evaluation.reset().observation
    checkpoint.drop_replay(tmp_path)
    assert (run_folder.load_run(tmp_path)[1].act(observation) == run.agent.act(observation)).all()
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*.safetensors")) < 100_000
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]  # as docs/reliability.md says
    assert subprocess.run(check, cwd=checkpoint.newest(tmp_path)).returncode == 0
    with pytest.raises(UserError, match="its replay was deleted, so it cannot be resumed"):
        train([*STATE, "frames=3200"], tmp_path)


@pytest.mark.parametrize("keep_replay", [False, True])
def test_a_suites_run_keeps_its_replay_where_that_is_asked(keep_replay, tmp_path):
    """Disks that fill up with replays, or runs that cannot be trained further though keep_replay=true was asked."""
    words = [*STATE, f"run_dir={tmp_path}/run"]
    code = "import sys; from experiments.suite import worker; sys.exit(worker.train(*eval(sys.argv[1])))"
    given = repr((words, f"{tmp_path}/run", str(tmp_path), keep_replay))
    assert subprocess.run([sys.executable, "-c", code, given]).returncode == 0
    assert bool(list(tmp_path.glob("run/checkpoints/replay/*"))) == keep_replay
    assert command("pixel_ddpg.run", *words, "frames=1800")[0] == (0 if keep_replay else 2)


# --- real suites ---


def words_of(out: pathlib.Path, *more: str) -> list[str]:
    return ["tasks=cartpole-swingup", "obs=state", "preset=fast", "frames=4000", f"out={out}", *WORDS, *more]


def folder(out: pathlib.Path, seed: int) -> pathlib.Path:
    return out / "cartpole-swingup" / "state" / "fast" / f"seed{seed}"


def wait_until(condition, process) -> None:
    """Fails where the suite ends first, or takes for ever."""
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate())


def workers_of(process) -> list[psutil.Process]:
    """The processes in which its runs are."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "ray::cartpole-swingup" in " ".join(child.cmdline()) else []
    return found


def frame(out: pathlib.Path, seed: int = 0) -> int:
    path = folder(out, seed) / "metrics.jsonl"
    return ([0] + [row["frame"] for row in rows(path.parent)])[-1] if path.exists() else 0


@pytest.mark.long
def test_a_failing_run_does_not_stop_the_others(tmp_path):
    """Exit code 0 although a run failed, or no word about which and where its log is; a plan that runs something."""
    words = words_of(tmp_path / "a", "seeds=2", "frames=800")
    code, out, _ = command("experiments.suite", *words, "--dry-run")
    assert code == 0 and "2 of 800 frames, seeds 0, 1; 0 are done" in out and not (tmp_path / "a").exists()
    for line in ("at once", "memory", "disk", "time"):
        assert line in out
    folder(tmp_path / "a", 0).mkdir(parents=True)
    (folder(tmp_path / "a", 0) / "metrics.jsonl").write_bytes(b"damaged\n")
    code, out, err = command("experiments.suite", *words)
    assert code == 1, (out, err)
    assert f"failed: cartpole-swingup state fast seed 0: pixel_ddpg: {folder(tmp_path / 'a', 0)} has metrics" in out
    assert f"its log: {folder(tmp_path / 'a', 0) / 'log.txt'}" in out
    assert "1 of 2 runs are done" in out and "Traceback" not in out + err
    assert run_folder.is_done(folder(tmp_path / "a", 1), 800)


@pytest.mark.long
def test_a_suite_continues_without_its_reader(tmp_path):
    """`| head` that ends the runs."""
    driver = start("experiments.suite", *words_of(tmp_path, "seeds=2", "frames=800"))
    driver.stdout.readline()
    driver.stdout.close()
    assert driver.wait(timeout=120) == 0, driver.stderr.read()
    assert [run_folder.read_status(folder(tmp_path, seed))["state"] for seed in (0, 1)] == ["done", "done"]
    assert (tmp_path / "report" / "report.html").exists()
    driver.stderr.close()


@pytest.mark.long
def test_killed_workers_and_drivers_change_no_result(tmp_path):
    """kill -9 of a worker, then of the driver: the same command resumes, and each run is what it is by hand."""
    words = words_of(tmp_path / "a", "seeds=2", "checkpoint_minutes=0.01", "threads=1")
    driver = start("experiments.suite", *words, start_new_session=True)
    wait_until(lambda: checkpoint.checkpoints(folder(tmp_path / "a", 0)) and frame(tmp_path / "a") > 1000, driver)
    workers_of(driver)[0].kill()
    log = folder(tmp_path / "a", 0) / "log.txt"
    other = folder(tmp_path / "a", 1) / "log.txt"
    wait_until(lambda: (log.read_text() + other.read_text()).count("resumes at frame") == 1, driver)
    processes = workers_of(driver)
    assert processes
    os.kill(driver.pid, signal.SIGKILL)
    out, _ = driver.communicate()
    assert "lost    cartpole-swingup state fast seed" in out and "Traceback" not in out
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    code, out, err = command("experiments.suite", *words)
    assert code == 0, (out, err)
    for seed in (0, 1):
        train([*STATE, f"seed={seed}", "checkpoint_minutes=0.01", "frames=4000"], tmp_path / f"b{seed}")
        assert_same_run(folder(tmp_path / "a", seed), tmp_path / f"b{seed}")
    before = {path: path.stat().st_mtime for path in (tmp_path / "a").rglob("metrics.jsonl")}
    code, out, err = command("experiments.suite", *words)
    assert code == 0 and "2 are done" in out, (out, err)
    assert before == {path: path.stat().st_mtime for path in (tmp_path / "a").rglob("metrics.jsonl")}
    ((said, wanted),) = json.loads((tmp_path / "a" / "suite.json").read_text()).items()
    assert len(wanted) == 2 and said.startswith("python -m experiments.suite tasks=cartpole-swingup ")
    assert set(words) <= set(shlex.split(said))  # as typed


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_reports(tmp_path, number):
    """An interrupted suite that loses what ran, or leaves no report."""
    driver = start("experiments.suite", *words_of(tmp_path, "seeds=1", "frames=400000"), start_new_session=True)
    wait_until(lambda: frame(tmp_path) > 1000, driver)
    driver.send_signal(number)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 130 and "the same command resumes the rest" in out, (out, err)
    assert "Traceback" not in out + err
    assert run_folder.read_status(folder(tmp_path, 0))["state"] == "stopped"
    assert checkpoint.checkpoints(folder(tmp_path, 0)) and (tmp_path / "report" / "report.html").exists()


@pytest.mark.long
def test_a_lost_node_costs_what_came_since_the_last_checkpoint(tmp_path):
    """Two nodes of Ray's own test cluster, of which one is killed with a run on it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    words = words_of(tmp_path, "seeds=2", "frames=12000", "checkpoint_minutes=0.01", f"address={cluster.address}")
    try:
        driver = start("experiments.suite", *words)
        wait_until(lambda: all(checkpoint.checkpoints(folder(tmp_path, seed)) for seed in (0, 1)), driver)
        cluster.remove_node(second, allow_graceful=False)
        out, err = driver.communicate(timeout=240)
    finally:
        cluster.shutdown()
    assert driver.returncode == 0 and "at once   2: 2 cores" in out, (out, err)
    assert out.count("lost    ") == 1 and "2 of 2 runs are done" in out
    logs = [(folder(tmp_path, seed) / "log.txt").read_text().count("resumes at frame") for seed in (0, 1)]
    assert sorted(logs) == [0, 1]


@pytest.mark.long
def test_runs_share_a_gpu_and_begin_in_their_order(tmp_path):
    """Runs beside a GPU that is full, none on one that is half empty; a later seed first. Ray only counts this GPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 1, "include_dashboard": False})
    words = words_of(tmp_path, "seeds=3", "frames=800", f"address={cluster.address}", "runs_per_gpu=2")
    try:
        code, out, err = command("experiments.suite", *words)
    finally:
        cluster.shutdown()
    assert code == 0 and "at once   2: 1 GPU, 2 runs on it" in out, (out, err)
    logs = [(folder(tmp_path, seed) / "log.txt").read_text() for seed in range(3)]
    starts = [time.mktime(time.strptime(log[:19], "%Y-%m-%d %H:%M:%S")) for log in logs]
    ends = [(folder(tmp_path, seed) / "metrics.jsonl").stat().st_mtime for seed in range(3)]
    assert starts[2] == max(starts) and starts[2] >= min(ends[:2]) - 1  # a log's time is in whole seconds
