"""Several environments at once: the same environments, in processes of their own."""

import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import psutil
import pytest
from small import PIXELS, STATE, assert_same_run, command, make_trainer, rows, spawned, start, train

from pixel_ddpg import presets
from pixel_ddpg.envs import workers
from pixel_ddpg.envs.environment import Step
from pixel_ddpg.errors import UserError
from pixel_ddpg.runtime.learner import Learner
from pixel_ddpg.training import build, checkpoint
from pixel_ddpg.training.rows import TrainRow, read_rows


@pytest.mark.parametrize("words", [STATE, PIXELS])
def test_a_remote_environment_is_the_local_one(words):
    """Another seed, a stale observation, an element that is not the newest; a state that does not bring it back."""
    settings = presets.compose(words)
    local, remote = workers.Local(settings, 3), workers.Remote(settings, 3)
    random, steps = np.random.default_rng(0), []
    for number in range(5):
        action = random.uniform(-1, 1, 1).astype(np.float32)
        for environment in (local, remote):
            environment.begin_step(action) if number else environment.begin_reset()
        mine, yours = local.take(), remote.take()
        assert_same_step(mine, yours)
        steps.append(mine)
    state = local.state_dict()
    assert state == remote.state_dict()
    for environment in (local, remote):
        environment.begin_reset()
        environment.take()
        assert_same_step(environment.load_state_dict(state), steps[-1])


def assert_same_step(one: Step, other: Step) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name))


def test_every_player_has_its_own_streams():
    """Environments that all play the same episode, or the seeds of an evaluation."""
    seeds = [seed for number in range(1, 9) for seed in build.player_seeds(0, number)]
    seeds += list(build.seeds(0).values()) + [build.evaluation_seed(0, frame) for frame in range(0, 9000, 1000)]
    # SeedSequence takes a number of more than 32 bits as it takes the sequence of its parts
    seeds += list(build.seeds(2**32).values()) + list(build.seeds(2**64).values()) + list(build.player_seeds(2**64, 0))
    assert len(set(seeds)) == len(seeds)


def test_several_environments_train_with_the_same_ratio_and_resume_to_the_bit(tmp_path):
    """Updates counted for one environment; a stream that a checkpoint forgets; players that play the same."""
    words = [*STATE, "envs=3", "frames=3400"]
    whole = train(words, tmp_path / "whole")
    train(words, tmp_path / "parts", stop_at_step=102)
    train(words, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert whole.frame >= 3400 and whole.step == whole.frame // 8
    due = sum(1 for step in range(21, whole.step - 2) if int(step * 0.5) > int((step - 1) * 0.5))
    assert abs(whole.updates - due) <= 2
    assert whole.updates == build.planned_updates(whole.config)
    assert len(whole.replay) > 0.9 * whole.step
    firsts = [stream._tables["elements"][0] for stream in whole.replay.streams]
    assert not any(np.array_equal(firsts[0], other) for other in firsts[1:])
    kept = [row for row in rows(tmp_path / "whole") if row["kind"] == "train"]
    assert kept and all(row["critic_loss"] is not None for row in kept[1:])


def test_one_environment_that_overlaps_steps_while_updates_are_made_and_resumes_to_the_bit(tmp_path, monkeypatch):
    """Updates that wait for the step they should hide behind; a state that only several environments save."""
    words, events = [*STATE, "train.overlap=true"], []

    def watch(owner, name):
        plain = getattr(owner, name)

        def watched(*arguments):
            events.append(name)
            return plain(*arguments)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((workers.Remote, "begin_step"), (workers.Remote, "take"), (Learner, "__call__")):
        watch(owner, name)
    whole = train(words, tmp_path / "whole")
    assert events.count("__call__") == whole.updates == build.planned_updates(whole.config) > 50
    followed = [before for before, event in itertools.pairwise(events) if event == "__call__"]
    assert set(followed) <= {"begin_step", "__call__"}
    train(words, tmp_path / "parts", stop_at_step=102)
    train(words, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_several_environments_go_on_after_a_last_step_that_went_beyond_the_end(tmp_path):
    """A run that was stopped in its final evaluation and is refused ever after."""
    words = [*STATE, "envs=3", "frames=1600"]  # 3 x 8 frames a step
    done = train(words, tmp_path / "run")
    assert done.frame == 1608
    run = make_trainer(words, tmp_path / "run")
    run.restore()
    assert run.frame == 1608


def test_pixels_of_several_environments_reach_the_replay(tmp_path):
    """Pictures of one environment in another's stream."""
    run = make_trainer([*PIXELS, "envs=2"], tmp_path)
    run._begin_episodes()
    for _ in range(3):
        run._advance()
    for number, player in enumerate(run.players):
        newest = run.replay.streams[number]
        np.testing.assert_array_equal(newest._tables["elements"][newest.next_slot - 1], player.step.element)


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


LONG = [word for word in STATE if not word.startswith(("frames=", "eval.every="))] + [
    "frames=500000",
    "eval.every=500000",
]


def trained(run_dir) -> bool:
    return (run_dir / "metrics.jsonl").exists() and any(
        isinstance(row, TrainRow) for row in read_rows(run_dir / "metrics.jsonl")
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_is_for_the_one_that_trains_and_leaves_no_process(tmp_path, number):
    """Tracebacks of the environments' processes, a run that cannot save, processes that stay."""
    process = start("pixel_ddpg.run", *LONG, "envs=2", f"run_dir={tmp_path / 'run'}", start_new_session=True)
    wait_for(lambda: trained(tmp_path / "run") or process.poll() is not None)
    remotes = spawned(process)
    for remote in remotes:  # which have groups of their own; a cluster sends it to all processes of a job
        remote.send_signal(number)
    time.sleep(1)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command resumes it" in err and "Traceback" not in err
    assert len(remotes) >= 2 and checkpoint.checkpoints(tmp_path / "run")
    wait_for(lambda: not any(remote.is_running() for remote in remotes), 20)


@pytest.mark.parametrize("number, pause", [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGTERM, 1)])
def test_ctrl_c_while_the_environments_begin_is_told_in_one_line(tmp_path, number, pause):
    """Tracebacks of processes that were importing, or a run that blames memory."""
    process = start("pixel_ddpg.run", *LONG, "envs=2", f"run_dir={tmp_path / 'run'}", start_new_session=True)
    wait_for(lambda: spawned(process) or process.poll() is not None)
    time.sleep(pause)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err.startswith("pixel_ddpg: ") and err.count("\n") == 1, err


def test_children_are_deaf_and_their_parent_is_not():
    """A mask that the first process of all undoes, as multiprocessing's tracker does, or that stays."""
    before, context = signal.pthread_sigmask(signal.SIG_BLOCK, ()), multiprocessing.get_context("spawn")
    with workers.sigint_ignored_by_children():
        child = context.Process(target=time.sleep, args=(60,))
        child.start()
    mask = next(line for line in open(f"/proc/{child.pid}/status") if line.startswith("SigBlk"))  # noqa: SIM115
    child.kill()
    child.join()
    assert int(mask.split()[1], 16) >> (signal.SIGINT - 1) & 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_an_environment_that_is_killed_is_told_in_one_line(tmp_path):
    """A run that waits for ever, or a traceback of a broken pipe."""
    process = start("pixel_ddpg.run", *LONG, "envs=2", f"run_dir={tmp_path / 'run'}")
    wait_for(lambda: trained(tmp_path / "run") or process.poll() is not None)
    spawned(process)[-1].kill()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1 and "the process of an environment has ended" in err and "Traceback" not in err


def test_an_environment_that_hangs_is_named_and_killed(monkeypatch):
    """A run that waits for ever; a process that outlives it."""
    monkeypatch.setattr(workers, "PATIENCE", 2)
    before = set(spawned(psutil.Process()))
    remote = workers.Remote(presets.compose(STATE), 0)
    remote.begin_reset()
    remote.take()
    (child,) = set(spawned(psutil.Process())) - before
    child.suspend()
    remote.begin_step(np.zeros(1, np.float32))
    with pytest.raises(UserError, match=f"process {child.pid}, has not answered for 2 s; the same command resumes"):
        remote.take()
    remote.close()
    child.wait(10)


def test_a_mistake_within_an_environment_is_told_where_it_trains():
    """An error that stays in the other process."""
    remote = workers.Remote(presets.compose([*PIXELS, "env.camera=99"]), 0)
    remote.begin_reset()
    with pytest.raises(UserError, match=r"env\.camera=99"):
        remote.take()


def test_no_environments_is_refused():
    """A run that never ends."""
    code, _, err = command("pixel_ddpg.run", "envs=0")
    assert code == 2 and "envs=0 must be at least 1" in err
