"""What the report proposes, done: into a new data set, never in the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from limner.data.records import Record
from limner.evaluation.quality.examine import Quality, length_of
from limner.evaluation.quality.new_set import Entry, joined_provenance
from limner.evaluation.quality.words import OPENINGS, respaced, rewrite
from limner.words.ptb import ptb_tokenize

DROPS_PICTURE = ("broken", "duplicate", "leak")


@dataclass
class Cleaning:
    """What was done, by name: how many pictures were dropped, captions dropped or rewritten."""

    done: Counter[str] = field(default_factory=Counter)

    def sentences(self) -> list[str]:
        """For people, and for the README."""
        return [f"{what}: {count:,}" for what, count in sorted(self.done.items())] or ["nothing had to be changed"]


def clean(
    quality: Quality,
    actions: Collection[str],
    cleaning: Cleaning,
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Entry]:
    """The entries of the new set, in the order of the old; ``cleaning`` is filled on the way.

    The captions of an exact copy go to the picture that stays. A picture that loses all its captions is dropped.

    Args:
        provenance: what the old set keeps beside the captions, by image id; it is kept.
    """
    inherited = _inherited(quality, actions)
    for example in quality.examples:
        reason = next((name for name in DROPS_PICTURE if name in actions and name in example.findings), None)
        if reason:
            cleaning.done[f"pictures dropped ({reason})"] += 1
            continue
        copies = [example.record, *inherited.get(example.record.image_id, [])]
        texts = [text for copy in copies for text in copy.captions]
        captions = _captions(texts, actions, cleaning)
        if not captions:
            cleaning.done["pictures dropped (no caption left)"] += 1
            continue
        kept = joined_provenance(copies, provenance or {})
        if captions != texts:
            kept.setdefault("original_captions", texts)
        yield Entry(replace(example.record, captions=captions), example.split, kept)


def _inherited(quality: Quality, actions: Collection[str]) -> dict[str, list[Record]]:
    """The exact copies of each picture that stays."""
    if "duplicate" not in actions:
        return {}
    found: dict[str, list[Record]] = {}
    for example in quality.found("duplicate"):
        found.setdefault(example.like, []).append(example.record)
    return found


def _captions(texts: list[str], actions: Collection[str], cleaning: Cleaning) -> list[str]:
    kept: list[str] = []
    known: set[str] = set()
    for text in texts:
        changed = text
        opens_emptily = "opening" in actions and OPENINGS.match(text)
        if opens_emptily or ("spacing" in actions and respaced(text) != text):
            changed = rewrite(text)
        tokens = ptb_tokenize(changed)
        length = length_of(changed, tokens.split())
        if length in actions:
            cleaning.done[f"captions dropped ({length})"] += 1
        elif "repeated" in actions and tokens in known:
            cleaning.done["captions dropped (repeated)"] += 1
        else:
            cleaning.done["captions rewritten"] += changed != text
            kept.append(changed)
            known.add(tokens)
    return kept
