"""`load_captioner`: every kind of image, the same words as stock generate, and each setting's effect."""

from __future__ import annotations

import gc
import io
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
