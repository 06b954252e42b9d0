"""Settings of ``limner runs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from limner.config.base import Config


class _Runs(Config):
    runs_dir: Path = Path("runs")
    """The folder that holds the runs."""


class _OneRun(_Runs):
    run: Annotated[str, tyro.conf.Positional]
    """The run: its name, or its folder."""


class ListRuns(_Runs):
    """All runs, newest first: state, step, last loss, best metric."""

    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """One JSON object a line."""


class TailRun(_OneRun):
    """Follow a run's events as they come."""

    lines: int = Field(default=10, ge=0)
    """Events of the past to begin with."""
    follow: bool = True
    """Wait for more until the run ends; --no-follow prints what is there."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """The events as they are in the log."""


class PauseRun(_OneRun):
    """Hold a run at its next step boundary, its model kept in memory."""


class ResumeRun(_OneRun):
    """Let a paused run go on; a stopped or crashed one is resumed by a new process, here."""


class StopRun(_OneRun):
    """Save a run's state and end it; it can be resumed."""

    wait: bool = False
    """Return only when the run has ended."""


class CheckpointRun(_OneRun):
    """Save a resumable state of a run now."""


class NoteRun(_OneRun):
    """Put a remark into a run's log."""

    text: Annotated[str, tyro.conf.Positional]
    """The remark."""


class ExamplesOfStep(_OneRun):
    """Which examples a step of a run was trained on: what to look at behind a spike."""

    step: Annotated[int, tyro.conf.Positional]
    """The step, as in the log (from 1)."""


class DeleteRun(_OneRun):
    """Remove a run's folder."""

    yes: bool = False
    """Do not ask."""
