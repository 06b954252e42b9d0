"""Which examples a step sees: a pure function of (seed, epoch, step), so there is no sampler state to lose.

An epoch's order is one seeded permutation of all examples; a step takes the next ``batch_size x accumulation x
world_size`` of them. The cut into micro-batches and ranks comes after the global shuffle, so one process with
batch 8 and two with batch 4 train on the same examples in the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

Arrange = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Order:
    """The order of a run's examples.

    Args:
        num_examples: examples in an epoch (at least 1).
        batch_size: examples a process holds at once.
        accumulation: micro-batches in an optimizer step.
        world_size: processes.
        seed: the run's seed.
        arrange: a task's own rearrangement of an epoch, ``arrange(permutation, epoch)``, e.g. by length; pure.
    """

    num_examples: int
    batch_size: int
    accumulation: int
    world_size: int
    seed: int
    arrange: Arrange | None = None
    _permutation: Callable[[int], np.ndarray] = field(init=False, repr=False, compare=False)
    """Of an epoch."""

    def __post_init__(self) -> None:
        # A step asks several times, from two threads, which may be an epoch apart. The cache goes with the order.
        object.__setattr__(self, "_permutation", lru_cache(maxsize=2)(self._arranged))

    @property
    def examples_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may be short: no example is left out."""
        return -(-self.num_examples // self.examples_per_step)

    def examples_before(self, step: int) -> int:
        """Examples that all the steps before this one take together."""
        epochs, position = divmod(step, self.steps_per_epoch)
        return epochs * self.num_examples + position * self.examples_per_step

    def step_examples(self, step: int) -> np.ndarray:
        """The indices of a step's examples, all ranks and micro-batches. ``step`` counts from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.examples_per_step
        return self._permutation(epoch)[start : start + self.examples_per_step]

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """This rank's micro-batches of a step, as many as on every other rank; in a short step some are empty."""
        examples = self.step_examples(step).tolist()
        whole = self.batch_size * self.world_size
        rounds = max(1, -(-len(examples) // whole))
        return [
            examples[k * whole + rank * self.batch_size : k * whole + (rank + 1) * self.batch_size]
            for k in range(rounds)
        ]

    def _arranged(self, epoch: int) -> np.ndarray:
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
        return permutation if self.arrange is None else self.arrange(permutation, epoch)


def position_seed(seed: int, step: int, micro: int = 0, rank: int = 0) -> int:
    """A 63-bit seed for dropout, augmentation and caption choice at one place of a run.

    Generators are seeded anew at every micro-batch, so a pause, a sample, an evaluation or a resume in between
    cannot change what follows, and a checkpoint needs no generator's state.
    """
    return int(
        np.random.SeedSequence([seed, step, micro, rank]).generate_state(2, np.uint32).view(np.uint64)[0] >> 1
    )
