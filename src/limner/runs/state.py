"""What a run is doing, told from its log and from whether its process lives."""

from __future__ import annotations

import os
import signal
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
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


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """Who a process (None: this one) is: host, pid, and when the pid was started, since a pid alone is reused.

    ``pid_started`` is in Unix seconds, which jump where the clock is set; ``pid_key`` does not, where /proc tells
    it.
    """
    import psutil

    pid = os.getpid() if pid is None else pid
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:  # it has ended already
        started = time.time()
    return {"host": socket.gethostname(), "pid": pid, "pid_started": started, "pid_key": _pid_key(pid)}


def _pid_key(pid: int) -> str | None:
    """The machine's boot and the process's start in clock ticks since then; None: not told here, or not alive."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else f"{boot}/{int(fields[18])}"  # field 22 of `man proc_pid_stat`
    except (OSError, ValueError, IndexError):
        return None


def process_began() -> float:
    """When this process began, in Unix seconds; to a hundredth where /proc tells it, else to a second."""
    import psutil

    if key := _pid_key(os.getpid()):
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(key.rpartition("/")[2]) / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    return psutil.Process().create_time()


def process_alive(identity: dict[str, Any], last_event_time: float) -> bool:
    """Whether the process that `process_identity` described still lives.

    On this host the pid and its start decide; on another, the time of the last event.
    """
    if identity.get("host") != socket.gethostname():
        return time.time() - last_event_time < LOST_AFTER_SECONDS
    import psutil

    try:
        if identity.get("pid_key"):
            return _pid_key(int(identity["pid"])) == identity["pid_key"]
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - float(identity["pid_started"])) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
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
    if not _alive(told):
        same = launch is not None and identity is not None and launch.pid == identity["pid"]
        seen = launch.returncode if same and launch is not None else None
        return Status.CRASHED, "its process is gone" if seen is None else exit_detail(seen)
    if kind == "progress":
        return Status.RUNNING, str(event.get("phase", "starting"))
    return {"paused": Status.PAUSED, "stopping": Status.STOPPING}.get(kind, Status.RUNNING), ""


def _alive(told: Told) -> bool:
    """Whether the process of a log's last event lives."""
    last, identity = told.last, told.identity
    if last is None or identity is None:
        return False
    if identity["attempt"] != last["attempt"]:  # who wrote that stands in a part that is damaged, or not read yet
        return time.time() - last["time"] < LOST_AFTER_SECONDS
    return process_alive(identity, last["time"])


def exit_detail(returncode: int) -> str:
    """A process's return code in words: "killed by SIGKILL", "exit code 1"."""
    if returncode >= 0:
        return f"exit code {returncode}"
    known = -returncode in set(signal.Signals)
    return f"killed by {signal.Signals(-returncode).name if known else f'signal {-returncode}'}"
