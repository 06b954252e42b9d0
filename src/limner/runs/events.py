"""The event log: ``events.jsonl``, append-only, one JSON object a line.

Every event has ``seq`` (from 1, strictly +1 within the run, never reused), ``attempt`` (from 1: one process life
of the run), ``step`` (optimizer steps done), ``time`` (Unix seconds) and ``type``. JSON has no NaN and no
infinities: they are written as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]

EVENT_TYPES = (
    "start",  # a process begins the run: kind, pid, total_steps, parameters, reference lines ...
    "progress",  # data preparation: phase, done, total, unit
    "metrics",  # a training step: loss, learning_rate, gradient_norm, rates ...
    "validation",  # an evaluation: loss and the task's own metrics
    "sample",  # a probe or a requested sample, decoded with the live weights
    "checkpoint",  # a resumable state was saved: path, bytes, best
    "warning",
    "paused",
    "resumed",
    "stopping",
    "complete",
    "error",
    "heartbeat",
    "command",  # acknowledges a command that has no event type of its own: command, name, ok
    "note",
)

_INT64 = 2**63
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """Replaces non-finite floats by their strings, at any depth; numbers of other libraries become Python's."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return encode(value.item())
    return str(value)


def decode_number(value: Any) -> Any:
    """The float behind "NaN", "Infinity" and "-Infinity"; everything else as it is."""
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


class EventWriter:
    """Appends events to a run's log. Only the trainer's rank 0 makes one.

    On opening, a torn last line (the writer was killed in mid-write) is cut off, and numbering goes on from the
    last whole event. Each event is one ``write`` of one line, flushed to the operating system at once.
    """

    def __init__(self, path: Path | str, attempt: int | None = None) -> None:
        self.path = Path(path)
        last: Event | None = None
        if self.path.exists():
            last = _repair(self.path)
        self.seq = int(last["seq"]) if last else 0
        self.attempt = attempt if attempt is not None else (int(last["attempt"]) + 1 if last else 1)
        self.last_time = 0.0
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  closed by close()

    def write(self, type: str, step: int, **fields: Any) -> Event:
        """Appends one event and returns it. ``fields`` may hold floats, NumPy and torch scalars, lists, dicts.

        Raises:
            OSError: the disk is full; nothing of the event remains in the log and ``seq`` is not used up.
        """
        assert type in EVENT_TYPES, type
        self.last_time = time.time()
        head = {"seq": self.seq + 1, "attempt": self.attempt, "step": step, "time": self.last_time, "type": type}
        event: Event = head | encode(fields)
        text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = text.encode(errors="replace") + b"\n"  # what a terminal typed in another encoding is no Unicode
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "no space left for the event log", str(self.path))
        except OSError:
            os.ftruncate(self._file.fileno(), before)
            raise
        self.seq += 1
        return event

    def sync(self) -> None:
        """Waits until everything written so far is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _repair(path: Path) -> Event | None:
    """Cuts half a line off a log's end, and returns the last whole event (None: there is none, and all is cut off).

    After a power loss the end may hold half a line, or blocks that were never written. A damaged line that has an
    end stays: readers have passed it over, and go on behind it.
    """
    cut = 0
    with open(path, "r+b") as file:
        start = end = path.stat().st_size
        block = b""
        while start > 0:
            start = max(0, start - 65536)
            file.seek(start)
            block = file.read(end - start)
            newline = block.rfind(b"\n")
            cut = cut or (start + newline + 1 if newline >= 0 else 0)
            while newline >= 0:
                before = block.rfind(b"\n", 0, newline)
                if before < 0 and start > 0:
                    break  # the line begins further in front: read more
                event = _event_of(block[before + 1 : newline])
                if event is not None:
                    file.truncate(cut)
                    return event
                newline = before
        file.truncate(0)
    return None


def is_event(value: Any) -> bool:
    """Whether what a line holds is a whole event, its integers within 64 bits and its time one that can be."""
    if type(value) is not dict:
        return False
    for name in ("seq", "attempt", "step"):
        number = value.get(name)
        if type(number) is not int or not -_INT64 <= number < _INT64:
            return False
    at = value.get("time", math.nan)
    return type(at) in (int, float) and -1e12 < at < 1e12 and type(value.get("type")) is str


def _event_of(line: bytes) -> Event | None:
    """The event of a line; None: it is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if is_event(event) else None


class EventReader:
    """Follows a run's log: each `read` gives the whole events that came since the last one.

    A torn last line stays unread until it is whole; a damaged one is passed over. The file may not exist yet.
    """

    def __init__(self, path: Path | str, offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset

    def read(self, limit: int | None = None) -> list[Event]:
        """Events after the current position, oldest first; at most ``limit`` of them where it is given."""
        return list(self._lines(limit))

    def _lines(self, limit: int | None) -> Iterator[Event]:
        try:
            file = open(self.path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            if size < self.offset:  # a torn tail that we never returned was cut off, or the log was replaced
                self.offset = 0
            file.seek(self.offset)
            for count, line in enumerate(file):
                if not line.endswith(b"\n") or (limit is not None and count >= limit):
                    return
                self.offset += len(line)
                if (event := _event_of(line)) is not None:
                    yield event
