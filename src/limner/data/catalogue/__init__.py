"""The data sets that Limner knows by name, and the way from any name to records.

A module of this folder is one data set. Its ``get_dataset(options)`` gives a ``DatasetDict`` with at least
``train`` and ``validation``, in rows of image, captions and image_id; the first line of its docstring is what
`limner data list` says of it. To add one: write such a module, and its name here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from limner.data.records import SPLITS, THE_ANSWER_TO_LIFE_THE_UNIVERSE_AND_EVERYTHING, Split, Splits
from limner.data.sizes import Progress

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from limner.data.catalogue.rows import Options

CATALOGUE = {
    "flickr": "flickr",
    "coco": "coco",
    "docornot": "docornot",
    "pexels": "pexels",
    "validation": "validation",
    "textcaps": "textcaps",
    "scenes": "scenes",
    "flickr8k": "flickr8k",
    "coco-karpathy": "coco_karpathy",
}
"""The name of every data set, and its module."""

ALL = "all"
"""Stands for every data set that has a hub repository."""


def module_of(name: str) -> ModuleType:
    return import_module(f"limner.data.catalogue.{CATALOGUE[name]}")


def repository_of(name: str) -> str | None:
    """The hub repository behind a name, if there is one. What exists on this machine comes first."""
    if Path(name).exists():
        return None
    if name in CATALOGUE:
        return module_of(name).REPOSITORY
    owner, slash, repository = name.partition("/")
    return name if slash and owner.strip(".~") and repository and not set(repository) & set("/\\") else None


def expand(names: Sequence[str]) -> list[str]:
    """``all`` becomes the names it stands for; a name given twice is taken once."""
    wide: dict[str, None] = {}
    for name in names:
        chosen = [known for known in CATALOGUE if module_of(known).REPOSITORY] if name == ALL else [name]
        wide |= dict.fromkeys(chosen)
    return list(wide)


def get_dataset(name: str, options: Options | None = None) -> DatasetDict:
    """The data set of this name, as a ``DatasetDict`` of image, captions, image_id.

    Args:
        name: one of `CATALOGUE`, ``NAME=PATH`` for those read from local files, a folder, manifest or .tar file, or
            a hub id.

    Raises:
        FileNotFoundError, OSError, ValueError: it does not exist, cannot be reached, or cannot be read.
    """
    from limner.data.catalogue import hub, rows, storage

    options = options or rows.DEFAULTS
    known, _, path = name.partition("=")
    if known in CATALOGUE and path:
        return module_of(known).get_dataset(replace(options, path=Path(path)))
    repository = repository_of(name)
    if repository is not None:
        data = module_of(name).get_dataset(options) if name in CATALOGUE else hub.get_dataset(name, options)
        storage.remember(name, data, options)
        return data
    if Path(name).exists():
        return _folder(name, options)
    if name in CATALOGUE:
        return module_of(name).get_dataset(options)
    near = difflib.get_close_matches(name, CATALOGUE, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise FileNotFoundError(
        f"There is no data set, folder or file '{name}'.{hint} `limner data list` shows the names."
    )


def load_dataset_by_name(
    names: Sequence[str],
    options: Options | None = None,
    weights: Sequence[float] = (),
    seed: int = THE_ANSWER_TO_LIFE_THE_UNIVERSE_AND_EVERYTHING,
    progress: Progress | None = None,
) -> Splits:
    """The records of one or several data sets, by split.

    Several are concatenated and shuffled with ``seed``; with ``weights``, training pictures are drawn from each in
    these proportions until the last has been seen whole (smaller ones repeat). A picture that one data set
    validates or tests on is not trained on from another.

    Args:
        weights: relative, one for each name.
        progress: told after each data set.

    Raises:
        FileNotFoundError, OSError, ValueError: as `get_dataset`; weights that do not match the names.
    """
    from datasets import concatenate_datasets, interleave_datasets

    from limner.data.catalogue.rows import DEFAULTS, records_of

    options = options or DEFAULTS
    expanded = expand(names)
    if weights and (len(weights) != len(expanded) or min(weights) <= 0):
        raise ValueError(
            f"{len(weights)} weights were given for {len(expanded)} data sets ({', '.join(expanded)}); give a "
            "positive number for each."
        )
    parts: list[DatasetDict] = []
    for done, name in enumerate(expanded, 1):
        parts.append(_named_apart(get_dataset(name, options), name, len(expanded)))
        if progress is not None:
            progress("loading data sets", done, len(expanded), "data sets")
    whole: dict[Split, Dataset] = {}
    for split in SPLITS:
        found = [part[split] for part in parts if split in part]
        if len(found) > 1 and weights and split == "train":
            shares = [weight / sum(weights) for weight, part in zip(weights, parts, strict=True) if split in part]
            mixed = [rows.shuffle(seed=seed) for rows in found]
            whole[split] = interleave_datasets(mixed, shares, seed=seed, stopping_strategy="all_exhausted")
        elif found:
            whole[split] = found[0] if len(found) == 1 else concatenate_datasets(found).shuffle(seed=seed)
    splits = Splits(**{split: records_of(rows) for split, rows in whole.items()})
    _keep_apart(splits, options.say)
    return splits


def load_splits(
    settings: Any, say: Callable[[str], None], progress: Progress | None = None, **instead: Any
) -> Splits:
    """The records of the data sets that a verb's settings name; ``instead`` of what they say, as `Options.of`."""
    from limner.data.catalogue.rows import Options

    weights = getattr(settings, "dataset_weights", ())
    options = Options.of(settings, say, **instead)
    return load_dataset_by_name(settings.dataset, options, weights, settings.seed, progress)


def describe(splits: Splits) -> str:
    """Pictures, captions and words: "train 6,000 pictures (30,000 captions, 11.8 words each); validation ..."."""
    told = []
    for split in SPLITS:
        captions = [caption for record in splits[split] for caption in record.captions]
        if captions:
            words = sum(len(caption.split()) for caption in captions) / len(captions)
            told.append(
                f"{split} {len(splits[split]):,} pictures ({len(captions):,} captions, {words:.1f} words each)"
            )
    return "; ".join(told)


def _folder(name: str, options: Options) -> DatasetDict:
    from limner.data.catalogue.rows import dataset_of_records
    from limner.data.folder import ImageCaptionDataset

    data = ImageCaptionDataset(
        name,
        options.image_column,
        options.caption_column,
        options.skip_bad_images,
        uncaptioned=options.uncaptioned,
    )
    for remark in data.remarks:
        options.say(remark)
    return dataset_of_records(data.splits())


def _named_apart(part: DatasetDict, name: str, count: int) -> DatasetDict:
    """Ids of files are only unique within their data set; digests of pictures are meant to meet."""
    if count == 1 or repository_of(name) is not None:
        return part
    label = name.rstrip("/")
    return part.map(lambda ids: {"image_id": [f"{label}/{i}" for i in ids]}, input_columns="image_id", batched=True)


def _keep_apart(splits: Splits, say: Callable[[str], None]) -> None:
    held_out = {record.image_id for record in [*splits.validation, *splits.test]}
    kept = [record for record in splits.train if record.image_id not in held_out]
    if len(kept) < len(splits.train):
        say(f"{len(splits.train) - len(kept):,} training pictures are validated or tested on elsewhere: left out.")
        splits.train = kept
