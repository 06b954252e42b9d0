"""A real headless Chromium on the built page, with the real server and a trainer that trains nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, PAGE, PATIENCE_MS, Server, serve, tab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where the browser is; skips, saying why, where there is none or the page is not built (an error in CI)."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    lacking = None
    if path is None:
        lacking = "no chromium on this machine (Debian: apt-get install chromium)"
    elif not PAGE.is_file():
        lacking = "the page is not built (make page)"
    if lacking:
        pytest.fail(lacking) if os.environ.get("CI") else pytest.skip(lacking)
    return str(path)


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Any]:
    """The browser. One a module: while it lives, playwright's event loop runs in the thread of all tests."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    api.expect.set_options(timeout=PATIENCE_MS)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, chromium_path: str) -> Iterator[Server]:
    """One server for all tests of the page; each test uses runs of its own."""
    runs = tmp_path_factory.mktemp("web") / "runs"
    runs.mkdir()
    server = serve(runs)
    yield server
    for process in [server.process, *server.trainers]:
        process.kill()
        process.wait()


@pytest.fixture
def ended(server: Server) -> Iterator[None]:
    """No run of a test is left at work: the next one would wait for its turn, and the playground begins with it."""
    yield
    for run in server.ask("GET", "/api/runs")["active"]:
        server.ask("POST", f"/api/runs/{run}/kill")


@pytest.fixture
def page(chromium: Any, server: Server) -> Iterator[Any]:
    """A signed-in tab. Anything that the page throws or the browser refuses fails the test."""
    with tab(chromium, server) as page:
        yield page
