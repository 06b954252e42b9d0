"""Causal attention for training in bf16 on a CPU, about twice as fast as torch's own there.

Torch's fused kernel has a slow backward pass on CPUs, and with dropout it falls back to many passes over fp32
weights. Here blocks of queries meet the keys before them in plain batched products, which run on the CPU's matrix
unit; between two products stands one compiled element-wise kernel. The weights are made again in the backward pass
(Dao et al., "FlashAttention", 2022), so that no more than one block's weights are held at any time.

Letters in the shape comments:
    B  texts     H  heads of queries     G  heads of keys     R  heads that share keys, H / G     K  width of a head
    T  positions     b  texts of a block     Q  queries of a block     S  keys that the block may see
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


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, mask: Tensor | None = None
) -> Tensor:
    """(B, H, T, K), (B, G, T, K) twice -> (B, H, T, K): softmax(query key^T / sqrt(K)) value, each position looking
    back. Queries of R = H / G heads share keys and values (Ainslie et al. 2023, arXiv:2305.13245); they stand above
    each other in one matrix, so that no key is copied.

    Args:
        dropout: the share of weights that is dropped, rounded to 1/256.
        mask: (B, 1, T, T), added to the scores; it must hide all later positions. None: it hides nothing else.
    """
    parts = [part.contiguous() for part in (query, key, value)]
    return _attend(*parts, dropout, mask)[0]


@torch.library.custom_op("limner::blocked_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _attend(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Result (B, H, T, K), log of each row's sum of exponentials (B, H, T, 1), the dropout's seed (1)."""
    if not dropout:  # torch's forward pass is good
        R = query.shape[1] // key.shape[1]
        key, value = (part if R == 1 else part.repeat_interleave(R, 1) for part in (key, value))
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        hidden = None if mask is None else mask.to(query.dtype)
        result, log_sums = fused(query, key, value, 0.0, mask is None, attn_mask=hidden)
        return result.contiguous(), log_sums.unsqueeze(3).contiguous(), torch.zeros(1, dtype=torch.int64)
    seed = torch.randint(2**62, (1,))
    generator = torch.Generator().manual_seed(int(seed))
    result, log_sums = torch.empty_like(query), query.new_empty((*query.shape[:3], 1), dtype=torch.float32)
    query = query * query.shape[3] ** -0.5
    for texts, rows, past in _blocks(query):
        k, v = key[texts, :, past].flatten(0, 1), value[texts, :, past].flatten(0, 1)  # (b G, S, K)
        scores = torch.bmm(_folded(query[texts, :, rows], len(k)), k.transpose(1, 2))  # (b G, R Q, S)
        scores = _heads(scores, query[texts, :, rows])  # (b, H, Q, S)
        noise = random_bytes(tuple(scores.shape), generator)
        weights, log_sums[texts, :, rows] = _compiled(_softmax)(
            scores, _part(mask, texts, rows, past), noise, dropout
        )
        result[texts, :, rows] = _heads(torch.bmm(_folded(weights, len(k)), v), query[texts, :, rows])
    return result, log_sums, seed


@_attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    log_sums = query.new_empty((*query.shape[:3], 1), dtype=torch.float32)
    return torch.empty_like(query), log_sums, query.new_empty(1, dtype=torch.int64)


@torch.library.custom_op("limner::blocked_attention_backward", mutates_args=())
def _differentiate(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    result: Tensor,
    log_sums: Tensor,
    seed: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query (B, H, T, K), and of key and value, each (B, G, T, K)."""
    scale = query.shape[3] ** -0.5
    query = query * scale
    generator = torch.Generator().manual_seed(int(seed))
    # The softmax's backward pass needs, of each row, the mean slope of its weights: that is result . gradient.
    means = (gradient.float() * result.float()).sum(3, keepdim=True)  # (B, H, T, 1)
    by_query, by_key, by_value = (torch.zeros_like(part, dtype=torch.float32) for part in (query, key, value))
    for texts, rows, past in _blocks(query):
        k, v = key[texts, :, past].flatten(0, 1), value[texts, :, past].flatten(0, 1)  # (b G, S, K)
        q, slope = (_folded(part[texts, :, rows], len(k)) for part in (query, gradient))  # (b G, R Q, K)
        scores = torch.bmm(q, k.transpose(1, 2))  # (b G, R Q, S)
        slopes = torch.bmm(slope, v.transpose(1, 2))  # (b G, R Q, S): what more of each weight would change
        shape = query[texts, :, rows]
        row = (
            _heads(scores, shape),
            _part(mask, texts, rows, past),
            log_sums[texts, :, rows],
            _heads(slopes, shape),
            means[texts, :, rows],
        )
        if dropout:
            noise = random_bytes(tuple(row[0].shape), generator)
            weights, by_score = _compiled(_slopes_dropped)(*row, noise, dropout)
        else:
            weights, by_score = _compiled(_slopes)(*row)
        weights, by_score = _folded(weights, len(k)), _folded(by_score, len(k))  # (b G, R Q, S)
        by_query[texts, :, rows] = _heads(torch.bmm(by_score, k), shape)
        by_key[texts, :, past] += torch.bmm(by_score.transpose(1, 2), q).view_as(key[texts, :, past])
        by_value[texts, :, past] += torch.bmm(weights.transpose(1, 2), slope).view_as(key[texts, :, past])
    return (by_query * scale).to(query.dtype), by_key.to(query.dtype), by_value.to(query.dtype)


@_differentiate.register_fake
def _(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(tensors[1]), torch.empty_like(tensors[2]), torch.empty_like(tensors[3])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dropout, mask = inputs
    ctx.save_for_backward(*tensors, mask, *output)


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    return *_differentiate(gradient.contiguous(), *ctx.saved_tensors, ctx.dropout), None, None


_attend.register_autograd(_backward, setup_context=_remember)


def _blocks(query: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """(texts, queries, keys that they may see), so that a block has at most about `BLOCK_WEIGHTS` weights."""
    B, H, T, _ = query.shape
    block = max(128, -(-T // 4))  # four blocks spare three eighths of the products
    for start in range(0, T, block):
        end = min(T, start + block)
        texts = max(1, BLOCK_WEIGHTS // (H * (end - start) * end))
        for first in range(0, B, texts):
            yield slice(first, min(B, first + texts)), slice(start, end), slice(0, end)


def _folded(part: Tensor, sets: int) -> Tensor:
    """(b, H, Q, any) -> (b G, R Q, any): the queries that share keys above each other."""
    return part.reshape(sets, -1, part.shape[3])


def _heads(part: Tensor, like: Tensor) -> Tensor:
    """Back: (b G, R Q, any) -> (b, H, Q, any)."""
    return part.view(*like.shape[:3], -1)


def _part(mask: Tensor | None, texts: slice, rows: slice, past: slice) -> Tensor:
    """(b or 1, 1, Q, S): what is added to a block's scores."""
    if mask is None:
        return _causal(rows.stop - rows.start, past.stop)[None, None]
    return mask[texts, :, rows, past]


@lru_cache(maxsize=64)
def _causal(queries: int, keys: int) -> Tensor:
    """(Q, S): 0 where the last Q of S positions may look, minus infinity after."""
    return torch.full((queries, keys), float("-inf")).triu(keys - queries + 1)


# ---- between the products: one pass over the weights each ---------------------------------------------------


def _softmax(scores: Tensor, mask: Tensor, noise: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Weights after dropout (b, H, Q, S), and log sum exp (b, H, Q, 1)."""
    scores32 = scores.float() + mask
    largest = scores32.amax(3, keepdim=True)
    e = torch.exp(scores32 - largest)
    total = e.sum(3, keepdim=True)
    return (e / total * kept(noise, dropout)).to(scores.dtype), largest + total.log()


def _slopes(scores: Tensor, mask: Tensor, log_sums: Tensor, slopes: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Weights, and the gradient of the scores; both (b, H, Q, S)."""
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
