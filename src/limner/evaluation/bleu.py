"""BLEU-1..4 (Papineni et al., ACL 2002) with the semantics of the COCO caption evaluation.

Corpus BLEU sums clipped matches, n-grams and lengths over all images before dividing; the reference length of
an image is that of the closest reference, the shorter of two equally close. Two tiny constants keep the
published code from dividing by zero, and are kept: scores agree with it to the last digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from limner.words.ngrams import ORDERS, Ngram

_SMALL, _TINY = 1e-9, 1e-15


def bleu_statistics(candidate: Counter[Ngram], references: Sequence[Counter[Ngram]]) -> np.ndarray:
    """What one image adds to the corpus: (10,) float64.

    Its own length, its reference length, then the number of its n-grams and the number of those that match,
    for n = 1..4. Rows may be added up in any selection: that is what `bleu` and the bootstrap do.
    """
    length = _length(candidate)
    closest = min((abs(_length(reference) - length), _length(reference)) for reference in references)[1]
    correct = [0] * ORDERS
    for ngram, count in candidate.items():
        allowed = max(reference[ngram] for reference in references)
        correct[len(ngram) - 1] += min(count, allowed)
    return np.array([length, closest, *(max(0, length - n) for n in range(ORDERS)), *correct], dtype=np.float64)


def bleu(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1..4 of summed statistics: (..., 10) -> (..., 4)."""
    length, reference = statistics[..., 0:1], statistics[..., 1:2]
    guess, correct = statistics[..., 2:6], statistics[..., 6:10]
    precisions = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=-1)
    scores = precisions ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + _TINY) / (reference + _SMALL)
    with np.errstate(over="ignore", divide="ignore"):
        penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return scores * penalty


def _length(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)
