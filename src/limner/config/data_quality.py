"""Settings of ``limner data report``, ``clean``, ``merge`` and ``label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from limner.config.base import Config, Device, Seed

Action = Literal["broken", "duplicate", "leak", "short", "long", "repeated", "opening", "spacing"]


class _OneSet(Config):
    """What the verbs that read a data set share."""

    dataset: Annotated[tuple[str, ...], tyro.conf.Positional] = Field(min_length=1)
    """One or more data sets: names (`limner data list`), hub ids, folders, manifests, .tar shards."""
    image_column: str | None = None
    """The column of a hub data set that holds the picture; unset: found by its type."""
    caption_column: str | None = None
    """The column that holds the caption or captions; unset: found by its name."""
    cache_dir: Path = Path("cache")
    """Where downloaded data is kept."""
    seed: Seed = 42
    """Of the splits, where the data set names none."""


class ReportData(_OneSet):
    """What is in a data set, and what is wrong with it: JSON, a CSV of every picture, and a page to look at."""

    out: Path | None = None
    """The folder of report.json, examples.csv and report.html; unset: quality/ with the data set's name."""
    clip: str | None = None
    """A CLIP or SigLIP model (folder or hub id) that judges how well captions fit their pictures."""
    original: Path | None = None
    """A file of the captions before they were rewritten, to compare with; sets that Limner made have them."""
    near: int = Field(default=4, ge=0, le=16)
    """Bits of the 64-bit picture hash in which near-duplicates differ at most."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the summary as one JSON object."""
    device: Device = "auto"
    """Where the CLIP model computes."""


class CleanData(_OneSet):
    """Do what the report proposes, into a new data set; the source is never touched."""

    out: Path
    """The folder of the new data set; it must not exist, or be empty."""
    keep: tuple[Action, ...] = ()
    """Proposals that are not followed (`limner data report` names them)."""
    near: int = Field(default=4, ge=0, le=16)
    """Bits of the 64-bit picture hash in which near-duplicates differ at most."""
    dry_run: bool = False
    """Only say what would be done."""


class MergeData(_OneSet):
    """Make one data set of several, ready for the hub: each picture once, with the captions of all."""

    out: Path
    """The folder of the new data set; it must not exist, or be empty."""
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read, counted, instead of ending with an error."""
    push_to_hub: str | None = None
    """Also upload it to this data set on the hub (owner/name), private unless --public."""
    public: bool = False
    """Make a data set that is new on the hub public."""


class LabelData(_OneSet):
    """Caption pictures, or rewrite their captions, with a vision model behind an OpenAI-compatible endpoint."""

    out: Path
    """The folder of the new data set; answers are kept in OUT.answers, from which an interrupted run goes on."""
    endpoint: str
    """The endpoint's address, such as http://localhost:8000/v1."""
    model: str
    """The model's name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; it is sent to the endpoint only, and stored nowhere."""
    prompt: Path | None = None
    """A file with another prompt than the documented guideline."""
    rewrite: bool = False
    """Show the teacher the first caption there is, and have it rewritten."""
    sample: int | None = Field(default=None, ge=1)
    """Only the first so many pictures, to try."""
    per_minute: float | None = Field(default=60, gt=0)
    """Requests a minute at most."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Requests under way at once."""
    retries: int = Field(default=6, ge=0)
    """Times that a failed request is sent again, after growing random pauses."""
    timeout: float = Field(default=60, gt=0)
    """Seconds for one request."""
    max_side: int = Field(default=512, ge=64)
    """Pictures are sent as JPEG, at most this long on a side."""
    price_in: float | None = Field(default=None, ge=0)
    """Price of a million input tokens, for the estimate."""
    price_out: float | None = Field(default=None, ge=0)
    """Price of a million output tokens, for the estimate."""
    yes: bool = False
    """Do not ask whether the estimated cost is wanted."""
