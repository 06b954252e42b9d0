"""``limner data``: list and prepare data sets; the verbs that judge and change them are modules of their own."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

from rich.table import Table

from limner.cli.parse import parse
from limner.cli.telling import NOTES, answers, json_line, note
from limner.config.data import ListData, PrepareData

VERBS = {
    "list": "the data sets that Limner knows, and those that are on this machine",
    "prepare": "download data sets ahead and make them ready",
    "report": "what is in a data set, and what is wrong with it",
    "clean": "leave out what is broken, repeated or mistaken",
    "merge": "make one data set of several",
    "label": "caption pictures with a model",
}
_ELSEWHERE = ("report", "clean", "merge", "label")


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: limner data VERB [--help] ...\n")
        print("\n".join(f"  {verb:<8} {text}" for verb, text in VERBS.items()))
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        raise ValueError(f"There is no verb 'data {verb}'; choose one of {', '.join(VERBS)}.")
    if verb in _ELSEWHERE:
        return import_module(f"limner.cli.data_{verb}").run(rest)
    return _list(rest) if verb == "list" else _prepare(rest)


def _list(argv: list[str]) -> int:
    config = parse(ListData, argv, "limner data list")
    from limner.data.catalogue import CATALOGUE, module_of
    from limner.data.catalogue.rows import Options
    from limner.data.catalogue.storage import prepared
    from limner.data.sizes import size

    options = Options(cache_dir=config.cache_dir)
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "pictures", "on this disk", "from", "what"):
        number = heading in ("pictures", "on this disk")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for name in CATALOGUE:
        module = module_of(name)
        here = prepared(name, options)
        about = (module.__doc__ or "").splitlines()[0]
        known = here.pictures if here else getattr(module, "NUM_IMAGES", None)
        row: dict[str, Any] = {
            "name": name,
            "repository": module.REPOSITORY,
            "pictures": known,
            "captions": here.captions if here else None,
            "bytes": here.num_bytes if here else None,
            "prepared": here is not None,
            "about": about,
        }
        if config.json_:
            print(json_line(row))
        source = module.REPOSITORY or ("drawn here" if name == "scenes" else "local files")
        table.add_row(name, f"{known:,}" if known else "", size(here.num_bytes) if here else "", source, about)
    if not config.json_:
        answers().print(table)
        print(
            "\nAlso: any hub id; a folder, manifest or .tar shards of your own. `all`: every data set of the hub."
        )
    return 0


def _prepare(argv: list[str]) -> int:
    config = parse(PrepareData, argv, "limner data prepare")
    from limner.data.catalogue import describe, expand, load_dataset_by_name, repository_of
    from limner.data.catalogue.rows import Options
    from limner.data.catalogue.storage import check_room, prepared
    from limner.data.loading import check_images
    from limner.data.sizes import size

    options = Options.of(config, note)
    for name in expand(config.names):
        repository = repository_of(name)
        if repository is not None and prepared(name, options) is None:
            check_room(name, repository, options)
        splits = load_dataset_by_name([name], options)
        records = [*splits.train, *splits.validation, *splits.test]
        sound = len(records)
        if config.check_pictures:
            with NOTES.status(f"{name}: decoding {len(records):,} pictures"):
                good, remarks = check_images(records, skip_bad_images=True)
            sound = len(good)
            for remark in remarks:
                note(f"{name}: {remark.replace(' They are left out.', '')}")
        here = prepared(name, options)
        if config.json_:
            print(json.dumps(_facts(name, splits, here.num_bytes if here else None, len(records) - sound)))
        else:
            kept = f"; {size(here.num_bytes)} in {config.cache_dir}" if here else ""
            print(f"{name}: {describe(splits)}{kept}")
        sys.stdout.flush()
    return 0


def _facts(name: str, splits: Any, num_bytes: int | None, unreadable: int) -> dict[str, Any]:
    return {
        "name": name,
        **{split: len(splits[split]) for split in ("train", "validation", "test")},
        "captions": sum(len(r.captions) for part in (splits.train, splits.validation, splits.test) for r in part),
        "bytes": num_bytes,
        "unreadable": unreadable,
    }
