"""A score as it should be told: with its interval, its controls, and what computed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limner.evaluation.controls import Controls, controls
from limner.evaluation.meteor import MeteorChoice
from limner.evaluation.scoring import Scorer, Table, score_candidates
from limner.words.tf_idf import DocumentFrequency

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
"""The columns of the field, in its order."""
WITHOUT_REFERENCES = ("CLIPScore", "RefCLIPScore", "SigLIPScore")


@dataclass
class Assessment:
    """Everything that can be said of a set of captions without looking at the pictures."""

    predictions: dict[str, str]
    references: dict[str, list[str]]
    table: Table
    scores: dict[str, Any]
    """As `limner.evaluation.score` returns them, with intervals."""
    controls: Controls
    remarks: list[str]

    def as_dict(self, per_image: bool = False) -> dict[str, Any]:
        """For JSON: the scores, and ``controls`` and ``remarks`` beside them."""
        result = {name: value for name, value in self.scores.items() if per_image or name != "per_image"}
        return result | {"controls": self.controls.as_dict(), "remarks": self.remarks}

    def rows(self) -> list[tuple[str, float, tuple[float, float], float, float | None, float | None]]:
        """For tables: metric, score, interval, and the constant caption's, the shuffled and the human score."""
        told = self.controls
        return [
            (
                name,
                self.scores[name],
                self.scores["intervals"][name],
                told.constant.get(name, float("nan")),
                told.shuffled.get(name) if told.shuffled else None,
                told.human.get(name) if told.human else None,
            )
            for name in (*METRICS, *WITHOUT_REFERENCES)
            if name in self.scores
        ]


def assess(
    predictions: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    *,
    document_frequency: DocumentFrequency | None = None,
    meteor: MeteorChoice = "auto",
    seed: int = 42,
    scorer: Scorer | None = None,
    further: Mapping[str, np.ndarray] | None = None,
) -> Assessment:
    """Scores ``predictions`` (an image may have several: the first is scored) with intervals and controls.

    Args:
        scorer: of these references, where there is one already.
        further: more scores, (N,) in the order of the predictions, such as `clip_scores` gives.

    Raises:
        ValueError: predictions without references, or nothing to score.
    """
    scored = score_candidates(predictions, references, document_frequency, meteor, scorer)
    chosen, table = scored.predictions, scored.table
    for metric, values in (further or {}).items():
        table.per_image[metric], table.corpus[metric] = values, float(values.mean())
    scores = scored.as_dict(per_image=True, intervals=True, seed=seed)
    expected = {key: list(references[key]) for key in chosen}
    remarks = _remarks(chosen, references, document_frequency)
    if scored.meteor is None and meteor != "off":
        remarks.append("METEOR is missing: it needs Java and pycocoevalcap, or NLTK (the extra `metrics`).")
    return Assessment(chosen, expected, table, scores, controls(scored.scorer, chosen, table, seed), remarks)


def _remarks(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    document_frequency: DocumentFrequency | None,
) -> list[str]:
    remarks = []
    missing = len(references) - len(predictions)
    if missing:
        remarks.append(
            f"{missing:,} of {len(references):,} images with references have no prediction; they are not scored, "
            "and count in CIDEr's document frequencies."
        )
    if len(references) == 1 and document_frequency is None:
        remarks.append("CIDEr of a single image is 0 by definition; give a corpus file.")
    empty = sum(not text.strip() for text in predictions.values())
    if empty:
        remarks.append(f"{empty:,} predictions are empty.")
    return remarks
