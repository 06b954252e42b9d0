"""The server and the tabs of the page's tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "src" / "limner" / "server" / "page" / "index.html"
SERVE = ROOT / "tests" / "server" / "serve_fake.py"
TRAINER = ROOT / "tests" / "server" / "fake_trainer.py"
TOKEN = "token-of-the-page-tests"
PATIENCE_MS = 60_000
"""How long a test waits for what takes a moment: a busy machine takes many."""
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
CHROMIUM += ["--disable-component-update", "--disable-sync"]


@dataclass
class Server:
    """A running server. ``trainers``: the runs that a test began beside it, as in a terminal."""

    runs: Path
    port: int
    process: subprocess.Popen[bytes]
    trainers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str) -> Any:
        """The server's answer to a script."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        data = b"{}" if method == "POST" else None
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def train(self, name: str, *arguments: object, verb: str = "pretrain", wait: bool = False) -> None:
        """Begins a fake run; ``wait``: until it has ended."""
        words = [
            sys.executable,
            str(TRAINER),
            verb,
            "--runs-dir",
            str(self.runs),
            "--name",
            name,
            *map(str, arguments),
        ]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.trainers.append(process)
        if wait:
            process.wait(120)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def serve(runs: Path, port: int | None = None) -> Server:
    """Starts a server on these runs and waits until it answers."""
    port = port or free_port()
    log = open(runs.parent / f"serve-{port}.txt", "wb")  # noqa: SIM115  the server's for as long as it lives
    words = [sys.executable, str(SERVE), "--runs-dir", str(runs), "--port", str(port), "--token", TOKEN]
    environment = {**os.environ, "LIMNER_FAKE_INTERVAL": "0.03"}
    server = Server(runs, port, subprocess.Popen(words, stdout=log, stderr=log, env=environment))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{server.url}/api/health", timeout=1).close()
            return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    server.process.kill()
    raise AssertionError((runs.parent / f"serve-{port}.txt").read_text())


class tab:
    """A tab of its own context, signed in; ``requests`` lists what it asked for."""

    def __init__(self, chromium: Any, server: Server, **settings: Any) -> None:
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, **settings)
        self.context.set_default_timeout(PATIENCE_MS)
        self.server = server
        self.problems: list[str] = []

    def __enter__(self) -> Any:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._listen)
        page.goto(f"{self.server.url}/?token={TOKEN}")
        return page

    def _listen(self, message: Any) -> None:
        # A cut connection and a refusal are the server's to tell; the browser logs them as well.
        if (
            message.type == "error"
            and "Failed to load resource" not in message.text
            and "WebSocket" not in message.text
        ):
            self.problems.append(message.text)

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.problems == []
