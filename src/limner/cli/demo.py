"""``limner demo``: train a captioner from nothing on drawn scenes, and prove that it sees."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from limner.cli.parse import option, parse
from limner.config.demo import DemoConfig

if TYPE_CHECKING:
    from limner.training.demo import Captioned, Demo, Figures

TABLE_ROWS = 6


def run(argv: list[str]) -> int:
    default = None
    resumed = option(argv, "--resume")
    if resumed is not None:
        from limner.training.opening import saved_settings

        default = DemoConfig(**saved_settings(resumed, option(argv, "--runs-dir") or "runs", "demo"))
    config = parse(DemoConfig, argv, "limner demo", default=default)
    as_json, config = config.json_, config.model_copy(update={"json_": False})

    from limner.training.demo import run_demo

    messages = Console(stderr=True, highlight=False)
    demo = run_demo(config, lambda text: messages.print(text, markup=False, soft_wrap=True))
    if demo.figures is None:
        return 130 if demo.result.interrupted else 0
    if as_json:
        print(json.dumps(asdict(demo.figures)))
    else:
        _tell(demo, demo.figures, Console(highlight=False))
    return 0


def _tell(demo: Demo, figures: Figures, console: Console) -> None:
    assert demo.unseen is not None and demo.held_out is not None
    console.print()
    console.print(_captions("Scenes it never saw", demo.unseen))
    console.print(_captions("Combinations it never saw", demo.held_out))
    table = Table(title="How often the caption is exactly right", title_justify="left")
    for heading in ("", "exact match", "CIDEr-D"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("unseen scenes", f"{figures.exact_match_unseen:.1%}", "")
    table.add_row("held-out combinations", f"{figures.exact_match:.1%}", f"{figures.cider:.2f}")
    table.add_row(
        "the same, pictures shuffled", f"{figures.shuffled_exact_match:.1%}", f"{figures.shuffled_cider:.2f}"
    )
    console.print(table)
    console.print(
        f"Trained in {figures.train_seconds:.0f} s at {figures.captions_per_second:,.0f} captions/s, "
        f"{figures.peak_memory_mb:,.0f} MB of memory at most.",
        markup=False,
    )
    console.print(f"The contact sheet: {demo.sheet}\n\nNow try:", markup=False, soft_wrap=True)
    for command in next_steps(figures.run, figures.model):
        console.print("  " + command, markup=False, soft_wrap=True)


def next_steps(run: str, model: str) -> list[str]:
    """Commands that a person may try after the demo, whose run and model these are."""
    return [
        f"limner caption {model} {run}/samples",
        f"limner runs tail {run}",
        "limner train --dataset FOLDER_OF_YOUR_PICTURES",
        "limner serve",
    ]


def _captions(title: str, captioned: Captioned) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("one true caption", "what the model says", ""):
        table.add_column(heading)
    rows = zip(captioned.scenes, captioned.captions, captioned.accepted, strict=True)
    for scene, caption, right in list(rows)[:TABLE_ROWS]:
        table.add_row(scene.captions(1)[0], caption, "[green]right[/]" if right else "[red]wrong[/]")
    return table
