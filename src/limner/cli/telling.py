"""What a verb tells beside its answer: notes, and a bar while it works, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from limner.data.sizes import Progress as Told

NOTES = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One line, whatever stands in it."""
    NOTES.print(text, markup=False, soft_wrap=True)


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
