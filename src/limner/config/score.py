"""Settings of ``limner score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from limner.config.base import Config, Seed


class ScoreConfig(Config):
    """Score captions against references, without a model."""

    predictions: Annotated[Path, tyro.conf.Positional]
    """Captions: COCO results, {image: caption} as JSON, JSONL, CSV, or what `limner caption` printed (.tsv)."""
    references: Annotated[Path, tyro.conf.Positional]
    """References: COCO captions, {image: [captions]} as JSON, JSONL or CSV."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object instead of a table."""
    per_image: bool = False
    """Also the scores of each image."""
    split: str | None = None
    """Of references that name splits, only this one."""
    corpus: Path | None = None
    """Take CIDEr's document frequencies from this file instead of from the references."""
    save_corpus: Path | None = None
    """Write CIDEr's document frequencies of the references to this file."""
    meteor: Literal["auto", "java", "nltk", "off"] = "auto"
    """Which METEOR: auto takes METEOR 1.5 where Java is, else NLTK's; the output says which."""
    spice: bool = False
    """Also SPICE, where Java and its models are; slow."""
    seed: Seed = 42
    """Of the bootstrap, and of the shuffling and drawing in the controls."""
