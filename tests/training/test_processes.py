"""Several processes: the same examples in the same steps, the same losses, one writer of the run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limner.runs import Run


def losses(folder: Path, type: str, field: str) -> list[float]:
    return [event[field] for event in Run(folder).events() if event["type"] == type]


def launch(processes: int, settings: dict) -> None:
    script = Path(__file__).with_name("toy.py")
    runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *runner, str(script), json.dumps(settings)], check=True, timeout=120, env=environment
    )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """1 process x batch 8 and 2 processes x batch 4: equal to 1e-5, also where an epoch's last step is short."""
    settings = {"runs_dir": str(tmp_path), "dropout": 0.0, "accumulation": 2, "steps": 14}
    launch(1, settings | {"name": "one", "batch_size": 8})
    launch(2, settings | {"name": "two", "batch_size": 4})
    one, two = tmp_path / "one", tmp_path / "two"
    assert losses(two, "metrics", "loss") == pytest.approx(losses(one, "metrics", "loss"), rel=1e-5)
    assert losses(two, "validation", "eval_loss") == pytest.approx(losses(one, "validation", "eval_loss"), rel=1e-5)
    assert losses(two, "metrics", "rows") == losses(one, "metrics", "rows")
    start = next(event for event in Run(two).events() if event["type"] == "start")
    assert start["world_size"] == 2
    assert [event["seq"] for event in Run(two).events()] == list(range(1, len(Run(two).events()) + 1))
