"""A frozen decoder with low-rank adapters, as it is trained: what transformers and peft compute, in fewer and
larger operations.

- Maps of the same input (queries, keys and values; gate and up) are one product, and so are their adapters: the
  first factors stand side by side, the second ones along a diagonal. One dropout mask serves the maps of a group.
- Heads that share keys are one taller matrix of queries, so that no key is copied.
- What stands between two products can be compiled into one pass (`compile`).
- In the last layer, only positions with a label go through the feed-forward.

Parameters stay where they are: the adapters are peft's own, saved and merged by peft. The frozen weights of a group
move into one block of memory, of which the model's own then are slices.

Letters in the shape comments:
    B  rows     T  positions     D  width     H  heads of queries     G  heads of keys     K  width of a head
    F  width inside the feed-forward     r  rank     n  adapters in a group     L  labels
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limner.models.blocked_attention import blocked_attention
from limner.models.dropout import dropout

Activation = Callable[[Tensor], Tensor]


class NotAdapted(Exception):
    """The decoder computes something that is not known here, or its weights train: use its own forward."""


@dataclass
class Adapter:
    """Low-rank updates of the maps of a group: B A x, times a scale that is alpha / r."""

    first: list[Tensor]
    """A of each map: (r, in)."""
    second: list[Tensor]
    """B of each map: (out, r)."""
    scale: float
    dropout: float


@dataclass
class Linear:
    """Maps of the same input, side by side; frozen but for their adapter."""

    weight: Tensor  # (out, in), of all maps
    bias: Tensor | None  # (out)
    adapter: Adapter | None

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """(..., in) -> (..., out), in x's dtype."""
        y = F.linear(x, self.weight, self.bias)
        if self.adapter is None:
            return y
        first = torch.cat(self.adapter.first).to(x.dtype)  # (n r, in)
        second = (torch.block_diag(*self.adapter.second) * self.adapter.scale).to(x.dtype)  # (out, n r)
        dropped = dropout(x, self.adapter.dropout) if training else x
        return y + F.linear(F.linear(dropped, first), second)


@dataclass
class Norm:
    """RMSNorm (Zhang and Sennrich 2019) where there is no bias, else LayerNorm."""

    weight: Tensor  # (D)
    bias: Tensor | None
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.bias is not None:
            return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.epsilon).to(x)
        wide = x.float()
        size = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * size * self.weight.float()).to(x.dtype)


@dataclass
class Layer:
    attention_norm: Norm
    qkv: Linear  # D -> (H + 2 G) K
    output: Linear  # H K -> D
    feed_forward_norm: Norm
    expand: Linear  # D -> F, or gate and up: D -> 2 F
    contract: Linear  # F -> D


@dataclass(frozen=True)
class Shape:
    """What all layers have in common."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    activation: str
    gated: bool
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0


Mask = Tensor | BlockMask
Rotation = tuple[Tensor, Tensor] | None
"""Cosines and sines, each (B, T, K), of the angles by which queries and keys turn; None: learned positions."""


class AdaptedStack:
    """The decoder without its head: (B, T, D) embeddings -> (L, D) hidden states.

    Args:
        lm: the causal language model, with peft's adapters in their places, on its device and in its precision.

    Raises:
        NotAdapted: see there.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        read = {"llama": _read_llama, "mistral": _read_llama, "qwen2": _read_llama, "gpt2": _read_gpt2}
        kind = str(lm.config.model_type)
        _require(kind in read, f"{kind} is not computed here")
        self.shape, self.layers, self.final_norm, self.positions = read[kind](lm)
        self.recompute = False
        """Recompute each layer's activations in the backward pass instead of keeping them."""
        self._compiled: Callable[..., Any] | None = None

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    @property
    def can_flex(self) -> bool:
        """Whether FlexAttention computes its attention: it knows no dropout, and its kernels like powers of two."""
        width = self.shape.head_width
        return not self.shape.attention_dropout and width >= 16 and width & (width - 1) == 0

    def compile(self) -> None:
        """Layers are compiled for training from now on: one compilation (about a minute) for all of them, whatever
        the length of the rows."""
        self._compiled = torch.compile(_layer)

    def __call__(
        self, embeds: Tensor, mask: Mask, position_ids: Tensor, at: Tensor, training: bool = False
    ) -> Tensor:
        """(B, T, D) -> (L, D), after the final norm.

        Args:
            mask: (B, 1, T, T), added to the scores; or a BlockMask for FlexAttention.
            position_ids: (B, T).
            at: (L,) int64 into the B * T positions: those that are wanted, as often as they are.
            training: with dropout.
        """
        with torch.autocast(embeds.device.type, enabled=False):
            x, rotation = self.positions(embeds, position_ids, training)
            layer = self._compiled if self._compiled is not None and training else _layer
            if layer is not _layer:
                _any_length(x, *(rotation or ()), mask, at)
            how = (self.shape, training, self.is_compiled)
            with _elementwise_again():
                for number, weights in enumerate(self.layers):
                    last = number == len(self.layers) - 1
                    inputs = (x, weights, mask, rotation, at if last else None, *how)
                    if self.recompute and torch.is_grad_enabled():
                        x = checkpoint(layer, *inputs, use_reentrant=False)
                    else:
                        x = layer(*inputs)
            return self.final_norm(x)


def _elementwise_again() -> AbstractContextManager[None]:
    """What is compiled within keeps for its backward pass nothing that can be made again without a product: of the
    adapters' inputs only which values were dropped.

    A budget of "a little less than everything" lets torch's partitioner do that first, and it is then content.
    """
    return functorch_config.patch(activation_memory_budget=0.999)


def _any_length(*tensors: Any) -> None:
    """Rows differ in length from batch to batch: compiled code is not to be made for one length."""
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            for axis in range(min(tensor.dim(), 4)):
                if tensor.dim() != 3 or axis < 2:  # the last axis of (B, T, D) is fixed
                    torch._dynamo.maybe_mark_dynamic(tensor, axis)


def _layer(
    x: Tensor,
    weights: Layer,
    mask: Mask,
    rotation: Rotation,
    at: Tensor | None,
    shape: Shape,
    training: bool,
    blocked: bool,
) -> Tensor:
    """(B, T, D) -> (B, T, D), or (L, D) with ``at``."""
    (B, T, D), H, G, K = x.shape, shape.num_heads, shape.num_kv_heads, shape.head_width
    p = shape.residual_dropout if training else 0.0
    heads = weights.qkv(weights.attention_norm(x), training).view(B, T, H + 2 * G, K)
    query, key, value = heads.split([H, G, G], 2)  # (B, T, H or G, K)
    if rotation is not None:
        query, key = _rotated(query, rotation), _rotated(key, rotation)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (B, H or G, T, K)
    mixed = _attend(query, key, value, mask, shape.attention_dropout if training else 0.0, blocked)
    mixed = mixed.transpose(1, 2).reshape(B, T, H * K)
    if at is not None:
        x, mixed = x.view(B * T, D)[at], mixed.view(B * T, H * K)[at]
    x = x + dropout(weights.output(mixed, training), p)
    inner = weights.expand(weights.feed_forward_norm(x), training)  # (..., F) or (..., 2 F)
    if shape.gated and torch.compiler.is_compiling():
        inner = _gated(inner, shape.activation)
    elif shape.gated:  # the activated gate is made again in the backward pass, as compiled code does by itself
        inner = checkpoint(_gated, inner, shape.activation, use_reentrant=False, preserve_rng_state=False)
    else:
        inner = _ACTIVATIONS[shape.activation](inner)
    return x + dropout(weights.contract(inner, training), p)


def _gated(inner: Tensor, activation: str) -> Tensor:
    """Gate and up, (..., 2 F) -> (..., F)."""
    gate, up = inner.chunk(2, -1)
    return _ACTIVATIONS[activation](gate) * up


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): channel k and channel k + K / 2 are turned together."""
    cos, sin = (part[:, :, None] for part in rotation)  # (B, T, 1, K)
    low, high = x.float().chunk(2, -1)
    return (torch.cat([low, high], -1) * cos + torch.cat([-high, low], -1) * sin).to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask, p: float, blocked: bool) -> Tensor:
    """(B, H, T, K), (B, G, T, K) twice -> (B, H, T, K)."""
    if isinstance(mask, BlockMask):
        return flex_attention(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])  # type: ignore[return-value]
    if blocked and query.device.type == "cpu":
        return blocked_attention(query, key, value, p, mask)
    if query.shape[1] != key.shape[1]:  # torch's kernels for GPUs take no mask together with shared keys
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype), p)


def _gelu_tanh(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # The same function, (1 + tanh u) / 2 being sigmoid(2 u); compiled, it takes half the time.
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
}


# ---- where positions come from ------------------------------------------------------------------------------


def _rotary(rotary: nn.Module) -> Callable[..., tuple[Tensor, Rotation]]:
    def positions(embeds: Tensor, position_ids: Tensor, training: bool) -> tuple[Tensor, Rotation]:
        cos, sin = rotary(
            embeds[:1, :1].float(), position_ids
        )  # the first argument only tells a dtype and a device
        return embeds, (cos, sin)

    return positions


def _learned(table: nn.Embedding, p: float) -> Callable[..., tuple[Tensor, Rotation]]:
    def positions(embeds: Tensor, position_ids: Tensor, training: bool) -> tuple[Tensor, Rotation]:
        return dropout(embeds + table(position_ids), p if training else 0.0), None

    return positions


# ---- reading a decoder --------------------------------------------------------------------------------------

Parts = tuple[Shape, list[Layer], Norm, Callable[..., tuple[Tensor, Rotation]]]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise NotAdapted(what)


def _read_llama(lm: Any) -> Parts:
    config, model = lm.config, lm.model
    _require(not getattr(config, "sliding_window", None), "sliding-window attention")
    _require(config.hidden_act in _ACTIVATIONS, f"activation {config.hidden_act}")
    first = model.layers[0].self_attn
    shape = Shape(
        config.num_attention_heads,
        config.num_key_value_heads,
        first.head_dim,
        config.hidden_act,
        gated=True,
        attention_dropout=float(first.attention_dropout),
    )
    layers = [
        Layer(
            _norm(block.input_layernorm, config.rms_norm_eps),
            _linear(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            _linear(block.self_attn.o_proj),
            _norm(block.post_attention_layernorm, config.rms_norm_eps),
            _linear(block.mlp.gate_proj, block.mlp.up_proj),
            _linear(block.mlp.down_proj),
        )
        for block in model.layers
    ]
    return shape, layers, _norm(model.norm, config.rms_norm_eps), _rotary(model.rotary_emb)


def _read_gpt2(lm: Any) -> Parts:
    config, model = lm.config, lm.transformer
    _require(config.activation_function in _ACTIVATIONS, f"activation {config.activation_function}")
    usual = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    _require(usual and not config.add_cross_attention, "a variant of GPT-2's attention")
    _require(not model.wpe.weight.requires_grad, "positions that train")
    shape = Shape(
        config.n_head,
        config.n_head,
        config.n_embd // config.n_head,
        config.activation_function,
        gated=False,
        attention_dropout=float(config.attn_pdrop),
        residual_dropout=float(config.resid_pdrop),
    )
    layers = [
        Layer(
            _norm(block.ln_1, config.layer_norm_epsilon),
            _linear(block.attn.c_attn),
            _linear(block.attn.c_proj),
            _norm(block.ln_2, config.layer_norm_epsilon),
            _linear(block.mlp.c_fc),
            _linear(block.mlp.c_proj),
        )
        for block in model.h
    ]
    return (
        shape,
        layers,
        _norm(model.ln_f, config.layer_norm_epsilon),
        _learned(model.wpe, float(config.embd_pdrop)),
    )


def _norm(module: Any, epsilon: float) -> Norm:
    bias = getattr(module, "bias", None)
    _require(not module.weight.requires_grad, "norms that train")
    return Norm(module.weight.detach(), None if bias is None else bias.detach(), epsilon)


def _linear(*modules: Any) -> Linear:
    bases, adapters = [], []
    for module in modules:
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        _require(type(base) in (nn.Linear, Conv1D), f"a {type(base).__name__} where a linear map was expected")
        _require(not any(p.requires_grad for p in base.parameters(recurse=False)), "weights that train")
        bases.append(base)
        adapters.append(None if base is module else _adapter(module))
    there = [adapter for adapter in adapters if adapter is not None]
    _require(len(there) in (0, len(modules)), "adapters on some of the maps of a group")
    _require(len({(a.scale, a.dropout) for a in there}) < 2, "adapters that differ within a group")
    biases = [base.bias for base in bases if base.bias is not None]
    _require(len(biases) in (0, len(bases)), "biases on some of the maps of a group")
    together = None
    if there:
        first, second = [a.first[0] for a in there], [a.second[0] for a in there]
        together = Adapter(first, second, there[0].scale, there[0].dropout)
    return Linear(_joined(bases), torch.cat([b.detach() for b in biases]) if biases else None, together)


def _adapter(module: Any) -> Adapter:
    _require(hasattr(module, "lora_A") and not module.merged and not module.disable_adapters, "no active LoRA")
    _require(len(module.active_adapters) == 1, "several adapters at once")
    (name,) = module.active_adapters
    _require(name in module.lora_A and name not in module.lora_variant, "a variant of LoRA")
    first, second = module.lora_A[name], module.lora_B[name]
    _require(second.bias is None, "an adapter with a bias")
    p = getattr(module.lora_dropout[name], "p", 0.0)  # peft puts an Identity where there is none
    return Adapter([first.weight], [second.weight], float(module.scaling[name]), float(p))


def _joined(bases: list[Any]) -> Tensor:
    """(out, in) of all maps; they go on as slices of it, so that it takes no memory of its own."""
    if len(bases) == 1:
        weight = bases[0].weight.detach()
        return weight.t() if isinstance(bases[0], Conv1D) else weight
    _require(all(type(base) is nn.Linear for base in bases), "maps stored the other way")
    whole = torch.cat([base.weight.detach() for base in bases])
    for base, part in zip(bases, whole.split([len(base.weight) for base in bases]), strict=True):
        base.weight.data = part
    return whole
