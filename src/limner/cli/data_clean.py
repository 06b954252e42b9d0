"""``limner data clean``: what the report proposes, into a new data set."""

from __future__ import annotations

from typing import get_args

from rich.console import Console

from limner.cli.parse import parse
from limner.cli.telling import bar
from limner.config.data_quality import Action, CleanData


def run(argv: list[str]) -> int:
    config = parse(CleanData, argv, "limner data clean")
    from limner.data.catalogue import load_splits
    from limner.evaluation.quality.clean import Cleaning, clean
    from limner.evaluation.quality.examine import examine
    from limner.evaluation.quality.new_set import check_free, provenance, write_set

    check_free(config.out)
    remarks: list[str] = []
    splits = load_splits(config, remarks.append, skip_bad_images=True)
    with bar() as progress:
        quality = examine(splits, near=config.near, progress=progress)
    actions = [action for action in get_args(Action) if action not in config.keep]
    cleaning = Cleaning()
    entries = clean(quality, actions, cleaning, provenance(config.dataset))
    if config.dry_run:
        kept = sum(1 for _ in entries)
    else:
        kept = write_set(entries, config.out, f"{' '.join(config.dataset)}, cleaned", cleaning.sentences)
    console = Console(highlight=False)
    for line in [*remarks, *(sentence.capitalize() + "." for sentence in cleaning.sentences())]:
        console.print(line, markup=False, soft_wrap=True)
    would = "would be left" if config.dry_run else f"are in {config.out}"
    console.print(f"{kept:,} of {len(quality.examples):,} pictures {would}; the source is as it was.", markup=False)
    return 0
