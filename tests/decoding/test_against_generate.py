"""Token ids and scores are those of transformers' generate, over a grid of settings and three families.

Every setting runs through both step models: our own cached forward and transformers'.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from limner.decoding import BeamSearchDecoder, GreedyDecoder, get_decoder, step_model
from limner.decoding.cached_lm import CachedStepModel
from limner.decoding.step_model import TransformersStepModel

PAD, EOS = 0, 2
FAMILIES = ("llama", "qwen2", "gpt2")
STEP_MODELS: dict[str, Callable[[Any], Any]] = {"own": CachedStepModel, "transformers": TransformersStepModel}

BEAMS = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": stop, "num_return_sequences": returned}
    for beams, penalty, stop, returned in itertools.product(
        (1, 2, 3, 4, 5), (-1.0, 0.0, 1.0, 2.0), (False, True, "never"), (1, 2)
    )
    if beams >= returned
]
BANS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.8},
    # generate also sees padding (0) as a token that must not repeat; no row of ours depends on its padding
    {"no_repeat_ngram_size": 1, "suppress_tokens": [PAD]},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    {"min_new_tokens": 5},
    {"min_new_tokens": 7, "no_repeat_ngram_size": 2},
    {"suppress_tokens": [5, 11, 17]},
    {"bad_words_ids": [[7], [9, 12], [3, 4, 5], [EOS]]},
    {"eos_token_id": [EOS, 9, 30]},
]
GRID = [
    settings | BANS[i % len(BANS)] | {"max_new_tokens": 7 + i % 4, "eager": i % 3}
    for i, settings in enumerate(BEAMS * 2)
]
"""216 settings a family; the bans go round with a period that the beams' settings do not share."""


def generated(model: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """What generate says after the prompt, with everything behind an end of text made padding."""
    out = model.generate(
        **inputs, **{"do_sample": False} | settings, output_scores=True, return_dict_in_generate=True
    )
    ids = out.sequences[:, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else out.sequences
    is_eos = torch.isin(ids, torch.tensor(settings.get("eos_token_id", EOS)))
    ended_before = is_eos.int().cumsum(1) - is_eos.int() > 0
    return ids.masked_fill(ended_before, PAD), getattr(out, "sequences_scores", None)


def ours(
    steps: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    settings = dict(settings)
    if "bad_words_ids" in settings:
        settings["banned_words"] = [tuple(word) for word in settings.pop("bad_words_ids")]
    decoder = get_decoder("beam" if "num_beams" in settings else "greedy", **settings)
    return decoder.decode(
        steps,
        prefix_embeds=inputs.get("inputs_embeds"),
        input_ids=inputs.get("input_ids"),
        prefix_mask=inputs.get("attention_mask"),
    )


def check(model: Any, steps: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]) -> int:
    """Fails unless tokens and scores are equal; the rows that ended by themselves before the last step."""
    wanted, wanted_scores = generated(model, inputs, settings)
    tokens, scores = ours(steps, inputs, settings)
    assert torch.equal(tokens, wanted), settings
    if wanted_scores is not None:
        torch.testing.assert_close(scores, wanted_scores, atol=1e-4, rtol=0)
    is_eos = torch.isin(tokens, torch.tensor(settings.get("eos_token_id", EOS)))
    return int(is_eos[:, : settings["max_new_tokens"] - 1].any(1).sum())


def test_the_grid_is_as_large_as_promised() -> None:
    assert len(GRID) >= 200
    assert len({str(settings) for settings in GRID}) == len(GRID)


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_grid(models: dict[str, Any], talkative: dict[str, Any], prompts: Any, family: str) -> None:
    """Batches of prompts of different lengths; every third setting on a model that ends its texts early."""
    ended = 0
    for i, settings in enumerate(GRID):
        settings = dict(settings)
        model = (talkative if settings.pop("eager") == 0 else models)[family]
        ids, mask = prompts([7, 4, 2] if i % 2 else [5, 5], seed=i)
        steps = STEP_MODELS["own" if i % 4 else "transformers"](model)
        if settings["num_beams"] == 1:  # generate then searches greedily, and knows no beam settings
            settings = {k: v for k, v in settings.items() if k not in BEAMS[0]}
        ended += check(model, steps, {"input_ids": ids, "attention_mask": mask}, settings)
    assert ended > 60  # early ends are really part of the grid


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bans", BANS, ids=str)
def test_greedy(models: dict[str, Any], prompts: Any, family: str, bans: dict[str, Any]) -> None:
    ids, mask = prompts([3, 8, 5, 8])
    for make in STEP_MODELS.values():
        check(
            models[family],
            make(models[family]),
            {"input_ids": ids, "attention_mask": mask},
            bans | {"max_new_tokens": 16},
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_prefix_of_embeddings(models: dict[str, Any], family: str, beams: int, padded: bool) -> None:
    """As a picture's prefix: rules then see the generated tokens only, in generate and here."""
    embeds = 0.5 * torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(3, 6, dtype=torch.int64)
    settings: dict[str, Any] = {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
    if padded:
        mask[1, :2], mask[2, :1] = 0, 0
        # With padded embeddings, generate spares as many generated tokens as there is padding from the penalty,
        # taking them for the padding itself; here a row never depends on its padding.
        del settings["repetition_penalty"]
    if beams > 1:
        settings |= {"num_beams": beams, "num_return_sequences": 2}
    for make in STEP_MODELS.values():
        check(models[family], make(models[family]), {"inputs_embeds": embeds, "attention_mask": mask}, settings)


def test_a_generation_config_is_obeyed(models: dict[str, Any], prompts: Any) -> None:
    ids, mask = prompts([6, 3])
    model, inputs = models["llama"], {"input_ids": ids, "attention_mask": mask}
    config = GenerationConfig(
        num_beams=4,
        length_penalty=2.0,
        early_stopping=True,
        num_return_sequences=3,
        max_new_tokens=9,
        bad_words_ids=[[5], [7, 8]],
        suppress_tokens=[11],
        eos_token_id=[EOS, 9],
        pad_token_id=PAD,
    )
    wanted = model.generate(**inputs, generation_config=config, output_scores=True, return_dict_in_generate=True)
    tokens, scores = BeamSearchDecoder(config).decode(step_model(model), input_ids=ids, prefix_mask=mask)
    is_eos = torch.isin(wanted.sequences, torch.tensor([EOS, 9]))[:, 6:]
    expected = wanted.sequences[:, 6:].masked_fill(is_eos.int().cumsum(1) - is_eos.int() > 0, PAD)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(scores, wanted.sequences_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"num_beams": 2, "do_sample": True, "max_new_tokens": 5}, "Sampling within beam search"),
        ({"max_length": 40}, "max_new_tokens"),
        ({"max_new_tokens": 5, "diversity_penalty": 1.0}, "diversity_penalty"),
        ({"max_new_tokens": 5, "num_beams": 2}, "num_beams"),
    ],
)
def test_a_generation_config_that_cannot_be_obeyed_is_refused(config: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        GreedyDecoder(GenerationConfig(**config))


def test_generates_own_defaults_when_it_draws() -> None:
    settings = GreedyDecoder(GenerationConfig(do_sample=True, max_new_tokens=7, top_p=0.9)).settings
    assert (settings.temperature, settings.top_k, settings.top_p, settings.max_new_tokens) == (1.0, 50, 0.9, 7)
