"""The loss of a language model without its logits.

A batch of 8 x 256 tokens and a vocabulary of 50,257 make 103 million logits: 412 MB in fp32, and as much again for
their gradient: more than everything else of a 30 M model together. But the loss needs of a row of logits only two
numbers, and the gradient only products with its softmax. So rows are taken some at a time, and of these rows the
logits of some columns: they stay in the processor's cache until they are exponentials.

With l = h W^T the logits of a row, t its target, e = exp(l - max l) and Z = sum e:

    loss    = max l + log Z - l[t]
    dh      = (e W) / Z - W[t]
    dW      = e^T (h / Z),  less h in row t

The softmax e / Z is never formed: dividing the thin results by Z is cheaper than dividing the wide e, and e, at
most 1, loses nothing in bf16 that the softmax would keep. Block by block of columns max l is only known so far, and
what was summed is scaled as it grows (online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867).

Letters in the shape comments: R rows of a chunk, N rows of all, D width, V vocabulary, C columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 128 * 2**20
"""Exponentials held at once: 1,335 rows in bf16 at 50,257 tokens."""
COLUMNS = 4096
"""Logits of a row held at once: 2,048 to 8,192 give the same speed (docs/LOG.md)."""


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None = None, compiled: bool = False
) -> Tensor:
    """Sum over supervised tokens of -log softmax(hidden @ weight.T)[target]: a scalar in fp32.

    Sums and exponentials are fp32; under autocast the products are made in its dtype.

    Args:
        hidden: (..., D), the states before the head.
        weight: (V, D), the head's matrix; where it does not train, its gradient is not made.
        targets: (...) int64; -100 is not supervised.
        chunk_rows: rows whose exponentials are held at once; None: as many as `CHUNK_BYTES` has room for.
        compiled: take the exponentials with a compiled kernel; pays from some hundred steps on.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    exponentials = _compiled() if compiled else _exponentials
    with torch.autocast(kind, enabled=False):
        rows = hidden.flatten(0, -2).to(dtype)  # (N, D)
        if chunk_rows is None:
            most = max(1, CHUNK_BYTES // (len(weight) * dtype.itemsize))
            chunks = max(1, -(-len(rows) // most))
            chunk_rows = max(1, -(-len(rows) // chunks))  # as many chunks as needed, all about equal
        return _ChunkedCrossEntropy.apply(rows, weight, targets.flatten(), chunk_rows, exponentials)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's exponentials are there; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, exponentials: Callable
    ) -> Tensor:
        matrix = weight.to(hidden.dtype)  # (V, D)
        blocks = matrix.split(COLUMNS)  # (C, D) each
        supervised = targets >= 0  # (N)
        targets = targets.clamp(min=0)
        learning = any(ctx.needs_input_grad)
        hidden_gradient = torch.empty_like(hidden) if learning else None
        weight_gradient = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        if weight_gradient is not None and not len(hidden):
            weight_gradient.zero_()
        total = hidden.new_zeros((), dtype=torch.float32)
        # Rows that begin at multiples of 64 numbers, not at powers of two: products are a third faster so.
        shape = min(chunk_rows, len(hidden)), -(-len(blocks[0]) // 64) * 64 + 64
        room, kept = hidden.new_empty(shape), hidden.new_empty(len(blocks) if learning else 1, *shape)
        # oneDNN's bf16 product of odd widths reads on into the padding, times zero: that must not be times NaN.
        kept[-1, :, len(blocks[-1]) :] = 0
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            chunk, counts = hidden[rows], supervised[rows, None].float()  # (R, D), (R, 1)
            R = len(chunk)
            of_target = matrix[targets[rows]].float()  # (R, D)
            gradient = torch.zeros_like(chunk, dtype=torch.float32) if learning else None  # e W
            z, largest = torch.zeros_like(counts), torch.full_like(counts, torch.finfo().min)
            maxima = []
            for number, block in enumerate(blocks):
                C = len(block)
                logits = torch.mm(chunk, block.T, out=room[:R, :C])  # (R, C)
                e = kept[number if learning else 0, :R, :C]
                before = largest
                largest, sums = exponentials(logits, before, e)  # (R, 1) each
                growth = (before - largest).exp()
                z.mul_(growth).add_(sums)
                if gradient is not None:
                    gradient.mul_(growth).add_(e @ block)
                maxima.append(largest)
            logit = (chunk.float() * of_target).sum(1, keepdim=True).to(chunk.dtype)  # rounded as those in z are
            total += ((largest + z.log() - logit.float()) * counts).sum()
            share = counts / z
            if hidden_gradient is not None and gradient is not None:
                hidden_gradient[rows] = gradient * share - of_target * counts
            if weight_gradient is None:
                continue
            # Over chunks the sum is kept in fp32: in bf16 each addition would cost a hundredth of a small gradient.
            for e, maximum, part in zip(kept, maxima, weight_gradient.split(COLUMNS), strict=True):
                scaled = chunk * (share * (maximum - largest).exp()).to(chunk.dtype)  # (R, D)
                product = e[:R, : len(part)].T @ scaled  # (C, D)
                part.copy_(product) if start == 0 else part.add_(product)
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


def _exponentials(logits: Tensor, before: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Writes exp(l - max) of logits (R, C) into e, max being at least ``before``; gives max and the sum of e, both
    (R, 1) in fp32.

    Not in place: compiled, that would take more than twice as long.
    """
    values = logits.float()
    largest = torch.maximum(before, values.amax(1, keepdim=True))
    exponentials = torch.exp(values - largest)
    e.copy_(exponentials)
    return largest, exponentials.sum(1, keepdim=True)


@lru_cache(maxsize=1)
def _compiled() -> Callable:
    return torch.compile(_exponentials, dynamic=True)
