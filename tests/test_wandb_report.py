"""The W&B mirror of a report's runs, and the W&B Report.

What no stand-in can prove: that W&B's server takes the report and draws it as meant. The report is what
wandb-workspaces makes of it, sent by wandb itself to a local server that answers as W&B's does as far as this needs.
"""

import http.server
import json
import threading

import pytest
import wandb
from small import STATE, train

from experiments import runs, wandb_report
from pixel_ddpg import config

PROJECTS = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
VIEWER = {"id": "1", "entity": "team", "username": "me", "email": "me", "flags": "{}", "teams": {"edges": []}}


class Server(http.server.BaseHTTPRequestHandler):
    """Remembers what W&B is asked; answers what saving a report needs, or refuses it."""

    asked: list[dict]
    refuses: bool

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body) if self.path == "/graphql" else {"query": ""}
        type(self).asked.append(asked)
        answer = json.dumps({"data": self.answer(asked["query"], asked.get("variables") or {})})
        self.send_response(403 if self.refuses and "upsertView" in asked["query"] else 200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(answer.encode())

    def answer(self, query: str, given: dict) -> dict:
        if "upsertView" in query:
            view = {key: given[key] for key in ("name", "displayName", "description", "type", "spec")}
            project = {"id": "1", "name": given["projectName"], "entityName": given["entityName"]}
            return {"upsertView": {"view": {"id": "Vmlldzox", "project": project, **view}, "inserted": True}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "1", "internalId": "1"}}
        model = {"id": "1", "name": "project", "entityName": "team", "description": ""}
        return {
            "viewer": VIEWER,
            "models": PROJECTS,
            "upsertModel": {"model": model, "project": model, "inserted": True},
        }

    def log_message(self, *words):
        pass


class Config(dict):
    """As wandb's."""

    def update(self, values, allow_val_change):
        super().update(values)


class FakeRun:
    """One run on the server: what it holds stays when it is opened again."""

    def __init__(self, **options):
        self.options, self.rows, self.config = options, [], Config()

    @property
    def step(self) -> int:
        return len(self.rows)

    def log(self, values, step):
        assert step == len(self.rows)
        self.rows.append(values)

    def define_metric(self, *args, **options):
        pass

    def finish(self):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server in W&B's place, with a key for it."""
    kind = type("Recording", (Server,), {"asked": [], "refuses": False})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield kind
    listening.shutdown()


@pytest.fixture
def on_server(monkeypatch):
    """The runs that wandb.init has opened, by id."""
    opened: dict[str, FakeRun] = {}

    def init(**options):
        run = opened.setdefault(options["id"], FakeRun())
        run.options = options
        return run

    monkeypatch.setattr(wandb, "init", init)
    return opened


@pytest.fixture
def found(tmp_path):
    for seed in (0, 1):
        words = [*STATE, "preset=fast", f"seed={seed}", f"wandb_id=run{seed}"]
        train(words, tmp_path / "runs" / str(seed))
        with open(tmp_path / "runs" / str(seed) / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": "run", "frame": 1600, "hours": 0.1, "commit": "abc"}) + "\n")
    return runs.collect([str(tmp_path / "runs")])


def test_without_a_key_the_specification_is_a_file(found, tmp_path, monkeypatch):
    """A login that is asked for, a traceback, a report of metrics that nobody logs."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = wandb_report.publish(found, "team/project", tmp_path)
    assert said.startswith(f"{tmp_path / 'wandb_report.json'}: no W&B key") and "\n" not in said
    text = (tmp_path / "wandb_report.json").read_text()
    assert json.loads(text)["displayName"] == "DDPG from state and from pixels: fast"
    for words in ("cartpole-swingup", "eval/return", "train/frames_per_second", "train/q", '"frame"', "state, fast"):
        assert words in text, words


def test_publishing_twice_makes_no_second_run(found, tmp_path, server, on_server):
    """Rows that are sent twice; a report whose metrics and keys are not those that the mirror logs."""
    address = wandb_report.publish(found, "team/project", tmp_path)
    assert "/team/project/reports/" in address
    before = {name: list(run.rows) for name, run in on_server.items()}
    wandb_report.publish(found, "team/project", tmp_path)
    assert set(on_server) == {"run0", "run1"} and before == {name: run.rows for name, run in on_server.items()}
    options = on_server["run1"].options
    assert (options["entity"], options["project"], options["config"]["seed"]) == ("team", "project", 1)
    assert on_server["run0"].config["run"]["commit"] == "abc" and options["dir"] == tmp_path / "wandb"
    assert not (tmp_path / "runs" / "0" / "wandb").exists()
    logged = {key for row in on_server["run0"].rows for key in row}
    saved = [asked["variables"] for asked in server.asked if "upsertView" in asked["query"]]
    assert len(saved) == 2 and (saved[0]["entityName"], saved[0]["projectName"]) == ("team", "project")
    spec = saved[0]["spec"]
    for metric in ("eval/return", "train/frames_per_second", "train/q", "frame"):
        assert metric in logged and f'"{metric}"' in spec
    assert [asked["id"] for asked in saved] == [None, "Vmlldzox"]
    for key in ("task", "preset", "obs"):
        assert key in options["config"] and f'"section":"config","name":"{key}' in spec.replace(" ", ""), key


def test_what_w_and_b_refuses_is_told_in_one_line(found, tmp_path, server, on_server, monkeypatch, capsys):
    server.refuses = True
    with pytest.raises(config.UserError, match="W&B does not take the report") as told:
        wandb_report.publish(found, "team/project", tmp_path)
    assert told.value.code == 1 and "\n" not in str(told.value)

    def fail(**options):
        raise RuntimeError("no such team")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(config.UserError, match=r"W&B does not take .*runs/0: see above"):
        wandb_report.publish(found, "team/project", tmp_path)
    assert "no such team" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["project", "a/b/c", "/b", "a/"])
def test_an_address_that_is_none_is_told(where, tmp_path):
    with pytest.raises(config.UserError, match=f"wandb={where} must be entity/project"):
        wandb_report.publish(None, where, tmp_path)
