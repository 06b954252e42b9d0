"""The captioner's arithmetic: prompts, masks, positions, the head where it is wanted, and what trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from toy_captioners import LLAVA_CARRIES, LLAVA_REFUSES, TEXT, VISION, WORDS, toy_captioner, toy_tokenizer

from limner.models import encoder as encoders
from limner.models import stock
from limner.models.captioner import build_captioner
from limner.models.decoder import IMAGE_TOKEN, load_decoder, prompt_bos
from limner.models.lora import Lora

A = torch.tensor([[3, 4, 7, 10]])
B = torch.tensor([[3, 6, 9]])


@torch.no_grad()
def _alone(vlm: torch.nn.Module, features: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
    return vlm(caption, features=features)[0, 1:]  # (N, V) at the caption's own positions


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("text", LLAVA_CARRIES + LLAVA_REFUSES)
@torch.no_grad()
def test_packed_captions_equal_separate_rows(text: str, lora: bool) -> None:
    """What training does: two captions behind one prefix, kept apart by a mask, positions restarting."""
    vlm = toy_captioner(text=text, lora=lora)
    features = vlm.features(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    prompt = vlm.num_prompt_tokens
    a, b = A.shape[1], B.shape[1]
    total = prompt + a + b
    allowed = torch.ones(total, total, dtype=torch.bool).tril()
    allowed[prompt + a :, prompt : prompt + a] = False
    positions = torch.cat([torch.arange(prompt + a), prompt + torch.arange(b)])[None]
    for mask in (allowed[None, None], _additive(allowed)[None, None]):
        both = vlm(torch.cat([A, B], 1), features=features, attention_mask=mask, position_ids=positions)[0, 1:]
        torch.testing.assert_close(both[:a], _alone(vlm, features, A), rtol=0, atol=2e-5)
        torch.testing.assert_close(both[a:], _alone(vlm, features, B), rtol=0, atol=2e-5)


def _additive(allowed: torch.Tensor) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


@torch.no_grad()
def test_the_head_only_where_it_is_wanted() -> None:
    vlm = toy_captioner()
    pixels = torch.randn(2, 3, 32, 32)
    captions = torch.cat([A, A], 0)
    every = vlm(captions, pixel_values=pixels)  # (2, N + 1, V)
    at = torch.zeros(2, vlm.num_prompt_tokens + 4, dtype=torch.bool)
    at[0, -1] = at[1, -3] = True
    torch.testing.assert_close(vlm(captions, pixel_values=pixels, at=at), torch.stack([every[0, -1], every[1, -3]]))
    with pytest.raises(ValueError, match="either pixel_values or features"):
        vlm(captions)


@pytest.mark.parametrize("text", ["llama", "opt_narrow", "gemma2", "granite", "phi"])
@torch.no_grad()
def test_logits_are_the_decoders_own(text: str) -> None:
    vlm = toy_captioner(text=text)
    features = vlm.features(torch.randn(1, 3, 32, 32))
    prompt = vlm.prompt_embeds(features)
    assert prompt.shape == (1, vlm.num_prompt_tokens, vlm.embed_tokens.embedding_dim)
    theirs = vlm.language_model(inputs_embeds=torch.cat([prompt, vlm.embed_tokens(A)], 1)).logits
    torch.testing.assert_close(vlm(A, features=features), theirs[:, prompt.shape[1] - 1 :], rtol=0, atol=1e-5)


def test_features_of_a_frozen_encoder_carry_no_gradient() -> None:
    frozen = toy_captioner(freeze_vision=True)
    features = frozen.features(torch.randn(1, 3, 32, 32))
    assert not features.requires_grad and not any(p.requires_grad for p in frozen.encoder.parameters())
    frozen.train()
    assert not frozen.encoder.training and frozen.decoder.training
    vlm = toy_captioner()  # built from configurations: the encoder trains
    vlm(A, pixel_values=torch.randn(1, 3, 32, 32)).sum().backward()
    trained = {name for name, p in vlm.encoder.named_parameters() if p.requires_grad}
    reached = {name for name, p in vlm.encoder.named_parameters() if p.grad is not None}
    assert trained == reached and any("layers.1." in name for name in trained)
    assert not any("layers.2." in name or "head" in name or "post_layernorm" in name for name in trained)


def test_the_last_layers_alone() -> None:
    vlm = toy_captioner(freeze_vision=True, unfreeze_vision_layers=1)
    trained = {name.split(".")[2] for name, p in vlm.encoder.named_parameters() if p.requires_grad}
    assert trained == {"1"}  # of three layers the last is beyond feature layer -2
    assert vlm.features(torch.randn(1, 3, 32, 32)).requires_grad
    with pytest.raises(ValueError, match="has 2 layers in use"):
        vlm.freeze_encoder(3)
    with pytest.raises(ValueError, match="cannot be opened"):
        toy_captioner("resnet").freeze_encoder(1)


def test_frozen_weights_in_bf16_and_trained_ones_in_fp32() -> None:
    vlm = toy_captioner(text="gpt2", lora=True, freeze_vision=True)
    pixels = torch.randn(2, 3, 32, 32)
    captions = torch.cat([A, A], 0)
    exact = vlm(captions, pixel_values=pixels).detach()
    vlm.keep_frozen_in(torch.bfloat16)
    kinds = (
        {p.dtype for p in vlm.parameters() if p.requires_grad},
        {p.dtype for p in vlm.parameters() if not p.requires_grad},
    )
    assert kinds == ({torch.float32}, {torch.bfloat16})
    rough = vlm(captions, pixel_values=pixels)
    rough.float().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vlm.parameters() if p.requires_grad)
    assert float((rough.detach().float() - exact).norm() / exact.norm()) < 0.03


def test_trunks_with_batch_statistics_stay_in_fp32() -> None:
    vlm = toy_captioner("mobilenet_v2", freeze_vision=True)
    vlm.keep_frozen_in(torch.bfloat16)
    assert vlm.encoder.dtype == torch.float32


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (
        build_captioner(
            VISION["siglip"](),
            TEXT["llama"](),
            "mlp",
            tokenizer=toy_tokenizer(),
            lora=Lora(r=2),
            seed=seed,
            say=str,
        ).state_dict()
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projection.linear_1.weight"], other["projection.linear_1.weight"])
    assert torch.equal(state, torch.get_rng_state())


# ---- tokenizers ----------------------------------------------------------------------------------------


def test_room_for_the_image_token() -> None:
    said: list[str] = []
    lm, words = load_decoder(TEXT["llama"](), toy_tokenizer(), say=said.append)
    assert words.convert_tokens_to_ids(IMAGE_TOKEN) == len(WORDS)
    assert lm.get_input_embeddings().num_embeddings == lm.config.vocab_size == 64
    assert lm.generation_config.suppress_tokens == list(range(len(WORDS), 64))
    assert words("a red circle")["input_ids"] == [3, 4, 7]
    assert words(f"{IMAGE_TOKEN}<s> a")["input_ids"] == [len(WORDS), 0, 3]
    assert said == []


def test_a_checkpoint_grows_once_with_a_reason(tmp_path: Path) -> None:
    config = hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16, bos_token_id=1, eos_token_id=1)
    lm = hf.GPT2LMHeadModel(config)
    lm.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    said: list[str] = []
    grown, words = load_decoder(tmp_path, say=said.append)
    assert len(said) == 1 and "from 16 to 64 rows" in said[0]
    assert torch.equal(grown.get_input_embeddings().weight[:16], lm.get_input_embeddings().weight)
    assert words.bos_token_id == 0 and prompt_bos(words) == 0


@pytest.mark.parametrize(
    ("special", "bos"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, 0),
        (
            {"bos_token": "</s>", "eos_token": "</s>"},
            None,
        ),  # GPT-2: one token for both, which no caption begins with
        ({"eos_token": "</s>"}, None),  # Qwen
    ],
)
def test_where_captions_begin_with_bos(special: dict[str, str], bos: int | None) -> None:
    backend = toy_tokenizer().backend_tokenizer
    given = hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)
    _, words = load_decoder(TEXT["llama"](), given, say=str)
    assert prompt_bos(words) == bos
    assert words.pad_token_id is not None


def test_a_tokenizer_that_adds_bos_by_itself() -> None:
    from tokenizers.processors import TemplateProcessing

    backend = toy_tokenizer().backend_tokenizer
    backend.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    given = hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>", eos_token="</s>")  # as OPT does
    assert given("a red")["input_ids"] == [1, 3, 4]
    _, words = load_decoder(TEXT["opt"](), given, say=str)
    assert words("a red")["input_ids"] == [3, 4]
    assert prompt_bos(words) == 1


def test_no_end_of_text_token() -> None:
    given = hf.PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer().backend_tokenizer)
    said: list[str] = []
    _, words = load_decoder(TEXT["llama"](), given, say=said.append)
    assert words.eos_token == "<|endoftext|>" and "end-of-text" in said[0]


def test_what_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        load_decoder(TEXT["llama"]())
    hf.T5Config(d_model=8, num_layers=1, vocab_size=30).save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder"):
        load_decoder(tmp_path)


def test_a_decoder_that_takes_no_embeddings_is_named() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "dim_head": 16, "dim_ff": 32}
    with pytest.raises(ValueError, match="of type cpmant cannot be given embeddings"):
        load_decoder(hf.CpmAntConfig(**shape), toy_tokenizer(), say=lambda _: None)


@pytest.mark.parametrize("vision", ["convnext", "resnet", "mobilenet_v2", "levit"])
@pytest.mark.parametrize("layer", [99, -99])
def test_a_layer_that_a_trunk_has_not_is_told(vision: str, layer: int) -> None:
    with pytest.raises(ValueError, match=f"there is no feature layer {layer}"):
        toy_captioner(vision, feature_layer=layer)


@pytest.mark.parametrize("vision", ["siglip", "levit"])
def test_pictures_of_another_size_than_the_encoder_reads_are_told(vision: str) -> None:
    size = {"height": 80, "width": 80}
    with pytest.raises(ValueError, match=r"80 x 80, which the vision encoder \(\w+\) cannot read"):
        toy_captioner(vision, image_processor={"image_processor_type": "SiglipImageProcessor", "size": size})


def test_real_weights_go_on_speaking(real_data: Path, tmp_path: Path) -> None:
    """A captioner around the real story model: the language model inside still tells its story."""
    source = real_data / "models" / "stories260k"
    vlm = build_captioner(real_data / "models" / "mobilenet-v2-0.35-224", source, say=str)
    stock.save_captioner(vlm, tmp_path / "m")
    again = stock.read_captioner(tmp_path / "m")
    prompt = torch.tensor([[again.tokenizer.bos_token_id]])
    said = again.language_model.generate(prompt, num_beams=1, do_sample=False, max_new_tokens=20)
    assert again.tokenizer.decode(said[0], skip_special_tokens=True).startswith(
        "Once upon a time, there was a little girl"
    )
    assert again.num_prefix_tokens == 49 and again.bos_id == 1


def test_a_parked_encoder_waits_in_a_file_and_computes_as_before(tmp_path: Path) -> None:
    vlm = toy_captioner(freeze_vision=True)
    pixels, before = torch.randn(2, 3, 32, 32), dict(toy_captioner(freeze_vision=True).encoder.named_parameters())
    vlm.pack_encoder()
    plain = encoders.encode(vlm.tower, pixels, None)
    vlm.park_encoder(tmp_path)
    assert torch.equal(vlm.features(pixels), plain)
    assert all(torch.equal(p, before[name]) for name, p in vlm.encoder.named_parameters())
    storages = {p.untyped_storage().data_ptr() for p in vlm.encoder.parameters()}
    assert len(storages) == 1 and not list(tmp_path.iterdir())
    if Path("/proc/self/maps").exists():
        (start,) = storages
        lines = Path("/proc/self/maps").read_text().splitlines()
        assert any(line.startswith(f"{start:x}-") and str(tmp_path) in line for line in lines)
    vlm.open_encoder()  # and may be written to
    with torch.no_grad():
        next(vlm.encoder.parameters()).add_(1)


def test_an_encoder_that_cannot_be_parked_stays(tmp_path: Path) -> None:
    vlm = toy_captioner(freeze_vision=True)
    vlm.park_encoder(tmp_path / "nowhere")
    assert len({p.untyped_storage().data_ptr() for p in vlm.encoder.parameters()}) > 1
