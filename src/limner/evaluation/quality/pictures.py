"""Pictures that cannot be read, that are the same, or nearly: by their bytes, and by what is seen in them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from limner.data.images import ImageSource, image_bytes, load_image

NEAR = 4
"""Bits of 64 in which the hashes of near-duplicates differ at most: rescaled and recompressed copies are below."""


@dataclass
class Look:
    """What a picture is, without judging it."""

    digest: str
    """Of the file's bytes."""
    hash: int
    """64 bits of what is seen; see `difference_hash`."""
    size: tuple[int, int]
    """(width, height) in pixels."""
    document_like: bool
    """Mostly bright and flat, with dark strokes: a page or a screenshot, probably with text in it."""
    problem: str | None = None
    """Why it cannot be read; everything else is then empty."""


def look(source: ImageSource) -> Look:
    """Reads a picture once. Never raises for a bad picture: ``problem`` says what is wrong."""
    try:
        data = image_bytes(source) if not isinstance(source, Image.Image | np.ndarray) else None
        image = load_image(source)  # by its own name, for the message
    except (ValueError, OSError) as error:
        return Look("", 0, (0, 0), False, str(error))
    digest = hashlib.blake2b(data or image.tobytes(), digest_size=16).hexdigest()
    grey = image.convert("L")
    return Look(digest, difference_hash(grey), image.size, document_like(grey))


def difference_hash(grey: Image.Image) -> int:
    """dHash (Krawetz, 2013): whether each pixel of a 9 x 8 miniature is brighter than its right neighbour, 64 bits.

    Copies that were rescaled, recompressed or evenly brightened differ in a few bits, other pictures in about 32.
    """
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # (8, 9)
    bits = (small[:, :-1] > small[:, 1:]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def document_like(grey: Image.Image) -> bool:
    """More than half of the picture one bright tone, and dark strokes in the rest."""
    small = np.asarray(grey.resize((128, 128), Image.Resampling.BILINEAR))
    tones = np.bincount((small // 8).ravel(), minlength=32) / small.size
    ground = int(tones.argmax())
    dark = float((small < 100).mean())
    return bool(ground >= 24 and tones[max(0, ground - 1) : ground + 2].sum() > 0.55 and 0.01 < dark < 0.4)


def same(keys: Sequence[str]) -> list[list[int]]:
    """Groups of two or more equal, non-empty keys, as row numbers."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key:
            groups[key].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_pairs(hashes: Sequence[int], rows: Iterable[int], distance: int = NEAR) -> list[tuple[int, int]]:
    """All pairs among ``rows`` whose hashes differ in at most ``distance`` bits.

    Exact, without comparing all pairs: of distance + 1 bands of the hash, such a pair has one in common. Flat
    pictures (all bits alike) say nothing and are left out.
    """
    edges = [64 * k // (distance + 1) for k in range(distance + 2)]
    rows = [row for row in rows if hashes[row] not in (0, 2**64 - 1)]
    found: set[tuple[int, int]] = set()
    for start, end in pairwise(edges):
        bands: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            bands[(hashes[row] >> start) & ((1 << (end - start)) - 1)].append(row)
        for members in bands.values():
            for position, one in enumerate(members):
                for other in members[:position]:
                    if (hashes[one] ^ hashes[other]).bit_count() <= distance:
                        found.add((other, one))
    return sorted(found)
