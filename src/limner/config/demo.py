"""Settings of ``limner demo``: a captioner from nothing on drawn scenes."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from limner.config.base import Precision
from limner.config.training import Loop, TrainSettings


class DemoConfig(TrainSettings):
    """Draw scenes, train a captioner on them from random weights, and prove that it sees.

    The defaults are the recipe that docs/LOG.md measures; change one and the figures are yours, not the demo's.
    """

    steps: int = Field(default=2200, ge=1)
    """Optimizer steps. The length does not depend on the clock, so equal seeds give equal models."""
    test_scenes: int = Field(default=500, ge=8)
    """Scenes that are captioned at the end, of each kind: unseen ones, and ones with held-out combinations."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object of the results on standard output instead of tables."""

    batch_size: int = Field(default=32, ge=2)
    """Scenes in a step."""
    captions_per_scene: int = Field(default=2, ge=1, le=8)
    """Captions of each scene in a step, in one row behind one prefix; two tell a relation from both ends."""
    seeing_first: float = Field(default=0.4, ge=0, le=1)
    """The share of the run, at its start, in which only a quarter of a step's scenes are captioned: what to say is
    learned fast once there is something to see, and the helping heads teach to see at half the cost."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of all parts."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's decay of matrices; norms and biases are not decayed."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which the learning rate rises; never more than a tenth of the run."""
    help_weight: float = Field(default=1.0, ge=0)
    """Weight of the training-only heads that read from each patch what the scene knows of it; 0: no such help."""
    eval_steps: int = Field(default=500, ge=0)
    """Optimizer steps between evaluations; 0: only at the end."""
    eval_images: int = Field(default=64, ge=2)
    """Validation scenes, half of them with held-out combinations, that every evaluation captions."""
    save_steps: int = Field(default=500, ge=0)
    """Optimizer steps between resumable states; 0: only at the end."""
    num_beams: int = Field(default=3, ge=1)
    """Beams of every caption."""

    schedule: Literal["cosine", "linear", "wsd", "constant"] = "wsd"
    """The learning rate's way down after the warm-up; wsd stays at the peak, then goes down over the last 40 %."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without a better result before the run ends early; 0: never."""
    max_length: int = Field(default=30, ge=2)
    """The most tokens of a caption, its end included."""
    debug: bool = False
    """Print expected and got captions at every evaluation (and the traceback of an error)."""
    lr_floor: float = Field(default=0.0, ge=0, le=1)
    """The learning rate at the end of the schedule, as a share of the peak."""
    precision: Precision = "fp32"
    """Number format of the computation; so small a model gains nothing from bf16."""

    def subject(self) -> str:
        return "scenes"

    def loop(self) -> Loop:
        return Loop(
            epochs=None,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulation=1,
            eval_every=self.eval_steps,
            checkpoint_every=self.save_steps,
        )

    def warmup(self, total_steps: int) -> int:
        return min(self.warmup_steps, total_steps // 10)
