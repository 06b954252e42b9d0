"""One trainer and its small tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limner.lazy import lazy_names

if TYPE_CHECKING:
    from limner.training.checkpoints import CheckpointManager
    from limner.training.task import Batch, Task
    from limner.training.trainer import Trainer, train

__all__ = ["Batch", "CheckpointManager", "Task", "Trainer", "train"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Batch": ".task",
        "CheckpointManager": ".checkpoints",
        "Task": ".task",
        "Trainer": ".trainer",
        "train": ".trainer",
    },
)
