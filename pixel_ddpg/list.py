"""python -m pixel_ddpg.list: every task; filters by name and tag; --json for programs."""

import dataclasses
import fnmatch
import json
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from pixel_ddpg import presets
from pixel_ddpg.command import command
from pixel_ddpg.config import option
from pixel_ddpg.envs import tasks
from pixel_ddpg.errors import UserError, nearest


@dataclass
class List:
    """Options of the command."""

    name: str = option("*", "a pattern, such as walker-*")
    tag: str = option("", "benchmarking, easy, hard: dm_control's; paper, table1: of the DDPG paper; planet6")
    json: bool = option(False, "also --json: for programs", flag=True)


def select(name: str, tag: str) -> list[tasks.Task]:
    """The tasks whose name matches the pattern and that have the tag; UserError where there are none."""
    tags = sorted({tag for task in tasks.CATALOGUE.values() for tag in task.tags})
    if tag and tag not in tags:
        raise UserError(f"unknown tag '{tag}'{nearest(tag, tags)}")
    tagged = [task for task in tasks.CATALOGUE.values() if not tag or tag in task.tags]
    found = [task for task in tagged if fnmatch.fnmatch(task.name, name)]
    if not found:
        where = f" with tag={tag}" if tag else ""
        raise UserError(f"no task{where} is called '{name}'{nearest(name, [t.name for t in tagged])}")
    return found


def details(task: tasks.Task) -> dict:
    """All there is to know of a task, with what preset fast shows of it."""
    env = presets.SETTINGS["fast", "pixels"]["env"] | presets.for_task("fast", "pixels", task.name)["env"]
    shape = [3 * env["frame_stack"], env["size"], env["size"]]
    return dataclasses.asdict(task) | {"pixels": shape, "action_repeat": env["action_repeat"]}


@command("pixel_ddpg.list", List)
def main(options: List) -> None:
    rows = [details(task) for task in select(options.name, options.tag)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    columns = ("task", "tags", "action", "observation", "pixels", "repeat", "frames", "ends early", "made from")
    table = Table(
        *(Column(name, no_wrap=True) for name in columns), title=f"{len(rows)} tasks", box=None, title_justify="left"
    )
    for row in rows:
        frames = tasks.find(row["name"]).episode_frames
        pixels = "x".join(map(str, row["pixels"]))
        numbers = map(str, (row["action_dim"], row["observation_dim"], pixels, row["action_repeat"], frames))
        ends = "yes" if row["terminates"] else ""
        table.add_row(row["name"], " ".join(row["tags"]), *numbers, ends, row["origin"])
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
