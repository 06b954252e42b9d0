"""What the dashboard's server costs and gives: a million points, watching pages, and the trainer's share.

    python benchmarks/server.py [--points 1000000] [--seconds 20]

Each figure is of a real server (`limner serve`) in a process of its own, over HTTP and WebSocket, on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from websockets.sync.client import connect

from limner.runs import EventWriter, create_run
from limner.runs.state import process_identity

TOKEN = "benchmark-token-0123456789"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
METRICS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_mb", "epoch", "tokens", "mfu")
LINE = (
    '{"seq":%d,"attempt":1,"step":%d,"time":1700%06d.25,"type":"metrics","loss":2.%03d123456,'
    '"learning_rate":0.000300120451,"gradient_norm":0.5%02d391245,"epoch":%d.5,"tokens":%d000,'
    '"tokens_per_second":9012.253412,"memory_mb":900.5,"mfu":0.31234567,"seconds":{"data":0.002123,'
    '"compute":0.040123,"optimizer":0.005123,"other":0.0011},"learning_rates":{"model":0.000300120451}}\n'
)


def write_log(runs_dir: Path, name: str, points: int) -> Path:
    run = create_run(runs_dir, name, "pretrain", {})
    writer = EventWriter(run.events_path)
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=2 * points + 1, **process_identity())
    writer.close()
    with open(run.events_path, "a") as file:
        for first in range(1, points + 1, 10_000):
            steps = range(first, min(first + 10_000, points + 1))
            file.writelines([LINE % (k + 1, k, k // 10, k * 7919 % 1000, k % 100, k // 10_000, k) for k in steps])
    return run.path


@contextmanager
def serving(runs_dir: Path) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    argv = [sys.executable, "-m", "limner", "serve", "--runs-dir", str(runs_dir), "--port", "0", "--no-browser"]
    process = subprocess.Popen([*argv, "--token", TOKEN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=120)
    try:
        while True:
            try:
                client.get("/api/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield client, psutil.Process(process.pid)
    finally:
        client.close()
        process.terminate()
        process.wait(10)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def million(runs_dir: Path, points: int) -> dict[str, Any]:
    folder = write_log(runs_dir, "million", points)
    query = f"/api/runs/million/series?metrics={','.join(METRICS)}&points=600"
    plain = {"accept-encoding": "identity"}
    with serving(runs_dir) as (client, server):
        cold, answer = timed(lambda: client.get(query, headers=plain))
        assert answer.json()["tables"]["metrics"]["total"] == points
        warm = [timed(lambda: client.get(query, headers=plain))[0] for _ in range(5)]
        zooms, sizes = [], []
        for width in (points // 2, points // 10, points // 100, 2000, 200):
            for low in (1, points // 3, points - width):
                part = f"{query}&from={low}&to={low + width}"
                seconds, answer = timed(lambda part=part: client.get(part, headers=plain))
                zooms.append(seconds)
                sizes.append(len(answer.content))
        return {
            "log_mb": round((folder / "events.jsonl").stat().st_size / 1e6),
            "first_chart_of_a_cold_server_s": round(cold, 2),
            "first_chart_s": round(min(warm), 3),
            "worst_zoom_s": round(max(zooms), 3),
            "largest_payload_kb": round(max(sizes) / 1000),
            "server_memory_mb": round(server.memory_info().rss / 2**20),
        }


class Trainer(threading.Thread):
    """Writes events at a steady rate until told to stop."""

    def __init__(self, folder: Path, per_second: float) -> None:
        super().__init__(daemon=True)
        self.writer, self.pause = EventWriter(folder / "events.jsonl", attempt=1), 1 / per_second
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(self.pause):
            step = self.writer.seq
            seconds = {"data": 0.002, "compute": 0.04, "optimizer": 0.005, "other": 0.001}
            self.writer.write("metrics", step, loss=2.0, gradient_norm=0.5, tokens=step * 8, seconds=seconds)
        self.writer.close()


def watching(runs_dir: Path, pages: int, per_second: float, seconds: float) -> float:
    """The server's share of one core while so many pages watch a run live and look at the list, in per cent."""
    folder = write_log(runs_dir, f"watched-{pages}-{per_second:g}", 5000)
    with serving(runs_dir) as (client, server):
        trainer = Trainer(folder, per_second)
        wires = []
        for _ in range(pages):
            address = str(client.base_url).replace("http", "ws") + f"/ws/runs/{folder.name}"
            wire = connect(address, additional_headers=HEADERS, legacy=True)
            wire.send(json.dumps({"type": "subscribe", "after_seq": 5001}))
            threading.Thread(target=lambda wire=wire: [None for _ in wire], daemon=True).start()
            wires.append(wire)
        client.get("/api/runs")
        trainer.start()
        time.sleep(1)
        before, began = server.cpu_times(), time.perf_counter()
        while time.perf_counter() - began < seconds:
            time.sleep(2)
            for _ in range(pages):
                client.get("/api/runs")
        after, passed = server.cpu_times(), time.perf_counter() - began
        trainer.done.set()
        trainer.join()
        for wire in wires:
            wire.socket.close()
        return round(100 * (after.user + after.system - before.user - before.system) / passed, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shares = {}
        for pages, per_second in ((0, 20), (1, 2), (1, 20), (1, 50), (8, 50)):
            share = watching(Path(folder) / "live", pages, per_second, args.seconds)
            shares[f"{pages} pages, {per_second} events/s"] = share
        found = million(Path(folder) / "large", args.points) | {
            "server_cpu_percent_of_a_core": shares,
            "cores": os.cpu_count(),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
