"""The weights of the decoder-only families that `CachedStepModel` computes itself, in one form.

Llama, Mistral and Qwen2 differ from GPT-2 (and our `GPTModel`) in four things only: the norm, the feed-forward
(gated or not), biases, and how positions enter (rotated queries and keys, or learned vectors that are added).

Letters: D width, H query heads, Hkv key-value heads, K head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limner.models.packed import given_up


@dataclass
class Matrix:
    """Linear maps of the same input, their outputs side by side: weights (N_i, in) and biases (N_i) or None."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    modules: list[Any] = field(default_factory=list)
    """Whose weights they are."""

    def release(self) -> None:
        """Takes the weights from here and from their modules, which keep their shape (on the meta device)."""
        self.weights.clear()
        for module in self.modules:
            module.weight = given_up(module.weight)


@dataclass
class Norm:
    weight: Tensor  # (D,)
    bias: Tensor | None


@dataclass
class Layer:
    attention_norm: Norm
    qkv: Matrix  # D -> (H + 2 Hkv) K
    attention_output: Matrix  # H K -> D
    feed_forward_norm: Norm
    expand: Matrix  # D -> F, or D -> 2 F (gate, then up)
    contract: Matrix  # F -> D


@dataclass
class Weights:
    """A whole decoder. Tensors are the model's own wherever nothing had to be added to them."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    epsilon: float
    activation: str
    """"silu", "gelu", "gelu_tanh" or "relu"."""
    gated: bool
    root_mean_square: bool
    """RMSNorm; else LayerNorm."""
    embedding: Tensor  # (V, D)
    head: Matrix  # D -> V
    final_norm: Norm
    layers: list[Layer] = field(default_factory=list)
    positions: Tensor | None = None
    """Learned positions (S, D), or:"""
    frequencies: Tensor | None = None
    """(K / 2,) rotary angle a position, with"""
    rotary_scale: float = 1.0
    """by which rotated values are multiplied (attention scaling of YaRN)."""


class UnknownModel(Exception):
    """The model computes something that is not known here; its own forward has to be used."""


def read_weights(lm: Any) -> Weights:
    """The weights of a transformers LM of a known family (LoRA merged into them), or of a `GPTModel`.

    Raises:
        UnknownModel: it is of another family, or uses a variant of one that is not computed here.
        ValueError: it has given up its weights.
    """
    from limner.models.gpt import GPTModel

    if isinstance(lm, GPTModel):
        return _gpt(lm)
    if hasattr(lm, "get_base_model"):
        lm = lm.get_base_model()
    kind = getattr(getattr(lm, "config", None), "model_type", None)
    if kind in ("llama", "mistral", "qwen2"):
        return _llama(lm)
    if kind == "gpt2":
        return _gpt2(lm)
    raise UnknownModel(f"{kind} is not computed here")


def is_known(lm: Any) -> bool:
    """Whether `read_weights` can read the model."""
    try:
        read_weights(lm)
    except UnknownModel:
        return False
    return True


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
}


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UnknownModel(what)


def _matrix(*modules: Any) -> Matrix:
    bases = [module.get_base_layer() if hasattr(module, "get_base_layer") else module for module in modules]
    pairs = [_effective(module, base) for module, base in zip(modules, bases, strict=True)]
    return Matrix([weight for weight, _ in pairs], [bias for _, bias in pairs], bases)


def _effective(module: Any, base: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of a linear layer; the active LoRA adapters are added to a copy."""
    weight = base.weight.detach()
    if weight.is_meta:
        raise ValueError("The model has given up its weights (release=True); load it again for another step model.")
    if base is not module:
        _require(hasattr(module, "get_delta_weight"), "an adapter that is not LoRA")
        _require(not getattr(module, "lora_magnitude_vector", None), "DoRA")
        if not (module.merged or module.disable_adapters):
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    weight = weight + module.get_delta_weight(adapter).detach().to(weight)
    bias = None if base.bias is None else base.bias.detach()
    if type(base).__name__ == "Conv1D":  # GPT-2 stores (in, out)
        return weight.t(), bias
    _require(type(base) is nn.Linear, f"a {type(base).__name__} where a linear layer was expected")
    return weight, bias


def _norm(module: Any) -> Norm:
    bias = getattr(module, "bias", None)
    return Norm(module.weight.detach(), None if bias is None else bias.detach())


def _llama(lm: Any) -> Weights:
    config, model = lm.config, lm.model
    _require(config.hidden_act in _ACTIVATIONS, f"activation {config.hidden_act}")
    _require(not getattr(config, "sliding_window", None), "sliding-window attention")
    _require(type(model.embed_tokens) is nn.Embedding, "an embedding that is not stock")
    rotary = model.rotary_emb
    _require(rotary.rope_type in ("default", "linear", "llama3", "yarn"), f"{rotary.rope_type} rotary positions")
    weights = Weights(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_width=model.layers[0].self_attn.head_dim,
        epsilon=config.rms_norm_eps,
        activation=_ACTIVATIONS[config.hidden_act],
        gated=True,
        root_mean_square=True,
        embedding=model.embed_tokens.weight.detach(),
        head=_matrix(lm.lm_head),
        final_norm=_norm(model.norm),
        frequencies=rotary.inv_freq,
        rotary_scale=rotary.attention_scaling,
    )
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        weights.layers.append(
            Layer(
                _norm(block.input_layernorm),
                _matrix(attention.q_proj, attention.k_proj, attention.v_proj),
                _matrix(attention.o_proj),
                _norm(block.post_attention_layernorm),
                _matrix(mlp.gate_proj, mlp.up_proj),
                _matrix(mlp.down_proj),
            )
        )
    return weights


def _gpt2(lm: Any) -> Weights:
    config, model = lm.config, lm.transformer
    _require(config.activation_function in _ACTIVATIONS, f"activation {config.activation_function}")
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    _require(plain and not config.add_cross_attention, "a variant of GPT-2's attention")
    _require(type(model.wte) is nn.Embedding, "an embedding that is not stock")
    weights = Weights(
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_width=config.n_embd // config.n_head,
        epsilon=config.layer_norm_epsilon,
        activation=_ACTIVATIONS[config.activation_function],
        gated=False,
        root_mean_square=False,
        embedding=model.wte.weight.detach(),
        head=_matrix(lm.lm_head),
        final_norm=_norm(model.ln_f),
        positions=model.wpe.weight.detach(),
    )
    for block in model.h:
        weights.layers.append(
            Layer(
                _norm(block.ln_1),
                _matrix(block.attn.c_attn),
                _matrix(block.attn.c_proj),
                _norm(block.ln_2),
                _matrix(block.mlp.c_fc),
                _matrix(block.mlp.c_proj),
            )
        )
    return weights


def _gpt(model: Any) -> Weights:
    config = model.config
    weights = Weights(
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_width=config.head_width,
        epsilon=config.norm_epsilon,
        activation=config.activation,
        gated=False,
        root_mean_square=False,
        embedding=model.token_embedding.weight.detach(),
        head=_matrix(model.head),
        final_norm=_norm(model.final_norm),
        positions=model.position_embedding.weight.detach(),
    )
    for block in model.blocks:
        weights.layers.append(
            Layer(
                _norm(block.attention_norm),
                _matrix(block.attention.qkv),
                _matrix(block.attention.output),
                _norm(block.feed_forward_norm),
                _matrix(block.feed_forward.expand),
                _matrix(block.feed_forward.contract),
            )
        )
    return weights


def num_parameters(weights: Weights) -> int:
    """Numbers that one step reads: all matrices and norms, and of the embedding only if it is also the head."""
    matrices = [weights.head]
    for layer in weights.layers:
        matrices += [layer.qkv, layer.attention_output, layer.expand, layer.contract]
    return sum(
        tensor.numel() for matrix in matrices for tensor in (*matrix.weights, *matrix.biases) if tensor is not None
    )


def stacked(matrix: Matrix, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """One weight (N, in) and one bias (N) of a matrix, copied where it has several parts or another dtype."""
    weight = matrix.weights[0] if len(matrix.weights) == 1 else torch.cat(matrix.weights)
    if all(bias is None for bias in matrix.biases):
        return weight.to(dtype), None
    biases = [
        weight.new_zeros(len(part)) if bias is None else bias
        for part, bias in zip(matrix.weights, matrix.biases, strict=True)
    ]
    return weight.to(dtype), torch.cat(biases).to(dtype)
