"""Files vanish while the server looks at them: trainers rename and prune, people delete. It is never a 500."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fake_trainer import SAFETENSORS
from server_process import BEARER, ServerProcess, write_run
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from limner.runs import EventWriter, Run, list_runs, send_command

SECONDS = 5.0


def busy_trainer(folder: Path, done: threading.Event) -> None:
    """What a trainer does to its folder, as often as it can: checkpoints come and go, the model is replaced."""
    run = Run(folder)
    writer = EventWriter(run.events_path, attempt=1)
    for step in itertools.count(2):
        if done.is_set():
            return
        name = f"step-{step:06d}"
        aside = run.checkpoints_path / f".{name}"
        aside.mkdir()
        files = {"model.safetensors": {"bytes": len(SAFETENSORS), "sha256": "abc"}}
        manifest = json.dumps({"step": step, "metrics": {"eval_loss": 2.0}, "files": files})
        (aside / "model.safetensors").write_bytes(SAFETENSORS)
        (aside / "manifest.json").write_text(manifest)
        aside.rename(run.checkpoints_path / name)
        writer.write("metrics", step, loss=1.0)
        writer.write("checkpoint", step, path=str(run.checkpoints_path / name), best=True, metrics={})
        for old in run.checkpoints()[:-2]:
            with contextlib.suppress(FileNotFoundError):  # a person was quicker
                old.rename(old.with_name("." + old.name))
            shutil.rmtree(old.with_name("." + old.name), ignore_errors=True)
        model = run.path / ".model"
        (model / "deeper").mkdir(parents=True)
        (model / "config.json").write_text('{"model_type": "gpt2"}')
        for place in (model, model / "deeper"):
            (place / "model.safetensors").write_bytes(SAFETENSORS)
        shutil.rmtree(run.model_path, ignore_errors=True)
        model.rename(run.model_path)
        (run.samples_path / "a.png").write_bytes(b"\x89PNG")
        os.replace(run.samples_path / "a.png", run.samples_path / "b.png")
        (run.samples_path / "b.png").unlink()


def brief_runs(runs_dir: Path, done: threading.Event) -> None:
    """Runs of one name that are made, written and deleted, over and over, as by `limner runs delete`."""
    while not done.is_set():
        with contextlib.suppress(FileNotFoundError):  # the server was asked to delete it, and was quicker
            folder = write_run(runs_dir, "brief", [1.0, 2.0])
            (folder / "log.txt").write_text("a line\n")
            (folder / "demo.json").write_text("{}")
            (folder / "checkpoints" / "step-000002").mkdir()
            time.sleep(0.004)
            Run(folder).delete()


def ask(server: ServerProcess, done: threading.Event, told: Counter[tuple[str, int]]) -> None:
    """Everything that is told of a run's files, of both runs, again and again."""
    paths = [
        "/api/runs",
        "/api/models",
        "/api/queue",
        *(
            f"/api/runs/{run}{rest}"
            for run in ("busy", "brief")
            for rest in (
                "",
                "/config",
                "/events?newest=true&limit=5",
                "/series",
                "/samples",
                "/log",
                "/log?offset=1",
            )
        ),
        *(f"/api/runs/{run}{rest}" for run in ("busy", "brief") for rest in ("/report", "/checkpoints")),
        "/api/runs/busy/samples/a.png",
        "/api/runs/busy/samples/b.png",
    ]
    with httpx.Client(base_url=server.http.base_url, headers=BEARER, timeout=60) as client:

        def note(kind: str, answer: httpx.Response) -> httpx.Response:
            told[kind, answer.status_code] += 1
            return answer

        while not done.is_set():
            for path in paths:
                note(path, client.get(path))
            for checkpoint in client.get("/api/runs/busy/checkpoints").json()["checkpoints"][:1]:
                path = f"/api/runs/busy/checkpoints/{checkpoint['name']}"
                note("load", client.post(path + "/load"))
                note("delete", client.delete(path))
            note("label", client.patch("/api/runs/brief", json={"pinned": True}))
            note("note", client.post("/api/runs/brief/note", json={"text": "x"}))
            note("delete run", client.delete("/api/runs/brief"))


def watch(server: ServerProcess, done: threading.Event, closed: Counter[int | None]) -> None:
    """The brief run by WebSocket, until it is deleted under our eyes; then again."""
    while not done.is_set():
        with connect(f"{server.address}/ws/runs/brief", additional_headers=BEARER, legacy=True) as wire:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                wire.send('{"type":"subscribe","after_seq":0}')
                deadline = time.monotonic() + 2
                while time.monotonic() < deadline:
                    wire.recv(0.5)
            closed[wire.close_code] += 1


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_nothing_that_vanishes_is_a_500(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    folder = write_run(runs_dir, "busy", [1.0], complete=False)
    server = serve()
    done = threading.Event()
    told: Counter[tuple[str, int]] = Counter()
    closed: Counter[int | None] = Counter()
    threads = [
        threading.Thread(target=busy_trainer, args=(folder, done)),
        threading.Thread(target=brief_runs, args=(runs_dir, done)),
        *(threading.Thread(target=ask, args=(server, done, told)) for _ in range(2)),
        threading.Thread(target=watch, args=(server, done, closed)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    done.set()
    for thread in threads:
        thread.join(60)
    assert not {kind: count for kind, count in told.items() if kind[1] >= 500}
    # A run that is there is there, however it changes.
    steady = {
        kind: count for kind, count in told.items() if kind[0].startswith("/api/runs/busy") and kind[1] != 200
    }
    assert {path for path, _ in steady} <= {"/api/runs/busy/samples/a.png", "/api/runs/busy/samples/b.png"}
    assert {status for (path, status) in told if path in ("/api/runs", "/api/models", "/api/queue")} == {200}
    assert set(closed) <= {None, 1000, 4404}  # 1011 would be the server's own failure
    assert not list(runs_dir.glob(".*brief*")) and not list((folder / "checkpoints").glob(".*"))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_terminal_lists_runs_that_vanish(tmp_path: Path) -> None:
    done = threading.Event()
    write_run(tmp_path, "stays", [1.0])
    threads = [threading.Thread(target=brief_runs, args=(tmp_path, done)) for _ in range(1)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            found = list_runs(tmp_path)
            assert "stays" in [run.name for run in found]
            for run in found:
                run.state()
                run.size()
                run.checkpoints()
                run.log_tail()
                with contextlib.suppress(FileNotFoundError):  # the one thing that says "there is no such run"
                    send_command(run.path, "note", text="x")
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
