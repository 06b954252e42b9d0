"""A run's folder, opened for reading; made by `create_run`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from limner.runs.events import Event, EventReader
from limner.runs.launch import Launch
from limner.runs.state import RunState, Told, status_of
from limner.whole_files import write_whole

try:
    import fcntl
except ImportError:  # no flock on this system: two who work on one run, or its checkpoints, are not kept apart
    fcntl = None  # type: ignore[assignment]

_GRAVE = ".deleted"
_NAME_BYTES = 230
"""File systems take 255, and `remove_folder` adds some."""
_NAME = re.compile(r"[^\W_][\w.+-]{0,127}")


@dataclass(frozen=True)
class Run:
    """A run on disk. Cheap to make; every question reads the folder anew.

    Raises (from `find_run`, not from the constructor): FileNotFoundError where there is no such run.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def samples_path(self) -> Path:
        return self.path / "samples"

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``: ``verb``, ``config`` (the resolved settings), ``versions``, and the working directory
        as ``folder``."""
        return json.loads((self.path / "config.json").read_text())

    @property
    def folder(self) -> Path:
        """Where the run was begun, and what relative paths in its settings start from."""
        return Path(self.config.get("folder", "."))  # older runs do not say

    def events(self, after_seq: int = 0) -> list[Event]:
        return [event for event in EventReader(self.events_path).read() if event["seq"] > after_seq]

    def log_tail(self, lines: int = 50) -> list[str]:
        """The last lines of the trainer's output."""
        try:
            file = open(self.log_path, "rb")  # noqa: SIM115  closed by the `with` below
        except FileNotFoundError:
            return []
        with file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 400 * lines))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints by their steps (half ones have another name)."""
        try:
            names = os.listdir(self.checkpoints_path)
        except FileNotFoundError:
            return []
        steps = {step: name for name in names if (step := checkpoint_step(name)) is not None}
        return [path for step in sorted(steps) if (path := self.checkpoints_path / steps[step]).is_dir()]

    def state(self, told: Told | None = None) -> RunState:
        """What the run is doing now. ``told``: what its log tells, where the caller has read it already."""
        told = Told.by(self.events()) if told is None else told
        launch = Launch.load(self.path)
        status, detail = status_of(told, launch)
        start = told.start or {}
        return RunState(
            status=status,
            step=told.last["step"] if told.last else 0,
            total_steps=start.get("total_steps"),
            resumable=status.unfinished and bool(self.checkpoints()),
            device=start.get("device") or (launch.device if launch else None),
            detail=detail,
        )

    def size(self) -> int:
        """Bytes on disk."""
        return folder_size(self.path)

    def lock(self) -> IO[bytes]:
        """Held by whoever works on the run, until it is closed or its process ends, however.

        Raises:
            ValueError: another process holds it.
        """
        try:
            return take_lock(self.path / ".lock")
        except BlockingIOError:
            raise ValueError(
                f"Run '{self.name}' is at work in another process; follow it with `limner runs tail {self.name}`."
            ) from None

    def delete(self, told: Told | None = None) -> None:
        """Removes the folder. ``told``: as of `state`.

        Raises:
            ValueError: a process is at work on the run.
        """
        if self.state(told).status.active:
            raise ValueError(f"Run '{self.name}' is at work; stop it first: limner runs stop {self.name}")
        was_locked = (self.path / ".lock").exists()  # a full disk may have no room for it
        with self.lock() if was_locked else contextlib.nullcontext():
            remove_folder(self.path)
        clear_graves(self.path.parent)


def take_lock(path: Path) -> IO[bytes]:
    """Opens a file, locked for this process alone, and writes the process's number into it.

    Raises:
        BlockingIOError: another process has locked it.
    """
    file = open(path, "ab", buffering=0)  # noqa: SIM115  as long as the lock is held
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    with contextlib.suppress(OSError):  # the disk is full
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file


def checkpoint_step(name: str) -> int | None:
    """The step of the checkpoint that a folder of this name is; None: it is none (a person's copy, say)."""
    found = re.fullmatch(r"step-(\d{6,})", name)
    return int(found[1]) if found else None


def folder_size(path: Path) -> int:
    """Bytes below ``path``. Trainers rename and prune meanwhile: what vanishes while it is counted is not."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def remove_folder(path: Path) -> None:
    """Removes a folder. It vanishes at once, by a rename, so that nobody sees half of it.

    Raises:
        FileNotFoundError: it is not there; of two who remove it one is too late.
    """
    _clear_away(_bury(path))


@contextlib.contextmanager
def being_read(checkpoint: Path) -> Iterator[None]:
    """Holds a shared lock that keeps `remove_checkpoint` from this checkpoint."""
    with open(checkpoint / "manifest.json", "rb") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def remove_checkpoint(path: Path) -> bool:
    """As `remove_folder`, unless somebody reads the checkpoint. False: it is being read, and stays.

    Raises:
        FileNotFoundError: it, or its manifest, is not there.
    """
    with open(path / "manifest.json", "rb") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        grave = _bury(path)
    _clear_away(grave)
    return True


def _bury(path: Path) -> Path:
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_GRAVE}")
    path.rename(grave)
    return grave


def _clear_away(grave: Path) -> None:
    while grave.exists():
        try:
            shutil.rmtree(grave)
        except OSError as error:  # somebody else clears it away as well, or still wrote into it: again
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


def clear_graves(folder: Path) -> None:
    """Removes what is left of folders whose removal was cut short."""
    for grave in folder.glob(".*"):
        named = re.fullmatch(rf"\..+\.[0-9a-f]{{8}}({re.escape(_GRAVE)})?", grave.name)
        # a version before this gave them no ending
        if named and (named[1] or (grave / "config.json").is_file() or (grave / "events.jsonl").is_file()):
            shutil.rmtree(grave, ignore_errors=True)


def check_name(name: str) -> str:
    """Returns ``name`` if it can name a run: it must stay one plain folder below the runs folder.

    Raises:
        ValueError: it has a slash, begins with a dot, is empty or too long.
    """
    if len(name.encode(errors="replace")) > _NAME_BYTES:
        raise ValueError(f"'{name[:20]}...' is too long for the name of a run's folder.")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' cannot name a run: use letters, digits and . _ + -, beginning with a letter or digit."
        )
    return name


def default_name(runs_dir: Path, verb: str, subject: str) -> str:
    """The name of a run that was given none: verb, subject (its data set, say) and date."""
    letters = "".join(letter if letter.isalnum() or letter in "._+-" else "-" for letter in subject)
    parts = (verb, _cut(letters, 60, _NAME_BYTES - 60).strip("-._"), time.strftime("%Y%m%d-%H%M%S"))
    return free_name(runs_dir, "-".join(filter(None, parts)))


def free_name(runs_dir: Path, name: str) -> str:
    """``name``, or the first of name-2, name-3 and so on that no run has."""
    candidate, number = name, 1
    while (runs_dir / candidate).exists():
        number += 1
        candidate = f"{_cut(name, 120, _NAME_BYTES - 6)}-{number}"
    return candidate


def _cut(name: str, letters: int, size: int) -> str:
    """The beginning of ``name``: at most so many letters, and ``size`` bytes."""
    return name[:letters].encode(errors="replace")[:size].decode(errors="ignore")


def create_run(runs_dir: Path | str, name: str, verb: str, config: dict[str, Any]) -> Run:
    """Makes the folder of a new run, with its ``config.json``.

    Raises:
        FileExistsError: a run of that name is there already. OSError: the disk is full; nothing is left.
    """
    path = Path(runs_dir) / check_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        raise FileExistsError(
            f"There is a run named '{name}' in {runs_dir} already; choose another --name."
        ) from None
    try:
        for folder in ("commands", "checkpoints", "samples"):
            (path / folder).mkdir()
        write_config(path, verb, config)
    except OSError:  # the disk is full: the name is free again
        shutil.rmtree(path, ignore_errors=True)
        raise
    return Run(path)


def write_config(path: Path, verb: str, config: dict[str, Any], folder: Path | None = None) -> None:
    """Writes a run's ``config.json``, whole or not at all. ``folder``: where it was begun; None: here."""
    body = {"verb": verb, "config": config, "folder": str(folder or Path.cwd()), "versions": _versions()}
    write_whole(path / "config.json", json.dumps(body, indent=2, default=str))


def find_run(name_or_path: Path | str, runs_dir: Path | str = "runs") -> Run:
    """The run of this name in ``runs_dir``, or at this path.

    Raises:
        FileNotFoundError: there is none; the message names near ones.
    """
    for path in (Path(runs_dir) / name_or_path, Path(name_or_path)):
        if (path / "config.json").is_file():
            return Run(path.resolve() if path.name in ("", ".", "..") else path)
    import difflib

    names = [run.name for run in list_runs(runs_dir)]
    near = difflib.get_close_matches(str(name_or_path), names, n=3)
    hint = f" Did you mean {', '.join(near)}?" if near else " `limner runs list` shows what is there."
    raise FileNotFoundError(f"There is no run '{name_or_path}' in {runs_dir}.{hint}")


def list_runs(runs_dir: Path | str) -> list[Run]:
    """All runs of a folder, newest first; one without ``config.json``, or whose name begins with a dot, is none."""
    root = Path(runs_dir)
    if not root.is_dir():
        return []
    found = []
    for path in root.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # no run, or deleted while we look
            written = (path / "config.json").stat().st_mtime
            if not path.is_symlink() and not path.name.startswith("."):  # those are on their way out
                found.append((written, path))
    return [Run(path) for _, path in sorted(found, reverse=True)]


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in ("limner", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
