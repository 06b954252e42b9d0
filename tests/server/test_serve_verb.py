"""The verb: what it prints, which port it takes, what it refuses; and recordings."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from server_process import FAKE_TRAINER, write_run
from starlette.testclient import TestClient

from limner.cli.serve import listen
from limner.runs import Run
from limner.server import recording


def test_a_port_in_use_gives_the_next_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with listen("127.0.0.1", port) as listener:
            assert port < listener.getsockname()[1] <= port + 100
    with pytest.raises(OSError, match="--host"):
        listen("203.0.113.7", 8000)  # nobody's address


def test_the_printed_address_opens_the_page(runs_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        argv = [sys.executable, "-m", "limner", "serve", "--runs-dir", str(runs_dir), "--port", str(port)]
        process = subprocess.Popen(
            [*argv, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            address = process.stdout.readline().split()[-1]
            assert process.stderr.readline().startswith(f"Port {port} is in use; taking ")
            token = (runs_dir / ".server" / "token").read_text()
            assert address.startswith("http://127.0.0.1:") and address.endswith(f"/?token={token}")
            with httpx.Client(follow_redirects=True) as client:
                page = client.get(address)
                assert page.status_code == 200 and "token" not in str(page.url)
                nothing = {"runs": [], "active": [], "left_out": []}
                assert client.get(address.split("/?")[0] + "/api/runs").json() == nothing
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, 130)


def test_an_address_that_is_not_ours_is_one_sentence(runs_dir: Path) -> None:
    argv = [sys.executable, "-m", "limner", "serve", "--no-browser", "--runs-dir", str(runs_dir)]
    done = subprocess.run([*argv, "--host", "203.0.113.7"], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot listen" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_recordings_are_small_whole_and_only_to_be_looked_at(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient]
) -> None:
    argv = [*FAKE_TRAINER, "train", "--runs-dir", str(tmp_path / "made"), "--name", "shown", "--steps", "300"]
    subprocess.run([*argv, "--fake-interval", "0", "--fake-spike-at", "100"], check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setattr(recording, "RECORDED", tmp_path / "recorded")
    folder = recording.record(Run(tmp_path / "made" / "shown"), points=50)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert 50 <= kinds.count("metrics") <= 100 and kinds.count("validation") == 15
    assert not any({"host", "pid"} & event.keys() for event in events)
    monkeypatch.setattr("limner.server.app.RECORDED", tmp_path / "recorded")
    write_run(runs_dir, "own", [1.0])
    client = make_client(demo=True)
    runs = {run["id"]: run for run in client.get("/api/runs").json()["runs"]}
    assert runs["shown"]["recorded"] and runs["shown"]["actions"] == [] and runs["shown"]["status"] == "completed"
    assert not runs["own"]["recorded"]
    probe = client.get("/api/runs/shown/samples").json()["probes"][0]
    assert client.get(f"/api/runs/shown/samples/{probe['image']}").status_code == 200
    for answer in (
        client.delete("/api/runs/shown"),
        client.post("/api/runs/shown/resume"),
        client.patch("/api/runs/shown", json={"pinned": True}),
    ):
        assert (answer.status_code, answer.json()["error"]["state"]) == (409, "recorded")
    assert [run["id"] for run in make_client().get("/api/runs").json()["runs"]] == ["own"]
    with pytest.raises(ValueError, match="not complete"):
        recording.record(Run(write_run(runs_dir, "half", [1.0], complete=False)), points=50)
    monkeypatch.setattr(recording, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="fewer --points"):
        recording.record(Run(tmp_path / "made" / "shown"), points=50)
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[0])  # the earlier one stays
