"""`load_captioner`: every kind of image, the same words as stock generate, and each setting's effect."""

from __future__ import annotations

import gc
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_captioners import toy_captioner, toy_picture
from transformers import AutoModelForImageTextToText, AutoProcessor

import limner
from limner.decoding import NOT_SURE, Prefix, step_model
from limner.device import multiplies_bf16, multiplies_int8
from limner.models import stock
from limner.models.packed import can_pack

PROMPT = [{"role": "user", "content": [{"type": "image"}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "toy"
    stock.save_captioner(toy_captioner(text="llama_untied", lora=True), path)
    return path


@pytest.fixture(scope="module")
def captioner(folder: Path) -> limner.Captioner:
    return limner.load_captioner(folder, device="cpu")


@pytest.mark.parametrize("beams", [1, 3])
def test_the_words_are_those_of_stock_generate(captioner: limner.Captioner, folder: Path, beams: int) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    text = processor.apply_chat_template(PROMPT, add_generation_prompt=True)
    said = set()
    for seed in range(6):
        inputs = processor(images=toy_picture(seed), text=text, return_tensors="pt")
        theirs = model.generate(
            **inputs, num_beams=beams, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        expected = theirs.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        (ours,) = captioner.describe([toy_picture(seed)], num_beams=beams)
        assert ours.tokens == expected
        if beams > 1:
            assert ours.score == pytest.approx(float(theirs.sequences_scores[0]), abs=1e-4)
        said.add(ours.text)
    assert len(said) > 1  # the pictures matter


def test_three_beams_and_thirty_tokens_are_the_default(captioner: limner.Captioner) -> None:
    assert (
        captioner.describe([toy_picture()])[0].tokens
        == captioner.describe([toy_picture()], num_beams=3, max_new_tokens=30)[0].tokens
    )


def test_every_kind_of_image_gives_the_same_words(captioner: limner.Captioner, tmp_path: Path) -> None:
    picture = toy_picture(3)
    picture.save(tmp_path / "p.png")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    kinds = [tmp_path / "p.png", str(tmp_path / "p.png"), encoded.getvalue(), picture, np.asarray(picture)]
    words = captioner.caption(picture)
    assert words
    assert captioner.caption_batch(kinds) == [words] * 5
    assert [captioner.caption(kind) for kind in kinds] == [words] * 5


def test_a_batch_says_what_each_says_alone(captioner: limner.Captioner) -> None:
    pictures = [toy_picture(seed) for seed in range(7)]
    alone = [captioner.caption(picture) for picture in pictures]
    assert captioner.caption_batch(pictures, batch_size=3) == alone
    assert captioner.caption_batch([]) == []


def test_drawn_captions_do_not_depend_on_the_batch(
    captioner: limner.Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the last bits of a prefix do, with some encoders."""
    exact = captioner.vlm.prompt_embeds
    monkeypatch.setattr(
        captioner.vlm, "prompt_embeds", lambda features: exact(features) * (1 + 1e-7 * len(features))
    )
    pictures = [toy_picture(seed) for seed in range(4)]
    drawing = {"temperature": 0.7, "max_new_tokens": 8}
    alone = [captioner.caption(picture, **drawing) for picture in pictures]
    assert captioner.caption_batch(pictures, **drawing) == alone
    assert captioner.caption_batch(pictures, **drawing, seed=1) != alone
    twice = captioner.describe(pictures[:2], **drawing, num_return_sequences=2)
    assert [twice[0].text, twice[2].text] == alone[:2]  # of a picture, side by side


def test_how_a_caption_ended(captioner: limner.Captioner) -> None:
    (whole,) = captioner.describe([toy_picture()], num_beams=1)
    assert whole.ending == "eos" and whole.tokens[-1] == captioner.tokenizer.eos_token_id
    (cut,) = captioner.describe([toy_picture()], num_beams=1, max_new_tokens=3)
    assert cut.ending == "length" and len(cut.tokens) == 3
    word = whole.text.split()[0]
    (stopped,) = captioner.describe([toy_picture()], num_beams=1, stop_strings=word)
    assert stopped.ending == "stop" and stopped.text == word


@pytest.mark.parametrize("beams", [1, 3])
def test_a_cancelled_caption_ends_where_it_is(captioner: limner.Captioner, beams: int) -> None:
    pictures = [toy_picture(seed) for seed in range(5)]
    whole = captioner.describe(pictures, num_beams=beams)
    assert captioner.describe(pictures, num_beams=beams, cancel=lambda: False) == [
        replace(caption, seconds=pytest.approx(caption.seconds, abs=10)) for caption in whole
    ]
    asked = iter([False, False, True, True])
    cut = captioner.describe(pictures, num_beams=beams, batch_size=2, cancel=lambda: next(asked))
    assert len(cut) == 2  # the later batches are left out
    assert all(len(caption.tokens) == 2 or caption.ending == "eos" for caption in cut)
    assert cut[0].ending == "cancelled"
    if beams == 1:
        assert [caption.tokens for caption in cut] == [caption.tokens[:2] for caption in whole[:2]]
    assert captioner.caption(pictures[0], num_beams=beams, cancel=lambda: True) == ""


@pytest.mark.parametrize("text", ["gpt2", "llama"])
def test_the_last_token_needs_no_position(text: str, tmp_path: Path) -> None:
    """Stock generate says as many tokens as we allow; of a model with learned positions, not one more."""
    vlm = toy_captioner(text=text)
    stock.save_captioner(vlm, tmp_path / "m")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "m").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "m", backend="pil")
    prompt = processor.apply_chat_template(PROMPT, add_generation_prompt=True)
    inputs = processor(images=toy_picture(), text=prompt, return_tensors="pt")
    room = vlm.room_for_caption
    assert room == 128 - inputs["input_ids"].shape[1] + 1
    lengths = {"max_new_tokens": room, "min_new_tokens": room}
    expected = model.generate(**inputs, **lengths, num_beams=1, do_sample=False)[0].tolist()[-room:]
    captioner = limner.Captioner(vlm)
    (ours,) = captioner.describe([toy_picture()], num_beams=1, **lengths)
    assert ours.tokens == expected and ours.ending == "length"
    with pytest.raises(ValueError, match=rf"captions of {room} tokens, and {room + 1} are asked for"):
        captioner.caption(toy_picture(), max_new_tokens=room + 1)
    if text == "gpt2":
        with pytest.raises(IndexError):
            model.generate(**inputs, max_new_tokens=room + 1, min_new_tokens=room + 1)
    vlm.language_model.config.max_position_embeddings = vlm.num_prompt_tokens - 1
    with pytest.raises(ValueError, match=r"The picture takes 5 tokens, .* positions for 4"):
        captioner.caption(toy_picture())


def test_confidence_and_abstention(captioner: limner.Captioner) -> None:
    (caption,) = captioner.describe([toy_picture()], num_beams=1)
    assert caption.mean_logprob == pytest.approx(sum(caption.token_logprobs) / len(caption.tokens))
    assert caption.score == pytest.approx(caption.mean_logprob, abs=1e-6)
    edge = caption.mean_logprob
    assert captioner.caption(toy_picture(), num_beams=1, abstain_below=edge - 1e-3) == caption.text
    assert captioner.caption(toy_picture(), num_beams=1, abstain_below=edge + 1e-3) == NOT_SURE


def test_the_image_token_is_never_said(captioner: limner.Captioner) -> None:
    vlm = captioner.vlm
    image = vlm.tokenizer.convert_tokens_to_ids("<image>")
    prompt = vlm.prompt_embeds(vlm.features(captioner.pixels.pixels(toy_picture())[None]))
    assert image in vlm.language_model.generation_config.suppress_tokens
    assert prompt.shape[1] == vlm.num_prompt_tokens
    assert all(image not in c.tokens for c in captioner.describe([toy_picture(s) for s in range(4)], num_beams=1))


def test_settings_that_make_no_sense(captioner: limner.Captioner) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        captioner.caption(toy_picture(), batch_size=0)
    with pytest.raises(ValueError, match="Sampling within beam search"):
        captioner.caption(toy_picture(), temperature=1.0, num_beams=2)
    with pytest.raises(ValueError, match="nonsense"):
        captioner.caption(toy_picture(), nonsense=1)
    with pytest.raises(ValueError, match="uint8"):
        captioner.caption(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="abstain_below is not a number"):
        captioner.caption(toy_picture(), abstain_below=float("nan"))
    for beams in (0, -2, 2.5):
        with pytest.raises(ValueError, match="num_beams: "):
            captioner.caption(toy_picture(), num_beams=beams)
    for name in ("top_k", "seed"):
        with pytest.raises(ValueError, match=f"{name} is for drawn tokens, .* a temperature"):
            captioner.caption(toy_picture(), **{name: 3})
    with pytest.raises(ValueError, match="length_penalty is for beam search"):
        captioner.caption(toy_picture(), num_beams=1, length_penalty=2.0)
    for drawing in ({"num_beams": 3}, {"temperature": 1.0}):
        with pytest.raises(ValueError, match="one caption a picture; use describe"):
            captioner.caption_batch([toy_picture()], num_return_sequences=3, **drawing)
        with pytest.raises(ValueError, match="one caption a picture; use describe"):
            captioner.caption(toy_picture(), num_return_sequences=3, **drawing)


def test_settings_that_are_none_or_in_words(captioner: limner.Captioner) -> None:
    unset = dict.fromkeys(("num_beams", "max_new_tokens", "temperature", "length_penalty", "num_return_sequences"))
    assert captioner.caption(toy_picture(), **unset) == captioner.caption(toy_picture())
    assert captioner.caption(toy_picture(), max_new_tokens="5") == captioner.caption(
        toy_picture(), max_new_tokens=5
    )


def test_bf16_says_nearly_the_same(folder: Path, captioner: limner.Captioner) -> None:
    half = limner.load_captioner(folder, device="cpu", precision="bf16")
    held = torch.bfloat16 if multiplies_bf16() else torch.float32  # there only the decoder's matrices are halved
    assert half.vlm.encoder.dtype == half.vlm.language_model.dtype == held
    pixels = captioner.pixels.pixels(toy_picture())[None]
    exact = captioner.vlm.prompt_embeds(captioner.vlm.features(pixels))
    rough = half.vlm.prompt_embeds(half.vlm.features(pixels)).float()
    assert float((exact - rough).norm() / exact.norm()) < 0.02


def test_int8_says_nearly_the_same(folder: Path, captioner: limner.Captioner) -> None:
    rough = limner.load_captioner(folder, device="cpu", quantize="int8")
    pictures = [toy_picture(seed) for seed in range(6)]
    pixels = torch.stack([captioner.pixels.pixels(picture) for picture in pictures])
    with torch.inference_mode():
        prefix = Prefix(captioner.vlm.prompt_embeds(captioner.vlm.features(pixels)))
    exact, _ = captioner.steps.prefill(prefix, 1)
    eighth, _ = rough.steps.prefill(prefix, 1)
    assert 0 < float((exact - eighth).norm() / exact.norm()) < (0.02 if multiplies_int8() else 0.04)  # 7 bits
    with pytest.raises(ValueError, match="no quantization 'int3'"):
        limner.load_captioner(folder, device="cpu", quantize="int3")


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"quantize": "int8"}], ids=str)
@pytest.mark.parametrize("text", ["llama", "llama_untied", "gpt2"])
def test_the_language_model_is_held_once(tmp_path: Path, text: str, settings: dict[str, str]) -> None:
    """Packed, and nothing of it as it was but its embedding and norms; the words are those beside a whole model."""
    stock.save_captioner(toy_captioner(text=text), tmp_path / "m")
    captioner = limner.load_captioner(tmp_path / "m", device="cpu", **settings)
    lm = captioner.vlm.language_model
    held = {name for name, p in lm.named_parameters() if p.device.type != "meta" and p.ndim > 1}
    assert held == {
        name for name, p in lm.named_parameters() if p is lm.get_input_embeddings().weight or "wpe" in name
    }
    whole = stock.read_captioner(tmp_path / "m")
    assert captioner.vlm.parameter_counts() == whole.parameter_counts()
    whole.keep_frozen_in(captioner.vlm.encoder.dtype)
    dtype = None if whole.encoder.dtype != torch.float32 or "quantize" in settings else torch.bfloat16
    beside = limner.Captioner(
        whole, steps=step_model(whole.language_model, dtype=dtype, quantize=settings.get("quantize"))
    )
    pictures = [toy_picture(seed) for seed in range(3)]
    assert captioner.caption_batch(pictures) == beside.caption_batch(pictures)
    assert not any(p.is_meta for p in whole.parameters())


def test_transparent_pictures_stand_on_white(captioner: limner.Captioner) -> None:
    clear = Image.new("RGBA", (40, 40), (10, 200, 10, 0))
    assert captioner.caption(clear) == captioner.caption(Image.new("RGB", (40, 40), "white"))


def test_what_is_no_captioner(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        limner.load_captioner(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json"):
        limner.load_captioner(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"quantize": "int8"}], ids=str)
@pytest.mark.parametrize("text", ["llama", "llama_untied", "gpt2"])
def test_a_packed_captioner_lets_the_file_and_its_encoder_go(
    tmp_path: Path, text: str, settings: dict[str, str]
) -> None:
    stock.save_captioner(toy_captioner(text=text), tmp_path / "m")
    plain = stock.read_captioner(tmp_path / "m")
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del plain
    captioner = limner.load_captioner(tmp_path / "m", device="cpu", **settings)
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    if can_pack(captioner.vlm.encoder):
        matrices = [m.weight for m in captioner.vlm.encoder.modules() if type(m) is torch.nn.Linear]
        assert matrices and all(weight.is_meta for weight in matrices)
    assert captioner.caption(toy_picture())
