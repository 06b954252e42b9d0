"""A person's own pictures: a folder, a manifest or tar shards, as records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import overload

from limner.data.caption_files import read_text
from limner.data.images import EXTENSIONS, UNREAD, ImageSource
from limner.data.manifests import SUFFIXES, Entry, read_manifest
from limner.data.records import FRACTIONS, SPLITS, Record, Splits, assign_splits, split_name, text_of
from limner.data.shards import TarImage, index_shard, webdataset_samples

# JSON files that other tools leave in a data folder.
_NOT_MANIFESTS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_USUAL_NAMES = ("captions", "manifest", "annotations", "metadata", "data")


@dataclass
class Found:
    """A picture that was found, with what its manifest or sidecar says of it."""

    image: ImageSource
    image_id: str
    entry: Entry


class ImageCaptionDataset(Sequence[Record]):
    """A folder of pictures with captions.

    ``path`` is a folder with one of these, looked for in this order, or the file itself:

    1. ``metadata.jsonl`` or ``metadata.csv`` (the Hugging Face form), also in ``train/``, ``validation/``, ...;
    2. a manifest: one .json, .jsonl, .csv or .tsv file (`limner.data.manifests` tells the forms);
    3. ``.tar`` shards in the WebDataset form (with a manifest beside them, they only hold the pictures), also in
       ``train/``, ``validation/``, ...;
    4. ``name.txt`` beside ``name.jpg``, one caption a line, in any depth of folders.

    Where no manifest names a picture's split, the first folder of its path does (``train/``, ``val/``, ...), or how
    the name of its shard begins (``train-000.tar``).

    Args:
        image_column, caption_column: of a manifest's rows; unset: the first known name.
        uncaptioned: keep pictures without a caption too, for who captions them.
        images: the folder that a manifest's file names are relative to; unset: its own.
        skip_bad_images: leave out pictures that are missing or have no caption, and count and name them in
            ``remarks``, instead of raising. (`limner.data.loading.check_images` tells which cannot be decoded.)

    Attributes:
        remarks: what a person should know: captions that repeat, pictures without captions, with names and counts.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: no pictures, no captions, a manifest that cannot be read, names a missing file, or leaves its
            folder; the message names it, with the count.
    """

    def __init__(
        self,
        path: str | Path,
        image_column: str | None = None,
        caption_column: str | None = None,
        skip_bad_images: bool = False,
        images: Path | None = None,
        uncaptioned: bool = False,
    ) -> None:
        self.path, self._images, self._uncaptioned = Path(path), images, uncaptioned
        self.remarks: list[str] = []
        if not self.path.exists():
            raise FileNotFoundError(f"There is no folder or file {path}.")
        manifests = _manifests(self.path)
        if manifests:
            found = [
                picture
                for manifest in manifests
                for picture in self._from_manifest(manifest, image_column, caption_column, skip_bad_images)
            ]
            if self.path.is_dir():
                self._tell_what_no_manifest_names(found, manifests)
        elif shards := _shards(self.path):
            samples, without = webdataset_samples(shards, caption_column)
            found = list(self._from_samples(samples, len(shards)))
            if without:
                self._remark("sample holds", "samples hold", "no picture and is left out", without)
        else:
            found = list(self._from_sidecars())
        self.records = self._merge(found, skip_bad_images)
        if not self.records:
            raise ValueError(
                f"{self.path} holds no picture with a caption. Put name.txt beside name.jpg, or a captions.json of "
                'the form {"name.jpg": "its caption"}. ' + " ".join(self.remarks)
            )

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return self.records[index]

    def splits(self, seed: int = 42, fractions: tuple[float, float, float] = FRACTIONS) -> Splits:
        """The records by split: the data set's own where it names them, else by the hash of ``image_id``."""
        named = assign_splits([(record.image_id, record.split) for record in self.records], seed, fractions)
        parts = {split: [r for r, s in zip(self.records, named, strict=True) if s == split] for split in SPLITS}
        return Splits(parts["train"], parts["validation"], parts["test"])

    def _from_manifest(
        self, manifest: Path, image_column: str | None, caption_column: str | None, skip_bad_images: bool
    ) -> list[Found]:
        root = manifest.parent
        entries = read_manifest(manifest, image_column, caption_column)
        if not entries:
            raise ValueError(f"{manifest} has no entries.")
        within = "" if root == self.path or self.path.is_file() else f"{root.relative_to(self.path).as_posix()}/"
        locate = _Locator(self._images or root)
        found, missing = [], []
        for entry in entries:
            image = locate(entry)
            if image is None:
                missing.append(entry.file)
            else:
                name = within + PurePosixPath(entry.file).as_posix()
                entry.split = entry.split or _split_folder(name) or _split_of_shard(image, locate.root)
                found.append(Found(image, text_of(name), entry))
        if locate.in_several_shards:
            self._remark(
                "picture stands", "pictures stand", "in several shards; the first is taken", locate.doubles
            )
        if missing:
            names = sorted(set(missing))
            if not skip_bad_images:
                raise ValueError(
                    f"{manifest} names {_counted(names, 'file', 'files')} that {_are(names)} not there: "
                    f"{_listed(names)}. Add the pictures, remove the entries, or pass --skip-bad-images."
                )
            self._remark("picture is", "pictures are", "missing and left out", names)
        return found

    def _from_samples(self, samples: Sequence[tuple[TarImage, Entry]], num_shards: int) -> Iterator[Found]:
        """A picture's id is its name, behind its shard's where there are several: so neither its id nor its split
        changes when another shard is added. (When a second one joins a single one, they do.)"""
        root = self.path if self.path.is_dir() else self.path.parent
        for image, entry in samples:
            entry.split = _split_of_shard(image, root)
            shard = Path(image.shard).relative_to(root).with_suffix("").as_posix()
            image_id = image.member if num_shards == 1 else f"{shard}/{image.member}"
            yield Found(image, text_of(image_id), entry)

    def _tell_what_no_manifest_names(self, found: Sequence[Found], manifests: Sequence[Path]) -> None:
        named = {picture.image for picture in found if isinstance(picture.image, Path)}
        below = sorted(file for file in self.path.rglob("*") if file.is_file() and file not in named)
        without = [file for file in below if file.suffix.lower() in EXTENSIONS]
        sidecars = [file for file in below if file.suffix == ".txt" and file not in manifests]
        others = [file for file in _candidates(self.path) if file not in manifests]
        for files, one, many, what in (
            (without, "picture is", "pictures are", "not in the manifest and is left out"),
            (sidecars, "text is", "texts are", "not read, since a manifest is there"),
            (others, "other manifest is", "other manifests are", "not read"),
        ):
            if files:
                self._remark(one, many, what, [str(file.relative_to(self.path)) for file in files])

    def _from_sidecars(self) -> Iterator[Found]:
        bare, used = [], set()
        for picture in sorted(p for p in self.path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()):
            name = picture.relative_to(self.path).as_posix()
            image_id = text_of(name)
            sidecar = picture.with_suffix(".txt")
            captioned = sidecar.is_file()
            if not captioned and not self._uncaptioned:
                bare.append(image_id)
                continue
            for file in (picture, sidecar):
                if file.is_symlink():  # folders that are links are not gone into
                    refuse_leading_out(file, self.path.resolve(), str(self.path))
            text = read_text(sidecar) if captioned else ""
            used.add(sidecar)
            captions = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
            yield Found(picture, image_id, Entry(image_id, captions, _split_folder(name), str(sidecar)))
        if bare:
            if not used:
                raise ValueError(
                    f"{self.path} holds {_counted(bare, 'picture', 'pictures')} but no captions: put name.txt "
                    'beside name.jpg (one caption a line), or a captions.json of the form {"name.jpg": "caption"}.'
                )
            self._remark("picture has", "pictures have", "no .txt beside it and is left out", bare)
        if unread := sorted(file for file in self.path.rglob("*") if file.suffix.lower() in UNREAD):
            names = [str(file.relative_to(self.path)) for file in unread]
            self._remark("picture is", "pictures are", "left out; convert to JPEG", names)
            used |= {file.with_suffix(".txt") for file in unread}
        alone = [str(file.relative_to(self.path)) for file in sorted(self.path.rglob("*.txt")) if file not in used]
        if alone:
            self._remark("text has", "texts have", "no picture beside it and is left out", alone)

    def _merge(self, found: Iterable[Found], skip_bad_images: bool) -> list[Record]:
        """One record a picture, its captions in the order in which they were found."""
        records: dict[str, Record] = {}
        empty: dict[str, None] = {}
        for picture in found:
            try:
                split = split_name(picture.entry.split) if picture.entry.split else None
            except ValueError as error:
                raise ValueError(f"{picture.entry.where}: {error}") from error
            record = records.setdefault(picture.image_id, Record(picture.image, [], picture.image_id, split))
            if record.split != split:
                raise ValueError(f"{picture.entry.where}: {picture.image_id} stands in two splits; keep it in one.")
            if "" in picture.entry.captions or not picture.entry.captions:
                empty[picture.image_id] = None
            record.captions += [caption for caption in picture.entry.captions if caption]
        if empty and not self._uncaptioned:
            names = list(empty)
            if not skip_bad_images:
                raise ValueError(
                    f"{self.path}: {_counted(names, 'picture has', 'pictures have')} an empty caption: "
                    f"{_listed(names)}. Write one, remove the entry, or pass --skip-bad-images."
                )
            self._remark("picture has", "pictures have", "an empty caption, which is left out", names)
            records = {image_id: record for image_id, record in records.items() if record.captions}
        repeating = [r.image_id for r in records.values() if len(set(r.captions)) < len(r.captions)]
        if repeating:
            self._remark("picture repeats", "pictures repeat", "a caption (kept)", repeating)
        return list(records.values())

    def _remark(self, one: str, many: str, what: str, names: Sequence[str]) -> None:
        self.remarks.append(f"{self.path}: {_counted(names, one, many)} {what}: {_listed(names)}.")


def refuse_leading_out(path: Path, root: Path, where: str) -> None:
    """Raises ValueError where a file is a symbolic link out of the resolved folder ``root``."""
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{where}: '{path.name}' is a symbolic link out of {root}; copy the file in.")


class _Locator:
    """Finds the picture of an entry below ``root``: a file, or a member of a shard. Never outside ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._members: dict[str, TarImage] | None = None
        self.doubles: list[str] = []

    @property
    def in_several_shards(self) -> bool:
        return bool(self.doubles)

    def __call__(self, entry: Entry) -> ImageSource | None:
        """None: there is no such picture.

        Raises:
            ValueError: the name leads out of the root: absolute, with ``..``, or through a symbolic link.
        """
        relative = PurePosixPath(entry.file.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or Path(entry.file).is_absolute() or "\0" in entry.file:
            raise ValueError(
                f"{entry.where}: '{entry.file}' leads out of {self.root}; name pictures relative to the manifest's "
                "folder, and below it."
            )
        path = self.root / relative
        try:
            there = path.is_file()
        except OSError as error:  # a name longer than any file's
            raise ValueError(f"{entry.where}: '{entry.file[:50]}...' is no file: {error.strerror}.") from error
        if there:
            refuse_leading_out(path, self._resolved, entry.where)
            return path
        return self._member(str(relative))

    def _member(self, name: str) -> TarImage | None:
        if self._members is None:
            self._members = {}
            for shard in _shards(self.root):
                for member in index_shard(shard):
                    key = member.member.removeprefix("./")
                    if key in self._members:
                        self.doubles.append(key)
                    self._members.setdefault(key, member)
        return self._members.get(name)


_SPLIT_FOLDERS = ("train", "training", "validation", "valid", "val", "dev", "test")


def _split_folder(name: str) -> str | None:
    """The split that the first folder of a path names."""
    top, slash, _ = name.replace("\\", "/").partition("/")
    return top if slash and top in _SPLIT_FOLDERS else None


def _split_of_shard(image: ImageSource, root: Path) -> str | None:
    """The split that the folder of a shard names, or the letters with which its own name begins."""
    if not isinstance(image, TarImage):
        return None
    name = Path(image.shard).relative_to(root).as_posix()
    beginning = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return _split_folder(name) or (beginning if beginning in _SPLIT_FOLDERS else None)


def _manifests(path: Path) -> list[Path]:
    if path.is_file():
        return [] if path.suffix.lower() == ".tar" else [path]
    for folders in ([path], [path / name for name in _SPLIT_FOLDERS]):
        metadata = [
            folder / name
            for folder in folders
            for name in ("metadata.jsonl", "metadata.csv")
            if (folder / name).is_file()
        ]
        if metadata:
            return metadata
    candidates = _candidates(path)
    usual = [file for file in candidates if file.stem.lower() in _USUAL_NAMES]
    chosen = usual or candidates
    if len(chosen) > 1:
        names = _listed([file.name for file in chosen])
        raise ValueError(
            f"{path} holds {len(chosen)} manifests ({names}); name the one you mean instead of the folder."
        )
    return chosen


def _candidates(folder: Path) -> list[Path]:
    """The files of a folder that could be manifests."""
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name not in _NOT_MANIFESTS
    )


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folders = [path, *(path / name for name in _SPLIT_FOLDERS)]
    return sorted(shard for folder in folders for shard in folder.glob("[!.]*.tar"))


def _counted(names: Sequence[str], one: str, many: str) -> str:
    return f"{len(names):,} {one if len(names) == 1 else many}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(map(text_of, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"
