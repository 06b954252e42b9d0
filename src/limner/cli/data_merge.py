"""``limner data merge``: one data set of several, ready for the hub."""

from __future__ import annotations

from collections import Counter

from limner.cli.parse import parse
from limner.config.data_quality import MergeData


def run(argv: list[str]) -> int:
    config = parse(MergeData, argv, "limner data merge")
    from limner.data.catalogue import load_splits
    from limner.evaluation.quality.merge import merge, push
    from limner.evaluation.quality.new_set import check_free, provenance, write_set

    check_free(config.out)
    remarks: list[str] = []
    splits = load_splits(config, remarks.append)
    done: Counter[str] = Counter()

    def told() -> list[str]:
        joined = [f"merged from {', '.join(config.dataset)}"]
        return joined + [f"{what}: {count:,}" for what, count in sorted(done.items())]

    entries = merge(splits, done, config.skip_bad_images, provenance(config.dataset))
    count = write_set(entries, config.out, f"{' and '.join(config.dataset)}", told)
    for remark in remarks:
        print(remark)
    for sentence in told():
        print(sentence.capitalize() + ".")
    print(f"{count:,} pictures are in {config.out}.")
    if config.push_to_hub:
        print(f"Pushed to {push(config.out, config.push_to_hub, private=not config.public)}.")
    return 0
