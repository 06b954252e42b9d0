"""How a run's process was started, and how it ended: ``launch.json`` in the run's folder.

Whoever starts a trainer as a subprocess writes it, so that a process that dies before its first event is told from
one that waits, and the exit signal of a crashed one is known.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from limner.runs.events import Event
from limner.runs.index import RunIndex
from limner.runs.state import Status, derive_status, exit_detail, process_alive


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
        aside = run_folder / f".launch.{os.getpid()}.tmp"
        aside.write_text(json.dumps(asdict(self)))
        os.replace(aside, run_folder / "launch.json")

    @staticmethod
    def load(run_folder: Path) -> Launch | None:
        """None: the run was not started by a launcher, or its record cannot be read."""
        try:
            return Launch(**json.loads((run_folder / "launch.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def status_of(index: RunIndex, launch: Launch | None) -> tuple[Status, str]:
    """What the run is doing, and why it failed or crashed, from its indexed log and its last launch."""
    last = index.last
    if launch is not None and (last is None or launch.time > last["time"]):
        # Started again, and not a word from it yet.
        if launch.alive():
            return Status.RUNNING, "starting"
        if launch.returncode is not None and launch.returncode != 0:
            return Status.FAILED, exit_detail(launch.returncode)
        if last is None:
            return Status.CRASHED, "its process is gone"
    if last is None:
        return Status.QUEUED, ""
    told, identity = index.status_event, index.identity
    alive = identity is not None and process_alive(identity, last["time"])
    status, detail = derive_status(told, alive)
    if status is Status.CRASHED:
        detail = _end(launch, identity)
    elif status is Status.RUNNING and told is not None and told["type"] == "progress":
        detail = str(told.get("phase", "starting"))
    return status, detail


def _end(launch: Launch | None, identity: Event | None) -> str:
    same = launch is not None and identity is not None and launch.pid == identity.get("pid")
    if same and launch is not None and launch.returncode is not None:
        return exit_detail(launch.returncode)
    return "its process is gone"
