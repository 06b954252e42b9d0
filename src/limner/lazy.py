"""Names of a package that are loaded on first use: importing a room stays light, and its main things are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: its ``__name__``.
        homes: of each name the module that has it, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(homes[name], package), name)

    def names() -> list[str]:
        return sorted({*import_module(package).__dict__, *homes})

    return get, names
