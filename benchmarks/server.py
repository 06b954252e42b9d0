"""What the dashboard's server costs and gives: a million points, watching pages, and the trainer's share.

    python benchmarks/server.py [million watching] [--points 1000000] [--seconds 20]
    python benchmarks/server.py frozen [--seconds 300]      a whole Chromium is stopped (SIGSTOP), another looks on
    python benchmarks/server.py browser [--seconds 30]      what a Chromium uses that watches 7 and 50 events/s
    python benchmarks/server.py trainer [--seconds 150]     a real trainer, with and without the page, in turn

Each figure is of a real server (`limner serve`) in a process of its own, over HTTP and WebSocket, on this machine.
The last three need a Chromium, playwright and the built page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
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

from limner.runs import EventReader, EventWriter, create_run
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
        looked_at = answer.json()["tables"]["metrics"]["total"]
        rest, _ = timed(lambda: client.get("/api/runs/million/events?limit=1"))  # waits for all of the log
        answer = client.get(query, headers=plain)
        assert not answer.json()["first_look"] and answer.json()["tables"]["metrics"]["total"] == points
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
            "points_of_that_first_look": looked_at,
            "all_points_of_a_cold_server_s": round(cold + rest, 2),
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
            numbers = {"loss": 2 + step % 7 / 10, "gradient_norm": 0.5 + step % 5 / 10, "learning_rate": 3e-4}
            numbers |= {"tokens": step * 8, "epoch": step / 10_000, "tokens_per_second": 9000.0}
            numbers |= {"memory_mb": 900.5, "mfu": 0.3}
            self.writer.write("metrics", step, seconds=seconds, **numbers)
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
            wire.close()
        return round(100 * (after.user + after.system - before.user - before.system) / passed, 2)


@contextmanager
def browsers(count: int) -> Iterator[list[tuple[Any, psutil.Process]]]:
    """So many Chromiums, each with its first process."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        found: list[tuple[Any, psutil.Process]] = []
        for _ in range(count):
            before = set(psutil.Process().children(recursive=True))
            browser = playwright.chromium.launch(executable_path=path, args=flags)
            new = [process for process in psutil.Process().children(recursive=True) if process not in before]
            found.append((browser, next(p for p in new if p.parent() not in new and "--headless" in p.cmdline())))
        yield found
        for browser, _ in found:
            browser.close()


def opened(browser: Any, client: httpx.Client, run: str) -> Any:
    """A tab that watches the run live."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{client.base_url}/runs/{run}?token={TOKEN}")
    page.wait_for_function("() => window.limner?.held().connection === 'live'", timeout=60_000)
    return page


HELD = "(window.limner.held().ranges.at(-1) ?? [0, 0])[1]"


def frozen(runs_dir: Path, seconds: float) -> dict[str, Any]:
    """The server's memory while a browser is stopped and 50 events/s come, and what another page sees of it."""
    folder = write_log(runs_dir, "frozen", 5000)
    with serving(runs_dir) as (client, server), browsers(2) as [(first, root), (second, _)]:
        trainer = Trainer(folder, 50)
        trainer.start()
        sleeper, awake = opened(first, client, "frozen"), opened(second, client, "frozen")

        def look(seconds: float) -> tuple[float, int]:
            """MB that the server has grown by at most, and the most events that the page awake was behind."""
            before, most, behind = server.memory_info().rss, 0, 0
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(2)
                seq = trainer.writer.seq
                behind = max(behind, seq - awake.evaluate(HELD))
                most = max(most, server.memory_info().rss - before)
            return round(most / 1e6, 2), behind

        time.sleep(10)
        alike = look(seconds / 5)
        processes = [root, *root.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        stopped = look(seconds)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        thawed = time.perf_counter()
        sleeper.wait_for_function(f"least => {HELD} >= least", arg=trainer.writer.seq, timeout=60_000)
        caught_up = time.perf_counter() - thawed
        held = sleeper.evaluate("window.limner.held()")
        trainer.done.set()
        trainer.join()
        return {
            "events": trainer.writer.seq,
            f"both_awake_{seconds / 5:g}_s": {"grown_mb": alike[0], "events_behind": alike[1]},
            f"one_frozen_{seconds:g}_s": {"grown_mb": stopped[0], "events_behind": stopped[1]},
            "frozen_page_caught_up_s": round(caught_up, 2),
            "frozen_page_gaps": len(held["ranges"]) - 1,
            "frozen_page_duplicates": held["duplicates"],
        }


def browser_cost(runs_dir: Path, seconds: float) -> dict[str, Any]:
    """Chromium's share of one core, in per cent and by its kinds of processes, while nobody touches the page."""
    found: dict[str, Any] = {}
    for per_second in (7, 50):
        folder = write_log(runs_dir, f"drawn-{per_second}", 5000)
        with serving(runs_dir) as (client, _), browsers(1) as [(browser, root)]:
            trainer = Trainer(folder, per_second)
            trainer.start()
            page = opened(browser, client, folder.name)
            time.sleep(6)  # loading a page is work as well, but not that of watching
            before, began = by_kind(root), time.perf_counter()
            time.sleep(seconds)
            after, passed = by_kind(root), time.perf_counter() - began
            behind = trainer.writer.seq - page.evaluate(HELD)
            trainer.done.set()
            trainer.join()
        shares = {kind: round(100 * (after[kind] - before.get(kind, 0)) / passed, 2) for kind in after}
        whole = round(sum(shares.values()), 2)
        found[f"{per_second} events/s"] = {"percent_of_a_core": whole, "of_it": shares, "events_behind": behind}
    return found


def by_kind(root: psutil.Process) -> dict[str, float]:
    """Seconds of processor time so far of a Chromium's processes, by their kind."""
    times: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        kind = next((word[7:] for word in process.cmdline() if word.startswith("--type=")), "browser")
        times[kind] = times.get(kind, 0) + busy([process])
    return times


def trainer_cost(runs_dir: Path, seconds: float) -> dict[str, Any]:
    """A real trainer's step time without anybody, with a WebSocket client, with a page in Chromium; in turn."""
    create = [sys.executable, "-m", "limner", "pretrain", "--corpus", "tiny", "--tokenizer", "byte"]
    size = ["--context-length", "128", "--width", "192", "--num-heads", "4", "--num-layers", "4"]
    size += ["--precision", "fp32", "--no-compile"]
    plan = ["--steps", "1000000", "--eval-freq", "0", "--checkpoint-freq", "0", "--schedule", "constant"]
    where = ["--runs-dir", str(runs_dir), "--name", "real", "--cache-dir", str(runs_dir.parent / "cache")]
    runs_dir.mkdir(parents=True, exist_ok=True)
    with serving(runs_dir) as (client, server), browsers(1) as [(browser, root)]:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([*create, *size, *plan, *where], stdout=quiet, stderr=quiet)
        events = runs_dir / "real" / "events.jsonl"
        while not events.is_file() or len(EventReader(events).read()) < 100:
            time.sleep(0.5)
        reader = EventReader(events)
        reader.read()
        tells: dict[str, list[list[float]]] = {"nobody": [], "socket": [], "page": []}
        used: dict[str, list[float]] = {name: [] for name in tells}
        browsing: list[float] = []
        address = str(client.base_url).replace("http", "ws") + "/ws/runs/real"
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                for name in tells:
                    page = opened(browser, client, "real") if name == "page" else None
                    wire = connect(address, additional_headers=HEADERS, legacy=True) if name == "socket" else None
                    if wire is not None:
                        wire.send(json.dumps({"type": "subscribe", "after_seq": len(EventReader(events).read())}))
                        threading.Thread(target=lambda wire=wire: [None for _ in wire], daemon=True).start()
                    time.sleep(4 if page else 1)  # loading a page is work as well, but not that of watching
                    reader.read()
                    began = busy([server]), busy([root, *root.children(recursive=True)])
                    time.sleep(5)
                    used[name].append((busy([server]) - began[0]) / 5)
                    browsing.append((busy([root, *root.children(recursive=True)]) - began[1]) / 5 if page else 0)
                    times = [event["time"] for event in reader.read() if event["type"] == "metrics"]
                    tells[name].append([b - a for a, b in itertools.pairwise(times)])
                    if page is not None:
                        page.close()
                    if wire is not None:
                        wire.close()
        finally:
            process.terminate()
            process.wait(60)
        found: dict[str, Any] = {
            "steps_per_second": round(1 / statistics.median(itertools.chain(*tells["nobody"])), 1)
        }
        for name, rounds in tells.items():
            pairs = zip(rounds, tells["nobody"], strict=True)
            ratios = [statistics.median(mine) / statistics.median(nobodys) for mine, nobodys in pairs]
            found[name] = {
                "ms_a_step": round(1000 * statistics.median(itertools.chain(*rounds)), 3),
                "slower_by_percent": round(100 * (statistics.median(ratios) - 1), 2),
                "of_rounds": [round(100 * (ratio - 1), 1) for ratio in ratios],
                "server_percent_of_a_core": round(100 * statistics.mean(used[name]), 2),
            }
        found["browser_percent_of_a_core"] = round(100 * statistics.mean(filter(None, browsing)), 1)
        return found


def busy(processes: list[psutil.Process]) -> float:
    """Seconds of processor time so far."""
    times = [process.cpu_times() for process in processes]
    return sum(time.user + time.system for time in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = ("million", "watching", "frozen", "browser", "trainer")
    parser.add_argument("modes", nargs="*", choices=modes, default=["million", "watching"])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "million" in args.modes:
            found |= million(folder / "large", args.points)
        if "watching" in args.modes:
            shares = {}
            for pages, per_second in ((0, 20), (1, 2), (1, 20), (1, 50), (8, 50)):
                share = watching(folder / "live", pages, per_second, args.seconds or 20)
                shares[f"{pages} pages, {per_second} events/s"] = share
            found["server_cpu_percent_of_a_core"] = shares
        if "frozen" in args.modes:
            found["frozen"] = frozen(folder / "frozen", args.seconds or 300)
        if "browser" in args.modes:
            found["browser"] = browser_cost(folder / "browser", args.seconds or 30)
        if "trainer" in args.modes:
            found["trainer"] = trainer_cost(folder / "trainer", args.seconds or 150)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
