"""LoRA: where it goes, that it starts as nothing, merges exactly, and is saved and applied again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from toy_captioners import TEXT, toy_captioner

from limner.models.lora import Lora, add_lora, apply_adapter, lora_targets, merged_weights

IDS = torch.tensor([[3, 4, 7, 10, 11, 3, 5, 8]])


def _lm(family: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = TEXT[family]()
    config.vocab_size = 64
    return hf.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", sorted(TEXT))
@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_a_merged_one_everything_it_should(family: str) -> None:
    lm = _lm(family)
    before = lm(IDS).logits
    adapted, sentence = add_lora(lm, Lora(r=4, alpha=8, dropout=0.0))
    assert sentence is None
    torch.testing.assert_close(adapted(IDS).logits, before)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name and ("attn" in name or "attention" in name) for name in trained)
    assert not any("mlp" in name for name in trained)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.2)
    after = adapted(IDS).logits
    assert (after - before).abs().max() > 1e-3
    bare = _lm(family)
    missing = bare.load_state_dict(merged_weights(adapted), strict=True)
    assert not missing.missing_keys
    torch.testing.assert_close(bare(IDS).logits, after, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "modules"),
    [("llama", 4), ("qwen3", 4), ("phi3", 2), ("gpt2", 2), ("opt", 4), ("gpt_neox", 2), ("phi", 4)],
)
def test_every_projection_of_every_layer(family: str, modules: int) -> None:
    adapted, _ = add_lora(_lm(family), Lora(r=2))
    pairs = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(pairs) == 2 * modules  # two layers


def test_the_known_number_of_parameters() -> None:
    """SmolLM-135M's dimensions with r = 16 on q, k, v, o: 1,843,200."""
    config = hf.LlamaConfig(
        hidden_size=576,
        intermediate_size=8,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=64,
    )
    adapted, _ = add_lora(hf.LlamaForCausalLM(config), Lora())
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 1_843_200


def test_an_unknown_family_says_where_it_goes() -> None:
    config = hf.StableLmConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
    )
    lm = hf.StableLmForCausalLM(config)
    targets, sentence = lora_targets(lm)
    assert targets == ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]
    assert sentence is not None and "stablelm" in sentence and "self_attn.q_proj" in sentence
    adapted, _ = add_lora(lm, Lora(r=2))
    assert len([n for n, _ in adapted.named_parameters() if "lora_A" in n]) == 8


@torch.no_grad()
def test_a_saved_adapter_is_applied_again_exactly(tmp_path: Path) -> None:
    vlm = toy_captioner(text="qwen2", lora=True)
    vlm.decoder.save_pretrained(tmp_path / "adapter")
    expected = vlm.decoder(IDS).logits
    fresh = toy_captioner(text="qwen2").language_model
    bare = {
        name.replace(".base_layer.", "."): t
        for name, t in vlm.language_model.state_dict().items()
        if "lora_" not in name
    }
    fresh.load_state_dict(bare)
    again = apply_adapter(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(IDS).logits, expected, rtol=0, atol=0)
    assert any(p.requires_grad for p in again.parameters())
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        apply_adapter(fresh, tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        apply_adapter(_lm("gpt2"), tmp_path / "adapter")
