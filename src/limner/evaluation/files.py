"""Captions and references from files, in the forms in which people keep them; no picture is opened.

JSON     COCO results ``[{"image_id", "caption"}]``, COCO captions ``{"images", "annotations"}``,
         ``{image: caption}``, ``{image: [captions]}``, a list of objects
JSONL    one object a line: an image and a caption or captions (what ``limner caption --json`` writes), or pairs
CSV/TSV  with a header; TSV without one: ``path<TAB>caption`` (what ``limner caption`` prints)
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

IMAGE_KEYS = ("image_id", "image", "file_name", "filename", "file", "path", "id", "name")
CAPTION_KEYS = ("captions", "caption", "text", "references", "reference", "prediction", "sentences", "alt_text")
Captions = dict[str, list[str]]


def read_captions(path: Path, split: str | None = None) -> tuple[Captions, dict[str, str]]:
    """The captions of each image, in the file's order, and other names of images (COCO's file names) -> id.

    Args:
        split: only rows whose ``split`` is this one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another form than those above; the message names the place.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    suffix = path.suffix.lower()
    aliases: dict[str, str] = {}
    pairs: Iterable[tuple[str, str]]
    if suffix in (".tsv", ".csv", ".txt"):
        pairs = _table(text, path, "," if suffix == ".csv" else "\t", split)
    elif suffix == ".jsonl" or (suffix != ".json" and "\n{" in text.strip()):
        pairs = _lines(text, path, split)
    else:
        content = _json(text, str(path))
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            aliases = _file_names(content.get("images", []))
            content = content["annotations"]
        pairs = _rows(content, path, split)
    captions: Captions = {}
    for key, caption in pairs:
        captions.setdefault(key, []).append(caption)
    if not captions:
        raise ValueError(f"{path} holds no captions" + (f" of the split {split}." if split else "."))
    return captions, aliases


def match(predictions: Captions, references: Captions, aliases: Mapping[str, str]) -> Captions:
    """The predictions by the references' ids: equal ids, else file names, else the last part of paths.

    Raises:
        ValueError: two predictions mean the same image.
    """
    if all(key in references for key in predictions):
        return predictions
    endings = Counter(_ending(key) for key in references)
    by_ending = {_ending(key): key for key in references if endings[_ending(key)] == 1}
    by_ending |= {_ending(name): key for name, key in aliases.items()}
    matched: Captions = {}
    for key, group in predictions.items():
        found = key if key in references else aliases.get(key) or by_ending.get(_ending(key)) or key
        if found in matched:
            raise ValueError(f"Two predictions mean the image {found}: the other is named {key}.")
        matched[found] = group
    return matched


def _ending(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON ({error}).") from error


def _file_names(images: Any) -> dict[str, str]:
    if not isinstance(images, list):
        return {}
    return {
        str(image["file_name"]): str(image["id"])
        for image in images
        if isinstance(image, dict) and {"file_name", "id"} <= image.keys()
    }


def _rows(content: Any, path: Path, split: str | None) -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        yield from _pairs(content, str(path))
    elif isinstance(content, list):
        for number, row in enumerate(content, 1):
            yield from _row(row, f"{path}, entry {number}", split)
    else:
        raise ValueError(f"{path}: expected an object or a list, got {type(content).__name__}.")


def _lines(text: str, path: Path, split: str | None) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield from _row(_json(line, where), where, split)


def _row(row: Any, where: str, split: str | None) -> Iterator[tuple[str, str]]:
    """One object: with an image and its captions, or ``{image: caption}`` pairs."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with an image and a caption, got {type(row).__name__}.")
    image = next((name for name in IMAGE_KEYS if name in row), None)
    caption = next((name for name in CAPTION_KEYS if name in row), None)
    if image is None and caption is None:
        yield from _pairs(row, where)
        return
    if image is None or caption is None:
        lacking, known = ("image", IMAGE_KEYS) if image is None else ("caption", CAPTION_KEYS)
        raise ValueError(
            f"{where} names no {lacking}: expected one of {', '.join(known)}; it has {', '.join(row)}."
        )
    if split is None or row.get("split") == split:
        yield from _pairs({str(row[image]): row[caption]}, where)


def _pairs(mapping: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: a caption of image {key} is {text!r}; expected text or a list of texts."
                )
            yield str(key), text


def _table(text: str, path: Path, delimiter: str, split: str | None) -> Iterator[tuple[str, str]]:
    if delimiter == ",":
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    else:  # a quotation mark in a caption is just that
        rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if set(header) & set(IMAGE_KEYS) and set(header) & set(CAPTION_KEYS):
        for number, row in enumerate(rows[1:], 2):
            yield from _row(dict(zip(header, row, strict=False)), f"{path}, line {number}", split)
        return
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ValueError(
                f"{path}, line {number}: expected an image and a caption, or a header that names the columns."
            )
        yield row[0], row[1]
