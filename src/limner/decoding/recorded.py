"""A step's work on a GPU, recorded once and replayed.

A small model's step is some hundred small kernels: calling them from Python takes longer than they do. A CUDA graph
calls all of them at once. It repeats the same work on the same memory, so what changes between two steps must be a
tensor that stands at the same place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from threading import Lock

import torch
from torch import Tensor

Work = Callable[[], Tensor]
Record = Callable[[Work], tuple[Callable[[], None], Tensor]]
"""Records work: gives what repeats it, and the tensor in which its result then lies."""

WARM_UP = 2
"""Steps of the same shapes before they are recorded: that costs about a step, and rows that end change shapes."""


_ONE_AT_A_TIME = Lock()


def cuda_graph(work: Work) -> tuple[Callable[[], None], Tensor]:
    """Records by CUDA, which records one graph at a time in a process."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    with _ONE_AT_A_TIME:
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                result = work()
        finally:
            torch.cuda.set_stream(stream)  # after an error torch would stay on the other one
    return graph.replay, result


class Recorded:
    """Calls a function of tensors, by replaying its work from the third time on that ``key`` is the same.

    The result lies where the next replay will write its own.
    """

    def __init__(self, record: Record) -> None:
        self.record: Record | None = record
        self.key: Hashable = None
        self.times = 0

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], key: Hashable) -> Tensor:
        """``function(*inputs)``; the key names the inputs' shapes and the memory that the function itself holds."""
        if key != self.key:
            self.key, self.times = key, 0
        self.times += 1
        if self.record is None or self.times <= WARM_UP:
            return function(*inputs)
        if self.times == WARM_UP + 1:
            self.held = [None if given is None else given.clone() for given in inputs]
            try:
                self.replay, self.result = self.record(lambda: function(*self.held))
            except RuntimeError as error:
                told = f"A step cannot be recorded here ({error}); it is computed anew each time."
                warnings.warn(told, stacklevel=2)
                self.record = None
                return function(*inputs)
        for held, given in zip(self.held, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        self.replay()
        return self.result
