"""python -m pixel_ddpg.list: every task; filters by name and tag; --json for programs."""

import dataclasses
import json
import sys
from dataclasses import dataclass

from rich.table import Column, Table

from pixel_ddpg import presets
from pixel_ddpg.command import Output, command
from pixel_ddpg.config import option
from pixel_ddpg.envs import tasks


@dataclass
class List:
    """Options of the command."""

    name: str = option("*", "a pattern, such as walker-*")
    tag: str = option("", "benchmarking, easy, hard: dm_control's; paper, table1: of the DDPG paper; planet6")
    json: bool = option(False, "also --json: for programs", flag=True)


def details(task: tasks.Task) -> dict:
    """All there is to know of a task, with what preset fast shows of it."""
    env = presets.SETTINGS["fast", "pixels"]["env"] | presets.for_task("fast", "pixels", task.name)["env"]
    shape = [3 * env["frame_stack"], env["size"], env["size"]]
    return dataclasses.asdict(task) | {"pixels": shape, "action_repeat": env["action_repeat"]}


@command("pixel_ddpg.list", List)
def main(options: List) -> None:
    rows = [details(task) for task in tasks.select(options.name, options.tag)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    columns = ("task", "tags", "action", "observation", "pixels", "repeat", "frames", "ends early", "made from")
    title = f"{len(rows)} task{'s' * (len(rows) != 1)}"
    table = Table(*(Column(name, no_wrap=True) for name in columns), title=title, box=None, title_justify="left")
    for row in rows:
        frames = tasks.find(row["name"]).episode_frames
        pixels = "x".join(map(str, row["pixels"]))
        numbers = map(str, (row["action_dim"], row["observation_dim"], pixels, row["action_repeat"], frames))
        ends = "yes" if row["terminates"] else ""
        table.add_row(row["name"], " ".join(row["tags"]), *numbers, ends, row["origin"])
    Output(width=160).print(table, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
