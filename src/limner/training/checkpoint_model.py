"""A checkpoint made into a model that can be opened: its run's task builds the model, the checkpoint fills it."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limner.config.pretrain import PretrainConfig
from limner.runs import Run
from limner.training.checkpoints import put_tensors, read_checkpoint
from limner.training.opening import saved_settings
from limner.training.task import Task

if TYPE_CHECKING:
    from limner.models.captioner import PrefixConditioningVLM


def stock_folder(run_path: Path, checkpoint: Path, cache: Path) -> Path:
    """The checkpoint's weights as a model in the stock format, below ``cache``; made once.

    Raises:
        ValueError: runs of this verb cannot be opened, or the checkpoint is of another model.
        FileNotFoundError: the data that the model is built with is gone.
    """
    written = os.stat(checkpoint / "manifest.json").st_mtime_ns
    target = cache / f"{run_path.name}-{checkpoint.name}-{written}"
    if target.is_dir():
        return target
    task = restored(Run(run_path), checkpoint, cache / "scratch")
    aside = cache / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    task.save(task.model, aside)
    os.replace(aside, target)
    return target


def restored(run: Run, checkpoint: Path, scratch: Path) -> Task:
    """The run's task on the CPU in fp32, its model with the checkpoint's weights: of a GPT's it has no text, of a
    captioner's it reads no picture unless its consensus is to be saved.

    Args:
        scratch: where the task may write in passing, instead of into the run.

    Raises: as `stock_folder`.
    """
    task: Any = _task(run)
    weights, _, state = read_checkpoint(checkpoint)
    task.run_path = scratch
    if task.kind == "caption" and not task.config.consensus:  # which is made of the pictures
        task.load(torch.device("cpu"), torch.float32, lambda *progress: None)
    elif task.kind != "pretrain" or not task.open(run):
        task.prepare(torch.device("cpu"), torch.float32, lambda *progress: None)
        task.load_state(state["task"])
    put_tensors(task.model, weights)
    return task


def restored_captioner(checkpoint: Path, device: torch.device, dtype: torch.dtype) -> PrefixConditioningVLM:
    """The captioner of a `limner train` run as it stood at a checkpoint of its folder; no picture is read.

    Raises: as `stock_folder`.
    """
    run = Run(checkpoint.parent.parent)
    if run.config["verb"] != "train":
        raise ValueError(f"{checkpoint} is of `limner {run.config['verb']}`, and a captioner's is asked for.")
    task: Any = _task(run)
    task.load(device, dtype, lambda *progress: None)
    put_tensors(task.model, read_checkpoint(checkpoint)[0])
    return task.vlm


def _task(run: Run) -> Task:
    """The task of a run, its data read as cheaply as can be."""
    verb = run.config["verb"]
    settings = saved_settings(str(run.path), run.path.parent, verb)
    settings |= {name: run.folder / settings[name] for name in ("cache_dir", "runs_dir")}
    if verb == "pretrain":
        from limner.training.pretrain_task import PretrainTask

        return PretrainTask(PretrainConfig(**settings | {"compile": False}))
    if verb == "train":
        from limner.config.train import TrainConfig
        from limner.data.catalogue import load_splits
        from limner.training.caption_task import CaptionTask

        config = TrainConfig(**{**settings, "cache_features": "off", "cache_int8": False})
        return CaptionTask(config, partial(load_splits, config, _silent), say=_silent)
    raise ValueError(f"Checkpoints of `limner {verb}` cannot be opened; its finished model can.")


def _silent(text: str) -> None:
    """Nobody is there to be told."""
