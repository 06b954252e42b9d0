"""The models: a GPT written to be read, the captioner, and their stock checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limner.lazy import lazy_names

if TYPE_CHECKING:
    from limner.models.captioner import PrefixConditioningVLM
    from limner.models.gpt import FeedForward, GPTConfig, GPTModel, MultiHeadAttention, TransformerBlock
    from limner.models.projection import ProjectionHead

__all__ = [
    "FeedForward",
    "GPTConfig",
    "GPTModel",
    "MultiHeadAttention",
    "PrefixConditioningVLM",
    "ProjectionHead",
    "TransformerBlock",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    dict.fromkeys(__all__, ".gpt") | {"PrefixConditioningVLM": ".captioner", "ProjectionHead": ".projection"},
)
