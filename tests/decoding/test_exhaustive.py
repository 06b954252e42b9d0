"""With enough beams, beam search finds the best of ALL texts of a toy vocabulary."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from limner.decoding import BeamSearchDecoder, Prefix

V, EOS, N = 4, 0, 4


class Table:
    """A step model whose next-token logits are drawn at random for every possible text, and known in advance."""

    device = torch.device("cpu")
    eos_token_ids = (EOS,)
    pad_token_id = EOS

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = {
            text: 2 * torch.randn(V, generator=generator)
            for length in range(N)
            for text in itertools.product(range(V), repeat=length)
        }

    def _of(self, texts: list[tuple[int, ...]]) -> torch.Tensor:
        return torch.stack([self.logits[text] for text in texts])

    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[torch.Tensor, Any]:
        state = [()] * prefix.batch
        return self._of(state), state

    def step(self, tokens: torch.Tensor, state: list[tuple[int, ...]]) -> torch.Tensor:
        state[:] = [(*text, token) for text, token in zip(state, tokens.tolist(), strict=True)]
        return self._of(state)

    def reorder(self, rows: torch.Tensor, state: list[tuple[int, ...]]) -> None:
        state[:] = [state[row] for row in rows.tolist()]

    def best(self, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
        """All finished texts (ended by EOS, or N long) with their scores, best first."""
        found = []
        for length in range(1, N + 1):
            for text in itertools.product(range(V), repeat=length):
                if EOS in text[:-1] or (text[-1] != EOS and length < N):
                    continue
                total = sum(float(self.logits[text[:n]].log_softmax(0)[token]) for n, token in enumerate(text))
                found.append((total / length**length_penalty, text))
        return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_enough_beams_find_the_best(seed: int, length_penalty: float) -> None:
    model = Table(seed)
    beams = (V - 1) ** (N - 1)  # every unfinished text survives
    decoder = BeamSearchDecoder(
        num_beams=beams,
        length_penalty=length_penalty,
        early_stopping="never",
        num_return_sequences=5,
        max_new_tokens=N,
    )
    decoded = decoder.decode_full(model, input_ids=torch.zeros(1, 1, dtype=torch.int64))
    for row, (score, text) in enumerate(model.best(length_penalty)[:5]):
        assert decoded.tokens[row, : decoded.lengths[row]].tolist() == list(text)
        assert decoded.scores[row].item() == pytest.approx(score, abs=1e-5)
        assert decoded.endings[row] == ("eos" if text[-1] == EOS else "length")


def test_more_beams_never_find_worse_on_average() -> None:
    """The mean best score rises with the number of beams, from greedy's to the true one."""
    means = []
    for beams in (1, 2, 4, 27):
        decoder = BeamSearchDecoder(num_beams=beams, length_penalty=0.0, early_stopping="never", max_new_tokens=N)
        scores = [decoder.decode(Table(seed), input_ids=torch.zeros(1, 1).long())[1].item() for seed in range(40)]
        means.append(sum(scores) / len(scores))
    truth = sum(Table(seed).best(0.0)[0][0] for seed in range(40)) / 40
    assert means == sorted(means)
    assert means[0] < means[-1] == pytest.approx(truth, abs=1e-5)
