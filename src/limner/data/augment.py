"""Variations of a training picture that leave its captions true.

Crops keep at least three quarters of the picture. Brightness, contrast and saturation vary a little; hue does not,
because captions name colours. A picture is mirrored only where none of its captions would become false: one that
tells sides ("left of the door"), or that speaks of something to be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SMALLEST_CROP = 0.75
"""Of the area."""
LARGEST_STRETCH = 1.15
"""Of the crop's aspect ratio, either way."""
COLOUR_RANGE = 0.2
"""Brightness, contrast and saturation are multiplied by 1 plus or minus at most this."""

_SIDED = re.compile(
    r"\b(left|right|clockwise|counter-?clockwise|east|west|eastern|western)"
    r"|\b(text|words?|letters?|numbers?|digits?|logo|label|reads?|reading|says?|saying|written|writing|spell)",
    re.IGNORECASE,
)


def can_be_mirrored(captions: Sequence[str]) -> bool:
    """Whether a picture's captions stay true of its mirror image."""
    return not any(_SIDED.search(caption) for caption in captions)


def augment(image: Image.Image, captions: Sequence[str], rng: np.random.Generator) -> Image.Image:
    """A variation of an RGB picture; the same for the same state of ``rng``, of which it draws 8 numbers."""
    area, stretch, across, down, mirror, *colours = rng.random(8)
    image = _cropped(image, area, stretch, across, down)
    if mirror < 0.5 and can_be_mirrored(captions):
        image = ImageOps.mirror(image)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, draw in zip(enhancers, colours, strict=True):
        image = enhancer(image).enhance(1 + COLOUR_RANGE * (2 * draw - 1))
    return image


def _cropped(image: Image.Image, area: float, stretch: float, across: float, down: float) -> Image.Image:
    """Four numbers in [0, 1): how large, how stretched, and where."""
    share = SMALLEST_CROP + (1 - SMALLEST_CROP) * area
    ratio = LARGEST_STRETCH ** (2 * stretch - 1)
    width = max(1, min(image.width, round(image.width * (share * ratio) ** 0.5)))
    height = max(1, min(image.height, round(image.height * (share / ratio) ** 0.5)))
    left, top = int(across * (image.width - width + 1)), int(down * (image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
