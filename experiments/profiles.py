"""What `python -m experiments.suite` runs: sets of tasks, and the profiles with their budgets."""

from pixel_ddpg import presets
from pixel_ddpg.envs import tasks


def _tagged(tag: str) -> list[str]:
    return [task.name for task in tasks.CATALOGUE.values() if tag in task.tags]


# The panels of the paper's Figure 2, in its order. Its "puck shooting" is taken for canada2d, its blockworld, fixed
# reacher, gripper and monoped for those of Table 1.
FIGURE2 = [
    "cart", "pendulum", "cartpole", "fixedReacher", "blockworld1", "gripper", "canada2d", "hopper", "movingGripper",
    "cheetah",
]  # fmt: skip
SETS: dict[str, list[str]] = {
    "paper": _tagged("table1"),
    "figure2": FIGURE2,
    "planet6": list(tasks.PLANET6),
    # DrQ-v2's three (Yarats et al., 2021, table 2); its reach_duplo is not a task of the suite
    "dmc_easy": list(presets.DRQV2_EASY),
    "dmc_medium": [
        "acrobot-swingup", "cartpole-swingup_sparse", "cheetah-run", "finger-turn_easy", "finger-turn_hard",
        "hopper-hop", "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run",
    ],
    "dmc_hard": list(presets.DRQV2_HARD),
    "dmc28": _tagged("benchmarking"),
    "ladder": FIGURE2,
}  # fmt: skip
# Without target networks, each preset's column "control" in Table 1.
CONTROLS = {"fast": "fast_no_target", "ddpg2016": "dpg_replay"}
# From DPG to DDPG, one part at a time: what tasks=ladder runs unless preset= is given.
LADDER = ["dpg", "offpolicy_dpg", "dpg_replay", "ddpg2016_no_bn", "ddpg2016"]

# `controls` are presets that run from state alone, as in the paper. `run` are words of `python -m pixel_ddpg.run`.
PROFILES: dict[str, dict] = {
    "smoke": {
        "tasks": ["paper"], "obs": ["pixels", "state"], "preset": ["fast"], "controls": ["fast_no_target"],
        "seeds": 1, "frames": 2000,
        "run": [
            "replay.batch_size=16", "train.start_steps=50", "train.updates_per_step=0.2", "noise.frames=1000",
            "noise.random_frames=200", "eval.episodes=1", "eval.every=2000", "eval.video_size=96",
        ],
    },
    "quick": {
        "tasks": ["figure2"], "obs": ["pixels", "state"], "preset": ["fast"], "controls": ["fast_no_target"],
        "seeds": 2, "frames": 100_000, "run": [],
    },
    "paper": {
        "tasks": ["paper"], "obs": ["pixels", "state"], "preset": ["ddpg2016"],
        "controls": ["dpg_replay", "ddpg2016_no_bn"], "seeds": 5, "frames": 2_500_000, "run": ["eval.every=50000"],
    },
}  # fmt: skip
