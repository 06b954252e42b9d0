"""A model's captions of a whole data set: in batches, in shards, and on disk as they come, so that none is lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.data.images import image_bytes
from limner.data.records import Record
from limner.decoding.captioner import Caption
from limner.evaluation.any_captioner import Describes
from limner.evaluation.lines import whole_lines

SETTINGS = "settings.json"
Progress = Callable[[int, int], None]
"""``progress(done, total)`` in pictures."""


@dataclass
class Said:
    """What a model said of one picture."""

    image_id: str
    caption: str
    words: list[tuple[str, float | None]]
    """Every word with its log-probability: the sum over its tokens; None where the model does not tell."""
    score: float
    seconds: float
    picture: str = ""
    """A digest of the picture's file: another one under the same name is captioned anew."""


class CaptionLog:
    """The folder in which captions are kept: ``settings.json`` and one JSON object a picture in ``*.jsonl``.

    Every shard (and either side of a comparison) writes a file of its own; all are read together.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool, files: Sequence[str]) -> None:
        """Opens the folder, to write ``files`` (names without .jsonl); other shards may be there already.

        Raises:
            ValueError: a file is there and ``resume`` is off, or others were made with other settings.
        """
        self.folder = folder
        known = folder / SETTINGS
        if known.is_file() and any(folder.glob("*.jsonl")):
            if not resume and any((folder / f"{name}.jsonl").is_file() for name in files):
                raise ValueError(
                    f"{folder} holds an evaluation already: --resume goes on with it, --out names another folder."
                )
            before = json.loads(known.read_text(encoding="utf-8"))
            wanted = json.loads(json.dumps(settings))
            different = sorted(key for key in wanted.keys() | before.keys() if wanted.get(key) != before.get(key))
            if different:
                told = ", ".join(f"{k}: {before.get(k)} there, {wanted.get(k)} now" for k in different)
                raise ValueError(f"{folder} was made with other settings ({told}); --out names another folder.")
            for name in files:
                whole_lines(folder / f"{name}.jsonl")  # cuts off what a killed process left of a line
            return
        folder.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")

    def read(self, name: str) -> tuple[dict[str, Said], dict[str, str]]:
        """Everything said so far in the files ``name.jsonl`` and ``name-I-of-N.jsonl``, by image, and why others
        could not be read: the later row of a picture counts. A torn last line of a killed process is left out."""
        found: dict[str, Said] = {}
        bad: dict[str, str] = {}
        for path in sorted([*self.folder.glob(f"{name}.jsonl"), *self.folder.glob(f"{name}-*-of-*.jsonl")]):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                row = json.loads(line)
                if "unreadable" in row:
                    bad[row["image_id"]] = row["unreadable"]
                    found.pop(row["image_id"], None)
                    continue
                bad.pop(row["image_id"], None)
                row["words"] = [(word, chance) for word, chance in row["words"]]
                found[row["image_id"]] = Said(**row)
        return found, bad

    def write(self, name: str, said: Sequence[Said], bad: Mapping[str, str]) -> None:
        """Appends to one of the files that the log was opened to write."""
        with open(self.folder / f"{name}.jsonl", "ab") as file:
            rows = [asdict(one) for one in said]
            rows += [{"image_id": image_id, "unreadable": why} for image_id, why in bad.items()]
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def shard_file(name: str, shard: tuple[int, int]) -> str:
    """The name of the file that a shard (i, n) writes."""
    return name if shard[1] == 1 else f"{name}-{shard[0]}-of-{shard[1]}"


def caption_records(
    captioner: Callable[[], Describes],
    records: Sequence[Record],
    log: CaptionLog,
    *,
    name: str = "captions",
    shard: tuple[int, int] = (1, 1),
    batch_size: int = 16,
    settings: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    bad: dict[str, str] | None = None,
) -> dict[str, Said]:
    """Captions what is not captioned yet, and returns all captions there are, in the records' order.

    Args:
        captioner: gives the model; not called where nothing is left to do.
        shard: (i, n), counted from 1: only every n-th picture, beginning with the i-th.
        settings: of the decoder.
        bad: where given, pictures that cannot be read are left out and stand in it, also those of other parts:
            by image, why.

    Raises:
        ValueError: a picture cannot be read (and ``bad`` is None).
    """
    number, of = shard
    done, known_bad = log.read(name)
    mine = list(records)[number - 1 :: of]
    left = [record for record in mine if not _captioned(record, done.get(record.image_id))]
    for record in left:
        done.pop(record.image_id, None)  # was said of another picture
    file = shard_file(name, shard)
    progress(len(mine) - len(left), len(mine))
    model = captioner() if left else None
    for first in range(0, len(left), batch_size):
        batch = left[first : first + batch_size]
        assert model is not None
        of_batch = {} if bad is None else _unreadable(batch)
        said = _describe(model, [r for r in batch if r.image_id not in of_batch], batch_size, settings or {})
        log.write(file, said, of_batch)
        done |= {one.image_id: one for one in said}
        known_bad |= of_batch
        progress(len(mine) - len(left) + first + len(batch), len(mine))
    if bad is not None:
        bad |= {image_id: why for image_id, why in known_bad.items() if image_id not in done}
    return {record.image_id: done[record.image_id] for record in records if record.image_id in done}


def _captioned(record: Record, said: Said | None) -> bool:
    return said is not None and said.picture in ("", _digest(record))


def _digest(record: Record) -> str:
    """Empty for pixels that are no file."""
    if isinstance(record.image, Image.Image | np.ndarray):
        return ""
    try:
        return hashlib.blake2b(image_bytes(record.image), digest_size=12).hexdigest()
    except (ValueError, OSError):
        return "unreadable"


def _describe(model: Describes, batch: Sequence[Record], batch_size: int, settings: dict[str, Any]) -> list[Said]:
    if not batch:
        return []
    captions = model.describe([record.image for record in batch], batch_size=batch_size, **settings)
    return [
        Said(
            record.image_id,
            caption.text,
            words_of(caption, model.tokenizer),
            caption.score,
            caption.seconds,
            _digest(record),
        )
        for record, caption in zip(batch, captions, strict=True)
    ]


def _unreadable(batch: Sequence[Record]) -> dict[str, str]:
    """Which pictures cannot be read, and why."""
    from limner.data.images import load_image

    bad = {}
    for record in batch:
        try:
            load_image(record.image, draft_size=(8, 8))
        except (ValueError, OSError) as error:
            bad[record.image_id] = str(error)
    return bad


def words_of(caption: Caption, tokenizer: Any) -> list[tuple[str, float | None]]:
    """The words of a caption with their log-probabilities: a word's is the sum over the tokens that spell it."""
    if not caption.token_logprobs:
        return [(word, None) for word in caption.text.split()]
    special = set(tokenizer.all_special_ids)
    words: list[tuple[str, float]] = []
    pending, before = 0.0, ""
    for position, (token, chance) in enumerate(zip(caption.tokens, caption.token_logprobs, strict=True)):
        text = tokenizer.decode(caption.tokens[: position + 1], skip_special_tokens=True)
        parts = text.split()
        if token in special:
            continue
        pending += chance
        if len(parts) > len(words):
            words += [(part, pending if number == 0 else 0.0) for number, part in enumerate(parts[len(words) :])]
            pending = 0.0
        elif parts and text != before:
            words[-1] = (parts[-1], words[-1][1] + pending)
            pending = 0.0
        before = text
    return list(words)
