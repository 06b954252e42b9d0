"""A proxy cuts the socket again and again, the server is killed: the page holds every event once."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Server, free_port, serve, tab
from playwright.sync_api import expect

from limner.runs import EventWriter, Run, create_run
from limner.runs.state import process_identity

EVENTS = 10_000
CUTS = 20


class Proxy:
    """Forwards TCP to a server. `cut` ends every WebSocket that is open, as a bad network does: without a word."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.sockets: list[socket.socket] = []
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        victims, self.sockets = self.sockets, []
        for victim in victims:
            with contextlib.suppress(OSError):  # gone already
                victim.shutdown(socket.SHUT_RDWR)
        return len(victims)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            first = client.recv(65536)
            server = socket.create_connection(("127.0.0.1", self.target))
            if first.startswith(b"GET /ws/"):
                self.sockets.append(client)
            server.sendall(first)
        except OSError:
            client.close()
            return
        threading.Thread(target=pump, args=(server, client), daemon=True).start()
        pump(client, server)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one side has gone: the other is told so below
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.listener.close()
    proxy.cut()


def write(writer: EventWriter, count: int) -> None:
    for _ in range(count):
        step = writer.seq
        writer.write("metrics", step, loss=4.0 / step, tokens=16 * step)


def test_twenty_cuts_in_ten_thousand_events(chromium: Any, server: Server, proxy: Proxy) -> None:
    run = create_run(server.runs, "cut", "pretrain", {"lr": 1e-3})
    writer = EventWriter(run.events_path)
    identity = process_identity()
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=EVENTS, **identity)
    with tab(chromium, replace(server, port=proxy.port)) as page:
        page.goto(f"http://127.0.0.1:{proxy.port}/runs/cut")
        # Event 1 was there when the page opened and came with the run itself; the socket tells all others.
        page.wait_for_function("() => window.limner?.held().connection === 'live'")
        for cut in range(1, CUTS + 1):
            burst = (EVENTS - 2) // CUTS // 2
            write(writer, burst)
            assert proxy.cut() == 1
            write(writer, burst)
            page.wait_for_function(
                "cut => window.limner.held().cuts === cut && window.limner.held().connection === 'live'", arg=cut
            )
        write(writer, EVENTS - 1 - writer.seq)
        writer.write("complete", writer.seq, reason="completed", metrics={}, interrupted=False)
        page.wait_for_function("last => window.limner.held().ranges.at(-1)?.[1] === last", arg=EVENTS)
        held = page.evaluate("window.limner.held()")
        assert held["ranges"] == [[2, EVENTS]], json.dumps(held)
        assert held["count"] == EVENTS - 1
        assert held["duplicates"] == 0
        assert held["cuts"] == CUTS
        # And the charts drew them: the cursor stands on the last metrics event, one before the end.
        page.wait_for_function(
            "text => document.querySelector('[data-chart=loss] [role=slider]').ariaValueText.includes(text)",
            arg=f"step {EVENTS - 2:,}:",
        )


def test_a_killed_server_comes_back(chromium: Any, tmp_path: Path) -> None:
    """The trainer never notices; the page goes on where it was, with the whole curve and working buttons."""
    runs = tmp_path / "runs"
    runs.mkdir()
    server = serve(runs)
    server.train("on-its-own", "--fake-steps", 100_000, "--fake-interval", 0.02)
    try:
        with tab(chromium, server) as page:
            page.get_by_role("link", name="on-its-own").click()
            page.wait_for_function("() => (window.limner?.held().ranges[0]?.[1] ?? 0) > 40")
            server.process.kill()
            server.process.wait()
            expect(page.locator(".connection.lost")).to_be_visible()
            step = len(Run(runs / "on-its-own").events())
            server.process = serve(runs, server.port).process
            page.wait_for_function("least => window.limner.held().ranges[0][1] > least", arg=step + 20)
            held = page.evaluate("window.limner.held()")
            assert len(held["ranges"]) == 1
            assert held["duplicates"] == 0
            page.get_by_role("button", name="Pause").click()
            expect(page.locator(".run-header .pill")).to_have_text("paused")
    finally:
        for process in [server.process, *server.trainers]:
            process.kill()
            process.wait()


def test_what_was_opened_without_a_server_is_there_when_it_is_back(chromium: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    server = serve(runs)
    server.train("ended", "--fake-steps", 40, "--fake-interval", 0.002, wait=True)
    try:
        with tab(chromium, server) as page, tab(chromium, server) as other:
            for each in (page, other):
                each.goto(f"{server.url}/runs/ended/settings")
                each.wait_for_function("() => window.limner?.held().connection === 'live'")
            server.process.kill()
            server.process.wait()
            for each, view in ((page, "Samples"), (other, "Log")):
                each.get_by_role("link", name=view, exact=True).click()
            expect(page.get_by_role("alert")).to_contain_text("The samples cannot be read.")
            expect(other.get_by_role("alert")).to_contain_text("The journal cannot be read.")
            server.process = serve(runs, server.port).process
            expect(page.locator("th.chosen")).to_have_text("40")
            expect(other.locator(".journal li.complete")).to_be_visible()
            expect(other.get_by_role("alert")).to_have_count(0)
    finally:
        server.process.kill()
        server.process.wait()
