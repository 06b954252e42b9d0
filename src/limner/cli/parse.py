"""From arguments to a typed configuration: tyro renders the pydantic models."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def parse(config_type: type[T], argv: list[str], prog: str, description: str | None = None) -> T:
    """Parses ``argv`` into ``config_type``; exits with tyro's help or its error when that is what is due.

    ``--debug`` (which shows tracebacks) is taken by `limner.cli.main` and dropped here, unless the
    configuration has a field of that name.
    """
    import tyro

    if "--debug" in argv and "debug" not in getattr(config_type, "model_fields", {}):
        argv = [word for word in argv if word != "--debug"]
    return tyro.cli(config_type, args=argv, prog=prog, description=description)
