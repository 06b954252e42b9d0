"""Draws a scene with NumPy: a background, shapes with smooth edges, noise.

Each shape is a signed distance function: negative inside, in pixels, so that ``0.5 - distance`` (clipped to 0..1)
is how much of a pixel the shape covers (https://iquilezles.org/articles/distfunctions2d). It is computed only
in the shape's own window of the picture.
"""

from __future__ import annotations

import colorsys
import math
import random
from functools import lru_cache
from typing import NamedTuple

import numpy as np

COLOURS = {
    "red": (0.99, 0.88, 0.86),
    "yellow": (0.15, 0.88, 0.97),
    "green": (0.36, 0.85, 0.60),
    "blue": (0.61, 0.85, 0.86),
    "white": (0.0, 0.0, 0.97),
    "black": (0.0, 0.0, 0.07),
}
"""Hue, saturation, value, each 0 to 1; every shape varies them a little."""
SHAPES = ("circle", "square", "triangle", "star")


class Item(NamedTuple):
    """One shape to draw: centre and radius are fractions of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    r: float


def draw(items: list[Item], rng: random.Random, pixels: int) -> np.ndarray:
    """The picture of these shapes, uint8 (pixels, pixels, 3); all else about it is drawn from ``rng``."""
    canvas = _background(rng, pixels)  # (3, H, W) float32, 0..1: NumPy's inner loops are slow over three channels
    for item in items:
        _paint(canvas, item, rng, pixels)
    noise = np.random.default_rng(rng.getrandbits(64)).random((pixels, pixels, 3), dtype=np.float32)
    noise -= 0.5
    noise *= rng.uniform(0.02, 0.16)
    noise += canvas.transpose(1, 2, 0)
    noise *= 255
    return noise.clip(0, 255, out=noise).astype(np.uint8)


def _background(rng: random.Random, pixels: int) -> np.ndarray:
    """(3, H, W): a muted colour that varies softly over the picture, sometimes with stripes or checks."""
    base = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.3), rng.uniform(0.35, 0.72)))
    waves = np.random.default_rng(rng.getrandbits(64)).random((3, 4, 4), dtype=np.float32) - np.float32(0.5)
    up = _upsampling(4, pixels)
    canvas = up @ (np.float32(rng.uniform(0.0, 0.24)) * waves) @ up.T  # (3, H, W)
    pattern = rng.random()
    if pattern < 0.35:
        angle, period = rng.uniform(0, math.pi), rng.uniform(0.06, 0.25)
        stripes = _stripes(pixels, period, angle, rng.uniform(0, 6))
        if pattern < 0.12:
            stripes *= _stripes(pixels, period, angle + math.pi / 2, rng.uniform(0, 6))
        canvas += np.float32(rng.uniform(0.01, 0.05)) * stripes
    canvas += base[:, None, None].astype(np.float32)
    return canvas


def _stripes(pixels: int, period: float, angle: float, shift: float) -> np.ndarray:
    """sin(u + v) over the picture, where u grows downwards and v to the right: (H, W) float32."""
    along = np.arange(pixels, dtype=np.float32) * np.float32(2 * math.pi / period / pixels)
    u, v = along * np.float32(math.sin(angle)) + np.float32(shift), along * np.float32(math.cos(angle))
    return np.outer(np.sin(u), np.cos(v)) + np.outer(np.cos(u), np.sin(v))


@lru_cache(maxsize=8)
def _upsampling(coarse: int, fine: int) -> np.ndarray:
    """The matrix (fine, coarse) of linear interpolation between ``coarse`` equidistant points, float32."""
    at = np.linspace(0, coarse - 1, fine)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(coarse))).astype(np.float32)


def _paint(canvas: np.ndarray, item: Item, rng: random.Random, pixels: int) -> None:
    """Lays one shape over the canvas, with a darker or lighter rim."""
    reach = 1.25 * item.r * pixels + 1  # a star's points stand out beyond its radius
    cx, cy = item.x * pixels, item.y * pixels
    left, top = max(0, int(cx - reach)), max(0, int(cy - reach))
    right, bottom = min(pixels, int(cx + reach) + 2), min(pixels, int(cy + reach) + 2)
    dx = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - cx)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
    angle = rng.uniform(-0.2, 0.2)
    turn, lean = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    distance = _DISTANCES[item.shape](turn * dx + lean * dy, turn * dy - lean * dx, np.float32(item.r * pixels))

    hue, saturation, value = COLOURS[item.colour]
    hue = (hue + rng.uniform(-0.015, 0.015)) % 1
    saturation *= rng.uniform(0.85, 1.0)
    value = min(max(value + rng.uniform(-0.08, 0.03), 0.0), 1.0)
    fill = np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)[:, None, None]
    rim = np.float32(rng.uniform(0.55, 1.0)) * fill
    covered = 0.5 - distance  # (h, w)
    inner = (covered - np.float32(pixels / 64)).clip(0, 1)
    window = canvas[:, top:bottom, left:right]
    paint = inner * (fill - rim)  # (3, h, w)
    paint += rim
    paint -= window
    paint *= covered.clip(0, 1)
    window += paint


def _circle(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _square(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.88) * r


def _triangle(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    y = y - np.float32(0.3) * r  # the middle of its height, not its centroid, stands at the centre
    slope = np.float32(math.sqrt(3) / 2) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(slope, y) - np.float32(0.6) * r


def _star(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    # Five folds bring every point into one half of one arm; there the edge is a straight line.
    angle = np.arctan2(x, -y)
    fold = np.float32(2 * math.pi / 5)
    angle = np.abs(angle - fold * np.round(angle / fold))
    radius = np.sqrt(x * x + y * y)
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    outer = np.float32(1.2) * r
    valley = (np.float32(0.52 * math.cos(math.pi / 5)) * r, np.float32(0.52 * math.sin(math.pi / 5)) * r)
    edge = (valley[0] - outer, valley[1])
    return ((u - outer) * edge[1] - v * edge[0]) / np.float32(math.hypot(*edge))


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
