"""What changes the scores of the next token before one is chosen: penalties, bans, and filters of the draw.

Each rule is transformers' logits processor of the same name, for all rows at once and without a Python loop over
rows or over the text. Letters: R rows, T tokens that each row has so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limner.decoding.settings import DecodingSettings

NOTHING = -1
"""Stands in a history where a row has no token (a padded prompt)."""


class Rules:
    """The penalties and bans of one decode."""

    def __init__(
        self, settings: DecodingSettings, eos: Sequence[int], tokenizer: Any, device: torch.device
    ) -> None:
        self.penalty = settings.repetition_penalty
        self.ngram = settings.no_repeat_ngram_size
        self.min_new_tokens = settings.min_new_tokens
        self.eos = torch.tensor([i for i in eos if i >= 0], dtype=torch.int64, device=device)  # -1 ends no text
        banned = [word for word in _ids_of(settings.banned_words, tokenizer) if word not in {(i,) for i in eos}]
        never = [word[0] for word in banned if len(word) == 1] + list(settings.suppress_tokens)
        self.never = torch.tensor(sorted(set(never)), dtype=torch.int64, device=device)
        self.banned = [torch.tensor(word, dtype=torch.int64, device=device) for word in banned if len(word) > 1]
        self.largest = max((i for word in banned for i in word), default=0)

    @property
    def empty(self) -> bool:
        """Whether the scores are always left as they are."""
        return not (
            self.penalty != 1
            or self.ngram
            or self.banned
            or len(self.never)
            or (self.min_new_tokens and len(self.eos))
        )

    @property
    def reads_history(self) -> bool:
        return bool(self.penalty != 1 or self.ngram or self.banned)

    def apply(self, scores: Tensor, history: Tensor, num_new: int) -> Tensor:
        """Changed scores (R, V), of logits or log-probabilities; the ones given are left as they were.

        Args:
            history: (R, T) int64, every row's prompt ids (where it has them) and generated tokens; `NOTHING` pads.
            num_new: generated tokens in it.

        Raises:
            ValueError: a banned word has a token that the model does not have. (Of end-of-text and suppressed ones,
                that makes no difference.)
        """
        if self.empty:
            return scores
        V = scores.shape[1]
        if self.largest >= V:
            raise ValueError(f"Token {self.largest} is in a banned word, and the model has tokens up to {V - 1}.")
        scores = scores.clone()
        if self.penalty != 1 and history.shape[1]:
            self._penalize(scores, history)
        if self.ngram:
            self._ban_ngrams(scores, history)
        for word in self.banned:
            before, last = word[:-1], word[-1]
            if history.shape[1] >= len(before):
                said = (history[:, -len(before) :] == before).all(1)  # (R,)
                scores[:, last] = scores[:, last].masked_fill(said, float("-inf"))
        if num_new < self.min_new_tokens:
            scores[:, self.eos[self.eos < V]] = float("-inf")
        scores[:, self.never[self.never < V]] = float("-inf")
        return scores

    def _penalize(self, scores: Tensor, history: Tensor) -> None:
        real = history >= 0
        # A missing token repeats the row's last one, which is always real: it is penalized once all the same.
        tokens = torch.where(real, history, history[:, -1:])  # (R, T)
        found = scores.gather(1, tokens)
        scores.scatter_(1, tokens, torch.where(found < 0, found * self.penalty, found / self.penalty))

    def _ban_ngrams(self, scores: Tensor, history: Tensor) -> None:
        n = self.ngram
        if history.shape[1] < n:
            return
        windows = history.unfold(1, n, 1)  # (R, T - n + 1, n)
        tail = history[:, history.shape[1] - (n - 1) :]  # (R, n - 1)
        banned = (windows[..., :-1] == tail[:, None]).all(-1) & (windows >= 0).all(-1)  # (R, T - n + 1)
        rows, places = banned.nonzero(as_tuple=True)
        scores[rows, windows[rows, places, -1]] = float("-inf")


def _ids_of(words: Sequence[str | tuple[int, ...]], tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids of every form of the words: within a text (after a space) and at its beginning."""
    found: list[tuple[int, ...]] = []
    for word in words:
        if isinstance(word, str):
            if tokenizer is None:
                raise ValueError(f"Banning the word {word!r} needs the tokenizer; pass tokenizer=.")
            forms = {tuple(encode(tokenizer, text)) for text in (word, " " + word)}
            found += sorted(form for form in forms if form)
        else:
            found.append(word)
    return found


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without those that a tokenizer may put around it."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except TypeError:  # our own tokenizers add nothing by themselves and have no such argument
        return list(tokenizer.encode(text))


def filter_draw(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Logits (R, V) to draw from: divided by the temperature, -inf where a filter leaves a token out.

    The filters work one after the other in this order, each on what the one before left, as in transformers.
    """
    logits = logits / temperature
    if top_k and top_k < logits.shape[1]:
        worst = logits.topk(top_k).values[:, -1:]  # (R, 1)
        logits = logits.masked_fill(logits < worst, float("-inf"))
    if top_p < 1:
        ascending, order = logits.sort(dim=1)
        dropped = ascending.softmax(1).cumsum(1) <= 1 - top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(dropped.scatter(1, order, dropped), float("-inf"))
    if min_p:
        probabilities = logits.softmax(1)
        dropped = probabilities < min_p * probabilities.amax(1, keepdim=True)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits
