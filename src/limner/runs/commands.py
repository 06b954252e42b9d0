"""The command folder: anyone asks, the trainer answers.

A command is a JSON file in ``commands/``, written aside and renamed, so that it is whole or absent. The trainer
takes them in the order of their names (which begin with a time), and acknowledges each with an event that holds
``command``: the command's id. A taken command's file is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.whole_files import write_whole

COMMANDS = {
    "pause": "hold at the next step boundary, the model kept in memory",
    "resume": "go on after a pause",
    "stop": "save a checkpoint, then end; the run can be resumed",
    "checkpoint": "save a resumable state now",
    "sample": "decode this prompt or picture with the live weights (also while paused)",
    "note": "put a person's remark into the log",
}

_TICK_NS = 2 * 10**9
"""The coarsest file times, FAT's, move on in steps of two seconds."""


@dataclass(frozen=True)
class Command:
    """A request to a run: ``name`` is one of `COMMANDS`; ``arguments`` e.g. ``{"prompt": ...}``."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0


def send_command(run_folder: Path | str, name: str, **arguments: Any) -> str:
    """Asks the run's trainer for something and returns the command's id, which its acknowledgement will name.

    Raises:
        ValueError: ``name`` is not a command.
        FileNotFoundError: there is no such run.
    """
    if name not in COMMANDS:
        raise ValueError(f"'{name}' is not a command; use one of: {', '.join(COMMANDS)}.")
    folder = Path(run_folder) / "commands"
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"There is no run at {folder.parent}.")
    with contextlib.suppress(FileExistsError):  # exist_ok would raise it where the run goes away at this moment
        folder.mkdir()
    now = time.time()
    identity = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    body = {"id": identity, "name": name, "arguments": arguments, "time": now}
    write_whole(folder / f"{identity}.json", json.dumps(body))
    return identity


class CommandQueue:
    """The trainer's end of the command folder. `poll` costs one ``stat`` when nothing has changed for a while."""

    def __init__(self, run_folder: Path | str) -> None:
        self.folder = Path(run_folder) / "commands"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._seen_mtime = -1
        self._stuck: set[str] = set()
        """Names that could not be removed: they are taken once."""

    def poll(self) -> list[Command]:
        """Takes all waiting commands, oldest first. What cannot be read as one is taken away and named ``invalid``.

        Raises nothing: whatever lies there, a run must not end of it.
        """
        try:
            mtime = os.stat(self.folder).st_mtime_ns
            names = os.listdir(self.folder) if mtime != self._seen_mtime else []
        except OSError:  # cleared away by hand; whoever asks makes it anew
            return []
        commands = []
        for path in (self.folder / name for name in sorted(names) if name.endswith(".json")):
            if path.name in self._stuck:
                continue
            try:
                command = _read(path)
            except FileNotFoundError:  # taken back
                continue
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                command = Command(path.stem, "invalid", time=time.time())
            try:
                path.unlink(missing_ok=True)
            except OSError:
                self._stuck.add(path.name)
            commands.append(command)
        # Our own unlinks changed the folder's time, and a command of the same tick of the file system's clock does
        # not change it: remember the time only of a folder seen empty some ticks later.
        settled = time.time_ns() - mtime > _TICK_NS
        self._seen_mtime = mtime if not commands and settled else -1
        return commands


def _read(path: Path) -> Command:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
        raise ValueError("no file")
    body = json.loads(path.read_text())
    return Command(str(body["id"]), str(body["name"]), dict(body["arguments"]), float(body["time"]))
