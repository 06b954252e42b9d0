"""A server process, runs for it to show, and patience: what the server's tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from limner.runs import EventWriter, create_run

HERE = Path(__file__).parent
TOKEN = "test-token-0123456789"
PATIENCE = 60.0
"""Seconds that a test waits for what takes a moment: a busy machine takes many."""
BEARER = {"authorization": f"Bearer {TOKEN}"}
FAKE_TRAINER = [sys.executable, str(HERE / "fake_trainer.py")]
FAKE_WORKER = [sys.executable, str(HERE / "fake_worker.py")]


class ServerProcess:
    """``serve_fake.py`` in a process of its own; can be killed and started again on the same port."""

    def __init__(self, runs_dir: Path, env: dict[str, str] | None = None) -> None:
        self.runs_dir, self.port = runs_dir, 0
        self.env = {**os.environ, **(env or {})}
        self.start()

    def start(self) -> None:
        argv = [sys.executable, str(HERE / "serve_fake.py"), "--runs-dir", str(self.runs_dir), "--token", TOKEN]
        self.process = subprocess.Popen(
            [*argv, "--port", str(self.port)], stdout=subprocess.PIPE, text=True, env=self.env
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.split("127.0.0.1:")[1].split("/")[0])
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=BEARER, timeout=PATIENCE)
        until(lambda: self._answers())

    def _answers(self) -> bool:
        try:
            return self.http.get("/api/health").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, status: int = 202) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def kill(self, with_signal: int = signal.SIGKILL) -> None:
        self.process.send_signal(with_signal)
        self.process.wait(PATIENCE)


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Waits for something to become true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come true within {seconds} s")
        time.sleep(0.03)
    return found


def write_run(runs_dir: Path, name: str, losses: list[float], complete: bool = True) -> Path:
    """A run that has logged these losses, by a process that is this one."""
    from limner.runs.state import process_identity

    run = create_run(runs_dir, name, "pretrain", {"lr": 3e-4})
    writer = EventWriter(run.events_path)
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=len(losses), **process_identity())
    for step, loss in enumerate(losses, 1):
        writer.write("metrics", step, loss=loss, learning_rate=1e-3, tokens=step * 8)
    if complete:
        writer.write("complete", len(losses), reason="completed")
    writer.close()
    return run.path
