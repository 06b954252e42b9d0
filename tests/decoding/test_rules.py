"""Penalties, bans and filters are transformers' own, number for number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from limner.decoding import BeamSettings, DecodingSettings, GreedySettings, get_decoder, is_sure, step_model
from limner.decoding.greedy import _drawn
from limner.decoding.rules import NOTHING, Rules, filter_draw
from limner.decoding.settings import make_settings

V, CPU = 23, torch.device("cpu")


def rules(**settings: Any) -> Rules:
    return Rules(make_settings(DecodingSettings, settings), (2,), None, CPU)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.7)),
        ({"repetition_penalty": 0.6}, RepetitionPenaltyLogitsProcessor(0.6)),
        *[({"no_repeat_ngram_size": n}, NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 5)],
        (
            {"banned_words": [(4,), (5, 6), (1, 2, 3), (9, 9)]},
            NoBadWordsLogitsProcessor([[4], [5, 6], [1, 2, 3], [9, 9]], eos_token_id=2),
        ),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else type(case).__name__,
)
def test_rules(seed: int, settings: dict[str, Any], processor: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    for length in (1, 2, 4, 40):
        history = torch.randint(0, 7 if seed % 2 else V, (5, length), generator=generator)
        scores = torch.randn(5, V, generator=generator)
        expected = processor(history, scores.clone())
        assert torch.equal(rules(**settings).apply(scores, history, 0), expected)


def test_padding_of_a_prompt_is_never_seen() -> None:
    history = torch.tensor([[NOTHING, NOTHING, 5, 6, 5], [8, 8, 5, 6, 5]])
    scores = torch.randn(2, V)
    for settings in ({"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1}):
        padded = rules(**settings).apply(scores, history, 0)[:1]
        assert torch.equal(padded, rules(**settings).apply(scores[:1], history[:1, 2:], 0))


def test_scores_that_are_given_are_left_as_they_were() -> None:
    scores = torch.randn(2, V)
    before = scores.clone()
    rules(repetition_penalty=2.0, suppress_tokens=(3,), min_new_tokens=4).apply(scores, torch.zeros(2, 3).long(), 0)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.8])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2),
                                                        (9, 0.8, 0.05), (100, 0.99, 0.01)])  # fmt: skip
def test_filters(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = 2 * torch.randn(6, V, generator=torch.Generator().manual_seed(1))
    stages: list[Any] = [TemperatureLogitsWarper(temperature)]
    stages += [TopKLogitsWarper(top_k)] if top_k else []
    stages += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    stages += [MinPLogitsWarper(min_p)] if min_p else []
    expected = LogitsProcessorList(stages)(torch.zeros(6, 1).long(), logits.clone())
    assert torch.equal(filter_draw(logits, temperature, top_k, top_p, min_p), expected)


def test_draws_follow_the_probabilities() -> None:
    """Of 200,000 even numbers, each token gets its share to one draw; a filtered token gets none."""
    logits = torch.tensor([[0.3, -1.0, float("-inf"), 2.0, -4.0]])
    count = 200_000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = _drawn(logits.expand(count, -1), numbers)
    shares = torch.bincount(drawn, minlength=5) / count
    torch.testing.assert_close(shares, logits.softmax(1)[0], atol=1.01 / count, rtol=0)
    assert shares[2] == 0


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("greedy", {"num_beams": 2}, "num_beams"),
        ("beam", {"temperature": 0.5}, "temperature"),
        ("greedy", {"temperature": 0.5}, "sample"),
        ("greedy", {"top_k": 5}, "temperature above 0"),
        ("beam", {"num_return_sequences": 4}, "num_beams"),
        ("beam", {"early_stopping": "sometimes"}, "early_stopping"),
        ("greedy", {"max_new_tokens": 0}, "max_new_tokens"),
        ("greedy", {"min_new_tokens": 31}, "max_new_tokens"),
        ("greedy", {"stop_strings": "."}, "tokenizer"),
        ("greedy", {"stop_strings": ["a", ""], "tokenizer": object()}, "stop string is empty"),
        ("greedy", {"banned_words": [[]]}, "banned word is empty"),
        ("greedy", {"banned_words": (5, 6)}, "suppress_tokens"),
        ("greedy", {"suppress_tokens": [-1]}, "suppress_tokens"),
        ("sample", {"seed": -1}, "seed"),
        ("nucleus", {}, "greedy, sample and beam"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(name: str, settings: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word) as refused:
        get_decoder(name, **settings)
    assert "\n" not in str(refused.value)


def test_settings_objects_and_keywords_say_the_same() -> None:
    assert get_decoder("beam", BeamSettings(num_beams=5), length_penalty=2).settings == BeamSettings(
        num_beams=5, length_penalty=2.0
    )
    assert get_decoder("sample").settings == GreedySettings(temperature=1.0)
    assert get_decoder("greedy", eos_token_id=7).settings.eos_token_id == (7,)


def test_confidence_is_held_against_a_bound() -> None:
    assert is_sure(-3.0, None)
    assert is_sure(-1.0, -1.0)
    assert not is_sure(-1.1, -1.0)
    assert not is_sure(float("nan"), -1.0)


def test_token_logprobs_are_the_models_own(models: dict[str, Any], prompts: Any) -> None:
    """Whatever penalties chose the tokens, their log-probabilities are those of a plain forward over the text."""
    ids, _ = prompts([6, 6])
    model = models["gpt2"]
    for name, settings in (
        ("beam", {"num_beams": 3, "repetition_penalty": 1.5, "min_new_tokens": 4}),
        ("greedy", {"repetition_penalty": 1.5}),
        ("sample", {"temperature": 1.7, "top_k": 6}),
    ):
        decoded = get_decoder(name, max_new_tokens=10, **settings).decode_full(step_model(model), input_ids=ids)
        whole = torch.cat([ids, decoded.tokens], 1)
        with torch.no_grad():
            truth = model(whole).logits.log_softmax(-1)[:, 5:-1].gather(2, decoded.tokens[..., None])[..., 0]
        real = torch.arange(decoded.tokens.shape[1]) < decoded.lengths[:, None]
        torch.testing.assert_close(decoded.token_logprobs, truth.masked_fill(~real, 0), atol=1e-5, rtol=0)
        means = [truth[r, : decoded.lengths[r]].mean() for r in range(2)]
        torch.testing.assert_close(decoded.mean_logprobs, torch.stack(means), atol=1e-5, rtol=0)
        if name != "beam":
            torch.testing.assert_close(decoded.scores, decoded.mean_logprobs)


@pytest.mark.parametrize(
    "settings", [{"suppress_tokens": [6, 999]}, {"eos_token_id": [2, 999], "min_new_tokens": 4}]
)
def test_tokens_that_the_model_lacks_are_ignored_as_by_generate(models: Any, prompts: Any, settings: Any) -> None:
    ids, _ = prompts([6])
    wanted = models["llama"].generate(ids, max_new_tokens=5, do_sample=False, **settings)[:, 6:]
    tokens, _ = get_decoder("greedy", max_new_tokens=5, **settings).decode(
        step_model(models["llama"]), input_ids=ids
    )
    assert torch.equal(tokens, wanted)


def test_no_end_of_text_is_minus_one(models: Any, prompts: Any) -> None:
    ids, _ = prompts([6])
    steps = step_model(models["llama"])
    for name in ("greedy", "beam"):
        never, none = (
            get_decoder(name, max_new_tokens=5, min_new_tokens=2, eos_token_id=eos).decode(steps, input_ids=ids)[0]
            for eos in (-1, ())
        )
        assert torch.equal(never, none)


@pytest.mark.parametrize("name", ["greedy", "sample", "beam"])
def test_bans_that_cannot_be_kept_are_refused(models: Any, prompts: Any, name: str) -> None:
    ids, _ = prompts([6])
    for settings, word in (
        ({"banned_words": [(4, 999)]}, "Token 999"),
        ({"suppress_tokens": range(61)}, "No token is left"),
    ):
        with pytest.raises(ValueError, match=word):
            get_decoder(name, **settings).decode(step_model(models["llama"]), input_ids=ids)
