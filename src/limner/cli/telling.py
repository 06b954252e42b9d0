"""What a verb tells beside its answer: notes, and a bar while it works, on standard error."""

from __future__ import annotations

import codecs
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from limner.data.sizes import Progress as Told

NOTES = Console(stderr=True, highlight=False)


def answers() -> Console:
    """Standard output, for tables: in a pipe they are as wide as they need, since no terminal folds them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1_000)


def writes_utf8() -> bool:
    """Whether standard output takes every letter."""
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"


def json_line(value: Any) -> str:
    """For standard output: its letters as they are, or escaped where it would put something else in their place."""
    return json.dumps(value, ensure_ascii=not writes_utf8())


def note(text: str) -> None:
    """One line, whatever stands in it."""
    NOTES.print(text, markup=False, soft_wrap=True)


def made(folder: Path) -> Path:
    """The folder of ``--out``, made before work is put into what goes there.

    Raises:
        OSError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}); name another with --out.") from error


@contextmanager
def bar() -> Iterator[Told]:
    """A progress bar, one for each phase."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=NOTES, transient=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int, unit: str) -> None:
            if phase not in tasks:
                tasks[phase] = shown.add_task(phase, total=total)
            shown.update(tasks[phase], completed=done, total=total)

        yield tell
