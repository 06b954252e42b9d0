"""The index of a growing log against reading the whole log."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from limner.runs import EventWriter, Status
from limner.runs.index import RunIndex
from limner.runs.launch import Launch
from limner.runs.series import names, seconds_to_go, series, sparkline
from limner.runs.state import process_identity, status_of


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_grows_with_the_log_and_reads_torn_lines_later(log: Path) -> None:
    index = RunIndex(log)
    assert index.update() == 0
    writer = EventWriter(log)
    writer.write("start", 0, kind="pretrain")
    assert index.update() == 1
    writer.close()
    whole = b'{"seq":2,"attempt":1,"step":1,"time":5.0,"type":"metrics","loss":"NaN"}\n'
    with open(log, "ab") as file:
        file.write(whole[:30])
        file.flush()
        assert index.update() == 0
        file.write(whole[30:] + whole[:10])
    assert (index.update(), index.last_seq) == (1, 2)
    steps, values = index.values("metrics", "loss")
    assert steps.tolist() == [1] and math.isnan(values[0])
    EventWriter(log).write("paused", 1)  # cuts the torn tail off, and goes on
    assert (index.update(), index.last_seq, index.last["type"]) == (1, 3, "paused")
    assert [json.loads(line)["seq"] for line in index.lines(1, 3)] == [1, 2, 3]


def test_a_replaced_log_is_read_anew(log: Path) -> None:
    index = RunIndex(log)
    writer = EventWriter(log)
    for step in range(10):
        writer.write("metrics", step, loss=1.0)
    index.update()
    writer.close()
    log.unlink()
    EventWriter(log).write("start", 0)
    assert (index.update(), index.last_seq, len(index.tables["metrics"])) == (1, 1, 0)
    log.unlink()
    index.update()
    assert index.last_seq == 0


@pytest.mark.parametrize("lost", [[3], [0, 1], [3, 4, 7], [9]])
def test_what_is_damaged_costs_itself_and_nothing_behind_it(log: Path, lost: list[int]) -> None:
    writer, index = EventWriter(log), RunIndex(log)
    for step in range(10):
        writer.write("metrics", step, loss=float(step))
    whole = log.read_bytes().split(b"\n")
    lines = [b"\0" * len(line) if k in lost else line for k, line in enumerate(whole)]
    log.write_bytes(b"\n".join(lines))
    assert index.update() == 10 - (9 in lost) and index.damaged_lines == len(lost)
    writer = EventWriter(log)
    writer.write("validation", 10, eval_loss=1.0)
    index.update()
    count = 11 - (9 in lost)
    assert index.last_seq == count
    told = [json.loads(line) for line in index.lines(1, count)]
    assert [event["seq"] for event in told] == list(range(1, count + 1))  # without a gap
    between = [k + 1 for k in lost if k < 9]
    assert [event["seq"] for event in told if event.get("kind") == "damaged"] == between
    assert index.seqs({"warning"}).tolist() == between and index.seqs({"validation"}).tolist() == [count]
    assert index.events(between) == [event for event in told if event["seq"] in between]
    for first in range(1, count + 1):
        for last in range(first, count + 1):
            assert [json.loads(line)["seq"] for line in index.lines(first, last)] == list(range(first, last + 1))
    assert index.values("metrics", "loss")[0].tolist() == [k for k in range(10) if k not in lost]
    again = RunIndex(log)
    again.update()
    assert again.counts == index.counts


def test_a_number_far_ahead_is_damage(log: Path) -> None:
    writer, index = EventWriter(log), RunIndex(log)
    for step in range(3):
        writer.write("metrics", step, loss=1.0)
    log.write_bytes(log.read_bytes().replace(b'"seq":2', b'"seq":2000000'))
    index.update()
    assert (index.last_seq, index.damaged_lines) == (3, 1)


def test_what_stands_for_lost_events_is_bounded(log: Path) -> None:
    event = {"seq": 1, "attempt": 1, "step": 1, "time": 1.0, "type": "heartbeat"}
    log.write_text("".join(json.dumps(event | {"seq": 4000 * k}) + "\n" for k in range(1, 101)))
    index = RunIndex(log)
    index.update()
    assert (index.last_seq, index.damaged_lines) == (8000, 98)
    assert [json.loads(line)["seq"] for line in index.lines(1, 9000)] == list(range(1, 8001))
    assert 1_000_000 < index.nbytes < 10_000_000
    with open(log, "a") as file:  # who goes on behind the last whole number is understood
        file.write(json.dumps(event | {"seq": 8001}) + "\n")
    assert index.update() == 1


def test_ranges_types_and_bytes(log: Path) -> None:
    writer, index = EventWriter(log), RunIndex(log)
    for k in range(1000):
        writer.write("validation" if k % 100 == 0 else "metrics", k, loss=float(k))
    index.update()
    assert index.seqs({"validation"}).tolist() == [1 + 100 * k for k in range(10)]
    assert index.seqs({"validation"}, after=101, before=401).tolist() == [201, 301]
    assert [event["step"] for event in index.events([1, 2, 3, 500, 1000])] == [0, 1, 2, 499, 999]
    few = index.lines(11, 1000, most_bytes=1000)
    assert json.loads(few[0])["seq"] == 11 and sum(len(line) + 1 for line in few) <= 1000
    assert len(index.lines(11, 1000, most_bytes=1)) == 1  # one line always
    assert index.lines(0, 5) == index.lines(5, 4) == index.lines(1001, 1002) == []


def test_columns_come_late_nested_and_mixed(log: Path) -> None:
    writer, index = EventWriter(log), RunIndex(log)
    writer.write("metrics", 1, loss=1.0)
    writer.write("metrics", 2, loss=2, seconds={"data": 0.5}, label="words", on=None, ids=[1, 2])
    writer.write("metrics", 3, seconds={"data": 0.25, "compute": math.inf}, gradient_norm=math.nan, huge=10**400)
    index.update()
    assert names(index) == ["loss", "seconds.data", "seconds.compute", "gradient_norm", "huge"]
    shown = series(index)["tables"]["metrics"]["segments"][0]["series"]
    assert shown["loss"]["value"] == [1.0, 2.0, None]
    assert shown["seconds.data"]["value"] == [None, 0.5, 0.25]
    assert shown["seconds.compute"]["value"] == [None, None, "Infinity"]
    assert shown["gradient_norm"]["value"] == [None, None, "NaN"]
    assert shown["huge"]["value"] == [None, None, "Infinity"]


def test_series_in_buckets_keeps_extremes_and_axes(log: Path) -> None:
    writer, index = EventWriter(log), RunIndex(log)
    losses = np.random.default_rng(0).normal(5, 1, 5000)
    losses[3333] = 99.0
    losses[100] = math.nan
    for step, loss in enumerate(losses, 1):
        writer.write("metrics", step, loss=loss, epoch=step / 1000, tokens=step * 8)
        if step % 1000 == 0:
            writer.write("validation", step, eval_loss=loss)
    index.update()
    found = series(index, ["loss", "validation/eval_loss"], points=200)
    segment = found["tables"]["metrics"]["segments"][0]
    loss = segment["series"]["loss"]
    assert (segment["rows"], segment["bucket"]) == (5000, 26) and len(loss["max"]) == len(
        segment["axes"]["step"]
    ) <= 200
    assert max(loss["max"]) == 99.0 and sum(loss["nonfinite"]) == 1 and loss["count"] is None
    assert min(loss["min"]) == pytest.approx(np.nanmin(losses), rel=1e-6)
    assert loss["first"][0] == pytest.approx(losses[0], rel=1e-6) and loss["last"][-1] == pytest.approx(
        losses[-1], rel=1e-6
    )
    assert segment["end"]["step"] == 5000 and segment["axes"]["tokens"][0] == 8
    checks = found["tables"]["validation"]["segments"][0]
    assert checks["bucket"] == 1 and checks["axes"]["epoch"] == [1, 2, 3, 4, 5]  # told by the step
    assert found["range"] == [1, 5000] and found["to_seq"] == 5005
    zoomed = series(index, ["loss"], x="epoch", low=3.3, high=3.34, points=200)["tables"]["metrics"]["segments"][0]
    assert zoomed["axes"]["step"] == list(range(3299, 3342))  # one beyond either end
    assert 99.0 in zoomed["series"]["loss"]["value"]
    nothing = series(index, ["loss"], low=9000, high=9999)["tables"]["metrics"]
    assert nothing == {"total": 0, "segments": []}
    with pytest.raises(ValueError, match="no axis"):
        series(index, x="colour")
    assert len(sparkline(index)) <= 48


def test_attempts_pauses_and_status(log: Path) -> None:
    index, me = RunIndex(log), process_identity()
    assert status_of(index.told) == (Status.QUEUED, "")
    writer = EventWriter(log)
    writer.write("progress", 0, phase="tokenize", done=0, total=1, unit="", **me)
    index.update()
    assert status_of(index.told) == (Status.RUNNING, "tokenize")
    writer.write("start", 0, kind="pretrain", total_steps=100, **me)
    writer.write("metrics", 1, loss=1.0)
    writer.write("paused", 1, reason="")
    index.update()
    assert status_of(index.told)[0] is Status.PAUSED and index.pauses[0]["to"] is None
    writer.write("resumed", 1)
    writer.write("stopping", 1)
    index.update()
    assert status_of(index.told)[0] is Status.STOPPING and index.pauses[0]["to"] is not None
    writer.write("complete", 1, reason="stopped")
    writer.close()
    second = EventWriter(log)
    dead = me | {"pid": 2**22 + 7}
    second.write("start", 1, kind="pretrain", total_steps=100, **dead)
    second.write("metrics", 2, loss=1.0)
    index.update()
    assert [attempt["first_step"] for attempt in index.attempts] == [0, 1]
    assert status_of(index.told) == (Status.CRASHED, "its process is gone")
    launch = Launch([], "cpu", time.time() - 50, me["host"], dead["pid"], dead["pid_started"], returncode=-9)
    assert status_of(index.told, launch) == (Status.CRASHED, "killed by SIGKILL")
    again = Launch.of_process([], "cpu", me["pid"])
    assert status_of(index.told, again) == (Status.RUNNING, "starting")  # launched anew, and silent yet
    assert status_of(index.told, again.with_end(1)) == (Status.FAILED, "exit code 1")


def test_launch_is_read_back(tmp_path: Path) -> None:
    assert Launch.load(tmp_path) is None
    launch = Launch.of_process(["limner", "train"], "cpu", process_identity()["pid"])
    launch.save(tmp_path)
    assert Launch.load(tmp_path) == launch and launch.alive()
    (tmp_path / "launch.json").write_text("{")
    assert Launch.load(tmp_path) is None


def test_time_to_go_leaves_pauses_out(log: Path) -> None:
    lines = []
    seq = 0

    def write(step: int, at: float, type: str, **fields: object) -> None:
        nonlocal seq
        seq += 1
        lines.append(json.dumps({"seq": seq, "attempt": 1, "step": step, "time": at, "type": type, **fields}))

    for step in range(1, 51):
        write(step, 1000 + step * 0.5, "metrics", loss=1.0)
    write(50, 1025.1, "paused")
    write(50, 4625.1, "resumed")
    for step in range(51, 101):
        write(step, 4600 + step * 0.5, "metrics", loss=1.0)
    log.write_text("\n".join(lines) + "\n")
    index = RunIndex(log)
    index.update()
    low, high = seconds_to_go(index, 200)
    assert 45 < low <= high < 55  # 100 steps of half a second, and not the hour of the pause
    assert index.elapsed() == pytest.approx(49.5, abs=0.2)
