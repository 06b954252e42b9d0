"""Manifests: every file form in which people keep captions beside their pictures, read into plain entries.

    JSON     {file: caption}, {file: [captions]}, [{file, caption}, ...], COCO's and Karpathy's annotation files
    JSONL    one object a line; several lines a picture allowed
    CSV/TSV  a header with a file and a caption column; several rows a picture allowed
    TXT      Flickr8k's token file (``name.jpg#0<TAB>caption``) and its ``image,caption`` form

Nothing here touches the pictures: `limner.data.folder` finds them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_COLUMNS = ("file_name", "image", "file", "filename", "image_path", "path", "filepath", "img", "image_file")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentences", "sentence", "alt_text", "description", "raw")
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")


class ManifestError(ValueError):
    """A manifest that cannot be read; the message names the file and the line."""


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
        ManifestError: not readable as what its name says, or without these columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows: Iterable[tuple[Any, str]] = json_lines(text, path)
    elif suffix in (".csv", ".tsv"):
        rows = _table(text, path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".json":
        data = _json(text, path)
        if isinstance(data, list):
            rows = [(row, f"{path}, entry {k}") for k, row in enumerate(data, 1)]
        elif isinstance(data.get("images"), list):
            return _annotations(data, path)
        else:
            return [_pair(file, value, path) for file, value in data.pairs]
    elif suffix == ".txt":
        return _token_file(text, path)
    else:
        raise ManifestError(f"{path}: a manifest is a {', '.join(SUFFIXES)} or Flickr8k token (.txt) file.")
    return [_entry(row, image_column, caption_column, where) for row, where in rows]


def captions_of(row: dict[str, Any], column: str | None, where: str) -> list[str]:
    """The captions of a row: a string, a list of strings, or Karpathy's list of ``{"raw": ...}``."""
    value = row[_column(row, column, CAPTION_COLUMNS, "caption", where)]
    values = value if isinstance(value, list) else [value]
    return [_caption(item.get("raw") if isinstance(item, dict) else item, where) for item in values]


def _caption(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestError(f"{where}: a caption must be text, got {value!r}.")
    # JSON may spell half a character, which no text can hold
    return " ".join(value.encode(errors="replace").decode().split())


def _column(row: Any, wanted: str | None, known: tuple[str, ...], what: str, where: str) -> str:
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: expected an object with a file and a caption, got {type(row).__name__}.")
    candidates = (wanted,) if wanted else known
    found = next((name for name in candidates if name in row), None)
    if found is None:
        columns = ", ".join(str(name) for name in row)
        raise ManifestError(
            f"{where}: no {what} column ({' or '.join(candidates)}); the columns are: {columns}. "
            f"Name yours with --{'image' if what == 'file' else 'caption'}-column."
        )
    return found


def _entry(row: Any, image_column: str | None, caption_column: str | None, where: str) -> Entry:
    file = row[_column(row, image_column, FILE_COLUMNS, "file", where)]
    if not isinstance(file, str) or not file:
        raise ManifestError(f"{where}: the file name must be text, got {file!r}.")
    split = row.get("split")
    return Entry(file, captions_of(row, caption_column, where), split if isinstance(split, str) else None, where)


class _Object(dict[str, Any]):
    """A JSON object that remembers names given twice, so that a file named twice keeps the captions of both."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _json(text: str, path: Path) -> Any:
    try:
        data = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(data, (_Object, list)):
        raise ManifestError(f"{path}: expected an object or a list, got {type(data).__name__}.")
    return data


def _pair(file: str, value: Any, path: Path) -> Entry:
    where = f"{path}, '{file}'"
    if isinstance(value, dict):
        raise ManifestError(
            f"{where}: expected {{file: caption}}, {{file: [captions]}}, a list of objects, or COCO annotations."
        )
    values = value if isinstance(value, list) else [value]
    return Entry(file, [_caption(item, where) for item in values], None, where)


def json_lines(text: str, path: Path) -> Iterable[tuple[Any, str]]:
    """The rows of a JSONL file, each with its place; empty lines are none.

    Raises:
        ManifestError: a line is not valid JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield json.loads(line), where
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{where} is not valid JSON ({error}).") from error


def _table(text: str, path: Path, delimiter: str) -> Iterable[tuple[Any, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ManifestError(f"{where} has more fields than the header; put captions with commas in quotes.")
            yield {(name or "").strip(): value for name, value in row.items()}, where
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num} cannot be read ({error}).") from error


def _annotations(data: dict[str, Any], path: Path) -> list[Entry]:
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
        raise ManifestError(
            f"{path}: COCO annotations need images with id and file_name, and annotations with image_id and "
            f"caption (missing: {error})."
        ) from error


def _karpathy(image: dict[str, Any], where: str) -> Entry:
    if not isinstance(image, dict) or not {"filename", "sentences"} <= image.keys():
        raise ManifestError(f"{where}: expected a filename and sentences, as in Karpathy's dataset files.")
    folder = image.get("filepath")
    file = f"{folder}/{image['filename']}" if folder else image["filename"]
    return Entry(file, captions_of(image, "sentences", where), image.get("split"), where)


def _token_file(text: str, path: Path) -> list[Entry]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and lines[0][1].replace(" ", "").strip().lower() == "image,caption":
        rows = _table(text, path, ",")
        return [_entry(row, "image", "caption", where) for row, where in rows]
    entries = []
    for number, line in lines:
        name, tab, caption = line.partition("\t")
        if not tab:
            raise ManifestError(f"{path}, line {number}: expected `name.jpg#0<TAB>caption`.")
        entries.append(Entry(name.partition("#")[0], [" ".join(caption.split())], None, f"{path}, line {number}"))
    return entries
