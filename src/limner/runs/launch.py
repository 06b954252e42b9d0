"""How a run's process was started, and how it ended: ``launch.json`` in the run's folder.

Whoever starts a trainer as a subprocess writes it, so that a process that dies before its first event is told from
one that waits, and the exit signal of a crashed one is known.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from limner.runs.state import Told, process_alive, process_identity
from limner.whole_files import write_whole


@dataclass(frozen=True)
class Launch:
    """One start of a run's process. ``returncode`` is None while it runs, or where nobody saw it end."""

    argv: list[str]
    device: str
    time: float
    host: str
    pid: int
    pid_started: float
    returncode: int | None = None
    ended: float | None = None
    pid_key: str | None = None

    @staticmethod
    def of_process(argv: list[str], device: str, pid: int) -> Launch:
        return Launch(argv, device, time.time(), **process_identity(pid))

    def with_end(self, returncode: int) -> Launch:
        return replace(self, returncode=returncode, ended=time.time())

    def alive(self) -> bool:
        return self.returncode is None and process_alive(asdict(self), self.time)

    def save(self, run_folder: Path) -> None:
        write_whole(run_folder / "launch.json", json.dumps(asdict(self)))

    @staticmethod
    def load(run_folder: Path) -> Launch | None:
        """None: the run was not started by a launcher, or its record cannot be read."""
        try:
            return _reader().validate_json((run_folder / "launch.json").read_bytes())
        except (OSError, ValueError):
            return None


@cache
def _reader() -> TypeAdapter[Launch]:
    return TypeAdapter(Launch)  # takes milliseconds


def newest_process(told: Told, launch: Launch | None) -> dict[str, Any] | None:
    """Who is at work on a run, or was last: as the log names it, or a launch that the log does not know yet."""
    identity = told.identity
    if launch is not None and (identity is None or launch.time > identity["time"]):
        return asdict(launch)
    return identity
