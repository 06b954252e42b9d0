"""How a run's process was started, and how it ended: ``launch.json`` in the run's folder.

Whoever starts a trainer as a subprocess writes it, so that a process that dies before its first event is told from
one that waits, and the exit signal of a crashed one is known.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from limner.runs.state import process_alive
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

    @staticmethod
    def of_process(argv: list[str], device: str, pid: int) -> Launch:
        import psutil

        try:
            started = psutil.Process(pid).create_time()
        except psutil.Error:  # it has ended already
            started = time.time()
        return Launch(argv, device, time.time(), socket.gethostname(), pid, started)

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
            return Launch(**json.loads((run_folder / "launch.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
