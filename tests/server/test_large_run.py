"""A run of a million points: the first chart, a zoom, and what crosses the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from server_process import BEARER, PATIENCE, ServerProcess, until, write_run
from websockets.sync.client import connect

METRICS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_mb", "epoch", "tokens", "mfu")
LINE = (
    '{"seq":%d,"attempt":1,"step":%d,"time":1700%06d.25,"type":"metrics","loss":%s,"learning_rate":0.000300120451,'
    '"gradient_norm":0.5%02d391245,"epoch":%d.5,"tokens":%d000,"tokens_per_second":9012.25,"memory_mb":900.5,"mfu":0.3}\n'
)


def write_million(folder: Path, points: int = 1_000_000) -> int:
    """A log as a trainer writes it, with one spike and one NaN; returns the spike's step."""
    spike, nan = 654_321, 123_456
    with open(folder / "events.jsonl", "a") as file:
        for first in range(1, points + 1, 20_000):
            last = min(first + 20_000, points + 1)
            losses = [f"2.{k * 7919 % 1000:03d}123456" for k in range(first, last)]
            for step, odd in ((spike, "99.5"), (nan, '"NaN"')):
                if first <= step < last:
                    losses[step - first] = odd
            numbers = zip(range(first, last), losses, strict=True)
            file.writelines([LINE % (k + 1, k, k // 10, loss, k % 100, k // 10_000, k) for k, loss in numbers])
    return spike


def test_a_million_points(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    folder = write_run(runs_dir, "million", [], complete=False)
    spike = write_million(folder)
    server = serve()
    query = f"/api/runs/million/series?metrics={','.join(METRICS)}&points=600"
    began = time.monotonic()
    early = server.get(query)  # before the server can have read the log: a first look, all over it
    first_chart = time.monotonic() - began
    if early["first_look"]:
        assert early["range"] == [1, 1_000_000] and 5_000 < early["tables"]["metrics"]["total"] < 100_000
        told = server.get("/api/runs/million")
        assert (told["step"], told["status"], told["seq"]) == (1_000_000, "running", 0)
        with connect(f"{server.address}/ws/runs/million", additional_headers=BEARER, max_size=None) as wire:
            wire.send('{"type":"subscribe","after_seq":0}')
            kinds = [json.loads(wire.recv(PATIENCE)) for _ in range(2)]  # said once all of it is read
        assert [kind["type"] for kind in kinds] == ["hello", "snapshot"] and kinds[1]["to"] == 1_000_001
    print(f"first look: {early['first_look']}, after {first_chart:.2f} s")
    # The server indexes what it finds when it starts; a person takes a moment to open the page and the run.
    until(lambda: server.get("/api/runs")["runs"][0]["seq"] == 1_000_001)

    process = psutil.Process(server.process.pid)

    def work() -> float:
        """Seconds of the server's processor time so far: a busy machine changes them little."""
        times = process.cpu_times()
        return times.user + times.system

    began = work()
    answer = server.http.get(query, headers={"accept-encoding": "identity"})
    assert len(answer.content) < 500_000
    assert work() - began < 2.0
    assert not answer.json()["first_look"]
    segment = answer.json()["tables"]["metrics"]["segments"][0]
    assert segment["rows"] == 1_000_000 and set(segment["series"]) == set(METRICS)
    loss = segment["series"]["loss"]
    assert max(loss["max"]) == 99.5 and sum(loss["nonfinite"]) == 1

    low, high = 1, 1_000_000
    while high - low > 50:  # zoom in on the spike, from all to fifty steps
        low, high = spike - (spike - low) // 3, spike + (high - spike) // 3
        began = work()
        answer = server.http.get(f"{query}&from={low}&to={high}", headers={"accept-encoding": "identity"})
        assert work() - began < 0.3
        assert len(answer.content) < 500_000
        shown = answer.json()["tables"]["metrics"]["segments"][0]
        values = shown["series"]["loss"].get("max") or shown["series"]["loss"]["value"]
        assert max(values) == 99.5
        assert shown["rows"] in range(high - low + 1, high - low + 4)

    began = work()
    page = server.get("/api/runs/million/events?after_seq=700000&limit=1000")
    assert page["events"][0]["seq"] == 700_001 and work() - began < 0.5
