"""The loop: act, step, store, update, evaluate, log, save. A run is a folder, and goes on from where it stands."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable

import dm_env
import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pixel_ddpg import checkpoint, files, fleet, machine, tasks
from pixel_ddpg.agent import DDPG
from pixel_ddpg.config import Config, UserError
from pixel_ddpg.environment import Environment, element_shape, observation_shape
from pixel_ddpg.episodes import run_episodes
from pixel_ddpg.exploration import Exploration, scheduled_scale
from pixel_ddpg.graph import GraphedPolicy, GraphedUpdate
from pixel_ddpg.logger import Metrics, WandbMirror
from pixel_ddpg.replay import Replay
from pixel_ddpg.values import Values

LOSSES = ("critic_loss", "actor_loss", "q", "td_error", "pre_tanh", "saturated")  # what an update returns
STREAMS = ("environment", "exploration", "init", "update_noise", "replay")


def seeds(seed: int) -> dict[str, int]:
    """An independent seed for every random stream of a run."""
    return dict(zip(STREAMS, np.random.SeedSequence(seed).generate_state(len(STREAMS)).tolist()))


def evaluation_seed(seed: int, frame: int) -> int:
    """Evaluations draw from a stream of their own, the same whenever they happen."""
    return int(np.random.SeedSequence((seed, 1 + frame)).generate_state(1)[0])


def replay_element(config: Config) -> tuple[int, ...]:
    """Shape of what a run adds to its replay with each step."""
    return element_shape(tasks.CATALOGUE[config.task], config.obs, config.env)


def make_replay(config: Config, capacity: int, device: torch.device | str = "cpu", streams: int = 1) -> Replay:
    """A new replay of `capacity` transitions, as a run's agent learns from."""
    return Replay(
        replay_element(config), tasks.CATALOGUE[config.task].action_dim, capacity, streams=streams,
        frame_stack=config.env.frame_stack, n_step=config.replay.n_step, discount=config.agent.discount,
        random_shift=config.agent.random_shift, unshifted=config.agent.reconstruction_loss > 0,
        device=device, seed=seeds(config.seed)["replay"],
    )  # fmt: skip


def make_agent(config: Config, device: torch.device) -> DDPG:
    """A new agent, as a run begins with."""
    task, stream = tasks.CATALOGUE[config.task], seeds(config.seed)
    shape, settings = observation_shape(task, config.obs, config.env), config.agent
    if settings.precision == "auto":
        settings = dataclasses.replace(settings, precision=machine.fast_precision(device))
    return DDPG(
        shape, task.action_dim, settings, config.noise, device, stream["init"], stream["update_noise"],
        n_step=config.replay.n_step,
    )  # fmt: skip


def replay_capacity(config: Config) -> int:
    """Slots the ring is made for: no more than the budget fills with episodes of full length.

    Where a task ends episodes early, each takes a slot more than its steps, and the ring forgets that much sooner.
    """
    episode = tasks.CATALOGUE[config.task].episode_frames
    slots = math.ceil(episode / config.env.action_repeat) + 1  # its observations
    return min(config.replay.capacity, (config.frames // episode + config.envs) * slots)


def overlaps(config: Config) -> bool:
    """Whether updates are made while environments step, in processes of their own."""
    return config.train.overlap or config.envs > 1


def planned_updates(config: Config) -> int:
    """How many a whole run makes, where every step has as many frames as it repeats its action and can be drawn."""
    ratio, count = config.train.updates_per_step, config.envs
    steps = count * math.ceil(config.frames / (config.env.action_repeat * count))
    first, last = count * math.ceil(config.train.start_steps / count), steps - count * overlaps(config)
    return max(0, math.floor(last * ratio) - math.floor((first - count) * ratio))


@dataclasses.dataclass
class Player:
    """One of the environments that training plays in: where its episode stands, and how it explores."""

    environment: fleet.Local | fleet.Remote
    exploration: Exploration
    time_step: dm_env.TimeStep | None = None
    total: float = 0.0  # rewards of the episode so far

    def state_dict(self) -> dict:
        """As JSON can hold it."""
        self.environment.send("state_dict")
        return {
            "environment": self.environment.receive(), "exploration": self.exploration.state_dict(),
            "return": self.total, "begun": self.time_step is not None,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Play the saved episode again up to its last step."""
        if state["begun"]:
            self.environment.send("load_state_dict", state["environment"])
            self.time_step = self.environment.receive()
        self.total = state["return"]
        self.exploration.load_state_dict(state["exploration"])


def _players(config: Config, stream: dict[str, int]) -> list[Player]:
    """The first has the run's own streams, so that one environment alone plays as it always did."""
    kind = fleet.Remote if overlaps(config) else fleet.Local
    action_dim = tasks.CATALOGUE[config.task].action_dim
    pairs = [(stream["environment"], stream["exploration"])]
    pairs += [fleet.seeds_of(config.seed, number) for number in range(1, config.envs)]
    return [Player(kind(config, one), Exploration(config.noise, action_dim, other)) for one, other in pairs]


def choose_device(config: Config) -> torch.device:
    """The device a run trains on; UserError for one that is not there, and for what only a GPU does."""
    device = machine.choose_device(config.device)
    for_a_gpu = {
        "train.cuda_graph=true": config.train.cuda_graph, "train.compile=true": config.train.compile,
        "agent.precision=tf32": config.agent.precision == "tf32",
    }  # fmt: skip
    for word, asked in for_a_gpu.items():
        if asked and device.type != "cuda":
            raise UserError(f"{word} is for a GPU: leave it out, as this run trains on device={device}")
    return device


class Trainer:
    """One run: its environments, agent and replay, and where it stands."""

    def __init__(self, config: Config, device: torch.device, replay_device: torch.device):
        if config.train.cuda_graph and replay_device != device:
            raise UserError(f"train.cuda_graph=true needs the replay on {device} too, where it does not fit")
        self.config, self.run_dir = config, pathlib.Path(config.run_dir)
        self._graph: GraphedUpdate | None = None
        stream = seeds(config.seed)
        task = tasks.CATALOGUE[config.task]
        self.players = _players(config, stream)
        self.evaluation = Environment(task, config.obs, config.env, 0)
        self.agent = make_agent(config, device)
        self._act_all = GraphedPolicy(self.agent) if config.train.cuda_graph else self.agent.act_all
        self.replay = make_replay(config, replay_capacity(config), replay_device, config.envs)
        if config.train.compile:
            self.agent.compile_losses()
            if self.replay.device == device:
                self.replay.compile_gather()
        self.frame = self.step = self.updates = self.evaluations = 0
        self._hours_before, self._started = 0.0, time.monotonic()
        self._sums: dict[str, torch.Tensor] = {}
        self._summed = 0
        self._stop = False
        self._episode_clock = (time.monotonic(), 0, 0)
        self._finished_at = -1  # the frame of the last final evaluation

    @property
    def hours(self) -> float:
        """Wall clock of this run, over all its parts."""
        return self._hours_before + (time.monotonic() - self._started) / 3600

    # --- the loop ---

    def attach(self, metrics: Metrics, mirror: WandbMirror, announce: Callable = lambda row: None) -> None:
        """Where rows of metrics go; `announce` is called with each as it is written."""
        self._metrics, self._mirror, self._announce = metrics, mirror, announce

    def train(self, progress: Callable = lambda trainer: None) -> None:
        """Go on to the end of the budget; `progress` is called after each step.

        After a signal: save, then UserError (exit code 130).
        """
        self._episode_clock = (time.monotonic(), self.frame, self.updates)
        next_save = time.monotonic() + 60 * self.config.checkpoint_minutes
        with self._signals():
            while self.frame < self.config.frames:
                if self.frame >= self.evaluations * self.config.eval.every:
                    with self._untimed():
                        self._evaluate()
                self._advance()
                progress(self)
                self._end_if_asked()
                if time.monotonic() >= next_save:
                    with self._untimed():
                        self.save()
                    next_save = time.monotonic() + 60 * self.config.checkpoint_minutes
            if self._finished_at != self.frame:
                self.save()
                self._evaluate(final=True)
                self._finished_at = self.frame
                self.save()

    def _end_if_asked(self) -> None:
        """After a signal: save, then UserError (exit code 130)."""
        if self._stop:
            self.save()
            raise UserError(f"stopped at frame {self.frame:,}, saved in {self.run_dir}; the same command goes on", 130)

    @contextlib.contextmanager
    def _untimed(self):
        """What happens in here does not count in frames_per_second."""
        before = time.monotonic()
        yield
        clock, frame, updates = self._episode_clock
        self._episode_clock = (clock + time.monotonic() - before, frame, updates)

    def _advance(self) -> None:
        """One agent step in every environment, and the updates that are due.

        Where environments have processes of their own, updates are made while these step, without those steps.
        """
        self._begin_episodes()
        actions = self._actions()
        ended = self.frame - sum(player.environment.frames for player in self.players)  # frames of former episodes
        for player, action in zip(self.players, actions):
            player.environment.send("step", action)
        if overlaps(self.config):
            self._update()
        for number, (player, action) in enumerate(zip(self.players, actions)):
            player.time_step = time_step = player.environment.receive()
            element, last = player.environment.element, time_step.last()
            self.replay.add(element, action, time_step.reward, time_step.discount, last, number)
            player.total += time_step.reward
        self.frame = ended + sum(player.environment.frames for player in self.players)
        self.step += len(self.players)
        if not overlaps(self.config):
            self._update()
        if totals := [player.total for player in self.players if player.time_step.last()]:
            self._end_episodes(float(np.mean(totals)))

    def _begin_episodes(self) -> None:
        over = [p for p in enumerate(self.players) if p[1].time_step is None or p[1].time_step.last()]
        for _, player in over:
            player.environment.send("reset")
        for number, player in over:
            player.time_step, player.total = player.environment.receive(), 0.0
            self.replay.begin(player.environment.element, number)
            player.exploration.reset()

    def _actions(self) -> list[np.ndarray]:
        if self.players[0].exploration.is_random(self.frame):
            return [player.exploration.random_action() for player in self.players]
        means = self._finite(self._act_all(np.stack([player.time_step.observation for player in self.players])))
        return [player.exploration(mean, self.frame) for player, mean in zip(self.players, means)]

    def _update(self) -> None:
        """The updates that the newest step of each environment, or the one that it makes now, has made due."""
        if self.step < self.config.train.start_steps or not len(self.replay):
            return
        ratio, count = self.config.train.updates_per_step, len(self.players)
        done = min(1.0, self.frame / self.config.frames)
        self.agent.schedule(scheduled_scale(self.config.noise, self.frame), 1 - done * (1 - self.config.agent.final_lr))
        self.replay.announce()
        for _ in range(math.floor(self.step * ratio) - math.floor((self.step - count) * ratio)):
            for name, value in self._learn().items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._summed += 1
            self.updates += 1

    def _learn(self) -> dict[str, torch.Tensor]:
        """One update, as a graph where that is asked for; made when there is something to learn from."""
        if self.config.train.cuda_graph:
            self._graph = self._graph or GraphedUpdate(self.agent, self.replay, self.config.replay.batch_size)
            return self._graph()
        batch = self.replay.draw(self.config.replay.batch_size)
        if self.agent.device != self.replay.device:
            moved = {name: tensor.to(self.agent.device) for name, tensor in vars(batch).items()}
            batch = dataclasses.replace(batch, **moved)
        return self.agent.update(batch)

    def _end_episodes(self, total: float) -> None:
        """Log the mean return of the episodes that have just ended, and the means since the last ones."""
        means = {name: (value / self._summed).item() for name, value in self._sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            self._log("train", {"return": total, **means})
            self._not_finite("a loss")
        clock, frame, updates = self._episode_clock
        seconds = time.monotonic() - clock
        self._log("train", {
            "return": total, **dict.fromkeys(LOSSES), **means,
            "frames_per_second": (self.frame - frame) / seconds,
            "updates_per_second": (self.updates - updates) / seconds,
            "memory_bytes": machine.memory_bytes(self.agent.device),
        })  # fmt: skip
        self._sums, self._summed = {}, 0
        self._episode_clock = (time.monotonic(), self.frame, self.updates)

    def _evaluate(self, final: bool = False) -> None:
        """Episodes without noise, in the other environment; training does not notice."""
        settings = self.config.eval
        video = self.run_dir / "videos" / f"{self.frame}.mp4" if final and settings.video_size else None
        if video:
            try:
                self.evaluation.make_renderer(settings.video_size)
            except UserError as error:
                print(f"pixel_ddpg: no video: {error}", file=sys.stderr)
                video = None
        self.evaluation.seed(evaluation_seed(self.config.seed, self.frame))
        values = Values(self.agent, self._act_unless_asked)
        policy, watch = (values.act, values.watch) if final else (self._act_unless_asked, None)
        returns, lengths = run_episodes(self.evaluation, policy, settings.episodes, video, settings.video_size, watch)
        self._log("eval", {"return": float(np.mean(returns)), "returns": returns, "length": float(np.mean(lengths))})
        if final:
            self._log("values", values.row())
        self.evaluations = math.floor(self.frame / settings.every) + 1

    def _act(self, observation: np.ndarray) -> np.ndarray:
        return self._finite(self._act_all(observation[None])[0])

    def _finite(self, actions: np.ndarray) -> np.ndarray:
        if not np.isfinite(actions).all():
            self._not_finite("an action")
        return actions

    def _act_unless_asked(self, observation: np.ndarray) -> np.ndarray:
        """A signal ends an evaluation at once; it is made anew, from the same seed, when the run goes on."""
        self._end_if_asked()
        return self._act(observation)

    def _log(self, kind: str, values: dict) -> None:
        counters = {"frame": self.frame, "step": self.step, "update": self.updates, "hours": self.hours}
        row = self._metrics.write({"kind": kind, **counters, **values})
        self._mirror.write(row)
        self._announce(row)

    def log_run(self, facts: dict) -> None:
        """A row of kind "run": what this part of the run is made with."""
        self._log("run", facts)

    def _not_finite(self, what: str) -> None:
        saved = checkpoint.newest(self.run_dir)
        kept = f"frame {checkpoint.frame_of(saved):,}'s checkpoint is kept" if saved else "no checkpoint had been made"
        raise UserError(
            f"{what} is not finite at frame {self.frame:,}; {kept}; try a smaller agent.critic_lr in another run_dir", 1
        )

    @contextlib.contextmanager
    def _signals(self):
        """The first SIGINT or SIGTERM asks for a checkpoint and the end, the second one ends at once."""

        def ask(number, frame):
            self._stop = True
            with contextlib.suppress(OSError):  # stdout's reader may have gone
                os.write(1, b"saving, then stopping; once more to stop at once\n")  # print could be interrupted itself
            signal.signal(number, signal.default_int_handler)

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # --- saving and going on ---

    def save(self) -> None:
        """A checkpoint of everything; refused where a sum of losses is not finite."""
        if not all(torch.isfinite(value) for value in self._sums.values()):
            self._not_finite("a loss")
        self._metrics.sync()
        state = {
            "frame": self.frame, "step": self.step, "updates": self.updates, "evaluations": self.evaluations,
            "hours": self.hours, "summed": self._summed, "metrics_length": self._metrics.length,
            "finished_at": self._finished_at, "device": self.agent.device.type,
            "players": [player.state_dict() for player in self.players],
        }  # fmt: skip
        tensors = {f"agent.{name}": tensor for name, tensor in self.agent.tensors().items()}
        tensors |= {f"sums.{name}": tensor for name, tensor in self._sums.items()}
        checkpoint.save_checkpoint(self.run_dir, self.frame, tensors, state, self.replay)

    def restore(self) -> int:
        """Go on from the newest checkpoint; returns the length of metrics.jsonl that it knows."""
        tensors, state = checkpoint.load_checkpoint(self.run_dir, self.agent.device, self.replay)
        last_step = self.config.env.action_repeat * self.config.envs  # which may go beyond the end
        if state["frame"] - last_step >= self.config.frames:
            raise UserError(f"{self.run_dir} is at frame {state['frame']:,} already: frames= must be at least that")
        self.agent.load_tensors({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("agent.")})
        self._sums = {name[5:]: tensor.clone() for name, tensor in tensors.items() if name.startswith("sums.")}
        self._summed, self._finished_at = state["summed"], state["finished_at"]
        self.frame, self.step, self.updates = state["frame"], state["step"], state["updates"]
        self.evaluations, self._hours_before = state["evaluations"], state["hours"]
        self._started = time.monotonic()
        for player, own in zip(self.players, state.get("players", [state])):  # one, where runs had no more
            player.load_state_dict(own)
        return state["metrics_length"]


# --- folders of runs ---


def read_config(run_dir: pathlib.Path) -> Config:
    """The configuration a run was started with."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(f"{run_dir} is not a run: it has no config.yaml")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise UserError(f"{path} is not of this version ({str(error).splitlines()[0]})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not text
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): choose another folder, or start anew "
            "with resume=false overwrite=true",
            1,
        ) from None


def write_config(config: Config, run_dir: pathlib.Path) -> None:
    """Keep the configuration beside the run."""
    files.write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def write_status(run_dir: pathlib.Path, state: str, **facts) -> None:
    """status.json: running, done, stopped or failed."""
    files.write_atomically(run_dir / "status.json", json.dumps({"state": state, **facts}, indent=2).encode() + b"\n")


def read_status(run_dir: pathlib.Path) -> dict:
    """What status.json says; empty where there is none that can be read."""
    try:
        status = json.loads((run_dir / "status.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return status if isinstance(status, dict) and isinstance(status.get("frame"), int) else {}


def is_done(run_dir: pathlib.Path, frames: int) -> bool:
    """Whether a run has ended with so many frames or more."""
    status = read_status(run_dir)
    return status.get("state") == "done" and status.get("frame", 0) >= frames


def load_run(run_dir: str | pathlib.Path) -> tuple[Config, DDPG, int]:
    """Configuration, agent and frame of a run's newest checkpoint, on the CPU."""
    run_dir = pathlib.Path(run_dir)
    config = read_config(run_dir)
    tensors, state = checkpoint.load_checkpoint(run_dir)
    agent = make_agent(config, torch.device("cpu"))
    agent.load_networks({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("agent.")})
    return config, agent, state["frame"]


def load_agent(run_dir: str | pathlib.Path) -> DDPG:
    """The agent of a run's newest checkpoint, on the CPU."""
    return load_run(run_dir)[1]
