"""What a suite lets Ray run: measurements and whole runs, each in a fresh process."""

import contextlib
import os
import pathlib
import shlex
import sys
import time
import traceback
from collections.abc import Iterator

import torch

from pixel_ddpg import checkpoint, config, fleet, machine, replay, run, tasks, trainer
from pixel_ddpg.environment import Environment


def measure(runs: list[list[str]], asked: float) -> list[dict]:
    """Hours, bytes of memory and disk of each run, or why it cannot begin; pixels should come first.

    `asked` is when Ray was given this task: what a process takes to begin is part of a run's time.
    """
    start = max(0.0, time.time() - asked) / 3600
    base, found = 0, []
    for words in runs:
        settings = config.compose(words)
        try:
            device = trainer.choose_device(settings)
            machine.prepare(settings, device)
            environment = Environment(tasks.CATALOGUE[settings.task], settings.obs, settings.env, 0)
            agent = trainer.make_agent(settings, device)
            evaluation = Environment(tasks.CATALOGUE[settings.task], settings.obs, settings.env, 0)  # as a run has
            evaluation.reset()
            hours = start + run.estimate_hours(settings, environment, agent, device)
            nbytes = run.replay_bytes(settings)
            free = [machine.free_memory(each) for each in (device, torch.device("cpu"))]
            in_ram = replay.place(nbytes, device, *free)[0].type == "cpu"
        except Exception as error:  # whatever it is, the other runs go on
            found.append({"why": config.first_line(error)})
            continue
        base = base or machine.memory_bytes(torch.device("cpu"))  # later ones have what went before in it
        networks = run.checkpoint_bytes(agent)
        saving = max(3 * min(checkpoint.PIECE_BYTES, nbytes), networks)  # see checkpoint.save_checkpoint
        remotes = fleet.REMOTE_BYTES * settings.envs * trainer.overlaps(settings)
        memory = base + nbytes * in_ram + saving + remotes
        found.append({"hours": hours, "memory": memory, "disk": nbytes + networks, "kept": networks})
    return found


def train(words: list[str], run_dir: str, folder: str, keep_replay: bool) -> int:
    """One run, as `python -m pixel_ddpg.run` in `folder`; its output goes to log.txt. Returns its exit code."""
    os.chdir(folder)
    with _output(pathlib.Path(run_dir, "log.txt")):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} python -m pixel_ddpg.run {shlex.join(words)}", flush=True)
        sys.argv = ["run", *words]
        try:
            code = run.main() or 0
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
            code = 1
    if code == 0 and not keep_replay:
        checkpoint.drop_replay(pathlib.Path(run_dir))
    return code


@contextlib.contextmanager
def _output(path: pathlib.Path) -> Iterator[None]:
    """Everything this process prints is appended to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    with open(path, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, old in zip((1, 2), kept):
            os.dup2(old, number)
            os.close(old)
