"""A real headless Chromium on the built page, with the real server and a trainer that trains nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "src" / "limner" / "server" / "page" / "index.html"
SERVE = ROOT / "tests" / "server" / "serve_fake.py"
TRAINER = ROOT / "tests" / "server" / "fake_trainer.py"
TOKEN = "token-of-the-page-tests"
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
CHROMIUM += ["--disable-component-update", "--disable-sync"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


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
            process.wait(30)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def serve(runs: Path) -> Server:
    """Starts a server on these runs and waits until it answers."""
    port = free_port()
    log = open(runs.parent / f"serve-{port}.txt", "wb")  # noqa: SIM115  the server's for as long as it lives
    words = [sys.executable, str(SERVE), "--runs-dir", str(runs), "--port", str(port), "--token", TOKEN]
    environment = {**os.environ, "LIMNER_FAKE_INTERVAL": "0.03"}
    server = Server(runs, port, subprocess.Popen(words, stdout=log, stderr=log, env=environment))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{server.url}/api/health", timeout=1).close()
            return server
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    server.process.kill()
    raise AssertionError((runs.parent / f"serve-{port}.txt").read_text())


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; skips, saying why, where there is none or the page is not built (an error in CI)."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    lacking = None
    if path is None:
        lacking = "no chromium on this machine (Debian: apt-get install chromium)"
    elif not PAGE.is_file():
        lacking = "the page is not built (make page)"
    if lacking:
        pytest.fail(lacking) if os.environ.get("CI") else pytest.skip(lacking)
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Server]:
    """One server for all tests of the page; each test uses runs of its own."""
    runs = tmp_path_factory.mktemp("web") / "runs"
    runs.mkdir()
    server = serve(runs)
    yield server
    for process in [server.process, *server.trainers]:
        process.kill()
        process.wait()


@pytest.fixture
def page(chromium: Any, server: Server) -> Iterator[Any]:
    """A signed-in tab. Anything that the page throws or the browser refuses fails the test."""
    with tab(chromium, server) as page:
        yield page


class tab:
    """A tab of its own context, signed in; ``requests`` lists what it asked for."""

    def __init__(self, chromium: Any, server: Server, **settings: Any) -> None:
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900}, **settings)
        self.context.set_default_timeout(8_000)
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
