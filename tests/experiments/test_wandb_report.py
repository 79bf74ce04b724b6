"""The W&B mirror of a report's runs, and the W&B Report.

wandb and wandb-workspaces themselves talk to a local server that answers as W&B's does as far as this needs. What it
cannot prove: that W&B's server takes the runs and the report, that filters and groups find the runs, and that they
are drawn as meant.
"""

import collections
import gzip
import http.server
import json
import threading

import matplotlib.pyplot as plt
import numpy as np
import pytest
import wandb
from small import STATE, train

from experiments.report import runs, wandb_report
from pixel_ddpg.errors import UserError
from pixel_ddpg.training.rows import PartRow

PROJECTS = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
VIEWER = {"id": "1", "entity": "team", "username": "me", "email": "me", "flags": "{}", "teams": {"edges": []}}
OWNER = {"id": "1", "name": "project", "entity": {"id": "1", "name": "team"}}


class Server(http.server.BaseHTTPRequestHandler):
    """Remembers what W&B is asked and the rows of each run; refuses the report if told to."""

    asked: list[dict]
    rows: dict[str, list[dict]]  # by run id
    configs: dict[str, dict]  # by run id
    refuses: bool

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        given = json.loads(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
        if self.path == "/graphql":
            type(self).asked.append(given)
            answer = {"data": self.answer(given["query"], given.get("variables") or {})}
        else:  # /files/entity/project/run/file_stream
            history = given.get("files", {}).get("wandb-history.jsonl", {"content": []})
            self.rows[self.path.split("/")[4]] += map(json.loads, history["content"])
            answer = {}
        self.reply(403 if self.refuses and "upsertView" in given.get("query", "") else 200, answer)

    def do_PUT(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(200, {})

    def reply(self, code: int, answer: dict) -> None:
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def answer(self, query: str, given: dict) -> dict:
        if "upsertView" in query:
            view = {key: given[key] for key in ("name", "displayName", "description", "type", "spec")}
            project = {"id": "1", "name": given["projectName"], "entityName": given["entityName"]}
            return {"upsertView": {"view": {"id": "Vmlldzox", "project": project, **view}, "inserted": True}}
        if "RunResumeStatus" in query:
            return {"model": {**OWNER, "bucket": self.resumed(given["name"])}}
        if "UpsertBucket" in query:
            self.configs[given["name"]] = json.loads(given["config"])
            bucket = {"id": given["name"], "name": given["name"], "displayName": given["name"], "project": OWNER}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"http://{self.headers['host']}/"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "1", "internalId": "1"}}
        model = {"id": "1", "name": "project", "entityName": "team", "description": ""}
        return {
            "viewer": VIEWER,
            "models": PROJECTS,
            "upsertModel": {"model": model, "project": model, "inserted": True},
        }

    def resumed(self, name: str) -> dict | None:
        """What the server knows of a run."""
        if name not in self.configs:
            return None
        return {
            "id": name, "name": name, "displayName": name, "summaryMetrics": "{}", "config": "{}", "tags": [],
            "historyLineCount": len(self.rows[name]), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in self.rows[name][-1:]]), "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def log_message(self, *words):
        pass


class Listening(http.server.ThreadingHTTPServer):
    """Silent about connections that wandb drops."""

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server in W&B's place, with a key for it."""
    wandb.teardown()  # it remembers the server that another test has named
    empty = {"asked": [], "rows": collections.defaultdict(list), "configs": {}, "refuses": False}
    kind = type("Recording", (Server,), empty)
    listening = Listening(("127.0.0.1", 0), kind)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield kind
    wandb.teardown()
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def found(tmp_path):
    """A run with a W&B id, and one from before there were any."""
    for seed in (0, 1):
        words = [*STATE, "preset=fast", f"seed={seed}", f"wandb_id={'run0' if seed == 0 else ''}"]
        train(words, tmp_path / "runs" / str(seed))
        with open(tmp_path / "runs" / str(seed) / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": "run", "frame": 1600, "hours": 0.1, "commit": "abc"}) + "\n")
    (tmp_path / "figures").mkdir()
    plt.imsave(tmp_path / "figures" / "figure2.png", np.zeros((4, 4)))
    return runs.collect([str(tmp_path / "runs")])


def test_without_a_key_the_specification_is_a_file(found, tmp_path, monkeypatch):
    """A login that is asked for, a traceback, a report of metrics that nobody logs."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = wandb_report.publish(found, "team/project", tmp_path, "| task |")
    assert said.startswith(f"{tmp_path / 'wandb_report.json'}: no W&B key") and "\n" not in said
    text = (tmp_path / "wandb_report.json").read_text()
    assert json.loads(text)["displayName"] == "DDPG from state and from pixels: fast"
    for words in ("cartpole-swingup", "eval/return", "train/frames_per_second", "train/q", '"frame"', "state, fast"):
        assert words in text, words


def find(tree, key: str) -> list[dict]:
    """The dictionaries in JSON that have this key, in their order."""
    below = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tree] * (isinstance(tree, dict) and key in tree) + [each for one in below for each in find(one, key)]


def saved(server: type[Server]) -> list[dict]:
    """The reports that were sent."""
    return [asked["variables"] for asked in server.asked if "upsertView" in asked["query"]]


def test_publishing_twice_makes_no_second_run(found, tmp_path, server, monkeypatch):
    """Rows that are sent twice; a report whose metrics and keys are not those that the mirror logs."""
    offline = tmp_path / "runs" / "0" / "wandb" / "offline-run-1-run0"
    offline.mkdir(parents=True)
    address = wandb_report.publish(found, "team/project", tmp_path, "| task |")
    assert "/team/project/reports/" in address
    before = {name: list(rows) for name, rows in server.rows.items()}
    shown = wandb_report.pictures(tmp_path)[0]
    assert "run0" in before and shown in before and len(before) == 3
    again: list[int] = []
    monkeypatch.setattr(wandb.Run, "log", lambda run, values, step=0: again.append(step))
    wandb_report.publish(found, "team/project", tmp_path, "| task |")
    assert before == server.rows and set(server.configs) == set(before) and again == []
    numbers = [row for row in found.runs[0].rows if not isinstance(row, PartRow)]
    assert [row["frame"] for row in before["run0"]] == [row.frame for row in numbers]
    assert server.configs["run0"]["run"]["value"]["commit"] == "abc"
    assert offline.exists() and not (tmp_path / "runs" / "1" / "wandb").exists()
    logged = {key for row in before["run0"] + before[shown] for key in row}
    assert [(each["entityName"], each["projectName"]) for each in saved(server)] == [("team", "project")] * 2
    spec = saved(server)[0]["spec"]
    assert "| task |" in spec and shown in spec
    for metric in ("eval/return", "train/frames_per_second", "train/q", "frame", "pictures/figure2"):
        assert metric in logged and f'"{metric}"' in spec
    filters = [each["filters"] for each in find(json.loads(spec), "filterFormat")]
    ids = sorted(name for name in before if name != shown)
    assert [sorted(each["value"]) for one in filters for each in one] == [[shown], ids, ids]  # no others' runs
    for key in ("task", "preset", "obs"):
        assert key in server.configs["run0"] and f'"section":"config","name":"{key}' in spec.replace(" ", ""), key


def test_a_report_is_made_again_only_in_its_own_project(found, tmp_path, server, monkeypatch):
    """A second report after a look without a key; one that another project's report is overwritten with."""
    wandb_report.publish(found, "team/one", tmp_path, "| task |")
    with monkeypatch.context() as without:
        without.delenv("WANDB_API_KEY")
        without.setenv("HOME", str(tmp_path))
        wandb_report.publish(found, "team/one", tmp_path, "| task |")
    for where in ("team/one", "team/two"):
        wandb_report.publish(found, where, tmp_path, "| task |")
    (tmp_path / "wandb_report.json").write_text("{")
    wandb_report.publish(found, "team/two", tmp_path, "| task |")
    assert [each["id"] for each in saved(server)] == [None, "Vmlldzox", None, None]


def test_what_w_and_b_refuses_is_told_in_one_line(found, tmp_path, server, monkeypatch, capsys):
    """A traceback, a second line, or advice that is for training."""
    server.refuses = True
    with pytest.raises(UserError, match="W&B does not take the report") as told:
        wandb_report.publish(found, "team/project", tmp_path, "| task |")
    assert told.value.code == 1 and "\n" not in str(told.value)
    capsys.readouterr()

    def fail(**options):
        raise RuntimeError("no such team")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(UserError, match=r"W&B does not take .*runs/0 \(no such team\).*: check key") as told:
        wandb_report.publish(found, "team/project", tmp_path, "| task |")
    assert told.value.code == 1 and "\n" not in str(told.value) and capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["project", "a/b/c", "/b", "a/"])
def test_an_address_that_is_none_is_told(where, tmp_path):
    with pytest.raises(UserError, match=f"wandb={where} must be entity/project"):
        wandb_report.publish(None, where, tmp_path, "")
