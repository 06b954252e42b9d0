"""Our own cached forward of the decoder-only families, made for decoding and nothing else.

What it does that a general forward does not:

- Keys and values lie in one block in which a step moves nothing, and all beams read one copy of their prefix
  (`KVState`).
- The vocabulary-wide head runs for the last position only; so do, while a prefix is read, the last layer's queries
  and feed-forward.
- Matrices are packed for the machine (`linear`), in fp32, bf16 or int8; the residual stream stays in fp32.
- Few, small operations: with one row, a step's time beside the weights' bytes is what calling them costs.

Letters in the shape comments:
    A  prefixes running     G  rows (beams) of each     T  positions: P of a prefix, or G     N = A T     S  cached
    H  query heads          Hkv  key-value heads        r = H / Hkv     K  head width         D  model width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.decoding.kv_state import KVState
from limner.decoding.linear import Linear, pack
from limner.decoding.step_model import Prefix, special_tokens
from limner.decoding.weights import Matrix, Norm, Weights, read_weights, stacked
from limner.device import give_back_freed_memory, multiplies


@dataclass
class _Layer:
    attention_norm: Norm
    qkv: Linear
    attention_output: Linear
    feed_forward_norm: Norm
    expand: Linear
    contract: Linear


Turn = Tensor | None
"""Complex (A or 1, T, 1, K / 2), by which queries and keys are turned; None: positions are learned."""


class CachedStepModel:
    """Llama, Mistral, Qwen2, GPT-2 (also inside peft) and `GPTModel`, from their weights as they are now.

    Args:
        dtype: of matrices, and of the cache where the machine multiplies it (else that is fp32); None: the model's
            own. Weights that have it already are shared with the model, but for queries, keys and values.
        quantize: "int8" for matrices in 8 bits; ``dtype`` is then the cache's.
        release: the model gives up each matrix as soon as it is packed here. Its embedding stays.

    Raises:
        UnknownModel: another family, or a variant that is not computed here.
    """

    @torch.no_grad()
    def __init__(
        self, lm: Any, dtype: torch.dtype | None = None, quantize: str | None = None, release: bool = False
    ) -> None:
        weights = read_weights(lm)
        self.device = weights.embedding.device
        of_weights = dtype or weights.embedding.dtype
        self.dtype = of_weights if multiplies(of_weights, self.device) else torch.float32
        """Of queries, keys, values and what is made of them."""
        self.stream = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.eos_token_ids, self.pad_token_id = special_tokens(getattr(lm, "generation_config", None), lm.config)
        self.weights: Weights = weights

        def packed(matrix: Matrix, pair: bool = False) -> Linear:
            linear = pack(self._paired(matrix) if pair else matrix, of_weights, quantize)
            # A tied head is the embedding too, and stays.
            if release and matrix.weights[0].data_ptr() != weights.embedding.data_ptr():
                matrix.release()
            return linear

        self.layers = [
            _Layer(
                self._kept(layer.attention_norm),
                packed(layer.qkv, pair=True),
                packed(layer.attention_output),
                self._kept(layer.feed_forward_norm),
                packed(layer.expand),
                packed(layer.contract),
            )
            for layer in weights.layers
        ]
        self.head = packed(weights.head)  # the largest one last, when the others have been released
        if release:
            give_back_freed_memory()
        self.final_norm = self._kept(weights.final_norm)
        self.epsilon = torch.tensor(
            math.sqrt(weights.embedding.shape[1] * weights.epsilon), dtype=self.stream, device=self.device
        )
        self.rotations = torch.empty(0, weights.head_width // 2, dtype=torch.complex64, device=self.device)

    def _kept(self, norm: Norm) -> Norm:
        """A norm in the stream's precision; RMSNorm's weight times sqrt(D), as `_normed` wants it."""
        weight = norm.weight.to(self.stream)
        if self.weights.root_mean_square:
            weight = weight * math.sqrt(len(weight))
        return Norm(weight, None if norm.bias is None else norm.bias.to(self.stream))

    def _paired(self, qkv: Matrix) -> Matrix:
        """The map to queries, keys and values as one weight in which the two numbers that a rotation turns stand
        side by side: then it is a product of complex numbers. Scores do not change when queries and keys are
        permuted alike."""
        weights = self.weights
        if weights.frequencies is None:
            return qkv
        weight, bias = stacked(qkv, qkv.weights[0].dtype)
        numbers = torch.arange(len(weight), device=weight.device).view(-1, 2, weights.head_width // 2)
        turned = weights.num_heads + weights.num_kv_heads
        order = torch.cat([numbers[:turned].transpose(1, 2).flatten(), numbers[turned:].flatten()])
        return Matrix([weight[order]], [None if bias is None else bias[order]])

    @torch.inference_mode()
    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, KVState]:
        weights, A, P = self.weights, prefix.batch, prefix.length
        positions = prefix.positions(self.device)  # (A or 1, P)
        self._make_rotations(P + max_new_tokens)
        room = P + num_beams * max_new_tokens
        shape = (len(self.layers), 2, A, weights.num_kv_heads, room, weights.head_width)
        real = None if prefix.mask is None else prefix.mask.to(self.device)
        state = KVState(shape, self.dtype, positions[:, -1] + 1, P, real)
        allowed = None if real is None else self._causal(real)
        x = self._embedded(prefix.ids, prefix.embeds, positions, state.longest)  # (A, P, D)
        turn = self._turn(positions)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            x = self._read(layer, x, turn, state.layers[number], allowed, only_last=number == last)
        state.used = P
        return self._logits(x[:, -1]), state

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: KVState) -> Tensor:
        A, G = state.num_prefixes, state.num_rows
        added = state.begin_step(self.weights.num_kv_heads, self.weights.num_heads // self.weights.num_kv_heads)
        positions = state.position[:, None]  # (A or 1, 1)
        x = self._embedded(state.by_slot(tokens).view(A, G), None, positions, state.longest)  # (A, G, D)
        turn = self._turn(positions)
        for layer, places in zip(self.layers, state.places(), strict=True):
            x = self._continue(layer, x, turn, *places, added)
        state.end_step()
        return self._logits(state.by_row(x.flatten(0, 1)))

    @torch.inference_mode()
    def reorder(self, rows: Tensor, state: KVState) -> None:
        state.reorder(rows)

    def _embedded(self, ids: Tensor | None, embeds: Tensor | None, positions: Tensor, longest: int) -> Tensor:
        """The stream (A, T, D) before the first layer, for ids (A, T) or embeddings at positions (A or 1, T)."""
        if embeds is None:
            assert ids is not None
            embeds = F.embedding(ids.to(self.device), self.weights.embedding)
        x = embeds.to(self.device, self.stream, copy=True)  # layers add to it in place
        learned = self.weights.positions
        if learned is not None:
            if longest > len(learned):
                raise ValueError(
                    f"The model has positions for {len(learned)} tokens, prefix included, and token {longest} was "
                    "asked for; shorten the prefix or lower max_new_tokens."
                )
            x += F.embedding(positions, learned)
        return x

    def _causal(self, real: Tensor) -> Tensor:
        """What is added to the scores of padded prefixes, (A, 1, P, P): 0 or -inf."""
        P = real.shape[1]
        seen = torch.ones(P, P, dtype=torch.bool, device=self.device).tril() & real[:, None]
        seen |= torch.eye(P, dtype=torch.bool, device=self.device)  # a softmax over nothing is NaN
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, -math.inf)[:, None]

    def _turn(self, positions: Tensor) -> Turn:
        if self.weights.frequencies is None:
            return None
        return self.rotations[positions, None]

    def _make_rotations(self, length: int) -> None:
        frequencies = self.weights.frequencies
        if frequencies is None or len(self.rotations) >= length:
            return
        angles = torch.arange(length, device=self.device)[:, None].float() * frequencies.float()  # (length, K / 2)
        self.rotations = torch.polar(
            torch.full_like(angles, self.weights.rotary_scale).to(self.stream), angles.to(self.stream)
        )

    def _normed(self, x: Tensor, norm: Norm) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.weights.root_mean_square:
            # x w / sqrt(mean(x^2) + e) = x (w sqrt(D)) / hypot(|x|, sqrt(D e)); torch's own takes twice the time
            length = torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), self.epsilon)
            return (x * norm.weight).div_(length)
        return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, self.weights.epsilon)

    def _heads(self, layer: _Layer, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Queries (A, T, H, K) and keys with values (2, A, Hkv, T, K) of the stream (A, T, D)."""
        weights = self.weights
        A, T, _ = x.shape
        H, Hkv, K = weights.num_heads, weights.num_kv_heads, weights.head_width
        qkv = layer.qkv(self._normed(x, layer.attention_norm))
        if turn is not None:
            qkv = qkv.to(self.stream)
            pairs = torch.view_as_complex(qkv.view(A, T, H + 2 * Hkv, K // 2, 2))
            pairs.narrow(2, 0, H + Hkv).mul_(turn)
        query, keys_values = qkv.view(A, T, H + 2 * Hkv, K).split_with_sizes((H, 2 * Hkv), 2)
        return query.to(self.dtype), keys_values.view(A, T, 2, Hkv, K).permute(2, 0, 3, 1, 4)

    def _read(
        self, layer: _Layer, x: Tensor, turn: Turn, cache: Tensor, allowed: Tensor | None, only_last: bool
    ) -> Tensor:
        """One layer over whole prefixes (A, P, D); in the last layer, only what the last position needs."""
        query, keys_values = self._heads(layer, x, turn)
        keys, values = cache.narrow(3, 0, x.shape[1]).copy_(keys_values)
        if only_last:
            query, x = query[:, -1:], x[:, -1:]
            allowed = None if allowed is None else allowed[:, :, -1:]
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys,
            values,
            attn_mask=allowed,
            is_causal=allowed is None and not only_last,
            enable_gqa=True,
        )  # (A, H, P, K)
        return self._added(layer, x, mixed.transpose(1, 2).flatten(2))

    def _continue(
        self, layer: _Layer, x: Tensor, turn: Turn, new: Tensor, keys: Tensor, values: Tensor, added: Tensor | None
    ) -> Tensor:
        """One layer over one new token of each row (A, G, D), with its `KVState.places`."""
        A, G, _ = x.shape
        Hkv, r = self.weights.num_kv_heads, self.weights.num_heads // self.weights.num_kv_heads
        query, keys_values = self._heads(layer, x, turn)  # (A, G, H, K)
        new.copy_(keys_values)
        # Query heads that share keys stand as further queries of one head, beams too: one read of the cache.
        query = query.view(A, G, Hkv, r, -1).transpose(1, 2).reshape(A * Hkv, 1, G * r, -1)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=added)  # (A Hkv, 1, G r, K)
        return self._added(layer, x, mixed.view(A, Hkv, G, r, -1).transpose(1, 2).reshape(A, G, -1))

    def _added(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """The stream (A, T, D) with the attention's result (A, T, H K) and the feed-forward added to it."""
        x += layer.attention_output(mixed)
        inner = layer.expand(self._normed(x, layer.feed_forward_norm))
        x += layer.contract(self._activated(inner))
        return x

    def _activated(self, inner: Tensor) -> Tensor:
        kind = self.weights.activation
        gate, up = inner.chunk(2, -1) if self.weights.gated else (inner, None)
        if kind == "silu":
            gate = F.silu(gate)
        elif kind == "relu":
            gate = F.relu(gate)
        else:
            gate = F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none")
        return gate if up is None else gate.mul_(up)

    def _logits(self, x: Tensor) -> Tensor:
        """(R, D) -> (R, V)."""
        return self.head(self._normed(x, self.final_norm))
