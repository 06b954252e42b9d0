"""How varied a set of captions is: words, lengths, repetitions, and variety among several captions of an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from limner.words.ngrams import count_ngrams
from limner.words.tf_idf import DocumentFrequency, Weigher


def distinct(captions: Sequence[str], n: int) -> float:
    """Distinct-n (Li et al., NAACL 2016): different n-grams over all n-grams of the tokenized captions."""
    grams: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        words = caption.split()
        grams.update(zip(*(words[start:] for start in range(n)), strict=False))
    return len(grams) / max(grams.total(), 1)


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """Figures of tokenized captions, one an image: distinct-1/2, vocabulary, lengths in words, repetition."""
    lengths = np.array([len(caption.split()) for caption in captions])
    words = {word for caption in captions for word in caption.split()}
    return {
        "distinct_1": distinct(captions, 1),
        "distinct_2": distinct(captions, 2),
        "vocabulary": len(words),
        "mean_length": float(lengths.mean()),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "different_captions": len(set(captions)) / len(captions),
    }


def self_cider(groups: Sequence[Sequence[str]], document_frequency: DocumentFrequency) -> float:
    """Self-CIDEr (Wang and Chan, CVPR 2019): variety among the several captions of an image, mean over images.

    The kernel of an image's M captions holds their CIDEr cosines; with eigenvalues l, the score is
    -log_M(max sqrt(l) / sum sqrt(l)): 0 where all captions are the same, 1 where they share nothing. Images with
    one caption are left out.

    Raises:
        ValueError: no image has two captions.
    """
    scores = []
    for group in groups:
        if len(group) < 2:
            continue
        kernel = caption_kernel(group, document_frequency)
        roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
        scores.append(-math.log(roots.max() / roots.sum()) / math.log(len(group)))
    if not scores:
        raise ValueError("Self-CIDEr needs at least one image with two captions.")
    return float(np.mean(scores))


def caption_kernel(captions: Sequence[str], document_frequency: DocumentFrequency) -> np.ndarray:
    """Mean over n = 1..4 of the tf-idf cosines of tokenized captions, (M, M); the diagonal is 1."""
    weigher = Weigher(document_frequency)
    vectors = [weigher.vector(count_ngrams(caption.split())) for caption in captions]
    kernel = np.eye(len(captions))
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors[:i]):
            kernel[i, j] = kernel[j, i] = 1.0 if captions[i] == captions[j] else one.cosine(other)
    return kernel
