"""Which model a word on a command line means: a run's, by its name or folder, or what transformers finds by it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from limner.runs.folder import Run
from limner.runs.state import Status

Kind = Literal["language model", "captioner"]
MAKES: dict[str, Kind] = {"pretrain": "language model", "train": "captioner", "demo": "captioner"}
"""What the runs of a verb make."""
_USE = {"language model": "limner generate", "captioner": "limner caption"}


def find_model(name: str | Path, runs_dir: Path, wanted: Kind | None = None) -> str:
    """A run's name or folder becomes its finished model; a model folder or a hub id stays as it is.

    Args:
        wanted: the kind of model that is of use; None: either.

    Raises:
        ValueError: the run makes the other kind.
        FileNotFoundError: the run has no finished model yet.
    """
    run = find_run_of_model(name, runs_dir, wanted)
    if run is None:
        inside = Path(runs_dir) / name
        return str(inside) if inside.is_dir() and not Path(name).is_dir() else str(name)
    if run.model_path.is_dir():
        return str(run.model_path)
    state, checkpoints = run.state(), run.checkpoints()
    status, verb = state.status, run.config["verb"]
    advice = f"resume it (`limner {verb} --resume {run.path}`)"
    if status is Status.FAILED and not checkpoints:
        advice = f"it said {state.detail!r}; mend that, and begin it again (`limner {verb} --name {run.name} ...`)"
    if status.active:
        advice = f"follow it (`limner runs tail {run.path}`)"
    if verb == "train" and checkpoints:
        advice += f", or evaluate one of its checkpoints ({checkpoints[-1]})"
    what = "finished model" if checkpoints else "finished model and no checkpoint"
    raise FileNotFoundError(f"The run {run.path} is {status} and has no {what} yet: {advice}.")


def find_checkpoint(name: str | Path, runs_dir: Path, wanted: Kind) -> tuple[Run, Path] | None:
    """The checkpoint that is meant by its folder, or by a run that has no finished model yet (its latest one), with
    its run; None: neither is.

    Raises:
        ValueError: the run makes the other kind of model.
    """
    for path in (Path(name), Path(runs_dir) / name):
        run = _run_at(path.parent.parent)
        if run is not None and path.parent.name == "checkpoints" and (path / "manifest.json").is_file():
            _check(run, wanted)
            return run, path
    run = find_run_of_model(name, runs_dir, wanted)
    if run is None or run.model_path.is_dir():
        return None
    checkpoints = run.checkpoints()
    return (run, checkpoints[-1]) if checkpoints else None


def find_run_of_model(name: str | Path, runs_dir: Path, wanted: Kind | None) -> Run | None:
    """The run of this folder or name, if there is one.

    Raises:
        ValueError: it makes the other kind of model.
    """
    run = _run_at(Path(name)) or _run_at(Path(runs_dir) / name)
    if run is not None:
        _check(run, wanted)
    return run


def _run_at(path: Path) -> Run | None:
    try:
        return Run(path) if "verb" in Run(path).config else None  # a model folder has a config.json too
    except (OSError, ValueError):
        return None


def _check(run: Run, wanted: Kind | None) -> None:
    kind = MAKES.get(run.config["verb"])
    if kind and wanted and kind != wanted:
        raise ValueError(
            f"The run {run.path} makes a {kind} (for `{_USE[kind]}`), and a {wanted} is wanted here: a run of "
            f"`limner {'pretrain' if wanted == 'language model' else 'train'}`, a model folder or a hub id."
        )
