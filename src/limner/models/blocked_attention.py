"""Causal attention for training in bf16 on a CPU, about twice as fast as torch's own there.

Torch's fused kernel has a slow backward pass on CPUs, and with dropout it falls back to many passes over fp32
weights. Here blocks of queries meet the keys before them in plain batched products, which run on the CPU's matrix
unit; between two products stands one compiled element-wise kernel. The weights are made again in the backward pass
(Dao et al., "FlashAttention", 2022), so that no more than one block's weights are held at any time.

Letters in the shape comments:
    G  heads of all texts (B x H)     T  positions     K  width of a head
    Q  queries of a block             S  keys that the block may see
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from limner.models.dropout import kept, random_bytes

BLOCK_WEIGHTS = 4 * 2**20
"""Weights of a block: 8 MB in bf16, which stays in the cache from one product to the next."""


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """(B, H, T, K) three times -> (B, H, T, K): softmax(query key^T / sqrt(K)) value, each position looking back.

    Args:
        dropout: the share of weights that is dropped, rounded to 1/256.
    """
    B, H, T, K = query.shape
    parts = [part.reshape(B * H, T, K).contiguous() for part in (query, key, value)]
    return _attend(*parts, dropout)[0].view(B, H, T, K)


@torch.library.custom_op("limner::blocked_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    """(G, T, K) -> result (G, T, K), log of each row's sum of exponentials (G, T, 1), the dropout's seed (1)."""
    if not dropout:  # torch's forward pass is good
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        result, log_sums = fused(query[None], key[None], value[None], 0.0, True)
        return result[0], log_sums.reshape(*query.shape[:2], 1).contiguous(), torch.zeros(1, dtype=torch.int64)
    seed = torch.randint(2**62, (1,))
    generator = torch.Generator().manual_seed(int(seed))
    result, log_sums = torch.empty_like(query), query.new_empty((*query.shape[:2], 1), dtype=torch.float32)
    query = query * query.shape[2] ** -0.5
    for heads, rows, past in _blocks(query):
        scores = torch.bmm(query[heads, rows], key[heads, past].transpose(1, 2))  # (g, Q, S)
        noise = random_bytes(tuple(scores.shape), generator)
        weights, log_sums[heads, rows] = _compiled(_softmax)(scores, _causal(rows, past), noise, dropout)
        result[heads, rows] = torch.bmm(weights, value[heads, past])
    return result, log_sums, seed


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    log_sums = query.new_empty((*query.shape[:2], 1), dtype=torch.float32)
    return torch.empty_like(query), log_sums, query.new_empty(1, dtype=torch.int64)


@torch.library.custom_op("limner::blocked_attention_backward", mutates_args=())
def _differentiate(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Tensor,
    log_sums: Tensor,
    seed: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, each (G, T, K)."""
    scale = query.shape[2] ** -0.5
    query = query * scale
    generator = torch.Generator().manual_seed(int(seed))
    # The softmax's backward pass needs, of each row, the mean slope of its weights: that is result . gradient.
    means = (gradient.float() * result.float()).sum(2, keepdim=True)  # (G, T, 1)
    by_query, by_key, by_value = (torch.zeros_like(part, dtype=torch.float32) for part in (query, key, value))
    for heads, rows, past in _blocks(query):
        q, k, v, slope = query[heads, rows], key[heads, past], value[heads, past], gradient[heads, rows]
        scores = torch.bmm(q, k.transpose(1, 2))  # (g, Q, S)
        slopes = torch.bmm(slope, v.transpose(1, 2))  # (g, Q, S): what more of each weight would change
        row = (scores, _causal(rows, past), log_sums[heads, rows], slopes, means[heads, rows])
        if dropout:
            noise = random_bytes(tuple(scores.shape), generator)
            weights, by_score = _compiled(_slopes_dropped)(*row, noise, dropout)
        else:
            weights, by_score = _compiled(_slopes)(*row)
        by_query[heads, rows] = torch.bmm(by_score, k)
        by_key[heads, past] += torch.bmm(by_score.transpose(1, 2), q)
        by_value[heads, past] += torch.bmm(weights.transpose(1, 2), slope)
    return (by_query * scale).to(query.dtype), by_key.to(query.dtype), by_value.to(query.dtype)


@_differentiate.register_fake
def _(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(tensors[1]), torch.empty_like(tensors[2]), torch.empty_like(tensors[3])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dropout = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    return *_differentiate(gradient.contiguous(), *ctx.saved_tensors, ctx.dropout), None


_attend.register_autograd(_backward, setup_context=_remember)


def _blocks(query: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """(heads, queries, keys that they may see), so that a block has at most about `BLOCK_WEIGHTS` weights."""
    G, T, _ = query.shape
    block = max(128, -(-T // 4))  # four blocks spare three eighths of the products
    for start in range(0, T, block):
        end = min(T, start + block)
        heads = max(1, BLOCK_WEIGHTS // ((end - start) * end))
        for first in range(0, G, heads):
            yield slice(first, min(G, first + heads)), slice(start, end), slice(0, end)


def _causal(rows: slice, past: slice) -> Tensor:
    return _mask(rows.stop - rows.start, past.stop)


@lru_cache(maxsize=64)
def _mask(queries: int, keys: int) -> Tensor:
    """(Q, S): 0 where the last Q of S positions may look, minus infinity after."""
    return torch.full((queries, keys), float("-inf")).triu(keys - queries + 1)


# ---- between the products: one pass over the weights each ---------------------------------------------------


def _softmax(scores: Tensor, mask: Tensor, noise: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Weights after dropout (g, Q, S), and log sum exp (g, Q, 1)."""
    scores32 = scores.float() + mask
    largest = scores32.amax(2, keepdim=True)
    e = torch.exp(scores32 - largest)
    total = e.sum(2, keepdim=True)
    return (e / total * kept(noise, dropout)).to(scores.dtype), largest + total.log()


def _slopes(scores: Tensor, mask: Tensor, log_sums: Tensor, slopes: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Weights, and the gradient of the scores; both (g, Q, S)."""
    weights = torch.exp(scores.float() + mask - log_sums)
    return weights.to(scores.dtype), (weights * (slopes.float() - means)).to(scores.dtype)


def _slopes_dropped(
    scores: Tensor, mask: Tensor, log_sums: Tensor, slopes: Tensor, means: Tensor, noise: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """The same after dropout."""
    weights, factor = torch.exp(scores.float() + mask - log_sums), kept(noise, dropout)
    return (weights * factor).to(scores.dtype), (weights * (slopes.float() * factor - means)).to(scores.dtype)


@lru_cache(maxsize=4)
def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(kernel, dynamic=True)
