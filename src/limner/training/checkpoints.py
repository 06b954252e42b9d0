"""The keeper of resumable states: each complete or absent, verified when loaded, never a pickle.

    step-000500/
      model.safetensors       trained parameters and buffers
      optimizer.safetensors   the optimizer's moments
      state.json              step, early stopping, the task's own state
      manifest.json           size and SHA-256 of each file above, step, metrics

A checkpoint is written into a folder whose name begins with a dot, every byte is forced to the disk, and only then
is the folder renamed: whatever kills the process, a folder without the dot is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limner.runs.folder import being_read, checkpoint_step, remove_checkpoint
from limner.training.sharding import shared_out_like

Tensors = dict[str, torch.Tensor]

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Checkpoint:
    """A complete state on disk. ``metrics``: what was last measured when it was saved."""

    path: Path
    step: int
    metrics: dict[str, float]

    def read(self) -> tuple[Tensors, Tensors, dict[str, Any]]:
        """See `read_checkpoint`."""
        return read_checkpoint(self.path)


def read_checkpoint(folder: Path) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Model tensors, optimizer tensors and state, after checking every file against the manifest.

    Raises:
        ValueError: a file is missing or differs from what was written.
    """
    with being_read(folder):
        verify(folder)
        state = json.loads((folder / "state.json").read_text())
        return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors"), state


def trained_tensors(model: nn.Module) -> Tensors:
    """What training changes: trained parameters and buffers, by name."""
    state = model.state_dict()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained | {name: buffer for name, buffer in model.named_buffers() if name in state}


def put_tensors(model: nn.Module, tensors: Tensors) -> None:
    """Puts what `trained_tensors` gave into a model like that one.

    Raises:
        ValueError: some are missing, or the model has no such.
    """
    targets = trained_tensors(model)
    if targets.keys() != tensors.keys():
        odd = sorted(targets.keys() ^ tensors.keys())
        raise ValueError(
            f"The checkpoint is of another model: {', '.join(odd[:3])} ... differ ({len(odd)} tensors)."
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(shared_out_like(target, tensors[name]))


class CheckpointManager:
    """Keeps the latest, the best and the last few checkpoints of a run.

    Args:
        folder: where the checkpoints lie; made if need be. Leftovers of an interrupted save are removed.
        metric: the logged metric that decides which is best.
        direction: whether "min" or "max" of it is better. There is no default: a wrong one would be silent.
        keep: how many of the newest to keep, besides the best.
        keep_every: also keep the states of all multiples of this step; 0: of none.
    """

    def __init__(
        self, folder: Path | str, metric: str, direction: Direction, keep: int = 3, keep_every: int = 0
    ) -> None:
        if direction not in ("min", "max"):
            raise ValueError(f"direction is '{direction}'; say 'min' or 'max'.")
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least the latest checkpoint must be kept (1).")
        self.folder = Path(folder)
        self.metric, self.direction, self.keep, self.keep_every = metric, direction, keep, keep_every
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def list(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest first; what has no readable manifest is none."""
        found = [_manifested(path) for path in self._folders()]
        return sorted(filter(None, found), key=lambda checkpoint: checkpoint.step)

    def unreadable(self) -> Sequence[Path]:
        """Folders that are named as checkpoints and have no readable manifest."""
        return [path for path in self._folders() if _manifested(path) is None and path.is_dir()]

    def _folders(self) -> Sequence[Path]:
        return [path for path in sorted(self.folder.iterdir()) if checkpoint_step(path.name) is not None]

    @property
    def latest(self) -> Checkpoint | None:
        return (self.list() or [None])[-1]  # type: ignore[list-item]

    @property
    def best(self) -> Checkpoint | None:
        """The checkpoint with the best finite value of the metric; of equals the oldest. None: none has one."""
        sign = 1 if self.direction == "min" else -1
        scored = [c for c in self.list() if math.isfinite(c.metrics.get(self.metric, math.nan))]
        return min(scored, key=lambda c: (sign * c.metrics[self.metric], c.step), default=None)

    def save(
        self,
        step: int,
        model: dict[str, torch.Tensor],
        optimizer: dict[str, torch.Tensor],
        state: dict[str, Any],
        metrics: dict[str, float],
    ) -> Checkpoint:
        """Writes a checkpoint and prunes old ones. A checkpoint of the same step is replaced.

        Args:
            state: plain JSON values. metrics: finite or not; the best is chosen among finite ones.

        Raises:
            OSError: the disk is full or broken; every earlier checkpoint is as it was, and nothing half is left.
        """
        final = self.folder / f"step-{step:06d}"
        aside = self.folder / f".step-{step:06d}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            save_file(_contiguous(model), aside / "model.safetensors")
            save_file(_contiguous(optimizer), aside / "optimizer.safetensors")
            (aside / "state.json").write_text(json.dumps(state))
            manifest = {
                "step": step,
                "metrics": metrics,
                "files": {p.name: _digest(p) for p in sorted(aside.iterdir())},
            }
            (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in aside.iterdir():
                _sync(path)
            _sync(aside)
            if final.exists():
                shutil.rmtree(final)
            os.rename(aside, final)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if "safetensor" in type(error).__name__.lower():  # its I/O errors are no OSError
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number[1]) if number else None, f"{final.name}: {error}") from error
            raise
        _sync(self.folder)
        self._prune()
        return Checkpoint(final, step, metrics)

    def load(self, checkpoint: Checkpoint | Path | str | int) -> tuple[dict, dict, dict]:
        """Reads a checkpoint, given itself, its path, its name or its step; see `Checkpoint.read`.

        Raises:
            FileNotFoundError: there is no such checkpoint. ValueError: it is damaged.
        """
        return self._find(checkpoint).read()

    def load_latest(self) -> tuple[dict, dict, dict]:
        return self._required(self.latest).read()

    def load_best(self) -> tuple[dict, dict, dict]:
        return self._required(self.best).read()

    def delete(self, checkpoint: Checkpoint | Path | str | int) -> None:
        """Removes a checkpoint.

        Raises:
            FileNotFoundError: there is no such checkpoint. ValueError: somebody is reading it.
        """
        found = self._find(checkpoint)
        if not remove_checkpoint(found.path):
            raise ValueError(f"{found.path.name} is being read; try again when its reader is done.")

    def _prune(self) -> None:
        checkpoints, best = self.list(), self.best
        for checkpoint in checkpoints[: -self.keep]:
            numbered = self.keep_every and checkpoint.step % self.keep_every == 0
            if checkpoint != best and not numbered:
                remove_checkpoint(checkpoint.path)

    def _find(self, wanted: Checkpoint | Path | str | int) -> Checkpoint:
        if isinstance(wanted, Checkpoint):
            return wanted
        name = f"step-{wanted:06d}" if isinstance(wanted, int) else Path(wanted).name
        for checkpoint in self.list():
            if checkpoint.path.name == name:
                return checkpoint
        names = ", ".join(c.path.name for c in self.list()) or "none"
        raise FileNotFoundError(f"There is no checkpoint {name} in {self.folder}; there are: {names}.")

    def _required(self, checkpoint: Checkpoint | None) -> Checkpoint:
        if checkpoint is None:
            raise FileNotFoundError(f"There is no checkpoint in {self.folder}.")
        return checkpoint


def _manifested(folder: Path) -> Checkpoint | None:
    """The checkpoint of which a folder's manifest speaks; None: it cannot be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        metrics = {name: float(value) for name, value in manifest["metrics"].items()}
        return Checkpoint(folder, int(manifest["step"]), metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def verify(folder: Path) -> None:
    """Checks every file of a checkpoint against its manifest.

    Raises:
        ValueError: a file is missing, or its size or hash differs.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"Checkpoint {folder.name} lacks {name}; resume from an earlier one.")
        if _digest(path) != expected:
            raise ValueError(f"{name} of checkpoint {folder.name} is damaged; resume from an earlier one.")


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
