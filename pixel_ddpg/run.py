"""python -m pixel_ddpg.run task=cheetah-run obs=pixels: train one agent, or resume its run."""

import contextlib
import dataclasses
import pathlib
import secrets
import sys

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pixel_ddpg import container, files, presets
from pixel_ddpg.command import Output, command, is_terminal
from pixel_ddpg.config import Config, has_no_effect
from pixel_ddpg.envs import tasks
from pixel_ddpg.envs.environment import Environment, observation_dtype, observation_shape
from pixel_ddpg.errors import UserError, warn
from pixel_ddpg.runtime import machine
from pixel_ddpg.runtime.memory import format_bytes
from pixel_ddpg.training import build, checkpoint, cost, run_folder
from pixel_ddpg.training.cost import Cost, format_hours
from pixel_ddpg.training.logger import Metrics, WandbMirror
from pixel_ddpg.training.rows import EvalRow, Row, TrainRow
from pixel_ddpg.training.trainer import Trainer

PRESET_HELP = "\n         ".join(f"{name:15} {text}" for name, text in presets.PRESETS.items())
RENDER_HELP = "\n         ".join(f"{name:15} {text}" for name, (text, _) in presets.RENDER.items())
HELP = f"""
task=    a name from `python -m pixel_ddpg.list`
obs=     pixels or state
preset=  {PRESET_HELP}
render=  {RENDER_HELP}
--multirun task=reacher-easy,finger-spin seed=0,1   every combination, one after the other
--cfg    print the configuration, and stop
"""


console = Output(soft_wrap=True)


@command("pixel_ddpg.run", Config, presets.compose, HELP)
def main(config: Config) -> None:
    run_dir = pathlib.Path(config.run_dir)
    device = build.choose_device(config)
    with files.locked(run_dir, "run_dir"):
        if config.resume and run_folder.is_done(run_dir, config.frames):
            run_folder.refuse_changes(config, run_dir)
            frame = run_folder.read_status(run_dir)["frame"]
            console.print(f"{run_dir} is done: {frame:,} frames; a larger frames= resumes it")
            return
        started = run_folder.resumed(config, run_dir)
        config.wandb_id = config.wandb_id or (started and started.wandb_id) or secrets.token_hex(6)
        threads = machine.prepare(config, device)
        environment = Environment(tasks.find(config.task), config.obs, config.env, 0)
        costs = cost.measure(config, environment, device)
        cost.check_disk(config, costs)
        drawn_by = environment.drawn_by() if config.obs == "pixels" else None
        environment.close()
        print_plan(config, device, threads, costs, drawn_by, resumes=started is not None)
        warn_of_idle_settings(config)
        if not started:
            run_folder.delete_run(run_dir)
        run = Trainer(config, device, costs.replay_device)
        length = run.restore() if started else 0
        run_folder.write_config(config, run_dir)
        metrics = Metrics(run_dir / "metrics.jsonl", length, run.step)
        mirror = WandbMirror(run_dir, config.wandb, config.wandb_project, config.wandb_id, dataclasses.asdict(config))
        run_folder.write_status(run_dir, "running", frame=run.frame)
        if started:
            console.print(f"resumes at frame {run.frame:,}")
        facts = {"drawn_by": drawn_by, "precision": run.agent.settings.precision}
        train(run, metrics, mirror, machine.facts(device, threads) | facts)


def print_plan(
    config: Config, device: torch.device, threads: int, costs: Cost, drawn_by: str | None, resumes: bool
) -> None:
    """Say what is going to happen, at what cost."""
    to_do = checkpoint.fraction_left(pathlib.Path(config.run_dir), config.frames) if resumes else 1.0
    cores = container.available_threads()
    of_cores = f", more than the {cores} cores that it may use: slower" if threads > cores else ""
    shape = observation_shape(tasks.find(config.task), config.obs, config.env)
    replay = f"{cost.replay_slots(config) * config.env.action_repeat:,} frames, {format_bytes(costs.replay)}"
    about = "about " * tasks.find(config.task).terminates  # an episode's last step may have fewer frames
    updates = f"{about}{build.planned_updates(config):,}, batches of {config.replay.batch_size}"
    rows = {
        "task": f"{config.task} from {config.obs}, {config.frames:,} frames, action repeat {config.env.action_repeat}",
        "preset": f"{config.preset}, seed {config.seed}",
        "observation": f"{observation_dtype(config.obs).__name__} {shape}",
        "device": f"{device_name(device)}, {threads} CPU thread{'s' * (threads > 1)}{of_cores}",
        **({"environments": f"{config.envs}, each in a process of its own"} if build.overlaps(config) else {}),
        "rendering": drawn_by or "none",
        "replay": f"{replay}, {costs.replay_place}",
        "checkpoints": f"up to {format_bytes(costs.disk)} in {config.run_dir}",
        "updates": f"{updates}, from step {config.train.start_steps:,} on",
        "time": f"about {format_hours(costs.hours * to_do)} {'to the end' if resumes else 'for the whole run'}, "
        "measured just now",
    }
    for name, value in rows.items():
        console.print(Text(f"{name:12}", "bold"), value)


def warn_of_idle_settings(config: Config) -> None:
    """Tell which fields that were given change nothing, and whether nothing will be learned."""
    for word in presets.changes(config):
        if needed := has_no_effect(config, word.partition("=")[0]):
            warn(f"{word} has no effect: it is for {needed}")
    if config.train.updates_per_step and not build.planned_updates(config):
        warn(f"no update will be made: frames={config.frames} end before train.start_steps={config.train.start_steps}")


def device_name(device: torch.device) -> str:
    """cpu, or cuda with the GPU's name."""
    return str(device) + (f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "")


class Screen:
    """A live line in a terminal; elsewhere one plain line for each evaluation."""

    def __init__(self, frames: int, done: int):
        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} frames"), BarColumn(None),
            TextColumn("return {task.fields[last]}  {task.fields[speed]} frames/s  left"), TimeRemainingColumn(),
            console=console, disable=not is_terminal(console.file),  # FORCE_COLOR makes no terminal
        )  # fmt: skip
        self._bar = self._progress.add_task("", total=frames, completed=done, last="-", speed="-")

    def __enter__(self) -> "Screen":
        self._progress.start()
        return self

    def __exit__(self, *error) -> None:
        self._progress.stop()

    def step(self, run: Trainer) -> None:
        """After each agent step."""
        self._progress.update(self._bar, completed=run.frame)

    def row(self, row: Row) -> None:
        """A metrics row was written."""
        if isinstance(row, EvalRow):
            low, high = min(row.returns), max(row.returns)
            self._progress.console.print(
                f"frame {row.frame:>9,}  return {row.return_:7.1f}  ({len(row.returns)} episodes, {low:.0f} to "
                f"{high:.0f})  update {row.update:,}  {format_hours(row.hours)}"
            )
        elif isinstance(row, TrainRow):
            self._progress.update(self._bar, last=f"{row.return_:.1f}", speed=f"{row.frames_per_second:.0f}")


def train(run: Trainer, metrics: Metrics, mirror: WandbMirror, facts: dict) -> None:
    """Train to the end; status.json tells how it ended."""
    run_dir = run.run_dir
    try:
        with Screen(run.config.frames, run.frame) as screen:
            run.attach(metrics, mirror, screen.row)
            run.log_part(facts)
            run.train(screen.step)
        run_folder.write_status(run_dir, "done", frame=run.frame)
    except BaseException as error:
        state = "stopped" if isinstance(error, UserError) and error.code == 130 else "failed"
        with contextlib.suppress(OSError):  # the disk may be full
            run_folder.write_status(run_dir, state, frame=run.frame, why=str(error) or "interrupted")
        raise
    finally:
        run.close()
        mirror.close()
        metrics.close()
    console.print(
        f"done: {run_dir}/metrics.jsonl"
        + "".join(f", {path}" for path in sorted(run_dir.glob(f"videos/{run.frame}.mp4")))
    )


if __name__ == "__main__":
    sys.exit(main())
