"""Servers to test: one in this process, and real ones in processes of their own, both with fakes behind them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_process import BEARER, FAKE_TRAINER, FAKE_WORKER, TOKEN, ServerProcess
from starlette.testclient import TestClient

from limner.config.serve import ServeConfig
from limner.server.app import create_server


@pytest.fixture
def runs_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "runs"
    folder.mkdir()
    yield folder
    for path in folder.glob("*/launch.json"):  # trainers outlive servers, but not tests
        launch = json.loads(path.read_text())
        if launch["returncode"] is None and psutil.pid_exists(launch["pid"]):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launch["pid"], signal.SIGKILL)


@pytest.fixture
def make_client(runs_dir: Path) -> Iterator[Callable[..., TestClient]]:
    """``make_client(**settings)``: the whole application, guard included, in this process; it ends the last one."""
    opened: list[TestClient] = []

    def make(headers: dict[str, str] | None = None, **settings: Any) -> TestClient:
        while opened:  # a folder has one server
            opened.pop().__exit__(None, None, None)
        config = ServeConfig(runs_dir=runs_dir, token=TOKEN, **settings)
        server = create_server(config, FAKE_TRAINER, FAKE_WORKER)
        client = TestClient(
            server.application,  # type: ignore[arg-type]
            base_url="http://127.0.0.1:8000",
            headers=BEARER if headers is None else headers,
            follow_redirects=False,
        )
        client.app = server.app
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """Signed in."""
    return make_client()


@pytest.fixture
def serve(runs_dir: Path) -> Iterator[Callable[..., ServerProcess]]:
    """``serve(FAKE_STEPS=..., ...)``: a real server; the fake trainers that it starts take these settings."""
    servers: list[ServerProcess] = []

    def make(**fake: Any) -> ServerProcess:
        servers.append(ServerProcess(runs_dir, {f"LIMNER_{name}": str(value) for name, value in fake.items()}))
        return servers[-1]

    yield make
    for server in servers:
        if server.process.poll() is None:
            server.kill(signal.SIGTERM)
