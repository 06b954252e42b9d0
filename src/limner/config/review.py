"""Settings of ``limner review``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from limner.config.base import Config, Seed


class ReviewConfig(Config):
    """Accept, edit or reject captions in a page, one picture at a time, by keyboard."""

    dataset: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """One or more data sets: names (`limner data list`), hub ids, folders, manifests, .tar shards."""
    out: Path | None = None
    """The folder of the decisions and of the new data set; unset: reviews/ with the data set's name."""
    split: Literal["train", "validation", "test"] | None = None
    """Only this part; unset: all."""
    captions: Path | None = None
    """Review these captions (a predictions file, as `limner score` takes) instead of the data set's own."""
    sample: int | None = Field(default=None, ge=1)
    """Only this many pictures (seeded)."""
    port: int = Field(default=8010, ge=0, le=65535)
    """The port on 127.0.0.1; the next free one where it is taken."""
    browser: bool = True
    """Open the page in a browser."""
    image_column: str | None = None
    """The column of a hub data set that holds the picture; unset: found by its type."""
    caption_column: str | None = None
    """The column that holds the caption or captions; unset: found by its name."""
    cache_dir: Path = Path("cache")
    """Where downloaded data is kept."""
    seed: Seed = 42
    """Of the sample, and of the splits where the data set names none."""
