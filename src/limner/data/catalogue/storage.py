"""What data sets take on the disk: told before they are downloaded, and listed afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict, load_dataset_builder

from limner.data.catalogue.rows import Options, explained, repository_path
from limner.data.sizes import SPARE, free_bytes, size


@dataclass(frozen=True)
class Prepared:
    """A hub data set that is on this machine."""

    pictures: int
    captions: int
    files: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def remember(name: str, data: DatasetDict, options: Options) -> None:
    """Notes what was prepared, for `limner data list`."""
    files = sorted({cached["filename"] for rows in data.values() for cached in rows.cache_files})
    captions = sum(len(said) for rows in data.values() for said in rows.select_columns(["captions"])[:]["captions"])
    note = {"pictures": sum(map(len, data.values())), "captions": captions, "files": files}
    file = _note(name, options)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(note, indent=1))


def prepared(name: str, options: Options) -> Prepared | None:
    """None where the data set is not here, or its files have been removed."""
    note = _note(name, options)
    if not note.exists():
        return None
    stored = json.loads(note.read_text())
    files = tuple(Path(file) for file in stored["files"])
    if not all(file.exists() for file in files):
        return None
    return Prepared(stored["pictures"], stored["captions"], files)


def check_room(name: str, repository: str, options: Options) -> None:
    """Tells what a hub data set will take, and refuses where the disk has no room for it.

    The hub's files are kept in its own cache, so that an interrupted download goes on where it stopped, and are
    written once more as Arrow files of about the same size.

    Raises:
        OSError: no room; the hub cannot be reached.
    """
    cache = options.cache_dir / "datasets"
    mirrored = repository_path(repository) != repository
    with explained(repository):
        files = load_dataset_builder(repository_path(repository), cache_dir=str(cache)).config.data_files
        paths = [file for of_split in files.values() for file in of_split]
        download = sum(map(_file_size, paths))
    need = download if mirrored else 2 * download
    free = free_bytes(cache)
    told = f"{name}: {size(download)} in {len(paths)} files, {size(need)} on the disk with the Arrow copy"
    if need + SPARE > free:
        raise OSError(
            f"{told}, but only {size(free)} are free in {cache}; free some, or choose another --cache-dir."
        )
    options.say(f"{told}; {size(free)} are free.")


def _file_size(path: str) -> int:
    if "://" not in path:
        return Path(path).stat().st_size
    from huggingface_hub import HfFileSystem

    return int(HfFileSystem().size(path) or 0)


def _note(name: str, options: Options) -> Path:
    return options.cache_dir / "datasets" / "prepared" / f"{name.replace('/', '___')}.json"
