"""What a score is worth: the same metrics for captions that do not look, and for people.

A caption metric rewards sounding like a caption. Three controls stand beside every score: one constant caption
for all images (the most typical one), the model's own captions shuffled among the images, and one human caption
against the others of its image. A model that scores no better than its shuffled captions does not look.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from limner.evaluation.bootstrap import interval, resample_counts
from limner.evaluation.scoring import Scorer, Table
from limner.words.ngrams import Ngram
from limner.words.tf_idf import TfIdf

ENOUGH = 20
"""Fewer images than this say nothing about blindness."""
LEAST_FALL = 0.2
"""A score that falls by a smaller share than this may as well be chance, or a habit of the words."""
_SAMPLE, _FINALISTS, _HEARING = 1000, 5, 200

Sight = Literal["sees", "blind", "unclear"]


@dataclass
class Controls:
    """Scores of the controls, metric -> score, and what they say about the model."""

    constant_caption: str
    constant: dict[str, float]
    shuffled: dict[str, float] | None
    """None for a single image."""
    human: dict[str, float] | None
    """None where no image has two references."""
    fall: tuple[float, float] | None
    """95 % interval of CIDEr-D minus CIDEr-D of the shuffled captions, by images."""
    sight: Sight
    """"blind" where the score does not fall on shuffled images (surely, and by a fifth), "unclear" with too few
    images to tell."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def controls(
    scorer: Scorer, predictions: Mapping[str, str], table: Table | None = None, seed: int = 42
) -> Controls:
    """Scores the controls of ``predictions``; ``table`` is their own scores, where they are known already."""
    table = table or scorer.score(predictions)
    caption = typical_caption(scorer)
    constant = scorer.score(dict.fromkeys(predictions, caption)).corpus
    shuffled = scorer.score(shuffle(predictions, seed)) if len(predictions) > 1 else None
    fall: tuple[float, float] | None = None
    sight: Sight = "unclear"
    if shuffled is not None:
        fall, sight = judge(table.per_image["CIDEr"], shuffled.per_image["CIDEr"], seed)
    return Controls(
        caption,
        constant,
        shuffled.corpus if shuffled else None,
        human_scores(scorer, predictions, seed),
        fall,
        sight,
    )


def judge(own: np.ndarray, shuffled: np.ndarray, seed: int = 42) -> tuple[tuple[float, float], Sight]:
    """Whether a model looks, from its images' scores (N,) and those of the same captions on other images (N,)."""
    counts = resample_counts(len(own), seed)
    low, high = interval(counts @ (own - shuffled) / len(own))
    if len(own) < ENOUGH:
        return (low, high), "unclear"
    falls = low > 0 and (own - shuffled).mean() >= LEAST_FALL * own.mean()
    return (low, high), "sees" if falls else "blind"


def shuffle(predictions: Mapping[str, str], seed: int = 42) -> dict[str, str]:
    """Every caption moved to another image: one seeded cycle through all of them, so that none stays."""
    keys = list(predictions)
    order = np.random.default_rng(seed).permutation(len(keys))
    moved = {keys[there]: predictions[keys[here]] for here, there in zip(order, np.roll(order, -1), strict=True)}
    return {key: moved[key] for key in keys}


def human_scores(scorer: Scorer, predictions: Mapping[str, str], seed: int = 42) -> dict[str, float] | None:
    """One human caption of each image, drawn by seed, scored against the others of that image."""
    random = np.random.default_rng(seed)
    sizes = {key: len(group) for key, group in zip(scorer.ids, scorer.raw, strict=True) if key in predictions}
    chosen = {key: int(random.integers(size)) for key, size in sizes.items() if size > 1}
    return scorer.score_references(chosen).corpus if chosen else None


def typical_caption(scorer: Scorer) -> str:
    """The reference caption with the highest mean CIDEr-D over images, by a sample of at most 1,000 images.

    Finalists are those nearest to the mean tf-idf vector of all; they are scored on some of the images.
    """
    rows = range(0, len(scorer.ids), math.ceil(len(scorer.ids) / _SAMPLE))
    vectors: dict[str, TfIdf] = {}
    for row in rows:
        vectors |= zip(scorer.raw[row], scorer.cider.vectors[row], strict=True)
    centre: dict[Ngram, float] = defaultdict(float)
    for vector in vectors.values():
        for ngram, weight in vector.unit_weights():
            centre[ngram] += weight
    nearness = {
        text: sum(weight * centre[ngram] for ngram, weight in vector.unit_weights())
        for text, vector in vectors.items()
    }
    finalists = sorted(nearness, key=lambda text: (-nearness[text], text))[:_FINALISTS]
    sample = [scorer.ids[row] for row in rows][:_HEARING]

    def heard(text: str) -> float:
        return scorer.score(dict.fromkeys(sample, text)).corpus["CIDEr"]

    return max(finalists, key=heard)
