"""The forms of files that hold captions, read row by row; what a row means is for those to say who read it.

JSON     checked, and no name lost that is given twice
JSONL    one value a line; empty lines are none
CSV      quoted fields may hold commas and line breaks
TSV      one row a line; a quotation mark in a caption is just that, but the quoting of csv and pandas is undone
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

FILE_COLUMNS = ("file_name", "image", "file", "filename", "image_path", "path", "filepath", "img", "image_file")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentences", "sentence", "alt_text", "description", "raw")
# A picture whose captions are scored may go by an id, and a prediction is not taken for a caption to learn from.
SCORED_IMAGE_COLUMNS = ("image_id", *FILE_COLUMNS, "id", "name")
SCORED_CAPTION_COLUMNS = (*CAPTION_COLUMNS[:3], "references", "reference", "prediction", *CAPTION_COLUMNS[3:])


@dataclass(frozen=True)
class Row:
    """One row, and for messages the file and its line or number."""

    fields: Any
    """An object with the columns; of JSON and JSONL whatever stands there."""
    where: str


class JsonObject(dict[str, Any]):
    """A JSON object that remembers names given twice, so that a file named twice keeps the captions of both."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def read_text(path: Path) -> str:
    """Raises ValueError where a file is not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON value, its objects as `JsonObject`. Raises ValueError where it is none."""
    try:
        return json.loads(text, object_pairs_hook=JsonObject)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}).") from error


def json_file(text: str, path: Path) -> JsonObject | list[Row]:
    """A JSON file's object, or the rows of its list. Raises ValueError where it is neither."""
    content = parse_json(text, str(path))
    if isinstance(content, list):
        return [Row(fields, f"{path}, entry {number}") for number, fields in enumerate(content, 1)]
    if not isinstance(content, JsonObject):
        raise ValueError(f"{path}: expected an object or a list, got {type(content).__name__}.")
    return content


def json_lines(text: str, path: Path) -> Iterator[Row]:
    """The rows of a JSONL file. Raises ValueError where a line is not valid JSON."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Row(parse_json(line, where), where)


def table(text: str, path: Path, delimiter: str) -> Iterator[tuple[list[str], str]]:
    """The cells of each line of a CSV (",") or TSV ("\\t") file, its header among them, and its place.

    Raises:
        ValueError: a quotation mark that is opened and not closed, or closed within a field of a CSV file.
    """
    if delimiter == "\t":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield [_unquoted(cell) for cell in line.split("\t")], f"{path}, line {number}"
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        yield from ((cells, f"{path}, line {reader.line_num}") for cells in reader if cells)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num} cannot be read ({error}); a field that begins with a quotation mark "
            "must end with one, and each inside it must stand twice."
        ) from error


def _unquoted(cell: str) -> str:
    """A cell of a TSV file without the quoting of csv, which doubles every mark inside; any other as it is."""
    inside = cell[1:-1]
    if cell[:1] == cell[-1:] == '"' and '""' in inside and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"')
    return cell


def with_header(lines: Iterable[tuple[list[str], str]]) -> Iterator[Row]:
    """The rows of a `table` by the names in its first line; cells that a row lacks at its end are None.

    Raises:
        ValueError: a row has more cells than the header.
    """
    names: list[str] | None = None
    for cells, where in lines:
        if names is None:
            names = [name.strip() for name in cells]
        elif len(cells) > len(names):
            raise ValueError(f"{where} has more fields than the header; in CSV, quote captions that hold commas.")
        else:
            yield Row(dict(zip_longest(names, cells)), where)


def find_column(names: Collection[str], known: Sequence[str]) -> str | None:
    """The first of the ``known`` columns that is there, as it is written there; capitals do not matter."""
    there = {name.lower(): name for name in names} | {name: name for name in names}
    return next((there[name] for name in known if name in there), None)
