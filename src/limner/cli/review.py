"""``limner review``: captions accepted, edited or rejected in a page."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from limner.cli.parse import parse
from limner.cli.telling import note
from limner.config.review import ReviewConfig

if TYPE_CHECKING:
    from limner.data.records import Record, Split
    from limner.evaluation.review import Review
    from limner.evaluation.review_server import ReviewServer

PORTS_TRIED = 20


def run(argv: list[str]) -> int:
    config = parse(ReviewConfig, argv, "limner review")
    from limner.evaluation.review import Review

    folder = config.out or Path("reviews") / Path(config.dataset[0]).name
    captions = config.captions and str(config.captions.resolve())
    review = Review(_records(config), folder, {"dataset": places(config.dataset), "captions": captions})
    for remark in review.remarks:
        note(remark)
    server = _serve(review, config.port)
    done = sum(item["decision"] is not None for item in review.state()["items"])
    print(f"{len(review.records):,} pictures, {done:,} decided. Open {server.address}", flush=True)
    print("Ctrl-C ends it; every decision is written as it is made.", flush=True)
    if config.browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()  # below the ^C
    finally:
        server.server_close()
        review.close()
    print(f"The reviewed data set: --dataset {folder}")
    return 0


def places(names: tuple[str, ...]) -> list[str]:
    """Data sets as they are told apart: of this machine's, the whole path."""
    return [str(Path(name).resolve()) if Path(name).exists() else name for name in names]


def _records(config: ReviewConfig) -> list[tuple[Record, Split]]:
    from limner.data.catalogue import load_splits
    from limner.data.records import SPLITS, sampled

    splits = load_splits(config, note, skip_bad_images=True)
    wanted = SPLITS if config.split is None else (config.split,)
    pairs = [(record, split) for split in wanted for record in splits[split]]
    if config.captions is not None:
        from limner.evaluation.files import match, read_captions

        references = {record.image_id: record.captions for record, _ in pairs}
        found = match(read_captions(config.captions)[0], references, {})
        pairs = [(replace(r, captions=found[r.image_id]), split) for r, split in pairs if r.image_id in found]
    return sampled(pairs, config.sample, config.seed)


def _serve(review: Review, port: int) -> ReviewServer:
    from limner.evaluation.review_server import ReviewServer

    for candidate in range(port, min(port + PORTS_TRIED, 65536)) if port else [0]:
        try:
            return ReviewServer(review, candidate)
        except OSError as error:
            taken = error
    raise OSError(f"No port from {port} on is free ({taken}); name another with --port.")
