"""Starts runs, one at a time on each device, in processes of their own that outlive the server.

A run that waits is a folder with its ``config.json`` and a line in the queue's file; the file survives the server,
and so does every trainer: it is the leader of its own session, writes to the run's ``log.txt``, and belongs to
nobody once it is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from limner.runs import Run, Status
from limner.runs.launch import Launch, newest_process
from limner.runs.state import process_alive
from limner.server.errors import Refusal
from limner.server.watch import Runs
from limner.whole_files import write_whole

log = logging.getLogger("limner.server")
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Waiting:
    """A run in the queue, and the arguments (beginning with the verb) that will start it."""

    run: str
    arguments: list[str]
    device: str


class Launcher:
    """The queue and the processes that this server has started.

    Args:
        command: what stands before the verb on the command line.
    """

    def __init__(self, runs: Runs, state_dir: Path, command: list[str] | None = None) -> None:
        self.runs, self.path = runs, state_dir / "queue.json"
        self.command = command or [sys.executable, "-m", "limner"]
        self._lock = threading.RLock()
        self._children: dict[str, tuple[subprocess.Popen[bytes], Launch]] = {}
        self._queue = self._load()
        self._failure: str | None = None
        self._unclear: set[str] = set()
        """Runs whose device could not be told, which the log has said."""
        self._task: asyncio.Task[None] | None = None
        runs.position = self.position

    # -- the queue -------------------------------------------------------------------------------------------

    @property
    def queue(self) -> list[Waiting]:
        with self._lock:
            return list(self._queue)

    def position(self, name: str) -> int | None:
        """A run's place in the queue, from 1."""
        with self._lock:
            return next((k + 1 for k, waiting in enumerate(self._queue) if waiting.run == name), None)

    def submit(self, run: Run, arguments: list[str], device: str) -> None:
        """Starts the run now if its device is free, else when those before it have ended.

        Raises:
            OSError: the queue cannot be written; the run is not in it.
        """
        with self._lock:
            if self.position(run.name) is None:
                self._save([*self._queue, Waiting(run.name, arguments, resolve_device(device))])
            self._try_look()

    def withdraw(self, name: str) -> bool:
        """Takes a run out of the queue. False: it was not in it."""
        with self._lock:
            kept = [waiting for waiting in self._queue if waiting.run != name]
            found = len(kept) < len(self._queue)
            if found:
                self._save(kept)
            return found

    def move(self, name: str, position: int) -> None:
        """Moves a waiting run to this place (from 1)."""
        with self._lock:
            found = next((waiting for waiting in self._queue if waiting.run == name), None)
            if found is None:
                raise Refusal("wrong_state", f"The run '{name}' does not wait in the queue.", state="not queued")
            queue = [waiting for waiting in self._queue if waiting is not found]
            queue.insert(max(0, position - 1), found)
            self._save(queue)

    # -- processes -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Notes which processes have ended, and starts what may start."""
        with self._lock:
            self._reap()
            if not self._queue:
                return
            busy = self.busy_devices()
            for waiting in list(self._queue):
                if waiting.device in busy:
                    continue
                self._save([other for other in self._queue if other is not waiting])
                try:
                    self._start(waiting)
                    busy[waiting.device] = waiting.run
                except (OSError, ValueError, Refusal) as error:
                    log.error("Run '%s' could not be started: %s", waiting.run, error)

    def busy_devices(self) -> dict[str, str]:
        """Device of this machine -> the active run that works on it, whoever started it."""
        busy = {}
        for watched in self.runs.all():
            if watched.recorded or self.position(watched.run.name) is not None:
                continue
            try:
                watched.index.update()
                told = watched.index.told
                state = watched.run.state(told)
                process = newest_process(told, Launch.load(watched.run.path)) or {}
                if state.status.active and process.get("host") == socket.gethostname():
                    busy[str(state.device or "cpu").split(":")[0]] = watched.run.name
            except Exception as error:  # whatever one run is, the queue goes on
                if watched.run.name not in self._unclear:
                    log.warning("What run '%s' works on cannot be told: %r", watched.run.name, error)
                self._unclear.add(watched.run.name)
        return busy

    def _start(self, waiting: Waiting) -> None:
        run = self.runs.find(waiting.run).run
        argv = [*self.command, *waiting.arguments]
        with open(run.log_path, "ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=run.folder if run.folder.is_dir() else None,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        launch = Launch.of_process(["limner", *waiting.arguments], waiting.device, process.pid)
        self._children[run.name] = (process, launch)
        with contextlib.suppress(OSError):  # the disk is full; its log tells of it soon
            launch.save(run.path)
        log.info("Started run '%s' (process %d).", run.name, process.pid)

    def _reap(self) -> None:
        for name, (process, launch) in list(self._children.items()):
            returncode = process.poll()
            if returncode is None:
                continue
            del self._children[name]
            with contextlib.suppress(OSError):  # the run's folder may have been deleted meanwhile
                launch.with_end(returncode).save(self.runs.runs_dir / name)

    def kill(self, run: Run) -> None:
        """SIGKILL to the run's process and what it started.

        Raises:
            Refusal: it runs on another machine, or is gone.
        """
        watched = self.runs.find(run.name)
        watched.index.update()
        found = newest_process(watched.index.told, Launch.load(run.path))
        if found is None or not process_alive(found, 0.0):
            elsewhere = found is not None and found.get("host") != socket.gethostname()
            where = f"on {found['host']}" if elsewhere and found else "here no more"
            state = Status.RUNNING if elsewhere else Status.CRASHED
            raise Refusal("wrong_state", f"The process of run '{run.name}' is {where}.", state=state)
        pid = int(found["pid"])
        try:
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    # -- the server's life -----------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Looks again and again."""
        while True:
            await asyncio.to_thread(self._try_look)
            await asyncio.sleep(LOOK_SECONDS)

    def _try_look(self) -> None:
        """`look`; what fails is logged, once for all looks that fail alike, and the next one tries anew."""
        failure = None
        try:
            self.look()
        except Exception as error:
            failure = repr(error)
            if failure != self._failure:
                log.exception("The queue could not be looked after.")
        self._failure = failure

    def _load(self) -> list[Waiting]:
        try:
            return [Waiting(**entry) for entry in json.loads(self.path.read_text())["queue"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            log.error("The queue in %s cannot be read and is begun anew: %s", self.path, error)
            return []

    def _save(self, queue: list[Waiting]) -> None:
        """Makes this the queue, on the disk first: where that is full, it stays as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps({"queue": [asdict(waiting) for waiting in queue]}, indent=1))
        self._queue = queue


def resolve_device(device: str) -> str:
    """What "auto" will be on this machine, told without torch: a guess that only decides which runs wait."""
    if device != "auto":
        return device
    if shutil.which("nvidia-smi") or os.path.exists("/dev/nvidia0"):
        return "cuda"
    return "mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu"
