"""Limner: a workshop for small models that put pictures into words.

The names below are loaded on first use, so that ``import limner`` stays light (no torch).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.decoding.captioner import Captioner, load_captioner

# transformers imports torchao where that is installed, and torchao names every kernel of it that does not fit this
# Python: nothing that a user could mend.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["Captioner", "__version__", "load_captioner"]

_LAZY = {"Captioner": "limner.decoding.captioner", "load_captioner": "limner.decoding.captioner"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'limner' has no attribute '{name}'")
