"""The presets' numbers, what overrides what, and every mistake told in one line."""

import concurrent.futures
import copy
import dataclasses
import errno
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from absl import logging

from experiments.suite import plan
from pixel_ddpg import config, container, doctor, play, presets
from pixel_ddpg.command import combinations, one_line_errors
from pixel_ddpg.config import Config
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError
from pixel_ddpg.gym import make_env
from pixel_ddpg.runtime import machine, memory
from pixel_ddpg.training import build

PAPER_STATE = "ddpg2016", "state"
PAPER_PIXELS = "ddpg2016", "pixels"


def compose(*words: str) -> Config:
    settings = presets.compose(list(words))
    tasks.find(settings.task)
    return settings


def preset(name: str, obs: str, task: str = "cheetah-run") -> Config:
    return compose(f"preset={name}", f"obs={obs}", f"task={task}")


def assert_fields(settings: Config, **expected) -> None:
    """`agent__tau=0.1` stands for agent.tau."""
    found = {key: config.value_of(settings, key.replace("__", ".")) for key in expected}
    assert found == expected


def mistake(*words: str) -> str:
    """The one line with which these words are refused."""
    with pytest.raises(UserError) as caught:
        compose(*words)
    message = str(caught.value)
    assert caught.value.code == 2 and message and "\n" not in message
    return message


def leaves(settings, prefix: str = ""):
    """Every field as (dotted key, value)."""
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


# --- presets ---


@pytest.mark.parametrize("obs", ["pixels", "state"])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_composes(name, obs):
    """A preset that does not fit the schema or its own checks."""
    settings = preset(name, obs)
    assert_fields(settings, preset=name, obs=obs, task="cheetah-run")
    assert type(settings) is Config and type(settings.agent) is config.Agent


def test_every_task_composes_with_task_settings():
    """A task whose settings name a field that is not there."""
    for name in presets.PRESETS:
        for obs in ("pixels", "state"):
            changes = {str(presets.for_task(name, obs, task)): task for task in tasks.CATALOGUE}
            for task in changes.values():  # one task for each kind of change
                preset(name, obs, task)


def test_fast_numbers():
    """The preset of the results, changed by accident."""
    repeats = ("cartpole-swingup", 8, 0.96), ("cheetah-run", 4, 0.98), ("walker-walk", 2, 0.975)
    for name, of_pixels, discount_of_pixels in repeats:
        for obs, stack, batch, frames in (("pixels", 3, 128, 4), ("state", 1, 256, 2)):
            pixels = obs == "pixels"
            repeat, discount = (of_pixels, discount_of_pixels) if pixels else (2, 0.99)
            assert_fields(
                preset("fast", obs, name),
                env__action_repeat=repeat, env__frame_stack=stack, agent__discount=discount,
                train__updates_per_step=repeat / frames, replay__batch_size=batch, replay__n_step=3,
                agent__actor_lr=5e-4, agent__critic_lr=5e-4, agent__final_lr=0.1, agent__tau=0.01,
                agent__saturation_penalty=1e-2, agent__final_init=3e-3, agent__ensemble="mean",
                agent__output_rms=1.5 * pixels,
                agent__target_actor=pixels, agent__target_encoder=pixels, agent__state_norm=not pixels,
                agent__spatial_softmax=pixels, agent__inverse_loss=2 * pixels, agent__reconstruction_loss=2 * pixels,
                noise__frames=30_000, noise__random_frames=1000 * repeat, noise__bursts=0.05 * (not pixels),
            )  # fmt: skip


@pytest.mark.parametrize("obs", ["pixels", "state"])
def test_8_what_counts_frames_follows_another_action_repeat(obs):
    """cheetah-run with 2 frames a step that gets twice the updates for a frame, and half of the horizon."""
    of_two = preset("fast", obs, "walker-walk")
    settings = presets.compose(["task=cheetah-run", f"obs={obs}", "env.action_repeat=2", "agent.tau=0.5"])
    assert settings.agent == dataclasses.replace(of_two.agent, tau=0.5, discount=0.99)
    assert (settings.train, settings.noise) == (of_two.train, of_two.noise)
    asked = presets.compose([f"obs={obs}", "env.action_repeat=3", "agent.discount=0.9"])
    assert asked.agent.discount == 0.9 and asked.noise.random_frames == 3000
    with pytest.raises(UserError, match=r"env\.action_repeat=0 must be at least 1"):
        presets.compose(["env.action_repeat=0"])
    assert presets.compose(["env.action_repeat=1000"]).agent.discount == 0.5


def test_a_task_has_the_settings_of_its_other_name():
    """The paper's cartpole, which is cartpole-swingup, with a budget that is not that task's."""
    for name, same in (("cartpole", "cartpole-swingup"), ("cartpoleBalance", "cartpole-balance")):
        first, second = (preset("drqv2", "pixels", each) for each in (name, same))
        assert dataclasses.replace(first, task=same, run_dir="") == dataclasses.replace(second, run_dir="")


def test_drqv2_from_state_has_no_trunk():
    """A task's exception for pixels that reaches state."""
    for name in ("cheetah-run", "humanoid-walk"):
        assert preset("drqv2", "state", name).agent.feature_dim == 0
    assert preset("drqv2", "pixels", "humanoid-walk").agent.feature_dim == 100


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000\n"}, 1), ({"cpu.max": "max 100000\n"}, 64), ({}, 64),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_container(files, cores, tmp_path, monkeypatch):
    """64 threads that share half a core."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    alone_in(tmp_path, monkeypatch)
    assert container.available_threads() == cores


def alone_in(folder, monkeypatch, own=""):
    """A container's groups in a folder, this process in the group `own`, and 64 cores."""
    (folder / "own").write_text(own)
    monkeypatch.setattr(container, "GROUPS", folder)
    monkeypatch.setattr(container, "OWN_GROUPS", folder / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    for name in container.SHARES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("own", "tree", "files"),
    [
        ("0::/slurm/job_1/step_0\n", "slurm/job_1", ("cpu.max", "memory.max", "memory.current", "inactive_file")),
        ("0::/slurm/job_1\n", "slurm/job_1", ("cpu.max", "memory.max", "memory.current", "inactive_file")),
        (
            "12:memory:/slurm/job_1\n3:cpu,cpuacct:/slurm/job_1\n1:name=systemd:/elsewhere\n0::/elsewhere\n",
            "{}/slurm/job_1",
            ("cpu.cfs_quota_us", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_limits_of_a_jobs_own_group_count(own, tree, files, tmp_path, monkeypatch):
    """A cluster's job that takes all cores of the node, and memory until it is killed."""
    cpu, memory_folder = tmp_path / tree.format("cpu"), tmp_path / tree.format("memory")
    quota, limit, usage, cache = files
    for folder in (cpu, memory_folder):
        folder.mkdir(parents=True, exist_ok=True)
    (cpu / quota).write_text("300000" + " 100000" * (quota == "cpu.max"))
    (cpu / "cpu.cfs_period_us").write_text("100000")
    for name, text in ((limit, "3000"), (usage, "2000"), ("memory.stat", f"{cache} 500\n")):
        (memory_folder / name).write_text(text)
    (memory_folder / "step_0").mkdir()
    (memory_folder / "step_0" / limit).write_text("max")
    alone_in(tmp_path, monkeypatch, own)
    assert container.available_threads() == 3
    assert container.free_ram() == 1500
    (memory_folder / usage).write_text("4000")
    assert container.free_ram() == 0


@pytest.mark.parametrize(
    ("value", "cores"), [("2", 2), ("200", 64), ("", 64), ("0", 64), ("4,2", 4), (" 3", 3), ("x", 64)]
)
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"])
def test_a_share_that_the_environment_names_counts(name, value, cores, tmp_path, monkeypatch):
    """Each of a node's jobs with threads on all its cores."""
    alone_in(tmp_path, monkeypatch)
    monkeypatch.setenv(name, value)
    assert container.available_threads() == cores


def test_what_a_run_has_freed_is_free_for_the_next():
    """Later jobs of a sweep that are refused for memory that is free."""
    code = """
import os, psutil, torch
from pixel_ddpg.runtime import machine, memory
machine.prepare_cpu(1)
blocks = [bytearray(os.urandom(1) * 100_000) for _ in range(3000)]
last = bytearray(1000)
held = psutil.Process().memory_info().rss
del blocks
kept = psutil.Process().memory_info().rss
memory.free_memory(torch.device("cpu"))
print(held - kept, kept - psutil.Process().memory_info().rss)
"""
    kept, given_back = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert kept < 50e6 and given_back > 200e6


def test_numbers_of_numpy_and_a_home_folder_are_taken():
    """A seed of numpy's that is no whole number; a folder that is named ~."""
    config = presets.configure({"task": "cart", "seed": np.int64(3), "run_dir": "~/runs"})
    assert type(config.seed) is int and config.seed == 3
    assert config.run_dir == os.path.expanduser("~/runs")
    assert presets.configure({"run_dir": "~root/runs"}).run_dir == os.path.expanduser("~root/runs") != "~root/runs"
    assert presets.configure({"run_dir": "~runs"}).run_dir == "~runs"


def test_a_home_that_is_not_there_is_told(monkeypatch):
    """A folder named ~, in a container whose user has no entry."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="no home folder"):
        presets.configure({"run_dir": "~/runs"})


def test_words_in_brackets_are_what_was_typed():
    """YAML's own types: the folder 1_1_1 that is taken for 111, a date for no text, yes for true, 010 for 8."""
    words = "[1_1_1,2026-11-29,007,yes,null,1:30,20261129_140000,'a,b',~]"
    assert config.converted("runs", words, list[str]) == [
        "1_1_1", "2026-11-29", "007", "yes", "null", "1:30", "20261129_140000", "a,b", "~"
    ]  # fmt: skip
    assert config.converted("agent.hidden", "[0100,1_000]", list[int]) == [100, 1000]
    assert plan.read(["seeds=[010,011]", "tasks=[cart]"]).seeds == [10, 11]
    with pytest.raises(UserError, match="whole number"):
        config.converted("agent.hidden", "[1:30]", list[int])


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    """Two runs in one container that each count its whole limit as free; cache that is counted as taken."""
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\ninactive_file 500\n")
    alone_in(tmp_path, monkeypatch)
    assert memory.free_memory(torch.device("cpu")) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > 2**20


def test_default_is_fast_from_pixels():
    """The command without a word trains something else than the README says."""
    assert_fields(compose(), task="cartpole-swingup", obs="pixels", preset="fast", seed=0)


@pytest.mark.parametrize(("name", "obs"), [PAPER_STATE, PAPER_PIXELS])
def test_paper_numbers_common_to_both(name, obs):
    """A number that is not the paper's (section 7)."""
    assert_fields(
        preset(name, obs), agent__actor_lr=1e-4, agent__critic_lr=1e-3, agent__critic_weight_decay=1e-2,
        agent__discount=0.99, agent__tau=0.001, agent__critics=1, agent__target_actor=True, agent__init="fan_in",
        agent__action_layer=1, agent__random_shift=0, agent__layer_norm=False, agent__feature_dim=0,
        replay__capacity=1_000_000, replay__n_step=1, noise__kind="ou", noise__theta=0.15, noise__sigma=0.2,
        noise__target_clip=0.0, noise__random_frames=0, train__updates_per_step=1.0,
    )  # fmt: skip


def test_paper_numbers_of_state():
    """A number that is not the paper's low-dimensional one."""
    assert_fields(
        preset(*PAPER_STATE), agent__hidden=[400, 300], agent__final_init=3e-3, agent__batch_norm=True,
        replay__batch_size=64, env__action_repeat=1, env__frame_stack=1, env__renderings=1,
    )  # fmt: skip


def test_paper_numbers_of_pixels():
    """A number that is not the paper's for pixels: 9 maps of 64x64 from three renderings of three frames."""
    settings = preset(*PAPER_PIXELS)
    assert_fields(
        settings, agent__hidden=[200, 200], agent__final_init=3e-4, agent__pixel_offset=0.0, replay__batch_size=16,
        env__size=64, env__action_repeat=3, env__renderings=3, env__frame_stack=1, agent__target_encoder=True,
    )  # fmt: skip
    assert len(settings.agent.conv) == 3 and {layer[0] for layer in settings.agent.conv} == {32}
    assert map_side(settings) == 7
    assert 420_000 < critic_parameters(settings, channels=9, action_dim=1) < 440_000


def map_side(settings: Config) -> int:
    """Of the encoder's last map."""
    side = settings.env.size
    for _, kernel, stride, padding in settings.agent.conv:
        side = (side + 2 * padding - kernel) // stride + 1
    return side


def critic_parameters(settings: Config, channels: int, action_dim: int) -> int:
    """Counted by hand: convolutions, two hidden layers, the action at the second, one output."""
    count = 0
    for filters, kernel, _, _ in settings.agent.conv:
        count += (channels * kernel**2 + 1) * filters
        channels = filters
    first, second = settings.agent.hidden
    flat = channels * map_side(settings) ** 2
    return count + (flat + 1) * first + (first + action_dim + 1) * second + second + 1


def test_the_ladder_changes_what_it_says():
    """A rung that differs from the paper's algorithm in more, or less, than its name."""
    for obs in ("state", "pixels"):
        paper = preset("ddpg2016", obs)
        changed = {
            name: {word.split("=")[0] for word in config.differences(paper, preset(name, obs))} - {"preset"}
            for name in ("ddpg2016_no_bn", "dpg_replay", "offpolicy_dpg", "dpg")
        }
        norm = {"agent.batch_norm"} if obs == "state" else set()
        no_replay = {"replay.capacity", "replay.batch_size", "train.start_steps", "agent.tau"} | norm
        assert changed == {
            "ddpg2016_no_bn": norm,
            "dpg_replay": {"agent.tau"},
            "offpolicy_dpg": no_replay,
            "dpg": no_replay | {"noise.sigma"},
        }
        assert preset("dpg_replay", obs).agent.tau == 1.0
        control = config.differences(preset("fast", obs), preset("fast_no_target", obs))
        assert {word.split("=")[0] for word in control} == {"preset", "agent.tau"}
        assert preset("dpg", obs).noise.sigma == 0.0
        assert preset("dpg", obs).replay.capacity == 1


def test_drqv2_numbers():
    """A number that is not DrQ-v2's config.yaml."""
    assert_fields(
        preset("drqv2", "pixels"), agent__actor_lr=1e-4, agent__critic_lr=1e-4, agent__tau=0.01, agent__critics=2,
        agent__hidden=[1024, 1024], agent__feature_dim=50, agent__random_shift=4, agent__target_actor=False,
        agent__conv=[[32, 3, 2, 0], [32, 3, 1, 0], [32, 3, 1, 0], [32, 3, 1, 0]], agent__pixel_offset=0.5,
        env__size=84, env__action_repeat=2, env__frame_stack=3, replay__batch_size=256, replay__n_step=3,
        replay__capacity=1_000_000, noise__kind="gaussian", noise__start=1.0, noise__end=0.1, noise__target_clip=0.3,
        noise__random_frames=4000, train__start_steps=2000, train__updates_per_step=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "frames", "noise_frames"),
    [
        ("cartpole-swingup", 1_100_000, 200_000),
        ("walker-walk", 1_100_000, 200_000),
        ("finger-spin", 1_100_000, 200_000),
        ("cheetah-run", 3_100_000, 1_000_000),
        ("walker-run", 3_100_000, 1_000_000),
        ("quadruped-walk", 3_100_000, 1_000_000),
        ("reacher-hard", 3_100_000, 1_000_000),
        ("humanoid-stand", 30_100_000, 4_000_000),
        ("humanoid-run", 30_100_000, 4_000_000),
    ],
)
def test_8_drqv2_budgets_and_schedules(task, frames, noise_frames):
    """Silent bug 8: DrQ-v2's schedules count steps of two frames, these count frames."""
    assert_fields(preset("drqv2", "pixels", task), frames=frames, noise__frames=noise_frames)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("walker-stand", {"replay__n_step": 1, "replay__batch_size": 512, "replay__capacity": 1_000_000}),
        ("walker-run", {"replay__n_step": 1, "replay__batch_size": 512}),
        ("quadruped-run", {"replay__capacity": 100_000, "replay__n_step": 3, "replay__batch_size": 256}),
        ("quadruped-walk", {"replay__capacity": 1_000_000}),
        ("humanoid-walk", {"agent__actor_lr": 8e-5, "agent__critic_lr": 8e-5, "agent__feature_dim": 100}),
        ("cheetah-run", {"agent__actor_lr": 1e-4, "agent__feature_dim": 50, "replay__batch_size": 256}),
    ],
)
def test_drqv2_exceptions(task, expected):
    """An exception in DrQ-v2's task files that is missing, or that spills over to another task."""
    assert_fields(preset("drqv2", "pixels", task), **expected)


@pytest.mark.parametrize(
    ("task", "repeat"),
    [("cartpole-swingup", 8), ("cheetah-run", 4), ("reacher-easy", 4), ("ball_in_cup-catch", 4), ("finger-spin", 2),
     ("walker-walk", 2), ("walker-run", 2), ("quadruped-walk", 2)],
)  # fmt: skip
def test_fast_repeats_actions_as_planet(task, repeat):
    """From pixels an action repeat that is not PlaNet's (table 1); from state another than 2."""
    assert_fields(preset("fast", "pixels", task), env__action_repeat=repeat)
    assert_fields(preset("fast", "state", task), env__action_repeat=2)


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_docs_name_every_field_in_which_fast_differs_from_the_paper(obs):
    """A difference that a reader of the table never hears of."""
    table = pathlib.Path(__file__).parents[1].joinpath("docs/presets.md").read_text()
    paper, fast = (presets.compose([f"preset={preset}", f"obs={obs}"]) for preset in ("ddpg2016", "fast"))
    names = [key for key in config.fields_of(Config) if config.value_of(paper, key) != config.value_of(fast, key)]
    assert [key for key in names if f"`{key}" not in table] == ["preset", "run_dir"]


@pytest.mark.parametrize("obs", ["pixels", "state"])
def test_a_preset_is_added_as_docs_contributing_says(obs, monkeypatch):
    """A preset made of another one's fields that loses what that changes per task: a comparison of five things."""
    monkeypatch.setitem(
        presets.SETTINGS,
        ("wide", obs),
        presets._merge(presets.SETTINGS["fast", obs], {"agent": {"hidden": [512, 512]}}),
    )
    monkeypatch.setitem(presets.PRESETS, "wide", "fast with hidden layers of 512")
    monkeypatch.setitem(presets.BY_TASK, "wide", presets.BY_TASK["fast"])
    fast, wide = (compose(f"preset={name}", f"obs={obs}", "task=cheetah-run") for name in ("fast", "wide"))
    assert sorted(config.differences(fast, wide)) == ["agent.hidden=[256, 256]", "preset=fast"]


def test_overrides_win_over_presets_and_task_settings():
    """A word on the command line that a preset or a task's settings take back, in whatever order they stand."""
    settings = compose(
        "frames=7000", "env.action_repeat=3", "replay.batch_size=9", "noise.frames=11", "agent.hidden=[5]",
        "task=walker-walk", "preset=drqv2", "agent.action_layer=0",
    )  # fmt: skip
    assert_fields(
        settings, frames=7000, env__action_repeat=3, replay__batch_size=9, noise__frames=11, agent__hidden=[5],
        replay__n_step=1, task="walker-walk",
    )  # fmt: skip
    assert_fields(compose("env.action_repeat=1", "preset=fast", "task=cartpole-swingup"), env__action_repeat=1)


def test_run_dir_names_the_run():
    """Two runs that would write to the same folder."""
    words = ["task=cheetah-run", "obs=state", "preset=drqv2", "seed=3"]
    assert compose(*words).run_dir == "runs/cheetah-run/state/drqv2/seed3"
    assert compose(*words, "run_dir=elsewhere").run_dir == "elsewhere"
    assert compose(*words, "run_dir=$task/${agent.tau}-${env.size}-$other").run_dir == "cheetah-run/0.01-84-$other"


def test_composing_leaves_no_trace():
    """A second composition that remembers the first."""
    before = compose("task=walker-walk")
    compose("task=walker-walk", "agent.hidden=[5]", "env.size=32")
    assert compose("task=walker-walk") == before


# --- mistakes ---


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("task=cheeta-run", "did you mean cheetah-run"),
        ("task=cheetah_run", "did you mean cheetah-run"),
        ("task=cheetahrun", "did you mean cheetah-run"),
        ("preset=fats", "did you mean fast"),
        ("preset=ddpg2015", "ddpg2016"),
        ("obs=pixel", "did you mean pixels"),
        ("frame=100", "did you mean frames"),
        ("agent.actor_rl=1", "did you mean agent.actor_lr"),
        ("agent.taw=1", "did you mean agent.tau"),
        ("env.framestack=2", "did you mean env.frame_stack"),
        ("noise.kind=foo", "gaussian, ou"),
        ("wandb=maybe", "auto, online, offline, off"),
        ("agent.init=xavier", "orthogonal, fan_in"),
        ("agent.ensemble=max", "min, mean"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(word, suggestion):
    """A mistyped name that is accepted, or refused without help."""
    message = mistake(word)
    assert suggestion in message and word.split("=")[0 if "unknown key" in message else 1] in message


def test_an_exponent_is_told_how_to_be_written():
    """100_000 is read, 1e5 is no whole number."""
    assert "frames" in mistake("frames=1e5") and "a whole number, without an exponent" in mistake("frames=1e5")
    assert compose("frames=100_000").frames == 100_000
    assert "--multirun" in mistake("seed=0,1") and "in brackets" in mistake("agent.hidden=5")


@pytest.mark.parametrize(
    "word",
    [
        "frames", "frames 5", "=5", "frames=", "frames=-1", "frames=1.5", "frames=many", "frames=null", "resume=maybe",
        "env.frame_stack=0", "env.size=big", "env=5", "env.size=[64]", "replay.batch_size=1000001",
        "eval.video_size=255", "eval.video_size=-2", "agent.tau=nan", "agent.tau=true", "agent.actor_lr=inf",
        "agent.hidden=[]", "agent.hidden=[0]", "agent.hidden=[-5,3]", "agent.hidden=256", "agent.hidden=[wide]",
        "agent.hidden=[[1]]", "agent.hidden=null", "agent.action_layer=2", "agent.action_layer=-1",
        "agent.conv=[]", "agent.conv=5", "agent.conv=[5]", "agent.conv=[[32,3,2]]", "agent.conv=[[32,3,2,0,1]]",
        "agent.conv=[[32,65,1,0]]", "agent.conv=[[32,3,0,0]]", "agent.conv=[[32,0,1,0]]", "agent.conv=[[-32,3,2,0]]",
        "agent.conv=[[0,3,2,0]]", "agent.conv=[[32,3,2,-1]]", "agent.conv=[[a,3,2,0]]", "agent.conv=[[32,3,2.5,0]]",
        "task=[a,b]", "task=", "task=null", "task=cheetah-run,walker-walk", "~task", "+task=x", "++task=cheetah-run",
        "env.size=${nothing}", "env.size=???", "settings=fast-state", "hydra.foo=1", "agent=null",
        "run_dir=", "run_dir= ", "threads=99999999999", "env.size=100000", "train.updates_per_step=1e9",
        "eval.video_size=100000", "agent.critics=1000000000", "agent.hidden=[1000000000]",
        "env.slices=3000", "env.stacks=129", "env.shadow_size=1", "noise.bursts=0.91", "noise.bursts=-1",
        "agent.inverse_loss=-1", "agent.reconstruction_loss=-1", "frames=100_", "frames=1__0",
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_in_one_line(word):
    """A value that cannot work, found hours later or told by a traceback."""
    mistake(word)


def test_too_little_memory_is_told_in_one_line(capsys):
    """replay.batch_size=900000: a traceback of torch's allocator; other errors of torch keep theirs."""
    with pytest.raises(SystemExit) as end, one_line_errors():
        torch.empty(1 << 60, dtype=torch.uint8)
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("pixel_ddpg: out of memory")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), one_line_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_what_the_system_has_no_more_of_is_told_in_one_line(capsys):
    """`ulimit -n 64` and envs=16: a traceback."""
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert end.value.code == 1
    assert "fewer environments" in (err := capsys.readouterr().err) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "set TMPDIR="),
        (OSError(errno.EROFS, "Read-only file system", "/dev/shm/pym-1"), "envs=1 needs none"),
    ],
)
def test_a_file_system_that_is_read_only_is_told_in_one_line(error, words, capsys):
    """A traceback, or a file that the user has never named."""
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise error
    assert end.value.code == 1 and words in capsys.readouterr().err


@pytest.mark.parametrize("word", ["frames=null", "seed=range(1,3)"])
def test_a_mistake_is_told_without_the_words_around_it(word):
    """The whole command line, repeated for one word."""
    message = mistake(word, "obs=state")
    assert word.split("=")[0] in message and "obs=state" not in message


@pytest.mark.parametrize("value", ["/tmp/ü b/it's", "a b", "C:\\x", "a\\'b", "x,y=[z]{}", "plain", "äöü\\"])
def test_a_path_of_any_letters_is_taken_as_it_is(value):
    """An umlaut, a quote or a comma in a folder's name: refused as 'not of the form key=value'."""
    assert compose(f"run_dir={value}").run_dir == value


def test_a_list_that_cannot_be_read_says_how():
    """The same in brackets, where the user's own quotes are needed."""
    assert "special characters in quotes" in mistake("agent.hidden=[a: b: c]")


def with_value(settings: Config, key: str, value) -> Config:
    """A copy with one field changed."""
    settings = copy.deepcopy(settings)
    *groups, name = key.split(".")
    setattr(config.value_of(settings, ".".join(groups)) if groups else settings, name, value)
    return settings


def is_refused(settings: Config) -> bool:
    try:
        config.check(settings)
    except UserError as error:
        return error.code == 2 and "\n" not in str(error)
    return False


def test_numbers_below_their_least_and_not_finite():
    """A number field without a bound, or a bound that lets nan and inf through."""
    good = compose("task=walker-walk", "preset=drqv2")
    accepted = []
    for key, value in leaves(good):
        if type(value) not in (int, float):
            continue
        bad = [math.nan, math.inf, -math.inf] if type(value) is float else []
        if key != "agent.pixel_offset":  # may be anything finite
            bad.append((config.fields_of(Config)[key].metadata["least"] or 0) - 1)
        accepted += [f"{key}={number}" for number in bad if not is_refused(with_value(good, key, number))]
    assert accepted == []


@pytest.mark.parametrize(("key", "bad"), [("tau", 0.0), ("tau", 1.01), ("discount", 0.0), ("discount", 1.5)])
def test_weights_stay_within_one(key, bad):
    """A discount or a target's weight that makes values explode or stand still."""
    with pytest.raises(UserError, match=f"agent.{key}={bad}"):
        config.check(with_value(compose(), f"agent.{key}", bad))


@pytest.mark.parametrize(
    "words",
    [
        ("replay.capacity=64", "replay.batch_size=65"),
        ("env.renderings=3", "env.action_repeat=4"),
        ("preset=ddpg2016", "obs=state", "replay.batch_size=1"),
        ("env.size=8", "agent.conv=[[32,3,2,0],[32,5,1,0]]"),
        ("preset=drqv2", "env.size=8"),
        ("agent.random_shift=64", "env.size=64"),
        ("obs=state", "agent.spatial_softmax=true", "agent.feature_dim=50"),
    ],
)
def test_values_that_do_not_fit_each_other(words):
    """Each is fine, together they are not."""
    mistake(*words)


def test_render_sets_the_quality_over_the_preset_and_under_single_fields():
    """A word for the quality that a preset overrides, or that overrides what was asked for by number."""
    assert_fields(compose("preset=drqv2", "render=fast"), env__shadow_size=128, env__slices=12, env__stacks=4)
    assert_fields(compose("env.slices=9", "render=exact"), env__shadow_size=2048, env__slices=9, env__stacks=16)
    assert mistake("render=exat") == "unknown render 'exat'; did you mean exact?"


def test_the_message_names_key_and_value():
    """A refusal that does not say what to change."""
    assert mistake("replay.batch_size=65", "replay.capacity=64").startswith("replay.batch_size=65 is larger")
    assert "agent.tau=nan" in mistake("agent.tau=nan")
    assert "env.size=64" in mistake("agent.conv=[[32,65,1,0]]")
    assert "frames" in mistake("frames=many")


def test_state_does_not_need_convolutions():
    """A check of pixels' settings that stops training from state."""
    compose("obs=state", "agent.conv=[]")


@pytest.mark.parametrize("name", ["foo", "cud", "mps", "meta", "cuda:99", "cuda:x", ""])
def test_unknown_device(name):
    """torch's RuntimeError instead of one line."""
    with pytest.raises(UserError) as caught:
        machine.find_device(name)
    assert caught.value.code == 2 and "\n" not in str(caught.value)


def test_devices_that_are_there():
    """auto must be the GPU where there is one; cuda where there is none is refused."""
    assert machine.find_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert machine.find_device("auto").type == machine.find_device("cuda").type == "cuda"
    else:
        assert machine.find_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="try device=cpu"):
            machine.find_device("cuda")


@pytest.mark.parametrize("name, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_made_torchs_current_one(monkeypatch, name, index):
    """torch refuses a device without a number as its current one: every run on a GPU would end in its traceback."""
    monkeypatch.setattr(machine, "prepare_cpu", lambda threads: threads)
    monkeypatch.setattr(machine.rendering, "choose_backend", lambda threads, gpu: chosen.append(gpu))
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    device = machine.find_device(name)
    machine.prepare(compose("agent.precision=bfloat16"), device)
    assert device == torch.device("cuda", index) and chosen == [index, index]


# --- resuming with another configuration ---


def changed(value):
    return [*value, 1] if isinstance(value, list) else not value if isinstance(value, bool) else f"{value}1"


def test_differences_names_every_field_but_the_free_ones():
    """A changed field that would silently resume as another experiment, or a harmless one that is refused."""
    old = compose("task=walker-walk", "preset=drqv2")
    assert config.differences(old, copy.deepcopy(old)) == []
    for key, value in leaves(old):
        expected = [] if config.fields_of(Config)[key].metadata["free"] else [f"{key}={value}"]
        assert config.differences(old, with_value(old, key, changed(value))) == expected


def test_differences_of_two_commands():
    """Several at once, told with the values of the run that is there."""
    old = compose("task=cheetah-run", "agent.tau=0.02", "frames=1000")
    new = compose("task=cheetah-run", "seed=1", "frames=2000", "eval.video_size=0", "wandb=off", "checkpoint_minutes=1")
    assert config.differences(old, new) == ["seed=0", "agent.tau=0.02"]


# --- the real command ---


def command(*words: str, cwd) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "pixel_ddpg.run", *words]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "words",
    [
        ("task=cheeta-run",),
        ("task=cheetah-run", "100000"),
        ("agent.tau=nan",),
        ("eval.video_size=255",),
        ("device=foo", "obs=state", "run_dir=here"),
        ("agent.conv=[[32,65,1,0]]",),
        ("--task=cheetah-run",),
        ("--task", "cheetah-run"),
    ],
)
def test_command_tells_a_mistake_in_one_line(words, tmp_path):
    """A traceback, a wrong exit code, or a message on stdout."""
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("pixel_ddpg: ")
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words",
    [("--cfg",), ("--cfg", "task=walker-walk", "preset=drqv2"), ("--cfg", "--multirun", "seed=0,1")],
)
def test_command_shows_its_configuration(words, tmp_path):
    """No help, a configuration that is not the one that would run, or folders left behind."""
    result = command(*words, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "action_repeat:" in result.stdout and "tau:" in result.stdout
    if "preset=drqv2" in words:
        assert "batch_size: 512" in result.stdout
    assert result.stdout.count("action_repeat:") == 1 + result.stdout.count("---")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["pixel_ddpg.run", "pixel_ddpg.play", "pixel_ddpg.doctor", "experiments.suite"])
def test_help_names_its_own_command_and_every_key(module, tmp_path):
    """A help headed with a command that does not exist, a key without its default, a comment of another field."""
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)},
    )  # fmt: skip
    assert result.stdout.startswith(f"python -m {module} key=value") and result.stderr == ""
    lines = [line.split("=")[0] for line in result.stdout.splitlines()]
    schemas = {"run": Config, "play": play.Play, "doctor": doctor.Doctor, "suite": plan.Suite}
    for key in config.fields_of(schemas[module.split(".")[1]]):
        assert key in lines, key
    if module == "pixel_ddpg.run":
        assert (
            "agent.tau=0.01 " in result.stdout
            and "soft-update rate of the target networks" in result.stdout
            and "env.slices=14 " in result.stdout
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_an_environment_leaves_the_root_logger_to_its_program(obs):
    """A handler that absl's first message gives it, after which the program's logging.basicConfig does nothing."""
    program = f"""
        import logging, pixel_ddpg
        env = pixel_ddpg.make_env("pendulum-swingup", obs="{obs}", seed=0, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
        assert not logging.root.handlers, logging.root.handlers
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_an_environment_leaves_a_programs_log_as_it_was():
    """absl's own lines that are gone after a reset."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    make_env("pendulum-swingup", obs="state", seed=0).reset(seed=0)
    after = logging.get_verbosity()
    logging.set_verbosity(before)
    assert after == logging.INFO


def test_an_agent_is_made_on_its_own_device():
    """torch.set_default_device of a host program: weights that are drawn elsewhere, or an error."""
    settings = compose("task=cartpole-swingup", "obs=state")
    expected = build.make_agent(settings, torch.device("cpu")).tensors()
    torch.set_default_device("meta")
    try:
        agent = build.make_agent(settings, torch.device("cpu"))
        action = agent.act(np.zeros(agent.observation_shape, np.float32))
    finally:
        torch.set_default_device(None)
    assert action.shape == (1,) and all(torch.equal(each, expected[name]) for name, each in agent.tensors().items())


def test_environments_are_made_in_threads():
    """State that composing a configuration shares: 2 to 6 of 20 environments failed."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda seed: make_env("cartpole-swingup", "state", seed), range(20)))
    assert len({tuple(env.reset()[0]) for env in made}) == 20


def test_several_runs_are_every_combination_of_their_values():
    """A comma within brackets that separates, a value that is left out, an order that surprises."""
    assert combinations(["seed=0,1", "agent.hidden=[1,2],[3]", "task=a"]) == [
        [f"seed={seed}", f"agent.hidden={hidden}", "task=a"] for seed in (0, 1) for hidden in ("[1,2]", "[3]")
    ]
    assert combinations(["agent.conv=[[1,2],[3,4]],[[5,6]]"]) == [
        ["agent.conv=[[1,2],[3,4]]"], ["agent.conv=[[5,6]]"]
    ]  # fmt: skip
    assert combinations([]) == [[]] and combinations(["a=", "b"]) == [["a=", "b"]]


def test_a_configuration_comes_back_from_its_file():
    """A number, a text or a list that YAML reads as something else; a field of another version."""
    settings = compose("agent.actor_lr=1e-5", "wandb_id=123456", "run_dir=yes: #1", "agent.hidden=[7]", "resume=no")
    assert config.from_yaml(config.to_yaml(settings)) == settings and settings.resume is False
    with pytest.raises(UserError, match=r"unknown key 'agent\.memory'"):
        config.from_yaml("agent: {memory: 3}")
    for damaged in ("a: b: c", "just a text", "", "\0"):
        with pytest.raises(ValueError):
            config.from_yaml(damaged)


def test_a_field_that_is_gone_is_read_where_it_did_nothing():
    """A run of an earlier version that nothing reads any more, or one whose settings are taken for others."""
    assert config.from_yaml("{noise: {dt: 1.0, hold: 0}, seed: 3}").seed == 3
    with pytest.raises(UserError, match=r"noise\.hold is no longer supported"):
        config.from_yaml("noise: {hold: 4}")


def test_tiny_numbers_count_as_zero_on_every_thread():
    """Weight decay makes many, and a CPU takes several times as long for each: updates slowed to a fifth."""
    program = """
from pixel_ddpg.runtime import machine
machine.prepare_cpu(2)
import torch
many = torch.full((1 << 22,), 1e-20, requires_grad=True)
product = many * 1e-20
product.backward(torch.full_like(many, 1e-20))
print(product.count_nonzero().item(), many.grad.count_nonzero().item())
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0", "0"]


@pytest.mark.parametrize("own, expected", [({}, "3000"), ({"GOMP_SPINCOUNT": "9"}, "9")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(own, expected):
    """Two threads that spin for each other on a busy machine: 2.7 s an update instead of 0.1."""
    program = """
import os, sys, pixel_ddpg
print("torch" in sys.modules, os.environ["GOMP_SPINCOUNT"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"} | own
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert answer.stdout.split() == ["False", expected]
