"""What every decoder gives back, and what they share around their loops."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from limner.decoding.rules import NOTHING, Rules, encode
from limner.decoding.settings import DecodingSettings, from_generation_config, make_settings
from limner.decoding.step_model import Prefix, StepModel

S = TypeVar("S", bound=DecodingSettings)

NOTHING_LEFT = "No token is left to say: all are banned, or the model's logits are not numbers; lift a ban."

Cancel = Callable[[], bool]
"""Asked before every step; True ends all texts where they are. ``threading.Event().is_set`` is one."""
Watch = Callable[[Tensor], None]
"""Told the logits (rows still running, V) of every step, as the model gave them."""


@dataclass
class Decoded:
    """The texts of one decode, one row each; beams' ``num_return_sequences`` of a prefix stand side by side.

    A row's tokens include the end-of-text token that ended it, where one did; padding follows.
    """

    tokens: Tensor
    """(B, N) int64; N is the longest row's length."""
    scores: Tensor
    """(B,) float32. Beam search: transformers' ``sequences_scores``, the sum of the log-probabilities (as penalties
    and bans left them) over length ** length_penalty. Greedy and sampling: the mean of ``token_logprobs``."""
    lengths: Tensor
    """(B,) int64, tokens before the padding."""
    token_logprobs: Tensor
    """(B, N) float32, how likely the model itself held each token, before any penalty, ban, temperature or filter;
    0 in the padding."""
    endings: list[str]
    """Why each row ended: "eos", "stop" (a stop string), "length" or "cancelled"."""

    @property
    def mean_logprobs(self) -> Tensor:
        """(B,) confidence: the mean log-probability of a row's tokens, the end-of-text token included; NaN where it
        has none (cancelled before the first)."""
        return self.token_logprobs.sum(1) / self.lengths


def is_sure(mean_logprob: float, abstain_below: float | None) -> bool:
    """Whether an answer of this confidence is to be given; else say `NOT_SURE`. None: always. NaN never is.

    Raises:
        ValueError: ``abstain_below`` is not a number.
    """
    if abstain_below is not None and math.isnan(abstain_below):
        raise ValueError("abstain_below is not a number; give a log-probability such as -1, or leave it out.")
    return abstain_below is None or mean_logprob >= abstain_below


NOT_SURE = "(not sure)"
"""What is said instead of a text below ``abstain_below``."""


@dataclass
class Job:
    """One call of a decoder: the model with the prefix, and what its settings became for them."""

    model: StepModel
    prefix: Prefix
    rules: Rules
    eos: Tensor  # (number of end-of-text ids,)
    pad: int
    row_ids: Sequence[Hashable] | None
    cancel: Cancel
    watch: Watch

    def history(self, num_new: int) -> tuple[Tensor, int]:
        """(B, T0 + num_new) int64 for the tokens that rules look at, and T0: prompt ids that stand in it already.

        As in transformers' generate, rules see the prompt where its ids were given, and no prompt where only its
        embeddings were. Padding is never seen.
        """
        known = self.prefix.ids if self.rules.reads_history else None
        T0 = 0 if known is None else known.shape[1]
        history = torch.full((self.prefix.batch, T0 + num_new), NOTHING, device=self.model.device)
        if known is not None:
            history[:, :T0] = known
            if self.prefix.mask is not None:
                history[:, :T0].masked_fill_(~self.prefix.mask, NOTHING)
        return history, T0

    def is_eos(self, tokens: Tensor) -> Tensor:
        """Which tokens end a text: bool, of the tokens' shape."""
        return torch.isin(tokens, self.eos)


class Decoder(ABC, Generic[S]):
    """Settings, and the loop of a subclass.

    Args:
        settings: a settings object, or transformers' `GenerationConfig`.
        tokenizer: needed for banned words and stop strings only; anything with ``encode`` and ``decode``.
        keywords: single settings, over those of ``settings``.

    Raises:
        ValueError: a setting is unknown, out of range, or not this decoder's.
        TypeError: the settings are neither of the two.
    """

    kind: type[S]

    def __init__(self, settings: Any = None, *, tokenizer: Any = None, **keywords: Any) -> None:
        if isinstance(settings, DecodingSettings):
            values = settings.model_dump(exclude_unset=True) | keywords
        elif settings is not None:
            _, values = from_generation_config(settings, self.kind, **keywords)
        else:
            values = keywords
        self.settings: S = make_settings(self.kind, values)
        self.tokenizer = tokenizer
        if self.settings.stop_strings and tokenizer is None:
            raise ValueError("Stop strings need the tokenizer; pass tokenizer=.")
        self._before = encode(tokenizer, "x") if self.settings.stop_strings else []
        self._skip = len(tokenizer.decode(self._before)) if self._before else 0

    def decode(
        self,
        step_model: StepModel,
        prefix_embeds: Tensor | None = None,
        input_ids: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """The most wanted part of `decode_full`: tokens (B, N) int64 and scores (B,).

        Tokens include the end-of-text token where one was generated; what follows it is padding. With n
        ``num_return_sequences`` the shapes are (B n, N) and (B n,).
        """
        decoded = self.decode_full(step_model, prefix_embeds, input_ids, prefix_mask, **options)
        return decoded.tokens, decoded.scores

    def decode_full(
        self,
        step_model: StepModel,
        prefix_embeds: Tensor | None = None,
        input_ids: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        *,
        row_ids: Sequence[Hashable] | None = None,
        cancel: Cancel | None = None,
    ) -> Decoded:
        """Continues each prefix. A row's result depends on its own prefix only, never on the batch around it.

        Args:
            prefix_embeds: (B, P, D), or
            input_ids: (B, P) int64. Beside embeddings, they are what penalties and bans see of the prefix.
            prefix_mask: (B, P), 0 where a prefix is padded, on the left; None: nowhere.
            row_ids: B names (strings or ints) that stand for the rows in the seed of their draws. Without them a
                row's own prefix does, so that equal rows draw equal tokens. Give them where prefixes are
                embeddings, whose last bits may depend on the batch in which they were computed. Of no effect where
                nothing is drawn.
            cancel: asked before every step; once it says True, the texts end where they are.

        Raises:
            TypeError: ``step_model`` is none.
            ValueError: prefix, mask and row_ids do not fit each other or the model; the model has too few positions
                or lacks a banned token; every token is banned.
        """
        steps = self.stream(step_model, prefix_embeds, input_ids, prefix_mask, row_ids=row_ids, cancel=cancel)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def stream(
        self,
        step_model: StepModel,
        prefix_embeds: Tensor | None = None,
        input_ids: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        *,
        row_ids: Sequence[Hashable] | None = None,
        cancel: Cancel | None = None,
        watch: Watch | None = None,
    ) -> Generator[Tensor, None, Decoded]:
        """The columns (B,) of `decode`'s tokens, each as soon as it is known; leave the loop to cancel.

        Greedy and sampled tokens are known at once; beam search knows its first token when it has ended. What
        `decode_full` gives is the generator's value: ``decoded = yield from decoder.stream(...)``.

        Args:
            watch: told the logits of every step, before the token is chosen; others as in `decode_full`.
        """
        return self._run(self._job(step_model, prefix_embeds, input_ids, prefix_mask, row_ids, cancel, watch))

    def _job(
        self,
        step_model: StepModel,
        prefix_embeds: Tensor | None,
        input_ids: Tensor | None,
        prefix_mask: Tensor | None,
        row_ids: Sequence[Hashable] | None,
        cancel: Cancel | None,
        watch: Watch | None,
    ) -> Job:
        if not isinstance(step_model, StepModel):
            raise TypeError(f"A {type(step_model).__name__} is no step model; make one of it with step_model().")
        prefix = Prefix(prefix_embeds, input_ids, prefix_mask)
        if prefix.ids is not None:
            prefix.ids = prefix.ids.to(step_model.device)
        if prefix.mask is not None:
            prefix.mask = prefix.mask.to(step_model.device)
        if row_ids is not None and len(row_ids) != prefix.batch:
            raise ValueError(f"There are {prefix.batch} rows but {len(row_ids)} row_ids.")
        settings = self.settings
        eos = step_model.eos_token_ids if settings.eos_token_id is None else settings.eos_token_id
        pad = step_model.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
        if pad is None:
            pad = eos[0] if eos else 0
        rules = Rules(settings, eos, self.tokenizer, step_model.device)
        return Job(
            step_model,
            prefix,
            rules,
            torch.tensor(list(eos), dtype=torch.int64, device=step_model.device),
            pad,
            row_ids,
            cancel or (lambda: False),
            watch or (lambda logits: None),
        )

    @abstractmethod
    def _run(self, job: Job) -> Generator[Tensor, None, Decoded]:
        """The token columns (B,)."""

    def _stops(self, new: Tensor) -> Tensor:
        """Whether a stop string stands in each text (R, n): bool (R,)."""
        strings = self.settings.stop_strings
        # Every token but a special one says at least a byte: a stop string that the last token completed lies in
        # the last tokens; with a few more, they begin no later than a character. A token before them keeps a
        # tokenizer from dropping the space with which a text begins.
        window = max(len(string.encode()) for string in strings) + 4
        texts = [self.tokenizer.decode(self._before + row)[self._skip :] for row in new[:, -window:].tolist()]
        found = [any(string in text for string in strings) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=new.device)
