"""The runs on disk, indexed, and told to whoever watches: the only thing the server knows of a run's life.

A run is followed by looking at its log's size some times a second while somebody watches, and when somebody asks.
Nothing is ever sent to a trainer from here; a slow or frozen browser costs a cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from limner.runs import Run
from limner.runs.folder import check_name, list_runs
from limner.runs.index import FirstLook, RunIndex
from limner.server.errors import Refusal
from limner.server.summary import RunSummary, summarize

POLL_SECONDS = 0.1
BUSY_SECONDS = 0.25
"""The same while events stream in: four looks a second are live enough for a curve, and cost the trainer less."""
STATUS_SECONDS = 1.0
"""How often a watched run's process is looked at, so that a crash, which writes nothing, is seen."""
LONG_BYTES = 32 << 20
"""A log of more than this takes a second to read: until it is read, a `FirstLook` answers."""
INDEX_BYTES = 1 << 30
"""Indexes kept in memory; those of runs that nobody watches go first."""

log = logging.getLogger("limner.server")


class Watched:
    """One run, its index, and a bell that rings when either its log or its state has changed."""

    def __init__(self, run: Run, recorded: bool) -> None:
        self.run, self.recorded = run, recorded
        self.config_stamp = _stamp(run.path / "config.json")
        self.index = RunIndex(run.events_path)
        self.first_look: FirstLook | None = None
        """What is shown of a long log until all of it has been read."""
        self.summary: RunSummary | None = None
        self.stamp: tuple[object, ...] = ()
        """Of the files that the summary was made from, and the run's place in the queue."""
        self.used = time.monotonic()
        self.watchers = 0
        self.gone = False
        self.trouble = ""
        """Why it is left out of the list."""
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def shown(self) -> RunIndex:
        """What charts are drawn from."""
        return self.first_look or self.index

    def ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def wait(self, seconds: float) -> None:
        """Until the bell rings, or for ``seconds``."""
        bell = self._bell
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(bell.wait(), seconds)


class Runs:
    """All runs below ``runs_dir``, and the recorded ones that came with Limner.

    Args:
        position: a run's place in the queue of runs that wait to start, from 1; None: it is not in it.
    """

    def __init__(
        self,
        runs_dir: Path,
        recorded_dir: Path | None = None,
        position: Callable[[str], int | None] = lambda name: None,
    ) -> None:
        self.runs_dir, self.recorded_dir, self.position = runs_dir, recorded_dir, position
        self._watched: dict[str, Watched] = {}
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    # -- finding ---------------------------------------------------------------------------------------------

    def find(self, name: str) -> Watched:
        """The run of this name.

        Raises:
            Refusal: there is none. Names that would lead out of the runs folder are none, and so are links.
        """
        for root in (self.runs_dir, self.recorded_dir):
            if root is not None and _is_run(root, name):
                with self._lock:
                    watched = self._watched.get(name)
                    if watched is None or watched.gone or watched.run.path != root / name:
                        watched = Watched(_opened(root / name), recorded=root == self.recorded_dir)
                        self._watched[name] = watched
                    elif (stamp := _stamp(root / name / "config.json")) != watched.config_stamp:
                        # Written anew by its verb, or a new run of an old name; the index sees that for itself.
                        watched.run, watched.config_stamp = _opened(root / name), stamp
                watched.used = time.monotonic()
                return watched
        with self._lock:
            self._watched.pop(name, None)
        raise Refusal("not_found", f"There is no run '{name[:128]}' in {self.runs_dir}.", field="id")

    def all(self) -> list[Watched]:
        """Every run, newest first."""
        return self._all()[0]

    def _all(self) -> tuple[list[Watched], dict[str, str]]:
        """Every run, newest first; and folders that cannot be shown, with why."""
        roots = [root for root in (self.runs_dir, self.recorded_dir) if root is not None]
        found = {run.name: run for root in reversed(roots) for run in list_runs(root)}
        watched, left_out = [], dict[str, str]()
        for name, run in found.items():
            try:
                watched.append(self.find(name))
            except Refusal as refusal:
                if (run.path / "config.json").is_file():  # else it has been deleted since
                    left_out[name] = _misnamed(name) or refusal.detail.message
        return watched, left_out

    def update(self, watched: Watched) -> RunSummary:
        """Reads what is new of a run, and tells what it is doing. A long log is read beside, its first time."""
        position = self.position(watched.run.name)
        stamp = (position, *(_stamp(watched.run.path / name) for name in _TELLING))
        summary = watched.summary
        if summary is not None and not summary.status.active and stamp == watched.stamp:
            return summary  # a list of hundreds of ended runs is asked for every few seconds
        try:
            if not watched.index.whole and _size(watched.index.path) > LONG_BYTES:
                return self._first_look(watched, position)
            watched.index.update()
            watched.first_look = None
            watched.summary = summarize(watched.run, watched.index, position, watched.recorded)
        except FileNotFoundError:  # deleted under our hands
            raise Refusal("not_found", f"The run '{watched.run.name}' has been deleted.", field="id") from None
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
            why = str(error).partition("\n")[0]
            message = f"The log of run '{watched.run.name}' holds what no run says: {type(error).__name__}: {why}"
            raise Refusal("unavailable", message, field="id") from error
        watched.stamp = stamp
        return watched.summary

    def _first_look(self, watched: Watched, position: int | None) -> RunSummary:
        def read() -> None:
            with self._reading:  # one long log at a time
                watched.index.update()
                watched.first_look = None

        with self._lock:
            look = watched.first_look
            if look is None:
                look = watched.first_look = FirstLook(watched.index.path)
                threading.Thread(target=read, daemon=True).start()
        found = summarize(watched.run, look, position, watched.recorded)
        reading = f"reading {look.size >> 20:,} MB of its log"
        sure = found.status.active and found.detail
        return found.model_copy(update={"detail": found.detail if sure else reading})

    async def summary(self, name: str, whole: bool = False) -> tuple[Watched, RunSummary]:
        """`find` and `update`, off the event loop. ``whole``: not by a first look, since something hangs on it."""
        watched = self.find(name)
        if whole:
            await asyncio.to_thread(watched.index.update)
        return watched, await asyncio.to_thread(self.update, watched)

    def summaries(self) -> tuple[list[RunSummary], dict[str, str]]:
        """Of all runs, newest first; and folders that cannot be shown, with why."""
        runs, left_out = self._all()
        found = []
        for watched in runs:
            try:
                found.append(self.update(watched))
                watched.trouble = ""
            except (Refusal, OSError) as error:
                if watched.trouble != (trouble := str(error)):
                    log.warning("Run '%s' is left out of the list: %s", watched.run.name, trouble)
                watched.trouble = trouble
                if watched.run.path.is_dir():
                    left_out[watched.run.name] = trouble
        self.forget_idle()
        return sorted(found, key=lambda summary: -summary.created), left_out

    def forget_idle(self) -> None:
        """Drops the least recently used indexes that are more than the memory has room for."""
        with self._lock:
            total = sum(watched.index.nbytes for watched in self._watched.values())
            for name, watched in sorted(self._watched.items(), key=lambda item: item[1].used):
                if total <= INDEX_BYTES:
                    return
                if not watched.watchers:
                    total -= watched.index.nbytes
                    del self._watched[name]

    # -- following -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def following(self, watched: Watched):  # type: ignore[no-untyped-def]
        """While within, the run's log is followed, and its bell rings."""
        watched.watchers += 1
        if watched._task is None or watched._task.done():
            watched._task = asyncio.create_task(self._follow(watched))
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if watched.watchers == 0 and watched._task is not None:
                watched._task.cancel()
                watched._task = None

    async def _follow(self, watched: Watched) -> None:
        """Rings at new events at once, and at a new state within a second (an event that tells one: at once)."""
        index, looked, told_state = watched.index, -STATUS_SECONDS, b""
        while True:
            told, seq = index.status_event, index.last_seq
            try:
                if _size(index.path) != index.offset:
                    await asyncio.to_thread(index.update)
                if time.monotonic() - looked >= STATUS_SECONDS or index.status_event is not told:
                    looked = time.monotonic()
                    self._check_there(watched)
                    summary = await asyncio.to_thread(self.update, watched)
                    state = hashlib.sha256(repr(_state(summary)).encode()).digest()
                    if state != told_state:
                        told_state = state
                        watched.ring()
            except (Refusal, OSError, ValueError) as error:
                watched.gone = not watched.run.path.is_dir()
                log.warning("Run '%s' cannot be followed: %s", watched.run.name, error)
                watched.ring()
                await asyncio.sleep(STATUS_SECONDS)
            grown = index.last_seq != seq
            if grown:
                watched.ring()
            await asyncio.sleep(BUSY_SECONDS if grown else POLL_SECONDS)

    def _check_there(self, watched: Watched) -> None:
        if not (watched.run.path / "config.json").is_file():
            raise Refusal("not_found", f"The run '{watched.run.name}' has been deleted.", field="id")


_TELLING = ("config.json", "events.jsonl", "labels.json", "launch.json", "checkpoints")
"""What a summary is made from."""


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _state(summary: RunSummary) -> tuple[object, ...]:
    return summary.status, summary.detail, summary.actions, summary.queue_position, summary.resumable


def _is_run(root: Path, name: str) -> bool:
    """Whether ``name`` is a run's folder directly below ``root``: no link, no way out."""
    try:
        path = root / check_name(name)
    except ValueError:
        return False
    try:
        return not path.is_symlink() and (path / "config.json").is_file()
    except OSError:  # a name that is too long for the file system
        return False


def _misnamed(name: str) -> str | None:
    """What is wrong with the name of a run's folder, and what to do; None: nothing."""
    try:
        check_name(name)
    except ValueError as error:
        return f"{error} Rename the folder, and it is listed."
    return None


def _opened(path: Path) -> Run:
    """The run, if its ``config.json`` is one.

    Raises:
        Refusal: it is not.
    """
    run = Run(path)
    try:
        config = run.config
        whole = isinstance(config["verb"], str) and isinstance(config["config"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise Refusal("not_found", f"{path / 'config.json'} does not describe a run.", field="id")
    return run


def inside(folder: Path, name: str, what: str) -> Path:
    """The file or folder ``name`` directly below ``folder``.

    Raises:
        Refusal: there is none there; names with slashes or a leading dot, and links, are none.
    """
    path = folder / name
    plain = name and "/" not in name and "\\" not in name and "\0" not in name and not name.startswith(".")
    try:
        if plain and not path.is_symlink() and path.exists() and path.resolve().parent == folder.resolve():
            return path
    except OSError:  # a name that is too long for the file system
        plain = False
    raise Refusal("not_found", f"There is no {what} '{name[:100]}' here.")
