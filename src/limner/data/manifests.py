"""Manifests: every file form in which people keep captions beside their pictures, read into plain entries.

    JSON     {file: caption}, {file: [captions]}, [{file, caption}, ...], COCO's and Karpathy's annotation files
    JSONL    one object a line; several lines a picture allowed
    CSV/TSV  a header with a file and a caption column; several rows a picture allowed
    TXT      Flickr8k's token file (``name.jpg#0<TAB>caption``) and its ``image,caption`` form

Nothing here touches the pictures: `limner.data.folder` finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.data.caption_files import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    JsonObject,
    Row,
    find_column,
    json_file,
    json_lines,
    read_text,
    table,
    with_header,
)

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")


@dataclass
class Entry:
    """What a manifest says of one picture."""

    file: str
    """As written: relative to the manifest's folder, not yet checked."""
    captions: list[str]
    split: str | None
    """The manifest's own word ("train", "dev", "restval", ...)."""
    where: str
    """For messages: the file and the line or number."""


def read_manifest(path: Path, image_column: str | None = None, caption_column: str | None = None) -> list[Entry]:
    """All entries of a manifest, in its order; a picture may occur several times.

    Args:
        image_column, caption_column: the columns to read; unset: the first known name that is there.

    Raises:
        ValueError: not readable as what its name says, or without these columns; the message names the file and
            the line.
    """
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows: Iterable[Row] = json_lines(text, path)
    elif suffix in (".csv", ".tsv"):
        rows = with_header(table(text, path, "\t" if suffix == ".tsv" else ","))
    elif suffix == ".json":
        content = json_file(text, path)
        if isinstance(content, list):
            rows = content
        elif isinstance(content.get("images"), list):
            return _annotations(content, path)
        else:
            return [_pair(file, value, path) for file, value in content.pairs]
    elif suffix == ".txt":
        return _token_file(text, path)
    else:
        raise ValueError(f"{path}: a manifest is a {', '.join(SUFFIXES)} or Flickr8k token (.txt) file.")
    return [_entry(row, image_column, caption_column) for row in rows]


def captions_of(row: dict[str, Any], column: str | None, where: str) -> list[str]:
    """The captions of a row: a string, a list of strings, or Karpathy's list of ``{"raw": ...}``."""
    value = row[_column(row, column, CAPTION_COLUMNS, "caption", where)]
    values = value if isinstance(value, list) else [value]
    return [_caption(item.get("raw") if isinstance(item, dict) else item, where) for item in values]


def _caption(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: a caption must be text, got {value!r}.")
    # JSON may spell half a character, which no text can hold
    return " ".join(value.encode(errors="replace").decode().split())


def _column(row: Any, wanted: str | None, known: Sequence[str], what: str, where: str) -> str:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with a file and a caption, got {type(row).__name__}.")
    found = find_column(row, known) if wanted is None else wanted
    if found is None or found not in row:
        columns = ", ".join(str(name) for name in row)
        raise ValueError(
            f"{where}: no {what} column ({wanted or ' or '.join(known)}); the columns are: {columns}. "
            f"Name yours with --{'image' if what == 'file' else 'caption'}-column."
        )
    return found


def _entry(row: Row, image_column: str | None, caption_column: str | None) -> Entry:
    fields, where = row.fields, row.where
    file = fields[_column(fields, image_column, FILE_COLUMNS, "file", where)]
    if not isinstance(file, str) or not file:
        raise ValueError(f"{where}: the file name must be text, got {file!r}.")
    split = fields.get(find_column(fields, ("split",)))
    return Entry(file, captions_of(fields, caption_column, where), split if isinstance(split, str) else None, where)


def _pair(file: str, value: Any, path: Path) -> Entry:
    where = f"{path}, '{file}'"
    if isinstance(value, dict):
        raise ValueError(
            f"{where}: expected {{file: caption}}, {{file: [captions]}}, a list of objects, or COCO annotations."
        )
    values = value if isinstance(value, list) else [value]
    return Entry(file, [_caption(item, where) for item in values], None, where)


def _annotations(data: JsonObject, path: Path) -> list[Entry]:
    """COCO's captions_*.json (images and annotations apart) or Karpathy's dataset_*.json (sentences inside)."""
    images = data["images"]
    if "annotations" not in data:
        return [_karpathy(image, f"{path}, image {k}") for k, image in enumerate(images, 1)]
    captions: dict[Any, list[str]] = {}
    try:
        for note in data["annotations"]:
            captions.setdefault(note["image_id"], []).append(_caption(note["caption"], str(path)))
        return [
            Entry(image["file_name"], captions.get(image["id"], []), None, f"{path}, image {image['id']}")
            for image in images
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: COCO annotations need images with id and file_name, and annotations with image_id and "
            f"caption (missing: {error})."
        ) from error


def _karpathy(image: dict[str, Any], where: str) -> Entry:
    if not isinstance(image, dict) or not {"filename", "sentences"} <= image.keys():
        raise ValueError(f"{where}: expected a filename and sentences, as in Karpathy's dataset files.")
    folder = image.get("filepath")
    file = f"{folder}/{image['filename']}" if folder else image["filename"]
    return Entry(file, captions_of(image, "sentences", where), image.get("split"), where)


def _token_file(text: str, path: Path) -> list[Entry]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and lines[0][1].replace(" ", "").strip().lower() == "image,caption":
        return [_entry(row, None, None) for row in with_header(table(text, path, ","))]
    entries = []
    for number, line in lines:
        name, tab, caption = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}, line {number}: expected `name.jpg#0<TAB>caption`.")
        entries.append(Entry(name.partition("#")[0], [" ".join(caption.split())], None, f"{path}, line {number}"))
    return entries
