"""CIDEr-D (Vedantam et al., CVPR 2015), equal to pycocoevalcap's "Cider" class; needs only NumPy.

A caption is a vector of tf-idf weights of its n-grams, n = 1..4; the score is the clipped cosine with each
reference, times a Gaussian of the difference in length, averaged over n and references, times ten. What a word
is worth (idf) comes from the number of IMAGES in whose references it occurs: the score depends on the whole set,
and a caption of one image alone scores zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from limner.words.ngrams import ORDERS, Ngram, caption_ngrams
from limner.words.tf_idf import SIGMA, DocumentFrequency, TfIdf, Weigher


class CiderD:
    """Scores captions against fixed references, whose vectors are made once (for scoring again and again)."""

    def __init__(
        self, references: Sequence[Sequence[Counter[Ngram]]], document_frequency: DocumentFrequency | None = None
    ):
        """``references`` are the counted n-grams of each image's captions; idf comes from them if not given."""
        if document_frequency is None:
            document_frequency = DocumentFrequency.counted(references)
        self.document_frequency = document_frequency
        self.weigher = Weigher(document_frequency)
        self.vectors = [[self.weigher.vector(counts) for counts in group] for group in references]

    def scores(self, candidates: Sequence[Counter[Ngram]]) -> np.ndarray:
        """One score an image, (N,) float64, in the order of the references; CIDEr-D of the set is the mean."""
        pairs = zip(candidates, self.vectors, strict=True)
        return np.array([self.score(counts, group) for counts, group in pairs])

    def score(self, candidate: Counter[Ngram], references: Sequence[TfIdf]) -> float:
        """CIDEr-D of one caption against the vectors of references."""
        vector = self.weigher.vector(candidate)
        return 10 * sum(_similarity(vector, reference) for reference in references) / len(references)


def _similarity(candidate: TfIdf, reference: TfIdf) -> float:
    """Mean over n of the clipped cosine, times the length penalty: at most 1."""
    total = 0.0
    for n in range(ORDERS):
        theirs = reference.weights[n]
        dot = 0.0
        for ngram, weight in candidate.weights[n].items():
            other = theirs.get(ngram)
            if other is not None:
                dot += min(weight, other) * other
        if candidate.norms[n] and reference.norms[n]:
            dot /= candidate.norms[n] * reference.norms[n]
        total += dot
    difference = candidate.length - reference.length
    return total / ORDERS * math.exp(-(difference**2) / (2 * SIGMA**2))


def cider_d(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    document_frequency: DocumentFrequency | None = None,
) -> tuple[float, dict[str, float]]:
    """CIDEr-D alone, from raw captions: the mean, and each image's score.

    The cheap way during training: no Java, no NLTK. ``references`` may hold more images than ``predictions``;
    document frequencies then come from all of them.
    """
    counted = {key: [caption_ngrams(text) for text in group] for key, group in references.items()}
    if document_frequency is None:
        document_frequency = DocumentFrequency.counted(counted.values())
    scorer = CiderD([counted[key] for key in predictions], document_frequency)
    scores = scorer.scores([caption_ngrams(text) for text in predictions.values()])
    return float(scores.mean()), dict(zip(predictions, scores.tolist(), strict=True))
