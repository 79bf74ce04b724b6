"""The presets: what each algorithm sets, per kind of observation, and its exceptions per task.

A field that a preset does not name keeps the default of `config.py`. Numbers come from the paper (Lillicrap et al.,
arXiv 1509.02971v6, section 7), from DrQ-v2 (Yarats et al., arXiv 2107.09645, and its configuration files) or,
for `fast`, from the measurements in experiments/results/.
"""

import string
from collections.abc import Callable, Mapping
from typing import Any

from pixel_ddpg.config import Config, check, converted, differences, fields_of, flat, set_values, value_of, words_of
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError, nearest

# How pictures are drawn: what `render=` sets.
RENDER: dict[str, tuple[str, dict]] = {
    "exact": ("pictures as dm_control draws them, to the bit", {"shadow_size": 2048, "slices": 28, "stacks": 16}),
    "fast": (
        "in a fraction of its time, with a mean difference below 1/255",
        {"shadow_size": 128, "slices": 12, "stacks": 4},
    ),
}

# The paper, section 7, low-dimensional state: two hidden layers of 400 and 300 (129,306 parameters in the actor and
# 129,601 in the critic for cheetah, without BatchNorm's), the action enters at the second. The paper leaves open: the
# step of the OU process (1 agent step here), which layers "all layers of mu" are (the input and both hidden layers
# here, not the output), what L2 pulls at (weights here, not biases or BatchNorm's gains), which statistics the
# target's BatchNorm has (running ones, that follow with tau like its weights; those of the critic take in the batch
# with its own actions and with the actor's), and when updates begin (as soon as one batch is stored). It trains for
# 2.5 million steps; the budget here is that of every other preset until frames= says so.
DDPG_STATE: dict[str, dict] = {
    "agent": {
        "actor_lr": 1e-4, "critic_lr": 1e-3, "critic_weight_decay": 1e-2, "tau": 0.001, "discount": 0.99,
        "critics": 1, "hidden": [400, 300], "feature_dim": 0, "action_layer": 1, "batch_norm": True,
        "layer_norm": False, "init": "fan_in", "final_init": 3e-3, "target_actor": True, "random_shift": 0,
    },
    "env": {"action_repeat": 1, "frame_stack": 1},
    "replay": {"capacity": 1_000_000, "batch_size": 64, "n_step": 1},
    "noise": {"kind": "ou", "theta": 0.15, "sigma": 0.2, "random_frames": 0, "target_clip": 0.0},
    "train": {"start_steps": 64, "updates_per_step": 1.0},
}  # fmt: skip

# The paper, section 7, pixels: 3 convolutions of 32 filters, two layers of 200; one observation is the three renderings
# of the last three simulation steps. Kernels and strides are open; 7/4, 7/1, 3/1 without padding ends in a 7x7 map and
# counts 427,801 parameters in the actor for one action ("about 430,000"). BatchNorm is described for the
# low-dimensional case only, so there is none here. The action enters at the second layer of 200, as for state. Actor
# and critic share the convolutions, which the critic trains.
DDPG_PIXELS: dict[str, dict] = {
    "agent": DDPG_STATE["agent"] | {
        "conv": [[32, 7, 4, 0], [32, 7, 1, 0], [32, 3, 1, 0]], "pixel_offset": 0.0, "hidden": [200, 200],
        "batch_norm": False, "final_init": 3e-4, "target_encoder": True,
    },
    "env": {"size": 64, "action_repeat": 3, "renderings": 3, "frame_stack": 1} | RENDER["fast"][1],
    "replay": {"capacity": 1_000_000, "batch_size": 16, "n_step": 1},
    "noise": DDPG_STATE["noise"],
    "train": {"start_steps": 16, "updates_per_step": 1.0},
}  # fmt: skip

# DrQ-v2's config.yaml and drqv2.py. Its noise schedules count agent steps; here they count frames (2 a step).
DRQV2: dict[str, dict] = {
    "agent": {
        "actor_lr": 1e-4, "critic_lr": 1e-4, "tau": 0.01, "discount": 0.99, "critics": 2, "hidden": [1024, 1024],
        "feature_dim": 50, "action_layer": 0, "batch_norm": False, "layer_norm": False, "init": "orthogonal",
        "final_init": 0.0, "conv": [[32, 3, 2, 0], [32, 3, 1, 0], [32, 3, 1, 0], [32, 3, 1, 0]], "pixel_offset": 0.5,
        "random_shift": 4, "target_actor": False, "target_encoder": False,
    },
    "env": {"size": 84, "action_repeat": 2, "frame_stack": 3} | RENDER["exact"][1],
    "replay": {"capacity": 1_000_000, "batch_size": 256, "n_step": 3},
    "noise": {
        "kind": "gaussian", "start": 1.0, "end": 0.1, "frames": 1_000_000, "random_frames": 4000, "target_clip": 0.3,
    },
    "train": {"start_steps": 2000, "updates_per_step": 0.5},
}  # fmt: skip

# Tuned for what six tasks return after 100,000 frames, at most an hour on two CPU cores:
# experiments/results/screening/README.md has what was tried. `_fast_for` sets action repeat, discount, updates and
# random steps.
FAST_PIXELS: dict[str, dict] = {
    "agent": {
        "actor_lr": 5e-4, "critic_lr": 5e-4, "final_lr": 0.1, "tau": 0.01, "critics": 2, "ensemble": "mean",
        "hidden": [256, 256], "feature_dim": 50, "action_layer": 0, "batch_norm": False,
        "layer_norm": True, "init": "orthogonal", "final_init": 3e-3, "saturation_penalty": 1e-2,
        "output_rms": 1.5, "conv": [[16, 3, 2, 1], [32, 3, 2, 1], [32, 3, 2, 1]], "spatial_softmax": True,
        "pixel_offset": 0.5, "random_shift": 4, "inverse_loss": 2.0, "reconstruction_loss": 2.0,
        "target_actor": True, "target_encoder": True, "precision": "auto",
    },
    "env": {"size": 64, "frame_stack": 3, "slices": 14},
    "replay": {"capacity": 1_000_000, "batch_size": 128, "n_step": 3},
    "noise": {"kind": "gaussian", "start": 1.0, "end": 0.1, "frames": 30_000, "target_clip": 0.3},
    "train": {"start_steps": 200},
}  # fmt: skip
FAST_STATE: dict[str, dict] = {
    "agent": FAST_PIXELS["agent"] | {
        "output_rms": 0.0, "feature_dim": 0, "random_shift": 0, "spatial_softmax": False, "inverse_loss": 0.0,
        "reconstruction_loss": 0.0, "target_actor": False, "target_encoder": False, "precision": "float32",
        "state_norm": True,
    },
    "env": {"frame_stack": 1},
    "replay": FAST_PIXELS["replay"] | {"batch_size": 256},
    "noise": FAST_PIXELS["noise"] | {"bursts": 0.05},
    "train": FAST_PIXELS["train"],
}  # fmt: skip


def _merge(base: dict, *changes: dict) -> dict:
    result = {group: dict(fields) for group, fields in base.items()}
    for change in changes:
        for group, fields in change.items():
            result[group] = result.get(group, {}) | fields
    return result


# From DPG to DDPG, one part at a time; all have the paper's networks and learning rates.
# No replay is a replay of one transition; no target networks is tau = 1 (the target has the network's weights).
NO_REPLAY = {
    "replay": {"capacity": 1, "batch_size": 1},
    "agent": {"tau": 1.0, "batch_norm": False},
    "train": {"start_steps": 1},
}
ON_POLICY = {"noise": {"sigma": 0.0}}
NO_TARGETS = {"agent": {"tau": 1.0}}
NO_BATCH_NORM = {"agent": {"batch_norm": False}}

SETTINGS: dict[tuple[str, str], dict] = {
    ("fast", "pixels"): FAST_PIXELS,
    ("fast", "state"): FAST_STATE,
    ("fast_no_target", "pixels"): _merge(FAST_PIXELS, NO_TARGETS),
    ("fast_no_target", "state"): _merge(FAST_STATE, NO_TARGETS),
    ("drqv2", "pixels"): DRQV2,
    ("drqv2", "state"): _merge(DRQV2, {"agent": {"feature_dim": 0, "random_shift": 0}, "env": {"frame_stack": 1}}),
    **{
        (name, obs): _merge(base, *changes)
        for obs, base in (("state", DDPG_STATE), ("pixels", DDPG_PIXELS))
        for name, changes in (
            ("dpg", (NO_REPLAY, ON_POLICY)),
            ("offpolicy_dpg", (NO_REPLAY,)),
            ("dpg_replay", (NO_TARGETS,)),
            ("ddpg2016_no_bn", (NO_BATCH_NORM,)),
            ("ddpg2016", ()),
        )
    },
}
PRESETS: dict[str, str] = {
    "fast": "tuned for 100,000 frames in less than an hour on two CPU cores (default)",
    "fast_no_target": "fast without target networks (ablation)",
    "drqv2": "DrQ-v2's recipe (Yarats et al., 2021)",
    "ddpg2016": "the paper: replay, target networks, BatchNorm for state",
    "ddpg2016_no_bn": "the paper without BatchNorm; from pixels ddpg2016 has none anyway",
    "dpg_replay": "the paper without target networks (its ablation)",
    "offpolicy_dpg": "exploration noise, no replay, no target networks",
    "dpg": "on-policy deterministic actor-critic: no noise, no replay, no target networks",
}

# PlaNet's action repeats (Hafner et al., arXiv 1811.04551, table 1).
PLANET_REPEAT = {"cartpole": 8, "cheetah": 4, "reacher": 4, "ball_in_cup": 4, "finger": 2, "walker": 2}
# The paper's tasks by the same measure: 0.08 s a step where one pole swings or a planar arm reaches, 0.04 to 0.05 s
# elsewhere.
PAPER_REPEAT = {
    "blockworld1": 4, "cart": 4, "cartpoleBalance": 8, "cartpoleParallelDouble": 4, "cartpoleParallelTriple": 4,
    "cartpoleSerialDouble": 4, "cartpoleSerialTriple": 4, "cartpole-two_poles": 4, "cartpole-three_poles": 4,
    "fixedReacher": 4, "fixedReacherDouble": 4, "fixedReacherSingle": 4, "gripper": 4, "gripperRandom": 4,
    "hardCheetah": 4, "movingGripper": 4, "movingGripperRandom": 4, "reacherDouble": 4, "reacherObstacle": 4,
    "reacherSingle": 4,
}  # fmt: skip
# These are for pictures, each of which costs a step; from state every task has steps of 2 frames.
STATE_REPEAT = 2
# Whatever the action repeat is: frames of an update, random steps, and the horizon 1 / (1 - discount), in seconds from
# pixels, in frames from state.
FAST_FRAMES_AN_UPDATE = {"state": 2, "pixels": 4}
FAST_RANDOM_STEPS = 1000
FAST_SECONDS = 2.0
FAST_STATE_FRAMES = 200
# DrQ-v2's task files: (frames, noise schedule in frames); its schedules of 100k, 500k and 2M steps, 2 frames a step.
DRQV2_EASY = ("cartpole-balance", "cartpole-balance_sparse", "cartpole-swingup", "ball_in_cup-catch", "finger-spin",
              "hopper-stand", "pendulum-swingup", "walker-stand", "walker-walk")  # fmt: skip
DRQV2_HARD = ("humanoid-stand", "humanoid-walk", "humanoid-run")


def action_repeat(task: str) -> int:
    """Action repeat of `fast` from pixels, also used to measure baselines."""
    return for_task("fast", "pixels", task)["env"]["action_repeat"]


def _fast_for(obs: str, task: str, repeat: int) -> dict:
    if not repeat:
        of_pictures = PAPER_REPEAT.get(task) or PLANET_REPEAT.get(task.split("-")[0], 2)
        repeat = of_pictures if obs == "pixels" else STATE_REPEAT
    frames = FAST_SECONDS / tasks.find(task).control_timestep if obs == "pixels" else FAST_STATE_FRAMES
    return {
        "env": {"action_repeat": repeat},
        "agent": {"discount": max(0.5, round(1 - repeat / frames, 3))},
        "noise": {"random_frames": FAST_RANDOM_STEPS * repeat},
        "train": {"updates_per_step": repeat / FAST_FRAMES_AN_UPDATE[obs]},
    }


def _drqv2_for(obs: str, task: str, repeat: int) -> dict:
    task = tasks.find(task).same_as
    domain = task.split("-")[0]
    frames, noise = (1_100_000, 200_000) if task in DRQV2_EASY else (3_100_000, 1_000_000)
    if task in DRQV2_HARD:
        frames, noise = 30_100_000, 4_000_000
    changes: dict = {"frames": frames, "noise": {"frames": noise}}
    if domain == "walker":
        changes["replay"] = {"n_step": 1, "batch_size": 512}
    if task == "quadruped-run":
        changes["replay"] = {"capacity": 100_000}
    if domain == "humanoid":
        changes["agent"] = {"actor_lr": 8e-5, "critic_lr": 8e-5} | ({"feature_dim": 100} if obs == "pixels" else {})
    return changes


# What presets change for one task: obs, task and the action repeat that is asked for, or 0, to nested fields.
BY_TASK: dict[str, Callable[[str, str, int], dict]] = {
    "fast": _fast_for, "fast_no_target": _fast_for, "drqv2": _drqv2_for,
}  # fmt: skip


def for_task(preset: str, obs: str, task: str, repeat: int = 0) -> dict:
    """What a preset changes for one task, as nested fields; empty for most."""
    return BY_TASK[preset](obs, task, repeat) if preset in BY_TASK else {}


class _Names(string.Template):
    """${task}, ${agent.tau} and all other fields."""

    braceidpattern = r"[a-z][a-z0-9_.]*"


def configure(changes: Mapping[str, Any]) -> Config:
    """The configuration of a run: `changes`, by dotted names, over the task's settings over the preset's.

    task, obs, preset and render choose these. UserError for what does not fit.
    """
    config, changes = Config(), dict(changes)
    render = changes.pop("render", None)
    set_values(config, {key: changes.pop(key) for key in ("task", "obs", "preset") if key in changes})
    tasks.find(config.task)
    named = [("obs", config.obs, ["pixels", "state"]), ("preset", config.preset, list(PRESETS))]
    if render is not None:
        named.append(("render", render, list(RENDER)))
    for what, name, known in named:
        if name not in known:
            raise UserError(f"unknown {what} '{name}'{nearest(str(name), known)}")
    key = "env.action_repeat"
    repeat = converted(key, changes[key], int) if key in changes else 0
    trees = [SETTINGS[config.preset, config.obs], for_task(config.preset, config.obs, config.task, repeat)]
    if render:
        trees.append({"env": RENDER[render][1]})
    for tree in trees:
        set_values(config, flat(tree))
    set_values(config, changes)
    values = {key: value_of(config, key) for key in fields_of(Config) if key != "run_dir"}
    for found in _Names.pattern.finditer(config.run_dir):
        if (field := found["braced"]) and field not in values:
            raise UserError(f"run_dir= has ${{{field}}}, which is no field{nearest(field, list(values))}")
    config.run_dir = _Names(config.run_dir).safe_substitute(values)
    check(config)
    return config


def changes(config: Config) -> list[str]:
    """The fields, as key=value, in which a run differs from its preset with its action repeat."""
    repeat = {"env.action_repeat": config.env.action_repeat}  # which sets other fields
    chosen = {"task": config.task, "obs": config.obs, "preset": config.preset, "seed": config.seed}
    others = differences(config, configure(chosen | repeat))
    is_presets = configure(chosen).env.action_repeat == config.env.action_repeat
    return others if is_presets else [f"env.action_repeat={config.env.action_repeat}", *others]


def compose(words: list[str]) -> Config:
    """`configure` from `key=value` words of the command line."""
    return configure(words_of(words))
