"""The one record that everything downstream knows, and the split that an image belongs to."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from limner.data.images import ImageSource

T = TypeVar("T")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
THE_ANSWER_TO_LIFE_THE_UNIVERSE_AND_EVERYTHING = 42
FRACTIONS = (0.9, 0.05, 0.05)
"""Shares of training, validation and test where a data set names no splits of its own."""

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's COCO: validation photos that everyone trains on
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass
class Record:
    """A picture with its captions.

    ``image`` is anything that `limner.data.images.load_image` takes; ``image_id`` decides the split and names the
    picture in messages and results.
    """

    image: ImageSource
    captions: list[str]
    image_id: str
    split: Split | None = None
    """The split that the data set itself names; None: `split_of` decides."""


def text_of(name: str) -> str:
    """A file's name as text that can be written down: what is not UTF-8 is spelled, as in ``caf\\xe9.png``."""
    try:
        return os.fsencode(name).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half a character, which JSON may hold
        return name.encode(errors="backslashreplace").decode()


def split_name(name: str) -> Split:
    """The split that a data set's own word for it means ("dev", "val", "restval", ...).

    Raises:
        ValueError: an unknown word.
    """
    split = _SPLIT_NAMES.get(name.strip().lower())
    if split is None:
        raise ValueError(f"Unknown split '{name}'; expected one of {', '.join(_SPLIT_NAMES)}.")
    return split


def split_position(image_id: str, seed: int = THE_ANSWER_TO_LIFE_THE_UNIVERSE_AND_EVERYTHING) -> float:
    """A number in [0, 1) that depends on nothing but the image's id and the seed."""
    digest = hashlib.blake2b(f"{seed}\0{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(
    image_id: str,
    seed: int = THE_ANSWER_TO_LIFE_THE_UNIVERSE_AND_EVERYTHING,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> Split:
    """The split of an image: a pure function of its id, so growing data never moves an image between splits.

    Args:
        fractions: of training, validation and test; they add up to 1.
    """
    if abs(sum(fractions) - 1.0) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"The fractions of the splits must add up to 1, got {fractions}.")
    position = split_position(image_id, seed)
    # Validation and test lie at the start, so that the smallest position is the natural stand-in for both.
    if position < fractions[1]:
        return "validation"
    return "test" if position < fractions[1] + fractions[2] else "train"


@dataclass
class Splits:
    """The records of each split."""

    train: Sequence[Record] = field(default_factory=list)
    validation: Sequence[Record] = field(default_factory=list)
    test: Sequence[Record] = field(default_factory=list)

    def __getitem__(self, split: Split) -> Sequence[Record]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def assign_splits(
    ids: Iterable[tuple[str, Split | None]],
    seed: int = THE_ANSWER_TO_LIFE_THE_UNIVERSE_AND_EVERYTHING,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> list[Split]:
    """The split of every image: its own where it names one, else `split_of`.

    A data set that calls all its images "train" names no split. Where it names several but not validation, its
    training images are divided between the two. Where all are held out, as "test" or "validation", none is taken
    to train on.

    Else, with two images or more, neither training nor validation is ever empty: where chance left validation
    empty, the image nearest to it moves there. Such a set is tiny; the exception ends as soon as it has grown.
    """
    items = list(ids)
    names = {own for _, own in items}
    held_out: list[Split] = [own for _, own in items if own in ("validation", "test")]
    if len(held_out) == len(items):
        return held_out
    splits: list[Split] = []
    for image_id, own in items:
        if own is None or len(names) == 1:
            splits.append(split_of(image_id, seed, fractions))
        elif own == "train" and "validation" not in names:
            splits.append(split_of(image_id, seed, (1 - fractions[1], fractions[1], 0.0)))
        else:
            splits.append(own)
    positions = [split_position(image_id, seed) for image_id, _ in items]
    if len({image_id for image_id, _ in items}) >= 2:
        if "train" not in splits:
            _move(items, splits, max(range(len(items)), key=positions.__getitem__), "train")
        if "validation" not in splits:
            spare = [k for k, split in enumerate(splits) if split == "train"]
            if len({items[k][0] for k in spare}) < 2:  # training must keep one: take from the test images
                spare = [k for k, split in enumerate(splits) if split == "test"]
            _move(items, splits, min(spare, key=positions.__getitem__), "validation")
    return splits


def sampled(items: Sequence[T], count: int | None, seed: int) -> list[T]:
    """``count`` of the items, or all where there are no more, the same ones for a seed, in their order."""
    if count is None or count >= len(items):
        return list(items)
    return [items[row] for row in sorted(random.Random(seed).sample(range(len(items)), count))]


def _move(items: list[tuple[str, Split | None]], splits: list[Split], chosen: int, to: Split) -> None:
    """Moves an image, with all records that share its id."""
    for k, (image_id, _) in enumerate(items):
        if image_id == items[chosen][0]:
            splits[k] = to
