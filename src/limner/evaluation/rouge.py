"""ROUGE (Lin, 2004), twice, because two definitions are in use.

`rouge_l` is the COCO evaluation's: F with beta 1.2 of the best precision and the best recall over references, on
PTB tokens. `rouge_scores` is the ``rouge-score`` package's (ROUGE-1, 2, L, Lsum): F1 of the best reference, on
its own tokens (lower case, letters and digits only).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

_BETA = 1.2
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel rows (Hyyrö, 2004)."""
    positions: dict[str, int] = {}
    for index, word in enumerate(a):
        positions[word] = positions.get(word, 0) | (1 << index)
    everything = (1 << len(a)) - 1
    row = everything  # a zero bit at i: the subsequence grows at a[i]
    for word in b:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(a) - row.bit_count()


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """COCO's ROUGE-L of one image, from tokens joined by spaces. An empty caption counts as one empty word."""
    words = candidate.split(" ")
    others = [reference.split(" ") for reference in references]
    lengths = [lcs_length(words, other) for other in others]
    precision = max(lengths) / len(words)
    recall = max(length / len(other) for length, other in zip(lengths, others, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def rouge_tokens(text: str) -> list[str]:
    """The tokens of the ``rouge-score`` package, without its optional stemmer."""
    return _NOT_ALPHANUMERIC.sub(" ", text.lower()).split()


def rouge_scores(candidate: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``; each of the reference that is best for it."""
    best = dict.fromkeys(ROUGE_NAMES, 0.0)
    words = rouge_tokens(candidate)
    unigrams, bigrams = Counter(words), Counter(pairwise(words))
    for reference in references:
        others = rouge_tokens(reference)
        common = lcs_length(words, others)
        found = {
            "rouge1": _f1_of_counts(unigrams, Counter(others)),
            "rouge2": _f1_of_counts(bigrams, Counter(pairwise(others))),
            "rougeL": _f1(common, len(words), len(others)),
        }
        one_line = "\n" not in candidate and "\n" not in reference  # then summary level is sentence level
        found["rougeLsum"] = found["rougeL"] if one_line else _rouge_lsum(candidate, reference)
        for name, value in found.items():
            best[name] = max(best[name], value)
    return best


def _f1(matches: int, predicted: int, expected: int) -> float:
    precision, recall = matches / max(predicted, 1), matches / max(expected, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _f1_of_counts(ours: Counter, theirs: Counter) -> float:
    matches = sum(min(count, theirs[gram]) for gram, count in ours.items())
    return _f1(matches, sum(ours.values()), sum(theirs.values()))


def _rouge_lsum(candidate: str, reference: str) -> float:
    """Summary-level ROUGE-L: lines are sentences; the union of their common subsequences, each word once."""
    ours = [rouge_tokens(line) for line in candidate.split("\n") if line]
    theirs = [rouge_tokens(line) for line in reference.split("\n") if line]
    left_ours, left_theirs = Counter(w for s in ours for w in s), Counter(w for s in theirs for w in s)
    num_ours, num_theirs = left_ours.total(), left_theirs.total()
    hits = 0
    for sentence in theirs:
        union = sorted(set().union(*(_lcs_indices(sentence, other) for other in ours)))
        for word in (sentence[index] for index in union):
            if left_ours[word] > 0 and left_theirs[word] > 0:
                hits += 1
                left_ours[word] -= 1
                left_theirs[word] -= 1
    return _f1(hits, num_ours, num_theirs)


def _lcs_indices(expected: list[str], predicted: list[str]) -> list[int]:
    """Indices into ``expected`` of one longest common subsequence: the one that ``rouge-score`` picks."""
    rows, columns = len(expected), len(predicted)
    table = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            same = expected[i - 1] == predicted[j - 1]
            table[i][j] = table[i - 1][j - 1] + 1 if same else max(table[i - 1][j], table[i][j - 1])
    indices = []
    i, j = rows, columns
    while i and j:
        if expected[i - 1] == predicted[j - 1]:
            i, j = i - 1, j - 1
            indices.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return indices
