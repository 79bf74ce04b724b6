"""python -m experiments.report runs=runs/quick out=report: one HTML file of any number of runs, and its figures."""

import os
import pathlib
import sys
from dataclasses import dataclass

from experiments.report import page
from pixel_ddpg import files
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.errors import UserError


@dataclass
class Report:
    """Options of the command."""

    runs: list[str] = option([], "folders of runs, at any depth")
    out: str = option("report", own=True)
    compare: str = option("", "the preset that Table 1 and the comparisons are of; default: the one with most runs")
    embed: bool = option(False, "the films too, so that report.html can be sent alone")
    wandb: str = option("", "also --wandb entity/project: mirror the runs there and make a W&B Report", flag=True)


@command("experiments.report", Report)
def main(options: Report) -> None:
    if not options.runs:
        raise UserError("which runs? runs=runs/quick")
    if missing := [folder for folder in options.runs if not os.path.isdir(folder)]:
        raise UserError(f"{missing[0]} is not a folder")
    if not options.out:
        raise UserError("out= must name a folder")
    out = pathlib.Path(options.out)
    with files.locked(out, "out"):
        found = page.make(options.runs, out, options.compare, options.embed)
        print(out / "report.html")
        if options.wandb:
            from experiments.report import wandb_report

            print(wandb_report.publish(found, options.wandb, out, page.summary(found)))


if __name__ == "__main__":
    sys.exit(main())
