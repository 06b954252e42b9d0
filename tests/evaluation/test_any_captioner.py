"""Captioners of every make say through `open_captioner` what transformers makes them say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from toy_captioners import toy_captioner, toy_picture, toy_tokenizer

from limner.decoding import NOT_SURE
from limner.decoding.captioner import Caption, Captioner, load_captioner
from limner.device import choose
from limner.evaluation.any_captioner import GenerateCaptioner, fingerprint, open_captioner
from limner.evaluation.captioning import words_of
from limner.models.stock import save_captioner

PICTURES = [toy_picture(seed) for seed in range(3)]


def settle(model: Any) -> Any:
    """Weights large enough that different pictures get different words."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.35, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with a GPT-2 that looks at it by cross-attention, as mozilla/distilvit is."""
    folder = tmp_path_factory.mktemp("legacy")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = hf.ViTModel(hf.ViTConfig(**size, image_size=32, patch_size=16))
    words = toy_tokenizer()
    config = hf.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=1, n_head=2, add_cross_attention=True, is_decoder=True
    )
    model = hf.VisionEncoderDecoderModel(encoder=encoder, decoder=hf.GPT2LMHeadModel(config))
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = words.bos_token_id
    model.generation_config.update(bos_token_id=0, eos_token_id=1, pad_token_id=1, max_new_tokens=6)
    settle(model).save_pretrained(folder)
    words.save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_legacy_encoder_decoder_says_what_generate_says(legacy: Path) -> None:
    captioner = open_captioner(legacy, device="cpu")
    assert isinstance(captioner, GenerateCaptioner)
    model = hf.VisionEncoderDecoderModel.from_pretrained(legacy).eval()
    pixels = hf.AutoImageProcessor.from_pretrained(legacy, backend="pil")(
        PICTURES, return_tensors="pt"
    ).pixel_values
    for beams in (1, 3):
        said = captioner.describe(PICTURES, batch_size=2, num_beams=beams, max_new_tokens=6)
        assert len({one.text for one in said}) > 1
        for row, one in enumerate(said):
            ids = model.generate(pixels[row : row + 1], num_beams=beams, max_new_tokens=6)[0].tolist()
            assert one.text == captioner.tokenizer.decode(ids, skip_special_tokens=True)
            # Log-probabilities are those of the model that is shown its own caption.
            with torch.no_grad():
                logits = model(pixel_values=pixels[row : row + 1], decoder_input_ids=torch.tensor([ids])).logits[0]
            whole = ids[1 : ids.index(1) + 1 if 1 in ids else None]  # up to the first end of text
            expected = [float(logits[i].log_softmax(-1)[t]) for i, t in enumerate(whole)]
            assert one.tokens == whole and one.ending == ("eos" if whole[-1] == 1 else "length")
            assert one.token_logprobs == pytest.approx(expected, abs=1e-4)


def test_an_image_text_model_of_another_make(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "red", "dog"]
    words = hf.BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)})
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = size | {"vocab_size": 8, "bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = hf.BlipConfig(
        text_config=text | {"encoder_hidden_size": 16, "is_decoder": True, "max_position_embeddings": 32},
        vision_config=size | {"image_size": 32, "patch_size": 16},
    )
    model = settle(hf.BlipForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    pixels = hf.BlipImageProcessorPil(size={"height": 32, "width": 32})
    hf.BlipProcessor(pixels, words).save_pretrained(tmp_path)
    captioner = open_captioner(tmp_path, device="cpu")
    said = captioner.describe(PICTURES, batch_size=3, num_beams=1, max_new_tokens=5)
    for picture, one in zip(PICTURES, said, strict=True):
        ids = model.generate(**pixels(picture, return_tensors="pt"), num_beams=1, max_new_tokens=5)[0]
        assert one.text == words.decode(ids[1:], skip_special_tokens=True)  # BLIP repeats its start token
        assert len(one.token_logprobs) == len(one.tokens) and all(chance < 0 for chance in one.token_logprobs)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Captioner, GenerateCaptioner]:
    """One captioner, run by Limner and by transformers."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_captioner(toy_captioner(text="llama_untied"), folder)
    network = hf.AutoModelForImageTextToText.from_pretrained(folder)
    processor = hf.AutoProcessor.from_pretrained(folder, backend="pil")
    words = processor.tokenizer
    theirs = GenerateCaptioner(network, processor.image_processor, words, choose("cpu", "fp32", None), processor)
    return load_captioner(folder, device="cpu"), theirs


@pytest.mark.parametrize(
    "settings", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1, "max_new_tokens": 4}], ids=str
)
def test_confidence_is_the_same_whoever_runs_the_model(
    both: tuple[Captioner, GenerateCaptioner], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities are the model's own, before bans, and count the end of text."""
    monkeypatch.setattr("limner.evaluation.any_captioner.PROMPT", "")
    pictures = [toy_picture(seed) for seed in range(5)]
    settings = settings | {"min_new_tokens": 3, "do_sample": False}
    theirs = both[1].describe(pictures, batch_size=3, **settings)
    ours = both[0].describe(pictures, **{name: value for name, value in settings.items() if name != "do_sample"})
    for one, other in zip(ours, theirs, strict=True):
        assert (one.text, one.tokens, one.ending) == (other.text, other.tokens, other.ending)
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-4)
        assert one.score == pytest.approx(other.score, abs=1e-4)
    edge = sorted(one.mean_logprob for one in theirs)[2] + 1e-6
    unsure = both[1].describe(pictures, abstain_below=edge, **settings)
    assert sum(one.text == NOT_SURE for one in unsure) == 3


def test_our_own_model_opens_as_our_own_captioner(tmp_path: Path) -> None:
    save_captioner(toy_captioner(), tmp_path / "model")
    captioner = open_captioner(tmp_path / "model", device="cpu")
    assert isinstance(captioner, Captioner)
    assert len(captioner.describe(PICTURES, batch_size=2, max_new_tokens=4)) == 3
    before = fingerprint(tmp_path / "model")
    assert before == fingerprint(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(config | {"max_new_tokens": 3}))
    assert before != fingerprint(tmp_path / "model")


def test_what_is_no_captioner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_captioner(tmp_path / "nothing")
    hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="captioner"):
        open_captioner(tmp_path / "lm")


class Pieces:
    """A tokenizer of given pieces, without spaces of its own."""

    all_special_ids = (0,)
    pieces = ("</s>", " a", " gre", "en", " dog", "s", ".", " two words")

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.pieces[token] for token in tokens if token)


def test_a_word_s_log_probability_is_the_sum_of_its_pieces() -> None:
    tokens, chances = [1, 2, 3, 4, 5, 6, 7, 0], [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -9.0]
    caption = Caption(" a green dogs. two words", tokens, 0.0, 0.0, chances)
    words = words_of(caption, Pieces())
    assert [word for word, _ in words] == ["a", "green", "dogs.", "two", "words"]
    assert [chance for _, chance in words] == pytest.approx([-0.1, -0.5, -1.5, -0.7, 0.0])
    assert words_of(Caption("a dog", [], 0.0, 0.0, []), Pieces()) == [("a", None), ("dog", None)]
