"""Every picture and caption of a data set looked at once: what is wrong, and what is proposed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np

from limner.data.records import SPLITS, Record, Split, Splits
from limner.data.sizes import Progress
from limner.evaluation.clipscore import Alignment
from limner.evaluation.quality.pictures import NEAR, Look, look, near_pairs, same
from limner.evaluation.quality.words import (
    OPENINGS,
    TEXT_HINTS,
    NounFinder,
    distribution,
    protected_terms,
    reading_ease,
    respaced,
    spaced,
)
from limner.words.ptb import ptb_tokenize

SHORT, LONG = 3, 40
"""Captions of fewer or more words are proposed for dropping."""
PROPOSALS = {
    "broken": "the picture cannot be read: drop it",
    "duplicate": "the same file as an earlier picture of its split: drop it, keep its captions there",
    "leak": "the same picture, or nearly, stands in a held-out split: drop it from this one",
    "short": f"a caption has fewer than {SHORT} words: drop the caption",
    "long": f"a caption has more than {LONG} words: drop the caption",
    "repeated": "the picture has the same caption twice: keep one",
    "opening": 'a caption opens emptily ("an image of"): rewrite it by rules',
    "spacing": "a caption is spaced oddly: rewrite it by rules",
}
"""What `limner data clean` does, by name."""
NOTES = {
    "near-duplicate": "nearly the same as another picture of its split",
    "document": "looks like a page or a screenshot",
    "text": "a caption hints at text in the picture",
}
"""What is told and not acted upon."""
_HELD_OUT = {"train": 0, "validation": 1, "test": 2}


@dataclass
class Example:
    """One picture with its captions, as the CSV has it."""

    record: Record
    split: Split
    look: Look
    captions: list[list[str]]
    """Tokenized."""
    findings: list[str] = field(default_factory=list)
    """Names from `PROPOSALS` and `NOTES`."""
    like: str = ""
    """The picture that this one repeats."""
    nouns: list[str] = field(default_factory=list)
    protected: list[tuple[str, str]] = field(default_factory=list)
    alignment: float | None = None
    """Mean alignment of its captions; None without a model or a readable picture."""
    weight: float = 1.0

    def row(self) -> dict[str, Any]:
        """For the CSV."""
        lengths = [len(words) for words in self.captions] or [0]
        return {
            "image_id": self.record.image_id,
            "split": self.split,
            "captions": len(self.captions),
            "findings": " ".join(self.findings),
            "like": self.like,
            "problem": self.look.problem or "",
            "width": self.look.size[0],
            "height": self.look.size[1],
            "mean_words": round(fmean(lengths), 3),
            "shortest": min(lengths),
            "longest": max(lengths),
            "reading_ease": round(fmean(map(reading_ease, self.record.captions)), 2) if self.captions else "",
            "alignment": "" if self.alignment is None else round(self.alignment, 5),
            "nouns": " ".join(self.nouns),
            "protected": " ".join(word for _, word in self.protected),
            "weight": round(self.weight, 5),
        }


@dataclass
class Quality:
    """A data set as it was found."""

    examples: list[Example]
    originals: dict[str, list[str]]
    """Captions as they were before a rewriting, by image id; where they are not known, they count as they are."""
    remarks: list[str] = field(default_factory=list)
    """What the loader had to leave out."""

    def found(self, name: str) -> list[Example]:
        """The examples with a finding."""
        return [example for example in self.examples if name in example.findings]

    def summary(self) -> dict[str, Any]:
        """The figures of the whole, for JSON."""
        captions = [words for example in self.examples for words in example.captions]
        lengths = [len(words) for words in captions] or [0]
        nouns = Counter(noun for example in self.examples for noun in example.nouns)
        aligned = [example.alignment for example in self.examples if example.alignment is not None]
        return {
            "pictures": len(self.examples),
            "captions": len(captions),
            "splits": dict(Counter(example.split for example in self.examples)),
            "findings": {name: len(self.found(name)) for name in (*PROPOSALS, *NOTES)},
            "words": {"mean": fmean(lengths), "shortest": min(lengths), "longest": max(lengths)},
            "reading_ease": fmean(
                [reading_ease(text) for example in self.examples for text in example.record.captions] or [0]
            ),
            "vocabulary": len({word for words in captions for word in words}),
            "objects": distribution(nouns) | {"most_common": nouns.most_common(50)},
            "protected": self.protected_counts(),
            "remarks": self.remarks,
            "alignment": {"mean": fmean(aligned), "lowest": min(aligned)} if aligned else None,
        }

    def protected_counts(self) -> dict[str, dict[str, Any]]:
        """Category -> captions that use such a term (and did in the originals, where known), and the terms."""
        used: dict[str, set[int]] = {}
        terms: dict[str, Counter[str]] = {}
        number = 0
        before: Counter[str] = Counter()
        for example in self.examples:
            for words in example.captions:
                number += 1
                for category, term in protected_terms(words):
                    used.setdefault(category, set()).add(number)
                    terms.setdefault(category, Counter())[term] += 1
            for text in self.originals.get(example.record.image_id, example.record.captions):
                before.update({category for category, _ in protected_terms(ptb_tokenize(text).split())})
        return {
            category: {
                "captions": len(used.get(category, ())),
                "captions_before": before[category] if self.originals else None,
                "terms": terms.get(category, Counter()).most_common(15),
            }
            for category in sorted({*used, *before})
        }


def examine(
    splits: Splits,
    *,
    originals: Mapping[str, Sequence[str]] | None = None,
    alignment: Alignment | None = None,
    near: int = NEAR,
    progress: Progress = lambda *told: None,
) -> Quality:
    """Looks at everything.

    Args:
        originals: captions before a rewriting, by image id.
        alignment: scores how well captions fit, where such a model is at hand.
        near: bits of the hash in which near-duplicates differ at most.
    """
    records = [(record, split) for split in SPLITS for record in splits[split]]
    looks = _looks([record for record, _ in records], progress)
    examples = [
        Example(record, split, seen, [ptb_tokenize(text).split() for text in record.captions])
        for (record, split), seen in zip(records, looks, strict=True)
    ]
    _find_copies(examples, near)
    _judge_captions(examples)
    if alignment is not None:
        _align(examples, alignment, progress)
    _weigh(examples)
    return Quality(examples, {key: list(group) for key, group in (originals or {}).items()})


def _looks(records: Sequence[Record], progress: Progress) -> list[Look]:
    found: list[Look] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding lets go of the interpreter's lock
        for seen in pool.map(look, (record.image for record in records)):
            found.append(seen)
            if len(found) % 50 == 0 or len(found) == len(records):
                progress("looking at pictures", len(found), len(records), "pictures")
    return found


def _find_copies(examples: list[Example], near: int) -> None:
    """Of equal pictures in one split the first stays; of those in two splits the one that is held out more."""
    for example in examples:
        if example.look.problem:
            example.findings.append("broken")
    for rows in same([example.look.digest for example in examples]):
        first: dict[Split, int] = {}
        for row in rows:
            if first.setdefault(examples[row].split, row) != row:
                _copy(examples, first[examples[row].split], row, "duplicate")
        kept = max(rows, key=lambda row: (_HELD_OUT[examples[row].split], -row))
        for row in rows:
            if examples[row].split != examples[kept].split:
                _copy(examples, kept, row, "leak")
    hashes = [example.look.hash for example in examples]
    readable = [row for row, example in enumerate(examples) if not example.look.problem]
    for one, other in near_pairs(hashes, readable, near):
        _copy(examples, one, other, "near-duplicate")


def _copy(examples: list[Example], one: int, other: int, name: str) -> None:
    first, second = examples[one], examples[other]
    if first.split != second.split:
        leaked, kept = sorted((first, second), key=lambda example: _HELD_OUT[example.split])
        name = "leak"
    else:
        leaked, kept = second, first
    if name in leaked.findings or (name == "near-duplicate" and "duplicate" in leaked.findings):
        return
    # The copy in its own split says most, and gets its captions; a picture that leaked more than one much like it.
    if name == "duplicate" or ("duplicate" not in leaked.findings and (name == "leak" or not leaked.findings)):
        leaked.like = kept.record.image_id
    leaked.findings.append(name)


def length_of(text: str, words: Sequence[str]) -> Literal["short", "long"] | None:
    """Whether a caption is too short or too long; None also where its script has no spaces between words."""
    if not spaced(text):
        return None
    return "short" if len(words) < SHORT else "long" if len(words) > LONG else None


def _judge_captions(examples: list[Example]) -> None:
    finder = NounFinder(words for example in examples for words in example.captions)
    for example in examples:
        texts = example.record.captions
        example.nouns = sorted({noun for words in example.captions for noun in finder.nouns(words)})
        example.protected = [term for words in example.captions for term in protected_terms(words)]
        findings = {
            "short": any(length_of(*pair) == "short" for pair in zip(texts, example.captions, strict=True)),
            "long": any(length_of(*pair) == "long" for pair in zip(texts, example.captions, strict=True)),
            "repeated": len({" ".join(words) for words in example.captions}) < len(texts),
            "opening": any(OPENINGS.match(text) for text in texts),
            "spacing": any(respaced(text) != text for text in texts),
            "document": example.look.document_like,
            "text": any(TEXT_HINTS.search(text) for text in texts),
        }
        example.findings += [name for name, true in findings.items() if true]


def _align(examples: list[Example], alignment: Alignment, progress: Progress) -> None:
    readable = [example for example in examples if not example.look.problem and example.record.captions]
    for first in range(0, len(readable), 64):
        batch = readable[first : first + 64]
        images = alignment.images([example.record.image for example in batch])
        texts = [text for example in batch for text in example.record.captions]
        owners = np.repeat(np.arange(len(batch)), [len(example.record.captions) for example in batch])
        scores = alignment.scores(images[owners], alignment.captions(texts))
        for number, example in enumerate(batch):
            example.alignment = float(scores[owners == number].mean())
        progress("aligning pictures and captions", first + len(batch), len(readable), "pictures")


def _weigh(examples: list[Example]) -> None:
    """Weights that even out what the pictures show: the mean over a picture's nouns of 1 / sqrt(count), scaled to
    mean 1 and held within a fifth and five."""
    counts = Counter(noun for example in examples for noun in example.nouns)
    raw = np.array(
        [
            fmean([counts[noun] ** -0.5 for noun in example.nouns]) if example.nouns else np.nan
            for example in examples
        ]
    )
    if np.isnan(raw).all():
        return
    weights = np.clip(np.nan_to_num(raw / np.nanmean(raw), nan=1.0), 0.2, 5.0)
    for example, weight in zip(examples, weights / weights.mean(), strict=True):
        example.weight = float(weight)
