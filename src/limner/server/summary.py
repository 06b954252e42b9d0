"""What the page is told of a run: at a glance, in detail, and as a report of the whole."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from limner.runs import Run, Status
from limner.runs.index import RunIndex
from limner.runs.launch import Launch
from limner.runs.series import names, seconds_to_go, sparkline
from limner.whole_files import write_whole

Number = float | int | str | None
"""A finite number, or "NaN", "Infinity", "-Infinity"."""
ACTIONS: dict[Status, tuple[str, ...]] = {
    Status.QUEUED: ("resume", "delete"),
    Status.RUNNING: ("pause", "stop", "kill", "checkpoint", "sample", "note"),
    Status.PAUSED: ("resume", "stop", "kill", "checkpoint", "sample", "note"),
    Status.STOPPING: ("kill",),
    Status.COMPLETED: ("delete",),
    Status.STOPPED: ("resume", "delete"),
    Status.FAILED: ("resume", "delete"),
    Status.CRASHED: ("resume", "delete"),
}
"""What may be asked of a run in each state."""


class Labels(BaseModel):
    """What a person has stuck onto a run (``labels.json`` in its folder)."""

    model_config = ConfigDict(extra="forbid")
    tags: list[str] = []
    note: str = ""
    pinned: bool = False


class Best(BaseModel):
    """The best value of the metric that decides."""

    metric: str
    value: Number
    step: int
    direction: str


class RunSummary(BaseModel):
    """A run at a glance."""

    id: str
    verb: str
    kind: str | None
    status: Status
    detail: str
    """Why it failed or crashed, or what it prepares."""
    step: int
    total_steps: int | None
    resumable: bool
    actions: list[str]
    """What may be asked of it now."""
    queue_position: int | None
    created: float
    started: float | None
    updated: float | None
    attempt: int
    seq: int
    elapsed: float
    """Seconds at work, without pauses."""
    eta: list[float] | None
    """Seconds to go, from and to."""
    epoch: Number
    epochs: float | None
    device: str | None
    unit: str | None
    rate: Number
    """Units per second."""
    last: dict[str, Number]
    """The numbers of the last metrics event."""
    last_validation: dict[str, Number]
    best: Best | None
    sparkline: list[Number]
    tags: list[str]
    note: str
    pinned: bool
    recorded: bool
    """A run that came with Limner, to look at: nothing can be asked of it."""


class RunDetail(RunSummary):
    """A run with its settings and its story."""

    config: dict[str, Any]
    versions: dict[str, Any]
    start: dict[str, Any] | None
    """The last start event: parameters, reference lines, data."""
    command: str | None
    bytes: int
    metrics: list[str]
    attempts: list[dict[str, Any]]
    pauses: list[dict[str, Any]]
    counts: dict[str, int]
    damaged_lines: int
    model: bool
    """The finished model is there."""
    log_tail: list[str]
    """The last lines of its output, where it failed or crashed."""


def read_labels(run: Run) -> Labels:
    try:
        return Labels.model_validate_json((run.path / "labels.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Labels()
    except ValueError:  # written by hand, wrongly: shown as none rather than hiding the run
        return Labels()


def write_labels(run: Run, labels: Labels) -> None:
    write_whole(run.path / "labels.json", labels.model_dump_json())


def summarize(run: Run, index: RunIndex, position: int | None = None, recorded: bool = False) -> RunSummary:
    """A run's summary; ``position``: its place in the queue."""
    with index.lock:
        told = index.told
        state = run.state(told)
        if position is not None:
            state = replace(state, status=Status.QUEUED, resumable=False, detail="")
        start, last = told.start or {}, told.last
        metrics = _numbers(index.last_metrics)
        unit = start.get("unit")
        total, per_epoch = state.total_steps, start.get("steps_per_epoch")
        labels = read_labels(run)
        verb = str(run.config.get("verb", ""))
        kind = start.get("kind") or {"pretrain": "pretrain", "train": "caption", "demo": "caption"}.get(verb)
        return RunSummary(
            id=run.name,
            verb=verb,
            kind=kind,
            status=state.status,
            detail=state.detail,
            step=state.step,
            total_steps=total,
            resumable=state.resumable,
            actions=[] if recorded else ["stop", "delete"] if position is not None else list(ACTIONS[state.status]),
            queue_position=position,
            created=(run.path / "config.json").stat().st_mtime,
            started=index.attempts[0]["started"] if index.attempts else None,
            updated=last["time"] if last else None,
            attempt=last["attempt"] if last else 0,
            seq=index.last_seq,
            elapsed=round(index.elapsed(), 3),
            eta=seconds_to_go(index, total) if state.status in (Status.RUNNING, Status.PAUSED) else None,
            epoch=metrics.get("epoch"),
            epochs=round(total / per_epoch, 3) if total and per_epoch else None,
            device=state.device,
            unit=unit,
            rate=metrics.get(f"{unit}_per_second"),
            last=metrics,
            last_validation=_last_row(index, "validation"),
            best=_best(index, start),
            sparkline=sparkline(index),
            tags=labels.tags,
            note=labels.note,
            pinned=labels.pinned,
            recorded=recorded,
        )


def describe(run: Run, index: RunIndex, summary: RunSummary) -> RunDetail:
    """Everything about a run that is not a series."""
    troubled = summary.status in (Status.FAILED, Status.CRASHED)
    launch = Launch.load(run.path)
    config = run.config.get("config", {})
    with index.lock:
        return RunDetail(
            **summary.model_dump(),
            config=config,
            versions=run.config.get("versions", {}),
            start=index.told.start,
            command=_command(summary.verb, config, launch),
            bytes=run.size(),
            metrics=names(index),
            attempts=[dict(attempt) for attempt in index.attempts],
            pauses=[dict(pause) for pause in index.pauses],
            counts=dict(index.counts),
            damaged_lines=index.damaged_lines,
            model=run.model_path.is_dir(),
            log_tail=run.log_tail(50) if troubled else [],
        )


def report(run: Run, index: RunIndex, summary: RunSummary) -> dict[str, Any]:
    """What a finished (or unfinished) run came to."""
    with index.lock:
        start = index.told.start or {}
        directions = start.get("directions", {"eval_loss": "min"})
        ends = [pause["to"] or (summary.updated or pause["from"]) for pause in index.pauses]
        best = {}
        for metric, direction in directions.items():
            found = _best(index, {"metric_for_best_model": metric, "directions": directions})
            if found:
                best[metric] = {"value": found.value, "step": found.step, "direction": direction}
        return {
            "id": run.name,
            "status": summary.status,
            "steps": summary.step,
            "total_steps": summary.total_steps,
            "seconds": summary.elapsed,
            "paused_seconds": sum(end - pause["from"] for end, pause in zip(ends, index.pauses, strict=True)),
            "attempts": len(index.attempts),
            "best": best,
            "final": summary.last,
            "final_validation": summary.last_validation,
            "evaluation": _evaluation(run.path),
            "bytes": run.size(),
            "model": str(run.model_path) if run.model_path.is_dir() else None,
            "warnings": index.counts.get("warning", 0),
        }


def _evaluation(folder: Path) -> dict[str, Any] | None:
    """What a verb wrote of its final evaluation, where it did."""
    for name in ("evaluation.json", "demo.json"):
        try:
            found = json.loads((folder / name).read_text())
        except (FileNotFoundError, ValueError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _best(index: RunIndex, start: dict[str, Any]) -> Best | None:
    metric = str(start.get("metric_for_best_model", "eval_loss"))
    direction = start.get("directions", {}).get(metric, "min")
    steps, values = index.values("validation", metric)
    scored = [(value, -step) for step, value in zip(steps.tolist(), values.tolist(), strict=True)]
    scored = [pair for pair in scored if math.isfinite(pair[0]) and pair[1]]  # step 0 is no result of training
    if not scored:
        return None
    value, step = min(scored, key=lambda p: (p[0], -p[1])) if direction == "min" else max(scored)
    return Best(metric=metric, value=value, step=-step, direction=direction)


def _numbers(event: dict[str, Any] | None) -> dict[str, Number]:
    """The numbers of an event, flat."""
    found: dict[str, Number] = {}
    for name, value in (event or {}).items():
        if name in ("seq", "attempt", "time", "type"):
            continue
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items() if _is_number(item)}
        elif _is_number(value):
            found[name] = value
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) or value in ("NaN", "Infinity", "-Infinity")


def _last_row(index: RunIndex, name: str) -> dict[str, Number]:
    seqs = index.seqs({name})
    return _numbers(index.events(seqs[-1:])[0]) if len(seqs) else {}


def _command(verb: str, config: dict[str, Any], launch: Launch | None) -> str | None:
    import shlex

    from limner.server.verbs import arguments

    try:
        return shlex.join(arguments(verb, config))
    except (ValueError, KeyError):
        return shlex.join(launch.argv) if launch else None
