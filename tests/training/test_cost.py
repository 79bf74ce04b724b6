"""What a run is said to take: its disk, its memory, its time."""

import types

import pytest
import torch
from small import CPU, PIXELS, STATE, train

from pixel_ddpg import presets
from pixel_ddpg.envs import workers
from pixel_ddpg.errors import UserError
from pixel_ddpg.training import checkpoint, cost

CUDA = torch.device("cuda")


@pytest.mark.parametrize("words", [STATE, PIXELS], ids=["state", "pixels"])
def test_checkpoints_take_the_disk_that_was_told(words, tmp_path, monkeypatch):
    """A full disk in the night, of a run that was said to fit; or a run refused that would have."""
    run = train([*words, "agent.hidden=[256,256]"], tmp_path)  # beside which names and counters are nothing
    told = cost.measure(run.config, run.evaluation, CPU)
    used = checkpoint.disk_bytes(tmp_path)
    assert used <= told.disk <= 2 * used
    free = types.SimpleNamespace(free=told.disk - used)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: free)
    cost.check_disk(run.config, told)
    free.free -= 1
    with pytest.raises(UserError, match="checkpoints will take"):
        cost.check_disk(run.config, told)


def test_a_disk_with_too_little_room_is_told_before_the_run(tmp_path, monkeypatch):
    """Bytes that are there already count: a run that resumes needs no more than the rest."""
    config = presets.compose([*STATE, f"run_dir={tmp_path}"])
    needs = cost.Cost(1.0, 2**20, 2**20, CPU, "in RAM")  # a replay, two checkpoints and one that is being written
    free = types.SimpleNamespace(free=3 * 2**20)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"will take 4\.0 MiB, 3\.0 MiB are free .* choose another run_dir=") as refused:
        cost.check_disk(config, needs)
    assert refused.value.code == 1
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "piece").write_bytes(bytes(2 * 2**20))
    free.free = 2 * 2**20
    cost.check_disk(config, needs)
    free.free -= 1
    with pytest.raises(UserError, match=r"will take 2\.0 MiB"):
        cost.check_disk(config, needs)


def test_memory_counts_the_replay_only_where_it_lies_in_ram():
    """A run on a GPU refused for RAM that it does not take, or environments' processes forgotten."""
    config = presets.compose(STATE)
    in_ram = cost.Cost(1.0, 2**30, 2**20, CPU, "").memory(config)
    on_gpu = cost.Cost(1.0, 2**30, 2**20, CUDA, "").memory(config)
    assert in_ram - on_gpu == 2**30
    assert 0 < on_gpu <= 3 * checkpoint.PIECE_BYTES
    three = cost.Cost(1.0, 2**30, 2**20, CPU, "").memory(presets.compose([*STATE, "envs=3"]))
    assert three - in_ram == 3 * workers.REMOTE_BYTES


@pytest.mark.parametrize(
    ("hours", "told"), [(20 / 3600, "20 s"), (3 / 60, "3 min"), (1.4, "84 min"), (2.5, "2.5 h"), (96, "4 days")]
)
def test_hours_are_told_in_a_fitting_unit(hours, told):
    """0.0 h for a short run."""
    assert cost.format_hours(hours) == told
