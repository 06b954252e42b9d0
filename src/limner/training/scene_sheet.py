"""The demo's contact sheet: pictures as the model saw them, and its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 6
PICTURE, GAP, MARGIN, TEXT = 192, 24, 40, 94
"""Sides in pixels: a picture, the space between cards, the sheet's margin, the room below a picture for words."""
PAPER, INK, GREY, GREEN, RED = "#fbfaf6", "#23262d", "#7b7f88", "#2f7d5b", "#c0392b"
OVERSAMPLING = 2
"""The sheet is drawn this many times as large, for screens with fine pixels."""


@dataclass(frozen=True)
class Card:
    """One picture (H, W, 3) uint8 with what was said of it; ``expected`` where that is wrong."""

    picture: np.ndarray
    said: str
    expected: str | None = None


def contact_sheet(
    path: Path, title: str, subtitle: str, sections: Sequence[tuple[str, str, Sequence[Card]]]
) -> None:
    """Writes a PNG with a heading, and a heading, a figure and a grid of cards for each of ``sections``."""
    k = OVERSAMPLING
    rows = [-(-len(cards) // COLUMNS) for _, _, cards in sections]
    card_height = PICTURE + TEXT
    width = 2 * MARGIN + COLUMNS * PICTURE + (COLUMNS - 1) * GAP
    height = 2 * MARGIN + 84 + sum(52 + count * card_height for count in rows)
    sheet = Image.new("RGB", (k * width, k * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((k * MARGIN, k * (MARGIN - 6)), title, INK, _font(30))
    pen.text((k * MARGIN, k * (MARGIN + 36)), subtitle, GREY, _font(15))
    top = MARGIN + 84
    for (heading, figure, cards), count in zip(sections, rows, strict=True):
        pen.line((k * MARGIN, k * top, k * (width - MARGIN), k * top), "#dcd9d0", k)
        pen.text((k * MARGIN, k * (top + 14)), heading, INK, _font(18))
        pen.text((k * (width - MARGIN), k * (top + 14)), figure, INK, _font(18), anchor="ra")
        for index, card in enumerate(cards):
            row, column = divmod(index, COLUMNS)
            left = MARGIN + column * (PICTURE + GAP)
            _draw_card(sheet, pen, card, left, top + 52 + row * card_height)
        top += 52 + count * card_height
    sheet.save(path, optimize=True)


def _draw_card(sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, left: int, top: int) -> None:
    k = OVERSAMPLING
    side = k * PICTURE
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), k * 10, 255)
    picture = Image.fromarray(card.picture).resize((side, side), Image.Resampling.BICUBIC)
    sheet.paste(picture, (k * left, k * top), mask)
    wrong = card.expected is not None
    if wrong:
        box = (k * left, k * top, k * left + side - 1, k * top + side - 1)
        pen.rounded_rectangle(box, k * 10, outline=RED, width=k * 3)
    lines = [(line, RED if wrong else INK) for line in _wrapped(card.said)]
    if card.expected is not None:
        lines += [(line, GREY) for line in _wrapped(card.expected)]
    for number, (line, colour) in enumerate(lines):
        pen.text((k * left, k * (top + PICTURE + 7 + 16 * number)), line, colour, _font(13))


def _wrapped(text: str) -> list[str]:
    """The text in lines that fit below a picture."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(13).getlength(longer) <= OVERSAMPLING * PICTURE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * OVERSAMPLING)
