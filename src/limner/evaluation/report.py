"""The HTML report of an evaluation, and of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limner.data.records import Record
from limner.evaluation import html
from limner.evaluation.assessment import Assessment
from limner.evaluation.captioning import Said
from limner.evaluation.comparison import Difference, first_difference
from limner.evaluation.scoring import Table
from limner.words.ptb import ptb_tokenize

SHOWN = 12
"""Pictures at either end."""


def evaluation_report(
    title: str,
    facts: Mapping[str, Any],
    assessment: Assessment,
    said: Mapping[str, Said],
    records: Sequence[Record],
    sight: str,
) -> str:
    """Scores and controls, the best and the worst pictures, lengths, words and repetitions, as one document."""
    pictures = {record.image_id: record for record in records}
    order = [assessment.table.ids[row] for row in np.argsort(-assessment.table.per_image["CIDEr"], kind="stable")]
    parts = [
        html.paragraph(sight, "warn" if assessment.controls.sight == "blind" else ""),
        *(html.paragraph(remark, "quiet") for remark in assessment.remarks),
        html.section("Scores", _score_table(assessment)),
        html.paragraph(f"The constant caption is: {assessment.controls.constant_caption}", "quiet"),
        html.section("Best pictures", _cards(order[:SHOWN], pictures, said, assessment)),
        html.section("Worst pictures", _cards(order[::-1][:SHOWN], pictures, said, assessment)),
        html.section("Captions", *_captions(assessment)),
        html.section("How this was made", _facts(facts)),
    ]
    return html.page(title, parts)


def _facts(facts: Mapping[str, Any]) -> str:
    return html.table(
        ["", ""],
        [
            (name, ", ".join(map(str, value)) if isinstance(value, list) else None if value is None else str(value))
            for name, value in facts.items()
        ],
    )


def _score_table(assessment: Assessment) -> str:
    headings = ["metric", "score", "95 % interval", "constant caption", "shuffled pictures", "human against human"]
    rows = [
        (name, value, f"{low:.4f} to {high:.4f}", None if constant != constant else constant, shuffled, human)
        for name, value, (low, high), constant, shuffled, human in assessment.rows()
    ]
    package = [(name, assessment.scores[name]) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
    told = ", ".join(f"{name} {value:.4f}" for name, value in package)
    meteor = assessment.scores["METEOR_implementation"] or "none"
    return html.table(headings, rows) + html.paragraph(
        f"{assessment.scores['num_images']:,} pictures. METEOR: {meteor}. As rouge-score has it: {told}.",
        "quiet",
    )


def _cards(
    keys: Sequence[str], pictures: Mapping[str, Record], said: Mapping[str, Said], assessment: Assessment
) -> str:
    shown = []
    for key in keys:
        scores = assessment.scores["per_image"][key]
        told = f"{key}: CIDEr {scores['CIDEr']:.2f}, BLEU-4 {scores['Bleu_4']:.2f}, ROUGE-L {scores['ROUGE_L']:.2f}"
        shown.append(
            html.card(
                html.thumbnail(pictures[key].image),
                html.spoken(said[key].words),
                html.items(assessment.references[key]),
                html.paragraph(told, "quiet"),
            )
        )
    return html.cards(shown) + html.paragraph(
        "Underlined by the log-probability of each word: green is sure, lime, amber and red are less and less so.",
        "quiet",
    )


def _captions(assessment: Assessment) -> list[str]:
    captions = [ptb_tokenize(text) for text in assessment.predictions.values()]
    lengths = Counter(len(caption.split()) for caption in captions)
    words = Counter(word for caption in captions for word in caption.split())
    repeated = [(caption, count) for caption, count in Counter(captions).most_common(20) if count > 1]
    scores = assessment.scores
    told = (
        f"{scores['mean_length']:.1f} words a caption; vocabulary {scores['vocabulary']:,}; "
        f"{scores['different_captions']:.0%} of the captions are different; distinct-1 {scores['distinct_1']:.3f}, "
        f"distinct-2 {scores['distinct_2']:.3f}."
    )
    return [
        html.paragraph(told),
        html.section("Length in words", html.bars([(str(n), lengths[n]) for n in sorted(lengths)])),
        html.section("Most used words", html.bars([(word, count) for word, count in words.most_common(25)])),
        html.section(
            "Repeated captions", html.table(["caption", "times"], repeated) if repeated else "<p>None.</p>"
        ),
    ]


def comparison_report(
    title: str,
    facts: Mapping[str, Any],
    differences: Sequence[Difference],
    before: Mapping[str, Said],
    after: Mapping[str, Said],
    records: Sequence[Record],
    tables: tuple[Table, Table] | None,
) -> str:
    """Expected, before and after side by side: first what got better most, then what got worse."""
    order = [record for record in records if record.image_id in before and record.image_id in after]
    parts = [html.section("Scores", comparison_table(differences)) if differences else ""]
    if tables is None:
        parts.append(html.section("Pictures", _pair_cards(order[: 4 * SHOWN], before, after, None)))
    else:
        change = dict(zip(tables[0].ids, tables[1].per_image["CIDEr"] - tables[0].per_image["CIDEr"], strict=True))
        order = sorted(order, key=lambda record: -change[record.image_id])
        better = [record for record in order if change[record.image_id] > 0]
        worse = [record for record in order[::-1] if change[record.image_id] < 0]
        for heading, those in ((f"Better after: {len(better)}", better), (f"Worse after: {len(worse)}", worse)):
            parts.append(html.section(heading, _pair_cards(those[:SHOWN], before, after, change)))
        parts.append(html.paragraph(f"{len(order) - len(better) - len(worse)} as good as before.", "quiet"))
    parts.append(html.section("How this was made", _facts(facts)))
    return html.page(title, parts)


def comparison_table(differences: Sequence[Difference]) -> str:
    """One row a metric."""
    headings = ["metric", "before", "after", "difference", "95 % interval", "p", "better"]
    return html.table(
        headings,
        [
            (d.metric, d.before, d.after, d.difference, f"{d.low:+.4f} to {d.high:+.4f}", d.p_value, d.better)
            for d in differences
        ],
    )


def _pair_cards(
    records: Sequence[Record],
    before: Mapping[str, Said],
    after: Mapping[str, Said],
    change: Mapping[str, float] | None,
) -> str:
    shown = []
    for record in records:
        one, other = before[record.image_id].caption, after[record.image_id].caption
        number = first_difference(one, other)
        told = record.image_id + (f": CIDEr {change[record.image_id]:+.2f}" if change else "")
        shown.append(
            html.card(
                html.thumbnail(record.image),
                f"<p>before: {html.marked(one, number)}</p><p>after: {html.marked(other, number)}</p>",
                html.items(record.captions),
                html.paragraph(told, "quiet"),
            )
        )
    return html.cards(shown)
