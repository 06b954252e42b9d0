"""Our own cached forward of the decoder-only families, made for decoding and nothing else.

What it does that a general forward does not:

- Keys and values lie in one block, allocated once; a step writes into it and copies nothing that is there.
- All beams of a prefix read its one copy of keys and values. Their own tokens' keys and values are written side by
  side and never move: reordering beams reorders only the mask that says which of them each beam looks at.
- The vocabulary-wide head runs for the last position only; so do, while a prefix is read, the last layer's queries
  and feed-forward.
- A finished prefix leaves a hole, into which the last one is moved: one copy, whatever the batch.
- Matrices are packed for the machine (`linear`), in fp32, bf16 or int8. The residual stream stays in fp32.

Letters in the shape comments:
    A  prefixes running     G  rows (beams) of each     R = A G rows     P  prefix positions     S  cache positions
    H  query heads          Hkv  key-value heads        r = H / Hkv      K  head width           D  model width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.decoding.linear import Linear, pack
from limner.decoding.step_model import Prefix, special_tokens
from limner.decoding.weights import Norm, Weights, read_weights

_NEVER = float("-inf")


@dataclass
class _Layer:
    attention_norm: Norm
    qkv: Linear
    attention_output: Linear
    feed_forward_norm: Norm
    expand: Linear
    contract: Linear


@dataclass
class _State:
    """Where a batch stands. Slot i of the cache holds one prefix and its rows' tokens."""

    cache: Tensor  # (layers, 2, A0, Hkv, S, K), keys and values
    used: int  # cache positions filled
    num_rows: int  # G
    slots: Tensor  # (A,) the slot of each running prefix, a permutation of 0 .. A - 1
    back: Tensor | None  # (A,) which running prefix lies in each slot; None where they lie in order
    position: Tensor  # (A,) of the next token, by slot; (1,) where it is the same in all
    longest: int  # the greatest number of real positions that a row has
    mask: Tensor | None  # (A, G, S) by slot, added to the scores: 0 or -inf; None where every row sees everything

    @property
    def num_prefixes(self) -> int:
        return len(self.slots)


class CachedStepModel:
    """Llama, Mistral, Qwen2, GPT-2 (also inside peft) and `GPTModel`, from their weights as they are now.

    Args:
        dtype: of matrices and cache; None: the model's own. Weights that have it already are shared with the model.
        quantize: "int8" for matrices in 8 bits; ``dtype`` is then the cache's.

    Raises:
        UnknownModel: another family, or a variant that is not computed here.
    """

    @torch.no_grad()
    def __init__(self, lm: Any, dtype: torch.dtype | None = None, quantize: str | None = None) -> None:
        weights = read_weights(lm)
        self.dtype = dtype or weights.embedding.dtype
        self.stream = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.device = weights.embedding.device
        self.eos_token_ids, self.pad_token_id = special_tokens(getattr(lm, "generation_config", None), lm.config)
        self.weights: Weights = weights
        self.head = pack(weights.head, self.dtype, quantize)
        self.layers = [
            _Layer(
                self._kept(layer.attention_norm),
                pack(layer.qkv, self.dtype, quantize),
                pack(layer.attention_output, self.dtype, quantize),
                self._kept(layer.feed_forward_norm),
                pack(layer.expand, self.dtype, quantize),
                pack(layer.contract, self.dtype, quantize),
            )
            for layer in weights.layers
        ]
        self.final_norm = self._kept(weights.final_norm)
        self.rotations = torch.empty(2, 0, weights.head_width, dtype=self.stream, device=self.device)

    def _kept(self, norm: Norm) -> Norm:
        return Norm(norm.weight.to(self.stream), None if norm.bias is None else norm.bias.to(self.stream))

    # -- the three verbs

    @torch.inference_mode()
    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, _State]:
        weights, A, P = self.weights, prefix.batch, prefix.length
        positions = prefix.positions(self.device)  # (A or 1, P)
        self._make_rotations(P + max_new_tokens)
        room = P + num_beams * max_new_tokens
        shape = (len(self.layers), 2, A, weights.num_kv_heads, room, weights.head_width)
        state = _State(
            cache=torch.empty(shape, dtype=self.dtype, device=self.device),
            used=0,
            num_rows=1,
            slots=torch.arange(A, device=self.device),
            back=None,
            position=positions[:, -1] + 1,
            longest=P,
            mask=None,
        )
        allowed = None
        if prefix.mask is not None:
            real = prefix.mask.to(self.device)
            causal = torch.ones(P, P, dtype=torch.bool, device=self.device).tril()
            itself = torch.eye(P, dtype=torch.bool, device=self.device)  # padding must see something
            allowed = _added((causal & real[:, None] | itself)[:, None], self.dtype)  # (A, 1, P, P)
            state.mask = self._nothing_seen(A, 1, room)
            state.mask[:, 0, :P].masked_fill_(real, 0.0)
        x = self._embedded(prefix.ids, prefix.embeds, positions, state.longest)  # (A, P, D)
        turn = self._turn(positions)
        for number, layer in enumerate(self.layers):
            x = self._read(layer, x, turn, state.cache[number], allowed, last=number == len(self.layers) - 1)
        state.used = P
        return self._logits(x[:, -1]), state

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: _State) -> Tensor:
        A, G, used = state.num_prefixes, state.num_rows, state.used
        tokens = tokens.view(A, G)
        if state.back is not None:
            tokens = tokens[state.back]  # by slot
        state.longest += 1
        positions = state.position[:, None]  # (A or 1, 1)
        x = self._embedded(tokens, None, positions, state.longest)  # (A, G, D)
        turn = self._turn(positions)
        self._ensure_room(state)
        added = self._visible(state)
        for number, layer in enumerate(self.layers):
            x = self._continue(layer, x, turn, state.cache[number, :, :A], used, added)
        state.used += G
        state.position = state.position + 1
        if state.back is not None:
            x = x[state.slots]
        return self._logits(x.flatten(0, 1))

    @torch.inference_mode()
    def reorder(self, rows: Tensor, state: _State) -> None:
        A, G = state.num_prefixes, state.num_rows
        if len(rows) == A * G and _in_order(rows):
            return
        prefixes, counts = torch.unique_consecutive(rows // G, return_counts=True)  # whose rows stand together
        num_rows = int(counts[0])
        regular = bool((counts == num_rows).all()) and len(prefixes.unique()) == len(prefixes)
        if not regular:  # every row gets its own copy of its prefix
            prefixes, num_rows = rows // G, 1
        A_new = len(prefixes)
        mask = state.mask
        if mask is None and max(G, num_rows) > 1:
            mask = self._nothing_seen(A, G, state.cache.shape[4])
            mask[:, :, : state.used] = 0.0
        if mask is not None:
            by_row = mask[state.slots].flatten(0, 1)[rows].view(A_new, num_rows, -1)  # in the order of the rows
        old = state.slots[prefixes]  # (A_new,) where the prefixes lie now
        if regular and A_new <= A:
            state.slots = self._fill_holes(state, old)
        else:
            state.cache = state.cache[:, :, old]
            if len(state.position) > 1:
                state.position = state.position[old]
            state.slots = torch.arange(A_new, device=self.device)
        state.back = None if _in_order(state.slots) else state.slots.argsort()
        if mask is not None:
            state.mask = torch.empty_like(by_row)
            state.mask[state.slots] = by_row
        state.num_rows = num_rows

    # -- their parts

    def _fill_holes(self, state: _State, old: Tensor) -> Tensor:
        """Moves prefixes that lie beyond the new number into the slots that came free; the new slots (A',)."""
        A = len(old)
        new = old.clone()
        taken = torch.zeros(state.num_prefixes, dtype=torch.bool, device=old.device)
        taken[old] = True
        holes = (~taken[:A]).nonzero()[:, 0]
        beyond = (old >= A).nonzero()[:, 0]
        for hole, index in zip(holes.tolist(), beyond.tolist(), strict=True):
            source = int(old[index])
            state.cache[:, :, hole, :, : state.used] = state.cache[:, :, source, :, : state.used]
            if len(state.position) > 1:
                state.position[hole] = state.position[source]
            new[index] = hole
        if len(state.position) > 1:
            state.position = state.position[:A].clone()
        return new

    def _ensure_room(self, state: _State) -> None:
        """Room for one more token of each row: beams write side by side, so they need more than they were given."""
        missing = state.used + state.num_rows - state.cache.shape[4]
        if missing > 0:
            more = max(missing, state.num_rows * 32)
            state.cache = F.pad(state.cache, (0, 0, 0, more))
            if state.mask is not None:
                state.mask = F.pad(state.mask, (0, more), value=_NEVER)

    def _nothing_seen(self, A: int, G: int, S: int) -> Tensor:
        """A mask that hides everything: rows are shown what they may see as it comes."""
        return torch.full((A, G, S), _NEVER, dtype=self.dtype, device=self.device)

    def _visible(self, state: _State) -> Tensor | None:
        """What is added to the scores of this step, (A, 1, G r, used + G); shows each row its new token."""
        if state.mask is None:
            return None
        new = slice(state.used, state.used + state.num_rows)
        state.mask[:, :, new].diagonal(dim1=1, dim2=2).zero_()
        r = self.weights.num_heads // self.weights.num_kv_heads
        return state.mask[:, :, : new.stop].repeat_interleave(r, 1)[:, None]

    def _embedded(self, ids: Tensor | None, embeds: Tensor | None, positions: Tensor, longest: int) -> Tensor:
        """The stream (A, T, D) before the first layer, for ids (A, T) or embeddings at positions (A or 1, T)."""
        if embeds is None:
            assert ids is not None
            embeds = F.embedding(ids.to(self.device), self.weights.embedding)
        x = embeds.to(self.device, self.stream)
        learned = self.weights.positions
        if learned is not None:
            if longest > len(learned):
                raise ValueError(
                    f"The model has positions for {len(learned)} tokens, prefix included, and token {longest} was "
                    "asked for; shorten the prefix or lower max_new_tokens."
                )
            x = x + F.embedding(positions, learned)
        return x

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and sin (A or 1, T, 1, K) by which queries and keys at these positions are rotated."""
        if self.weights.frequencies is None:
            return None
        cos, sin = self.rotations[:, positions, None]
        return cos, sin

    def _make_rotations(self, length: int) -> None:
        """cos and (-sin, sin) of every position: a rotated value is x cos + roll(x) sin."""
        frequencies = self.weights.frequencies
        if frequencies is None or self.rotations.shape[1] >= length:
            return
        angles = torch.arange(length, device=self.device)[:, None].float() * frequencies.float()  # (length, K / 2)
        cos, sin = (angles.cos() * self.weights.rotary_scale, angles.sin() * self.weights.rotary_scale)
        table = torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)])  # (2, length, K)
        self.rotations = table.to(self.stream)

    def _normed(self, x: Tensor, norm: Norm) -> Tensor:
        if self.weights.root_mean_square:
            return F.rms_norm(x, norm.weight.shape, norm.weight, self.weights.epsilon)
        return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, self.weights.epsilon)

    def _heads(self, layer: _Layer, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Queries (A, T, H, K) and keys with values (2, A, Hkv, T, K) of the stream (A, T, D)."""
        weights, (A, T, D) = self.weights, x.shape
        H, Hkv, K = weights.num_heads, weights.num_kv_heads, weights.head_width
        qkv = layer.qkv(self._normed(x, layer.attention_norm).view(A * T, D))
        qkv = qkv.to(self.stream).view(A, T, H + 2 * Hkv, K)
        if turn is not None:
            cos, sin = turn
            rotated = qkv[:, :, : H + Hkv]
            across = torch.roll(rotated, K // 2, -1)
            rotated.mul_(cos).add_(across.mul_(sin))
        keys_values = qkv[:, :, H:].view(A, T, 2, Hkv, K).permute(2, 0, 3, 1, 4)
        return qkv[:, :, :H].to(self.dtype), keys_values

    def _read(
        self,
        layer: _Layer,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        cache: Tensor,
        allowed: Tensor | None,
        last: bool,
    ) -> Tensor:
        """One layer over whole prefixes (A, P, D); of the last layer, only what the last position needs."""
        P = x.shape[1]
        query, keys_values = self._heads(layer, x, turn)
        cache[:, :, :, :P] = keys_values
        if last:
            query, x = query[:, -1:], x[:, -1:]
            allowed = None if allowed is None else allowed[:, :, -1:]
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            cache[0, :, :, :P],
            cache[1, :, :, :P],
            attn_mask=allowed,
            is_causal=allowed is None and not last,
            enable_gqa=True,
        )  # (A, H, P, K)
        return self._mixed_in(layer, x, mixed.transpose(1, 2))

    def _continue(
        self,
        layer: _Layer,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        cache: Tensor,
        used: int,
        added: Tensor | None,
    ) -> Tensor:
        """One layer over one new token of each row (A, G, D)."""
        weights, (A, G, _) = self.weights, x.shape
        Hkv, r = weights.num_kv_heads, weights.num_heads // weights.num_kv_heads
        query, keys_values = self._heads(layer, x, turn)  # (A, G, H, K)
        cache[:, :, :, used : used + G] = keys_values
        # Query heads that share keys stand as further queries of one head, beams too: one read of the cache.
        query = query.view(A, G, Hkv, r, -1).transpose(1, 2).reshape(A, Hkv, G * r, -1)
        keys, values = cache[:, :, :, : used + G]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=added)  # (A, Hkv, G r, K)
        return self._mixed_in(layer, x, mixed.view(A, Hkv, G, r, -1).transpose(1, 2))

    def _mixed_in(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """The stream (A, T, D) after the attention's result (A, T, heads.., K) and the feed-forward are added."""
        A, T, D = x.shape
        x = x + layer.attention_output(mixed.reshape(A * T, -1)).view(A, T, D)
        inner = layer.expand(self._normed(x, layer.feed_forward_norm).view(A * T, D))
        return x + layer.contract(self._activated(inner)).view(A, T, D)

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


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to scores: 0 where it is True, else -inf."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, _NEVER)


def _in_order(indices: Tensor) -> bool:
    return bool((indices == torch.arange(len(indices), device=indices.device)).all())
