"""Two models on the same pictures: which is better, by which metric, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from limner.evaluation.assessment import METRICS
from limner.evaluation.bootstrap import CONFIDENCE, interval, paired_p_value, resample_counts
from limner.evaluation.meteor import Meteor
from limner.evaluation.scoring import Scorer, Table
from limner.words.tf_idf import DocumentFrequency


@dataclass
class Difference:
    """One metric of two models."""

    metric: str
    before: float
    after: float
    difference: float
    """After minus before; more is better in all metrics here."""
    low: float
    high: float
    """95 % interval of the difference, by a bootstrap over the same pictures for both."""
    p_value: float

    @property
    def better(self) -> str:
        """ "before", "after", or "neither" where the difference may be chance."""
        if self.p_value > 1 - CONFIDENCE:
            return "neither"
        return "after" if self.difference > 0 else "before"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"better": self.better}


def compare(before: Table, after: Table, seed: int = 42) -> list[Difference]:
    """Every metric that both have. Both tables are of the same images in the same order."""
    assert before.ids == after.ids
    counts = resample_counts(len(before.ids), seed)
    resamples = before.resampled(counts), after.resampled(counts)
    found = []
    for metric in METRICS:
        if metric in before.corpus and metric in after.corpus:
            differences = resamples[1][metric] - resamples[0][metric]
            values = before.corpus[metric], after.corpus[metric]
            p_value = 1.0 if not differences.any() else paired_p_value(differences)
            found.append(Difference(metric, *values, values[1] - values[0], *interval(differences), p_value))
    return found


def score_pair(
    before: Mapping[str, str],
    after: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    meteor: Meteor | None,
    document_frequency: DocumentFrequency | None = None,
) -> tuple[Table, Table]:
    """Both models' captions against the same references."""
    scorer = Scorer(references, document_frequency)
    return scorer.score(before, meteor), scorer.score({key: after[key] for key in before}, meteor)


def first_difference(before: str, after: str) -> int | None:
    """The number (from 0) of the first word in which two captions differ; None where they are the same."""
    pairs = zip_longest(before.split(), after.split())
    return next((number for number, (one, other) in enumerate(pairs) if one != other), None)
