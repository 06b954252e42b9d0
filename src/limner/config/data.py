"""Settings of ``limner data list`` and ``limner data prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from limner.config.base import Config


class ListData(Config):
    """The data sets that Limner knows by name, and those that are on this machine."""

    cache_dir: Path = Path("cache")
    """Where downloaded data is kept."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """One JSON object a line."""


class PrepareData(Config):
    """Download data sets ahead and make them ready; interrupted, the same command goes on where it stopped."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """Names (`limner data list`), hub ids, folders, or `all`."""
    cache_dir: Path = Path("cache")
    """Where downloaded data is kept."""
    image_column: str | None = None
    """The column of a hub data set that holds the picture; unset: found by its type."""
    caption_column: str | None = None
    """The column that holds the caption or captions; unset: found by its name."""
    check_pictures: bool = False
    """Also decode every picture, and name those that cannot be."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """One JSON object a data set."""
