"""Counted n-grams of a tokenized caption: what BLEU and CIDEr-D share, so that it is done once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from limner.words.ptb import ptb_tokenize

Ngram = tuple[str, ...]
ORDERS = 4


def count_ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs. A caption of L words has max(0, L - n + 1) n-grams."""
    shifted = [words[start:] for start in range(ORDERS)]
    return Counter(chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, ORDERS + 1)))


def caption_ngrams(caption: str) -> Counter[Ngram]:
    """The n-grams of a raw caption, as every score here counts them."""
    return count_ngrams(ptb_tokenize(caption).split())
