"""GPTModel against transformers' GPT-2, and against what attention must be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from limner.models.gpt import PRESETS, GPTConfig, GPTModel
from limner.models.gpt_stock import from_stock, to_stock

TINY = GPTConfig(vocab_size=97, context_length=32, width=32, num_heads=4, num_layers=3, dropout=0.0)


def tiny(seed: int = 0, **fields) -> GPTModel:
    torch.manual_seed(seed)
    model = GPTModel(replace(TINY, **fields)).eval()
    for parameter in model.parameters():  # away from the tidy initial values, where mistakes can hide
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def tokens(batch: int = 2, length: int = 16, vocab: int = 97, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def random_stock(seed: int = 0, **fields):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    settings = {"vocab_size": 97, "n_positions": 32, "n_embd": 32, "n_head": 4, "n_layer": 3} | fields
    stock = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **settings)).eval()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return stock


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", ["manual", "sdpa"])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_weights_from_stock_give_its_logits(tied, attention, activation):
    stock = random_stock(tie_word_embeddings=tied, activation_function=activation, n_inner=48)
    model = from_stock(stock, {"attention": attention}).eval()
    ids = tokens()
    assert_close(model(ids), stock(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_stock(tied):
    stock = random_stock(tie_word_embeddings=tied)
    model = from_stock(stock, {"attention": "manual"}).eval()
    ids = tokens(3, 24)
    stock_loss = stock(ids, labels=ids).loss
    stock_loss.backward()
    loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    assert_close(loss, stock_loss, atol=1e-4, rtol=1e-4)
    theirs = dict(stock.named_parameters())
    pairs = [
        ("token_embedding.weight", "transformer.wte.weight", False),
        ("blocks.1.attention.qkv.weight", "transformer.h.1.attn.c_attn.weight", True),
        ("blocks.1.attention.qkv.bias", "transformer.h.1.attn.c_attn.bias", False),
        ("blocks.2.feed_forward.contract.weight", "transformer.h.2.mlp.c_proj.weight", True),
        ("blocks.0.attention_norm.bias", "transformer.h.0.ln_1.bias", False),
        ("position_embedding.weight", "transformer.wpe.weight", False),
    ]
    ours = dict(model.named_parameters())
    for name, stock_name, transposed in pairs:
        expected = theirs[stock_name].grad
        assert expected is not None and expected.abs().max() > 1e-4
        assert_close(ours[name].grad, expected.t() if transposed else expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_saved_model_is_stock(tmp_path, tied, qkv_bias):
    from transformers import AutoModelForCausalLM

    model = tiny(tie_embeddings=tied, qkv_bias=qkv_bias)
    model.save_pretrained(tmp_path, eos_id=3)
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert stock.config.eos_token_id == 3 and stock.generation_config.eos_token_id == 3
    ids = tokens()
    assert_close(stock(ids).logits, model(ids), atol=1e-5, rtol=1e-5)
    again = GPTModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.eval()(ids), model(ids))


def test_greedy_tokens_equal_stock_generate():
    stock = random_stock()
    model = from_stock(stock).eval()
    ids = tokens(2, 5)
    expected = stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    cache = model.new_cache(2, 25)
    with torch.no_grad():
        hidden = model.hidden(ids, cache=cache)
        for _ in range(20):
            next_token = model.logits(hidden[:, -1]).argmax(-1, keepdim=True)
            ids = torch.cat([ids, next_token], dim=1)
            if ids.shape[1] < 25:
                hidden = model.hidden(next_token, cache=cache)
    assert torch.equal(ids, expected)


def test_other_families_and_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="'llama' model"):
        GPTModel.from_pretrained(tmp_path / "llama")
    tiny().save_pretrained(tmp_path / "gpt")
    weights = load_file(tmp_path / "gpt" / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "gpt" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight"):
        GPTModel.from_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match="unscaled"):
        from_stock(random_stock(scale_attn_by_inverse_layer_idx=True))


def test_attention_paths_agree():
    model = tiny()
    other = GPTModel(replace(model.config, attention="manual")).eval()
    other.load_state_dict(model.state_dict())
    ids = tokens(2, 32)
    assert_close(other(ids), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["manual", "sdpa"])
def test_a_later_token_never_changes_earlier_logits(attention):
    model = tiny(attention=attention)
    ids = tokens(1, 20)
    before = model(ids)
    for changed in (5, 12, 19):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 97
        after = model(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed])


def test_attention_rows_sum_to_one_and_look_only_back():
    model = tiny()
    ids = tokens(2, 10)
    expected = model(ids)
    maps = model.attention_maps(ids)
    assert maps.shape == (3, 2, 4, 10, 10)
    assert_close(maps.sum(-1), torch.ones(3, 2, 4, 10))
    assert torch.equal(maps, maps.tril())
    assert torch.equal(model(ids), expected)  # looking changes nothing


@pytest.mark.parametrize("attention", ["manual", "sdpa"])
def test_cache_and_padding_equal_the_plain_forward(attention):
    model = tiny(attention=attention)
    short, long = tokens(1, 7, seed=2), tokens(1, 11, seed=3)
    more = tokens(2, 3, seed=4)
    # Left-padded by four, in two pieces through the cache, against each text alone.
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), long])
    visible = torch.ones(2, 14, dtype=torch.bool)
    visible[0, :4] = False
    positions = torch.stack([torch.arange(14) - 4, torch.arange(14)]).clamp(min=0)
    cache = model.new_cache(2, 14)
    first = model.hidden(padded, positions=positions[:, :11], cache=cache, visible=visible[:, :11])
    second = model.hidden(more, positions=positions[:, 11:], cache=cache, visible=visible)
    alone_short = model.hidden(torch.cat([short, more[:1]], 1))
    alone_long = model.hidden(torch.cat([long, more[1:]], 1))
    assert_close(torch.cat([first[0, 4:], second[0]]), alone_short[0], atol=1e-5, rtol=1e-5)
    assert_close(torch.cat([first[1], second[1]]), alone_long[0], atol=1e-5, rtol=1e-5)
    assert cache.length == 14


def test_embeds_and_selected_cache_rows():
    model = tiny()
    ids = tokens(3, 6)
    assert torch.equal(model.hidden(embeds=model.embed(ids)), model.hidden(ids))
    cache = model.new_cache(3, 8)
    model.hidden(ids, cache=cache)
    chosen = cache.select(torch.tensor([2, 2, 0]))
    step = tokens(3, 1, seed=5)
    plain = model.hidden(torch.cat([ids[[2, 2, 0]], step], 1))[:, -1:]
    assert_close(model.hidden(step, cache=chosen), plain, atol=1e-5, rtol=1e-5)


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match="context holds 32 tokens; 33 were given"):
        tiny()(tokens(1, 33))


@pytest.mark.parametrize(
    ("preset", "tied", "expected"),
    [
        ("nano", False, 30.5e6),
        ("small", False, 76.9e6),
        ("medium", False, 163.0e6),
        ("medium", True, 124.4e6),
        ("gpt2-124m", True, 124_439_808),
    ],
)
def test_preset_sizes(preset, tied, expected):
    with torch.device("meta"):
        model = GPTModel(replace(PRESETS[preset], tie_embeddings=tied))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(expected, rel=2e-3)


def test_nano_gives_logits_of_its_vocabulary():
    assert GPTModel(PRESETS["nano"])(tokens(2, 64, 50257)).shape == (2, 64, 50257)


def test_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    model = GPTModel(replace(TINY, vocab_size=5000))
    ids = tokens(4, 32, 5000)
    loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(torch.tensor(5000.0).log().item(), abs=0.05)


def test_dropout_acts_in_training_only():
    model = tiny(dropout=0.2)
    ids = tokens()
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids))


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="30 cannot be split among 4 heads"):
        GPTConfig(width=30, num_heads=4)
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        GPTConfig(num_layers=0)
    for width in (0, -3):
        with pytest.raises(ValueError, match=f"feed_forward_width must be at least 1; it is {width}"):
            GPTConfig(feed_forward_width=width)
    with pytest.raises(ValueError, match="'gelu' or 'relu'; it is 'swish'"):
        GPTConfig(activation="swish")


def test_stock_copy_shares_nothing():
    model = tiny()
    stock = to_stock(model)
    with torch.no_grad():
        stock.transformer.wpe.weight.zero_()
    assert model.position_embedding.weight.abs().max() > 0
