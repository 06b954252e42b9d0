"""Where a batch's pictures come from: pixels, read once and kept, or the features of a frozen encoder.

N: pictures of a batch. (H, W): the encoder's picture size. P: image tokens. Dv: the encoder's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import torch

from limner.data.images import PixelSettings, load_image
from limner.data.records import Record
from limner.training.task import Progress

MEMORY_SHARE = 0.25
"""How much of the free memory decoded pictures may take."""


class Inputs(ABC):
    """The pictures of one split."""

    @abstractmethod
    def read(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        """(N, 3, H, W) float32 pixels, or (N, P, Dv) features. ``seed`` drives augmentation."""

    @abstractmethod
    def describe(self) -> str:
        """For the start event and a person: what is read, from where."""


class PixelInputs(Inputs):
    """Pixels. Where the memory has room, each picture is decoded and resized once, and kept as bytes."""

    def __init__(self, records: Sequence[Record], settings: PixelSettings, keep: bool) -> None:
        self.records, self.settings = records, settings
        height, width = settings.size
        self._kept = np.empty((len(records), height, width, 3), np.uint8) if keep else None
        self._have = np.zeros(len(records), bool)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="limner-decode")

    @classmethod
    def of_splits(
        cls, records: dict[str, list[Record]], settings: PixelSettings, progress: Progress
    ) -> dict[str, Inputs]:
        """One for each split. All pictures are decoded once, ahead, if they are to be kept: a bad one is found
        before the training begins."""
        height, width = settings.size
        need = sum(map(len, records.values())) * height * width * 3
        keep = need < MEMORY_SHARE * psutil.virtual_memory().available
        inputs = {split: cls(of_split, settings, keep) for split, of_split in records.items()}
        if keep:
            total, done = sum(map(len, records.values())), 0
            for split, of_split in records.items():
                for start in range(0, len(of_split), 64):
                    indices = range(start, min(start + 64, len(of_split)))
                    inputs[split].arrays(indices)
                    done += len(indices)
                    progress("reading pictures", done, total, "pictures")
        return dict(inputs)

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """(N, H, W, 3) uint8: resized pictures."""
        missing = [index for index in indices if self._kept is None or not self._have[index]]
        fresh = dict(zip(missing, self._pool.map(self._decode, missing), strict=True))
        if self._kept is None:
            return np.stack([fresh[index] for index in indices])
        for index, array in fresh.items():
            self._kept[index], self._have[index] = array, True
        return self._kept[list(indices)]

    def _decode(self, index: int) -> np.ndarray:
        return self.settings.array(load_image(self.records[index].image, self.settings.draft_size))

    def read(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        return self.settings.normalize(torch.from_numpy(self.arrays(indices)))

    def describe(self) -> str:
        where = "kept in memory" if self._kept is not None else "decoded in every epoch"
        return f"pixels {self.settings.size[0]} x {self.settings.size[1]}, {where}"
