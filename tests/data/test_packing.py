"""Packed captions compute what separate rows compute: losses, gradients, and nothing of each other."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from limner.data.packing import (
    LengthBuckets,
    PackedCaptions,
    block_mask,
    caption_tokens,
    flex_block_mask,
    pack_captions,
)

VOCABULARY, WIDTH, PROMPT, EOS = 97, 32, 7, 96
SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SIZES),
    "qwen2": Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, **SIZES),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=3, n_head=4, resid_pdrop=0.0),
}
CAPTIONS = [
    [[5, 9, 3, 2, EOS], [7, EOS], [11, 12, 13, 14, 15, 16, 17, EOS], [5, 9, 3, 2, EOS]],
    [[21, 22, EOS]],
    [[EOS], [31, 32, 33, 34, 35, 36, 37, 38, 39, 40]],  # a caption of EOS alone, and one that was cut
]


def decoder(family: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        deepcopy(CONFIGS[family]), attn_implementation=attention, dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():  # away from the timid initial values: scores that matter
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def prompts() -> torch.Tensor:
    return torch.randn(len(CAPTIONS), PROMPT, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def packed_losses(model, prompt_embeds: torch.Tensor, packed: PackedCaptions, mask) -> torch.Tensor:
    """(captions,) summed losses, with the head on labelled positions only."""
    tokens = model.get_input_embeddings()(packed.input_ids)
    embeds = torch.cat([prompt_embeds[packed.row_images], tokens], dim=1)
    hidden = model.base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=packed.position_ids, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[packed.label_positions])
    each = cross_entropy(logits, packed.labels, reduction="none")
    return torch.zeros(packed.num_captions).index_add(0, packed.label_captions, each)


def separate_losses(model, prompt_embeds: torch.Tensor, captions=CAPTIONS) -> torch.Tensor:
    """The plain way, written without any of the code under test: a row a caption, causal attention, full logits."""
    losses = []
    for image, of_image in enumerate(captions):
        for caption in of_image:
            fed = model.get_input_embeddings()(torch.tensor([caption[:-1]], dtype=torch.long))
            logits = model(inputs_embeds=torch.cat([prompt_embeds[image : image + 1], fed], 1)).logits[0]
            losses.append(cross_entropy(logits[PROMPT - 1 :], torch.tensor(caption), reduction="sum"))
    return torch.stack(losses)


def gradients(loss: torch.Tensor, model, prompt_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    prompt_embeds.grad = None
    loss.backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return named | {"prompt": prompt_embeds.grad.clone()}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pack", [True, False])
def test_losses_and_gradients_equal_those_of_separate_rows(family: str, attention: str, pack: bool) -> None:
    model, prompt_embeds = decoder(family, attention), prompts()
    packed = pack_captions(CAPTIONS, PROMPT, pad_id=50, pack=pack, pad_to_multiple=8)
    mask = block_mask(packed.document_ids, torch.bool if attention == "sdpa" else torch.float32)
    losses = packed_losses(model, prompt_embeds, packed, mask)
    expected = separate_losses(model, prompt_embeds)
    assert (losses - expected).abs().max() < 1e-5 * expected.abs().max()
    weights = torch.linspace(0.5, 2.0, len(losses))  # so that captions cannot stand in for each other
    ours = gradients((losses * weights).sum(), model, prompt_embeds)
    theirs = gradients((expected * weights).sum(), model, prompt_embeds)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < 1e-5 * gradient.norm(), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_sdpa() -> None:
    """Uncompiled, as a compilation takes half a minute; whole models, compiled: docs/LOG.md."""
    packed = pack_captions(CAPTIONS, PROMPT)
    flex, dense = flex_block_mask(packed.document_ids), block_mask(packed.document_ids)
    rows, queries, keys = torch.meshgrid(*(torch.arange(n) for n in dense[:, 0].shape), indexing="ij")
    assert torch.equal(flex.mask_mod(rows, 0, queries, keys), dense[:, 0])
    query, key, value = torch.randn(3, len(CAPTIONS), 2, dense.shape[-1], 16)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=dense)
    assert (flex_attention(query, key, value, block_mask=flex) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", CONFIGS)
def test_captions_do_not_leak_into_each_other(family: str) -> None:
    """No gradient, not the smallest, flows from one caption's loss into another's tokens; nor do values."""
    model, prompt_embeds = decoder(family), prompts()
    packed = pack_captions(CAPTIONS, PROMPT)
    mask = block_mask(packed.document_ids)
    tokens = model.get_input_embeddings()(packed.input_ids).detach().requires_grad_()
    embeds = torch.cat([prompt_embeds[packed.row_images], tokens], dim=1)
    hidden = model.base_model(inputs_embeds=embeds, attention_mask=mask, position_ids=packed.position_ids)[0]
    logits = model.lm_head(hidden.flatten(0, 1)[packed.label_positions])
    each = cross_entropy(logits, packed.labels, reduction="none")
    documents = packed.document_ids[:, PROMPT:]
    for caption, (row, document) in enumerate([(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (2, 1), (2, 2)]):
        (gradient,) = torch.autograd.grad(each[packed.label_captions == caption].sum(), tokens, retain_graph=True)
        touched = gradient.abs().sum(-1) > 0  # (B, T)
        own = torch.zeros_like(touched)
        own[row] = documents[row] == document
        assert torch.equal(touched, own)
    changed = [[list(caption) for caption in image] for image in CAPTIONS]
    changed[0][0] = [60, 61, 62, 63, EOS]
    other = pack_captions(changed, PROMPT)
    with torch.no_grad():
        before = packed_losses(model, prompt_embeds, packed, mask)
        after = packed_losses(model, prompt_embeds, other, block_mask(other.document_ids))
    assert torch.equal(before[1:], after[1:])
    assert before[0] != after[0]


def test_the_layout_is_what_the_module_draws() -> None:
    packed = pack_captions([[[1, 2, 3, EOS], [4, EOS]], [[5, 6, EOS]]], prompt_length=3, pad_id=9)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 9, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3], [0, 1, 2, 3, 4, 0, 0]]
    assert packed.document_ids.tolist() == [[0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2]]
    assert packed.label_positions.tolist() == [2, 3, 4, 5, 2, 6, 9, 10, 11]
    assert packed.labels.tolist() == [1, 2, 3, EOS, 4, EOS, 5, 6, EOS]
    assert packed.label_captions.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert packed.row_images.tolist() == [0, 1]
    plain = pack_captions([[[1, 2, 3, EOS], [4, EOS]], [[5, 6, EOS]]], prompt_length=3, pad_id=9, pack=False)
    assert plain.input_ids.tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert plain.row_images.tolist() == [0, 0, 1]
    assert set(packed.tensors()) == {field for field in vars(packed) if field != "num_captions"}


def test_one_eos_after_a_caption_and_none_after_a_cut_one() -> None:
    letters = {"ab": [1, 2], "abcd": [1, 2, 3, 4], "abcde": [1, 2, 3, 4, 5], "": []}
    tokens, num_cut = caption_tokens(["ab", "abcd", "abcde"], letters.__getitem__, EOS, max_length=5)
    assert tokens == [[1, 2, EOS], [1, 2, 3, 4, EOS], [1, 2, 3, 4, 5]]
    assert num_cut == 1
    with pytest.raises(ValueError, match="has no tokens"):
        caption_tokens([""], letters.__getitem__, EOS, max_length=5)


def test_length_buckets_keep_steps_and_cut_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 120, 1003)
    buckets = LengthBuckets(lengths, batch_size=4, seed=42, window=64)
    permutation = rng.permutation(1003)
    order = buckets(permutation, epoch=2)
    for start in range(0, 1003, 64):  # a step of 64 keeps its examples
        assert sorted(order[start : start + 64]) == sorted(permutation[start : start + 64])
    assert np.array_equal(order, buckets(permutation, epoch=2))
    assert not np.array_equal(order, buckets(permutation, epoch=3))

    def padding(indices: np.ndarray) -> float:
        batches = [lengths[indices[k : k + 4]] for k in range(0, 1000, 4)]
        return sum(batch.max() * len(batch) for batch in batches) / lengths[indices[:1000]].sum() - 1

    assert padding(order) < 0.08 < 0.5 < padding(permutation)
    firsts = lengths[order[:64:4]]
    assert not np.array_equal(firsts, np.sort(firsts))  # the batches of a step do not come by length
    with pytest.raises(ValueError, match="multiple of the batch size"):
        LengthBuckets(lengths, batch_size=4, seed=1, window=66)
