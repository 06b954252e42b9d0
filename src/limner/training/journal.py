"""What a run tells the world: events on disk, a bar in the terminal, trackers. Only rank 0's journal speaks."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from limner.runs.events import EventWriter
from limner.runs.state import HEARTBEAT_SECONDS

PROGRESS_EVENT_SECONDS = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk, or a quota, says."""


class Journal:
    """Writes a run's events, keeps its heart beating, and draws the terminal's bar.

    An event that the disk has no room for is kept in memory, and ``disk_full`` says so until `flush` has written
    it: the trainer then holds at the next step boundary. Events are numbered when they are written, so none is
    lost or numbered twice.

    Args:
        folder: the run's folder; None makes a journal that says nothing (ranks other than 0).
        quiet: no output in the terminal.
    """

    def __init__(self, folder: Path | None, quiet: bool = False) -> None:
        self.folder = folder
        self.step = 0
        self.disk_full = False
        self._unwritten: list[tuple[str, int, dict[str, Any]]] = []
        self._lock = threading.RLock()
        self._writer = EventWriter(folder / "events.jsonl") if folder else None
        self.attempt = self._writer.attempt if self._writer else 0
        self.console = Console(stderr=True, quiet=quiet or folder is None, highlight=False)
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._last_progress = 0.0
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._log = _log_file(folder) if folder else None

    def start_heartbeat(self) -> None:
        """From the `start` event on: at least an event every `HEARTBEAT_SECONDS`."""
        if self._writer:
            self._heart = threading.Thread(target=self._beat, name="limner-heartbeat", daemon=True)
            self._heart.start()

    def event(self, type: str, **fields: Any) -> None:
        """Appends an event at the current step."""
        if self._writer is None:
            return
        with self._lock:
            self._unwritten.append((type, self.step, fields))
            self.flush()

    def flush(self) -> bool:
        """Writes what could not be written before. True: everything is in the log."""
        with self._lock:
            while self._unwritten and self._writer:
                type, step, fields = self._unwritten[0]
                try:
                    self._writer.write(type, step, **fields)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    self.disk_full = True
                    return False
                self._unwritten.pop(0)
            self.disk_full = False
            return True

    def say(self, text: str) -> None:
        """A line for a person: in the terminal and in log.txt."""
        self.console.print(text, markup=False, soft_wrap=True)
        self.to_log(text)

    def to_log(self, text: str) -> None:
        """A line in log.txt alone: something that the terminal is told by others."""
        with contextlib.suppress(OSError):  # a full disk pauses the run by way of its events
            if self._log:
                self._log.write(text + "\n")
                self._log.flush()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Data preparation: a bar in the terminal, and an event each second and at the phase's end."""
        self._advance(phase, done, total, unit)
        now = time.monotonic()
        if done >= total or now - self._last_progress >= PROGRESS_EVENT_SECONDS:
            self._last_progress = now
            self.event("progress", phase=phase, done=done, total=total, unit=unit)

    def training(self, step: int, total: int, text: str) -> None:
        """Moves the training bar."""
        self._advance("training", step, total, text)

    def _advance(self, phase: str, done: int, total: int, text: str) -> None:
        if self.console.quiet or not self.console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self._bar.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total, text="")
        self._bar.update(self._tasks[phase], completed=done, total=total, text=text)

    def _beat(self) -> None:
        while not self._ended.wait(1.0):
            with self._lock:
                writer = self._writer
                due = writer is not None and time.time() - writer.last_time >= HEARTBEAT_SECONDS
                if due and not self._unwritten:
                    self.event("heartbeat")

    def close(self) -> None:
        """Ends the bar and the heartbeat; everything written is on the disk."""
        self._ended.set()
        if self._heart:
            self._heart.join(timeout=5)
        if self._bar:
            self._bar.stop()
            self._bar = None
        with self._lock:
            if self._writer:
                self._writer.sync()
                self._writer.close()
                self._writer = None
        if self._log:
            with contextlib.suppress(OSError):
                self._log.close()
            self._log = None


def _log_file(folder: Path) -> TextIO | None:
    """The run's log.txt, unless our standard error is that file already (a server has pointed it there)."""
    path = folder / "log.txt"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if path.exists() and path.samefile(f"/dev/fd/{sys.stderr.fileno()}"):
            return None
    return open(path, "a", encoding="utf-8", errors="replace")
