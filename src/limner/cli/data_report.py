"""``limner data report``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from limner.cli.parse import parse
from limner.config.data_quality import ReportData

if TYPE_CHECKING:
    from limner.data.records import Splits
    from limner.evaluation.quality.examine import Progress as Told

NOTES = Console(stderr=True, highlight=False)


def run(argv: list[str]) -> int:
    config = parse(ReportData, argv, "limner data report")
    from limner.evaluation.quality.examine import NOTES as ONLY_TOLD
    from limner.evaluation.quality.examine import PROPOSALS, examine
    from limner.evaluation.quality.page import write_report

    alignment = _alignment(config)
    remarks: list[str] = []
    splits = load_splits(config, remarks)
    with bar() as progress:
        originals = _originals(config)
        quality = examine(splits, originals=originals, alignment=alignment, near=config.near, progress=progress)
    quality.remarks = remarks
    title = f"Quality of {' '.join(config.dataset)}"
    folder = config.out or Path("quality") / Path(config.dataset[0]).name
    write_report(quality, title, folder)
    summary = quality.summary()
    if config.json_:
        print(json.dumps(summary | {"folder": str(folder)}, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("finding", "pictures", "what"):
        table.add_column(heading, justify="right" if heading == "pictures" else "left")
    for name, what in (PROPOSALS | ONLY_TOLD).items():
        table.add_row(name, f"{summary['findings'][name]:,}", what)
    console = Console()
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


def load_splits(config: Any, remarks: list[str], skip_bad_images: bool = True) -> Splits:
    """The records of the data sets that a data verb names; what had to be left out is told in ``remarks``."""
    from limner.data.catalogue import load_dataset_by_name
    from limner.data.catalogue.rows import Options

    options = Options(
        cache_dir=config.cache_dir,
        image_column=config.image_column,
        caption_column=config.caption_column,
        skip_bad_images=skip_bad_images,
        say=remarks.append,
    )
    return load_dataset_by_name(config.dataset, options, seed=config.seed)


@contextmanager
def bar() -> Iterator[Told]:
    """A progress bar on standard error, one for each phase."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=NOTES, transient=True) as shown:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int, unit: str) -> None:
            if phase not in tasks:
                tasks[phase] = shown.add_task(phase, total=total)
            shown.update(tasks[phase], completed=done, total=total)

        yield tell


def _alignment(config: ReportData) -> Any:
    if config.clip is None:
        return None
    from limner.device import choose
    from limner.evaluation.clipscore import Alignment

    return Alignment(config.clip, device=choose(config.device, "fp32").device)


def _originals(config: ReportData) -> dict[str, list[str]]:
    """Captions as they were: of the file that is named, or what Limner's own sets keep beside each caption."""
    from limner.data.caption_files import json_lines, read_text
    from limner.evaluation.files import read_captions

    if config.original is not None:
        return read_captions(config.original)[0]
    found: dict[str, list[str]] = {}
    for folder in map(Path, config.dataset):
        for metadata in [*folder.glob("metadata.jsonl"), *folder.glob("*/metadata.jsonl")]:
            within = "" if metadata.parent == folder else f"{metadata.parent.name}/"
            for row in json_lines(read_text(metadata), metadata):
                fields = row.fields
                if isinstance(fields, dict) and isinstance(fields.get("original_captions"), list):
                    found[f"{within}{fields['file_name']}"] = fields["original_captions"]
    return found
