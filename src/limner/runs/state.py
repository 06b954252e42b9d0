"""What a run is doing, told from its log and from whether its process lives."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

HEARTBEAT_SECONDS = 5.0
"""The trainer writes an event at least this often."""
LOST_AFTER_SECONDS = 30.0
"""A trainer on another host is taken for dead when its log has been silent this long."""


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"

    @property
    def active(self) -> bool:
        """Whether a process is (or should be) at work on the run."""
        return self in (Status.RUNNING, Status.PAUSED, Status.STOPPING)


@dataclass(frozen=True)
class RunState:
    """A run at a glance. ``resumable``: a checkpoint lies there and the run is not complete."""

    status: Status
    step: int
    total_steps: int | None
    resumable: bool
    detail: str = ""
    """Why it failed or crashed, with the exit signal where it is known."""


def process_identity() -> dict[str, Any]:
    """Who this process is: host, pid and the pid's start time (a pid alone is reused)."""
    import os

    import psutil

    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": process.create_time()}


def process_alive(identity: dict[str, Any], last_event_time: float) -> bool:
    """Whether the process that `process_identity` described still lives.

    On this host the pid and its start time decide; on another, the time of the last event.
    """
    if identity.get("host") != socket.gethostname():
        return time.time() - last_event_time < LOST_AFTER_SECONDS
    import psutil

    try:
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - float(identity["pid_started"])) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def derive_status(last_status_event: dict[str, Any] | None, alive: bool) -> tuple[Status, str]:
    """The status that follows from the last event that says one, and from whether the process lives.

    Args:
        last_status_event: the newest event whose type is in `STATUS_EVENTS`; None: there is none yet.
    """
    if last_status_event is None:
        return Status.QUEUED, ""
    kind = last_status_event["type"]
    if kind == "complete":
        return (Status.STOPPED if last_status_event.get("reason") == "stopped" else Status.COMPLETED), ""
    if kind == "error":
        return Status.FAILED, str(last_status_event.get("message", ""))
    if not alive:
        return Status.CRASHED, "its process is gone"
    return {"paused": Status.PAUSED, "stopping": Status.STOPPING}.get(kind, Status.RUNNING), ""


STATUS_EVENTS = frozenset({"progress", "start", "paused", "resumed", "stopping", "complete", "error"})
"""The events that change a run's status. A process's first event (`progress`, while it prepares data) and its
`start` hold its `process_identity`."""


def exit_detail(returncode: int) -> str:
    """A process's return code in words: "killed by SIGKILL", "exit code 1"."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
