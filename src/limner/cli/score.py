"""``limner score``: captions against references, without a model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from limner.cli.parse import parse
from limner.cli.telling import answers, json_line
from limner.config.score import ScoreConfig

if TYPE_CHECKING:
    import numpy as np

    from limner.evaluation.assessment import Assessment


def run(argv: list[str]) -> int:
    config = parse(ScoreConfig, argv, "limner score")
    from limner.evaluation import DocumentFrequency, Scorer
    from limner.evaluation.assessment import assess
    from limner.evaluation.files import match, read_captions

    references, aliases = read_captions(config.references, config.split)
    predictions = match(read_captions(config.predictions)[0], references, aliases)
    frequencies = DocumentFrequency.load(config.corpus) if config.corpus else None
    scorer = Scorer(references, frequencies)
    assessment = assess(
        predictions,
        references,
        scorer=scorer,
        document_frequency=frequencies,
        meteor=config.meteor,
        seed=config.seed,
        further={"SPICE": _spice(predictions, references)} if config.spice else None,
    )
    if config.save_corpus:
        scorer.cider.document_frequency.save(config.save_corpus)
    if config.json_:
        print(json_line(assessment.as_dict(config.per_image)))
        return 0
    print_scores(assessment, answers())
    if config.per_image:
        _print_images(assessment)
    return 0


def _spice(predictions: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[str]]) -> np.ndarray:
    from limner.evaluation import ptb_tokenize
    from limner.evaluation.spice import spice_scores

    said = [ptb_tokenize(group[0]) for group in predictions.values()]
    return spice_scores(said, [[ptb_tokenize(text) for text in references.get(key, ())] for key in predictions])


def print_scores(assessment: Assessment, console: Console) -> None:
    """The table of scores, intervals and controls, and what they say, for a person."""
    scores, controls = assessment.scores, assessment.controls
    table = Table(box=None, pad_edge=False)
    for heading in ("metric", "score", "95 % interval", "constant", "shuffled", "human"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, value, (low, high), constant, shuffled, human in assessment.rows():
        cells = [_number(constant), _number(shuffled), _number(human)]
        table.add_row(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}", *cells)
    console.print(table)
    package = ", ".join(f"{name} {scores[name]:.4f}" for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"))
    lines = [
        f"{scores['num_images']:,} images; METEOR: {scores['METEOR_implementation'] or 'none'}; {package}.",
        f"Words a caption: {scores['mean_length']:.1f} ({scores['shortest']} to {scores['longest']}); vocabulary "
        f"{scores['vocabulary']:,}; distinct-1 {scores['distinct_1']:.3f}, distinct-2 {scores['distinct_2']:.3f}; "
        f"different captions {scores['different_captions']:.0%}."
        + (f" Self-CIDEr {scores['self_CIDEr']:.3f}." if "self_CIDEr" in scores else ""),
        f"Constant caption: {controls.constant_caption}",
        sight_sentence(assessment),
        *(f"Note: {remark}" for remark in assessment.remarks),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def sight_sentence(assessment: Assessment) -> str:
    """Whether the captions depend on the pictures, in one sentence."""
    controls = assessment.controls
    if controls.fall is None:
        return "One image cannot be shuffled: nothing is said about whether the model looks."
    low, high = controls.fall
    fall = f"CIDEr falls by {low:.3f} to {high:.3f} when the pictures are shuffled"
    if controls.sight == "unclear":
        return f"{fall}; too few images to tell whether the model looks."
    if controls.sight == "blind":
        return f"BLIND: {fall}, which is no fall to speak of: the captions do not depend on the pictures."
    own, constant = assessment.scores["CIDEr"], controls.constant["CIDEr"]
    yet = f" Yet one caption for every picture scores higher ({constant:.3f})." if constant > own else ""
    return f"{fall}: the words depend on the pictures.{yet}"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def _print_images(assessment: Assessment) -> None:
    names = [name for name in assessment.scores["per_image"][assessment.table.ids[0]] if name in assessment.scores]
    sys.stdout.write("\t".join(["image", *names, "caption"]) + "\n")
    for key, row in assessment.scores["per_image"].items():
        caption = " ".join(assessment.predictions[key].split())
        sys.stdout.write("\t".join([key, *(f"{row[name]:.6f}" for name in names), caption]) + "\n")
