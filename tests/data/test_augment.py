"""Augmented pictures still show what their captions say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from limner.data.augment import augment, can_be_mirrored


@pytest.fixture
def picture() -> Image.Image:
    """Red on its left half, blue on its right."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40, 0], pixels[:, 40:, 2] = 200, 200
    return Image.fromarray(pixels)


def red_is_left(image: Image.Image) -> bool:
    left, right = (np.array(image)[:, side].astype(int).mean((0, 1)) for side in (slice(0, 5), slice(-5, None)))
    return bool(left[0] > left[2] and right[2] > right[0])


def test_pictures_are_mirrored_only_where_no_caption_tells_sides(picture: Image.Image) -> None:
    free = [red_is_left(augment(picture, ["a flag"], np.random.default_rng(k))) for k in range(200)]
    assert 70 < sum(free) < 130
    bound = [augment(picture, ["a flag", "red to the Left of blue"], np.random.default_rng(k)) for k in range(200)]
    assert all(map(red_is_left, bound))
    assert not any(map(can_be_mirrored, (["a leftmost cup"], ["a stop sign that reads STOP"], ["three letters"])))
    assert can_be_mirrored(["a bright red cup", "an upright piano", "a swordfish beneath a bridge"])


def test_what_is_drawn_is_pure_and_bounded(picture: Image.Image) -> None:
    made = [augment(picture, ["x"], np.random.default_rng(k)) for k in range(100)]
    again = [augment(picture, ["x"], np.random.default_rng(k)) for k in range(100)]
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    areas = np.array([image.width * image.height / 4800 for image in made])
    assert 0.72 < areas.min() < 0.8
    assert 0.9 < areas.max() <= 1.0
    assert len({np.array(image).tobytes() for image in made}) > 95
    for image in made:  # red stays red and blue stays blue: no hue is turned
        pixels = np.array(image).astype(int).reshape(-1, 3)
        assert set(pixels.argmax(1)) == {0, 2}
    assert augment(Image.new("RGB", (1, 1)), ["x"], np.random.default_rng(0)).size == (1, 1)
