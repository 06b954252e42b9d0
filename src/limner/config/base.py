"""What every verb's settings share, and their way back to a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Threads = Annotated[int | None, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Config(BaseModel):
    """Settings of one verb. Unknown fields are refused: a setting that would be ignored is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class RunConfig(Config):
    """What every verb that makes a run takes, beside its own settings."""

    runs_dir: Path = Path("runs")
    """The folder in which the run's folder is made."""
    name: str | None = None
    """The run's name; unset: verb, data set and date. The name of an unfinished run resumes it."""
    resume: str | None = None
    """Continue this run (a name or a folder) from its latest checkpoint, exactly where it stood."""
    force_new: bool = False
    """Start over beside an unfinished run of the same name instead of resuming it."""
    seed: Seed = 42
    """Seeds weights, order, dropout and sampling: the same seed on the same machine gives the same run."""
    device: Device = "auto"
    """Where to compute: auto takes CUDA, else MPS, else the CPU."""
    precision: Precision = "auto"
    """Number format of the computation: auto takes bf16 where this machine is measurably faster in it."""
    threads: Threads = None
    """CPU threads; unset: one for each physical core."""

    def subject(self) -> str:
        """What a default run name tells between verb and date: the data set, the corpus."""
        return ""


def command_line(verb: str, config: Config) -> list[str]:
    """The shortest command that gives this configuration: only what differs from the defaults.

    Returns:
        Arguments for a subprocess, beginning with ``limner`` and the verb. Positional fields (those annotated
        with ``tyro.conf.Positional``) come first, as the command expects them.
    """
    positional: list[str] = []
    options: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if any("positional" in str(marker).lower() for marker in field.metadata):
            positional += _words(value)
        elif value != field.get_default(call_default_factory=True):
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                options.append(flag if value else flag.replace("--", "--no-", 1))
            elif any("append" in str(marker).lower() for marker in field.metadata):
                options += [word for item in _words(value) for word in (flag, item)]  # a repeated flag
            else:
                options += [flag, *_words(value)]
    return ["limner", verb, *positional, *options]


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    if isinstance(value, dict):
        return [str(part) for pair in value.items() for part in pair]
    return [str(value)]
