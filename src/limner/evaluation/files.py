"""Captions and references from files, in the forms in which people keep them; no picture is opened.

JSON     COCO results ``[{"image_id", "caption"}]``, COCO captions ``{"images", "annotations"}``,
         ``{image: caption}``, ``{image: [captions]}``, a list of objects
JSONL    one object a line: an image and a caption or captions (what ``limner caption --json`` writes), or pairs
CSV/TSV  with a header; TSV without one: ``path<TAB>caption`` (what ``limner caption`` prints)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from limner.data.caption_files import (
    SCORED_CAPTION_COLUMNS,
    SCORED_IMAGE_COLUMNS,
    Row,
    find_column,
    json_file,
    json_lines,
    read_text,
    table,
    with_header,
)

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
    text = read_text(path)
    suffix = path.suffix.lower()
    aliases: dict[str, str] = {}
    pairs: Iterable[tuple[str, str]]
    if suffix in (".tsv", ".csv", ".txt"):
        pairs = _table(text, path, "," if suffix == ".csv" else "\t", split)
    elif suffix == ".jsonl" or (suffix != ".json" and "\n{" in text.strip()):
        pairs = _rows(json_lines(text, path), split)
    else:
        content = json_file(text, path)
        if isinstance(content, list):
            pairs = _rows(content, split)
        elif isinstance(content.get("annotations"), list):
            aliases = _file_names(content.get("images", []))
            notes = enumerate(content["annotations"], 1)
            pairs = _rows((Row(note, f"{path}, entry {number}") for number, note in notes), split)
        else:
            pairs = _pairs(content.pairs, str(path))
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


def _file_names(images: Any) -> dict[str, str]:
    if not isinstance(images, list):
        return {}
    return {
        str(image["file_name"]): str(image["id"])
        for image in images
        if isinstance(image, dict) and {"file_name", "id"} <= image.keys()
    }


def _rows(rows: Iterable[Row], split: str | None) -> Iterator[tuple[str, str]]:
    """Image and caption of rows that name them by columns, or are ``{image: caption}`` pairs."""
    for row in rows:
        fields, where = row.fields, row.where
        if not isinstance(fields, dict):
            raise ValueError(
                f"{where}: expected an object with an image and a caption, got {type(fields).__name__}."
            )
        image, caption = find_column(fields, SCORED_IMAGE_COLUMNS), find_column(fields, SCORED_CAPTION_COLUMNS)
        if image is None and caption is None:
            yield from _pairs(fields.items(), where)
            continue
        for column, what, known in (
            (image, "image", SCORED_IMAGE_COLUMNS),
            (caption, "caption", SCORED_CAPTION_COLUMNS),
        ):
            if column is None or fields[column] is None:
                there = ", ".join(fields)
                raise ValueError(f"{where} names no {what}: expected one of {', '.join(known)}; it has {there}.")
        if split is None or fields.get(find_column(fields, ("split",))) == split:
            yield from _pairs([(str(fields[image]), fields[caption])], where)


def _pairs(pairs: Iterable[tuple[str, Any]], where: str) -> Iterator[tuple[str, str]]:
    for key, value in pairs:
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: a caption of image {key} is {text!r}; expected text or a list of texts."
                )
            yield key, text


def _table(text: str, path: Path, delimiter: str, split: str | None) -> Iterator[tuple[str, str]]:
    lines = list(table(text, path, delimiter))
    header = [name.strip() for name in lines[0][0]] if lines else []
    if find_column(header, SCORED_IMAGE_COLUMNS) and find_column(header, SCORED_CAPTION_COLUMNS):
        yield from _rows(with_header(lines), split)
        return
    for cells, where in lines:
        if len(cells) != 2:
            raise ValueError(f"{where}: expected an image and a caption, or a header that names the columns.")
        yield cells[0], cells[1]
