"""``limner data label``: captions from a teacher."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from limner.cli.parse import parse
from limner.cli.review import places
from limner.cli.telling import bar, note
from limner.config.data_quality import LabelData

if TYPE_CHECKING:
    from limner.evaluation.quality.label import Estimate


def run(argv: list[str]) -> int:
    config = parse(LabelData, argv, "limner data label")
    from limner.data.catalogue import load_splits
    from limner.data.records import SPLITS
    from limner.evaluation.quality.label import AnswerLog, estimate, label, labelled
    from limner.evaluation.quality.new_set import Seal, check_free, write_set
    from limner.evaluation.quality.teacher import GUIDELINE, Rate, Teacher

    answers = config.out.with_name(config.out.name + ".answers")
    prompt = _prompt(config.prompt) if config.prompt else GUIDELINE
    asked = {"model": config.model, "prompt": prompt, "rewrite": config.rewrite}
    seal = Seal(answers / "made", {"dataset": places(config.dataset), **asked})
    check_free(config.out, seal)  # a set that was made from these answers is made anew
    teacher = Teacher(
        config.endpoint,
        config.model,
        os.environ.get(config.api_key_env),
        timeout=config.timeout,
        retries=config.retries,
        max_side=config.max_side,
        rate=Rate(config.per_minute) if config.per_minute else None,
    )
    remarks: list[str] = []
    splits = load_splits(config, remarks.append, skip_bad_images=True, uncaptioned=not config.rewrite)
    pairs = [(record, split) for split in SPLITS for record in splits[split]][: config.sample]
    records = [record for record, _ in pairs]
    log = AnswerLog(answers, config.model, prompt, config.rewrite)
    left = sum(log.caption(record) is None for record in records)
    told = estimate(left, prompt, config.max_side, config.price_in, config.price_out, config.per_minute)
    for line in [*remarks, _sentence(told, len(records))]:
        note(line)
    if left and not config.yes and not _agreed():
        print("Nothing was asked.")
        return 1
    with bar() as progress:
        refused = label(
            records,
            teacher,
            log,
            concurrency=config.concurrency,
            progress=lambda done, total: progress("asking the teacher", done, total, "pictures"),
        )
    for reason in refused[:20]:
        note(f"No caption for {reason}")
    if refused:
        note(f"{len(refused):,} pictures have no caption; the same command asks for them again.")
        if len(refused) == len(records):
            return 1
    title = f"{' '.join(config.dataset)}, captioned by {config.model}"
    sentences = [f"captions by {config.model} at {config.endpoint}", f"prompt: {' '.join(prompt.split())}"]
    count = write_set(labelled(pairs, log), config.out, title, lambda: sentences, seal)
    print(f"{count:,} pictures are in {config.out}; every answer is in {log.path}.")
    return 0


def _prompt(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"{path} is empty; a prompt is needed.")
    return text


def _sentence(told: Estimate, total: int) -> str:
    cost = (
        f"{told.cost:.2f} at the prices given"
        if told.cost is not None
        else "unknown without --price-in, --price-out"
    )
    minutes = f"; at least {told.minutes:.0f} minutes by the rate limit" if told.minutes else ""
    done = f" ({total - told.pictures:,} are answered already)" if told.pictures < total else ""
    return (
        f"{told.pictures:,} pictures to ask about{done}: about {told.input_tokens:,} tokens in and "
        f"{told.output_tokens:,} out; cost {cost}{minutes}."
    )


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ValueError("Add --yes to go on: nobody is here to agree to the cost.")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
