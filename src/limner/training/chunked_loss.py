"""The loss of a language model without its logits.

A batch of 8 x 256 tokens and a vocabulary of 50,257 make 103 million logits: 412 MB in fp32, and as much again for
their gradient: more than everything else of a 30 M model together. But the loss needs of a row of logits only two
numbers, and the gradient only products with its softmax. So rows are taken some at a time, and a chunk's logits are
gone before the next chunk's are made.

With l = h W^T the logits of a row, t its target, e = exp(l - max l) and Z = sum e:

    loss    = max l + log Z - l[t]
    dh      = (e W) / Z - W[t]
    dW      = e^T (h / Z),  less h in row t

The softmax e / Z is never formed: dividing the thin results by Z is cheaper than dividing the wide e, and e, at
most 1, loses nothing in bf16 that the softmax would keep.

Letters in the shape comments: R rows of a chunk, N rows of all, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 128 * 2**20
"""Logits held at once (and as much of their exponentials): 1,335 rows in bf16 at 50,257 tokens."""


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None = None, compiled: bool = False
) -> Tensor:
    """Sum over supervised tokens of -log softmax(hidden @ weight.T)[target]: a scalar in fp32.

    Sums and exponentials are fp32; under autocast the products are made in its dtype.

    Args:
        hidden: (..., D), the states before the head.
        weight: (V, D), the head's matrix; where it does not train, its gradient is not made.
        targets: (...) int64; -100 is not supervised.
        chunk_rows: rows whose logits are held at once; None: as many as `CHUNK_BYTES` has room for.
        compiled: take the exponentials with a compiled kernel; pays from some hundred steps on.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    exponentials = _compiled() if compiled else _exponentials
    with torch.autocast(kind, enabled=False):
        rows = hidden.flatten(0, -2).to(dtype)  # (N, D)
        if chunk_rows is None:
            most = max(1, CHUNK_BYTES // (len(weight) * dtype.itemsize))
            chunk_rows = -(-len(rows) // -(-len(rows) // most))  # as many chunks as needed, all about equal
        return _ChunkedCrossEntropy.apply(rows, weight, targets.flatten(), chunk_rows, exponentials)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's logits are there; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, exponentials: Callable
    ) -> Tensor:
        matrix = weight.to(hidden.dtype)  # (V, D)
        supervised = targets >= 0  # (N)
        targets = targets.clamp(min=0)
        learning = any(ctx.needs_input_grad)
        hidden_gradient = torch.empty_like(hidden) if learning else None
        weight_gradient: Tensor | None = None
        total = hidden.new_zeros((), dtype=torch.float32)
        # Rows that begin at multiples of 64 numbers: the product is a third faster than with rows of 50,257.
        room = hidden.new_empty(2 if learning else 1, min(chunk_rows, len(hidden)), -(-len(matrix) // 64) * 64)
        # oneDNN's bf16 product of odd widths reads on into the padding, times zero: that must not be times NaN.
        room[..., len(matrix) :] = 0
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            chunk, counts = hidden[rows], supervised[rows, None].float()  # (R, D), (R, 1)
            logits = torch.mm(chunk, matrix.T, out=room[0, : len(chunk), : len(matrix)])  # (R, V)
            of_target = logits.gather(1, targets[rows, None]).float()  # (R, 1)
            if hidden_gradient is None:
                total += ((logits.float().logsumexp(1, keepdim=True) - of_target) * counts).sum()
                continue
            e = room[1, : len(chunk), : len(matrix)]  # (R, V)
            largest, z = exponentials(logits, e)  # (R, 1) each
            total += ((largest + z.log() - of_target) * counts).sum()
            share = counts / z
            hidden_gradient[rows] = (e @ matrix).float() * share - matrix[targets[rows]].float() * counts
            if not ctx.needs_input_grad[1]:
                continue
            product = e.T @ (chunk * share.to(chunk.dtype))  # (V, D)
            # Over chunks the sum is kept in fp32: in bf16 each addition would cost a hundredth of a small gradient.
            weight_gradient = product.float() if weight_gradient is None else weight_gradient.add_(product)
        if weight_gradient is not None:
            weight_gradient.index_add_(0, targets, (hidden * supervised[:, None]).float(), alpha=-1)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.differentiated = False
        return total

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        # In place, since a copy of a V x D matrix is dear; so a loss is differentiated once only.
        assert not ctx.differentiated
        ctx.differentiated = True
        by_weight = None if weight_gradient is None else weight_gradient.mul_(scales[0])
        return hidden_gradient.mul_(scales[0]), by_weight, None, None, None


def _exponentials(logits: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Writes exp(l - max) of logits (R, V) into e; gives max and the exponentials' sum, (R, 1) in fp32.

    Not in place: compiled, that would take more than twice as long.
    """
    values = logits.float()
    largest = values.amax(1, keepdim=True)
    exponentials = torch.exp(values - largest)
    e.copy_(exponentials)
    return largest, exponentials.sum(1, keepdim=True)


@lru_cache(maxsize=1)
def _compiled() -> Callable:
    return torch.compile(_exponentials, dynamic=True)
