"""What pretraining and captioner tuning share: the settings of the one trainer."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from limner.config.base import RunConfig

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


@dataclass(frozen=True)
class Loop:
    """The counts that drive the trainer's loop. Each verb names them as its users know them."""

    epochs: float | None
    """Passes over the data; None: ``steps`` decides."""
    steps: int | None
    """Optimizer steps; where both are given, the smaller number of steps wins."""
    batch_size: int
    """Examples a process holds at once."""
    accumulation: int
    """Micro-batches in an optimizer step."""
    eval_every: int | None
    """Optimizer steps between evaluations; 0: only at the end; None: a tenth of the run, but at most 50."""
    checkpoint_every: int
    """Optimizer steps between resumable states; 0: only at the end and when stopped."""
    keep_numbered: bool = False
    """Keep those states for good; otherwise only the newest ones stay, and the best."""

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run.

        Raises:
            ValueError: neither epochs nor steps are given, or less than one step.
        """
        by_epochs = math.ceil(self.epochs * steps_per_epoch) if self.epochs is not None else None
        limits = [limit for limit in (self.steps, by_epochs) if limit is not None]
        if not limits or min(limits) < 1:
            raise ValueError("The run has no length; give the number of epochs or steps (at least 1).")
        return min(limits)


class TrainSettings(RunConfig):
    """Settings of the one trainer."""

    LENGTH_FIELDS: ClassVar[frozenset[str]] = frozenset()
    """Settings of a run's length: ``resume`` may change them, and the learning rate then follows the new one."""
    WARM_START: ClassVar[str | None] = None
    """The option that begins a run with the weights of a finished one's model."""

    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """The learning rate's way down after the warm-up; wsd stays at the peak, then goes down over the last 40 %."""
    lr_floor: float = Field(default=0.1, ge=0, le=1)
    """The learning rate at the end of the schedule, as a share of the peak."""
    grad_clip: float = Field(default=1.0, ge=0)
    """The gradient's norm is clipped to this; 0: not clipped."""
    patience: int = Field(default=3, ge=0)
    """Evaluations without a better result before the run ends early; 0: never."""
    metric_for_best_model: str = "eval_loss"
    """The metric that decides which checkpoint is best, and early stopping."""
    save_total_limit: int = Field(default=3, ge=1)
    """Resumable states that are kept, besides the best one."""
    checkpoints_dir: Path | None = None
    """Keep the resumable states here instead of in the run's own folder."""
    max_nonfinite_steps: int = Field(default=3, ge=1)
    """Steps in a row with a NaN or infinite loss or gradient before the run pauses."""
    compile: bool | None = None
    """Compile the model with torch.compile; unset: where the task knows that it pays."""
    shard: bool = False
    """With several processes: each keeps its share of weights, gradients and moments (FSDP2) instead of all."""
    report_to: tuple[Tracker, ...] = ()
    """Also send the metrics to these trackers (through Accelerate)."""
    log_every: int = Field(default=1, ge=1)
    """Optimizer steps between metrics events."""

    @model_validator(mode="after")
    def _sharded_or_compiled(self) -> TrainSettings:
        if self.shard and self.compile:
            raise ValueError("--compile and --shard do not go together; leave one out.")
        return self

    @abstractmethod
    def loop(self) -> Loop:
        """The counts of the loop."""

    @abstractmethod
    def warmup(self, total_steps: int) -> int:
        """Steps in which the learning rate rises to its peak."""
