"""A checkpoint made into a model that can be opened: its run's task builds the model, the checkpoint fills it.

Runs in the worker process only: this module imports torch.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from limner.runs import Run
from limner.server.verbs import config_type
from limner.training.checkpoints import Checkpoint
from limner.training.task import Task


def stock_folder(run_path: Path, checkpoint: Path, cache: Path) -> Path:
    """The checkpoint's weights as a model in the stock format, below ``cache``; made once.

    Raises:
        ValueError: runs of this verb cannot be opened, or the checkpoint is of another model.
        FileNotFoundError: the run's data, which its tokenizer may be made of, is gone.
    """
    written = os.stat(checkpoint / "manifest.json").st_mtime_ns
    target = cache / f"{run_path.name}-{checkpoint.name}-{written}"
    if target.is_dir():
        return target
    task = _task(Run(run_path))
    task.run_path = cache / "scratch"  # whatever the task writes in passing is not the run's
    task.prepare(torch.device("cpu"), torch.float32, lambda *progress: None)
    weights, _, _ = Checkpoint(checkpoint, 0, {}).read()
    _fill(task.model, weights)
    aside = cache / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    task.save(task.model, aside)
    os.replace(aside, target)
    return target


def _task(run: Run) -> Task:
    """The task of a run, its data read as cheaply as can be."""
    verb, settings = run.config["verb"], run.config["config"]
    if verb == "pretrain":
        from limner.training.pretrain_task import PretrainTask

        return PretrainTask(config_type(verb).model_validate(settings))  # type: ignore[arg-type]
    if verb == "train":
        from limner.config.train import TrainConfig
        from limner.data.catalogue import load_dataset_by_name
        from limner.data.catalogue.rows import Options
        from limner.training.caption_task import CaptionTask

        config = TrainConfig(**{**settings, "cache_features": "off", "cache_int8": False})
        options = Options(
            cache_dir=config.cache_dir,
            image_column=config.image_column,
            caption_column=config.caption_column,
            skip_bad_images=config.skip_bad_images,
            say=_silent,
        )

        def records(progress: Any) -> Any:
            return load_dataset_by_name(config.dataset, options, config.dataset_weights, config.seed, progress)

        return CaptionTask(config, records, say=_silent)
    raise ValueError(f"Checkpoints of `limner {verb}` cannot be opened; its finished model can.")


def _fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = model.state_dict(keep_vars=True)
    unknown = sorted(weights.keys() - state.keys())
    if unknown:
        raise ValueError(f"The checkpoint is of another model: it has {unknown[0]} ({len(unknown)} such tensors).")
    with torch.no_grad():
        for name, tensor in weights.items():
            state[name].copy_(tensor)


def _silent(text: str) -> None:
    """Nobody is there to be told."""
