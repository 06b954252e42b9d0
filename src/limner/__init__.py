"""Limner: a workshop for small models that put pictures into words.

The names below are loaded on first use, so that ``import limner`` stays light (no torch).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from limner.lazy import lazy_names

if TYPE_CHECKING:
    from limner.decoding.captioner import Captioner, load_captioner

# transformers imports torchao where that is installed, and torchao names every kernel of it that does not fit this
# Python: nothing that a user could mend. Who has set a level wants to hear it.
for _logger in map(logging.getLogger, ("torchao", "torch.utils._pytree")):
    if _logger.level == logging.NOTSET:
        _logger.setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["Captioner", "__version__", "load_captioner"]
__getattr__, __dir__ = lazy_names(
    __name__, {"Captioner": ".decoding.captioner", "load_captioner": ".decoding.captioner"}
)
