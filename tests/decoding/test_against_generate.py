"""Token ids and scores are those of transformers' generate, over a grid of settings and three families."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from limner.decoding import get_decoder, step_model

PAD = 0
FAMILIES = ("llama", "qwen2", "gpt2")

BEAMS = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": stop, "num_return_sequences": returned}
    for beams, penalty, stop, returned in itertools.product(
        (2, 3, 4, 5), (-1.0, 0.0, 1.0, 2.0), (False, True, "never"), (1, 2)
    )
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
    {"min_new_tokens": 9, "no_repeat_ngram_size": 2},
    {"suppress_tokens": [5, 11, 17]},
    {"bad_words_ids": [[7], [9, 12], [3, 4, 5], [2]]},
]


def generated(model: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """What generate says after the prompt, with everything behind an end of text made padding."""
    out = model.generate(
        **inputs, **{"do_sample": False} | settings, output_scores=True, return_dict_in_generate=True
    )
    ids = out.sequences[:, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else out.sequences
    eos = torch.tensor(model.generation_config.eos_token_id)
    ended = torch.isin(ids, eos).int().cumsum(1)
    return ids.masked_fill((ended - torch.isin(ids, eos).int()) > 0, PAD), getattr(out, "sequences_scores", None)


def ours(
    model: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    settings = dict(settings)
    if "bad_words_ids" in settings:
        settings["banned_words"] = [tuple(word) for word in settings.pop("bad_words_ids")]
    decoder = get_decoder("beam" if "num_beams" in settings else "greedy", **settings)
    return decoder.decode(
        step_model(model),
        prefix_embeds=inputs.get("inputs_embeds"),
        input_ids=inputs.get("input_ids"),
        prefix_mask=inputs.get("attention_mask"),
    )


def check(model: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    wanted, wanted_scores = generated(model, inputs, settings)
    tokens, scores = ours(model, inputs, settings)
    assert torch.equal(tokens, wanted), settings
    if wanted_scores is not None:
        torch.testing.assert_close(scores, wanted_scores, atol=1e-4, rtol=0, msg=str(settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_grid(models: dict[str, Any], prompts: Any, family: str) -> None:
    """96 settings a family, on a batch of three prompts of different lengths."""
    ids, mask = prompts([7, 4, 2])
    for i, settings in enumerate(BEAMS):
        check(
            models[family],
            {"input_ids": ids, "attention_mask": mask},
            settings | BANS[i % len(BANS)] | {"max_new_tokens": 10},
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bans", BANS, ids=str)
def test_greedy(models: dict[str, Any], prompts: Any, family: str, bans: dict[str, Any]) -> None:
    ids, mask = prompts([3, 8, 5, 8])
    check(models[family], {"input_ids": ids, "attention_mask": mask}, bans | {"max_new_tokens": 16})
