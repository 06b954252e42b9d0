"""The trainable map from the vision encoder's width to the language model's: what turns patches into a prefix."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

ProjectionType = Literal["linear", "mlp"]

# Letters: B pictures, P prefix tokens, Dv the vision width, D the language model's embedding width.


class ProjectionHead(nn.Module):
    """``linear``: one affine map. ``mlp``: affine, tanh-GELU, affine, both layers at the language model's width.

    These are the two shapes that LLaVA's projector can hold (Liu et al. 2023, "Improved baselines with visual
    instruction tuning", for the two-layer one). The tanh approximation is the only GELU that transformers, vLLM
    and ggml compute alike.

    Args:
        vision_width: Dv, width of the encoder's features.
        text_width: D, width of the language model's embeddings.
        kind: "linear" or "mlp".

    Raises:
        ValueError: ``kind`` is neither.
    """

    def __init__(self, vision_width: int, text_width: int, kind: ProjectionType = "linear"):
        super().__init__()
        if kind not in get_args(ProjectionType):
            raise ValueError(f"There is no projection type '{kind}'; choose linear or mlp.")
        self.kind = kind
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width) if kind == "mlp" else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, P, Dv) -> (B, P, D), in the projection's own dtype."""
        prefix = self.linear_1(features.to(self.linear_1.weight.dtype))  # (B, P, D)
        if self.linear_2 is None:
            return prefix
        return self.linear_2(nn.functional.gelu(prefix, approximate="tanh"))
