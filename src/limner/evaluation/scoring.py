"""All caption metrics of a set at once: each caption is tokenized and counted once, each reference once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from limner.evaluation.bleu import bleu, bleu_statistics
from limner.evaluation.bootstrap import interval, resample_counts, resampled_means, resampled_sums
from limner.evaluation.cider import CiderD
from limner.evaluation.diversity import diversity, self_cider
from limner.evaluation.meteor import Meteor, MeteorChoice, find_meteor
from limner.evaluation.rouge import ROUGE_NAMES, rouge_l, rouge_scores
from limner.words.ngrams import Ngram, count_ngrams
from limner.words.ptb import ptb_tokenize
from limner.words.tf_idf import DocumentFrequency, TfIdf

T = TypeVar("T")
BLEU_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")

Predictions = Mapping[Any, str | Sequence[str]] | Sequence[str | Sequence[str]]
"""Captions by image id, or in the order of the references; several an image: the first is scored."""
References = Mapping[Any, str | Sequence[str]] | Sequence[str | Sequence[str]]


@dataclass
class Table:
    """The scores of one set of captions, image by image, and what makes up the scores of the whole set."""

    ids: list[str]
    per_image: dict[str, np.ndarray]
    """Metric -> (N,) float64."""
    bleu_statistics: np.ndarray
    """(N, 10): BLEU of a set is computed from their sum, not from the images' scores."""
    corpus: dict[str, float]
    """Metric -> the score of the whole set."""

    def resampled(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric in every resample: (R, N) -> metric -> (R,).

        METEOR 1.5 of a set is not the mean of its images' scores; its resamples are shifted by that difference.
        """
        resamples = dict(zip(BLEU_NAMES, resampled_sums(self.bleu_statistics, counts, bleu).T, strict=True))
        for name, values in self.per_image.items():
            if name not in resamples:
                resamples[name] = resampled_means(values, counts) + (self.corpus[name] - values.mean())
        return resamples


@dataclass
class _Group:
    """The references of one image, as each metric wants them."""

    tokens: list[str]
    counts: list[Counter[Ngram]]
    vectors: list[TfIdf]

    def without(self, number: int) -> _Group:
        def rest(items: list[T]) -> list[T]:
            return items[:number] + items[number + 1 :]

        return _Group(rest(self.tokens), rest(self.counts), rest(self.vectors))


class Scorer:
    """Scores captions against fixed references, as often as wanted (controls, checkpoints, two models).

    Raises:
        ValueError: an image without references, or a reference that is no text.
    """

    def __init__(
        self, references: Mapping[str, Sequence[str]], document_frequency: DocumentFrequency | None = None
    ) -> None:
        for key, group in references.items():
            if not group or not all(isinstance(text, str) for text in group):
                raise ValueError(f"Image {key} needs at least one reference caption, each of them text.")
        if not references:
            raise ValueError("There are no references to score against.")
        self.ids = list(references)
        self.raw = [list(group) for group in references.values()]
        self.tokens = [[ptb_tokenize(text) for text in group] for group in self.raw]
        self._counts = [[count_ngrams(text.split()) for text in group] for group in self.tokens]
        self.cider = CiderD(self._counts, document_frequency)
        self._row = {key: row for row, key in enumerate(self.ids)}

    def score(
        self, predictions: Mapping[str, str], meteor: Meteor | None = None, rouge_package: bool = False
    ) -> Table:
        """BLEU, ROUGE-L and CIDEr-D of the predicted images; METEOR and rouge-score's figures where asked for."""
        rows = [self._row[key] for key in predictions]
        tokens = [ptb_tokenize(text) for text in predictions.values()]
        with ThreadPoolExecutor(1) as pool:  # METEOR's Java works while we do
            waiting = meteor and pool.submit(meteor.score, tokens, [self.tokens[row] for row in rows])
            counts = [count_ngrams(text.split()) for text in tokens]
            table = self._table(list(predictions), tokens, counts, [self._group(row) for row in rows])
            if rouge_package:
                texts = zip(predictions.values(), rows, strict=True)
                found = [rouge_scores(text, self.raw[row]) for text, row in texts]
                for name in ROUGE_NAMES:
                    values = np.array([scores[name] for scores in found])
                    table.per_image[name], table.corpus[name] = values, float(values.mean())
            if waiting:
                table.corpus["METEOR"], table.per_image["METEOR"] = waiting.result()
        return table

    def score_references(self, chosen: Mapping[str, int]) -> Table:
        """One reference of each image (by its number) as if it were a prediction, against the others of it.

        The document frequencies stay those of all references, so that the scores compare with a model's.
        """
        tokens, counts, groups = [], [], []
        for key, number in chosen.items():
            group = self._group(self._row[key])
            tokens.append(group.tokens[number])
            counts.append(group.counts[number])
            groups.append(group.without(number))
        return self._table(list(chosen), tokens, counts, groups)

    def _group(self, row: int) -> _Group:
        return _Group(self.tokens[row], self._counts[row], self.cider.vectors[row])

    def _table(
        self, ids: list[str], tokens: list[str], counts: list[Counter[Ngram]], groups: list[_Group]
    ) -> Table:
        paired = list(zip(tokens, counts, groups, strict=True))
        statistics = np.stack([bleu_statistics(one, group.counts) for _, one, group in paired])
        per_image = dict(zip(BLEU_NAMES, bleu(statistics).T, strict=True))
        per_image["ROUGE_L"] = np.array([rouge_l(text, group.tokens) for text, _, group in paired])
        per_image["CIDEr"] = np.array([self.cider.score(one, group.vectors) for _, one, group in paired])
        corpus = {name: float(values.mean()) for name, values in per_image.items()}
        corpus |= dict(zip(BLEU_NAMES, bleu(statistics.sum(0)).tolist(), strict=True))
        return Table(ids, per_image, statistics, corpus)


def score(
    predictions: Predictions,
    references: References,
    *,
    document_frequency: DocumentFrequency | None = None,
    meteor: MeteorChoice = "auto",
    per_image: bool = False,
    intervals: bool = False,
    seed: int = 42,
) -> dict[str, Any]:
    """Scores captions against references.

    Args:
        predictions: ``{id: caption}``, or a list in the order of ``references``. Where an image has several
            captions the first is scored, and ``self_CIDEr`` tells their variety.
        references: ``{id: [captions]}``, or a list of lists. Images without a prediction are not scored, but
            count in CIDEr's document frequencies.
        document_frequency: CIDEr's, instead of those of ``references``.
        meteor: which implementation; "auto" takes METEOR 1.5 where Java is, else NLTK's, else none.
        per_image: also each image's scores, under ``per_image``.
        intervals: also bootstrap 95 % intervals, under ``intervals``: metric -> (low, high).
        seed: of the bootstrap.

    Returns:
        ``Bleu_1`` .. ``Bleu_4``, ``ROUGE_L``, ``METEOR``, ``CIDEr`` (as pycocoevalcap: CIDEr-D, not times 100),
        ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum`` (as rouge-score), diversity figures, ``num_images``,
        and ``METEOR_implementation``: the name of what computed it, None where nothing could.

    Raises:
        ValueError: nothing to score, or a prediction without references.
    """
    if isinstance(predictions, Mapping) != isinstance(references, Mapping):
        raise ValueError("Give predictions and references both by image id, or both as lists in the same order.")
    if not isinstance(predictions, Mapping) and len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions do not match {len(references)} lists of references.")
    scored = score_candidates(_by_id(predictions), _by_id(references), document_frequency, meteor)
    return scored.as_dict(per_image, intervals, seed)


@dataclass
class Scored:
    """A set of captions with its scores."""

    predictions: dict[str, str]
    """What was scored: the first caption of each image."""
    table: Table
    scorer: Scorer
    meteor: str | None
    """The name of what computed METEOR."""
    variety: dict[str, float]
    """``self_CIDEr``, where an image has several captions."""

    def as_dict(self, per_image: bool = False, intervals: bool = False, seed: int = 42) -> dict[str, Any]:
        """What `score` returns: plain numbers that JSON can hold."""
        table = self.table
        result: dict[str, Any] = dict(table.corpus) | {"METEOR_implementation": self.meteor} | self.variety
        result |= diversity([ptb_tokenize(text) for text in self.predictions.values()])
        result["num_images"] = len(table.ids)
        if intervals:
            resamples = table.resampled(resample_counts(len(table.ids), seed))
            result["intervals"] = {name: interval(values) for name, values in resamples.items()}
        if per_image:
            columns = {name: values.tolist() for name, values in table.per_image.items()}
            result["per_image"] = {
                key: {name: values[row] for name, values in columns.items()} for row, key in enumerate(table.ids)
            }
        return result


def score_candidates(
    candidates: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    document_frequency: DocumentFrequency | None = None,
    meteor: MeteorChoice = "auto",
    scorer: Scorer | None = None,
) -> Scored:
    """The first caption of each image by every metric, and the variety of those with several.

    Args:
        scorer: of these references, where there is one already.

    Raises:
        ValueError: nothing to score, or a prediction without references.
    """
    if not candidates:
        raise ValueError("There are no predictions to score.")
    strangers = [key for key in candidates if key not in references]
    if strangers:
        raise ValueError(
            f"{len(strangers)} of {len(candidates)} predictions have no reference (the first: {strangers[0]}); "
            "check that both name the images alike."
        )
    for key, group in candidates.items():
        if not group or not all(isinstance(text, str) for text in group):
            raise ValueError(f"The prediction of image {key} is no text.")
    scorer = scorer or Scorer(references, document_frequency)
    chosen = {key: group[0] for key, group in candidates.items()}
    implementation = find_meteor(meteor)
    table = scorer.score(chosen, implementation, rouge_package=True)
    several = [[ptb_tokenize(text) for text in group] for group in candidates.values() if len(group) > 1]
    variety = {"self_CIDEr": self_cider(several, scorer.cider.document_frequency)} if several else {}
    return Scored(chosen, table, scorer, implementation.name if implementation else None, variety)


def _by_id(captions: Predictions | References) -> dict[str, list[str]]:
    pairs = captions.items() if isinstance(captions, Mapping) else enumerate(captions)
    return {str(key): [value] if isinstance(value, str) else list(value) for key, value in pairs}
