"""python -m pixel_ddpg.run task=cheetah-run obs=pixels: train one agent, or go on with its run."""

import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
import sys
import time

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pixel_ddpg import checkpoint, files, machine, rendering, replay, tasks, trainer
from pixel_ddpg import config as config_module
from pixel_ddpg.agent import DDPG
from pixel_ddpg.config import Config, UserError
from pixel_ddpg.environment import Environment
from pixel_ddpg.graph import GraphedUpdate
from pixel_ddpg.logger import Metrics, WandbMirror, read_rows

WRITTEN = ("checkpoints", "videos", "wandb", "config.yaml", "metrics.jsonl", "status.json", "evaluation.json")


class Output(Console):
    """Standard output; where its reader has gone, a run goes on without."""

    def on_broken_pipe(self) -> None:
        """Rich's own ends the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = Output(highlight=False, soft_wrap=True)


@config_module.command("run")
def main(config: Config) -> None:
    config_module.check(config)
    run_dir = pathlib.Path(config.run_dir)
    device = trainer.choose_device(config)
    with files.locked(run_dir, "run_dir"):
        if config.resume and trainer.is_done(run_dir, config.frames):
            refuse_changes(config, run_dir)
            frame = trainer.read_status(run_dir)["frame"]
            console.print(f"{run_dir} is done: {frame:,} frames; a larger frames= makes it go on")
            return
        found = has_checkpoint(config, run_dir)
        threads = machine.prepare(config, device)
        environment = Environment(tasks.CATALOGUE[config.task], config.obs, config.env, 0)
        replay_device = print_plan(config, environment, device, threads, found)
        if not found:
            delete_run(run_dir)
        run = trainer.Trainer(config, device, replay_device)
        length = run.restore() if found else 0
        trainer.write_config(config, run_dir)
        trainer.write_status(run_dir, "running", frame=run.frame)
        metrics = Metrics(run_dir / "metrics.jsonl", length)
        mirror = WandbMirror(run_dir, config.wandb, config.wandb_project, config.wandb_id, dataclasses.asdict(config))
        if found:
            console.print(f"goes on at frame {run.frame:,}")
        drawn_by = environment.drawn_by() if config.obs == "pixels" else None
        train(run, metrics, mirror, machine.facts(device, threads) | {"drawn_by": drawn_by})


def has_checkpoint(config: Config, run_dir: pathlib.Path) -> bool:
    """Whether there is a checkpoint to go on from. Refuses what would mix or destroy a run; changes nothing there."""
    config.wandb_id = config.wandb_id or secrets.token_hex(6)
    if not (run_dir / "config.yaml").exists():
        if others := [name for name in WRITTEN if (run_dir / name).exists()]:
            raise UserError(
                f"{run_dir} has {others[0]} but no config.yaml, so it is not a run: choose another run_dir="
            )
        return False
    if not config.resume:
        if not config.overwrite:
            raise UserError(f"{run_dir} has a run; add overwrite=true to delete it, or leave out resume=false to go on")
        return False
    config.wandb_id = refuse_changes(config, run_dir).wandb_id
    if checkpoint.checkpoints(run_dir):
        return True
    saved = trainer.read_status(run_dir).get("state", "done") in ("done", "stopped")  # else: killed before it was
    if saved and read_rows(run_dir / "metrics.jsonl"):
        raise UserError(
            f"{run_dir} has results but no checkpoint: choose another run_dir=, or resume=false overwrite=true"
        )
    return False


def refuse_changes(config: Config, run_dir: pathlib.Path) -> Config:
    """The configuration the run was started with; UserError if the command now says something else that matters."""
    started = trainer.read_config(run_dir)
    if changed := config_module.differences(started, config):
        raise UserError(
            f"{run_dir} was started with {' '.join(changed)}: repeat that, choose another run_dir=, "
            "or start anew with resume=false overwrite=true"
        )
    return started


def delete_run(run_dir: pathlib.Path) -> None:
    """Delete what a run writes, and nothing else."""
    for name in WRITTEN:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def print_plan(
    config: Config, environment: Environment, device: torch.device, threads: int, found: bool
) -> torch.device:
    """Say what is going to happen, at what cost; returns where the replay will live. `found`: it goes on."""
    slots = replay_slots(config)
    nbytes = replay_bytes(config)
    place, why = replay.place(nbytes, device, machine.free_memory(device), machine.free_memory(torch.device("cpu")))
    agent = trainer.make_agent(config, device)
    disk = disk_needed(config, agent)
    to_do = checkpoint.to_do(pathlib.Path(config.run_dir), config.frames) if found else 1
    hours = estimate_hours(config, environment, agent, device) * to_do
    pixels, cores = config.obs == "pixels", rendering.available_threads()
    of_cores = f", more than the {cores} cores that it may use: slower" if threads > cores else ""
    updates = trainer.planned_updates(config)
    rows = {
        "task": f"{config.task} from {config.obs}, {config.frames:,} frames, action repeat {config.env.action_repeat}",
        "preset": f"{config.preset}, seed {config.seed}",
        "observation": f"{environment.observation_spec().dtype} {environment.observation_spec().shape}",
        "device": f"{device_name(device)}, {threads} CPU thread{'s' * (threads > 1)}{of_cores}",
        **({"environments": f"{config.envs}, each in a process of its own"} if trainer.overlaps(config) else {}),
        "rendering": environment.drawn_by() if pixels else "none",
        "replay": f"{slots * config.env.action_repeat:,} frames, {machine.format_bytes(nbytes)}, {why}",
        "checkpoints": f"up to {machine.format_bytes(disk)} in {config.run_dir}",
        "updates": f"{updates:,}, batches of {config.replay.batch_size}, from step {config.train.start_steps:,} on",
        "time": f"about {format_hours(hours)} {'to the end' if found else 'for the whole run'}, measured just now",
    }
    for name, value in rows.items():
        console.print(f"[bold]{name:12}[/bold] {value}")
    return place


def replay_slots(config: Config) -> int:
    """Slots of the ring."""
    sizes = (trainer.replay_capacity(config), config.env.frame_stack, config.replay.n_step, config.envs)
    return replay.Replay.slots_for(*sizes)


def replay_bytes(config: Config) -> int:
    """Bytes of the ring."""
    action_dim = tasks.CATALOGUE[config.task].action_dim
    return replay_slots(config) * replay.element_bytes(trainer.replay_element(config), action_dim)


def checkpoint_bytes(agent: DDPG) -> int:
    """Bytes of the networks and optimisers in a run's checkpoints."""
    moments = 2 * sum(parameter.nbytes for parameter in agent.parameters() if parameter.requires_grad)  # Adam's
    networks = sum(tensor.nbytes for tensor in agent.state_dict().values()) + moments
    return (checkpoint.KEPT + 1) * networks  # one is being written


def disk_needed(config: Config, agent: DDPG) -> int:
    """Bytes that checkpoints will take; UserError where the disk has less."""
    needed = max(0, replay_bytes(config) + checkpoint_bytes(agent) - checkpoint.disk_bytes(config.run_dir))
    free = shutil.disk_usage(config.run_dir).free
    if needed > free:
        raise UserError(
            f"checkpoints will take {machine.format_bytes(needed)}, {machine.format_bytes(free)} are free for "
            f"{config.run_dir}: free some, choose another run_dir= or a smaller replay.capacity",
            code=1,
        )
    return needed


def device_name(device: torch.device) -> str:
    """cpu, or cuda with the GPU's name."""
    return str(device) + (f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "")


def format_hours(hours: float) -> str:
    """20 s, 3 min, 2.5 h, 4 days."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1.5 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def estimate_hours(config: Config, environment: Environment, agent: DDPG, device: torch.device) -> float:
    """Hours for the whole run, from a few steps and updates on things that are thrown away."""
    action = np.zeros(environment.action_spec().shape, np.float32)
    observation = environment.reset().observation
    step = _median_seconds(lambda: (agent.act(observation), environment.step(action)), 12)
    batch = config.replay.batch_size
    scratch = trainer.make_replay(config, 64, device)
    scratch.begin(environment.element)
    for _ in range(32):
        scratch.add(environment.element, action, 0.0, 1.0, False)
    scratch.announce()
    graphed = config.train.cuda_graph and device.type == "cuda"
    learn = GraphedUpdate(agent, scratch, batch) if graphed else lambda: agent.update(scratch.draw(batch))
    update = config.train.updates_per_step * _median_seconds(lambda: learn()["q"].item(), 4)
    steps = config.frames / config.env.action_repeat
    evaluations = config.frames // config.eval.every + 1
    episode = tasks.CATALOGUE[config.task].episode_frames / config.env.action_repeat
    both = max(step / config.envs, update) if trainer.overlaps(config) else step + update
    return (steps * both + evaluations * config.eval.episodes * episode * step) / 3600


def _median_seconds(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


class Screen:
    """A live line in a terminal; elsewhere one plain line for each evaluation."""

    def __init__(self, frames: int, done: int):
        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} frames"), BarColumn(None),
            TextColumn("return {task.fields[last]}  {task.fields[speed]} frames/s  left"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._bar = self._progress.add_task("", total=frames, completed=done, last="-", speed="-")

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(self, *error) -> None:
        self._progress.stop()

    def step(self, run: trainer.Trainer) -> None:
        """After each agent step."""
        self._progress.update(self._bar, completed=run.frame)

    def row(self, row: dict) -> None:
        """A metrics row was written."""
        if row["kind"] == "eval":
            low, high = min(row["returns"]), max(row["returns"])
            self._progress.console.print(
                f"frame {row['frame']:>9,}  return {row['return']:7.1f}  ({len(row['returns'])} episodes, {low:.0f} to "
                f"{high:.0f})  update {row['update']:,}  {format_hours(row['hours'])}"
            )
        elif row["kind"] == "train":
            self._progress.update(self._bar, last=f"{row['return']:.1f}", speed=f"{row['frames_per_second']:.0f}")


def train(run: trainer.Trainer, metrics: Metrics, mirror: WandbMirror, facts: dict) -> None:
    """Train to the end; status.json tells how it ended."""
    run_dir = run.run_dir
    try:
        with Screen(run.config.frames, run.frame) as screen:
            run.attach(metrics, mirror, screen.row)
            run.log_run(facts)
            run.train(screen.step)
        trainer.write_status(run_dir, "done", frame=run.frame)
    except BaseException as error:
        state = "stopped" if isinstance(error, UserError) and error.code == 130 else "failed"
        with contextlib.suppress(OSError):  # the disk may be full
            trainer.write_status(run_dir, state, frame=run.frame, why=str(error) or "interrupted")
        raise
    finally:
        mirror.close()
        metrics.close()
    console.print(
        f"done: {run_dir}/metrics.jsonl"
        + "".join(f", {path}" for path in sorted(run_dir.glob(f"videos/{run.frame}.mp4")))
    )


if __name__ == "__main__":
    sys.exit(main())
