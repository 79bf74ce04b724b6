"""One typed configuration tree, the Hydra groups that fill it, and every check of a bad value."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import inspect
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pixel_ddpg import presets, tasks

RUN_DIR = "runs/${task}/${obs}/${preset}/seed${seed}"


class UserError(Exception):
    """A mistake or a lack that the user can mend: told in one line, without a traceback. `code` is the exit code."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


@dataclass
class Env:
    size: int = 64  # width and height of a frame, in pixels
    action_repeat: int = 2  # frames (control steps) an action is held
    frame_stack: int = 3  # how many of the last steps an observation shows
    renderings: int = 1  # pictures taken within one step, evenly spread over its frames; the paper takes 3
    camera: int = -1  # -1: the task's own
    shadow_size: int = 256  # side of the shadow map; dm_control's 2048 costs most of a software frame
    slices: int = 28  # corners of a round body, 28 as in mujoco; a software frame's time grows with their square
    stacks: int = 0  # rings of a round body; 0: 4/7 of the slices, as in mujoco


@dataclass
class Replay:
    capacity: int = 1_000_000  # transitions
    batch_size: int = 128
    n_step: int = 3


@dataclass
class Noise:
    kind: str = "gaussian"  # or ou, an Ornstein-Uhlenbeck process
    start: float = 1.0  # gaussian: standard deviation at frame 0 ...
    end: float = 0.1  # ... which falls linearly to this one ...
    frames: int = 100_000  # ... over so many frames
    theta: float = 0.15  # ou: pull to the mean
    sigma: float = 0.2  # ou: diffusion
    dt: float = 1.0  # ou: time of one agent step
    random_frames: int = 0  # random actions at first
    hold: float = 0.0  # of those, half at the bounds and held for this many agent steps on average; 0: all uniform
    target_clip: float = 0.3  # bound of the gaussian noise on the target's and the actor's actions; 0: no noise there


@dataclass
class Agent:
    discount: float = 0.99  # per agent step
    tau: float = 0.01  # weight of the network in its target, every update; 1: no target networks
    encoder_tau: float = 0.0  # the same of the encoder, where the targets have one; 0: as tau
    actor_lr: float = 1e-4
    critic_lr: float = 1e-4  # also of the encoder
    final_lr: float = (
        1.0  # share of the learning rates that is left at the end of the budget, frames=; they fall linearly
    )
    critic_weight_decay: float = 0.0  # L2 on the weights of critic and encoder
    critics: int = 2
    ensemble: str = "min"  # of several critics, target and actor take the smallest Q (clipped double Q) or the mean
    conv: list[list[int]] = field(default_factory=list)  # pixels: [filters, kernel, stride, padding] a layer
    spatial_softmax: bool = False  # pixels: a second trunk, of the place where each last map is largest
    pixel_offset: float = 0.0  # subtracted after division by 255
    feature_dim: int = 0  # width of the linear + LayerNorm + tanh after the encoder; 0: none
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    action_layer: int = 0  # the hidden layer of the critic that the action enters
    batch_norm: bool = False  # on the input and before each ReLU (critic: before the action enters)
    layer_norm: bool = False  # before each ReLU
    init: str = "orthogonal"  # or fan_in, U(+-1/sqrt(fan-in))
    final_init: float = 0.0  # last layers U(+-final_init); 0: as the others
    state_norm: bool = False  # state: less the running mean, over the running deviation, within +-5
    inverse_loss: float = 0.0  # pixels: weight of the loss that tells the actions between two observations from these
    reconstruction_loss: float = 0.0  # pixels: weight of the loss that tells the picture before its random shift
    saturation_penalty: float = 0.0  # weight of the squared output before tanh in the actor's loss
    output_rms: float = 0.0  # the penalty's weight grows until the output's root mean square is this; 0: it is fixed
    random_shift: int = 4  # pixels: shift both observations by up to so many, each on its own; 0: off
    encoder_trained_by: str = "critic"  # or both
    target_encoder: bool = False  # the targets see through their own, slowly moving encoder
    target_actor: bool = False  # the next action comes from a slowly moving actor
    precision: str = "float32"  # tf32: a GPU's products; bfloat16: the encoder; auto: bfloat16 where it is fast


@dataclass
class Train:
    start_steps: int = 200  # updates begin when so many agent steps are stored
    updates_per_step: float = 1.0  # gradient updates for each agent step
    overlap: bool = False  # one environment has a process too, and steps while updates are made, as several always do
    cuda_graph: bool = False  # on a GPU: updates and acting as graphs, which do the same with less work for the CPU
    compile: bool = False  # on a GPU: torch.compile of batches, encoder and losses, which takes up to a minute at first


@dataclass
class Eval:
    every: int = 10_000  # frames between evaluations
    episodes: int = 10
    video_size: int = 256  # of the last evaluation's first episode; 0: no video


@dataclass
class Config:
    """Everything that decides a run. Budgets, schedules and intervals count frames; what is called steps does not."""

    task: str = MISSING
    obs: str = MISSING  # pixels or state
    preset: str = MISSING
    seed: int = 0
    frames: int = 100_000
    envs: int = 1  # environments that training plays in; several have a process each
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    threads: int = 0  # CPU threads of torch and software GL; 0: all that this process may use
    run_dir: str = RUN_DIR
    resume: bool = True
    overwrite: bool = False  # with resume=false: delete the run that is there
    checkpoint_minutes: float = 5.0  # 0: after every step
    wandb: str = "auto"  # auto (online with a key, else offline), online, offline, off
    wandb_project: str = "pixel-ddpg"  # or entity/project
    wandb_id: str = ""  # chosen when the run begins; it stays one W&B run however often it goes on
    env: Env = field(default_factory=Env)
    agent: Agent = field(default_factory=Agent)
    replay: Replay = field(default_factory=Replay)
    noise: Noise = field(default_factory=Noise)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)


# What may differ when a run goes on: none of these changes what is learned.
FREE_ON_RESUME = (
    "frames",
    "run_dir",
    "resume",
    "overwrite",
    "checkpoint_minutes",
    "wandb",
    "wandb_project",
    "wandb_id",
    "eval.video_size",
)

PRESET_HELP = "\n         ".join(f"{name:15} {text}" for name, text in presets.PRESETS.items())
RENDER_HELP = "\n         ".join(f"{name:15} {text}" for name, (text, _) in presets.RENDER.items())
RUN_HELP = f"""
task=    a name from `python -m pixel_ddpg.list`
obs=     pixels or state
preset=  {PRESET_HELP}
render=  {RENDER_HELP}
"""
NO_FILES = {"run": {"dir": "."}, "sweep": {"dir": "runs", "subdir": "."}, "output_subdir": None}
QUIET = [{"override hydra/job_logging": "disabled"}, {"override hydra/hydra_logging": "disabled"}]


def _register_groups() -> None:
    store = ConfigStore.instance().store
    groups = [{"task": "cartpole-swingup"}, {"obs": "pixels"}, {"preset": "fast"}, {"settings": "${preset}-${obs}"}]
    groups += [{"optional task_settings": "${preset}-${obs}-${task}"}, {"render": None}]
    store(name="schema", node=Config)
    store(name="run", node={"defaults": ["schema", *groups, *QUIET, "_self_"], "hydra": NO_FILES})
    for task in tasks.CATALOGUE:
        store(group="task", name=task, node={"task": task}, package="_global_")
        for preset, obs in presets.SETTINGS:
            if changes := presets.for_task(preset, obs, task):
                store(group="task_settings", name=f"{preset}-{obs}-{task}", node=changes, package="_global_")
    for obs in ("pixels", "state"):
        store(group="obs", name=obs, node={"obs": obs}, package="_global_")
        for preset in presets.PRESETS:
            store(group="settings", name=f"{preset}-{obs}", node=presets.SETTINGS[preset, obs], package="_global_")
    for preset in presets.PRESETS:
        store(group="preset", name=preset, node={"preset": preset}, package="_global_")
    for name, (_, quality) in presets.RENDER.items():
        store(group="render", name=name, node={"env": quality}, package="_global_")


_register_groups()
SCHEMAS: dict[str, type] = {"run": Config}
PACKAGES = {"run": "pixel_ddpg"}
CHOICES = {
    "task": list(tasks.CATALOGUE),
    "obs": ["pixels", "state"],
    "preset": list(presets.PRESETS),
    "render": list(presets.RENDER),
}


def register_command(name: str, schema: type, package: str = "pixel_ddpg") -> None:
    """Make a small command's dataclass known to Hydra under this name."""
    store = ConfigStore.instance().store
    SCHEMAS[name], PACKAGES[name] = schema, package
    store(name=f"{name}_schema", node=schema)
    task = [{"task": None}] if any(item.name == "task" for item in dataclasses.fields(schema)) else []
    store(name=name, node={"defaults": [f"{name}_schema", *task, *QUIET, "_self_"], "hydra": NO_FILES})


def compose(overrides: list[str], name: str = "run"):
    """The configuration of a command for these `key=value` words; UserError for a word that does not fit."""
    overrides = [quoted(word) for word in overrides]
    _check_words(overrides, name)
    outer = GlobalHydra.instance().hydra  # the caller's own Hydra application, if there is one
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize(version_base="1.3", config_path=None):
            return OmegaConf.to_object(hydra.compose(name, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, overrides)) from None
    finally:
        GlobalHydra.instance().hydra = outer


@functools.cache
def composed(*words: str) -> Config:
    """A run's `compose`, which takes 0.2 s, kept for the next time: leave it unchanged."""
    return compose(list(words))


def print_help(name: str) -> None:
    """Every key with its default and what its comment says of it (Hydra's own --help takes seconds for each group)."""
    print(f"python -m {PACKAGES[name]}.{name} key=value ...", RUN_HELP if name == "run" else "", sep="\n")
    rows = list(_described(SCHEMAS[name], compose([], name)))
    width = max((len(f"{key}={default}") for key, default, _ in rows if len(f"{key}={default}") < 40), default=0)
    for key, default, comment in rows:
        print(f"{f'{key}={default}':{width}}  {comment}".rstrip())


def _described(schema: type, values: object, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, comment) of a dataclass's fields, as its source has them."""
    comments = dict(re.findall(r"^    (\w+): [^#\n]*(?:#\s*(.*))?$", inspect.getsource(schema), re.M))
    for item in dataclasses.fields(schema):
        value = getattr(values, item.name)
        if dataclasses.is_dataclass(item.type):
            yield from _described(item.type, value, f"{prefix}{item.name}.")
        else:
            shown = "" if value is None else str(value).lower() if isinstance(value, bool) else value
            yield f"{prefix}{item.name}", str(shown).replace(" ", ""), comments[item.name]


def command(name: str) -> Callable:
    """The main function of a command: `key=value` words to its typed options, mistakes told in one line.

    Hydra's own flags (--help, --cfg job, --multirun, ...) work as everywhere.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[[], int | None]:
        codes = []

        def with_hydra(options) -> None:
            try:
                with one_line_errors():
                    codes.append(function(OmegaConf.to_object(options)) or 0)
            except SystemExit as end:  # the other jobs of a --multirun go on
                codes.append(end.code)
                if end.code == 130:
                    raise

        @functools.wraps(function)
        def main() -> int | None:
            _open_closed_streams()
            with one_line_errors():
                if sys.argv[1:] in (["--help"], ["-h"]):
                    return print_help(name)
                sys.argv[1:] = [quoted(word) for word in sys.argv[1:]]
                if unknown := [word for word in get_args_parser().parse_known_args()[1] if word.startswith("-")]:
                    flag = unknown[0].lstrip("-").split("=")[0]
                    if flag in words(SCHEMAS[name]):
                        raise UserError(f"--{flag}: write {flag}=..., without dashes")
                    raise UserError(f"unknown option {unknown[0]}; see --help")
                if any(word.startswith("-") for word in sys.argv[1:]):
                    _check_words([word for word in sys.argv[1:] if "=" in word and not word.startswith("-")], name)
                    hydra.main(version_base="1.3", config_path=None, config_name=name)(with_hydra)()
                    return max(codes, default=0)
                return function(compose(sys.argv[1:], name))

        return main

    return decorate


def first_line(error: Exception) -> str:
    """What an error says, or its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open_closed_streams() -> None:
    """What the caller has closed (>&-) goes nowhere, and no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


@contextlib.contextmanager
def one_line_errors():
    """Turns UserError, what the disk refuses, Ctrl-C and SIGTERM into one line on stderr and an exit code."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
        return
    except UserError as error:
        message, code = str(error), error.code
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full ({error.filename or 'while writing'}): free some space and run it again"
        elif error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN):
            message = (
                f"{error.strerror}: ask for fewer environments or runs, or raise the limits (ulimit -n, ulimit -u)"
            )
        elif error.filename:
            message = f"{error.filename}: {error.strerror}; choose another file or folder"
        else:
            raise
        code = 1
    except (MemoryError, RuntimeError) as error:  # RuntimeError: torch's
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        message = "out of memory: ask for less (of a run: replay.batch_size, env.size, agent.hidden)"
        code = 1
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"pixel_ddpg: {message}", file=sys.stderr)
    sys.exit(code)


def quoted(word: str) -> str:
    """The word as Hydra's grammar has it: a value that it cannot read, as a path with an umlaut, in quotes."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        key, equals, value = word.partition("=")
        if equals and not word.startswith("-") and value[:1] not in ("[", "{", "'", '"', "$"):
            return f"{key}={quote(value)}"
    return word


def quote(text: str) -> str:
    """As Hydra's grammar wants a text of any kind: it takes a backslash for one but before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def _check_words(given: list[str], name: str) -> None:
    """Unknown keys, tasks and presets, each with the nearest name that exists."""
    known = words(SCHEMAS[name])
    for word in given:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            mend = "in a list, a text with other signs stands in quotes, as \"runs=['a, b']\""
            why = f"cannot be read: {mend}" if "=[" in word else "is not of the form key=value"
            raise UserError(f"'{word}' {why}") from None
        key = override.key_or_group
        if key.startswith("hydra"):
            continue
        if key not in known:
            raise UserError(f"unknown key '{key}'{nearest(key, known)}")
        if override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            value = [] if override.is_sweep_override() else override.value()
            values = [str(each) for each in (value if isinstance(value, list) else [value])]
        for value in values:
            if key in CHOICES and value not in CHOICES[key]:
                raise UserError(f"unknown {key} '{value}'{nearest(value, CHOICES[key])}")


def words(schema: type) -> list[str]:
    """What may stand before a = on the command line."""
    return list(keys(schema)) + ["render"] * (schema is Config)


def keys(schema: type, prefix: str = "", leaves_only: bool = False) -> Iterator[str]:
    """The dotted names of a configuration's fields."""
    for item in dataclasses.fields(schema):
        is_group = dataclasses.is_dataclass(item.type)
        if not (is_group and leaves_only):
            yield prefix + item.name
        if is_group:
            yield from keys(item.type, f"{prefix}{item.name}.", leaves_only)


def value_of(config: Config, key: str):
    """The field that a dotted key names."""
    return functools.reduce(getattr, key.split("."), config)


def nearest(word: str, names: list[str]) -> str:
    """'; did you mean ...?' for a mistyped name, or the list of names if it is short."""
    plain = {name.replace("_", "").replace("-", ""): name for name in names}
    found = difflib.get_close_matches(word.replace("_", "").replace("-", ""), list(plain), n=3, cutoff=0.6)
    if found:
        return f"; did you mean {' or '.join(plain[name] for name in found)}?"
    if len(names) <= 8:
        return f"; there are {', '.join(names)}" if names else "; it takes none"
    return "; `python -m pixel_ddpg.list` shows all" if set(names) <= set(tasks.CATALOGUE) else "; see --help"


REMEDIES = {
    "to Integer": "write a whole number, without an exponent, as 100000 or 100_000",
    "is not a ListConfig": "a list stands in brackets, as runs=[runs/a,runs/b]",
    "Ambiguous value": "a list stands in brackets, as [a,b]; of a run, --multirun runs each",
}


def _one_line(error: Exception, words: list[str]) -> str:
    cause = error.__cause__ or error
    text = str(cause).splitlines()[0]
    for symptom, remedy in REMEDIES.items():
        if symptom in text:
            text = f"{text.rstrip('.')}; {remedy}"
    key = getattr(cause, "full_key", None)
    if key and key not in text:
        return f"{key}: {text}"
    at_fault = [word for word in words if word.split("=")[0] in text] or words
    return text if all(word in text for word in at_fault) else f"{text} (in {' '.join(at_fault)})"


def check(config: Config) -> None:
    """Refuse what cannot work, before anything is built."""
    for key, least in AT_LEAST.items():
        value = value_of(config, key)
        if not (math.isfinite(value) and value >= least):
            raise UserError(f"{key}={value} must be at least {least}")
    for key, most in AT_MOST.items():
        if value_of(config, key) > most:
            raise UserError(f"{key}={value_of(config, key)} must be at most {most}")
    for key, choices in ONE_OF.items():
        value = value_of(config, key)
        if value not in choices:
            raise UserError(f"unknown {key} '{value}'{nearest(value, list(choices))}")
    if not config.run_dir.strip():
        raise UserError("run_dir= must name a folder")
    if not config.agent.hidden or not all(
        isinstance(width, int) and 0 < width < 2**16 for width in config.agent.hidden
    ):
        raise UserError(f"agent.hidden={config.agent.hidden} must list the widths, below 65,536, of one or more layers")
    if not math.isfinite(config.agent.pixel_offset):
        raise UserError(f"agent.pixel_offset={config.agent.pixel_offset} must be a number")
    check_video_size(config.eval.video_size, "eval.video_size", least=0)
    env, agent, replay = config.env, config.agent, config.replay
    if replay.batch_size > replay.capacity:
        raise UserError(f"replay.batch_size={replay.batch_size} is larger than replay.capacity={replay.capacity}")
    if replay.n_step > replay.capacity // config.envs:
        of_each = f" of each of envs={config.envs}" if config.envs > 1 else ""
        raise UserError(f"replay.n_step={replay.n_step} is larger than replay.capacity={replay.capacity}{of_each}")
    if not 0 < agent.discount <= 1:
        raise UserError(f"agent.discount={agent.discount} must lie in (0, 1]")
    if not 0 < agent.tau <= 1:
        raise UserError(f"agent.tau={agent.tau} must lie in (0, 1]")
    for key in ("agent.encoder_tau", "agent.final_lr"):
        if not 0 <= value_of(config, key) <= 1:
            raise UserError(f"{key}={value_of(config, key)} must lie in [0, 1]")
    if 0 < config.noise.hold < 1:
        raise UserError(f"noise.hold={config.noise.hold} must be 0, or 1 and more")
    if not 0 <= agent.action_layer < len(agent.hidden):
        raise UserError(
            f"agent.action_layer={agent.action_layer} must be one of the {len(agent.hidden)} hidden layers (from 0)"
        )
    if agent.output_rms and not agent.saturation_penalty:
        raise UserError(f"agent.output_rms={agent.output_rms} needs agent.saturation_penalty above 0, which it adapts")
    if agent.batch_norm and replay.batch_size == 1:
        raise UserError("agent.batch_norm=true needs replay.batch_size of 2 or more")
    if env.action_repeat % env.renderings:
        raise UserError(f"env.renderings={env.renderings} must divide env.action_repeat={env.action_repeat}")
    if config.obs == "pixels":
        check_convolutions(config)
        if agent.random_shift >= env.size:
            raise UserError(f"agent.random_shift={agent.random_shift} must be smaller than env.size={env.size}")


LARGEST_PICTURE = 2048  # pixels a side
AT_MOST = {
    "frames": 10**12,
    "threads": 1024,
    "envs": 256,
    "agent.critics": 100,
    "env.size": LARGEST_PICTURE,
    "env.shadow_size": 8192,
    "env.slices": 128,
    "env.stacks": 128,
    "train.updates_per_step": 1000,
}
AT_LEAST = {
    "seed": 0, "frames": 1, "envs": 1, "threads": 0, "checkpoint_minutes": 0, "env.size": 8, "env.action_repeat": 1,
    "env.frame_stack": 1, "env.renderings": 1, "env.camera": -1, "env.shadow_size": 1, "env.slices": 7,
    "env.stacks": 0,
    "replay.capacity": 1, "replay.batch_size": 1, "replay.n_step": 1, "noise.start": 0, "noise.end": 0,
    "noise.frames": 1, "noise.theta": 0, "noise.sigma": 0, "noise.dt": 1e-6, "noise.random_frames": 0, "noise.hold": 0,
    "noise.target_clip": 0, "agent.actor_lr": 0, "agent.critic_lr": 0, "agent.critic_weight_decay": 0,
    "agent.critics": 1, "agent.feature_dim": 0, "agent.random_shift": 0, "agent.saturation_penalty": 0,
    "agent.inverse_loss": 0, "agent.reconstruction_loss": 0, "agent.final_init": 0, "agent.output_rms": 0,
    "train.start_steps": 1, "train.updates_per_step": 0, "eval.every": 1, "eval.episodes": 1,
    "eval.video_size": 0,
}  # fmt: skip
ONE_OF = {
    "wandb": ("auto", "online", "offline", "off"),
    "noise.kind": ("gaussian", "ou"),
    "agent.ensemble": ("min", "mean"),
    "agent.init": ("orthogonal", "fan_in"),
    "agent.encoder_trained_by": ("critic", "both"),
    "agent.precision": ("float32", "tf32", "bfloat16", "auto"),
}


def check_video_size(size: int, key: str, least: int = 2) -> None:
    """The codec wants even sides."""
    if size % 2 or not least <= size <= LARGEST_PICTURE:
        raise UserError(f"{key}={size} must be an even number of pixels, at most {LARGEST_PICTURE}")


def check_convolutions(config: Config) -> None:
    """Every layer of the encoder must fit the map before it."""
    if not config.agent.conv or any(len(layer) != 4 for layer in config.agent.conv):
        raise UserError("agent.conv must list [filters,kernel,stride,padding] for each layer")
    side = config.env.size
    for filters, kernel, stride, padding in config.agent.conv:
        if min(filters, kernel, stride) < 1 or padding < 0 or side + 2 * padding < kernel:
            layer = [filters, kernel, stride, padding]
            raise UserError(f"agent.conv {layer} does not fit a map of {side} pixels (env.size={config.env.size})")
        side = (side + 2 * padding - kernel) // stride + 1


def differences(old: Config, new: Config) -> list[str]:
    """The fields, as key=value of `old`, in which a run and a new command disagree and that matter to learning."""
    matter = [key for key in keys(Config, leaves_only=True) if key not in FREE_ON_RESUME]
    return [f"{key}={value_of(old, key)}" for key in matter if value_of(old, key) != value_of(new, key)]
