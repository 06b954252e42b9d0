"""A `GenerationConfig`, given to a decoder or saved with a captioner, asks here for what it asks of generate."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from toy_captioners import toy_captioner, toy_picture
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

import limner
from limner.decoding import BeamSearchDecoder, GreedyDecoder, GreedySettings, get_decoder
from limner.models import stock

PROMPT = [{"role": "user", "content": [{"type": "image"}]}]
G = GenerationConfig


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (
            lambda: BeamSearchDecoder(G(length_penalty=2.0, early_stopping=True, max_new_tokens=5), num_beams=4),
            {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "max_new_tokens": 5},
        ),
        (lambda: BeamSearchDecoder(G(num_beams=1)), {"num_beams": 1, "max_new_tokens": 20}),
        (lambda: BeamSearchDecoder(G()), {"num_beams": 3}),
        (lambda: BeamSearchDecoder(G(do_sample=True), num_beams=2), {"num_beams": 2}),
        (lambda: get_decoder("sample", G(temperature=0.5)), {"temperature": 0.5, "top_k": 50}),
        (lambda: get_decoder("sample", G(top_k=7)), {"temperature": 1.0, "top_k": 7}),
        (lambda: get_decoder("sample", GreedySettings(top_k=0)), {"temperature": 1.0, "top_k": 0}),
        (lambda: GreedyDecoder(G(max_length=50), max_new_tokens=40), {"max_new_tokens": 40}),
        (lambda: GreedyDecoder(G(min_length=5), min_new_tokens=2), {"min_new_tokens": 2}),
        (lambda: GreedyDecoder(G(num_beams=3, length_penalty=2.0), num_beams=1), {"temperature": 0.0}),
        (
            lambda: GreedyDecoder(G(num_beams=3, top_p=0.5, do_sample=True), num_beams=1),
            {"temperature": 1.0, "top_p": 0.5},
        ),
        (lambda: GreedyDecoder(G(do_sample=True, top_k=5), temperature=0), {"temperature": 0.0, "top_k": 0}),
        (lambda: GreedyDecoder(G(bad_words_ids=[[4]]), banned_words=[[5]]), {"banned_words": ((5,),)}),
    ],
)
def test_keywords_stand_over_a_configuration_and_its_other_values_stay(decoder: Any, expected: Any) -> None:
    settings = decoder().settings
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("decoder", "word"),
    [
        (lambda: GreedyDecoder(G(min_length=5)), "min_new_tokens"),
        (lambda: GreedyDecoder(G(num_beams=3)), "num_beams"),
        (lambda: GreedyDecoder(G(num_beams=3), temperature=1.0), "within beam search"),
        (lambda: BeamSearchDecoder(G(do_sample=True)), "within beam search"),
        (lambda: get_decoder("greedy", G(do_sample=True)), "sample"),
        (lambda: get_decoder("greedy", GreedySettings(temperature=1)), "sample"),
        (lambda: get_decoder("sample", temperature=0), "greedy"),
        (lambda: get_decoder("sample", GreedySettings(temperature=0)), "greedy"),
    ],
)
def test_what_contradicts_itself_is_refused(decoder: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        decoder()


def test_a_dictionary_is_no_settings() -> None:
    with pytest.raises(TypeError, match="are a dict"):
        GreedyDecoder({"max_new_tokens": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "toy"
    stock.save_captioner(toy_captioner(text="llama_untied"), path)
    return path


@pytest.fixture(scope="module")
def captioner(folder: Path) -> limner.Captioner:
    return limner.load_captioner(folder, device="cpu")


@pytest.fixture
def edit(captioner: limner.Captioner) -> Any:
    """Sets values in the captioner's generation configuration, for one test."""
    lm = captioner.vlm.language_model
    before = lm.generation_config
    lm.generation_config = copy.deepcopy(before)
    yield lambda values: lm.generation_config.update(**values)
    lm.generation_config = before


def test_a_captioner_obeys_its_generation_configuration(
    captioner: limner.Captioner, folder: Path, edit: Any
) -> None:
    """Token for token what stock generate says with the same generation_config.json."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    text = processor.apply_chat_template(PROMPT, add_generation_prompt=True)
    pictures = [toy_picture(seed) for seed in range(3)]
    saved, ours = model.generation_config, captioner.vlm.language_model.generation_config.to_dict()
    plain = [caption.tokens for caption in captioner.describe(pictures)]
    for values in (
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 3.0},
        {"length_penalty": -3.0},
        {"bad_words_ids": [[8, 8], [14], [9]]},
        {"min_new_tokens": 26, "early_stopping": True, "num_beams": 2},
        {"max_new_tokens": 4, "num_beams": 1, "suppress_tokens": [16, 8, 9, 11]},
    ):
        model.generation_config = copy.deepcopy(saved)
        model.generation_config.update(**values)
        edit(ours | values)
        said = [caption.tokens for caption in captioner.describe(pictures)]
        for picture, tokens in zip(pictures, said, strict=True):
            inputs = processor(images=picture, text=text, return_tensors="pt")
            expected = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
            assert tokens == expected, values
        assert said != plain, values


def test_what_is_asked_of_a_captioner_stands_over_its_configuration(captioner: limner.Captioner, edit: Any) -> None:
    def settings(**asked: Any) -> dict[str, Any]:
        return captioner._decoder(asked, proposes=False).settings.model_dump()

    edit({"length_penalty": 2.0, "no_repeat_ngram_size": 2})
    assert settings()["length_penalty"] == 2.0 and settings(length_penalty=0.5)["length_penalty"] == 0.5
    assert settings(num_beams=1)["no_repeat_ngram_size"] == 2
    assert settings(temperature=0.7)["temperature"] == 0.7
    edit({"num_beams": 1, "do_sample": True, "temperature": 0.4, "top_k": 20})
    assert (settings()["temperature"], settings()["top_k"]) == (0.4, 20)
    assert settings(temperature=0)["temperature"] == 0
    assert settings(num_beams=2)["num_beams"] == 2
    edit({"diversity_penalty": 1.0})
    with pytest.raises(ValueError, match="diversity_penalty"):
        settings()
