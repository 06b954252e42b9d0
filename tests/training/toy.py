"""A task small enough to run in milliseconds: fits a two-layer network to a random linear map's classes; and what
several tests do to a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from limner.config.base import Device, Precision
from limner.config.training import Loop, TrainSettings
from limner.runs import send_command
from limner.training.checkpoints import _digest
from limner.training.task import Batch, ParameterGroup, Progress, Task
from limner.training.trainer import train


class ToyConfig(TrainSettings):
    steps: int = 12
    batch_size: int = 4
    accumulation: int = 2
    eval_every: int = 4
    checkpoint_every: int = 3
    dropout: float = 0.1
    lr: float = 1e-2
    optimizer: Literal["adamw", "muon"] = "adamw"
    poison_steps: tuple[int, ...] = Field(default=())
    """Steps whose loss is made NaN."""
    pace: float = 0.0
    """Seconds a micro-batch waits, so that a test can interrupt."""
    device: Device = "cpu"
    precision: Precision = "fp32"

    def loop(self) -> Loop:
        return Loop(None, self.steps, self.batch_size, self.accumulation, self.eval_every, self.checkpoint_every)

    def warmup(self, total_steps: int) -> int:
        return 2


class ToyTask(Task):
    kind, unit = "toy", "rows"
    directions: ClassVar = {"accuracy": "max"}

    def __init__(self, config: ToyConfig, num_examples: int = 50) -> None:
        self.config, self.num_examples = config, num_examples
        self.calls = 0
        self.stop_at: int | None = None

    def prepare(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(self.num_examples + 16, 8, generator=generator)
        self.y = (self.x @ torch.randn(8, 3, generator=generator)).argmax(-1)
        self.weight = torch.randint(1, 4, (len(self.x),), generator=generator)
        progress("toy data", 1, 1, "sets")
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(self.config.dropout), nn.Linear(16, 3))

    def facts(self) -> dict[str, Any]:
        return {"toy": True}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup("all", list(self.model.named_parameters()), self.config.lr, 0.01, self.config.optimizer)
        ]

    def batch(self, indices: Sequence[int], seed: int) -> Batch:
        import time

        time.sleep(self.config.pace)
        rows = torch.tensor(indices)
        # Each example has 1 to 3 "tokens": a mean over tokens differs from a mean over examples.
        repeated = torch.repeat_interleave(rows, self.weight[rows])
        tensors = {"x": self.x[repeated], "y": self.y[repeated]}
        return Batch(tensors, len(repeated), len(indices), [str(i) for i in indices])

    def loss(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(tensors["x"]), tensors["y"], reduction="sum")
        if model.training:
            self.calls += 1
            step = (self.calls - 1) // self.config.accumulation
            if self.calls == (self.stop_at or 0) * self.config.accumulation and os.environ.get("RANK", "0") == "0":
                send_command(self.run_path, "stop")
            if step in self.config.poison_steps:
                loss = loss * float("nan")
        return loss

    def validation_batches(self) -> Iterator[Batch]:
        for start in range(self.num_examples, len(self.x), 8):
            tensors = {"x": self.x[start : start + 8], "y": self.y[start : start + 8]}
            yield Batch(tensors, len(tensors["x"]), len(tensors["x"]))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        held = slice(self.num_examples, None)
        return {"accuracy": float((model(self.x[held]).argmax(-1) == self.y[held]).float().mean())}

    def probes(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"probe": "first", "text": str(int(model(self.x[:1]).argmax()))}]

    def sample(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        if "prompt" not in arguments:
            raise ValueError("A sample needs a prompt.")
        torch.rand(7)  # sampling uses the global generator: it must not change the training
        return {"prompt": arguments["prompt"], "text": "toy"}

    def save(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")


def train_toy(settings: dict[str, Any], stop_at: int | None = None) -> None:
    """A whole run: the target of the processes that tests kill. ``stop_at``: it stops after so many steps."""
    config = ToyConfig(**settings)
    task = ToyTask(config)
    task.stop_at = stop_at
    train(task, config, "toy", "toy", quiet=True)


if __name__ == "__main__":  # for torchrun
    import json
    import sys

    train_toy(json.loads(sys.argv[1]), *map(int, sys.argv[2:]))


def without_fingerprints(checkpoint: Path) -> None:
    """Makes of a checkpoint what a version wrote that kept no fingerprints of its data."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["task"]["fingerprints"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = _digest(checkpoint / "state.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
