"""Settings of ``limner generate``: a prompt, continued."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from limner.config.base import Config, Device, Precision, Seed, Threads


class GenerateConfig(Config):
    """Continue a prompt with a language model."""

    model: tyro.conf.Positional[str]
    """A run of limner pretrain (an unfinished one is read at its latest checkpoint), a checkpoint's folder, a model
    folder in stock format, or a hub id."""
    prompt: str = ""
    """The text to continue; - reads it from standard input. Unset: begin a new text."""
    temperature: float = Field(default=0.8, ge=0)
    """0 takes the likeliest token each time; below 1 stays near the likely ones, above 1 strays from them."""
    top_k: int = Field(default=0, ge=0)
    """Draw among this many likeliest tokens; 0: among all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the fewest likeliest tokens whose probabilities reach this sum."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw among tokens at least this probable relative to the likeliest."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1: makes tokens that the text already has less likely."""
    max_tokens: int = Field(default=100, ge=1)
    """Tokens to generate at most."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """End as soon as this string has been said; may be given several times."""
    seed: Seed = 42
    """The same seed, prompt and settings give the same text."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object at the end: the text, and each token with its log-probability."""
    device: Device = "auto"
    """Where to compute: auto takes CUDA, else MPS, else the CPU."""
    precision: Precision = "fp32"
    """Number format of the weights; auto takes bf16 where this machine is measurably faster in it."""
    quantize: Literal["int8"] | None = None
    """Keep the weights in 8 bits: faster, at a small loss."""
    threads: Threads = None
    """CPU threads; unset: one for each physical core."""
    runs_dir: Path = Path("runs")
    """Where a run is looked for by name."""

    @model_validator(mode="after")
    def _used(self) -> GenerateConfig:
        if "" in self.stop:
            raise ValueError("A --stop is empty, and every text begins with that; give a string, or leave it out.")
        if self.temperature == 0 and (self.top_k or self.top_p < 1 or self.min_p):
            raise ValueError(
                "With --temperature 0 nothing is drawn: --top-k, --top-p and --min-p would be ignored; "
                "leave them out, or set a temperature above 0."
            )
        return self
