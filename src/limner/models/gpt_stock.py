"""A GPTModel as a stock GPT-2 checkpoint, and back: the names and layouts of `transformers.GPT2LMHeadModel`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limner.models.gpt import GPTConfig, GPTModel

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2LMHeadModel

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
_STOCK_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def save(model: GPTModel, folder: Path, eos_id: int | None = None) -> None:
    """Writes config.json, generation_config.json and model.safetensors.

    Args:
        eos_id: the token that ends a text; None: the tokenizer has none, or the caller does not know.
    """
    from limner.models.hub import quiet_transformers

    with quiet_transformers():
        to_stock(model, eos_id).save_pretrained(folder)


def load(source: str, overrides: dict[str, Any]) -> GPTModel:
    """Reads a checkpoint that `GPTModel` can compute; see `GPTModel.from_pretrained`."""
    from transformers import AutoConfig, GPT2LMHeadModel

    from limner.models.hub import load_stock

    stock_config = load_stock(AutoConfig, source, "language model")
    if stock_config.model_type != "gpt2":
        raise ValueError(
            f"{source} is a '{stock_config.model_type}' model; GPTModel reads GPT-2-family checkpoints only."
        )
    return from_stock(load_stock(GPT2LMHeadModel, source, "language model", dtype=torch.float32), overrides)


def config_from_stock(stock: GPT2Config) -> GPTConfig:
    """The GPTConfig that computes what a stock configuration says.

    Of its three dropouts, the one after attention and feed-forward (``resid_pdrop``) becomes GPTModel's only one.

    Raises:
        ValueError: it asks for what GPTModel does not compute.
    """
    if stock.activation_function not in _STOCK_ACTIVATIONS:
        raise ValueError(f"GPTModel has no activation '{stock.activation_function}'.")
    if not stock.scale_attn_weights or stock.scale_attn_by_inverse_layer_idx or stock.add_cross_attention:
        raise ValueError(
            "GPTModel computes plain scaled dot-product attention; the checkpoint asks for unscaled, "
            "layer-scaled or cross attention."
        )
    return GPTConfig(
        vocab_size=stock.vocab_size,
        context_length=stock.n_positions,
        width=stock.n_embd,
        num_heads=stock.n_head,
        num_layers=stock.n_layer,
        dropout=stock.resid_pdrop,
        qkv_bias=True,
        tie_embeddings=stock.tie_word_embeddings,
        activation=_STOCK_ACTIVATIONS[stock.activation_function],  # type: ignore[arg-type]
        feed_forward_width=stock.n_inner,
        norm_epsilon=stock.layer_norm_epsilon,
    )


def config_to_stock(config: GPTConfig, eos_id: int | None = None) -> GPT2Config:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.width,
        n_head=config.num_heads,
        n_layer=config.num_layers,
        n_inner=config.feed_forward_width,
        activation_function=_ACTIVATIONS[config.activation],
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        layer_norm_epsilon=config.norm_epsilon,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )


def from_stock(stock: GPT2LMHeadModel, overrides: dict[str, Any] | None = None) -> GPTModel:
    """A GPTModel with a copy of a stock model's weights, in fp32.

    Query, key and value biases that are all zero are left out, since `to_stock` writes such where there are none: a
    trained model comes back as it was saved, but one whose biases are still as they began comes back without.
    """
    weights = {name: tensor.detach().float() for name, tensor in stock.state_dict().items()}
    config = config_from_stock(stock.config)
    biases = [weights[f"transformer.h.{layer}.attn.c_attn.bias"] for layer in range(config.num_layers)]
    fields = {"qkv_bias": any(bool(bias.any()) for bias in biases)} | (overrides or {})
    config = replace(config, **fields)
    with torch.device("meta"):
        model = GPTModel(config)
    state = {}
    for ours, theirs, transposed in _names(config):
        tensor = weights[theirs]
        state[ours] = (tensor.t() if transposed else tensor).clone(memory_format=torch.contiguous_format)
    model.load_state_dict(state, assign=True, strict=not config.tie_embeddings)
    if config.tie_embeddings:
        model.head.weight = model.token_embedding.weight
    return model


def to_stock(model: GPTModel, eos_id: int | None = None) -> GPT2LMHeadModel:
    """A stock model with a copy of the weights, in fp32; it computes the same logits."""
    from transformers import GPT2LMHeadModel

    config = model.config
    stock = GPT2LMHeadModel(config_to_stock(config, eos_id))
    ours = model.state_dict()
    state: dict[str, Tensor] = {}
    for name, theirs, transposed in _names(config):
        tensor = ours[name].detach().float()
        state[theirs] = tensor.t() if transposed else tensor
    for layer in range(config.num_layers):
        state.setdefault(f"transformer.h.{layer}.attn.c_attn.bias", torch.zeros(3 * config.width))
    missing, unexpected = stock.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    stock.tie_weights()
    return stock.eval()


def _names(config: GPTConfig) -> Iterator[tuple[str, str, bool]]:
    """(our name, the stock name, whether the matrix is stored transposed: GPT-2's "Conv1D" is (in, out))."""
    yield "token_embedding.weight", "transformer.wte.weight", False
    yield "position_embedding.weight", "transformer.wpe.weight", False
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for norm, stock_norm in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            for part in ("weight", "bias"):
                yield f"{ours}.{norm}.{part}", f"{theirs}.{stock_norm}.{part}", False
        matrices = {
            "attention.qkv": "attn.c_attn",
            "attention.output": "attn.c_proj",
            "feed_forward.expand": "mlp.c_fc",
            "feed_forward.contract": "mlp.c_proj",
        }
        for matrix, stock_matrix in matrices.items():
            yield f"{ours}.{matrix}.weight", f"{theirs}.{stock_matrix}.weight", True
            if matrix != "attention.qkv" or config.qkv_bias:
                yield f"{ours}.{matrix}.bias", f"{theirs}.{stock_matrix}.bias", False
    for part in ("weight", "bias"):
        yield f"final_norm.{part}", f"transformer.ln_f.{part}", False
    if not config.tie_embeddings:
        yield "head.weight", "lm_head.weight", False
