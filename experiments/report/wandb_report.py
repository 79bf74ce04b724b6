"""Runs mirrored to W&B, and a W&B Report of them."""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
from typing import TYPE_CHECKING

from experiments.report import panels
from experiments.report.runs import Found, Run
from pixel_ddpg import files
from pixel_ddpg.errors import UserError, first_line
from pixel_ddpg.training.logger import WandbMirror, has_wandb_key, logs_in

if TYPE_CHECKING:
    from wandb_workspaces.reports import v2

NAME = "wandb_report.json"
PICTURES = ("figure2", "curves", "figure3", "state_pixels", "profile", "published")  # of the report, where it has them


def publish(found: Found, where: str, out: pathlib.Path, summary: str) -> str:
    """Mirror all runs and the report's pictures to entity/project and save a report there; returns its address.

    Without a key the report's specification goes to a file, and what is returned says how to publish it. UserError for
    what W&B refuses; a run or report that is there already is replaced.
    """
    entity, _, project = where.partition("/")
    if not (entity and project) or "/" in project:
        raise UserError(f"wandb={where} must be entity/project, as my-team/pixel-ddpg")
    path = out / NAME
    known = known_id(path, entity, project)
    if not has_wandb_key():
        keep(build(found, entity, project, summary, out, online=False), path, known)
        return f"{path}: no W&B key here, so this is only the report's specification: `wandb login`, and the same again"
    for run in found.runs:
        mirror(run, where, out)
    try:
        send_pictures(out, entity, project)
        report = build(found, entity, project, summary, out)
        report.id = known
        report.save()
        keep(report, path, report.id)
    except Exception as error:
        why = first_line(error)
        raise UserError(f"W&B does not take the report ({why}); the runs are there, try again", code=1) from None
    return report.url


def known_id(path: pathlib.Path, entity: str, project: str) -> str:
    """The id under which this project has the report, or none: another project's would be overwritten."""
    try:
        kept = json.loads(path.read_bytes())
        there = kept["project"]["entityName"], kept["project"]["name"]
        return kept["id"] or "" if there == (entity, project) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def keep(report: "v2.Report", path: pathlib.Path, known: str) -> None:
    """Write what W&B is sent, with the report's id if it has one."""
    report.id = known
    files.write_atomically(path, report._to_model().model_dump_json(by_alias=True).encode())


def run_id(run: Run) -> str:
    """Its own W&B id, or for a run from before there were any one that its configuration and commit always give."""
    words = (run.folder / "config.yaml").read_bytes() + ((run.parts[0].commit if run.parts else None) or "").encode()
    return run.settings.wandb_id or hashlib.sha256(words).hexdigest()[:12]


def mirror(run: Run, where: str, out: pathlib.Path) -> None:
    """Send the rows that the server lacks; UserError where it takes none."""
    settings, folder = run.settings, out / "wandb"
    folder.mkdir(exist_ok=True)  # or wandb goes elsewhere
    with contextlib.redirect_stderr(io.StringIO()):  # what it advises is for training
        written = WandbMirror(run.folder, "online", where, run_id(run), dataclasses.asdict(settings), folder)
        written.close()
    if written.failed:
        what = f"{run.folder} ({written.failed}); what it has is kept"
        raise UserError(f"W&B does not take {what}: check key, project and network, and try again", code=1)


def pictures(out: pathlib.Path) -> tuple[str, list[pathlib.Path]]:
    """The id of the W&B run that holds these pictures, and the pictures."""
    paths = [out / "figures" / f"{name}.png" for name in PICTURES]
    paths = [path for path in paths if path.exists()]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12], paths


def send_pictures(out: pathlib.Path, entity: str, project: str) -> None:
    """As a run of their own, unless they are there."""
    import wandb

    name, paths = pictures(out)
    with contextlib.redirect_stderr(io.StringIO()), logs_in(out / "wandb"):
        run = wandb.init(
            entity=entity, project=project, id=name, name="pictures of a report", dir=out, config={"pictures": name},
            mode="online", resume="allow", settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
        )  # fmt: skip
        if not run.starting_step:
            run.log({f"pictures/{path.stem}": wandb.Image(str(path)) for path in paths})
        run.finish()


def build(found: Found, entity: str, project: str, summary: str, out: pathlib.Path, online: bool = True) -> "v2.Report":
    """The summary, the pictures, and returns and speed of each task by variant over frames.

    Not online it asks no server.
    """
    from wandb_workspaces.reports import v2

    def grid(name: str, ids: list[str], shown: list, groupby: tuple[str, ...] = ("preset", "obs")) -> v2.PanelGrid:
        runset = v2.Runset(
            entity=entity if online else "", project=project if online else "", name=name, filters=f"ID in {ids}",
            groupby=[f"config.{key}" for key in groupby],
        )  # fmt: skip
        return v2.PanelGrid(runsets=[runset], panels=shown)

    commits = sorted({commit for run in found.runs for commit in run.commits})
    frames = " and ".join(f"{each:,}" for each in sorted({run.settings.frames for run in found.runs}))
    text = f"{len(found.runs)} runs of {', '.join(map(panels.label, found.variants))}; {frames} frames; "
    text += f"commit {', '.join(commits)}. Lines are means over seeds, bands their standard deviation."
    blocks: list = [v2.MarkdownBlock(summary), v2.P(text)]
    blocks += [v2.P(f"Command: {command}") for command in found.commands]
    name, paths = pictures(out)
    browser = v2.MediaBrowser(title="figures", media_keys=[f"pictures/{path.stem}" for path in paths], num_columns=1)
    blocks += [v2.H2("Figures"), grid("pictures", [name], [browser], ()), v2.H2("All tasks")]
    blocks.append(grid("all runs", [run_id(run) for run in found.runs], [
        v2.BarPlot(title="last return, by task and variant", metrics=["eval/return"]),
        v2.LinePlot(title="frames per second", x="frame", y=["train/frames_per_second"]),
    ], ("task", "preset", "obs")))  # fmt: skip
    for task in (task for task in found.tasks if found.ordered(task)):
        plots = [
            v2.LinePlot(title=title, x="frame", y=[metric], title_x="frames", groupby_rangefunc="stddev")
            for title, metric in (("return", "eval/return"), ("mean Q of the batches", "train/q"))
        ]
        blocks += [v2.H2(task), grid(task, [run_id(run) for run in found.ordered(task)], plots)]
    return v2.Report(
        entity=entity, project=project, title=f"DDPG from state and from pixels: {found.main}", blocks=blocks
    )
