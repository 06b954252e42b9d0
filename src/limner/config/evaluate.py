"""Settings of ``limner evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from limner.config.base import Config, Device, Precision, Seed, Threads


class EvaluateConfig(Config):
    """Caption a data set and score the captions; or compare two models on the same pictures."""

    targets: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The model: a folder, a hub id, a run or its checkpoint. With --before and --after: pictures or folders."""
    dataset: tuple[str, ...] = ()
    """One or more data sets: names (`limner data list`), hub ids, folders, manifests; combined."""
    split: Literal["train", "validation", "test"] = "validation"
    """Which part of the data set."""
    before: str | None = None
    """Compare: this model, of any make that transformers loads, ..."""
    after: str | None = None
    """... with this one."""
    sample: int | None = Field(default=None, ge=2)
    """Only this many pictures (seeded)."""
    image_column: str | None = None
    """The column of a hub data set that holds the picture; unset: found by its type."""
    caption_column: str | None = None
    """The column that holds the captions; unset: found by its name."""
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read, counted and named, instead of ending with an error."""
    num_beams: int | None = Field(default=None, ge=1)
    """Texts that beam search keeps at once, 1 is greedy; unset: as the model says (3)."""
    consensus: bool = True
    """Where the model remembers what people said of its training pictures: of the beams' captions and
    some drawn ones, the one that they would most agree on."""
    max_length: int | None = Field(default=None, ge=1)
    """The most tokens of a caption; unset: as the model says (30)."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures that are captioned at once."""
    meteor: Literal["auto", "java", "nltk", "off"] = "auto"
    """Which METEOR: auto takes METEOR 1.5 where Java is, else NLTK's; the report says which."""
    clip: str | None = None
    """Also CLIPScore and RefCLIPScore, or the SigLIP score, by this model (folder or hub id)."""
    out: Path | None = None
    """Where captions, scores and report go; unset: evaluations/ with the names of model and data set."""
    resume: bool = False
    """Go on with an evaluation that was interrupted: what is captioned already is kept."""
    shard: str | None = Field(default=None, pattern=r"^[1-9]\d*/[1-9]\d*$")
    """I/N: caption only the I-th of N parts. When all parts are there, the last one writes the report."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object instead of a table."""
    cache_dir: Path = Path("cache")
    """Where downloaded data is kept."""
    runs_dir: Path = Path("runs")
    """Where runs are looked for by their names."""
    revision: str | None = None
    """The revision of a hub id."""
    seed: Seed = 42
    """Of the sample, the bootstrap and the controls."""
    device: Device = "auto"
    """Where to compute: auto takes CUDA, else MPS, else the CPU."""
    precision: Precision = "auto"
    """Number format: auto is fp32, in which the words are those of stock runtimes."""
    quantize: Literal["int8"] | None = None
    """Keep the language model's weights in 8 bits."""
    threads: Threads = None
    """CPU threads; unset: one for each physical core."""

    @model_validator(mode="after")
    def _what_is_asked(self) -> EvaluateConfig:
        if (self.before is None) != (self.after is None):
            raise ValueError("Give both --before and --after, or neither.")
        if self.before is None:
            if len(self.targets) != 1:
                raise ValueError("Name one model: limner evaluate MODEL --dataset D (or --before A --after B).")
            if not self.dataset:
                raise ValueError("Say what to evaluate on: --dataset PATH_OR_NAME (`limner data list` has names).")
        elif bool(self.dataset) == bool(self.targets):
            raise ValueError("Compare on --dataset D or on pictures named at the end: one of the two.")
        if self.shard is not None:
            part, of = self.parts
            if part > of:
                raise ValueError(f"--shard {self.shard}: there is no part {part} of {of}.")
        return self

    @property
    def parts(self) -> tuple[int, int]:
        """``--shard I/N`` as numbers; (1, 1) without it."""
        if self.shard is None:
            return 1, 1
        part, _, of = self.shard.partition("/")
        return int(part), int(of)
