"""Makes the small recording of a run that comes with Limner (`limner serve --demo`).

    python -m limner.server.recording RUN_FOLDER [--points 500]

Of the metrics every k-th event is kept, and those before and after a validation; everything else of the log is kept
whole, less what tells of the machine. Numbers are shortened, events are numbered anew, and the pictures come along.
The curve is thinner than the run's, and nothing in it is made up.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from limner.runs import Event, EventReader, Run
from limner.server.app import RECORDED

DIGITS = 5
PRIVATE = frozenset({"host", "pid", "pid_started", "pid_key"})
MOST_BYTES = 300_000


def record(run: Run, points: int) -> Path:
    """Writes the recording of a complete run below `RECORDED`, in the place of an earlier one.

    Raises:
        ValueError: the run is not complete, or its recording would be larger than `MOST_BYTES`.
    """
    events = EventReader(run.events_path).read()
    if not events or events[-1]["type"] != "complete":
        raise ValueError(f"Run '{run.name}' is not complete; record a whole one.")
    target = RECORDED / f".{run.name}"  # beside the earlier one, which stays until this one is whole
    shutil.rmtree(target, ignore_errors=True)
    for folder in ("commands", "checkpoints", "samples"):
        (target / folder).mkdir(parents=True)
    kept = thinned(events, points)
    lines = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in kept]
    (target / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {k: None if "/" in str(v) else v for k, v in run.config["config"].items()}
    config = {"verb": run.config["verb"], "config": settings, "versions": run.config["versions"]}
    (target / "config.json").write_text(json.dumps(config))
    if (run.path / "demo.json").is_file():
        figures = json.loads((run.path / "demo.json").read_text())
        plain = {name: _short(value) for name, value in figures.items() if not isinstance(value, str)}
        (target / "demo.json").write_text(json.dumps(plain))
    for name in {str(event["image"]) for event in kept if event.get("image")}:
        shutil.copy(run.samples_path / name, target / "samples")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        shutil.rmtree(target)
        raise ValueError(f"The recording has {size:,} bytes, more than {MOST_BYTES:,}; give fewer --points.")
    shutil.rmtree(RECORDED / run.name, ignore_errors=True)
    return target.rename(RECORDED / run.name)


def thinned(events: list[Event], points: int) -> list[Event]:
    """About so many metrics events and all others, numbered anew from 1."""
    metrics = sum(event["type"] == "metrics" for event in events)
    stride = max(1, math.ceil(metrics / points))
    kept = []
    for k, event in enumerate(events):
        beside = any(near["type"] == "validation" for near in events[max(0, k - 1) : k + 2])
        if event["type"] == "heartbeat" or (event["type"] == "metrics" and event["step"] % stride and not beside):
            continue
        kept.append({name: _short(value) for name, value in event.items() if name not in PRIVATE})
        kept[-1] |= {"seq": len(kept), "time": round(event["time"], 2)}
        if event["type"] == "checkpoint":
            kept[-1]["path"] = Path(str(event["path"])).name
    return kept


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--points", type=int, default=500)
    args = parser.parse_args()
    print(record(Run(args.run.resolve()), args.points))


if __name__ == "__main__":
    main()
