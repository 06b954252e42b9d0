"""What a run is doing, told from its log and from whether its process lives."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from limner.runs.events import Event

if TYPE_CHECKING:
    from limner.runs.launch import Launch

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

    @property
    def unfinished(self) -> bool:
        """Whether the run has ended short of its goal."""
        return self in (Status.STOPPED, Status.FAILED, Status.CRASHED)


@dataclass(frozen=True)
class RunState:
    """A run at a glance (`Run.state`)."""

    status: Status
    step: int
    total_steps: int | None
    resumable: bool
    """It has ended short of its goal, and a checkpoint lies there."""
    device: str | None
    """Where it computes, as its `start` says, or its launch."""
    detail: str
    """Why it failed or crashed, with the exit signal where it is known; of a running one, what it prepares."""


STATUS_EVENTS = frozenset({"progress", "start", "paused", "resumed", "stopping", "complete", "error"})
"""The events that change a run's status. A process's first event (`progress`, while it prepares data) and its
`start` hold its `process_identity`."""


@dataclass(frozen=True)
class Told:
    """What a log tells of its run's state: the newest event of each kind, None where there is none yet."""

    start: Event | None = None
    status: Event | None = None
    """Of `STATUS_EVENTS`."""
    identity: Event | None = None
    """With the `process_identity` of the process at work."""
    last: Event | None = None

    @staticmethod
    def by(events: list[Event]) -> Told:
        """As these events, the whole log, tell it."""
        return Told().after(events)

    def after(self, events: list[Event]) -> Told:
        """As the log tells it with these events behind what it held."""
        newest_first = events[::-1]
        return Told(
            start=next((event for event in newest_first if event["type"] == "start"), self.start),
            status=next((event for event in newest_first if event["type"] in STATUS_EVENTS), self.status),
            identity=next((event for event in newest_first if "pid" in event), self.identity),
            last=events[-1] if events else self.last,
        )


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


def status_of(told: Told, launch: Launch | None = None) -> tuple[Status, str]:
    """What a run is doing, and `RunState.detail`: from its log and from its last launch.

    Args:
        launch: None: none is known, and the log alone decides.
    """
    last, event, identity = told.last, told.status, told.identity
    if launch is not None and (last is None or launch.time > last["time"]):
        # Started again, and not a word from it yet.
        if launch.alive():
            return Status.RUNNING, "starting"
        if launch.returncode is not None and launch.returncode != 0:
            return Status.FAILED, exit_detail(launch.returncode)
        if last is None:
            return Status.CRASHED, "its process is gone"
    if last is None or event is None:
        return Status.QUEUED, ""
    kind = event["type"]
    if kind == "complete":
        return (Status.STOPPED if event.get("reason") == "stopped" else Status.COMPLETED), ""
    if kind == "error":
        return Status.FAILED, str(event.get("message", ""))
    if identity is None or not process_alive(identity, last["time"]):
        same = launch is not None and identity is not None and launch.pid == identity["pid"]
        seen = launch.returncode if same and launch is not None else None
        return Status.CRASHED, "its process is gone" if seen is None else exit_detail(seen)
    if kind == "progress":
        return Status.RUNNING, str(event.get("phase", "starting"))
    return {"paused": Status.PAUSED, "stopping": Status.STOPPING}.get(kind, Status.RUNNING), ""


def exit_detail(returncode: int) -> str:
    """A process's return code in words: "killed by SIGKILL", "exit code 1"."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
