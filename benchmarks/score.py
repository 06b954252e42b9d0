"""How long the metrics of 5,000 images with five references take, part by part, on one core.

    taskset -c 0 python benchmarks/score.py [--images 5000] [--captions captions.jsonl]

The references are real where ``--captions`` (or the test data) gives them, else made of random words. METEOR is
timed apart: the reference implementation is a Java program that takes seconds to read its paraphrases.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limner.evaluation import Scorer, ptb_tokenize, score
from limner.evaluation.controls import controls
from limner.evaluation.meteor import find_meteor

HERE = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LIMNER_TEST_DATA", HERE.parent / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=Path, default=DATA / "flickr8k" / "captions_train_dev.jsonl")
    options = parser.parse_args()
    references = _references(options.captions, options.images)
    chooser = random.Random(0)
    keys = list(references)
    predictions = {key: chooser.choice(references[chooser.choice(keys)]) for key in keys}
    print(f"{len(references)} images, {sum(map(len, references.values()))} references")

    texts = [text for group in references.values() for text in group] + list(predictions.values())
    _timed("tokenization alone", lambda: [ptb_tokenize(text) for text in texts])
    scorer = _timed("references: tokens, n-grams, CIDEr vectors", lambda: Scorer(references))
    _timed("BLEU, ROUGE-L, CIDEr-D of one set of captions", lambda: scorer.score(predictions))
    _timed("controls", lambda: controls(scorer, predictions))
    _timed("score(): all without METEOR, from raw text", lambda: score(predictions, references, meteor="off"))
    for choice in ("nltk", "java"):
        try:
            implementation = find_meteor(choice)
        except ImportError as missing:
            print(f"METEOR: {missing}")
            continue
        assert implementation is not None
        _timed(
            f"score() with {implementation.name}",
            lambda choice=choice: score(predictions, references, meteor=choice),
        )


def _references(path: Path, num_images: int) -> dict[str, list[str]]:
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text().splitlines()[:num_images]]
        return {row["image"]: row["captions"] for row in rows}
    chooser = random.Random(1)
    words = [f"word{i}" for i in range(5000)]
    weights = [1 / (i + 1) for i in range(5000)]
    return {
        str(i): [" ".join(chooser.choices(words, weights, k=chooser.randint(6, 16))) for _ in range(5)]
        for i in range(num_images)
    }


def _timed(name: str, work: Callable[[], Any]) -> Any:
    began, before = time.perf_counter(), os.times()
    result = work()
    wall, after = time.perf_counter() - began, os.times()
    own, children = after.user - before.user, after.children_user - before.children_user
    print(f"{name:<52} {wall:6.2f} s wall, {own:6.2f} s of this process, {children:6.2f} s of others")
    return result


if __name__ == "__main__":
    main()
