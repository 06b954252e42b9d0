"""What is told of runs: numbers as they were logged, non-finite ones as what they are, deletions as asked."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from server_process import write_run
from starlette.testclient import TestClient

from limner.cli.main import main
from limner.runs import EventWriter, Run, create_run
from limner.runs.folder import being_read, write_config
from limner.runs.index import FirstLook, RunIndex
from limner.runs.launch import Launch
from limner.runs.state import process_identity
from limner.server import watch
from limner.server.summary import summarize


def test_list_and_detail(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "older", [3.0, 2.0])
    write_run(runs_dir, "newer", [5.0, 4.0, 3.0], complete=False)
    answer = client.get("/api/runs")
    runs = answer.json()["runs"]
    assert [run["id"] for run in runs] == ["newer", "older"] and answer.json()["active"] == ["newer"]
    assert (runs[0]["status"], runs[0]["step"], runs[0]["total_steps"]) == ("running", 3, 3)
    assert (runs[1]["status"], runs[1]["actions"]) == ("completed", ["delete"])
    assert runs[0]["sparkline"] == [5, 4, 3] and runs[0]["last"]["tokens"] == 24
    assert client.get("/api/runs", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    detail = client.get("/api/runs/newer").json()
    assert detail["metrics"] == ["loss", "learning_rate", "tokens"]
    assert detail["attempts"][0]["last_step"] == 3 and detail["counts"] == {"start": 1, "metrics": 3}
    assert client.get("/api/runs/newer/config").json()["config"] == {"lr": 3e-4}


def test_a_folder_that_cannot_be_shown_is_told(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "well", [1.0])
    write_run(runs_dir, "other", [1.0]).rename(runs_dir / "my best run (v2)")
    (write_run(runs_dir, "broken", [1.0]) / "config.json").write_text("{}")
    answer = client.get("/api/runs").json()
    assert [run["id"] for run in answer["runs"]] == ["well"]
    told = {folder["name"]: folder["message"] for folder in answer["left_out"]}
    assert list(told) == ["broken", "my best run (v2)"]
    assert "does not describe a run" in told["broken"]
    assert "use letters, digits" in told["my best run (v2)"] and "Rename" in told["my best run (v2)"]


def test_nonfinite_numbers_are_shown_as_what_they_are(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "odd", [math.nan, math.inf, -math.inf, 0.0, 1.5])
    series = client.get("/api/runs/odd/series?metrics=loss").json()
    values = series["tables"]["metrics"]["segments"][0]["series"]["loss"]["value"]
    assert values == ["NaN", "Infinity", "-Infinity", 0.0, 1.5]
    events = client.get("/api/runs/odd/events?types=metrics").json()["events"]
    assert [event["loss"] for event in events] == ["NaN", "Infinity", "-Infinity", 0.0, 1.5]
    summary = client.get("/api/runs").json()["runs"][0]
    assert summary["sparkline"] == ["NaN", "NaN", "NaN", 0.0, 1.5] or None in summary["sparkline"]
    assert client.get("/api/runs/odd/report").json()["status"] == "completed"


def test_events_by_range_and_type(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "r", [float(k) for k in range(50)])

    def seqs(query: str) -> list[int]:
        return [event["seq"] for event in client.get(f"/api/runs/r/events?{query}").json()["events"]]

    assert seqs("after_seq=10&limit=3") == [11, 12, 13]
    assert seqs("before_seq=5") == [1, 2, 3, 4]
    assert seqs("newest=true&limit=2") == [51, 52]
    assert seqs("types=start,complete") == [1, 52]
    assert seqs("after_seq=1000") == []
    page = client.get("/api/runs/r/events?limit=10").json()
    assert (page["from"], page["to"], page["last_seq"], page["more"]) == (1, 10, 52, True)
    error = client.get("/api/runs/r/events?types=nonsense").json()["error"]
    assert error["field"] == "types" and "validation" in error["message"]


def test_labels(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "r", [1.0])
    client.patch("/api/runs/r", json={"tags": ["good"], "note": "hm"})
    told = client.patch("/api/runs/r", json={"pinned": True}).json()
    assert (told["tags"], told["note"], told["pinned"]) == (["good"], "hm", True)
    assert client.patch("/api/runs/r", json={"colour": "red"}).json()["error"]["field"] == "colour"
    (runs_dir / "r" / "labels.json").write_text("{broken")
    assert client.get("/api/runs/r").json()["tags"] == []


def test_delete_tells_its_size_and_refuses_what_is_at_work(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "active", [1.0], complete=False)  # this very process is its trainer
    done = write_run(runs_dir, "done", [1.0])
    size = sum(path.stat().st_size for path in done.rglob("*") if path.is_file())
    answer = client.delete("/api/runs/active")
    assert (answer.status_code, answer.json()["error"]["state"]) == (409, "running")
    assert client.get("/api/runs/done").json()["bytes"] == size
    assert client.delete("/api/runs/done").json() == {"id": "done", "bytes": size}
    assert not done.exists() and client.get("/api/runs/done").status_code == 404
    assert not list(runs_dir.glob(".*done*"))


def test_a_new_run_of_an_old_name_is_a_new_run(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "r", [1.0, 2.0])
    assert client.get("/api/runs/r").json()["seq"] == 4
    client.delete("/api/runs/r")
    write_run(runs_dir, "r", [5.0] * 8)
    assert not client.app.state.runs.find("r").gone  # type: ignore[attr-defined]
    assert client.get("/api/runs/r").json()["seq"] == 10
    Run(runs_dir / "r").delete()  # in the terminal
    write_config(write_run(runs_dir, "r", [7.0] * 9), "train", {"lr": 1.0})
    told = client.get("/api/runs/r").json()
    assert (told["seq"], told["verb"], told["config"], told["last"]["loss"]) == (11, "train", {"lr": 1.0}, 7.0)


def test_log_tail_and_following(client: TestClient, runs_dir: Path) -> None:
    folder = write_run(runs_dir, "r", [1.0])
    assert client.get("/api/runs/r/log").json() == {"lines": [], "text": None, "offset": 0, "size": 0}
    (folder / "log.txt").write_text("".join(f"line {k}\n" for k in range(300)))
    tail = client.get("/api/runs/r/log?lines=2").json()
    assert tail["lines"] == ["line 298", "line 299"]
    with open(folder / "log.txt", "a") as file:
        file.write("more\n")
    followed = client.get(f"/api/runs/r/log?offset={tail['offset']}").json()
    assert (followed["text"], followed["offset"]) == ("more\n", tail["offset"] + 5)


def test_a_letter_cut_in_two_is_followed_whole(client: TestClient, runs_dir: Path) -> None:
    log = write_run(runs_dir, "r", [1.0]) / "log.txt"
    whole = "gr\u00fcn\r50 %"
    log.write_bytes(whole.encode()[:3])
    first = client.get("/api/runs/r/log?offset=0").json()
    log.write_bytes(whole.encode())
    second = client.get(f"/api/runs/r/log?offset={first['offset']}").json()
    assert (first["text"], second["text"], second["offset"]) == ("gr", "\u00fcn\r50 %", second["size"])


def test_a_damaged_log_is_shown_as_far_as_it_goes(client: TestClient, runs_dir: Path) -> None:
    folder = write_run(runs_dir, "r", [1.0, 2.0], complete=False)
    with open(folder / "events.jsonl", "a") as file:
        file.write(
            'not json\n{"seq":99}\n[]\n{"seq":4,"attempt":1,"step":3,"time":1.0,"type":"metrics","loss":3}\n{"torn'
        )
    detail = client.get("/api/runs/r").json()
    assert (detail["seq"], detail["damaged_lines"]) == (4, 3)
    events = client.get("/api/runs/r/events").json()["events"]
    assert [event["seq"] for event in events] == [1, 2, 3, 4]


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"verb": 3, "config": []}'])
def test_a_config_that_is_none_does_not_hide_the_others(client: TestClient, runs_dir: Path, body: str) -> None:
    write_run(runs_dir, "good", [1.0])
    (runs_dir / "bad").mkdir()
    (runs_dir / "bad" / "config.json").write_text(body)
    assert "good" in [run["id"] for run in client.get("/api/runs").json()["runs"]]
    assert client.get("/api/runs/bad").status_code < 500


def test_checkpoints(client: TestClient, runs_dir: Path) -> None:
    folder = write_run(runs_dir, "r", [1.0])
    for step in (5, 10):
        path = folder / "checkpoints" / f"step-{step:06d}"
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"x" * 100)
        files = {"model.safetensors": {"bytes": 100, "sha256": "abc"}}
        (path / "manifest.json").write_text(
            json.dumps({"step": step, "metrics": {"eval_loss": 2.0}, "files": files})
        )
    (folder / "checkpoints" / "step-000015").mkdir()  # no manifest: none
    found = client.get("/api/runs/r/checkpoints").json()["checkpoints"]
    assert [(c["name"], c["step"], c["sha256"]) for c in found] == [
        ("step-000005", 5, "abc"),
        ("step-000010", 10, "abc"),
    ]
    assert found[0]["model"] == "run:r/step-000005"
    with being_read(folder / "checkpoints" / "step-000005"):
        refused = client.delete("/api/runs/r/checkpoints/step-000005")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "wrong_state")
        assert (folder / "checkpoints" / "step-000005" / "model.safetensors").is_file()
    assert client.delete("/api/runs/r/checkpoints/step-000005").json()["bytes"] > 100
    assert not (folder / "checkpoints" / "step-000005").exists()
    assert client.delete("/api/runs/r/checkpoints/step-000005").status_code == 404


def test_a_first_look_lets_no_live_run_be_deleted(
    client: TestClient, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long log, who writes it now may not have been seen yet."""
    dead = ALIVE | {"pid": 2**22 + 7}
    run = create_run(runs_dir, "long", "pretrain", {})
    for identity in (dead, ALIVE):
        writer = EventWriter(run.events_path)
        writer.write("start", 0, total_steps=1000, **identity)
        for step in range(200):
            writer.write("metrics", step, loss=1.0)
        writer.close()
    monkeypatch.setattr(watch, "LONG_BYTES", 1000)
    monkeypatch.setattr(watch, "FirstLook", partial(FirstLook, pieces=2, piece_bytes=2000))
    with client.app.state.runs._reading:  # type: ignore[attr-defined]  reading takes its time
        told = client.get("/api/runs/long").json()
        assert told["status"] == "running" and told["detail"].startswith("reading")
        answer = client.delete("/api/runs/long")
        assert (answer.status_code, answer.json()["error"]["state"]) == (409, "running")
        assert client.post("/api/runs/long/resume").status_code == 409
    assert run.config["verb"] == "pretrain"


def test_a_run_that_is_locked_is_not_deleted(client: TestClient, runs_dir: Path) -> None:
    run = Run(write_run(runs_dir, "r", [1.0]))
    with run.lock():
        answer = client.delete("/api/runs/r")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_state")
    assert client.delete("/api/runs/r").status_code == 200


LAUNCHED = {"argv": [], "device": "cpu", "time": "now", "host": "h", "pid": 1, "pid_started": 1}


@pytest.mark.parametrize("launch", [LAUNCHED, LAUNCHED | {"time": 1.0, "pid": "x"}, [], None])
def test_a_launch_of_other_types_is_none(client: TestClient, runs_dir: Path, launch: Any) -> None:
    path = write_run(runs_dir, "r", [1.0])
    (path / "launch.json").write_text(json.dumps(launch))
    assert client.get("/api/runs").json()["runs"][0]["status"] == "completed"
    assert client.get("/api/queue").status_code == 200
    (path / "launch.json").unlink()
    (path / "launch.json").mkdir()
    assert client.get("/api/runs/r").json()["status"] == "completed"
    (path / "launch.json").rmdir()


@pytest.mark.parametrize("what", ["no file", "odd numbers"])
def test_one_odd_run_hides_no_other_and_stops_no_queue(
    client: TestClient, runs_dir: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    write_run(runs_dir, "good", [1.0])
    odd = create_run(runs_dir, "odd", "pretrain", {})
    if what == "no file":
        odd.events_path.mkdir()
    else:
        EventWriter(odd.events_path).write("start", 0, total_steps="5", steps_per_epoch="1")
    for _ in range(3):
        answer = client.get("/api/runs").json()
        assert [run["id"] for run in answer["runs"]] == ["good"]
        assert [left["name"] for left in answer["left_out"]] == ["odd"]
    assert client.get("/api/queue").status_code == 200
    assert len([record for record in caplog.records if "left out" in record.message]) == 1
    error = client.get("/api/runs/odd")
    assert error.status_code == 503 and error.json()["error"]["code"] == "unavailable"
    order = {"verb": "pretrain", "name": "next", "config": {"device": "cpu", "steps": 2}}
    assert client.post("/api/runs", json=order).json()["status"] == "running"


@pytest.mark.parametrize(
    "odd",
    [
        {"time": 10**400},
        {"step": 10**30},
        {"type": "start", "total_steps": 10**400, "steps_per_epoch": 1},
        {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": 10**400},
    ],
)
def test_a_number_beyond_all_bounds_stops_neither_list_nor_queue(
    client: TestClient, runs_dir: Path, capsys: pytest.CaptureFixture[str], odd: dict[str, Any]
) -> None:
    write_run(runs_dir, "good", [1.0])
    run = create_run(runs_dir, "odd", "pretrain", {})
    event = {"seq": 1, "attempt": 1, "step": 0, "time": time.time(), "type": "progress", "host": "h", "pid": 1}
    run.events_path.write_text(json.dumps(event | odd) + "\n")
    answer = client.get("/api/runs").json()
    named = [found["id"] for found in answer["runs"]] + [left["name"] for left in answer["left_out"]]
    assert sorted(named) == ["good", "odd"]
    assert client.get("/api/queue").status_code == 200
    assert main(["runs", "list", "--json", "--runs-dir", str(runs_dir)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    order = {"verb": "pretrain", "name": "next", "config": {"device": "cpu", "steps": 2}}
    assert client.post("/api/runs", json=order).json()["status"] == "running"


def test_whatever_one_run_is_the_queue_goes_on(
    client: TestClient, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(self: Run, told: Any = None) -> None:
        raise ZeroDivisionError(self.name)

    write_run(runs_dir, "odd", [1.0])
    monkeypatch.setattr(Run, "state", odd)
    for _ in range(3):
        assert client.app.state.launcher.busy_devices() == {}  # type: ignore[attr-defined]
    assert len([record for record in caplog.records if "cannot be told" in record.message]) == 1


def test_a_look_at_the_queue_takes_nothing_out_of_the_notice(
    client: TestClient, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = create_run(runs_dir, "odd", "pretrain", {})
    EventWriter(odd.events_path).write("start", 0, total_steps="x", steps_per_epoch=[1])
    monkeypatch.setattr(watch.Runs, "forget_idle", watch.Runs.all)  # as the queue's thread does, at any time
    (left,) = client.get("/api/runs").json()["left_out"]
    assert left["name"] == "odd" and "\n" not in left["message"] and "http" not in left["message"]


def test_a_binary_message_is_answered(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "r", [1.0])
    with client.websocket_connect("/ws/runs/r", headers={"host": "127.0.0.1:8000"}) as wire:
        wire.send_bytes(b"\0\1")
        assert wire.receive_json()["type"] == "error"
        wire.send_json({"type": "subscribe"})
        assert wire.receive_json()["type"] == "hello"


def test_unknown_things_are_404_in_one_shape(client: TestClient) -> None:
    for path in ("/api/runs/none", "/api/runs/none/events", "/api/nothing", "/api/schemas/none"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    assert client.post("/api/runs/none/pause").json()["error"]["code"] == "not_found"


ALIVE = process_identity()
DEAD = ALIVE | {"pid": 2**22 + 7}
GONE = "its process is gone"
LAUNCHES = {
    "none": None,
    "alive": Launch([], "cpu", time.time() + 1000, socket.gethostname(), ALIVE["pid"], ALIVE["pid_started"]),
    "gone": Launch([], "cpu", time.time() + 1000, socket.gethostname(), DEAD["pid"], 1.0),
    "exit 1": Launch([], "cpu", time.time() + 1000, socket.gethostname(), DEAD["pid"], 1.0, returncode=1),
    "exit 0": Launch([], "cpu", time.time() + 1000, socket.gethostname(), DEAD["pid"], 1.0, returncode=0),
    "before, SIGKILL": Launch([], "cpu", 1.0, socket.gethostname(), DEAD["pid"], 1.0, returncode=-9),
    "before, another": Launch([], "cpu", 1.0, socket.gethostname(), 1, 1.0, returncode=-9),
}
LOGS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "empty": [],
    "prepares": [("progress", {"phase": "tokenize", **ALIVE})],
    "works": [("start", ALIVE), ("metrics", {"loss": 1.0})],
    "holds": [("start", ALIVE), ("paused", {})],
    "ends": [("start", ALIVE), ("stopping", {})],
    "dead": [("start", DEAD), ("metrics", {"loss": 1.0})],
    "stopped": [("start", DEAD), ("complete", {"reason": "stopped"})],
    "completed": [("start", DEAD), ("complete", {"reason": "completed"})],
    "failed": [("start", DEAD), ("error", {"message": "it broke"})],
    "only noted": [("note", {"text": "x"})],
}


@pytest.mark.parametrize(
    "log, launch, status, detail, resumable",
    [
        ("empty", "none", "queued", "", False),
        ("empty", "alive", "running", "starting", False),
        ("empty", "gone", "crashed", GONE, True),
        ("empty", "exit 1", "failed", "exit code 1", True),
        ("empty", "exit 0", "crashed", GONE, True),
        ("prepares", "none", "running", "tokenize", False),
        ("works", "none", "running", "", False),
        ("works", "before, another", "running", "", False),
        ("holds", "none", "paused", "", False),
        ("ends", "none", "stopping", "", False),
        ("dead", "none", "crashed", GONE, True),
        ("dead", "before, SIGKILL", "crashed", "killed by SIGKILL", True),
        ("dead", "before, another", "crashed", GONE, True),
        ("dead", "alive", "running", "starting", False),
        ("dead", "gone", "crashed", GONE, True),
        ("dead", "exit 1", "failed", "exit code 1", True),
        ("stopped", "none", "stopped", "", True),
        ("stopped", "alive", "running", "starting", False),
        ("stopped", "exit 0", "stopped", "", True),
        ("completed", "none", "completed", "", False),
        ("completed", "before, SIGKILL", "completed", "", False),
        ("failed", "none", "failed", "it broke", True),
        ("failed", "alive", "running", "starting", False),
        ("failed", "gone", "failed", "it broke", True),
        ("only noted", "none", "queued", "", False),
    ],
)
def test_terminal_and_dashboard_tell_the_same_state(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    log: str,
    launch: str,
    status: str,
    detail: str,
    resumable: bool,
) -> None:
    """A run's state follows from its log and its last launch, whoever asks; nobody deletes one that is at work."""
    run = create_run(tmp_path, "r", "train", {})
    (run.checkpoints_path / "step-000001").mkdir()
    writer = EventWriter(run.events_path)
    for step, (kind, fields) in enumerate(LOGS[log]):
        writer.write(kind, step, **fields)
    writer.close()
    if (last := LAUNCHES[launch]) is not None:
        last.save(run.path)
    index = RunIndex(run.events_path)
    index.update()
    shown = summarize(run, index).model_dump(mode="json")
    assert main(["runs", "list", "--json", "--runs-dir", str(tmp_path)]) == 0
    listed = json.loads(capsys.readouterr().out)
    same = ("status", "detail", "step", "total_steps", "resumable")
    assert [listed[name] for name in same] == [shown[name] for name in same]
    assert (listed["status"], listed["detail"], listed["resumable"]) == (status, detail, resumable)
    at_work = status in ("running", "paused", "stopping")
    assert main(["runs", "delete", "r", "--yes", "--runs-dir", str(tmp_path)]) == int(at_work)
    assert run.path.exists() == at_work
