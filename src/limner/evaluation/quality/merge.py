"""One data set of several: each picture once, in one split, with the captions of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner.data.records import SPLITS, Record, Split, Splits
from limner.evaluation.quality.new_set import Entry, joined_provenance
from limner.evaluation.quality.pictures import Look, look


def merge(
    splits: Splits,
    done: Counter[str],
    skip_bad_images: bool = False,
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Entry]:
    """The entries of the merged set; ``done`` counts what was joined and left out.

    Equal files are one picture: it gets the captions of all, and stays in the most held-out of their splits.

    Args:
        provenance: what the sets keep beside the captions, by image id; it is kept.

    Raises:
        ValueError: a picture cannot be read, and ``skip_bad_images`` is off.
    """
    joined: dict[str, list[Record]] = {}
    for split in reversed(SPLITS):  # test, validation, train: what is held out anywhere is held out
        for record in splits[split]:
            seen = _look(record, skip_bad_images, done)
            if seen is None:
                continue
            if seen.digest in joined:
                done["pictures that occur twice, joined"] += 1
            joined.setdefault(seen.digest, []).append(replace(record, split=split))
    for split in SPLITS:
        yield from (_entry(c, split, provenance or {}) for c in joined.values() if c[0].split == split)


def _entry(copies: Sequence[Record], split: Split, provenance: Mapping[str, Mapping[str, Any]]) -> Entry:
    captions = list(copies[0].captions)
    for copy in copies[1:]:
        captions += [text for text in copy.captions if text not in captions]
    return Entry(replace(copies[0], captions=captions), split, joined_provenance(copies, provenance))


def _look(record: Record, skip_bad_images: bool, done: Counter[str]) -> Look | None:
    seen = look(record.image)
    if seen.problem is None:
        return seen
    if not skip_bad_images:
        raise ValueError(f"{seen.problem} Mend or remove it, or pass --skip-bad-images.")
    done["pictures that cannot be read, left out"] += 1
    return None


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Uploads a data set's folder to the hub and returns its address.

    Raises:
        OSError: not logged in, not allowed, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"{folder} is made, but could not be pushed to {repository}: {first} (log in with `hf auth login`; "
            "push again with `hf upload`)."
        ) from error
    return str(address)
