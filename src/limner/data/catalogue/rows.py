"""From a hub data set's own columns to the rows that every data set has: image, captions, image_id.

Only the small columns are computed and kept in memory. Pictures stay in the memory-mapped Arrow files that
`datasets` wrote when it downloaded them, and are never copied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from limner.data.records import SPLITS, Record, Split, Splits, assign_splits, split_name
from limner.data.shards import TarImage

_SMALL = Features({"captions": List(Value("string")), "image_id": Value("string")})
FEATURES = Features({"image": Image(decode=False), **_SMALL})
MIRROR = "LIMNER_HUB_MIRROR"
"""Environment variable: a folder that holds hub repositories as ``owner/name``, looked into before the hub."""


@dataclass(frozen=True)
class Options:
    """What every `get_dataset` takes."""

    cache_dir: Path = Path("cache")
    path: Path | None = None
    """Where the files of a data set lie that is read from this machine (`--dataset flickr8k=PATH`)."""
    image_column: str | None = None
    caption_column: str | None = None
    skip_bad_images: bool = False
    uncaptioned: bool = False
    """Of a folder or manifest, pictures without a caption are wanted too."""
    say: Callable[[str], None] = field(default=lambda text: None)
    """Told what was left out, and other things that a person should know."""

    @classmethod
    def of(cls, settings: Any, say: Callable[[str], None], **instead: Any) -> Options:
        """As the settings of a verb have them that reads data sets, or as ``instead`` says."""
        names = ("cache_dir", "image_column", "caption_column", "skip_bad_images")
        told = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
        return cls(**told | instead, say=say)


DEFAULTS = Options()


@dataclass(frozen=True)
class ArrowImage:
    """A picture in a data set's Arrow files: a `StoredImage`."""

    rows: Dataset
    index: int
    name: str

    def read(self) -> bytes:
        value = self.rows[self.index]["image"]
        if value["bytes"] is not None:
            return value["bytes"]
        path = _unspelled(value["path"])
        member = TarImage.from_address(path)
        return member.read() if member is not None else Path(path).read_bytes()


def repository_path(repository: str) -> str:
    """The repository's id, or its folder in the mirror."""
    mirrored = Path(os.environ.get(MIRROR, "")) / repository
    return str(mirrored) if os.environ.get(MIRROR) and mirrored.is_dir() else repository


def hub_rows(repository: str, options: Options, split: str | None = None) -> dict[str, Dataset]:
    """The splits of a hub repository as they are.

    Raises:
        FileNotFoundError, OSError, ValueError: unknown, unreachable, or damaged; with what to do.
    """
    with explained(repository):
        loaded = load_dataset(
            repository_path(repository), cache_dir=str(options.cache_dir / "datasets"), split=split
        )
    return {split: loaded} if split is not None else dict(loaded)


def hub_shards(repository: str, options: Options) -> list[tuple[str, Dataset]]:
    """Each file of a hub repository by itself, with its split: for those whose files differ in their types."""
    cache = str(options.cache_dir / "datasets")
    with explained(repository):
        files = load_dataset_builder(repository_path(repository), cache_dir=cache).config.data_files
        return [
            (str(split), load_dataset("parquet", data_files={"rows": [file]}, split="rows", cache_dir=cache))
            for split, of_split in files.items()
            for file in of_split
        ]


def by_image(
    label: str,
    parts: Iterable[tuple[str | None, Dataset]],
    captions: str | Callable[[dict[str, list[Any]]], list[Any]],
    options: Options,
    image: str = "image",
    image_id: str | None = None,
) -> DatasetDict:
    """One row a picture, with all its captions, in splits that no picture is in two of.

    Args:
        label: the data set's name, for messages.
        parts: rows with the name of their split; None where the data set has no splits of its own.
        captions: the column that holds a caption or a list of them, or a function of a batch's columns (without
            the picture) that gives them.
        image_id: the column that names the picture; None: a digest of its bytes, so that a picture that occurs
            twice is one.

    Raises:
        ValueError: a missing column, or no row with a caption.
    """
    parts = list(parts)
    columns = [_small_columns(rows, label, captions, image, image_id) for _, rows in parts]
    merged = _merge([(split, *small) for (split, _), small in zip(parts, columns, strict=True)])
    if merged.num_empty:
        options.say(f"{label}: {merged.num_empty:,} of {merged.num_rows:,} rows have no caption and are left out.")
    if not merged.captions:
        raise ValueError(f"{label} has no row with a caption.")
    chosen: dict[Split, list[Dataset]] = {split: [] for split in SPLITS}
    for (_, rows), kept, (ids, _) in zip(parts, merged.kept, columns, strict=True):
        columns_of_it = {"captions": [merged.captions.get(i, []) for i in ids], "image_id": ids}
        small = Dataset.from_dict(columns_of_it, features=_SMALL)
        whole = concatenate_datasets([_pictures(rows, image), small], axis=1)  # side by side: no picture is copied
        for split in SPLITS:
            indices = [k for k in kept if merged.split_of[ids[k]] == split]
            if indices:
                chosen[split].append(whole.select(indices))
    return DatasetDict({split: concatenate_datasets(found) for split, found in chosen.items() if found})


@dataclass
class _Merged:
    captions: dict[str, list[str]]
    kept: list[list[int]]
    """For each part, the rows that stand for their picture: the first of each with a caption."""
    split_of: dict[str, Split]
    num_empty: int
    num_rows: int


def _merge(parts: list[tuple[str | None, list[str], list[list[str]]]]) -> _Merged:
    captions: dict[str, list[str]] = {}
    own: dict[str, Split | None] = {}
    kept: list[list[int]] = []
    num_empty = num_rows = 0
    for name, ids, of_rows in parts:
        split = split_name(name) if name is not None else None
        kept.append([])
        for row, (image_id, said) in enumerate(zip(ids, of_rows, strict=True)):
            num_rows += 1
            if not said:
                num_empty += 1
                continue
            if image_id not in captions:
                captions[image_id] = []
                kept[-1].append(row)
                own[image_id] = split
            elif own[image_id] == "train":
                own[image_id] = split  # a picture that also stands in validation or test is not trained on
            captions[image_id] += said
    splits = assign_splits(own.items())
    return _Merged(captions, kept, dict(zip(own, splits, strict=True)), num_empty, num_rows)


def _small_columns(
    rows: Dataset, label: str, captions: str | Callable[..., list[Any]], image: str, image_id: str | None
) -> tuple[list[str], list[list[str]]]:
    """The id and the captions of every row. `datasets` keeps the result beside the data, so it is computed once."""
    needed = [name for name in (image, image_id, captions if isinstance(captions, str) else None) if name]
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"{label} has no column '{missing[0]}'; its columns are: {', '.join(rows.column_names)}. Name yours "
            "with --image-column and --caption-column."
        )
    if isinstance(captions, str):
        texts = [as_captions(value) for value in rows.select_columns([captions])[:][captions]]
    else:
        texts = [as_captions(value) for value in captions(rows.remove_columns([image])[:])]
    if image_id is not None:
        return [str(value) for value in rows.select_columns([image_id])[:][image_id]], texts
    hashed = _pictures(rows, image).map(_ids, batched=True, batch_size=100, remove_columns=["image"])
    return hashed[:]["image_id"], texts


def _pictures(rows: Dataset, column: str) -> Dataset:
    """The pictures alone, not decoded, in a column named "image"."""
    pictures = rows.select_columns([column]).cast_column(column, Image(decode=False))
    return pictures if column == "image" else pictures.rename_column(column, "image")


def _ids(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
    def data(cell: dict[str, Any]) -> bytes:
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    return {"image_id": [hashlib.blake2b(data(cell), digest_size=12).hexdigest() for cell in batch["image"]]}


def as_captions(value: Any) -> list[str]:
    """A caption, a list of them, or nothing, as clean lines: some shards have strings where others have lists."""
    values = value if isinstance(value, (list, tuple)) else [value]
    cleaned = [" ".join(item.split()) for item in values if isinstance(item, str)]
    return [caption for caption in cleaned if caption]


def dataset_of_records(splits: Splits) -> DatasetDict:
    """Records of this machine's files as rows; pictures stay where they are."""
    whole = DatasetDict()
    for split in SPLITS:
        if splits[split]:
            rows = [{"image": _cell(r), "captions": r.captions, "image_id": r.image_id} for r in splits[split]]
            whole[split] = Dataset.from_list(rows, features=FEATURES)
    return whole


def _cell(record: Record) -> Any:
    if isinstance(record.image, TarImage):
        return {"path": _spelled(record.image.address), "bytes": None}
    if isinstance(record.image, str | Path):
        return {"path": _spelled(str(Path(record.image).absolute())), "bytes": None}
    return Image().encode_example(record.image)  # arrays become PNG


_BYTES = "#bytes:"


def _spelled(path: str) -> str:
    """A path as a table holds it: of one that is no text, the bytes."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return _BYTES + os.fsencode(path).hex()


def _unspelled(path: str) -> str:
    return os.fsdecode(bytes.fromhex(path.removeprefix(_BYTES))) if path.startswith(_BYTES) else path


def records_of(rows: Dataset) -> list[Record]:
    """Records whose pictures are read when they are asked for."""
    small = rows.select_columns(["captions", "image_id"])[:]
    pictures = rows.select_columns(["image"])
    return [
        Record(ArrowImage(pictures, k, image_id), captions, image_id)
        for k, (captions, image_id) in enumerate(zip(small["captions"], small["image_id"], strict=True))
    ]


def local_folder(name: str, options: Options, wanted: Sequence[str]) -> Path:
    """Where a data set lies that no hub has: at the path that was given with its name, or in the cache folder.

    Raises:
        FileNotFoundError: not there; the message tells what is wanted.
    """
    folder = options.path or options.cache_dir / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name} is read from files of this machine, and there is no folder {folder}: put "
            f"{' and '.join(wanted)} there, or name their folder with --dataset {name}=PATH."
        )
    return folder


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Turns what `datasets` raises into one sentence."""
    try:
        yield
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"There is no data set {repository} on the hub, or it needs a login (`hf auth login`); "
            "`limner data list` shows the known names."
        ) from error
    except ConnectionError as error:
        raise OSError(
            f"The data set {repository} is not on this machine and the hub cannot be reached; prepare it once with "
            f"a connection (`limner data prepare`), or point {MIRROR} at a folder that has it."
        ) from error
    except (DatasetsError, pyarrow.ArrowException) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"The data set {repository} cannot be read: {cause}") from error
