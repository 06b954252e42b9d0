"""``limner data report``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from limner.cli.parse import parse
from limner.cli.telling import answers, bar, json_line, made
from limner.config.data_quality import ReportData

if TYPE_CHECKING:
    from limner.data.records import Splits


def run(argv: list[str]) -> int:
    config = parse(ReportData, argv, "limner data report")
    from limner.data.catalogue import load_splits
    from limner.evaluation.quality.examine import NOTES as ONLY_TOLD
    from limner.evaluation.quality.examine import PROPOSALS, examine
    from limner.evaluation.quality.page import write_report

    alignment = _alignment(config)
    remarks: list[str] = []
    splits = load_splits(config, remarks.append, skip_bad_images=True)
    folder = made(config.out or Path("quality") / Path(config.dataset[0]).name)
    with bar() as progress:
        originals = _originals(config, splits, remarks)
        quality = examine(splits, originals=originals, alignment=alignment, near=config.near, progress=progress)
    quality.remarks = remarks
    title = f"Quality of {' '.join(config.dataset)}"
    write_report(quality, title, folder)
    summary = quality.summary()
    if config.json_:
        print(json_line(summary | {"folder": str(folder)}))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("finding", "pictures", "what"):
        table.add_column(heading, justify="right" if heading == "pictures" else "left")
    for name, what in (PROPOSALS | ONLY_TOLD).items():
        table.add_row(name, f"{summary['findings'][name]:,}", what)
    console = answers()
    console.print(table)
    objects, words = summary["objects"], summary["words"]["mean"]
    for line in (
        f"{summary['pictures']:,} pictures, {summary['captions']:,} captions of {words:.1f} words.",
        f"{objects['kinds']:,} nouns ({objects['rare']:,} rare), Gini {objects['gini']:.3f}, entropy "
        f"{objects['entropy_bits']:.2f} bits.",
        *(f"Alignment: {summary['alignment']['mean']:.4f}." for _ in [0] if summary["alignment"]),
        *(f"Note: {remark}" for remark in remarks),
        f"Report: {folder / 'report.html'}; `limner data clean` does what is proposed.",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _alignment(config: ReportData) -> Any:
    if config.clip is None:
        return None
    from limner.device import choose
    from limner.evaluation.clipscore import Alignment

    return Alignment(config.clip, device=choose(config.device, "fp32").device)


def _originals(config: ReportData, splits: Splits, remarks: list[str]) -> dict[str, list[str]]:
    """Captions as they were: of the file that is named, or what Limner's own sets keep beside each caption."""
    from limner.data.records import SPLITS
    from limner.evaluation.files import match, read_captions
    from limner.evaluation.quality.new_set import provenance

    known = {record.image_id: record.captions for split in SPLITS for record in splits[split]}
    if config.original is None:
        kept = provenance(config.dataset).items()
        found = {key: row["original_captions"] for key, row in kept if "original_captions" in row}
    else:
        captions, ids = read_captions(config.original)
        names = {image_id: name for name, image_id in ids.items()}
        found = {names.get(key, key): texts for key, texts in captions.items()}
        if not found.keys() & known.keys():
            found = match(found, known, {})
    found = {key: texts for key, texts in found.items() if key in known}
    if config.original is not None and not found:
        raise ValueError(f"{config.original} names none of the pictures of {' '.join(config.dataset)}.")
    if found:
        remarks.append(
            f"Of {len(found):,} of {len(known):,} pictures the captions are known as they were before; the others "
            "count as they are."
        )
    return found
