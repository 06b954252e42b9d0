"""A row's result is its own: alone, in any company and order, it says the same."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from limner.decoding import Decoder, get_decoder, step_model
from limner.decoding.cached_lm import CachedStepModel
from limner.decoding.step_model import TransformersStepModel

DECODERS: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.2},
    "sample": {"temperature": 1.3, "top_p": 0.95, "seed": 7},
    "samples": {"temperature": 1.3, "top_p": 0.95, "seed": 7, "num_return_sequences": 3},
    "beam": {"num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 3, "num_return_sequences": 2},
}


def decoder_named(name: str) -> Decoder[Any]:
    return get_decoder(name.rstrip("s"), max_new_tokens=14, **DECODERS[name])


def chosen(decoder: Decoder[Any], steps: Any, ids: torch.Tensor, mask: torch.Tensor, rows: list[int]) -> list[Any]:
    """(tokens, score, token log-probabilities, ending) of these rows decoded together, for each row."""
    width = int(mask[rows].sum(1).max())  # as short as these rows allow
    decoded = decoder.decode_full(steps, input_ids=ids[rows, -width:], prefix_mask=mask[rows, -width:])
    count = len(decoded.lengths) // len(rows)
    return [
        [
            (
                decoded.tokens[r, : decoded.lengths[r]].tolist(),
                decoded.scores[r].item(),
                decoded.token_logprobs[r, : decoded.lengths[r]].tolist(),
                decoded.endings[r],
            )
            for r in range(i * count, (i + 1) * count)
        ]
        for i in range(len(rows))
    ]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    for (tokens, score, logprobs, ending), (tokens2, score2, logprobs2, ending2) in zip(ours, theirs, strict=True):
        assert tokens == tokens2
        assert ending == ending2
        assert score == pytest.approx(score2, abs=1e-5)
        assert logprobs == pytest.approx(logprobs2, abs=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("make", [CachedStepModel, TransformersStepModel])
def test_any_company(talkative: dict[str, Any], prompts: Any, family: str, name: str, make: Any) -> None:
    ids, mask = prompts([5, 3, 9, 2, 9, 6, 4], seed=35)
    steps = make(talkative[family])
    decoder = decoder_named(name)
    alone = [chosen(decoder, steps, ids, mask, [row])[0] for row in range(7)]
    lengths = {len(text[0][0]) for text in alone}
    assert len(lengths) > 2  # rows end at different times, so rows are retired and moved
    for rows in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 0, 5], [3, 3, 1], [4, 1]):
        for row, result in zip(rows, chosen(decoder, steps, ids, mask, rows), strict=True):
            assert_same(result, alone[row])


def test_int8_rows_do_not_see_each_other(talkative: dict[str, Any], prompts: Any) -> None:
    """Inputs are rounded row by row: one loud row must not coarsen the others."""
    ids, mask = prompts([6, 6, 6], seed=2)
    steps = step_model(talkative["llama"], quantize="int8")
    decoder = decoder_named("greedy")
    alone = [chosen(decoder, steps, ids, mask, [row])[0] for row in range(3)]
    for row, result in enumerate(chosen(decoder, steps, ids, mask, [0, 1, 2])):
        assert_same(result, alone[row])


def test_draws_depend_on_seed_and_prefix_only(models: dict[str, Any], prompts: Any) -> None:
    ids, _ = prompts([6, 6])
    steps = step_model(models["llama"])

    def draw(rows: torch.Tensor, seed: int) -> list[list[int]]:
        tokens, _ = get_decoder("sample", temperature=2.0, seed=seed, eos_token_id=()).decode(steps, input_ids=rows)
        return tokens.tolist()

    first, twin, other = draw(ids[[0, 0, 1]], seed=1)
    assert first == twin != other
    assert draw(ids[:1], seed=1) == [first]
    assert draw(ids[:1], seed=2) != [first]
    assert draw(ids[:1].int(), seed=1) == [first]


def test_row_ids_stand_for_the_prefix(models: dict[str, Any]) -> None:
    steps = step_model(models["llama"])
    embeds = torch.randn(1, 4, 32).expand(3, -1, -1)
    decoder = get_decoder("sample", temperature=2.0, eos_token_id=())
    tokens, _ = decoder.decode(steps, embeds, row_ids=["a", "b", "a"])
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    nearly = decoder.decode(steps, embeds[:1] + 1e-7, row_ids=["a"])[0]
    assert torch.equal(nearly[0], tokens[0])
    same = decoder.decode(steps, embeds, row_ids=[7, np.int64(7), "7"])[0]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_several_draws_of_a_prefix(talkative: dict[str, Any], prompts: Any) -> None:
    """The first is what a single draw gives, the others differ, and rows that ended early are left as they are."""
    ids, mask = prompts([5, 3, 9], seed=4)
    steps = step_model(talkative["llama"])
    settings: dict[str, Any] = {"max_new_tokens": 14, "temperature": 1.5, "seed": 3}
    one = get_decoder("sample", **settings).decode_full(steps, input_ids=ids, prefix_mask=mask)
    four = get_decoder("sample", **settings, num_return_sequences=4).decode_full(
        steps, input_ids=ids, prefix_mask=mask
    )
    assert len(four.endings) == 12 and len(set(four.lengths.tolist())) > 3
    for b in range(3):
        assert four.lengths[4 * b] == one.lengths[b] and four.endings[4 * b] == one.endings[b]
        own = slice(int(one.lengths[b]))
        assert torch.equal(four.tokens[4 * b, own], one.tokens[b, own])
        assert torch.allclose(four.token_logprobs[4 * b, own], one.token_logprobs[b, own], atol=1e-5)
        assert len({tuple(row) for row in four.tokens[4 * b : 4 * b + 4].tolist()}) == 4
    for row, length in zip(four.tokens, four.lengths.tolist(), strict=True):
        assert (row[length:] == steps.pad_token_id).all()
    with pytest.raises(ValueError, match="temperature above 0"):
        get_decoder("greedy", num_return_sequences=2)


@pytest.mark.parametrize("name", DECODERS)
def test_stream_gives_the_columns(talkative: dict[str, Any], prompts: Any, name: str) -> None:
    ids, mask = prompts([5, 3, 9], seed=11)
    steps, decoder = step_model(talkative["qwen2"]), decoder_named(name)
    columns = list(decoder.stream(steps, input_ids=ids, prefix_mask=mask))
    assert torch.equal(torch.stack(columns, 1), decoder.decode(steps, input_ids=ids, prefix_mask=mask)[0])


@pytest.mark.parametrize("name", DECODERS)
def test_stream_ends_with_what_decode_gives(models: dict[str, Any], prompts: Any, name: str) -> None:
    ids, _ = prompts([5])
    steps, decoder, logits = step_model(models["llama"]), decoder_named(name), []
    columns, stream = [], decoder.stream(steps, input_ids=ids, watch=logits.append)
    while True:
        try:
            columns.append(next(stream))
        except StopIteration as end:
            streamed = end.value
            break
    whole = decoder.decode_full(steps, input_ids=ids)
    assert torch.equal(streamed.tokens, whole.tokens) and streamed.endings == whole.endings
    assert torch.equal(streamed.token_logprobs, whole.token_logprobs)
    if len(whole.lengths) == 1:
        seen = torch.cat(logits).log_softmax(1).gather(1, whole.tokens.T)[:, 0]
        assert torch.allclose(seen, whole.token_logprobs[0], atol=1e-5)
    with pytest.raises(ValueError, match="but 3 row_ids"):
        decoder.stream(steps, input_ids=ids, row_ids=[1, 2, 3])  # at once, not at the first token


@pytest.mark.parametrize("name", DECODERS)
def test_cancellation_keeps_what_was_said(models: dict[str, Any], prompts: Any, name: str) -> None:
    ids, _ = prompts([5, 5])
    steps, decoder = step_model(models["qwen2"]), decoder_named(name)
    asked = iter([False] * 4 + [True])
    decoded = decoder.decode_full(steps, input_ids=ids, cancel=lambda: next(asked))
    assert decoded.tokens.shape[1] == 4
    assert "cancelled" in decoded.endings
    if name != "beam":
        whole = decoder.decode(steps, input_ids=ids)[0]
        assert torch.equal(decoded.tokens, whole[:, :4])
    stopped = threading.Event()
    stopped.set()
    nothing = decoder.decode_full(steps, input_ids=ids, cancel=stopped.is_set)
    assert nothing.tokens.shape[1] == 0
    assert nothing.mean_logprobs.isnan().all()


def test_leaving_a_stream_computes_no_more(models: dict[str, Any], prompts: Any) -> None:
    ids, _ = prompts([5])

    class Counting(CachedStepModel):
        steps = 0

        def step(self, tokens: torch.Tensor, state: Any) -> torch.Tensor:
            self.steps += 1
            return super().step(tokens, state)

    counting = Counting(models["llama"])
    for n, token in enumerate(get_decoder("greedy", eos_token_id=()).stream(counting, input_ids=ids)):
        assert token.shape == (1,)
        if n == 2:
            break
    assert counting.steps == 2
