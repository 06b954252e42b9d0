"""The loss of a language model without its logits.

A batch of 8 x 256 tokens and a vocabulary of 50,257 make 103 million logits: 412 MB in fp32, and as much again for
their gradient: more than everything else of a 30 M model together. But the loss needs of each row of logits only
two numbers, and its gradient only products with the row. So rows are taken some at a time, and each chunk's logits
are gone before the next one's are made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 256


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = CHUNK_ROWS) -> Tensor:
    """Sum over supervised tokens of -log softmax(hidden @ weight.T)[target], in fp32: a scalar.

    Args:
        hidden: (..., D), the states before the head, fp32 or bf16; products are made in its dtype.
        weight: (V, D), the head's matrix.
        targets: (...) int64; -100 is not supervised.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk_rows)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's logits are there; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int) -> Tensor:
        needs_gradient = hidden.requires_grad or weight.requires_grad
        matrix = weight.to(hidden.dtype)  # (V, D)
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            loss, logits_gradient = _chunk(hidden[rows] @ matrix.T, targets[rows], needs_gradient)
            total += loss
            if hidden_gradient is not None and weight_gradient is not None:
                hidden_gradient[rows] = logits_gradient @ matrix
                weight_gradient += logits_gradient.T @ hidden[rows]
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        (scale,) = scales
        return (
            hidden_gradient * scale.to(hidden_gradient.dtype),
            (weight_gradient * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def _chunk(logits: Tensor, targets: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor]:
    """The summed loss of (R, V) logits, and softmax - onehot, in the logits' dtype."""
    values = logits.float()
    supervised = targets >= 0  # (R)
    picked = targets.clamp(min=0)[:, None]  # (R, 1)
    normalizer = values.logsumexp(-1, keepdim=True)  # (R, 1)
    loss = ((normalizer - values.gather(1, picked)).squeeze(1) * supervised).sum()
    if not needs_gradient:
        return loss, logits
    gradient = torch.exp(values - normalizer)
    gradient.scatter_add_(1, picked, -torch.ones_like(picked, dtype=gradient.dtype))
    return loss, (gradient * supervised[:, None]).to(logits.dtype)
