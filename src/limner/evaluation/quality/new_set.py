"""A new data set on disk, in the form that Limner and the hub both read: folders of pictures with metadata.jsonl.

    DIR/README.md, DIR/train/metadata.jsonl, DIR/train/<pictures>, DIR/validation/..., DIR/test/...

Pictures are copied byte for byte. The folder is written aside and renamed: it is whole, or it is not there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.data.caption_files import json_lines, read_text
from limner.data.catalogue import expand
from limner.data.images import EXTENSIONS, image_bytes
from limner.data.records import SPLITS, Record, Split
from limner.whole_files import write_whole

PROVENANCE = {"original_captions": list, "labelled_by": str}
METADATA, README = "metadata.jsonl", "README.md"
_SIGNATURES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}


@dataclass
class Entry:
    """A picture of the new set."""

    record: Record
    split: Split
    extra: Mapping[str, Any]
    """Further columns of its metadata (``original_captions``, ...)."""


def provenance(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What Limner's sets keep beside the captions, by image id as `load_dataset_by_name` gives it for these names.

    ``original_captions``: as they were before a rewriting; ``labelled_by``: the model that wrote them.
    """
    found: dict[str, dict[str, Any]] = {}
    several = len(expand(names)) > 1
    for name in names:
        folder = Path(name)
        for metadata in [*folder.glob(METADATA), *folder.glob(f"*/{METADATA}")]:
            within = (name.rstrip("/") + "/" if several else "") + (
                "" if metadata.parent == folder else f"{metadata.parent.name}/"
            )
            for row in json_lines(read_text(metadata), metadata):
                fields = row.fields if isinstance(row.fields, dict) else {}
                kept = {key: fields[key] for key in PROVENANCE if isinstance(fields.get(key), PROVENANCE[key])}
                if kept:
                    found[f"{within}{fields.get('file_name')}"] = kept
    return found


def joined_provenance(
    copies: Sequence[Record], provenance: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str] | str]:
    """Of one picture made of several: where one has captions of before, those of the others are what they say."""
    kept = [provenance.get(copy.image_id, {}) for copy in copies]
    joined: dict[str, list[str] | str] = {}
    if any("original_captions" in row for row in kept):
        before = [row.get("original_captions", copy.captions) for copy, row in zip(copies, kept, strict=True)]
        joined["original_captions"] = list(dict.fromkeys(itertools.chain(*before)))
    if models := dict.fromkeys(row["labelled_by"] for row in kept if "labelled_by" in row):
        joined["labelled_by"] = ", ".join(models)
    return joined


class Seal:
    """A file that tells a set as it was made from one that somebody has changed since, or made of something else.

    Args:
        file: a digest a line: of every set that was sealed. One is sealed before it is put in its place, so that
            the old and the new are known whatever ends the work between.
        subject: what the set is made of, in plain values that JSON can hold.
    """

    def __init__(self, file: Path, subject: Mapping[str, Any]) -> None:
        self.file, self.subject = file, subject

    def holds(self, folder: Path) -> bool:
        """Whether the folder is as it was when it was sealed, and made of the same."""
        return folder.is_dir() and self._of(folder) in self._known()

    def put(self, folder: Path) -> None:
        write_whole(self.file, "".join(f"{digest}\n" for digest in [*self._known(), self._of(folder)]))

    def _known(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").split() if self.file.is_file() else []

    def _of(self, folder: Path) -> str:
        """A digest of the subject, of all names and sizes, and of what is text."""
        digest = hashlib.blake2b(json.dumps(self.subject, sort_keys=True).encode(), digest_size=16)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
            if file.name in (METADATA, README):
                digest.update(file.read_bytes())
        return digest.hexdigest()


def write_set(
    entries: Iterable[Entry],
    folder: Path,
    title: str,
    told: Callable[[], Sequence[str]],
    seal: Seal | None = None,
) -> int:
    """Writes the set, and returns how many pictures it has.

    Args:
        told: gives what was done, a sentence each, for the README; called when all entries are written.
        seal: of a set that is replaced where it is as it was made; put on the new one.

    Raises:
        ValueError: the folder exists and is not empty, or there is nothing to write.
        OSError: the disk is full; the folder is as it was, and nothing is left behind.
    """
    check_free(folder, seal)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        counts = _write(entries, new)
        if not sum(counts.values()):
            raise ValueError(f"Nothing would be left of the data set ({'; '.join(told())}); nothing was written.")
        (new / README).write_text(_card(title, told(), counts), encoding="utf-8")
        if seal is not None:
            seal.put(new)
        check_free(folder, seal)  # somebody may have been there meanwhile
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sum(counts.values())


def check_free(folder: Path, seal: Seal | None = None) -> None:
    """Refuses a folder that holds something, unless the seal holds, before work is put into it."""
    if seal is not None and seal.holds(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; name a new folder with --out.")


def _write(entries: Iterable[Entry], folder: Path) -> dict[str, int]:
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    taken: set[str] = set()
    for entry in entries:
        data = picture_bytes(entry.record)
        names = (file_name(entry.record.image_id, data, distinct) for distinct in itertools.count())
        name = next(name for name in names if f"{entry.split}/{name.lower()}" not in taken)
        taken.add(f"{entry.split}/{name.lower()}")
        target = folder / entry.split / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        row = {
            "file_name": name,
            "captions": entry.record.captions,
            "image_id": entry.record.image_id,
            **entry.extra,
        }
        rows[entry.split].append(json.dumps(row, ensure_ascii=False) + "\n")
    for split, lines in rows.items():
        if lines:
            (folder / split / METADATA).write_text("".join(lines), encoding="utf-8")
    return {split: len(lines) for split, lines in rows.items()}


def picture_bytes(record: Record) -> bytes:
    """The picture's file as it is."""
    if isinstance(record.image, Image.Image | np.ndarray):
        raise ValueError(f"The picture {record.image_id} is no file.")
    return image_bytes(record.image)


def file_name(image_id: str, data: bytes, distinct: int = 0) -> str:
    """A plain file name from the image's id, with the ending that its bytes deserve where the id has none.

    Args:
        distinct: above 0, with a digest of the id and of this number, for where the plain name is taken.
    """
    last = image_id.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, ending = last.rpartition(".")
    if not dot or f".{ending.lower()}" not in EXTENSIONS:
        stem, ending = last, next((e for s, e in _SIGNATURES.items() if data.startswith(s)), ".webp")[1:]
    plain = re.sub(r"[^\w-]+", "_", stem)[:80].strip("_") or "picture"
    if distinct:
        salt = distinct.to_bytes(16)
        plain = f"{plain}-{hashlib.blake2b(image_id.encode(), digest_size=4, salt=salt).hexdigest()}"
    return f"{plain}.{ending.lower()}"


def _card(title: str, told: Sequence[str], counts: Mapping[str, int]) -> str:
    """The data set's page on the hub."""
    files = "".join(f"  - split: {split}\n    path: {split}/**\n" for split, count in counts.items() if count)
    sizes = "\n".join(f"- {split}: {count:,} pictures" for split, count in counts.items() if count)
    done = "\n".join(f"- {sentence}" for sentence in told)
    return (
        f"---\ntask_categories:\n- image-to-text\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n"
        f"# {title}\n\n{sizes}\n\nMade by Limner:\n\n{done}\n\nRead it with `limner train --dataset DIR`, or "
        "`datasets.load_dataset`.\nThe licences of the pictures and captions are those of their sources.\n"
    )
