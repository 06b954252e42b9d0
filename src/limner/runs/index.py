"""A run's log, indexed as it grows: events by number and by type, metrics as columns, the run's story.

`RunIndex.update` reads what is new, once. After that, any range of a log of a million events is one seek, and any
chart of it is a view of the columns' pyramids (`limner.runs.series`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from limner.runs.events import EVENT_TYPES, Event, decode_number, is_event
from limner.runs.pyramid import Grower, Pyramid
from limner.runs.state import STATUS_EVENTS, Told

TABLES = ("metrics", "validation")
"""The event types whose numbers become columns."""
MOST_COLUMNS = 512
"""A table stops growing wider here: a log whose keys never end must not eat the memory."""
_HEAD = frozenset({"seq", "attempt", "step", "time", "type"})
_HEAD_BYTES = 200
_BLOCK = 1 << 20
_LINES = 256
"""Lines parsed at a time: their objects then fit the processor's cache (four times as fast as one big array)."""
MOST_LOST = 10_000
"""Numbers that may lack in a damaged log; an event that would lack more is taken for damaged itself."""
_LOST_BYTES = 260
"""What one of them takes in memory, about."""
_TYPE_CODES = {name: code for code, name in enumerate(EVENT_TYPES)}
_OTHER = 255


class Table:
    """The events of one type as columns; row i of every column is the same event."""

    def __init__(self) -> None:
        self._heads = {name: Grower(np.float64 if name == "time" else np.int64) for name in _HEAD - {"type"}}
        self.columns: dict[str, Pyramid] = {}

    def __len__(self) -> int:
        return len(self._heads["seq"])

    def head(self, name: str) -> np.ndarray:
        """Of every row, its ``seq``, ``attempt``, ``step`` or ``time``."""
        return self._heads[name].array

    @property
    def nbytes(self) -> int:
        heads = sum(grower.nbytes for grower in self._heads.values())
        return heads + sum(column.nbytes for column in self.columns.values())

    def extend(self, events: list[Event]) -> None:
        before = len(self)
        for name, grower in self._heads.items():
            grower.extend(np.array(list(map(itemgetter(name), events))))
        for name, (values, present) in _columns(events).items():
            if name not in self.columns:
                if len(self.columns) >= MOST_COLUMNS or not present.any():
                    continue
                self.columns[name] = Pyramid()
                self.columns[name].extend(np.zeros(before), np.zeros(before, bool))
            self.columns[name].extend(values, present)
        for column in self.columns.values():
            if (lacking := len(self) - len(column)) > 0:
                column.extend(np.zeros(lacking), np.zeros(lacking, bool))


class RunIndex:
    """The log at ``path``, which may not exist yet. Thread-safe: `update` and the readers hold one lock."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self.whole = False
        """All that was there has been read once."""
        self.offset = 0
        self.inode = 0
        self.head = b""
        """The file's first bytes, with the first event's time: inodes are used again, and this tells other logs."""
        self._offsets = Grower(np.int64)
        self._types = Grower(np.uint8)
        self.tables = {name: Table() for name in TABLES}
        self.damaged_lines = 0
        self._lost: dict[int, bytes] = {}
        """What is told in the place of events whose lines are damaged, by their numbers."""
        self.last: Event | None = None
        self.last_metrics: Event | None = None
        self.status_event: Event | None = None
        """The newest event that says what the run is doing."""
        self.identity: Event | None = None
        """The newest event that says which process is at work."""
        self.starts: list[Event] = []
        self.attempts: list[dict[str, Any]] = []
        self.pauses: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}

    @property
    def last_seq(self) -> int:
        return len(self._offsets)

    @property
    def told(self) -> Told:
        with self.lock:
            return Told(self.starts[-1] if self.starts else None, self.status_event, self.identity, self.last)

    @property
    def nbytes(self) -> int:
        numbers = self._offsets.nbytes + self._types.nbytes + _LOST_BYTES * len(self._lost)
        return numbers + sum(table.nbytes for table in self.tables.values())

    # -- reading -----------------------------------------------------------------------------------------------

    def update(self) -> int:
        """Takes in the whole lines that came since the last time; returns how many events they were.

        A log that was replaced, or cut by more than a torn tail, is read anew from its beginning.
        """
        with self.lock:
            try:
                file = open(self.path, "rb")  # noqa: SIM115  closed by the `with` below
            except (FileNotFoundError, NotADirectoryError):
                if self.offset:
                    self._forget()
                return 0
            with file:
                stat = os.fstat(file.fileno())
                other = stat.st_ino != self.inode or file.read(len(self.head)) != self.head
                if stat.st_size < self.offset or other:
                    self._forget()
                    self.inode = stat.st_ino
                if stat.st_size == self.offset:
                    self.whole = True
                    return 0
                if not self.offset:
                    file.seek(0)
                    self.head = file.read(_HEAD_BYTES).partition(b"\n")[0]
                before = self.last_seq
                file.seek(self.offset)
                rest = b""
                while block := file.read(_BLOCK):
                    whole, newline, tail = (rest + block).rpartition(b"\n")
                    if newline:
                        self._take(whole)
                    rest = tail if newline else rest + block
                self.whole = True
                return self.last_seq - before

    def _take(self, block: bytes) -> None:
        """Indexes whole lines (``block`` lacks the last newline)."""
        lines = block.split(b"\n")
        for k in range(0, len(lines), _LINES):
            self._take_lines(lines[k : k + _LINES])

    def _take_lines(self, lines: list[bytes]) -> None:
        events = _parse(lines)
        lengths = np.fromiter(map(len, lines), np.int64, len(lines)) + 1
        offsets = self.offset + np.cumsum(lengths) - lengths
        expected = self.last_seq + 1
        if events is None or list(map(itemgetter("seq"), events)) != list(range(expected, expected + len(lines))):
            events, kept = [], list[int]()
            for k, line in enumerate(lines):
                event = _parse_one(line)
                if event is None or not 0 <= event["seq"] - expected - len(events) <= MOST_LOST - len(self._lost):
                    self.damaged_lines += 1
                    continue
                while (seq := expected + len(events)) < event["seq"]:
                    events.append(self._stand_in(seq, events[-1] if events else self.last or event))
                    kept.append(k)
                events.append(event)
                kept.append(k)
            offsets = offsets[kept]
        self.offset += int(lengths.sum())
        if not events:
            return
        self._offsets.extend(offsets)
        types = [event["type"] for event in events]
        self._types.extend(np.array([_TYPE_CODES.get(name, _OTHER) for name in types], np.uint8))
        self.last = events[-1]
        for name, table in self.tables.items():
            if name in types:
                rows = [event for event in events if event["type"] == name]
                table.extend(rows)
                if name == "metrics":
                    self.last_metrics = rows[-1]
        steady = len(self.attempts) > 0 and types.count("metrics") == len(types)
        if steady and events[-1]["attempt"] == self.attempts[-1]["attempt"] == events[0]["attempt"]:
            self.counts["metrics"] = self.counts.get("metrics", 0) + len(events)
            self.attempts[-1] |= _last_of_attempt(events[-1])
        else:
            for event in events:
                self._tell(event)

    def _stand_in(self, seq: int, neighbour: Event) -> Event:
        """A warning in the place of an event that is lost: numbers stay without a gap for all who count them."""
        event = {name: neighbour[name] for name in ("attempt", "step", "time")}
        message = "What stood here in the log is damaged, and lost."
        event = {"seq": seq, **event, "type": "warning", "kind": "damaged", "message": message}
        self._lost[seq] = to_json(event)
        return event

    def _tell(self, event: Event) -> None:
        """Keeps the run's story: attempts, pauses, what it is doing, how often each type came."""
        kind = event["type"]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if not self.attempts or self.attempts[-1]["attempt"] != event["attempt"]:
            head = {"attempt": event["attempt"], "first_seq": event["seq"], "started": event["time"]}
            self.attempts.append(head | {"first_step": event["step"], "end": None})
        self.attempts[-1] |= _last_of_attempt(event)
        if kind == "metrics":
            return
        if "pid" in event:
            self.identity = event
        if kind in STATUS_EVENTS:
            self.status_event = event
        if kind == "start":
            self.starts.append(event)
            self.attempts[-1]["first_step"] = event["step"]
        elif kind == "paused":
            pause = {"from": event["time"], "to": None, "step": event["step"], "reason": event.get("reason", "")}
            self.pauses.append(pause | {"attempt": event["attempt"]})
        if kind in ("resumed", "stopping", "start", "complete", "error") and self.pauses:
            self.pauses[-1]["to"] = self.pauses[-1]["to"] or event["time"]
        if kind in ("complete", "error"):
            self.attempts[-1]["end"] = kind

    # -- answers -----------------------------------------------------------------------------------------------

    def lines(self, first: int, last: int, most_bytes: int | None = None) -> list[bytes]:
        """The log's lines of events ``first`` to ``last`` (inclusive), as they stand in the file; for each that is
        damaged, a warning that says so.

        Args:
            most_bytes: stop before more than this many bytes (one line is always given).
        """
        with self.lock:
            last = min(last, self.last_seq)
            if first > last or first < 1:
                return []
            offsets = self._offsets.array
            if most_bytes is not None:
                bound = offsets[first - 1] + most_bytes
                fits = self.last_seq if self.offset <= bound else int(np.searchsorted(offsets, bound, "right")) - 1
                last = max(first, min(last, fits))
            start = int(offsets[first - 1])
            stop = int(offsets[last]) if last < self.last_seq else self.offset
        with open(self.path, "rb") as file:
            block = os.pread(file.fileno(), stop - start, start)
        lines = block.split(b"\n")[:-1]
        if self.damaged_lines or self._lost:
            whole = {event["seq"]: line for line in reversed(lines) if (event := _parse_one(line)) is not None}
            found = [whole.get(seq) or self._lost.get(seq) for seq in range(first, last + 1)]
            lines = [line for line in found if line is not None]
        return lines[: last - first + 1]

    def seqs(self, types: set[str], after: int = 0, before: int | None = None) -> np.ndarray:
        """The numbers of the events of these types with ``after`` < seq < ``before``."""
        with self.lock:
            stop = self.last_seq if before is None else max(0, min(self.last_seq, before - 1))
            codes = [_TYPE_CODES[name] for name in types if name in _TYPE_CODES]
            found = np.isin(self._types.array[after:stop], codes)
            return np.flatnonzero(found) + after + 1

    def events(self, seqs: np.ndarray | list[int]) -> list[Event]:
        """The events of these numbers (in rising order); neighbours are read together."""
        found: list[Event] = []
        numbers = np.asarray(seqs, dtype=np.int64)
        if not len(numbers):
            return found
        for group in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            found += [from_json(line) for line in self.lines(int(group[0]), int(group[-1]))]
        return found

    def values(self, table: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric, where it is present: copies."""
        with self.lock:
            column = self.tables[table].columns.get(name)
            if column is None:
                return np.empty(0, np.int64), np.empty(0)
            return self.tables[table].head("step")[column.present], column.values[column.present]

    def elapsed(self) -> float:
        """Seconds in which the run was at work: all attempts, without pauses."""
        with self.lock:
            worked = sum(attempt["ended"] - attempt["started"] for attempt in self.attempts)
            end = self.last["time"] if self.last else 0.0
            return max(0.0, worked - sum((pause["to"] or end) - pause["from"] for pause in self.pauses))


class FirstLook(RunIndex):
    """A long log seen by its beginning, its end and pieces between: real points, not all of them.

    It answers at once what the run is doing and what its curves look like, while `RunIndex` reads. It holds no
    event by its number: ``last_seq`` is 0.
    """

    def __init__(self, path: Path | str, pieces: int = 64, piece_bytes: int = 1 << 16) -> None:
        super().__init__(path)
        with open(self.path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            for start in np.linspace(0, max(0, self.size - piece_bytes), pieces).astype(int).tolist():
                file.seek(start)
                lines = file.read(piece_bytes).split(b"\n")
                self._see(lines[start > 0 : -1])  # the outer ones are torn

    def update(self) -> int:
        return 0

    def _see(self, lines: list[bytes]) -> None:
        events = _parse(lines) or [event for line in lines if (event := _parse_one(line)) is not None]
        if not events or (self.last is not None and events[0]["seq"] <= self.last["seq"]):
            return
        self.last = events[-1]
        for name, table in self.tables.items():
            if rows := [event for event in events if event["type"] == name]:
                table.extend(rows)
        for event in events:
            self._tell(event)
            if event["type"] == "metrics":
                self.last_metrics = event


def _last_of_attempt(event: Event) -> dict[str, Any]:
    return {"last_seq": event["seq"], "ended": event["time"], "last_step": event["step"]}


def _parse(lines: list[bytes]) -> list[Event] | None:
    """The events of these lines; None: not all of them are events."""
    try:
        events = from_json(b"[" + b",".join(lines) + b"]", cache_strings="keys")
    except ValueError:
        return None
    return events if len(events) == len(lines) and all(map(is_event, events)) else None


def _parse_one(line: bytes) -> Event | None:
    events = _parse([line])
    return events[0] if events else None


def _columns(events: list[Event]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every number in the events as columns: name -> (values, present). Nested objects give "outer.inner"."""
    columns = {}
    for name, items in _by_key(events).items():
        if name in _HEAD:
            continue
        inner = next((item for item in items if item is not None), None)
        if isinstance(inner, dict):
            nested = _by_key([item if isinstance(item, dict) else {} for item in items])
            columns.update({f"{name}.{key}": _column(values) for key, values in nested.items()})
        elif isinstance(inner, (int, float, str)):
            columns[name] = _column(items)
    return columns


def _by_key(dicts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of every key, None where it lacks. Quick where all have the same keys, as most logs do."""
    names = list(dicts[0])
    if set(map(len, dicts)) == {len(names)}:
        with contextlib.suppress(KeyError):
            return {name: list(map(itemgetter(name), dicts)) for name in names}
    names = list(dict.fromkeys(name for item in dicts for name in item))
    return {name: [item.get(name) for item in dicts] for name in names}


def _column(items: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, and "NaN" and its kin, as floats; anything else is absent."""
    if set(map(type, items)) <= {float, int}:
        with contextlib.suppress(OverflowError):
            return np.array(items, np.float64), np.ones(len(items), bool)
    values = np.zeros(len(items))
    present = np.zeros(len(items), bool)
    for k, item in enumerate(items):
        number = decode_number(item)
        if isinstance(number, (int, float)):
            try:
                values[k] = number
            except OverflowError:  # an integer beyond a float's range
                values[k] = np.inf if number > 0 else -np.inf
            present[k] = True
    return values, present
