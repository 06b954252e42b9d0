"""Captions as vectors: each n-gram's count times its idf, as CIDEr has it (Vedantam et al., CVPR 2015).

What an n-gram is worth (idf) comes from the number of IMAGES in whose captions it occurs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from limner.whole_files import write_whole
from limner.words.ngrams import ORDERS, Ngram, caption_ngrams

SIGMA = 6.0
"""Width of CIDEr-D's length penalty, in words."""


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
        return cls.counted([caption_ngrams(text) for text in group] for group in references)

    @classmethod
    def counted(cls, references: Iterable[Sequence[Counter[Ngram]]]) -> DocumentFrequency:
        """Of counted n-grams, image by image."""
        frequency = cls()
        for group in references:
            frequency.add(group)
        return frequency

    def save(self, path: Path) -> None:
        """Writes the corpus file: JSON with ``num_images`` and ``counts`` (n-gram's words joined by spaces)."""
        counts = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        write_whole(path, json.dumps({"num_images": self.num_images, "counts": counts}, ensure_ascii=False))

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


class Weigher:
    """Makes vectors of captions; each n-gram's idf is computed once."""

    def __init__(self, document_frequency: DocumentFrequency) -> None:
        self.document_frequency = document_frequency
        self._log_images = math.log(max(document_frequency.num_images, 1))
        self._idf: dict[Ngram, float] = {}

    def vector(self, counts: Counter[Ngram]) -> TfIdf:
        """The tf-idf weights of one caption's n-grams."""
        weights: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        squares = [0.0] * ORDERS
        length = 0
        cache = self._idf
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
