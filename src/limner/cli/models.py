"""Which model a verb's argument means."""

from __future__ import annotations

from pathlib import Path

from limner.runs import Run


def model_named(name: str, runs_dir: Path) -> str:
    """A run's name or folder becomes its finished model; a model folder or a hub id stays as it is.

    Raises:
        FileNotFoundError: the run has no finished model yet.
    """
    for path in (Path(name), runs_dir / name):
        if (path / "events.jsonl").is_file():
            if not (path / "model").is_dir():
                status = Run(path).state().status
                raise FileNotFoundError(
                    f"The run {path} is {status} and has no finished model yet: follow it (`limner runs tail`), "
                    f"resume it, or evaluate one of its checkpoints ({path}/checkpoints/...)."
                )
            return str(path / "model")
        if path.is_dir():
            return str(path)
    return name
