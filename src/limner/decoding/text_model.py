"""From a prompt to its continuation: `load_text_model(MODEL).continued(prompt)`, token by token as they come."""

from __future__ import annotations

import codecs
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.decoding import get_decoder, step_model
from limner.decoding.decoder import Cancel, Decoder
from limner.decoding.weights import is_known
from limner.device import choose
from limner.models.folder import PARTS
from limner.tokenizer import Tokenizer, get_tokenizer

HALF = "\ufffd"
"""What stands for a part of a character."""


@dataclass(frozen=True)
class Token:
    """A token of a continuation. Log-probabilities are the model's own, before temperature, filters, penalties."""

    id: int
    text: str
    """What it adds to the text; empty while a character is incomplete, and of a token that only ends the text."""
    logprob: float
    alternatives: list[tuple[int, float]]
    """The likeliest ids in its place, with their log-probabilities."""


@dataclass(frozen=True)
class Continuation:
    """How a continuation ended."""

    text: str
    """All that follows the prompt, forced tokens included."""
    ending: str
    """"eos", "stop" (a stop string), "length" (as many tokens as asked), "context" (the model holds no more),
    "cancelled"."""
    num_tokens: int
    mean_logprob: float
    prompt_tokens: int
    seconds: float


class TextModel:
    """A language model that is ready to continue texts.

    Args:
        lm: a causal LM of transformers, where it is to compute.
        dtype: compute in this precision; None: in the model's own.
        quantize: "int8": its matrices in 8 bits.

    In another precision than its own, or quantized, the model's matrices are held once, packed: of ``lm`` they are
    then gone.
    """

    def __init__(
        self, lm: Any, tokenizer: Tokenizer, dtype: torch.dtype | None = None, quantize: str | None = None
    ) -> None:
        own = lm.get_input_embeddings().weight.dtype
        if dtype is not None and not is_known(lm):
            lm.to(dtype)
            dtype = None
        release = quantize is not None or dtype not in (None, own)
        self.module: nn.Module = lm
        self.steps = step_model(lm, dtype=dtype, quantize=quantize, release=release)
        self.tokenizer = tokenizer
        self.context: int | None = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        """The longest text that it can hold; None: not said."""
        self.eos_ids = self.steps.eos_token_ids or (tokenizer.eos_id,)
        stock = tokenizer.stock()
        ends = {*self.eos_ids, tokenizer.eos_id}
        self._unsaid = {id for id in ends if not stock.decode([id], skip_special_tokens=True)}

    def continued(
        self,
        prompt: str,
        *,
        forced: Sequence[int] = (),
        max_tokens: int = 100,
        stop: Sequence[str] = (),
        repetition_penalty: float = 1.0,
        temperature: float = 1.0,
        alternatives: int = 0,
        cancel: Cancel | None = None,
        **drawing: Any,
    ) -> Generator[Token, None, Continuation]:
        """Yields the tokens that follow the prompt, and returns how they ended.

        Args:
            forced: ids that the continuation begins with; they are not yielded.
            max_tokens: tokens to generate at most.
            stop: end as soon as one of these has been said, all of it behind what is forced.
            temperature: 0: the likeliest token each time.
            alternatives: how many likely ids are told in each token's place.
            cancel: asked before every token; once it says True, the text ends where it is.
            drawing: ``top_k``, ``top_p``, ``min_p`` and ``seed``, of effect at temperatures above 0.

        Raises:
            ValueError: nothing to begin with, no room in the context, an unknown id, or a wrong setting.
        """
        if wrong := drawing.keys() - {"top_k", "top_p", "min_p", "seed"}:
            raise ValueError(f"There is no setting {min(wrong)!r}; draws have top_k, top_p, min_p and seed.")
        plain = self.tokenizer.encode_prompt(prompt)
        unknown = [id for id in forced if not 0 <= id < self.tokenizer.vocab_size]
        if unknown:
            raise ValueError(f"The model has no token {unknown[0]}; its ids are below {self.tokenizer.vocab_size}.")
        ids = [*plain, *forced]
        if not ids:
            raise ValueError("This model's tokenizer has no token that begins a text; give a prompt.")
        room = max_tokens if self.context is None else self.context + 1 - len(ids)  # the last one needs no place
        if room < 1:
            raise ValueError(
                f"The prompt has {len(ids)} tokens, and the model's context holds {self.context}; "
                "give a shorter prompt."
            )
        decoder = get_decoder(
            "sample" if temperature else "greedy",
            tokenizer=self.tokenizer,
            max_new_tokens=min(max_tokens, room),
            repetition_penalty=repetition_penalty,
            stop_strings=tuple(stop),
            eos_token_id=self.eos_ids,
            **(drawing | {"temperature": temperature} if temperature else {}),
        )
        return self._continued(decoder, plain, list(forced), max_tokens, alternatives, cancel)

    def _continued(
        self,
        decoder: Decoder[Any],
        plain: list[int],
        forced: list[int],
        max_tokens: int,
        alternatives: int,
        cancel: Cancel | None,
    ) -> Generator[Token, None, Continuation]:
        began = time.perf_counter()
        words = Detokenizer(self.tokenizer, plain)
        text = "".join(map(words.add, forced))
        seen: list[Tensor] = []
        inputs = torch.tensor([plain + forced], device=self.steps.device)
        tokens = decoder.stream(self.steps, input_ids=inputs, cancel=cancel, watch=seen.append)
        while True:
            try:
                id = int(next(tokens)[0])
            except StopIteration as end:
                decoded = end.value
                break
            piece = "" if id in self._unsaid else words.add(id)
            text += piece
            yield _token(id, piece, seen.pop()[0], alternatives)
        count, ending = int(decoded.lengths[0]), decoded.endings[0]
        return Continuation(
            text=text + words.rest(),
            ending="context" if ending == "length" and count < max_tokens else ending,
            num_tokens=count,
            mean_logprob=float(decoded.mean_logprobs[0]),
            prompt_tokens=len(plain),
            seconds=time.perf_counter() - began,
        )


def _token(id: int, piece: str, logits: Tensor, alternatives: int) -> Token:
    logprobs = logits.float().log_softmax(0)  # (V,)
    likeliest: list[tuple[int, float]] = []
    if alternatives:
        values, ids = logprobs.topk(min(alternatives, len(logprobs)))
        likeliest = list(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(id, piece, float(logprobs[id]), likeliest)


class Detokenizer:
    """What each token adds to a text, without decoding all of the text at each.

    Args:
        before: the ids that stand before the first token added.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        if tokenizer.byte_level:
            self._utf8.decode(tokenizer.decode_bytes(before[-3:]))  # it may end within a character
            return
        # What another tokenizer makes of a token depends on those before it (a first space is dropped): of these a
        # window is kept, which begins with a character. A token that begins texts would hide that they begin here.
        self._window = list(before[1:] if before[:1] == [tokenizer.bos_id] else before)
        self._move()

    def add(self, id: int) -> str:
        """The text that is whole with this token; empty while a character is not."""
        if self.tokenizer.byte_level:
            return self._utf8.decode(self.tokenizer.token_bytes(id))
        self._window.append(id)
        text = self.tokenizer.decode(self._window)
        if text.endswith(HALF) and len(self._window) - self._told_ids < 4:  # a character has four bytes at most
            return ""
        added = text[len(self._told) :]
        self._window = self._window[self._told_ids :]
        self._move()
        return added

    def rest(self) -> str:
        """What stands for the character that was never completed."""
        if self.tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        return self.tokenizer.decode(self._window)[len(self._told) :]

    def _move(self) -> None:
        self._told, self._told_ids = self.tokenizer.decode(self._window), len(self._window)


def load_text_model(
    source: str | Path,
    device: str = "auto",
    precision: str | None = "fp32",
    quantize: str | None = None,
    *,
    threads: int | None = None,
) -> TextModel:
    """A language model from a folder in stock format, or a hub id.

    Args:
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "mps".
        precision: "auto", "fp32", "bf16", "fp16", as for `limner.device.choose`; None: as the files have it.
        quantize: "int8": its matrices in 8 bits.
        threads: CPU threads; None: as torch has it.

    Raises:
        FileNotFoundError: the folder does not exist or lacks a file.
        OSError: a hub id cannot be had.
        ValueError: not a language model; weights are missing; the device or precision is not to be had here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # slow to import, and pretraining needs none of it

    from limner.models.hub import load_stock

    choice = choose(device, precision or "fp32", threads)
    parts = (Path(source) / PARTS).is_file()  # of a captioner that LLaVA cannot express
    if parts or load_stock(AutoConfig, source, "language model").model_type == "llava":
        raise ValueError(
            f"{source} is a captioner: it puts pictures into words (limner caption), and continues none."
        )
    lm = load_stock(AutoModelForCausalLM, source, "language model").to(choice.device).eval()
    return TextModel(lm, get_tokenizer(source), None if precision is None else choice.dtype, quantize)


def visible(text: str) -> str:
    """For terminals: control characters, which may do anything to one, as ``\\x1b``; line breaks and tabs stay."""
    return text.translate(_ESCAPES)


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
