"""The loop: act, step, store, update, evaluate, log, save. A run is a folder, and resumes from where it stands."""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pixel_ddpg.agent.exploration import Exploration, scheduled_scale
from pixel_ddpg.config import Config, to_yaml
from pixel_ddpg.envs import tasks, workers
from pixel_ddpg.envs.environment import Environment, Step
from pixel_ddpg.envs.episodes import run_episodes
from pixel_ddpg.errors import UserError, on_stop, stopped_by, warn
from pixel_ddpg.runtime import memory
from pixel_ddpg.runtime.learner import Learner, Policy
from pixel_ddpg.training import build, checkpoint
from pixel_ddpg.training.logger import Metrics, WandbMirror
from pixel_ddpg.training.rows import EvalRow, PartRow, Row, TrainRow, ValuesRow
from pixel_ddpg.training.values import Values

NOT_BEGUN = Step(np.empty(0), np.empty(0), 0.0, 1.0, last=True, frames=0)


@dataclasses.dataclass
class Player:
    """One of the environments that training plays in: where its episode stands, and how it explores."""

    environment: workers.Local | workers.Remote
    exploration: Exploration
    step: Step = NOT_BEGUN  # the newest
    total: float = 0.0  # rewards of the episode so far

    @property
    def is_over(self) -> bool:
        """No episode has begun, or the last one has ended."""
        return self.step.last

    def state_dict(self) -> dict:
        """As JSON can hold it."""
        return {
            "environment": self.environment.state_dict(), "exploration": self.exploration.state_dict(),
            "return": self.total, "begun": self.step is not NOT_BEGUN,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Play the saved episode again up to its last step."""
        if state["begun"]:
            self.step = self.environment.load_state_dict(state["environment"])
        self.total = state["return"]
        self.exploration.load_state_dict(state["exploration"])


def _players(config: Config, seed_of: dict[str, int]) -> list[Player]:
    """The first player uses the run's own seeds, as a run with one environment does."""
    kind = workers.Remote if build.overlaps(config) else workers.Local
    action_dim = tasks.find(config.task).action_dim
    pairs = [(seed_of["environment"], seed_of["exploration"])]
    pairs += [build.player_seeds(config.seed, number) for number in range(1, config.envs)]
    return [Player(kind(config, one), Exploration(config.noise, action_dim, other)) for one, other in pairs]


class Trainer:
    """One run: its environments, agent and replay, and where it stands."""

    def __init__(self, config: Config, device: torch.device, replay_device: torch.device):
        self.config, self.run_dir = config, pathlib.Path(config.run_dir)
        self.players = _players(config, build.seeds(config.seed))
        self.evaluation = Environment(tasks.find(config.task), config.obs, config.env, 0)
        self.agent = build.make_agent(config, device)
        self.replay = build.make_replay(config, build.replay_capacity(config), replay_device, config.envs)
        self._learn, self._policy = Learner(config, self.agent, self.replay), Policy(config, self.agent)
        self._overlaps = build.overlaps(config)
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

    @property
    def _done(self) -> float:
        """The share of the budget that is used."""
        return min(1.0, self.frame / self.config.frames)

    # --- the loop ---

    def attach(self, metrics: Metrics, mirror: WandbMirror, announce: Callable[[Row], None] = lambda row: None) -> None:
        """Where rows of metrics go; `announce` is called with each as it is written."""
        self._metrics, self._mirror, self._announce = metrics, mirror, announce

    def train(self, progress: Callable[["Trainer"], None] = lambda trainer: None) -> None:
        """Train to the end of the budget; `progress` is called after each step.

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

    def close(self) -> None:
        """End the environments, and the processes that they have."""
        for player in self.players:
            player.environment.close()
        self.evaluation.close()

    def _end_if_asked(self) -> None:
        """After a signal: save, then UserError (exit code 130)."""
        if self._stop:
            self.save()
            raise UserError(
                f"stopped at frame {self.frame:,}, saved in {self.run_dir}; the same command resumes it", code=130
            )

    @contextlib.contextmanager
    def _untimed(self) -> Iterator[None]:
        """What happens in here does not count in frames_per_second."""
        before = time.monotonic()
        yield
        clock, frame, updates = self._episode_clock
        self._episode_clock = (clock + time.monotonic() - before, frame, updates)

    def _advance(self) -> None:
        """One agent step in every environment, and the updates that are due.

        With processes of their own, environments step while updates run, which cannot sample those steps yet.
        """
        self._begin_episodes()
        actions = self._actions()
        for player, action in zip(self.players, actions):
            player.environment.begin_step(action)
        if self._overlaps:
            self._update()
        for number, (player, action) in enumerate(zip(self.players, actions)):
            before = player.step.frames
            step = player.step = player.environment.take()
            self.replay.add(step.element, action, step.reward, step.discount, step.last, number)
            player.total += step.reward
            self.frame += step.frames - before
        self.step += len(self.players)
        if not self._overlaps:
            self._update()
        if totals := [player.total for player in self.players if player.is_over]:
            self._end_episodes(float(np.mean(totals)))

    def _begin_episodes(self) -> None:
        over = [(number, player) for number, player in enumerate(self.players) if player.is_over]
        for _, player in over:
            player.environment.begin_reset()
        for number, player in over:
            player.step, player.total = player.environment.take(), 0.0
            self.replay.begin(player.step.element, number)
            player.exploration.reset()

    def _actions(self) -> list[np.ndarray]:
        if self.players[0].exploration.is_random(self.frame):
            return [player.exploration.random_action() for player in self.players]
        means = self._finite(self._policy(np.stack([player.step.observation for player in self.players])))
        return [player.exploration(mean, self.frame) for player, mean in zip(self.players, means)]

    def _update(self) -> None:
        """Run the updates due after the newest step of each environment; with overlap, after the one in progress."""
        if self.step < self.config.train.start_steps or not len(self.replay):
            return
        ratio, count = self.config.train.updates_per_step, len(self.players)
        lr_share = 1 - self._done * (1 - self.config.agent.final_lr)
        self.agent.schedule(scheduled_scale(self.config.noise, self.frame), lr_share)
        self.replay.publish()
        for _ in range(math.floor(self.step * ratio) - math.floor((self.step - count) * ratio)):
            for name, value in self._learn().items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._summed += 1
            self.updates += 1

    def _end_episodes(self, total: float) -> None:
        """Log the mean return of the episodes that have just ended, and the means since the last ones."""
        means = {name: (value / self._summed).item() for name, value in self._sums.items()}
        clock, frame, updates = self._episode_clock
        seconds = time.monotonic() - clock
        self._log(TrainRow(
            **self._counters() | means, return_=total,
            frames_per_second=(self.frame - frame) / seconds, updates_per_second=(self.updates - updates) / seconds,
            memory_bytes=memory.memory_bytes(self.agent.device),
        ))  # fmt: skip
        if not all(math.isfinite(value) for value in means.values()):
            self._not_finite("a loss")
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
                warn(f"no video: {error}")
                video = None
        self.evaluation.seed(build.evaluation_seed(self.config.seed, self.frame))
        values = Values(self.agent, self._act_unless_asked) if final else None
        policy, watch = (values.act, values.watch) if values else (self._act_unless_asked, None)
        returns, lengths = run_episodes(self.evaluation, policy, settings.episodes, video, settings.video_size, watch)
        mean, length = float(np.mean(returns)), float(np.mean(lengths))
        self._log(EvalRow(**self._counters(), return_=mean, returns=returns, length=length))
        if values:
            self._log(ValuesRow(**self._counters() | values.pairs()))
        self.evaluations = math.floor(self.frame / settings.every) + 1

    def _act(self, observation: np.ndarray) -> np.ndarray:
        return self._finite(self._policy(observation[None])[0])

    def _finite(self, actions: np.ndarray) -> np.ndarray:
        if not np.isfinite(actions).all():
            self._not_finite("an action")
        return actions

    def _act_unless_asked(self, observation: np.ndarray) -> np.ndarray:
        """A signal ends an evaluation at once; the resumed run makes it again, from the same seed."""
        self._end_if_asked()
        return self._act(observation)

    def _counters(self) -> dict[str, Any]:
        return {"frame": self.frame, "step": self.step, "update": self.updates, "hours": self.hours}

    def _log(self, row: Row) -> None:
        self._metrics.write(row)
        self._mirror.write(row)
        self._announce(row)

    def log_part(self, facts: dict) -> None:
        """Log commit, versions and hardware of this part of the run."""
        self._log(PartRow(**self._counters(), **facts))

    def _not_finite(self, what: str) -> None:
        saved = checkpoint.newest(self.run_dir)
        kept = f"frame {checkpoint.frame_of(saved):,}'s checkpoint is kept" if saved else "no checkpoint had been made"
        raise UserError(
            f"{what} is not finite at frame {self.frame:,}; {kept}; try a smaller agent.critic_lr in another run_dir",
            code=1,
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first stop signal requests a checkpoint and a clean exit; the same signal again exits at once."""

        def ask(number, frame):
            self._stop = True
            with contextlib.suppress(OSError):  # stdout's reader may have gone
                # print could be interrupted itself
                os.write(1, b"saving a checkpoint, then stopping; send the signal again to stop at once\n")
            signal.signal(number, signal.default_int_handler)

        with on_stop(ask):
            self._stop |= bool(stopped_by)  # by one that got lost before
            yield

    # --- saving and resuming ---

    def save(self) -> None:
        """A checkpoint of everything; refused where a sum of losses is not finite."""
        if not all(torch.isfinite(value) for value in self._sums.values()):
            self._not_finite("a loss")
        self._metrics.sync()
        state = {
            "frame": self.frame, "step": self.step, "updates": self.updates, "evaluations": self.evaluations,
            "hours": self.hours, "summed": self._summed, "metrics_length": self._metrics.length,
            "finished_at": self._finished_at, "config": to_yaml(self.config),
            "threads": torch.get_num_threads(), "players": [player.state_dict() for player in self.players],
        }  # fmt: skip
        tensors = {f"agent.{name}": tensor for name, tensor in self.agent.tensors().items()}
        tensors |= {f"sums.{name}": tensor for name, tensor in self._sums.items()}
        checkpoint.save_checkpoint(self.run_dir, self.frame, tensors, state | self._facts(), self.replay)

    def _facts(self) -> dict[str, str]:
        """What must be the same where the run resumes: random streams and rounding depend on it."""
        agent = self.agent
        return {
            "device": agent.device.type, "replay_device": self.replay.device.type, "precision": agent.settings.precision
        }  # fmt: skip

    def restore(self) -> int:
        """Resume from the newest checkpoint; returns the length of metrics.jsonl that it knows."""
        tensors, state = checkpoint.load_checkpoint(self.run_dir, self.config, self.replay, self._facts())
        last_step = self.config.env.action_repeat * self.config.envs  # which may go beyond the end
        if state["frame"] - last_step >= self.config.frames:
            raise UserError(f"{self.run_dir} is at frame {state['frame']:,} already: frames= must be at least that")
        before, threads = state.get("threads"), torch.get_num_threads()
        if self.agent.device.type == "cpu" and before not in (None, threads):
            warn(f"{before} CPU threads until now, {threads} from here on: rounding differs")
        self.agent.load_tensors(checkpoint.without_prefix(tensors, "agent."))
        sums = checkpoint.without_prefix(tensors, "sums.")
        self._sums = {name: tensor.to(self.agent.device, copy=True) for name, tensor in sums.items()}
        self._summed, self._finished_at = state["summed"], state["finished_at"]
        self.frame, self.step, self.updates = state["frame"], state["step"], state["updates"]
        self.evaluations, self._hours_before = state["evaluations"], state["hours"]
        self._started = time.monotonic()
        for player, own in zip(self.players, state.get("players", [state])):  # older ones hold one
            player.load_state_dict(own)
        return state["metrics_length"]
