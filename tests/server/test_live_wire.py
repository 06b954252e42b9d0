"""The WebSocket: every event once and in order, whatever the wire does; a slow client costs nobody anything."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_process import BEARER, PATIENCE, ServerProcess, until, write_run
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as _connect

from limner.runs import EventWriter


def connect(address: str, **options: Any) -> ClientConnection:
    return _connect(address, legacy=True, **options)


def watch(address: str, run: str, after_seq: int = 0) -> ClientConnection:
    wire = connect(f"{address}/ws/runs/{run}", additional_headers=BEARER, max_size=None, compression=None)
    wire.send(json.dumps({"type": "subscribe", "after_seq": after_seq}))
    return wire


def receive(wire: ClientConnection, kind: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """The next message of this type."""
    deadline = time.monotonic() + seconds
    while True:
        message = json.loads(wire.recv(max(0.01, deadline - time.monotonic())))
        if message["type"] == kind:
            return message


class CuttingProxy:
    """Passes bytes on between clients and the server; cuts all connections in mid-message, ``most`` times."""

    def __init__(self, port: int, most: int) -> None:
        self.target, self.most, self.cuts = port, most, 0
        self.random = random.Random(5)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.target))
            allowed = self.random.randrange(20_000, 90_000) if self.cuts < self.most else 1 << 60
            threading.Thread(target=self._pass, args=(near, far, 1 << 60), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, allowed), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, allowed: int) -> None:
        passed = 0
        try:
            while data := source.recv(4096):
                sink.sendall(data)
                passed += len(data)
                if passed > allowed:
                    self.cuts += 1
                    break
        except OSError:
            passed = 0  # the other direction has ended it
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_wire_cut_twenty_times_loses_and_doubles_nothing(
    serve: Callable[..., ServerProcess], runs_dir: Path
) -> None:
    server = serve()
    folder = write_run(runs_dir, "r", [], complete=False)
    proxy = CuttingProxy(server.port, most=20)

    def train() -> None:
        writer = EventWriter(folder / "events.jsonl", attempt=1)
        for step in range(2, 10_001):
            writer.write("metrics", step, loss=1.0 / step)
            if step % 25 == 0:
                time.sleep(0.01)
        writer.close()

    trainer = threading.Thread(target=train)
    held: list[int] = []
    trainer.start()
    while len(held) < 10_000:
        try:
            # As the page does: connect again, and ask for what comes after the last number held.
            with watch(f"ws://127.0.0.1:{proxy.port}", "r", len(held)) as wire:
                while len(held) < 10_000:
                    message = receive(wire, "events")
                    assert message["from"] == (held[-1] + 1 if held else 1)
                    seqs = [event["seq"] for event in message["events"]]
                    assert (seqs[0], seqs[-1]) == (message["from"], message["to"])
                    held += seqs
        except (WebSocketException, OSError, EOFError):
            continue
    trainer.join()
    assert proxy.cuts == 20
    assert held == list(range(1, 10_001))


def test_order_hello_events_state(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve()
    folder = write_run(runs_dir, "r", [3.0, 2.0], complete=False)
    with watch(server.address, "r") as wire:
        hello = json.loads(wire.recv(PATIENCE))
        assert (hello["type"], hello["last_seq"], hello["status"]) == ("hello", 3, "running")
        events = json.loads(wire.recv(PATIENCE))
        assert (events["type"], events["from"], events["to"]) == ("events", 1, 3)
        assert [event["type"] for event in events["events"]] == ["start", "metrics", "metrics"]
        assert receive(wire, "state")["run"]["status"] == "running"
        writer = EventWriter(folder / "events.jsonl", attempt=1)
        writer.write("paused", 2, reason="by hand")
        assert receive(wire, "events")["events"][0]["reason"] == "by hand"
        assert receive(wire, "state")["run"]["actions"][0] == "resume"
        writer.write("complete", 2, reason="completed")
        while (told := receive(wire, "state")["run"]["status"]) == "paused":
            continue
        assert told == "completed"
        wire.send(json.dumps({"type": "subscribe", "after_seq": 2}))  # again, from elsewhere
        assert receive(wire, "hello")["after_seq"] == 2
        assert receive(wire, "events")["from"] == 3
        writer.close()


def test_batches_are_at_least_a_tenth_of_a_second_apart(
    serve: Callable[..., ServerProcess], runs_dir: Path
) -> None:
    server = serve()
    folder = write_run(runs_dir, "r", [], complete=False)
    with watch(server.address, "r") as wire:
        receive(wire, "events")
        writer = EventWriter(folder / "events.jsonl", attempt=1)
        batches, step = 0, 0
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 2.0 or not batches:
            step += 1
            writer.write("metrics", step, loss=1.0)
            time.sleep(0.004)
            try:
                message = json.loads(wire.recv(0))
            except TimeoutError:
                continue
            if message["type"] == "events":
                batches += 1
        writer.close()
    assert batches <= passed / 0.1 + 2, (batches, passed)


def test_a_large_gap_is_a_snapshot(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve()
    folder = write_run(runs_dir, "r", [], complete=False)
    bulk(folder, 2, 25_001)
    with watch(server.address, "r", 3) as wire:
        snapshot = receive(wire, "snapshot")
        assert (snapshot["after_seq"], snapshot["to"]) == (3, 25_001)
        assert snapshot["run"]["step"] == 25_001
        bulk(folder, 25_002, 25_003)
        assert receive(wire, "events")["from"] == 25_002
    with watch(server.address, "r", 15_000) as wire:  # 10,001 missing: one by one
        assert receive(wire, "events")["from"] == 15_001


def bulk(folder: Path, first: int, last: int, ballast: int = 0) -> None:
    line = '{"seq":%d,"attempt":1,"step":%d,"time":1.7e9,"type":"metrics","loss":2.5,"x":"' + "x" * ballast + '"}\n'
    with open(folder / "events.jsonl", "a") as file:
        file.writelines(line % (k, k) for k in range(first, last + 1))


def test_a_frozen_client_costs_no_memory_and_delays_nobody(
    serve: Callable[..., ServerProcess], runs_dir: Path
) -> None:
    server = serve()
    folder = write_run(runs_dir, "r", [], complete=False)
    bulk(folder, 2, 2000)
    with watch(server.address, "r") as awake:
        seen, total, slowest = receive(awake, "events")["to"], 2000, 0.0

        def burst() -> float:
            """2,000 events of 1 kB; the seconds until the client that is awake has them."""
            nonlocal seen, total
            bulk(folder, total + 1, total + 2000, ballast=1000)
            total += 2000
            began = time.monotonic()
            while seen < total:
                seen = receive(awake, "events")["to"]
            return time.monotonic() - began

        for _ in range(4):
            burst()  # what reading and telling take at all
        # Frozen: a raw socket that subscribes and then reads nothing, with a small window.
        frozen = []
        for _ in range(5):
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", server.port))
            frozen.append(connect(f"{server.address}/ws/runs/r", additional_headers=BEARER, sock=raw, max_queue=1))
            frozen[-1].send(json.dumps({"type": "subscribe", "after_seq": 0}))
        time.sleep(0.5)
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        for _ in range(15):  # 30 MB: far more than any socket's buffer
            slowest = max(slowest, burst())
        grown = process.memory_info().rss - before
        assert grown < 10e6, f"{grown / 1e6:.1f} MB"
        assert slowest < 20  # one that waited for a frozen client would wait for a minute
        # Thawed, one is told to subscribe again rather than sent all of what it missed.
        told = until(lambda: thawed(frozen[0]))
        assert told in ("resync", "all")
        for wire in frozen:
            wire.socket.close()


def thawed(wire: ClientConnection) -> str | None:
    while True:
        message = json.loads(wire.recv(PATIENCE))
        if message["type"] == "resync":
            return "resync"
        if message["type"] == "events" and message["to"] >= 40_000:
            return "all"


def test_nonsense_is_answered_and_deletion_is_told(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve()
    write_run(runs_dir, "r", [1.0])
    wire = connect(f"{server.address}/ws/runs/r", additional_headers=BEARER)
    for text in (
        "{",
        "[]",
        "3",
        '{"type":"dance"}',
        '{"type":"subscribe","after_seq":-1}',
        '{"type":"subscribe","after_seq":"x"}',
    ):
        wire.send(text)
        assert json.loads(wire.recv(PATIENCE))["type"] == "error", text
    wire.send('{"type":"pong"}')
    wire.send('{"type":"subscribe","after_seq":99999999}')  # beyond the end: nothing, and no harm
    assert receive(wire, "hello")["last_seq"] == 3
    assert server.http.delete("/api/runs/r").status_code == 200
    with pytest.raises(WebSocketException):
        while True:
            wire.recv(PATIENCE)
    assert wire.close_code == 4404


def test_a_run_begun_again_under_its_name_is_told(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve()
    folder = write_run(runs_dir, "r", [3.0, 2.0])
    with watch(server.address, "r") as wire:
        begun = receive(wire, "hello")["begun"]
        assert begun == receive(wire, "events")["events"][0]["time"]
        shutil.rmtree(folder)
        write_run(runs_dir, "r", [9.0, 8.0, 7.0, 6.0, 5.0])  # longer: the old number means something in it, too
        try:
            assert receive(wire, "resync")["last_seq"] == 7
        except WebSocketException:  # the server has looked in between
            assert wire.close_code == 4404
    with watch(server.address, "r", 4) as wire:
        assert receive(wire, "hello")["begun"] > begun


def test_older_wire_needs_no_words(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    server = serve()
    with connect(f"{server.address}/ws/training", additional_headers=BEARER) as wire:
        with pytest.raises(WebSocketException):
            wire.recv(PATIENCE)
        assert wire.close_code == 4404
    write_run(runs_dir, "r", [1.0, 2.0], complete=False)
    with connect(f"{server.address}/ws/training", additional_headers=BEARER) as wire:
        assert receive(wire, "hello")["run"] == "r"
        assert receive(wire, "events")["to"] == 3
