"""Runs that survive: the same seed is the same run, and so is a run that was interrupted anywhere."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from small import PIXELS, STATE, assert_same_run, make_trainer, rows, train

import pixel_ddpg
from experiments.faults.damage import flipped
from pixel_ddpg import presets, run
from pixel_ddpg.envs.episodes import run_episodes
from pixel_ddpg.errors import UserError
from pixel_ddpg.training import build, checkpoint, run_folder
from pixel_ddpg.training.logger import Metrics, WandbMirror

VARIANTS = {
    "fast-state": STATE,
    "fast-pixels": PIXELS,
    "ddpg2016-state": [*STATE, "preset=ddpg2016"],
    "ddpg2016-pixels": [*PIXELS, "preset=ddpg2016", "env.renderings=2", "agent.random_shift=0"],
    "no-replay": [*STATE, "preset=dpg", "replay.batch_size=1", "train.start_steps=1"],
    "all-additions-state": [
        *STATE,
        "agent.state_norm=true",
        "agent.model_width=12",
        "agent.final_lr=0.1",
        "agent.ensemble=mean",
        "noise.bursts=0.5",
    ],
    "all-additions-pixels": [
        *PIXELS,
        "agent.target_encoder=true",
        "agent.spatial_softmax=true",
        "agent.inverse_loss=1",
        "agent.reconstruction_loss=1",
        "agent.final_lr=0.1",
        "agent.ensemble=mean",
        "noise.bursts=0.5",
    ],
    "full-ring": [*PIXELS, "replay.capacity=60", "env.frame_stack=4"],
}


def attach(run):
    """Rows go to the run's own folder, after those that are there."""
    run.attach(Metrics(run.run_dir / "metrics.jsonl", 10**9), WandbMirror(run.run_dir, "off", "", "", {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    """Anything missing from a checkpoint: noise, generators, optimisers, the running episode, half a log interval."""
    words = VARIANTS[name]
    train(words, tmp_path / "whole")
    stops = sorted(np.random.default_rng(len(name)).integers(2, 198, 3).tolist())
    for stop in dict.fromkeys([*stops, None]):
        train(words, tmp_path / "parts", stop_at_step=stop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    """A random stream that does not derive from the seed."""
    torch.manual_seed(1)
    train(STATE, tmp_path / "a")
    torch.manual_seed(2)
    np.random.seed(3)
    train(STATE, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train([*STATE, "seed=1"], tmp_path / "c")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")


def test_12_evaluating_more_often_changes_no_training(tmp_path):
    """Silent bug 12: evaluation that draws from training's streams or touches its environment."""
    train([*STATE, "preset=ddpg2016"], tmp_path / "rare")
    train([*STATE, "preset=ddpg2016", "eval.every=200", "eval.episodes=2"], tmp_path / "often")
    kept = [[row for row in rows(tmp_path / name) if row["kind"] == "train"] for name in ("rare", "often")]
    assert kept[0] == kept[1] != []


def test_12_evaluation_has_no_noise(tmp_path):
    """Silent bug 12: the logged returns are the policy's own, on episodes that another evaluation does not have."""
    run = train([*STATE, "eval.episodes=2"], tmp_path)
    last = [row for row in rows(tmp_path) if row["kind"] == "eval"][-1]
    returns = []
    for frame in (run.frame, run.frame + 1):
        run.evaluation.seed(build.evaluation_seed(0, frame))
        returns.append(run_episodes(run.evaluation, run.agent.act, 2)[0])
    assert last["frame"] == run.frame and last["returns"] == returns[0] != returns[1]


def test_8_schedules_and_budgets_count_frames(tmp_path):
    """Silent bug 8: with action repeat 8, 1600 frames are 200 steps, evaluated at 0, 704, 1400 and the end."""
    run = train(STATE, tmp_path)
    assert (run.frame, run.step) == (1600, 200)
    evaluated = [row["frame"] for row in rows(tmp_path) if row["kind"] == "eval"]
    assert evaluated == [0, 704, 1400, 1600]
    assert run.updates == sum(int(step * 0.5) - int((step - 1) * 0.5) for step in range(20, 201))
    assert run.updates == build.planned_updates(run.config)
    run.frame = run.config.noise.frames // 2
    run._update()
    assert run.agent.noise_scale.item() == pytest.approx((run.config.noise.start + run.config.noise.end) / 2)


def test_learning_rates_fall_over_the_budget(tmp_path):
    """From all to the share that the configuration leaves, by frames."""
    run = train([*STATE, "agent.final_lr=0.2", "agent.actor_lr=1e-3", "agent.critic_lr=4e-4"], tmp_path)
    rates, shares = {"actor": 1e-3, "critic": 4e-4}, []
    for share_of_budget in (0.0, 0.5, 1.0, 1.01):
        run.frame = share_of_budget * run.config.frames
        run._update()
        lrs = {name: optimizer.param_groups[0]["lr"] for name, optimizer in run.agent.optimizers.items()}
        shares.append([lrs[name] / rate for name, rate in rates.items()])
    assert shares == [pytest.approx([share] * 2) for share in (1.0, 0.6, 0.2, 0.2)]


def test_8_exploration_is_told_frames_and_of_each_episode(tmp_path, monkeypatch):
    """Silent bug 8, where the trainer asks for noise: steps for frames; a process that runs on between episodes."""
    run = make_trainer(STATE, tmp_path)
    attach(run)
    exploration = run.players[0].exploration
    told, calls = [], {name: getattr(exploration, name) for name in ("is_random", "reset")}
    monkeypatch.setattr(exploration, "is_random", lambda frame: told.append(frame) or calls["is_random"](frame))
    monkeypatch.setattr(exploration, "reset", lambda: told.append("reset") or calls["reset"]())
    noisy = []
    monkeypatch.setattr(
        type(exploration), "__call__", lambda self, action, frame: noisy.append(frame) or np.float32(action)
    )
    for _ in range(130):
        run._advance()
    assert told == ["reset", *range(0, 1000, 8), "reset", *range(1000, 1040, 8)]
    assert noisy == list(range(200, 1040, 8))


@pytest.mark.parametrize(
    "words, needed",
    [
        ([*STATE, "agent.inverse_loss=1"], "obs=pixels"), ([*STATE, "agent.random_shift=8"], "obs=pixels"),
        ([*STATE, "agent.pixel_offset=0.3"], "obs=pixels"), ([*STATE, "env.size=84"], "obs=pixels"),
        ([*STATE, "env.renderings=3"], "obs=pixels"), ([*PIXELS, "agent.state_norm=true"], "obs=state"),
        ([*STATE, "preset=ddpg2016", "noise.start=2"], "noise.kind=gaussian"),
        ([*STATE, "noise.sigma=5"], "noise.kind=ou"),
    ],
)  # fmt: skip
def test_a_field_that_has_no_effect_is_told(words, needed, tmp_path, capsys):
    """A value that is recorded and never read; a warning of one that is."""
    idle, usual = words[-1], [*words[:-1], "frames=800"]
    first, second = (train([*usual, *given], tmp_path / str(len(given))).agent.tensors() for given in ([], [idle]))
    assert all(torch.equal(first[name], second[name]) for name in first)
    run.warn_of_idle_settings(presets.compose([*usual, idle]))
    assert f"{idle.partition('=')[0]}=" in (told := capsys.readouterr().err) and f"it is for {needed}" in told
    run.warn_of_idle_settings(presets.compose([*usual, "noise.kind=ou", "noise.target_clip=0.3", "noise.start=2"]))
    assert "noise.start" not in capsys.readouterr().err


def test_a_run_that_makes_no_update_is_told(capsys):
    """A run that ends well and has learned nothing."""
    run.warn_of_idle_settings(presets.compose([*STATE, "frames=400", "train.start_steps=5000"]))
    assert "no update will be made" in capsys.readouterr().err
    run.warn_of_idle_settings(presets.compose([*STATE, "frames=400", "train.start_steps=20"]))
    assert "no update" not in capsys.readouterr().err


def test_the_replay_is_made_as_the_configuration_says(tmp_path):
    """A field that changes nothing."""
    words = ["replay.n_step=2", "agent.discount=0.9", "env.frame_stack=4", "agent.random_shift=1"]
    run = make_trainer([*PIXELS, *words, "replay.capacity=70"], tmp_path)
    replay = run.replay
    assert (replay._n_step, replay._stack, replay._shift, replay.capacity, replay._gamma) == (2, 4, 1, 70, 0.9)


def test_what_is_compiled_lies_on_the_gpu(monkeypatch):
    """Minutes of compiling at each draw from RAM, where the GPU was full, or for one action of a loaded agent."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled.append(function) or function)
    settings = presets.compose([*STATE, "train.compile=true"])
    build.make_replay(settings, 100, "cpu")
    build.make_agent(settings, torch.device("cpu"))
    assert not compiled
    monkeypatch.setattr(build, "Replay", lambda *arguments, compiled, **options: compiled(None))
    build.make_replay(settings, 100, "cuda")
    assert compiled == [None]


@pytest.mark.parametrize("stream", build.RANDOM_STREAMS)
def test_13_each_stream_reaches_what_it_is_for(stream, tmp_path, monkeypatch):
    """A random stream with a fixed seed, or one that is used for two things."""
    made = build.seeds
    looks = {
        "environment": lambda run: run.players[0].environment._environment.reset().observation.tolist(),
        "exploration": lambda run: run.players[0].exploration.random_action().tolist(),
        "init": lambda run: next(run.agent.parameters()).flatten().tolist(),
        "update_noise": lambda run: run.agent.noise_draws.get_state().tolist(),
        "replay": lambda run: run.replay.draws.get_state().tolist(),
        "replay's shifts": lambda run: run.replay.shifts.get_state().tolist(),
    }
    before, same = make_trainer(STATE, tmp_path / "a"), make_trainer(STATE, tmp_path / "b")
    monkeypatch.setattr(build, "seeds", lambda seed: made(seed) | {stream: 12345})
    after = make_trainer(STATE, tmp_path / "c")
    for name, look in looks.items():
        first = look(before)
        assert first == look(same)
        assert (first != look(after)) == (name.startswith(stream))


def test_every_metric_of_the_design_is_there(tmp_path):
    """A report that reads a field which is not written."""
    train(STATE, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    common = {"kind", "frame", "step", "update", "hours"}
    extra = {
        "eval": {"return", "returns", "length"},
        "values": {"q", "observed"},
        "train": {
            "return", "critic_loss", "actor_loss", "q", "td_error", "pre_tanh", "saturated", "inverse_loss",
            "reconstruction_loss", "model_loss", "frames_per_second", "updates_per_second", "memory_bytes",
        },
    }  # fmt: skip
    assert {row["kind"] for row in lines} == set(extra)
    for row in lines:
        assert set(row) == common | extra[row["kind"]]


def test_a_checkpoint_costs_what_was_added(tmp_path):
    """A replay that is written whole each time."""
    train(PIXELS, tmp_path, stop_at_step=100)
    train(PIXELS, tmp_path, stop_at_step=110)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "checkpoints" / "replay").iterdir()}
    first, second = (sizes[name] for name in sorted(sizes))
    assert second < first / 5


def test_a_ring_that_wrapped_keeps_no_old_pieces(tmp_path):
    """Pieces that no checkpoint needs fill the disk."""
    words = [*STATE, "replay.capacity=20", "train.start_steps=10"]
    for stop in range(20, 200, 15):
        train(words, tmp_path, stop_at_step=stop)
    assert len(list((tmp_path / "checkpoints" / "replay").iterdir())) <= 5
    assert len(checkpoint.checkpoints(tmp_path)) == 2


def test_a_frame_may_be_saved_any_number_of_times(tmp_path):
    """A name that is taken once older checkpoints of the same frame are deleted: killed during its last evaluation."""
    run = train(STATE, tmp_path, stop_at_step=30)
    attach(run)
    for count in range(1, 13):
        run.players[0].total = float(count)
        run.save()
    assert checkpoint.load_checkpoint(tmp_path, run_folder.read_config(tmp_path))[1]["players"][0]["return"] == 12.0
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["000000000240.11", "000000000240.12"]


DAMAGES = {
    "a bit is flipped": lambda data: flipped(data, 8 * (len(data) - 5)),
    "cut in half": lambda data: data[: len(data) // 2], "emptied": lambda data: b"",
    "other bytes": lambda data: b"nothing", "deleted": None,
}  # fmt: skip


def test_what_cannot_be_deleted_does_not_end_a_run(tmp_path, monkeypatch):
    """Training that stops as a network disk keeps what another process reads, or a server puts folders everywhere."""

    def fail(*path, **options):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    (tmp_path / "checkpoints" / "replay" / "@eaDir").mkdir(parents=True)
    monkeypatch.setattr(os, "rmdir", fail)
    run = train([*STATE, "frames=800"], tmp_path)
    for _ in range(3):
        run.frame += 8
        run._metrics = Metrics(tmp_path / "metrics.jsonl", 10**9)
        run.save()
    assert len(checkpoint.checkpoints(tmp_path)) == checkpoint.KEPT
    monkeypatch.undo()
    run.save()
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A run that was stopped at steps 60 and 120."""
    folder = tmp_path_factory.mktemp("checkpoints")
    train(STATE, folder, stop_at_step=60)
    run = train(STATE, folder, stop_at_step=120)
    return folder, run


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS", "replay"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(name, damage, two_checkpoints, tmp_path):
    """A run lost to one bad file though another checkpoint is there; or resumed with weights that it never had."""
    folder, run = two_checkpoints
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    newest = checkpoint.newest(tmp_path)
    path = sorted((tmp_path / "checkpoints" / "replay").iterdir())[-1] if name == "replay" else newest / name
    change = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    assert checkpoint.load_checkpoint(tmp_path, run.config, run.replay)[1]["step"] == 60
    assert not newest.exists()


@pytest.mark.parametrize("name", ["checkpoint", "tensors.safetensors", "config.yaml"])
def test_what_belongs_to_another_run_is_refused(name, two_checkpoints, tmp_path):
    """Weights of another seed under this run's name."""
    shutil.copytree(two_checkpoints[0], tmp_path / "parts")
    train([*STATE, "seed=3"], tmp_path / "other", stop_at_step=120)
    ours, theirs = checkpoint.newest(tmp_path / "parts"), checkpoint.newest(tmp_path / "other")
    if name == "checkpoint":
        shutil.rmtree(ours), shutil.copytree(theirs, ours)
    elif name == "config.yaml":
        shutil.copy(tmp_path / "other" / name, tmp_path / "parts" / name)
    else:
        shutil.copy(theirs / name, ours / name)
        assert run_folder.load_run(tmp_path / "parts")[2] == 480  # the one before
        return
    with pytest.raises(UserError, match="seed="):
        run_folder.load_run(tmp_path / "parts")
    assert ours.exists()


def test_checkpoints_of_former_formats_resume(two_checkpoints, tmp_path):
    """Runs of an older version lost to a list of sums that it did not write."""
    train(STATE, tmp_path / "whole")
    shutil.copytree(two_checkpoints[0], tmp_path / "parts")
    for path in checkpoint.checkpoints(tmp_path / "parts"):
        state = json.loads((path / "state.json").read_text())
        del state["config"]
        (path / "state.json").write_text(json.dumps(state | {"format": 2}))
        (path / "SHA256SUMS").unlink()
    assert train(STATE, tmp_path / "parts", stop_at_step=130).step == 130
    assert (checkpoint.newest(tmp_path / "parts") / "SHA256SUMS").read_text().count("../replay/") == 3
    train(STATE, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_disk_that_cannot_be_read_destroys_nothing(tmp_path, monkeypatch):
    """Checkpoints that are deleted because of an error that passes."""
    train(STATE, tmp_path / "whole")
    train(STATE, tmp_path / "parts", stop_at_step=60)
    train(STATE, tmp_path / "parts", stop_at_step=120)

    def fail(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", fail)
    with pytest.raises(UserError, match="try again"):
        make_trainer(STATE, tmp_path / "parts").restore()
    fails = iter([True])
    monkeypatch.setattr(checkpoint, "load", lambda data: fail() if next(fails, 0) else load(data))
    with pytest.raises(UserError, match="try again"):  # the older one could be read
        make_trainer(STATE, tmp_path / "parts").restore()
    monkeypatch.undo()
    train(STATE, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_was_stopped_before_its_first_step_continues(tmp_path):
    """Ctrl-C in the first evaluation: a checkpoint without a single slot."""
    run = make_trainer(STATE, tmp_path)
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    run.attach(metrics, WandbMirror(tmp_path, "off", "", "", {}))
    run.save()
    metrics.close()
    train(STATE, tmp_path)
    assert rows(tmp_path)[-1]["frame"] == 1600


def test_a_budget_between_two_steps_can_be_resumed_at_its_end(tmp_path):
    """A last step that goes beyond the budget and is then taken for a larger one."""
    words = [*STATE, "frames=801"]
    train(words, tmp_path, stop_at_step=101)
    assert train(words, tmp_path).frame == 808
    with pytest.raises(UserError, match="at frame 808 already"):
        make_trainer([*STATE, "frames=800"], tmp_path).restore()


def change_state(run_dir, **facts):
    """As if the newest checkpoint had been written under these."""
    path = checkpoint.newest(run_dir)
    before = (path / "state.json").read_bytes()
    after = json.dumps(json.loads(before) | facts).encode()
    (path / "state.json").write_bytes(after)
    sums = path / "SHA256SUMS"
    digests = [hashlib.sha256(data).hexdigest() for data in (before, after)]
    sums.write_text(sums.read_text().replace(*digests))


def test_a_replay_resumes_only_where_it_began(tmp_path):
    """A traceback of a generator's state where the GPU has since become full, or free."""
    train(STATE, tmp_path, stop_at_step=60)
    change_state(tmp_path, replay_device="cuda")
    with pytest.raises(UserError, match="started with its replay on cuda, not on cpu"):
        make_trainer(STATE, tmp_path).restore()


def test_weights_that_are_not_finite_stop_an_evaluation(tmp_path):
    """The simulator's traceback for an action that is NaN."""
    run = make_trainer(STATE, tmp_path)
    attach(run)
    with torch.no_grad():
        next(run.agent.actor.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="an action is not finite"):
        run.train()


def test_a_smaller_budget_than_was_trained_is_refused(tmp_path):
    """A ring that is made too small for what it must take back."""
    train(STATE, tmp_path, stop_at_step=120)
    with pytest.raises(UserError, match="at frame 960 already"):
        make_trainer([*STATE, "frames=800"], tmp_path).restore()


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """A half-written checkpoint that replaces a whole one."""
    train(STATE, tmp_path / "parts", stop_at_step=60)
    written = checkpoint.write_atomically

    def full(path, data):
        if path.name == "state.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(OSError):
        train(STATE, tmp_path / "parts", stop_at_step=100)
    monkeypatch.undo()
    assert int(checkpoint.newest(tmp_path / "parts").name) == 480
    train(STATE, tmp_path / "parts")
    train(STATE, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    """An old checkpoint that ends in a KeyError."""
    train(STATE, tmp_path, stop_at_step=30)
    change_state(tmp_path, format=0)
    with pytest.raises(UserError, match="another version"):
        make_trainer(STATE, tmp_path).restore()


def test_a_run_resumes_only_in_its_own_precision(tmp_path):
    """agent.precision=auto on another processor: half of a run in another arithmetic."""
    train(STATE, tmp_path, stop_at_step=30)
    change_state(tmp_path, precision="bfloat16")
    with pytest.raises(UserError, match="was trained in bfloat16, not in float32"):
        make_trainer(STATE, tmp_path).restore()


def test_an_agent_is_float32_whatever_its_callers_default_is(tmp_path):
    """float64 actions in a program that computes in it."""
    train(STATE, tmp_path, stop_at_step=20)
    torch.set_default_dtype(torch.float64)
    try:
        agent = pixel_ddpg.load(str(tmp_path))
        assert agent.act(np.zeros(agent.observation_shape, np.float32)).dtype == np.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_loading_an_agent_draws_nothing_from_the_callers_random_stream(tmp_path):
    """A user's own experiment that is another one after `pixel_ddpg.load`."""
    train(STATE, tmp_path, stop_at_step=20)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    run_folder.load_run(tmp_path)
    assert torch.rand(1) == wanted


def test_a_reader_looks_again_where_the_run_has_saved_since(tmp_path, monkeypatch):
    """Advice to start a healthy run again, because it deleted the checkpoints that were being read."""
    train(STATE, tmp_path, stop_at_step=60)
    whole, gone = checkpoint.checkpoints(tmp_path), tmp_path / "checkpoints" / "000000000008"
    listed = iter([[gone]])
    monkeypatch.setattr(checkpoint, "checkpoints", lambda run_dir: next(listed, whole))
    assert run_folder.load_run(tmp_path)[2] == 480


def test_a_reader_is_never_told_to_start_the_run_again(tmp_path):
    """The same advice where all checkpoints are damaged."""
    train(STATE, tmp_path, stop_at_step=60)
    (checkpoint.newest(tmp_path) / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        run_folder.load_run(tmp_path)
    assert "can be read" in str(caught.value) and "overwrite" not in str(caught.value)


def test_a_run_resumes_where_its_device_is_written_out(tmp_path):
    """device=cpu refused for a run that device=auto began on the same CPU; or a run that resumes on a GPU."""
    train([*STATE, "device=auto"], tmp_path, stop_at_step=20)
    started = run_folder.refuse_changes(presets.compose([*STATE, "device=cpu", f"run_dir={tmp_path}"]), tmp_path)
    assert started.device == "auto"
    change_state(tmp_path, device="cuda")
    with pytest.raises(UserError, match=r"was trained on cuda, not on cpu: it resumes only with that"):
        train([*STATE, "device=cpu"], tmp_path)


def test_a_run_that_resumes_with_other_threads_says_so(tmp_path, capsys):
    """threads=0 on a machine of other cores: another rounding, without a word."""
    train(STATE, tmp_path, stop_at_step=60)
    threads = torch.get_num_threads()
    make_trainer(STATE, tmp_path).restore()
    assert not capsys.readouterr().err
    torch.set_num_threads(threads + 1)
    try:
        make_trainer(STATE, tmp_path).restore()
    finally:
        torch.set_num_threads(threads)
    assert f"{threads} CPU threads until now, {threads + 1} from here on" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """A run that trains on with NaN weights and overwrites its last good checkpoint."""
    train(STATE, tmp_path, stop_at_step=60)
    run = make_trainer(STATE, tmp_path)
    metrics = Metrics(tmp_path / "metrics.jsonl", run.restore())
    with torch.no_grad():
        next(run.agent.critic.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite.*is kept"):
        run.attach(metrics, WandbMirror(tmp_path, "off", "", "", {}))
        run.train()
    assert int(checkpoint.newest(tmp_path).name) == 480
    run = make_trainer(STATE, tmp_path)
    run._sums = {"q": torch.tensor(float("inf"))}
    with pytest.raises(UserError, match="not finite"):
        run.save()


@pytest.mark.parametrize("repeat", [3, 8])
def test_more_frames_go_on_from_the_end(repeat, tmp_path):
    """A larger budget that starts again, or a ring too small for the first one: what it forgot would be missing."""
    words = [*STATE, f"env.action_repeat={repeat}", "replay.batch_size=64", "eval.every=100000", "agent.final_lr=1"]
    train([*words, "frames=3000"], tmp_path / "parts")
    before = rows(tmp_path / "parts")
    hours = json.loads((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()[-1])["hours"]
    run = train([*words, "frames=4000"], tmp_path / "parts")
    assert run.frame >= 4000 and run.hours > hours
    assert rows(tmp_path / "parts")[: len(before)] == before
    train([*words, "frames=4000"], tmp_path / "whole")
    kept = [[row for row in rows(tmp_path / name) if row["kind"] == "train"] for name in ("parts", "whole")]
    assert kept[0] == kept[1] != []


def test_1_true_terminations_are_not_bootstrapped(tmp_path):
    """Silent bugs 1 and 2, end to end: discount 0 reaches the replay where a task terminates, 1 at a time limit."""
    words = [word for word in STATE if not word.startswith("task=")]
    run = make_trainer([*words, "task=lqr-lqr_2_1", "env.action_repeat=1"], tmp_path)
    attach(run)
    (player,) = run.players
    environment = player.environment._environment
    player.exploration.random_action = lambda: np.zeros(environment.task.action_dim, np.float32)
    run._begin_episodes()
    player.step = environment.step(player.exploration.random_action())
    run.replay.add(player.step.element, player.exploration.random_action(), -1.0, 1.0, False)
    with environment.task_env.physics.reset_context():
        pass  # at rest, where the task ends
    run._advance()
    assert player.step.last and run.replay.discounts[:2].tolist() == [1.0, 0.0]

    limited = train(STATE, tmp_path / "limited")
    ends = limited.replay.lasts.nonzero().flatten()
    assert len(ends) and all(limited.replay.discounts[end - 1] == 1.0 for end in ends)
