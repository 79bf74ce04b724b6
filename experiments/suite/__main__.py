"""python -m experiments.suite profile=quick: tasks x {state, pixels} x seeds on Ray, and the report of it.

The same command resumes what is unfinished. Words of `python -m pixel_ddpg.run`, as env.size=84, go to every run.
"""

import contextlib
import json
import pathlib
import shlex
import sys

from rich.console import Console

from experiments.report import page, runs
from experiments.suite.board import Board, print_plan
from experiments.suite.cluster import cluster, measure, run_all, slots
from experiments.suite.plan import Job, Suite, make_jobs, read, unfinished
from pixel_ddpg import files
from pixel_ddpg.command import Output, command
from pixel_ddpg.errors import UserError


@command("experiments.suite", Suite, read)
def main(plan: Suite) -> int:
    jobs, out = make_jobs(plan), pathlib.Path(plan.out)
    console = Output(file=sys.stdout, soft_wrap=True)
    with contextlib.nullcontext() if plan.dry_run else files.locked(out, "out"):
        pending = unfinished(jobs, plan.frames)
        with cluster(plan):
            if pending:
                console.print(f"measuring what {len(pending)} run{'s' * (len(pending) > 1)} will take ...")
            costs = measure(pending, plan)
            at_once, why = slots(plan, costs)
            print_plan(console, plan, jobs, costs, at_once, why)
            if plan.dry_run:
                return 0
            write_plan(plan, jobs)
            with (
                Board(console, plan, jobs, costs, at_once) as board,
                open(out / "ray.log", "a", encoding="utf-8") as log,
                contextlib.redirect_stdout(log),  # what Ray says
            ):
                whole = run_all(plan, costs, board)
    for job, reason in board.failed.items():
        console.print(f"failed: {job.name}: {reason}; its log: {job.run_dir / 'log.txt'}")
    console.print(
        f"{board.done} of {board.total} runs are done" + ("" if whole else "; the same command resumes the rest")
    )
    reported = write_report(console, out)
    return 130 if not whole else 1 if board.failed or not reported else 0


def write_plan(plan: Suite, jobs: list[Job]) -> None:
    """The command and its runs, for reports, beside those of other commands for the same folder."""
    wanted = [(job.task, job.obs, job.preset, job.seed) for job in jobs]
    line = shlex.join(["python", *sys.orig_argv[1:]])
    path = pathlib.Path(plan.out, runs.PLANS)
    plans = runs.read_plans(path) if path.exists() else {}
    files.write_atomically(path, json.dumps(plans | {line: wanted}).encode())


def write_report(console: Console, out: pathlib.Path) -> bool:
    """The report of what there is; False where none can be made."""
    try:
        with files.locked(out / "report", "out"):
            page.make([str(out)], out / "report")
    except UserError as error:
        console.print(f"no report: {error}")
        return False
    console.print(f"report: {out / 'report' / 'report.html'}")
    return True


if __name__ == "__main__":
    sys.exit(main())
