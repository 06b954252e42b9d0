"""LoRA: where it goes, that it starts as nothing, merges exactly, and is saved and applied again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel
from toy_captioners import TEXT, toy_captioner

from limner.models.captioner import PrefixConditioningVLM
from limner.models.lora import Lora, add_lora, lora_targets, merged_weights
from limner.models.stock import load_adapter, save_adapter

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


def _without_adapter() -> PrefixConditioningVLM:
    return toy_captioner(text="qwen2", kind="mlp")


@torch.no_grad()
def test_a_saved_adapter_is_applied_again_exactly(tmp_path: Path) -> None:
    vlm = _without_adapter()
    start = copy.deepcopy(vlm)
    vlm.decoder, _ = add_lora(vlm.language_model, Lora(r=4, dropout=0.0))
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name or name.startswith("projection"):
            parameter.normal_(std=0.2)
    pixels = torch.randn(1, 3, 32, 32)
    expected = vlm(IDS, pixel_values=pixels)
    save_adapter(vlm, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 40_000  # no embeddings inside
    load_adapter(start, tmp_path / "adapter")
    torch.testing.assert_close(start.eval()(IDS, pixel_values=pixels), expected, rtol=0, atol=0)
    assert any(p.requires_grad for p in start.decoder.parameters())
    # and any PEFT reads it
    lm = _without_adapter().language_model
    theirs = PeftModel.from_pretrained(lm, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(theirs(IDS).logits, vlm.decoder(IDS).logits, rtol=0, atol=0)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no adapter to save"):
        save_adapter(_without_adapter(), tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match=r"lacks adapter_config\.json"):
        load_adapter(_without_adapter(), tmp_path)
    save_adapter(toy_captioner(text="qwen2", lora=True), tmp_path / "adapter")
    with pytest.raises(ValueError, match="of another shape"):
        load_adapter(_without_adapter(), tmp_path / "adapter")
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter(toy_captioner(text="gpt2"), tmp_path / "adapter")


def test_a_decoder_that_peft_gives_no_embeddings_is_refused() -> None:
    lm = hf.AutoModelForCausalLM.from_config(hf.MptConfig(d_model=32, n_layers=1, n_heads=4, max_seq_len=128))
    with pytest.raises(ValueError, match="add --no-lora"):
        add_lora(lm, Lora(r=4))
