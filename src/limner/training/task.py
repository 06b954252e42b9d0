"""What a run learns: the model, the batches, the loss and the evaluation, and nothing of loops or devices."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from limner.data.sizes import Progress
from limner.runs import Run


@dataclass
class Batch:
    """One micro-batch, on the CPU; the trainer moves ``tensors`` to the device.

    ``num_targets`` counts the supervised tokens, and is what the loss of a step is divided by; ``num_units``
    counts what rates are told in (tokens for a GPT, captions for a captioner).
    """

    tensors: dict[str, torch.Tensor]
    num_targets: int
    num_units: int
    ids: list[str] = field(default_factory=list)


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate. The trainer takes norms and biases out of weight decay itself."""

    name: str
    parameters: list[tuple[str, nn.Parameter]]
    lr: float
    weight_decay: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon (Jordan et al. 2024) makes the steps of matrices orthogonal, and needs fewer in small models that
    begin from nothing. It is for hidden matrices only; embeddings, heads and convolutions stay with AdamW."""


class Task(ABC):
    """A thing to learn. The trainer calls, in this order: `prepare`, then everything else.

    Every batch is a pure function of its example indices and of ``seed``, so that a resumed run sees the same
    batches as one that was never stopped.
    """

    kind: ClassVar[str]
    """"pretrain" or "caption"; stands in the start event."""
    unit: ClassVar[str]
    """What rates count: "tokens" or "captions"."""
    numbered_examples: ClassVar[bool] = False
    """The names of examples follow from their index, and the run keeps no list of them (there may be millions)."""
    counted: ClassVar[Mapping[str, str]] = {}
    """Numbers of the start event that change with the data, and the name of the data in `fingerprints`."""
    directions: ClassVar[Mapping[str, Literal["min", "max"]]]
    """Every metric that `evaluate` can give, and which way is better."""

    run_path: Path
    """The run's folder, set by the trainer before `prepare`; pictures of samples go into its samples/."""
    model: nn.Module
    """Set by `prepare`: on the CPU; only parameters with ``requires_grad`` are trained."""
    num_examples: int
    """Set by `prepare`: training examples in an epoch (windows of text, pictures)."""

    evaluates_first: ClassVar[bool] = False
    """Whether the first evaluation comes before the first step; where evaluations are dear, it does not."""
    auxiliary_loss: torch.Tensor | float = 0.0
    """What is optimized beside the sum that `loss` returned for its last batch, a sum as that is: help that only
    training sees. It is no part of the loss that is told."""
    figures: Mapping[str, float] = {}
    """What `loss` found by the way in its last batch, which it sets anew at each: `metrics` events tell the mean
    over a step's tokens or captions."""
    flops_per_unit: float | None = None
    """FLOPs of forward and backward for one token or caption; None: no MFU is told."""

    @abstractmethod
    def prepare(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        """Loads or builds data and model. ``precision`` is the dtype that a frozen base should be kept in."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the start event tells beside the trainer's own numbers: parameters, reference lines, data."""

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]: ...

    @abstractmethod
    def batch(self, indices: Sequence[int], seed: int) -> Batch:
        """The micro-batch of these examples. ``seed`` drives augmentation and the choice among captions."""

    def arrange(self, permutation: np.ndarray, epoch: int) -> np.ndarray:
        """An epoch's order from a random permutation, e.g. examples of like length together. Pure."""
        return permutation

    def example_id(self, index: int) -> str:
        """The name of an example, for a person who looks for the batch behind a spike."""
        return str(index)

    @abstractmethod
    def loss(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The SUM (not the mean) of the cross-entropy over the batch's supervised tokens, in fp32: a scalar.

        Everything trained is computed within one call of ``model`` itself: DDP and FSDP hook its forward.
        """

    @abstractmethod
    def validation_batches(self) -> Iterator[Batch]:
        """The fixed validation subset; the trainer averages `loss` over it into ``eval_loss``."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Further metrics of the fixed subset (CIDEr-D of decoded captions, ...); keys are in `directions`.

        Here and in `probes`, `sample` and `save`, ``model`` is the one to ask: where weights are sharded it is a
        gathered copy of `self.model`, which could not answer one process alone.
        """
        return {}

    def probes(self, model: nn.Module) -> list[dict[str, Any]]:
        """The fixed prompts or pictures decoded with the live weights: the fields of one `sample` event each.

        A text probe gives ``probe`` (its id), ``prompt``, ``text``; a picture probe ``probe``, ``image`` (a file
        name below samples/), ``text``, ``references``.
        """
        return []

    def sample(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answers a `sample` command (``prompt`` or ``image`` with settings): the fields of its event.

        Raises:
            ValueError: the arguments make no sense to this task.
        """
        raise ValueError(f"A {self.kind} run cannot decode samples.")

    def readings(self, loss: float, split: Literal["training", "validation"]) -> dict[str, float]:
        """What a loss on a split means in other units; logged beside it, in training and in evaluations."""
        return {}

    def tell(self, step: int, training: Mapping[str, Any], evaluation: Mapping[str, float]) -> str:
        """An evaluation, for a person. ``training``: the values of the last step's `metrics` event."""
        return f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in evaluation.items())

    def tell_sample(self, sample: Mapping[str, Any]) -> str | None:
        """A probe of an evaluation, for a person; None: only in the log."""
        return None

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the finished model into ``folder`` in the stock format."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside model, optimizer, schedule, RNGs and the sampler's cursor."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave, before the weights are loaded.

        Raises:
            ValueError: that is of other data than the task has prepared.
        """

    def refuse_other_data(self, state: Mapping[str, Any], fingerprints: Mapping[str, str], source: str) -> None:
        """Compares the data's fingerprints with those in a state; of one without, which an earlier version wrote,
        the numbers of the run's last start event.

        Raises:
            ValueError: they differ.
        """
        before = state.get("fingerprints")
        if before is not None:
            changed = [name for name, value in before.items() if value != fingerprints.get(name)]
        else:
            start = last_start(Run(self.run_path)) or {}
            now = {"examples": self.num_examples, **self.facts()}
            changed = [name for key, name in self.counted.items() if key in start and start[key] != now.get(key)]
        if changed:
            names = " and the ".join(dict.fromkeys(changed))
            raise ValueError(
                f"The {names} changed since these weights were saved ({source}). Put back what was there, or "
                "begin another run: --force-new."
            )


def last_start(run: Run) -> dict[str, Any] | None:
    """The newest start event of a run."""
    return next((event for event in reversed(run.events()) if event["type"] == "start"), None)


def fingerprint(parts: Iterable[bytes]) -> str:
    """16 hexadecimal digits that tell these parts, in this order, from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
