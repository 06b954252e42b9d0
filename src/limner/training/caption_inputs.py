"""Where a batch's pictures come from: pixels, read once and kept, or the features of a frozen encoder.

N: pictures of a batch. (H, W): the encoder's picture size. P: image tokens. Dv: the encoder's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import psutil
import torch

from limner.config.train import TrainConfig
from limner.data.augment import augment as vary
from limner.data.feature_cache import FeatureCache, weights_digest
from limner.data.images import PixelSettings, load_image
from limner.data.loading import check_images, load_pictures, settle_failures
from limner.data.records import Record
from limner.models.captioner import PrefixConditioningVLM
from limner.training.task import Progress

MEMORY_SHARE = 0.25
"""How much of the free memory decoded pictures may take."""

Records = dict[str, list[Record]]
Say = Callable[[str], None]


class Inputs(ABC):
    """The pictures of one split, in the order of its records."""

    @abstractmethod
    def read(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        """(N, 3, H, W) float32 pixels, or (N, P, Dv) features. ``seed`` drives augmentation."""

    @abstractmethod
    def describe(self) -> str:
        """For the start event and a person: what is read, from where."""


def prepare_inputs(
    vlm: PrefixConditioningVLM,
    records: Records,
    settings: PixelSettings,
    config: TrainConfig,
    say: Say,
    progress: Progress,
) -> tuple[dict[str, Inputs], Records]:
    """Cached features where the encoder is frozen and the disk has room; pixels otherwise.

    Every picture is read once, ahead, so that a bad one is told now and not an hour into the run.

    Returns:
        The inputs of each split, and the records whose pictures can be read, in the inputs' order.

    Raises:
        ValueError: pictures that cannot be read (without ``skip_bad_images``); a cache that is asked for and
            cannot be.
    """
    frozen = vlm.encoder_is_frozen and not config.augment
    if config.cache_features == "on" and not frozen:
        raise ValueError("--cache-features on needs a frozen encoder and no --augment.")
    if frozen and config.cache_features != "off":
        cache = feature_cache(vlm, settings, config)
        everything = [record for of_split in records.values() for record in of_split]
        plan = cache.plan(everything, progress)
        say(f"{str(plan)[0].upper()}{str(plan)[1:]}.")
        if plan.fits or config.cache_features == "on":
            rows, remarks = cache.fill(everything, plan, progress=progress, skip_bad_images=config.skip_bad_images)
            for remark in remarks:
                say(remark)
            if cache.relative_error:
                say(f"Cached features differ from computed ones by {cache.relative_error:.1e} (relative).")
            return _by_split(records, rows, lambda _, own: FeatureInputs(cache, own))
        say("The disk has no room for them: the encoder runs in every step instead.")
    return pixel_inputs(records, settings, progress, say, config.augment, config.skip_bad_images)


def feature_cache(vlm: PrefixConditioningVLM, settings: PixelSettings, config: TrainConfig) -> FeatureCache:
    """The cache of this encoder's features, keyed by its weights, its layer and the precision it computes in."""
    key = {
        "encoder": weights_digest(vlm.encoder),
        "layer": vlm.feature_layer,
        "precision": str(next(vlm.encoder.parameters()).dtype),
    }
    if vlm.image_tokens != "patches":  # only then, so that caches made before stay valid
        key["image_tokens"] = vlm.image_tokens
    kept: Literal["int8", "fp16"] = "int8" if config.cache_int8 else "fp16"
    return FeatureCache(config.cache_dir / "features", key, settings, vlm.features, kept, draft=True)


def _by_split(
    records: Records, rows: np.ndarray, make: Callable[[str, np.ndarray], Inputs]
) -> tuple[dict[str, Inputs], Records]:
    """Cuts the rows of all records into splits again, without those that cannot be read (-1)."""
    inputs, readable, start = {}, {}, 0
    for split, of_split in records.items():
        own = rows[start : start + len(of_split)]
        start += len(of_split)
        readable[split] = [record for record, row in zip(of_split, own, strict=True) if row >= 0]
        inputs[split] = make(split, own[own >= 0])
    return inputs, readable


class FeatureInputs(Inputs):
    """Features of a frozen encoder, from the cache."""

    def __init__(self, cache: FeatureCache, rows: np.ndarray) -> None:
        self.cache, self.rows = cache, rows

    def read(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        return self.cache.read(self.rows[list(indices)])

    def describe(self) -> str:
        tokens, width = self.cache.row_shape
        return f"features {tokens} x {width}, {self.cache.dtype}, cached in {self.cache.folder}"


def pixel_inputs(
    records: Records,
    settings: PixelSettings,
    progress: Progress,
    say: Say = print,
    augment: bool = False,
    skip_bad_images: bool = False,
) -> tuple[dict[str, Inputs], Records]:
    """Pixels of every split, and the records that can be read; see `prepare_inputs`. Pictures are kept in memory
    where it has room, unless every epoch is to see them otherwise."""
    everything = [record for of_split in records.values() for record in of_split]
    height, width = settings.size
    need = len(everything) * height * width * 3
    if augment or need > MEMORY_SHARE * psutil.virtual_memory().available:
        sound, remarks = check_images(everything, skip_bad_images, progress=progress)
        rows = np.full(len(everything), -1)
        rows[sound] = sound
        kept = None
    else:
        kept, rows, remarks = _read_all(everything, settings, skip_bad_images, progress)
    for remark in remarks:
        say(remark)

    def of_split(split: str, own: np.ndarray) -> Inputs:
        return PixelInputs(everything, own, settings, kept, augment and split == "train")

    return _by_split(records, rows, of_split)


def _read_all(
    records: list[Record], settings: PixelSettings, skip_bad_images: bool, progress: Progress
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All pictures, decoded and resized: (N, H, W, 3) uint8; which rows hold one (else -1); remarks."""
    kept = np.empty((len(records), *settings.size, 3), np.uint8)
    rows, done = np.full(len(records), -1), 0
    failures: dict[int, str] = {}
    for pictures in load_pictures(records, settings, draft=True):
        kept[pictures.indices] = pictures.pixels.numpy()
        rows[pictures.indices] = pictures.indices
        failures |= pictures.failures
        done += len(pictures.indices) + len(pictures.failures)
        progress("reading pictures", done, len(records), "pictures")
    return kept, rows, settle_failures(failures, len(records), skip_bad_images)


class PixelInputs(Inputs):
    """Pixels: kept as bytes since they were first read, or decoded anew in every epoch."""

    def __init__(
        self,
        records: list[Record],
        rows: np.ndarray,
        settings: PixelSettings,
        kept: np.ndarray | None,
        augment: bool,
    ) -> None:
        self.records, self.rows, self.settings, self.kept, self.augment = records, rows, settings, kept, augment

    def read(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        rows = self.rows[list(indices)]
        arrays = self.kept[rows] if self.kept is not None else np.stack([self._decode(row, seed) for row in rows])
        return self.settings.normalize(torch.from_numpy(arrays))

    def _decode(self, row: int, seed: int) -> np.ndarray:
        record = self.records[row]
        image = load_image(record.image, self.settings.draft_size)
        if self.augment:
            image = vary(image, record.captions, np.random.default_rng([seed, row]))
        return self.settings.array(image)

    def describe(self) -> str:
        where = "kept in memory" if self.kept is not None else "decoded in every epoch"
        varied = ", augmented" if self.augment else ""
        return f"pixels {self.settings.size[0]} x {self.settings.size[1]}, {where}{varied}"
