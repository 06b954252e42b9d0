"""CIDEr-D (Vedantam et al., CVPR 2015), equal to pycocoevalcap's "Cider" class; needs only NumPy.

A caption is a vector of tf-idf weights of its n-grams, n = 1..4; the score is the clipped cosine with each
reference, times a Gaussian of the difference in length, averaged over n and references, times ten. What a word
is worth (idf) comes from the number of IMAGES in whose references it occurs: the score depends on the whole set,
and a caption of one image alone scores zero.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from limner.evaluation.ngrams import ORDERS, Ngram, count_ngrams
from limner.evaluation.ptb import ptb_tokenize

SIGMA = 6.0
"""Width of the length penalty, in words."""


def caption_ngrams(caption: str) -> Counter[Ngram]:
    """The n-grams of a raw caption, as every score here counts them."""
    return count_ngrams(ptb_tokenize(caption).split())


@dataclass
class DocumentFrequency:
    """In the references of how many images each n-gram occurs."""

    num_images: int = 0
    counts: Counter[Ngram] = field(default_factory=Counter)

    def add(self, references: Sequence[Counter[Ngram]]) -> None:
        """Counts one more image."""
        self.num_images += 1
        self.counts.update(set().union(*references))

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> DocumentFrequency:
        """Of raw captions, image by image."""
        frequency = cls()
        for group in references:
            frequency.add([caption_ngrams(text) for text in group])
        return frequency

    def save(self, path: Path) -> None:
        """Writes the corpus file: JSON with ``num_images`` and ``counts`` (n-gram's words joined by spaces)."""
        counts = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        path.write_text(json.dumps({"num_images": self.num_images, "counts": counts}, ensure_ascii=False), "utf-8")

    @classmethod
    def load(cls, path: Path) -> DocumentFrequency:
        """Reads what `save` wrote. Raises ValueError where the file is something else."""
        try:
            content = json.loads(path.read_text("utf-8"))
            counts = {tuple(ngram.split(" ")): int(count) for ngram, count in content["counts"].items()}
            return cls(int(content["num_images"]), Counter(counts))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no CIDEr corpus file: expected JSON as --save-corpus writes it."
            ) from error


@dataclass
class TfIdf:
    """A caption as CIDEr sees it."""

    weights: list[dict[Ngram, float]]
    """One dictionary for each n = 1..4."""
    norms: list[float]
    length: int
    """In bigrams, as the published code has it."""

    def unit_weights(self) -> Iterator[tuple[Ngram, float]]:
        """Every n-gram's weight in the vector of its n, scaled to length one."""
        for weights, norm in zip(self.weights, self.norms, strict=True):
            if norm:
                for ngram, weight in weights.items():
                    yield ngram, weight / norm

    def cosine(self, other: TfIdf) -> float:
        """Mean over the n that both have of the plain cosines: CIDEr without the D; symmetric, at most 1."""
        cosines = [
            sum(weight * theirs.get(ngram, 0.0) for ngram, weight in mine.items()) / (norm * other_norm)
            for mine, theirs, norm, other_norm in zip(
                self.weights, other.weights, self.norms, other.norms, strict=True
            )
            if norm and other_norm
        ]
        return sum(cosines) / len(cosines) if cosines else 0.0


class CiderD:
    """Scores captions against fixed references, whose vectors are made once (for scoring again and again)."""

    def __init__(
        self, references: Sequence[Sequence[Counter[Ngram]]], document_frequency: DocumentFrequency | None = None
    ):
        """``references`` are the counted n-grams of each image's captions; idf comes from them if not given."""
        if document_frequency is None:
            document_frequency = DocumentFrequency()
            for group in references:
                document_frequency.add(group)
        self.document_frequency = document_frequency
        self._log_images = math.log(max(document_frequency.num_images, 1))
        self._log_frequency: dict[Ngram, float] = {}
        self.vectors = [[self.vector(counts) for counts in group] for group in references]

    def scores(self, candidates: Sequence[Counter[Ngram]]) -> np.ndarray:
        """One score an image, (N,) float64, in the order of the references; CIDEr-D of the set is the mean."""
        pairs = zip(candidates, self.vectors, strict=True)
        return np.array([self.score(counts, group) for counts, group in pairs])

    def score(self, candidate: Counter[Ngram], references: Sequence[TfIdf]) -> float:
        """CIDEr-D of one caption against the vectors of references."""
        vector = self.vector(candidate)
        return 10 * sum(_similarity(vector, reference) for reference in references) / len(references)

    def vector(self, counts: Counter[Ngram]) -> TfIdf:
        """The tf-idf weights of one caption's n-grams."""
        weights: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        squares = [0.0] * ORDERS
        length = 0
        cache = self._log_frequency
        for ngram, count in counts.items():
            idf = cache.get(ngram)
            if idf is None:
                idf = self._log_images - math.log(max(1, self.document_frequency.counts[ngram]))
                cache[ngram] = idf
            n = len(ngram) - 1
            weight = count * idf
            weights[n][ngram] = weight
            squares[n] += weight * weight
            if n == 1:
                length += count
        return TfIdf(weights, [math.sqrt(square) for square in squares], length)


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
        document_frequency = DocumentFrequency()
        for group in counted.values():
            document_frequency.add(group)
    scorer = CiderD([counted[key] for key in predictions], document_frequency)
    scores = scorer.scores([caption_ngrams(text) for text in predictions.values()])
    return float(scores.mean()), dict(zip(predictions, scores.tolist(), strict=True))
