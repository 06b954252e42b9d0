"""One data set of several: each picture once, in one split, with the captions of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from limner.data.records import SPLITS, Record, Splits
from limner.evaluation.quality.new_set import Entry
from limner.evaluation.quality.pictures import Look, look


def merge(splits: Splits, done: Counter[str], skip_bad_images: bool = False) -> Iterator[Entry]:
    """The entries of the merged set; ``done`` counts what was joined and left out.

    Equal files are one picture: it gets the captions of all, and stays in the most held-out of their splits.

    Raises:
        ValueError: a picture cannot be read, and ``skip_bad_images`` is off.
    """
    joined: dict[str, Record] = {}
    for split in reversed(SPLITS):  # test, validation, train: what is held out anywhere is held out
        for record in splits[split]:
            seen = _look(record, skip_bad_images, done)
            if seen is None:
                continue
            known = joined.get(seen.digest)
            if known is None:
                joined[seen.digest] = Record(record.image, list(record.captions), record.image_id, split)
                continue
            done["pictures that occur twice, joined"] += 1
            known.captions.extend(text for text in record.captions if text not in known.captions)
    for split in SPLITS:
        yield from (Entry(record, split, {}) for record in joined.values() if record.split == split)


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
