"""A Llama whose weights train, as it is trained: what transformers computes, in fewer and larger operations.

- Queries, keys and values are one product of weights put side by side.
- Norms, attention and gates are one node each of the graph, with their gradients written out: rows are so short
  that torch's flash attention takes longer than plain products.
- In the last layer, only positions with a label go on from the attention.

Letters in the shape comments:
    B  rows     T  positions     N = B T     D  width     H  heads     K  width of a head     F  inner width
    L  labels
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from limner.models.adapted import NotAdapted


class TrainedStack:
    """The decoder without its head: (B, T, D) embeddings -> (L, D) hidden states. Parameters stay where they are.

    Args:
        lm: a Llama, all of whose weights train.

    Raises:
        NotAdapted: its layers have something that the demo's do not: biases, dropout, shared keys.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        config: Any = lm.config
        plain = (
            config.model_type == "llama"
            and config.hidden_act == "silu"
            and config.num_key_value_heads == config.num_attention_heads
            and not (config.attention_bias or config.mlp_bias or config.attention_dropout)
        )
        if not plain:
            raise NotAdapted(f"a {config.model_type} that is not computed here")
        self.model: Any = lm.model
        self.num_heads, self.epsilon = config.num_attention_heads, config.rms_norm_eps

    def __call__(
        self, embeds: Tensor, mask: Tensor, position_ids: Tensor, at: Tensor, training: bool = False
    ) -> Tensor:
        """(B, T, D) -> (L, D), after the final norm; the same in training.

        Args:
            mask: (B, 1, T, T), added to the scores.
            position_ids: (B, T).
            at: (L,) int64 into the B * T positions: those that are wanted, as often as they are.
        """
        B, T, D = embeds.shape
        cos, sin = self.model.rotary_emb(embeds, position_ids)  # (B, T, K)
        cos, sin = (part[:, None, :, : part.shape[-1] // 2] for part in (cos, sin))  # (B, 1, T, K / 2)
        x = embeds.reshape(B * T, D)
        for layer in self.model.layers:
            maps = layer.self_attn
            weight = torch.cat([maps.q_proj.weight, maps.k_proj.weight, maps.v_proj.weight])
            heads = F.linear(self._norm(x, layer.input_layernorm), weight).view(B, T, 3, self.num_heads, -1)
            mixed = _RotaryAttention.apply(heads, cos, sin, mask).view(B * T, -1)
            if layer is self.model.layers[-1]:
                # (L, D) from here on; the gradient of an embedding is faster than that of indexing
                x, mixed = F.embedding(at, x), F.embedding(at, mixed)
            x = x + F.linear(mixed, maps.o_proj.weight)
            maps = layer.mlp
            normed = self._norm(x, layer.post_attention_layernorm)
            inner = _SwiGLU.apply(F.linear(normed, maps.gate_proj.weight), F.linear(normed, maps.up_proj.weight))
            x = x + F.linear(inner, maps.down_proj.weight)
        return self._norm(x, self.model.norm)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return _RMSNorm.apply(x, norm.weight, self.epsilon)


class _RMSNorm(torch.autograd.Function):
    """x w / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (N, 1)
        scale = (size.square_() / x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,), (x, weight, scale) = gradients, ctx.saved_tensors
        unit = x * scale  # (N, D)
        along = gradient * unit
        by_weight = along.sum(0)
        mean = along.mv(weight)[:, None] / x.shape[-1]
        by_x = (gradient * weight).addcmul_(unit, mean, value=-1).mul_(scale)
        return by_x, by_weight, None


class _RotaryAttention(torch.autograd.Function):
    """Queries and keys, turned by their positions (Su et al. 2021, arXiv:2104.09864), and what they attend to.

    (B, T, 3, H, K); cosines and sines (B, 1, T, K / 2); mask (B, 1, T, T) -> (B, T, H, K).
    """

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        B, T, _, H, K = heads.shape
        parts = heads.permute(2, 0, 3, 1, 4).contiguous()  # (3, B, H, T, K)
        _turn(parts[:2], cos, sin)
        query, key, value = parts.view(3, B * H, T, K)
        scores = torch.baddbmm(mask.expand(B, H, T, T).flatten(0, 1), query, key.mT, alpha=K**-0.5)
        shares = scores.softmax(-1)  # (B H, T, T)
        ctx.save_for_backward(query, key, value, shares, cos, sin)
        return (shares @ value).view(B, H, T, K).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        query, key, value, shares, cos, sin = ctx.saved_tensors
        B, T, H, K = gradients[0].shape
        gradient = gradients[0].transpose(1, 2).reshape(B * H, T, K)
        by_heads = gradient.new_empty(3, B * H, T, K)
        torch.bmm(shares.mT, gradient, out=by_heads[2])
        by_scores = torch._softmax_backward_data(gradient @ value.mT, shares, -1, shares.dtype).mul_(K**-0.5)
        torch.bmm(by_scores, key, out=by_heads[0])
        torch.bmm(by_scores.mT, query, out=by_heads[1])
        by_heads = by_heads.view(3, B, H, T, K)
        _turn(by_heads[:2], cos, -sin)
        return by_heads.permute(1, 3, 0, 2, 4), None, None, None


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns channels k and k + K / 2 of (..., K) together, in place."""
    low, high = heads.chunk(2, -1)  # (..., K / 2)
    before = low * sin
    low.mul_(cos).addcmul_(high, sin, value=-1)
    high.mul_(cos).add_(before)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) up (Shazeer 2020, arXiv:2002.05202): twice (N, F) -> (N, F)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        opened = F.silu(gate)
        ctx.save_for_backward(gate, up, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (gate, up, opened) = gradients, ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * opened
