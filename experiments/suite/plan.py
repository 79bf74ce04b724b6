"""What a suite runs: its options, the profile's in place of what is not given, and the runs that these name."""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

from experiments.profiles import LADDER, PROFILES, SETS
from pixel_ddpg import config, presets
from pixel_ddpg.config import check_fields, option, set_values, words_of
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError, nearest
from pixel_ddpg.training import checkpoint, run_folder

PRESETS = list(presets.PRESETS)
# What the suite itself decides of a run.
OWN = ("task", "obs", "preset", "seed", "frames", "threads", "run_dir", "resume", "overwrite", "wandb_id")


@dataclass
class Suite:
    """Options of the command."""

    profile: str = option("quick", "smoke, quick or paper: sets of tasks, seeds and budgets; below are those of quick")
    tasks: Any = option(None, "names, or sets: paper, figure2, planet6, dmc_easy, dmc_medium, dmc_hard, dmc28, ladder")
    obs: Any = option(None, "[pixels,state] or one of them")
    preset: Any = option(None, "one, or several in brackets")
    controls: Any = option(None, "presets that run from state alone")
    seeds: Any = option(None, "how many, from 0 on; or which, as [3,4]")
    frames: Any = option(None, "of each run")
    run: list[str] = option([], "words of python -m pixel_ddpg.run for every run; env.size=84 is put here")
    out: str = option("", "folder of the runs and the report; default: runs/<profile>")
    threads: int = option(1, "CPU threads a run", least=1)
    address: str = option("", "of a Ray cluster, as auto or 10.0.0.1:6379; default: this machine alone")
    runs_per_gpu: int = option(1, "where there are GPUs", least=1)
    retries: int = option(2, "of a run whose process or machine is lost", least=0)
    keep_replay: bool = option(False, "after a run's end too, so that a larger frames= resumes it")
    dry_run: bool = option(False, "also --dry-run: print the plan, and stop", flag=True)


@dataclass(frozen=True)
class Job:
    """One run that is wanted."""

    task: str
    obs: str
    preset: str
    seed: int
    run_dir: pathlib.Path
    words: tuple[str, ...]  # of python -m pixel_ddpg.run

    @property
    def name(self) -> str:
        return f"{self.task} {self.obs} {self.preset} seed {self.seed}"


def read(words: list[str]) -> Suite:
    """The options of a command's words; those of a single run, as env.size=84, go to every run."""
    suite, given = config.fields_of(Suite), words_of(words)
    passed = {key: text for key, text in given.items() if key not in suite and key not in OWN and is_of_a_run(key)}
    options = Suite()
    set_values(options, {key: text for key, text in given.items() if key not in passed})
    options.run += [f"{key}={text}" for key, text in passed.items()]
    check_fields(options)
    return settle(options)


def is_of_a_run(key: str) -> bool:
    """Whether a run takes this word; a mistyped one with a dot counts too, for which a run has the nearest name."""
    return "." in key or key == "render" or key in config.fields_of(config.Config)


def settle(options: Suite) -> Suite:
    """The options with the profile's in place of null, as lists; UserError for what does not fit."""
    if options.profile not in PROFILES:
        raise UserError(f"unknown profile '{options.profile}'{nearest(options.profile, list(PROFILES))}")
    profile, given = PROFILES[options.profile], vars(options)
    if given["tasks"] is not None and "ladder" in _listed(given["tasks"]):
        profile = profile | {"preset": LADDER, "controls": []}
    elif given["preset"] is not None:
        profile = profile | {"controls": []}
    settled = {key: profile[key] if given[key] is None else given[key] for key in profile}
    settled["tasks"] = _tasks([str(name) for name in _listed(settled["tasks"])])
    for key, names in (("obs", ["pixels", "state"]), ("preset", PRESETS), ("controls", PRESETS)):
        settled[key] = _names(key, _listed(settled[key]), names)
    settled["seeds"] = _seeds(settled["seeds"])
    settled["frames"] = _whole("frames", settled["frames"], 1)
    settled["run"] = [*profile["run"], *options.run]
    for key in words_of(settled["run"]):
        if key in OWN:
            raise UserError(f"run=[{key}=...]: the suite sets {key} of each run itself; see --help for its own options")
    return dataclasses.replace(options, **settled, out=options.out or f"runs/{options.profile}")


def _names(key: str, values: list, known: list[str]) -> list[str]:
    """The values, each of which must be known."""
    for value in values:
        if value not in known:
            raise UserError(f"unknown {key} '{value}'{nearest(str(value), known)}")
    return values


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _whole(key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{key}={value} must be a whole number, at least {least}")
    return value


def _seeds(value: Any) -> list[int]:
    """n: 0 to n - 1; a list: itself."""
    seeds = list(value) if isinstance(value, list) else list(range(_whole("seeds", value, 1)))
    return list(dict.fromkeys(_whole("seeds", seed, 0) for seed in seeds))


def _tasks(names: list[str]) -> list[str]:
    """Sets in place of their names; none twice."""
    chosen = [task for name in names for task in SETS.get(name, [name])]
    for name in chosen:
        if name not in tasks.CATALOGUE:
            raise UserError(f"unknown task or set '{name}'{nearest(name, [*tasks.CATALOGUE, *SETS])}")
    return list(dict.fromkeys(chosen))


def make_jobs(plan: Suite) -> list[Job]:
    """Every run, the first seed of all before the second of any."""
    variants = [(preset, obs) for preset in plan.preset for obs in plan.obs]
    variants += [(preset, "state") for preset in plan.controls if "state" in plan.obs]
    jobs = []
    for seed in plan.seeds:
        for task in plan.tasks:
            for preset, obs in dict.fromkeys(variants):
                run_dir = pathlib.Path(plan.out) / task / obs / preset / f"seed{seed}"
                words = [f"task={task}", f"obs={obs}", f"preset={preset}", f"seed={seed}", f"frames={plan.frames}"]
                words += [f"threads={plan.threads}", "wandb=off", *plan.run]
                words.append(f"run_dir={str(run_dir).replace('$', '$$')}")  # a run's own has fields in it
                jobs.append(Job(task, obs, preset, seed, run_dir, tuple(words)))
    if not jobs:
        raise UserError("no runs: tasks=, obs=, preset= and seeds= must each name something")
    return jobs


def unfinished(jobs: list[Job], frames: int) -> list[Job]:
    """Those that have not ended; UserError for a run that was made with other settings, or cannot be resumed."""
    checked, pending = set(), []
    for job in jobs:
        found = (job.run_dir / "config.yaml").exists()
        if found or (job.obs, job.preset) not in checked:
            shared = [word for word in job.words if not word.startswith(("seed=", "run_dir="))]
            wanted = dataclasses.replace(presets.compose(shared), seed=job.seed)
            checked.add((job.obs, job.preset))
        if found and (changed := config.differences(run_folder.read_config(job.run_dir), wanted)):
            raise UserError(f"{job.run_dir} was started with {' '.join(changed)}: repeat that, or choose another out=")
        if run_folder.is_done(job.run_dir, frames):
            continue
        if checkpoint.newest(job.run_dir) and not checkpoint.has_replay(job.run_dir):
            raise UserError(
                f"{job.run_dir} has ended and its replay was deleted, so it cannot be resumed to frames={frames}: "
                "choose another out=, or delete that folder"
            )
        pending.append(job)
    return pending
