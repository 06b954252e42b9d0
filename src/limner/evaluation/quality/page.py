"""The report of a data set on disk: ``report.json``, ``examples.csv`` and ``report.html``."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

from limner.evaluation import html
from limner.evaluation.quality.examine import NOTES, PROPOSALS, Example, Quality
from limner.evaluation.quality.words import RARE

SHOWN = 12
"""Pictures of each kind."""


def write_report(quality: Quality, title: str, folder: Path) -> None:
    """Writes the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = quality.summary()
    report = json.dumps({"title": title} | summary, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(report, encoding="utf-8")
    with open(folder / "examples.csv", "w", newline="", encoding="utf-8") as file:
        rows = [example.row() for example in quality.examples]
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["image_id"])
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    (folder / "report.html").write_text(_document(quality, title), encoding="utf-8")


def _harmless(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets an apostrophe."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def _document(quality: Quality, title: str) -> str:
    summary = quality.summary()
    words = summary["words"]
    told = (
        f"{summary['pictures']:,} pictures, {summary['captions']:,} captions of {words['mean']:.1f} "
        f"words ({words['shortest']} to {words['longest']}); vocabulary {summary['vocabulary']:,}; "
        f"reading ease {summary['reading_ease']:.0f} (Flesch: 100 is easy)."
    )
    shares = "; ".join(f"{split} {count:,}" for split, count in summary["splits"].items())
    parts = [
        html.paragraph(told),
        html.paragraph(f"Splits: {shares}.", "quiet"),
        *(html.paragraph(remark, "warn") for remark in quality.remarks),
        html.section("Findings", _findings(summary["findings"])),
        html.section("What the captions name", *_objects(summary["objects"])),
        html.section("Protected attributes", _protected(summary["protected"])),
        html.section("Caption length in words", _lengths(quality)),
    ]
    if summary["alignment"]:
        lowest = sorted(
            (example for example in quality.examples if example.alignment is not None),
            key=lambda example: example.alignment or 0.0,
        )[:SHOWN]
        mean = summary["alignment"]["mean"]
        parts.append(html.section(f"Least aligned (the mean is {mean:.3f})", _cards(lowest)))
    for name in (*PROPOSALS, *NOTES):
        examples = quality.found(name)
        if examples:
            parts.append(html.section(f"{name}: {len(examples):,}", _cards(examples[:SHOWN])))
    return html.page(title, parts)


def _findings(counts: dict[str, int]) -> str:
    rows = [(name, counts[name], what, "data clean does it") for name, what in PROPOSALS.items()]
    rows += [(name, counts[name], what, "told only") for name, what in NOTES.items()]
    return html.table(["finding", "pictures", "what", ""], rows)


def _objects(objects: dict) -> list[str]:
    evenness = f"Gini {objects['gini']:.3f} (0 is even), entropy {objects['entropy_bits']:.2f} bits"
    told = (
        f"{objects['kinds']:,} nouns, {objects['rare']:,} of them in fewer than {RARE} pictures; {evenness}. "
        "Nouns are found by rule, not by a tagger."
    )
    return [html.paragraph(told), html.bars([(noun, count) for noun, count in objects["most_common"][:25]])]


def _protected(counts: dict[str, dict]) -> str:
    if not counts:
        return html.paragraph("No caption uses such a term.")
    rows = [
        (
            category,
            found["captions"],
            found["captions_before"],
            ", ".join(f"{term} {count:,}" for term, count in found["terms"][:8]),
        )
        for category, found in counts.items()
    ]
    return html.table(["category", "captions", "in the original captions", "most used"], rows)


def _lengths(quality: Quality) -> str:
    lengths = Counter(len(words) for example in quality.examples for words in example.captions)
    return html.bars([(str(length), lengths[length]) for length in sorted(lengths)])


def _cards(examples: list[Example]) -> str:
    shown = []
    for example in examples:
        told = [f"{example.record.image_id} ({example.split})", ", ".join(example.findings)]
        told += [f"like {example.like}"] if example.like else []
        told += [example.look.problem] if example.look.problem else []
        told += [f"alignment {example.alignment:.3f}"] if example.alignment is not None else []
        picture = None if example.look.problem else html.thumbnail(example.record.image)
        shown.append(
            html.card(
                picture, html.items(example.record.captions), html.paragraph("; ".join(filter(None, told)), "quiet")
            )
        )
    return html.cards(shown)
