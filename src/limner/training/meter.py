"""Rates, the time split, memory and time to go. Paused time, evaluations and saves count in no rate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from limner.device import Choice, matrix_flops

SMOOTHING = 0.9
"""Weight of the past in the running mean of a step's seconds and units."""


class Meter:
    """Measures a run's steps.

    Args:
        unit: what rates count ("tokens", "captions").
        flops_per_unit: FLOPs that forward and backward need for one unit; None: no MFU is told.
    """

    def __init__(self, unit: str, flops_per_unit: float | None, choice: Choice) -> None:
        self.unit, self.flops_per_unit, self.choice = unit, flops_per_unit, choice
        if flops_per_unit:  # measured here, or it would count as part of a step
            self.peak = matrix_flops(choice.dtype, choice.device.type)
        self.last_outside = 0.0
        self._mark = time.perf_counter()
        self._outside = 0.0
        self._split: dict[str, float] = {}
        self._seconds = self._units = self._weight = 0.0
        self._process = psutil.Process()
        self._memory, self._memory_time = 0.0, 0.0

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Counts the time within as this part of a step."""
        began = time.perf_counter()
        yield
        self._split[part] = self._split.get(part, 0.0) + time.perf_counter() - began

    @contextlib.contextmanager
    def outside(self, part: str) -> Iterator[None]:
        """Counts the time within as no part of a step: evaluation, saving, a pause."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.last_outside = time.perf_counter() - began
            self._outside += self.last_outside

    def step_done(self, units: int) -> None:
        """Ends a step of ``units`` tokens or captions."""
        now = time.perf_counter()
        seconds = now - self._mark - self._outside
        self._split["other"] = max(0.0, seconds - sum(self._split.values()))
        self._last_split, self._split = self._split, {}
        self._mark, self._outside = now, 0.0
        self._seconds = SMOOTHING * self._seconds + (1 - SMOOTHING) * seconds
        self._units = SMOOTHING * self._units + (1 - SMOOTHING) * units
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    def read(self, steps_to_go: int) -> dict[str, Any]:
        """The numbers of a metrics event: rate, MFU, seconds of the last step by part, memory, time to go."""
        rate = self._units / self._seconds if self._seconds > 0 else 0.0
        values: dict[str, Any] = {
            f"{self.unit}_per_second": rate,
            "eta_seconds": self._seconds / self._weight * steps_to_go,
            "memory_mb": self._memory_mb(),
            "seconds": {part: round(seconds, 6) for part, seconds in self._last_split.items()},
        }
        if self.flops_per_unit:
            values["mfu"] = rate * self.flops_per_unit / self.peak
        if self.choice.device.type == "cuda":
            values["gpu_memory_mb"] = torch.cuda.memory_allocated() / 2**20
            values["gpu_memory_total_mb"] = torch.cuda.get_device_properties(0).total_memory / 2**20
        return values

    def _memory_mb(self) -> float:
        """Resident memory in MiB, looked up once a second."""
        now = time.monotonic()
        if now - self._memory_time > 1.0:
            self._memory, self._memory_time = self._process.memory_info().rss / 2**20, now
        return self._memory


def peak_memory_mb() -> float:
    """The most memory this process has held, in MiB (resident set)."""
    import resource
    import sys

    status = Path("/proc/self/status")
    told = status.read_text().partition("VmHWM:")[2].split() if status.is_file() else []
    if told:  # getrusage's begins with the peak of the process that started this one
        return int(told[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
