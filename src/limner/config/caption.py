"""Settings of ``limner caption``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from limner.config.base import Config, Device, Precision, Threads


class CaptionConfig(Config):
    """Put pictures into words: one line a picture, its path, a tab, its caption."""

    model: Annotated[str, tyro.conf.Positional]
    """A model directory, a run, or a hub id."""
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Picture files, folders of pictures, glob patterns, - for a picture on standard input, or addresses."""
    runs_dir: Path = Path("runs")
    """Where runs are looked for by their names."""
    allow_urls: bool = False
    """Fetch pictures from http and https addresses."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """One JSON object a line: path, caption, tokens, token_logprobs, mean_logprob, score, ending, seconds."""
    num_beams: int | None = Field(default=None, ge=1)
    """Texts that beam search keeps at once, 1 is greedy; unset: as the model says (3)."""
    consensus: bool = True
    """Where the model remembers what people said of its training pictures: of the beams' captions and
    some drawn ones, the one that they would most agree on."""
    max_length: int | None = Field(default=None, ge=1)
    """The most tokens of a caption; unset: as the model says (30)."""
    abstain_below: float | None = None
    """Say "(not sure)" where a caption's mean log-probability (mean_logprob in --json) is below this: -1, say."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures that are captioned at once."""
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read, counted and named, and end without an error."""
    device: Device = "auto"
    """Where to compute: auto takes CUDA, else MPS, else the CPU."""
    precision: Precision = "auto"
    """Number format: auto is fp32, which says what stock runtimes say; bf16 is faster on machines made for it."""
    quantize: Literal["int8"] | None = None
    """Keep the language model's weights in 8 bits: faster, at a small loss."""
    threads: Threads = None
    """CPU threads; unset: one for each physical core."""
    revision: str | None = None
    """The revision of a hub id."""
