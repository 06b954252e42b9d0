"""A decoder's stack as it is trained computes what transformers and peft compute: states and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor, nn
from toy_captioners import toy_captioner

from limner.data.packing import block_mask, flex_block_mask, pack_captions
from limner.device import compiles
from limner.models import decoder as decoders
from limner.models.adapted import AdaptedStack, NotAdapted
from limner.models.lora import Lora, add_lora

PROMPT, WIDTH = 9, 32
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(num_key_value_heads=2, **SIZES),
    "llama_biased": lambda: hf.LlamaConfig(num_key_value_heads=1, attention_bias=True, **SIZES),
    "mistral": lambda: hf.MistralConfig(num_key_value_heads=2, sliding_window=None, **SIZES),
    "qwen2": lambda: hf.Qwen2Config(num_key_value_heads=2, **SIZES),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=61, n_embd=WIDTH, n_layer=3, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}
CAPTIONS = [[[5, 9, 3, 2, 1], [7, 1], [11, 12, 13, 14, 15, 16, 17, 1]], [[21, 22, 1]], [[1], [31, 32, 33, 34, 1]]]
PACKED = pack_captions(CAPTIONS, PROMPT)


def adapted(family: str, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> PeftModel:
    """A decoder whose adapters are not zero, and whose biases and norms say something."""
    torch.manual_seed(0)
    lm = hf.AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="sdpa", dtype=torch.float32)
    model, _ = add_lora(lm, Lora(r=4, alpha=8, dropout=dropout))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return model.train()


def embeds(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*PACKED.document_ids.shape, WIDTH, generator=generator).to(dtype).requires_grad_()


def stock(model: PeftModel, x: Tensor) -> Tensor:
    """(L, D), by transformers and peft."""
    mask = block_mask(PACKED.document_ids)
    stack = decoders.stack(model.get_base_model())
    hidden = stack(inputs_embeds=x, attention_mask=mask, position_ids=PACKED.position_ids, use_cache=False)[0]
    return hidden.flatten(0, 1)[PACKED.label_positions]


def ours(stack: AdaptedStack, x: Tensor, training: bool = True) -> Tensor:
    mask = block_mask(PACKED.document_ids, torch.float32)
    return stack(x, mask, PACKED.position_ids, PACKED.label_positions, training)


def states_and_gradients(run: Any, model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    states = run(x)
    slopes = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states.float() * slopes).sum().backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return named | {"states": states.detach().float(), "embeds": x.grad.float()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys() and any("lora_A" in name for name in a)
    for name, expected in b.items():
        assert (a[name] - expected).norm() < tolerance * expected.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_states_and_gradients_are_those_of_transformers_and_peft(family: str, recompute: bool) -> None:
    model = adapted(family)
    theirs = states_and_gradients(lambda x: stock(model, x), model, embeds())
    stack = AdaptedStack(model.get_base_model())
    stack.recompute = recompute
    assert_equal(states_and_gradients(lambda x: ours(stack, x), model, embeds()), theirs, 1e-5)
    # the weights that the stack took are still the model's own
    assert_equal(states_and_gradients(lambda x: stock(model, x), model, embeds()), theirs, 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not compiles(), reason="torch.compile needs a C++ compiler and Python's headers")
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_compiled_layers_are_those_of_transformers_and_peft(family: str) -> None:
    model = adapted(family)
    theirs = states_and_gradients(lambda x: stock(model, x), model, embeds())
    stack = AdaptedStack(model.get_base_model())
    stack.compile()
    assert_equal(states_and_gradients(lambda x: ours(stack, x), model, embeds()), theirs, 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not compiles(), reason="torch.compile needs a C++ compiler and Python's headers")
def test_compiled_layers_keep_no_dropped_inputs() -> None:
    """Of states as wide as the stream, only a layer's two sums: the adapters' inputs are made again from them."""
    model = adapted("llama", dropout=0.5)
    stack, x = AdaptedStack(model.get_base_model()), embeds()
    stack.compile()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ours(stack, x)
    states = [t for t in kept.values() if t.numel() == x.numel() and t.dtype == x.dtype and t.dim() < 4]
    assert len(states) == 2 * len(stack.layers) - 1  # the last layer's second sum is made for labels only


def test_of_the_feed_forward_only_gate_and_up_are_kept() -> None:
    stack, x, kept = AdaptedStack(adapted("llama").get_base_model()), embeds(), set()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-1] % 48 == 0 and tensor.shape[:2] == x.shape[:2]:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = ours(stack, x)
    assert len(kept) == len(stack.layers) - 1  # side by side; of the last layer, for labels only
    states.sum().backward()


class SameDrops(nn.Module):
    """A dropout whose mask depends on nothing but the shape of what is dropped."""

    p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * same_drops(x)


def same_drops(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(x.shape))
    return (torch.rand(x.shape, generator=generator) < 0.5).to(x.dtype) * 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_the_same_drops_it_is_the_same_function(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(family, dropout=0.5)
    everywhere = torch.arange(PACKED.document_ids.numel())  # so that all layers drop from the same shape
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = SameDrops()
    packed = PACKED.label_positions
    monkeypatch.setattr(PACKED, "label_positions", everywhere)
    theirs = states_and_gradients(lambda x: stock(model, x).view(-1, WIDTH), model, embeds())
    stack = AdaptedStack(model.get_base_model())
    assert all(layer.qkv.adapter and layer.qkv.adapter.dropout == 0.5 for layer in stack.layers)
    monkeypatch.setattr("limner.models.adapted.dropout", lambda x, p: x * same_drops(x) if p else x)
    assert_equal(states_and_gradients(lambda x: ours(stack, x), model, embeds()), theirs, 1e-5)
    assert len(packed) != len(everywhere)


def test_dropout_is_off_in_evaluation_and_seeded_in_training() -> None:
    model = adapted("llama", dropout=0.3)
    stack, x = AdaptedStack(model.get_base_model()), embeds()
    still = ours(stack, x, training=False)
    assert torch.equal(still, ours(stack, x, training=False))
    assert torch.allclose(still, stock(model.eval(), x), atol=1e-5)
    torch.manual_seed(3)
    first = ours(stack, x)
    assert not torch.equal(first, ours(stack, x))
    torch.manual_seed(3)
    assert torch.equal(first, ours(stack, x))


def test_a_base_in_bf16_follows_fp32() -> None:
    exact, half = adapted("llama"), adapted("llama", dtype=torch.bfloat16)
    theirs = states_and_gradients(lambda x: stock(exact, x), exact, embeds())
    stack = AdaptedStack(half.get_base_model())
    mine = states_and_gradients(lambda x: ours(stack, x), half, embeds(torch.bfloat16))
    assert_equal(mine, theirs, 0.03)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in half.parameters())


def test_what_it_does_not_compute_is_left_to_transformers() -> None:
    for family in ("phi3", "opt", "gemma2"):
        with pytest.raises(NotAdapted):
            AdaptedStack(toy_captioner(text=family, lora=True).language_model)
    with pytest.raises(NotAdapted, match="train"):
        AdaptedStack(toy_captioner(text="llama").language_model)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_states() -> None:
    """Forward and uncompiled, as far as CPUs go; `benchmarks/finetune.py --device cuda` is the rest."""
    stack, x = AdaptedStack(adapted("llama").get_base_model()), embeds()
    assert not stack.can_flex and stack.shape.head_width == 8
    with torch.no_grad():
        mask = flex_block_mask(PACKED.document_ids)
        flexed = stack(x, mask, PACKED.position_ids, PACKED.label_positions)
        assert torch.allclose(flexed, ours(stack, x, training=False), atol=1e-5)
