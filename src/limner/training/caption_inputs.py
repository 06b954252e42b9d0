"""Where a batch's pictures come from: pixels, read once and kept, or the features of a frozen encoder.

N: pictures of a batch. (H, W): the encoder's picture size. P: image tokens. Dv: the encoder's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch

from limner.config.train import TrainConfig
from limner.data.augment import augment as vary
from limner.data.augment import can_be_mirrored
from limner.data.feature_cache import FeatureCache, weights_digest
from limner.data.images import PixelSettings, load_image
from limner.data.loading import check_images, load_pictures, settle_failures
from limner.data.records import Record
from limner.decoding.consensus import middle
from limner.models.captioner import PrefixConditioningVLM
from limner.training.task import Progress

PICTURES_SHARE = 0.25
"""How much of the free memory decoded pictures may take."""

Records = dict[str, list[Record]]
Say = Callable[[str], None]
Variation = Literal["augmented", "mirrored"]
Look = Literal["plain", "mirrored", "middle"]
LOOKS_AT: dict[Look, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels.flip(-1),
    "middle": middle,
}
"""(N, 3, H, W) -> the same: what the encoder sees of a picture."""


class Inputs(ABC):
    """The pictures of one split, in the order of its records."""

    @abstractmethod
    def read(self, indices: Sequence[int], seed: int | None) -> torch.Tensor:
        """(N, 3, H, W) float32 pixels, or (N, P, Dv) features. ``seed`` drives augmentation; None: as they are."""

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
        cached = _feature_inputs(vlm, records, settings, config, say, progress)
        if cached is not None:
            return cached
        say("The disk has no room for them: the encoder runs in every step instead.")
    varied: Variation | None = "augmented" if config.augment else "mirrored" if config.mirror else None
    return pixel_inputs(records, settings, progress, say, varied, config.skip_bad_images)


def _feature_inputs(
    vlm: PrefixConditioningVLM,
    records: Records,
    settings: PixelSettings,
    config: TrainConfig,
    say: Say,
    progress: Progress,
) -> tuple[dict[str, Inputs], Records] | None:
    """From the filled cache, and those of the other looks that are asked for; None: they do not fit."""

    def filled(of: list[Record], look: Look) -> tuple[FeatureCache, np.ndarray] | None:
        cache = feature_cache(vlm, settings, config, look)
        plan = cache.plan(of, progress)
        told = f"{plan}." if look == "plain" else f"{look} {plan}."
        say(told[0].upper() + told[1:])
        if not plan.fits and config.cache_features != "on":
            return None
        rows, remarks = cache.fill(of, plan, progress=progress, skip_bad_images=config.skip_bad_images)
        for remark in remarks:
            say(remark)
        if cache.relative_error:
            say(f"Cached features differ from computed ones by {cache.relative_error:.1e} (relative).")
        return cache, rows

    plain = filled([record for of_split in records.values() for record in of_split], "plain")
    if plain is None:
        return None
    cache, rows = plain
    looks: dict[Look, FeatureInputs] = {}  # filled below

    def of_split(split: str, own: np.ndarray) -> Inputs:
        return FeatureInputs(cache, own, looks if split == "train" else {})

    inputs, readable = _by_split(records, rows, of_split)
    train = readable["train"]
    for look in other_looks(config):
        wanted = np.array([look != "mirrored" or can_be_mirrored(record.captions) for record in train])
        found = filled([train[index] for index in np.flatnonzero(wanted)], look)
        if found is None:
            return None
        own = np.full(len(train), -1)
        own[wanted] = found[1]
        looks[look] = FeatureInputs(found[0], own)
    return inputs, readable


def other_looks(config: TrainConfig) -> list[Look]:
    """At training pictures, beside the plain one: what a run reads, and its features are cached of."""
    asked: dict[Look, bool] = {"mirrored": config.mirror, "middle": config.consensus}
    return [look for look, wanted in asked.items() if wanted]


def feature_cache(
    vlm: PrefixConditioningVLM, settings: PixelSettings, config: TrainConfig, look: Look = "plain"
) -> FeatureCache:
    """The cache of this encoder's features of a look at each picture, keyed by its weights, its layer and the
    precision it computes in. Of a picture's middle only the mean over the image tokens is asked for, and kept."""
    key = {
        "encoder": weights_digest(vlm.encoder),
        "layer": vlm.feature_layer,
        "precision": str(next(vlm.encoder.parameters()).dtype),
    }
    if vlm.image_tokens != "patches":  # only then, so that caches made before stay valid
        key["image_tokens"] = vlm.image_tokens
    if look != "plain":
        key["look"] = look
    kept: Literal["int8", "fp16"] = "int8" if config.cache_int8 else "fp16"

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        features = vlm.features(LOOKS_AT[look](pixels))  # (B, P, Dv)
        return features.mean(1, keepdim=True) if look == "middle" else features

    return FeatureCache(config.cache_dir / "features", key, settings, encode, kept, draft=True)


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
    """Features of a frozen encoder, from the cache.

    Args:
        rows: of the split's pictures; -1 where there is none.
        looks: other looks at the same pictures. Where one is "mirrored", that is read every other time.
    """

    def __init__(
        self, cache: FeatureCache, rows: np.ndarray, looks: dict[Look, FeatureInputs] | None = None
    ) -> None:
        self.cache, self.rows, self.looks = cache, rows, {} if looks is None else looks

    def read(self, indices: Sequence[int], seed: int | None) -> torch.Tensor:
        features = self.cache.read(self.rows[list(indices)])  # (N, P, Dv)
        mirrored = self.looks.get("mirrored")
        if mirrored is not None and seed is not None:
            there = mirrored.rows[list(indices)]
            turned = _every_other(indices, seed) & (there >= 0)
            if turned.any():
                features[torch.from_numpy(turned)] = mirrored.cache.read(there[turned])
        return features

    def describe(self) -> str:
        tokens, width = self.cache.row_shape
        more = "".join(f", {look} in {other.cache.folder}" for look, other in self.looks.items())
        return f"features {tokens} x {width}, {self.cache.dtype}, cached in {self.cache.folder}{more}"

    def remove(self) -> list[Path]:
        """Removes what is cached from the disk; the folders that are gone."""
        self.cache.remove()
        return [self.cache.folder, *(folder for look in self.looks.values() for folder in look.remove())]


def _every_other(indices: Sequence[int], seed: int) -> np.ndarray:
    """(N,) bool: which of a batch's pictures, by their places in the split, are mirrored; whatever stands beside
    them, and wherever they are kept."""
    return np.array([np.random.default_rng([seed, index]).random() < 0.5 for index in indices])


def pixel_inputs(
    records: Records,
    settings: PixelSettings,
    progress: Progress,
    say: Say = print,
    varied: Variation | None = None,
    skip_bad_images: bool = False,
) -> tuple[dict[str, Inputs], Records]:
    """Pixels of every split, and the records that can be read; see `prepare_inputs`. Pictures are kept in memory
    where it has room, unless every epoch is to see them otherwise."""
    everything = [record for of_split in records.values() for record in of_split]
    height, width = settings.size
    need = len(everything) * height * width * 3
    if varied == "augmented" or need > PICTURES_SHARE * psutil.virtual_memory().available:
        sound, remarks = check_images(everything, skip_bad_images, progress=progress)
        rows = np.full(len(everything), -1)
        rows[sound] = sound
        kept = None
    else:
        kept, rows, remarks = _read_all(everything, settings, skip_bad_images, progress)
    for remark in remarks:
        say(remark)

    def of_split(split: str, own: np.ndarray) -> Inputs:
        return PixelInputs(everything, own, settings, kept, varied if split == "train" else None)

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
        varied: Variation | None = None,
    ) -> None:
        self.records, self.rows, self.settings, self.kept, self.varied = records, rows, settings, kept, varied

    def read(self, indices: Sequence[int], seed: int | None) -> torch.Tensor:
        rows = self.rows[list(indices)]
        arrays = self.kept[rows] if self.kept is not None else np.stack([self._decode(row, seed) for row in rows])
        pixels = self.settings.normalize(torch.from_numpy(arrays))  # (N, 3, H, W)
        if self.varied == "mirrored" and seed is not None:
            may = np.array([can_be_mirrored(self.records[row].captions) for row in rows])
            turned = torch.from_numpy(_every_other(indices, seed) & may)
            pixels[turned] = pixels[turned].flip(-1)
        return pixels

    def _decode(self, row: int, seed: int | None) -> np.ndarray:
        record = self.records[row]
        image = load_image(record.image, self.settings.draft_size)
        if self.varied == "augmented" and seed is not None:
            image = vary(image, record.captions, np.random.default_rng([seed, row]))
        return self.settings.array(image)

    def describe(self) -> str:
        where = "kept in memory" if self.kept is not None else "decoded in every epoch"
        varied = f", {self.varied}" if self.varied else ""
        return f"pixels {self.settings.size[0]} x {self.settings.size[1]}, {where}{varied}"
