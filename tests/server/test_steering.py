"""Runs are started, queued, steered, killed; they outlive the server, and a new server steers them on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_process import FAKE_TRAINER, PATIENCE, ServerProcess, until, write_run
from starlette.testclient import TestClient

from limner.config.serve import ServeConfig
from limner.runs import EventWriter, create_run
from limner.runs.launch import Launch
from limner.runs.state import process_identity
from limner.server import launcher
from limner.server.app import create_server


def status(server: ServerProcess, run: str) -> str:
    return server.get(f"/api/runs/{run}")["status"]


def started(server: ServerProcess, name: str, **config: Any) -> dict[str, Any]:
    body = {"verb": "pretrain", "name": name, "config": {"device": "cpu", **config}}
    return server.post("/api/runs", body, 201)


def test_start_pause_sample_resume_stop_resume(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    started(server, "r", steps=300)
    until(lambda: server.get("/api/runs/r")["step"] > 3)
    command = server.post("/api/runs/r/pause")["command"]
    until(lambda: status(server, "r") == "paused")
    held = server.get("/api/runs/r")["step"]
    paused = server.get("/api/runs/r/events?types=paused")["events"]
    assert paused[0]["command"] == command
    answer = server.post("/api/runs/r/sample?wait=10", {"prompt": "Hello"})
    assert answer["event"]["prompt"] == "Hello" and answer["event"]["command"] == answer["command"]
    refused = server.http.post("/api/runs/r/pause")
    assert (refused.status_code, refused.json()["error"]["state"]) == (409, "paused")
    assert server.get("/api/runs/r")["step"] == held  # nothing moved meanwhile
    server.post("/api/runs/r/resume")
    until(lambda: server.get("/api/runs/r")["step"] > held)
    server.post("/api/runs/r/note", {"text": "going well"})
    server.post("/api/runs/r/checkpoint")
    until(lambda: server.get("/api/runs/r/events?types=note")["events"])
    server.post("/api/runs/r/stop")
    until(lambda: status(server, "r") == "stopped")
    stopped = server.get("/api/runs/r")
    assert stopped["resumable"] and stopped["actions"] == ["resume", "delete"]
    server.post("/api/runs/r/resume")
    done = until(lambda: (found := server.get("/api/runs/r"))["status"] == "completed" and found)
    assert (done["step"], [a["attempt"] for a in done["attempts"]]) == (300, [1, 2])
    assert len(done["pauses"]) == 1 and done["pauses"][0]["to"] > done["pauses"][0]["from"]
    until(lambda: json.loads((runs_dir / "r" / "launch.json").read_text())["returncode"] == 0)
    assert "Run 'r'" in server.get("/api/runs/r/log")["lines"][0]


def test_one_run_a_device_in_turn(serve: Callable[..., ServerProcess]) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    assert started(server, "first", steps=100_000)["status"] == "running"
    assert [started(server, name, steps=5)["queue_position"] for name in ("b", "c", "d")] == [1, 2, 3]
    assert server.get("/api/runs/b")["actions"] == ["stop", "delete"]
    order = server.post("/api/queue/d/move", {"position": 1}, 200)["queue"]
    assert [waiting["id"] for waiting in order] == ["d", "b", "c"]
    server.post("/api/runs/b/stop")
    assert [waiting["id"] for waiting in server.get("/api/queue")["queue"]] == ["d", "c"]
    server.post("/api/runs/first/stop")
    until(lambda: status(server, "c") == "completed")
    begin = {name: server.get(f"/api/runs/{name}")["started"] for name in ("first", "d", "c")}
    assert begin["first"] < begin["d"] < begin["c"]
    assert status(server, "b") == "queued" and server.get("/api/runs/b")["queue_position"] is None
    server.post("/api/runs/b/resume")
    until(lambda: status(server, "b") == "completed")


def test_a_server_that_is_killed_touches_no_run_and_its_heir_steers_on(
    serve: Callable[..., ServerProcess], runs_dir: Path
) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    started(server, "r", steps=2000)
    started(server, "waits", steps=3)
    until(lambda: server.get("/api/runs/r")["step"] > 20)
    server.kill(signal.SIGKILL)
    size = (runs_dir / "r" / "events.jsonl").stat().st_size
    until(lambda: (runs_dir / "r" / "events.jsonl").stat().st_size > size)
    server.start()
    series = server.get("/api/runs/r/series?metrics=loss&points=4000")["tables"]["metrics"]["segments"][0]
    assert series["axes"]["step"] == list(range(1, len(series["axes"]["step"]) + 1))  # the whole curve, no gap
    assert server.get("/api/runs/waits")["queue_position"] == 1
    server.post("/api/runs/r/pause")
    until(lambda: status(server, "r") == "paused")
    server.post("/api/runs/r/stop")
    until(lambda: status(server, "r") == "stopped")
    until(lambda: status(server, "waits") == "completed")


def test_a_killed_trainer_is_seen_within_five_seconds(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    started(server, "r", steps=200)
    until(lambda: server.get("/api/runs/r")["step"] > 25)
    os.kill(json.loads((runs_dir / "r" / "launch.json").read_text())["pid"], signal.SIGKILL)
    began = time.monotonic()
    crashed = until(lambda: (found := server.get("/api/runs/r"))["status"] == "crashed" and found, 5)
    assert time.monotonic() - began < 5
    until(lambda: server.get("/api/runs/r")["detail"] == "killed by SIGKILL")
    assert crashed["log_tail"][0].startswith("Run 'r'") and crashed["resumable"]
    assert crashed["actions"] == ["resume", "delete"]
    saved = server.get("/api/runs/r/checkpoints")["checkpoints"][-1]["step"]
    server.post("/api/runs/r/resume")
    done = until(lambda: (found := server.get("/api/runs/r"))["status"] == "completed" and found)
    assert [attempt["first_step"] for attempt in done["attempts"]] == [0, saved]
    segments = server.get("/api/runs/r/series?metrics=loss")["tables"]["metrics"]["segments"]
    assert [segment["axes"]["step"][0] for segment in segments] == [1, saved + 1]  # drawn as it was


def test_kill_and_the_exit_code_of_a_trainer_that_never_began(serve: Callable[..., ServerProcess]) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    started(server, "r", steps=4000)
    until(lambda: server.get("/api/runs/r")["step"] > 1)
    server.post("/api/runs/r/kill")
    until(lambda: server.get("/api/runs/r")["detail"] == "killed by SIGKILL")
    assert server.http.post("/api/runs/r/kill").status_code == 409
    server.kill(signal.SIGTERM)
    other = serve(FAKE_EXIT_AT_START=3)
    started(other, "never")
    failed = until(lambda: (found := other.get("/api/runs/never"))["status"] == "failed" and found)
    assert failed["detail"] == "exit code 3" and "leaves before it begins" in failed["log_tail"][-1]


def test_a_run_goes_on_where_it_was_begun(
    serve: Callable[..., ServerProcess], runs_dir: Path, tmp_path: Path
) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    argv = [*FAKE_TRAINER, "train", "--runs-dir", str(runs_dir.resolve()), "--name", "own", "--steps", "9000"]
    process = subprocess.Popen([*argv, "--fake-interval", "0.02"], cwd=elsewhere, stdout=subprocess.DEVNULL)
    until(lambda: (runs_dir / "own" / "checkpoints").is_dir() and any((runs_dir / "own" / "checkpoints").iterdir()))
    process.kill()
    process.wait()
    until(lambda: status(server, "own") == "crashed")
    server.post("/api/runs/own/resume")
    launch = until(lambda: Launch.load(runs_dir / "own"))
    assert Path(psutil.Process(launch.pid).cwd()) == elsewhere
    server.post("/api/runs/own/kill")


def test_a_run_of_the_terminal_is_live_and_steerable(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve()
    argv = [*FAKE_TRAINER, "train", "--runs-dir", str(runs_dir), "--name", "own", "--steps", "9000"]
    process = subprocess.Popen([*argv, "--fake-interval", "0.02"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: (runs_dir / "own" / "events.jsonl").is_file() and status(server, "own") == "running")
        assert started(server, "second", steps=3)["queue_position"] == 1  # its device is taken
        until(lambda: server.get("/api/runs/own/samples")["probes"])
        probe = server.get("/api/runs/own/samples")["probes"][0]
        picture = server.http.get(f"/api/runs/own/samples/{probe['image']}")
        assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
        assert server.http.post("/api/runs/own/sample", json={"image": "../../config.json"}).status_code == 404
        server.post("/api/runs/own/stop")
        assert process.wait(PATIENCE) == 0
        until(lambda: status(server, "second") == "completed")
    finally:
        process.kill()


def test_older_forms(serve: Callable[..., ServerProcess]) -> None:
    server = serve(FAKE_INTERVAL=0.02)
    assert server.get("/api/train/status") == {"status": "idle", "run_id": None}
    assert server.post("/api/train/pause", status=409)["error"]["state"] == "idle"
    run = server.post("/api/train/start", {"config": "nano", "steps": 9000, "name": "old"}, 201)["run_id"]
    assert run == "old"
    until(lambda: server.get("/api/train/status")["step"] > 1)
    server.post("/api/train/pause", status=200)
    until(lambda: server.get("/api/train/status")["status"] == "paused")
    server.post("/api/train/resume", status=200)
    until(lambda: server.get("/api/train/status")["status"] == "running")
    server.post("/api/train/stop", status=200)
    until(lambda: server.get("/api/train/status")["status"] == "stopped")


def test_wrong_settings_name_their_field(client: TestClient) -> None:
    for config, field in (
        ({"lr": -1}, "config.lr"),
        ({"no_such": 1}, "config.no_such"),
        ({"batch_size": "many"}, "config.batch_size"),
        ({"resume": "x"}, "config.resume"),
        ({"runs_dir": "/etc"}, "config.runs_dir"),
    ):
        answer = client.post("/api/runs", json={"verb": "pretrain", "config": config})
        assert answer.status_code == 422 and answer.json()["error"]["field"] == field, answer.text
        checked = client.post("/api/runs/check", json={"verb": "pretrain", "config": config}).json()
        assert not checked["valid"] and checked["problems"][0]["field"] == field
    for name in ("../x", ".hidden", "", "a/b", "x" * 200):
        assert client.post("/api/runs", json={"verb": "pretrain", "name": name}).status_code == 422
    assert client.post("/api/runs", json={"verb": "rm"}).json()["error"]["field"] == "verb"


def test_settings_that_no_command_line_takes_are_refused(client: TestClient, runs_dir: Path) -> None:
    for config in ({"corpus": "a\0b"}, {"corpus": "\ud800"}, {"\ud800": 1}, {"sample_prompt": ["\udfff"]}):
        body = json.dumps({"verb": "pretrain", "config": config, "name": "x"})
        for path in ("/api/runs", "/api/runs/check"):
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == (422 if path == "/api/runs" else 200), answer.text
            assert path == "/api/runs" or answer.json()["valid"] is False
    for name in ("漢" * 100, "\ud800"):
        body = json.dumps({"verb": "pretrain", "name": name})
        answer = client.post("/api/runs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "wrong_input"
    assert [path.name for path in runs_dir.iterdir()] == [".server"]


def test_a_paused_run_does_not_go_on_from_a_checkpoint(client: TestClient, runs_dir: Path) -> None:
    path = write_run(runs_dir, "r", [1.0], complete=False)
    EventWriter(path / "events.jsonl", attempt=1).write("paused", 1)
    for wish in ({"checkpoint": "step-000001", "discard_later": True}, {"discard_later": True}):
        answer = client.post("/api/runs/r/resume", json=wish)
        assert (answer.status_code, answer.json()["error"]["state"]) == (409, "paused")
    assert not list((path / "commands").iterdir())
    assert client.post("/api/runs/r/resume").status_code == 202


def test_a_run_of_another_host_takes_no_device_of_this_one(client: TestClient, runs_dir: Path) -> None:
    run = create_run(runs_dir, "far", "pretrain", {})
    identity = process_identity() | {"host": "elsewhere"}
    EventWriter(run.events_path).write("start", 0, total_steps=9, device="cpu", **identity)
    assert client.get("/api/runs/far").json()["status"] == "running"
    assert client.get("/api/queue").json()["active"] == []


def test_one_server_a_folder(
    make_client: Callable[..., TestClient], runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs_dir / ".old.12345678.deleted").mkdir()
    first = make_client()
    assert not list(runs_dir.glob("*.deleted"))
    with pytest.raises(ValueError, match=rf"at work on {runs_dir} already \(process {os.getpid()}\)"):
        create_server(ServeConfig(runs_dir=runs_dir))
    assert first.get("/api/queue").status_code == 200
    assert make_client().get("/api/queue").status_code == 200  # when the first has ended

    def not_ours(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("limner.server.app.take_lock", not_ours)
    assert make_client().get("/api/runs").status_code == 200  # the runs of somebody else, to look at


def test_a_full_disk_loses_no_place_in_the_queue(
    client: TestClient, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    active = write_run(runs_dir, "active", [1.0], complete=False)
    EventWriter(active / "events.jsonl", attempt=1).write("start", 1, device="cpu", **process_identity())
    order = {"verb": "pretrain", "config": {"device": "cpu", "steps": 2}}
    assert client.post("/api/runs", json=order | {"name": "first"}).json()["queue_position"] == 1
    real, full = launcher.write_whole, True

    def write_whole(path: Path, content: str) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(launcher, "write_whole", write_whole)
    answer = client.post("/api/runs", json=order | {"name": "second"})
    assert answer.status_code == 503 and "No space left" in answer.json()["error"]["message"]
    assert not (runs_dir / "second").exists()
    EventWriter(active / "events.jsonl", attempt=1).write("complete", 1, reason="completed")
    time.sleep(2 * launcher.LOOK_SECONDS)
    assert [waiting["id"] for waiting in client.get("/api/queue").json()["queue"]] == ["first"]
    assert len([record for record in caplog.records if "could not be looked after" in record.message]) == 1
    full = False
    until(lambda: client.get("/api/runs/first").json()["status"] == "completed")
    assert client.post("/api/runs", json=order | {"name": "second"}).status_code == 201


def test_check_gives_the_command(client: TestClient, runs_dir: Path) -> None:
    order = {
        "verb": "pretrain",
        "name": "x",
        "config": {"lr": 1e-3, "sample_prompt": ["a b", "c"], "compile": False},
    }
    checked = client.post("/api/runs/check", json=order).json()
    assert checked["valid"] and checked["config"]["lr"] == 1e-3
    assert checked["argv"][:2] == ["limner", "pretrain"] and "'a b'" in checked["command"]
    assert not list(runs_dir.glob("x"))


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        ("pretrain", {"sample_prompt": ("Once", "a b"), "lr": 1e-5, "compile": True, "save": True, "name": "n"}),
        ("pretrain", {"compile": False, "context_length": 64, "report_to": ("tensorboard",), "threads": 1}),
        ("train", {"dataset": ("a", "b"), "lora": False, "freeze_vision": False, "sample": 10}),
        ("train", {"dataset": ("a", "b"), "dataset_weights": (0.5, 1.5), "augment": True}),
    ],
)
def test_the_command_line_means_the_same_settings(verb: str, settings: dict[str, Any]) -> None:
    from limner.cli.parse import parse
    from limner.config import command_line
    from limner.server.verbs import RUN_CONFIGS

    config = RUN_CONFIGS[verb].model_validate(settings)
    argv = command_line(verb, config)
    assert argv[:2] == ["limner", verb]
    assert parse(RUN_CONFIGS[verb], argv[2:], "limner") == config


@pytest.mark.parametrize(
    ("verb", "settings", "stem"),
    [
        ("pretrain", {"corpus": "tiny"}, "pretrain-nano-tiny"),
        ("pretrain", {"corpus": "texts/my book.txt", "config": "small"}, "pretrain-small-my-book"),
        ("train", {"dataset": ["flickr8k", "someone/photos"]}, "train-flickr8k+photos"),
        ("train", {"dataset": ["x" * 99, "y" * 500]}, "train-" + "x" * 60),
        ("train", {}, "train"),
        ("demo", {}, "demo-scenes"),
    ],
)
def test_a_run_without_a_name_is_named_as_its_verb_names_it(
    client: TestClient,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    settings: dict[str, Any],
    stem: str,
) -> None:
    from limner.server.verbs import RUN_CONFIGS
    from limner.training.opening import open_run

    monkeypatch.setattr(time, "strftime", lambda *_: "DATE")
    checked = client.post("/api/runs/check", json={"verb": verb, "config": settings}).json()
    assert checked["config"]["name"] == f"{stem}-DATE"
    config = RUN_CONFIGS[verb].model_validate(settings | {"runs_dir": runs_dir})
    for name in (f"{stem}-DATE", f"{stem}-DATE-2"):
        opened = open_run(verb, config, config.subject())
        opened.close()
        assert opened.run.name == name
    checked = client.post("/api/runs/check", json={"verb": verb, "config": settings}).json()
    assert checked["config"]["name"] == f"{stem}-DATE-3"


def test_schemas_and_presets(client: TestClient) -> None:
    schemas = client.get("/api/schemas").json()
    assert schemas["pretrain"]["properties"]["lr"]["description"] == "Peak learning rate."
    assert schemas["pretrain"]["properties"]["lr"]["default"] == 3e-4
    for preset in client.get("/api/presets").json()["presets"]:
        body = {"verb": preset["verb"], "config": preset["config"]}
        checked = client.post("/api/runs/check", json=body).json()
        assert checked["valid"], checked
    from limner.models.gpt import PRESETS

    presets = client.get("/api/presets").json()["presets"]
    told = {(preset["verb"], preset["name"]): preset["description"] for preset in presets}
    assert all(told.values())
    for name, shape in PRESETS.items():
        size = f"{shape.num_layers} layers, {shape.width:,} wide, {shape.context_length:,} tokens of context"
        assert told["pretrain", name].startswith(size)
    assert "tiny" in [corpus["name"] for corpus in client.get("/api/corpora").json()["corpora"]]


def test_a_name_that_is_taken_is_told_before_the_start(client: TestClient, runs_dir: Path) -> None:
    write_run(runs_dir, "taken", [1.0])
    told = {
        name: client.post("/api/runs/check", json={"verb": "pretrain", "name": name, "config": {}}).json()
        for name in ("taken", "free", None)
    }
    assert [told[name]["valid"] for name in told] == [False, True, True]
    assert told["taken"]["problems"] == [{"field": "name", "message": "There is a run named 'taken' already."}]


def test_data_sets_are_listed_once_however_many_ask(client: TestClient) -> None:
    words = ["import json, time", "time.sleep(0.5)", "print(json.dumps({'name': 'scenes', 'about': 'Drawn.'}))"]
    client.app.state.launcher.command = [sys.executable, "-c", "; ".join(words)]  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as asking:
        answers = list(asking.map(lambda _: client.get("/api/datasets").json()["datasets"], range(3)))
    answers.append(client.get("/api/datasets").json()["datasets"])
    assert [[source["name"] for source in sources] for sources in answers] == [["scenes"]] * 4
