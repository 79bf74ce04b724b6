"""One typed configuration: every field with its default, its help text and the values it may have."""

import contextlib
import copy
import dataclasses
import functools
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pixel_ddpg.errors import UserError, nearest

LARGEST_PICTURE = 2048  # pixels a side
LARGEST = 10**12  # where a field names no bound of its own


def option(
    default: Any,
    text: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    free: bool = False,
    flag: bool = False,
    own: bool = False,
    only: str = "",
) -> Any:
    """A field with its help text and its bounds.

    One that is `free` may change when a run is resumed; one that is a `flag` may be given as --name too; each job of a
    --multirun needs its `own`; one with `only`, as "obs=pixels", has an effect in such runs alone.
    """
    if only:
        text = f"{only.partition('=')[2]}: {text}"
    known = types.MappingProxyType({
        "text": text, "least": least, "most": most, "choices": choices, "free": free, "flag": flag, "own": own,
        "only": only,
    })  # fmt: skip
    if isinstance(default, list):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=known)
    return field(default=default, metadata=known)


@dataclass
class Env:
    size: int = option(64, "width and height of a frame", least=8, most=LARGEST_PICTURE, only="obs=pixels")
    action_repeat: int = option(2, "frames (control steps) an action is held", least=1)
    frame_stack: int = option(3, "observations of the last steps that are stacked into one", least=1)
    renderings: int = option(
        1,
        "pictures taken within one step, evenly spread over its frames; the paper takes 3",
        least=1,
        only="obs=pixels",
    )
    camera: int = option(-1, "camera id; -1: the task's default", least=-1)
    shadow_size: int = option(
        256, "side of the shadow map; dm_control's 2048 costs most of a software frame", least=2, most=8192
    )
    slices: int = option(
        28,
        "corners of a round body, 28 as in mujoco; a software frame's time grows with their square",
        least=7,
        most=128,
    )
    stacks: int = option(0, "rings of a round body; 0: 4/7 of the slices, as in mujoco", least=0, most=128)


@dataclass
class Replay:
    capacity: int = option(1_000_000, "maximum number of transitions kept; the oldest are overwritten", least=1)
    batch_size: int = option(128, "transitions in a batch", least=1)
    n_step: int = option(  # no episode of any task is longer than 1,000 frames
        3, "n of the n-step return: rewards summed before bootstrapping", least=1, most=1000
    )


@dataclass
class Noise:
    kind: str = option(
        "gaussian", "exploration noise: gaussian, or ou, an Ornstein-Uhlenbeck process", choices=("gaussian", "ou")
    )
    start: float = option(1.0, "standard deviation at frame 0", least=0, only="noise.kind=gaussian")
    end: float = option(0.1, "standard deviation after noise.frames", least=0, only="noise.kind=gaussian")
    frames: int = option(
        100_000, "frames over which its standard deviation falls linearly", least=1, only="noise.kind=gaussian"
    )
    theta: float = option(0.15, "pull to the mean", least=0, only="noise.kind=ou")
    sigma: float = option(0.2, "diffusion", least=0, only="noise.kind=ou")
    random_frames: int = option(0, "frames of uniform random actions before the policy acts", least=0)
    bursts: float = option(
        0.0,
        "fraction of the later steps in bursts: one random action, held for 4 steps on average",
        least=0,
        most=0.8,
    )
    target_clip: float = option(
        0.3,
        "clip of the noise, of deviation start to end, on the actions of target and actor's loss; 0: no noise",
        least=0,
    )


@dataclass
class Agent:
    discount: float = option(0.99, "of rewards, per agent step; above 0", most=1)
    tau: float = option(
        0.01, "soft-update rate of the target networks, per update; above 0; 1: no target networks", most=1
    )
    actor_lr: float = option(1e-4, "learning rate of the actor", least=0)
    critic_lr: float = option(1e-4, "learning rate of the critic and the encoder", least=0)
    final_lr: float = option(
        1.0,
        "final learning rates as a fraction of the initial ones; linear decay over frames=",
        least=0,
        most=1,
    )
    critic_weight_decay: float = option(0.0, "L2 on the weights of critic and encoder", least=0)
    critics: int = option(2, "how many critics there are", least=1, most=100)
    ensemble: str = option(
        "min",
        "how target and actor combine several critics: the smallest Q (clipped double Q) or the mean",
        choices=("min", "mean"),
    )
    conv: list[list[int]] = option([], "[filters, kernel, stride, padding] a layer", only="obs=pixels")
    spatial_softmax: bool = option(
        False, "add a second trunk, on the spatial softmax of the last feature maps", only="obs=pixels"
    )
    pixel_offset: float = option(0.0, "subtracted after division by 255", only="obs=pixels")
    feature_dim: int = option(0, "width of the linear + LayerNorm + tanh after the encoder; 0: none", least=0)
    hidden: list[int] = option([256, 256], "widths of the hidden layers of actor and critic")
    action_layer: int = option(0, "the hidden layer of the critic that the action enters", least=0)
    batch_norm: bool = option(False, "on the input and before each ReLU (critic: before the action enters)")
    layer_norm: bool = option(False, "before each ReLU")
    init: str = option(
        "orthogonal",
        "weights of new networks: orthogonal, or fan_in, U(+-1/sqrt(fan-in))",
        choices=("orthogonal", "fan_in"),
    )
    final_init: float = option(0.0, "last layers U(+-final_init); 0: as the others", least=0)
    state_norm: bool = option(
        False, "minus its running mean, divided by its running deviation, within +-5", only="obs=state"
    )
    inverse_loss: float = option(
        0.0,
        "weight of predicting the actions between two observations, times the running TD loss",
        least=0,
        only="obs=pixels",
    )
    reconstruction_loss: float = option(
        0.0,
        "weight of reconstructing the picture before its shift, times the running TD loss",
        least=0,
        only="obs=pixels",
    )
    model_width: int = option(
        0,
        "width of the latents that actor and critic see, which a model of the next n_step states and rewards trains; "
        "0: none",
        least=0,
        most=2**15,
        only="obs=state",
    )
    saturation_penalty: float = option(
        0.0, "weight of the squared output before tanh in the actor's loss; with output_rms, its minimum", least=0
    )
    output_rms: float = option(
        0.0, "RMS of the output before tanh above which the penalty's weight rises; 0: fixed weight", least=0
    )
    random_shift: int = option(
        4,
        "shift observation and next observation at random, by up to this many pixels each; 0: off",
        least=0,
        only="obs=pixels",
    )
    target_encoder: bool = option(False, "a target encoder, a slow copy, sees the next observation", only="obs=pixels")
    target_actor: bool = option(False, "a target actor, a slow copy, chooses the next action")
    precision: str = option(
        "float32",
        "tf32: products and convolutions on a GPU; bfloat16: the encoder; auto: bfloat16 where it is fast",
        choices=("float32", "tf32", "bfloat16", "auto"),
    )


@dataclass
class Train:
    start_steps: int = option(200, "updates begin when this many agent steps are stored", least=1)
    updates_per_step: float = option(1.0, "gradient updates for each agent step", least=0, most=1000)
    overlap: bool = option(
        False, "step the environment in a process of its own while updates run (always so when envs > 1)"
    )
    cuda_graph: bool = option(
        False, "on a GPU: updates and acting as graphs, which do the same with less work for the CPU"
    )
    compile: bool = option(
        False, "on a GPU: torch.compile of batches, encoder and losses, which takes up to a minute at first"
    )


@dataclass
class Eval:
    every: int = option(10_000, "frames between evaluations", least=1)
    episodes: int = option(10, "episodes per evaluation", least=1)
    video_size: int = option(
        256, "pixels a side of the video of the last evaluation's first episode; 0: no video", least=0, free=True
    )


@dataclass
class Config:
    """Everything that decides a run. Budgets, schedules and intervals count frames; what is called steps does not."""

    task: str = option("cartpole-swingup", "a name from `python -m pixel_ddpg.list`")
    obs: str = option("pixels", "pixels or state", choices=("pixels", "state"))
    preset: str = option("fast", "sets every field that is not given")
    seed: int = option(0, "random seed", least=0, most=2**63 - 1)
    frames: int = option(100_000, "training budget in frames", least=1, free=True)
    envs: int = option(1, "environments that training plays in; several have a process each", least=1, most=256)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", free=True)
    threads: int = option(
        0, "CPU threads of torch and software GL; 0: all that this process may use", least=0, most=1024, free=True
    )
    run_dir: str = option(
        "runs/${task}/${obs}/${preset}/seed${seed}",
        "folder of the run; ${key} stands for any field",
        free=True,
        own=True,
    )
    resume: bool = option(True, "resume from the newest checkpoint in run_dir, if there is one", free=True)
    overwrite: bool = option(False, "with resume=false: delete the run that is there", free=True)
    checkpoint_minutes: float = option(5.0, "minutes between checkpoints; 0: after every step", least=0, free=True)
    wandb: str = option(
        "auto",
        "auto (online with a key, else offline), online, offline, off",
        choices=("auto", "online", "offline", "off"),
        free=True,
    )
    wandb_project: str = option("", "or entity/project; default: WANDB_PROJECT, or pixel-ddpg", free=True)
    wandb_id: str = option("", "id of the W&B run, chosen when the run begins and kept when it is resumed", free=True)
    env: Env = field(default_factory=Env)
    agent: Agent = field(default_factory=Agent)
    replay: Replay = field(default_factory=Replay)
    noise: Noise = field(default_factory=Noise)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)


# --- fields by their dotted names ---


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every field that holds a value, by its dotted name."""
    for item in dataclasses.fields(schema):
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from leaves(item.type, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def fields_of(schema: Any) -> dict[str, dataclasses.Field]:
    """The fields from `leaves` as a dictionary."""
    return dict(leaves(schema))


def value_of(settings: object, key: str) -> Any:
    """The field that a dotted key names."""
    return functools.reduce(getattr, key.split("."), settings)


def set_values(settings: Any, changes: Mapping[str, object]) -> None:
    """Set fields by their dotted names, from values or from words of the command line."""
    known = fields_of(type(settings))
    for key, value in changes.items():
        if key not in known:
            raise UserError(f"unknown key '{key}'{nearest(key, list(known))}")
        *groups, name = key.split(".")
        setattr(functools.reduce(getattr, groups, settings), name, converted(key, value, known[key].type))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups of fields as one dictionary of dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def words_of(words: list[str]) -> dict[str, str]:
    """`key=value` words of the command line; the last one counts where two have the same key."""
    for word in words:
        if not re.fullmatch(r"[\w.]+=.*", word, re.S):
            raise UserError(f"'{word}' is not of the form key=value")
    return dict(word.split("=", 1) for word in words)


WHOLE = re.compile(r"[+-]?\d+(_\d+)*")
TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


def converted(key: str, value: Any, kind: Any) -> Any:
    """A field's value from YAML or from a word of the command line; UserError where it is of another kind."""
    if kind is Any:
        return _plain(_yaml(key, value)) if isinstance(value, str) else value
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
        return [converted(key, each, kind) for each in _listed(key, value, kind)]
    of_kind: dict[Any, Callable[[str, Any], Any]] = {str: _text, bool: _truth, int: _whole, float: _number}
    return of_kind[kind](key, value)


def _listed(key: str, value: Any, kind: type) -> list:
    if isinstance(value, str) and value.startswith("["):
        value = _yaml(key, value)
    elif isinstance(value, str) and value and kind is str:
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{key}={value}: write a list in brackets, as {key}=[...]")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise UserError(f"{key}={value} must be text")
    text = str(value)
    if not re.match("~[^/]*/", text):
        return text
    if (path := os.path.expanduser(text)) == text:
        raise UserError(f"{key}={text}: this user has no home folder here; write the whole path")
    return path


def _truth(key: str, value: Any) -> bool:
    value = TRUTHS.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise UserError(f"{key}={value} must be true or false")
    return value


def _whole(key: str, value: Any) -> int:
    hint = ", without an exponent, as 100000 or 100_000"
    if isinstance(value, str):
        if _is_whole(value):
            return int(value)
        if WHOLE.fullmatch(value):
            hint = ", with fewer than 20 digits"
        elif "," in value:
            hint = "; --multirun runs one after the other"
    elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # numpy's too
    raise UserError(f"{key}={value} must be a whole number{hint}")


def _number(key: str, value: Any) -> float:
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise UserError(f"{key}={value} must be a number")


def _is_whole(text: str) -> bool:
    return WHOLE.fullmatch(text) is not None and len(text) < 20


def _yaml(key: str, text: str) -> Any:
    """Lists and what stands in them, as text: YAML itself takes a folder named 1_1 for 11 and a date for no name."""
    try:
        return yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        raise UserError(f"{key}={text} cannot be parsed: put list items with special characters in quotes") from None


def _plain(value: Any) -> Any:
    """Whole numbers and null among texts, where a field says nothing of its kind."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if value in (None, "", "null"):
        return None
    return int(value) if isinstance(value, str) and _is_whole(value) else value


# --- YAML ---

# Fields of earlier versions, with the value that is what is done without them.
GONE = {
    "noise.dt": 1.0, "noise.hold": 0, "agent.encoder_tau": 0.0, "agent.encoder_trained_by": "critic",
    "agent.first_discount": 0.0,
}  # fmt: skip


def to_yaml(settings: Any) -> str:
    """A dataclass of options, as config.yaml has a configuration."""
    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Config:
    """A configuration that `to_yaml` wrote; UserError for one of another version, ValueError for what is no YAML."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if not isinstance(tree, dict):
        raise ValueError("it holds no configuration")
    values = flat(tree)
    for key, value in GONE.items():
        if values.pop(key, value) != value:
            raise UserError(f"{key} is no longer supported, and only {key}={value} can still be read")
    settings = Config()
    set_values(settings, values)
    return settings


# --- checks ---


def check(config: Config) -> None:
    """Refuse what cannot work, before anything is built."""
    check_fields(config)
    if not config.run_dir.strip():
        raise UserError("run_dir= must name a folder")
    if not config.agent.hidden or not all(0 < width < 2**16 for width in config.agent.hidden):
        raise UserError(f"agent.hidden={config.agent.hidden} must list the widths, below 65,536, of one or more layers")
    check_video_size(config.eval.video_size, "eval.video_size", least=0)
    if config.overwrite and config.resume:
        raise UserError("overwrite=true needs resume=false: together they delete the run that is there")
    env, agent, replay = config.env, config.agent, config.replay
    if replay.batch_size > replay.capacity:
        raise UserError(f"replay.batch_size={replay.batch_size} is larger than replay.capacity={replay.capacity}")
    if replay.n_step > replay.capacity // config.envs:
        of_each = f" of each of envs={config.envs}" if config.envs > 1 else ""
        raise UserError(f"replay.n_step={replay.n_step} is larger than replay.capacity={replay.capacity}{of_each}")
    for key in ("agent.discount", "agent.tau"):
        if value_of(config, key) <= 0:
            raise UserError(f"{key}={value_of(config, key)} must lie in (0, 1]")
    if agent.action_layer >= len(agent.hidden):
        raise UserError(
            f"agent.action_layer={agent.action_layer} must be one of the {len(agent.hidden)} hidden layers (from 0)"
        )
    if config.obs == "state" and agent.model_width and (agent.feature_dim or not agent.state_norm):
        raise UserError("agent.model_width needs agent.feature_dim=0 and agent.state_norm=true")
    if agent.output_rms and not agent.saturation_penalty:
        raise UserError(f"agent.output_rms={agent.output_rms} needs agent.saturation_penalty above 0, which it adapts")
    if agent.batch_norm and replay.batch_size == 1:
        raise UserError("agent.batch_norm=true needs replay.batch_size of 2 or more")
    if config.obs == "pixels" and env.action_repeat % env.renderings:
        raise UserError(f"env.renderings={env.renderings} must divide env.action_repeat={env.action_repeat}")
    if agent.spatial_softmax and config.obs == "state":
        raise UserError("agent.spatial_softmax=true is for pixels: leave it out, as this run trains from state")
    if config.obs == "pixels":
        check_convolutions(config)
        if agent.random_shift >= env.size:
            raise UserError(f"agent.random_shift={agent.random_shift} must be smaller than env.size={env.size}")


def check_fields(options: Any) -> None:
    """Refuse a value that its field may not have, of any dataclass of options."""
    for key, item in leaves(type(options)):
        _check_field(key, value_of(options, key), item.metadata)


def _check_field(key: str, value: Any, known: Mapping[str, Any]) -> None:
    if known.get("choices") and value not in known["choices"]:
        raise UserError(f"unknown {key} '{value}'{nearest(value, known['choices'])}")
    if not isinstance(value, int | float):
        return
    least, most = known.get("least"), LARGEST if known.get("most") is None else known["most"]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value} must be a finite number")
    if least is not None and value < least:
        raise UserError(f"{key}={value} must be at least {least}")
    if value > most:
        raise UserError(f"{key}={value} must be at most {most:,}")


def check_video_size(size: int, key: str, least: int = 2) -> None:
    """The codec wants even sides."""
    if size % 2 or not least <= size <= LARGEST_PICTURE:
        raise UserError(f"{key}={size} must be an even number of pixels, at most {LARGEST_PICTURE}")


def check_convolutions(config: Config) -> None:
    """Every layer of the encoder must fit the map before it."""
    if not config.agent.conv or any(len(layer) != 4 or max(layer) >= 2**16 for layer in config.agent.conv):
        raise UserError("agent.conv must list [filters,kernel,stride,padding], each below 65,536, for each layer")
    side = config.env.size
    for filters, kernel, stride, padding in config.agent.conv:
        if min(filters, kernel, stride) < 1 or padding < 0 or side + 2 * padding < kernel:
            layer = [filters, kernel, stride, padding]
            raise UserError(f"agent.conv {layer} does not fit a map of {side} pixels (env.size={config.env.size})")
        side = (side + 2 * padding - kernel) // stride + 1


def has_no_effect(config: Config, key: str) -> str:
    """What a field of a run would need to count, as key=value; empty where it does."""
    only = fields_of(Config)[key].metadata["only"]
    other, _, value = only.partition("=")
    in_updates = only == "noise.kind=gaussian" and config.noise.target_clip > 0
    return only if only and value_of(config, other) != value and not in_updates else ""


def differences(old: Config, new: Config) -> list[str]:
    """The fields, as key=value of `old`, in which a run and a new command disagree and that matter to learning."""
    matter = [key for key, item in leaves(Config) if not item.metadata["free"]]
    return [f"{key}={value_of(old, key)}" for key in matter if value_of(old, key) != value_of(new, key)]
