"""What can be asked of a decoder, once for all of them.

The names and meanings are those of transformers' `GenerationConfig`; where it knows a setting that no decoder here
has, a configuration that uses it is refused, since ignoring it would change the words in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from limner.config.base import Config, Seed

TokenId = Annotated[int, Field(ge=0)]


class DecodingSettings(Config):
    """What greedy, sampling and beam decoding share."""

    max_new_tokens: int = Field(default=30, ge=1)
    """Stop after this many tokens, the final end-of-text token included."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Allow no end-of-text token before this many tokens."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1: makes tokens that the text already has less likely (Keskar et al., 2019, section 4.1)."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """Let no run of this many tokens occur twice; 0: no such ban."""
    banned_words: tuple[str | tuple[TokenId, ...], ...] = ()
    """Never say these: words (the decoder then needs a tokenizer) or sequences of token ids."""
    suppress_tokens: tuple[TokenId, ...] = ()
    """Token ids that are never said, such as the id of ``<image>``."""
    stop_strings: tuple[str, ...] = ()
    """End the text as soon as one of these stands in it (the decoder then needs a tokenizer). Unlike in generate,
    one that begins in the prompt does not count."""
    eos_token_id: tuple[int, ...] | None = None
    """Tokens that end a text; unset: the model's own. An empty list, or -1: none."""
    pad_token_id: int | None = None
    """What stands after the end of a text; unset: the model's own, else its first end-of-text token."""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        """A single id or word is a list of one."""
        if isinstance(values, Mapping):
            values = dict(values)
            for name in ("eos_token_id", "banned_words", "suppress_tokens", "stop_strings"):
                if isinstance(values.get(name), (int, str)):
                    values[name] = (values[name],)
            words = values.get("banned_words", ())
            if isinstance(words, Sequence) and any(isinstance(word, int) for word in words):
                raise ValueError(
                    "banned_words takes words or sequences of ids, such as [[5, 6]]; single ids are suppress_tokens"
                )
        return values

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens}); "
                "lower the one or raise the other"
            )
        if not all(self.stop_strings):
            raise ValueError("a stop string is empty, and every text begins with that; leave it out")
        if not all(self.banned_words):
            raise ValueError("a banned word is empty, and every text holds that; leave it out")
        return self


class GreedySettings(DecodingSettings):
    """One token after the other: the likeliest, or a drawn one."""

    temperature: float = Field(default=0.0, ge=0)
    """0: the likeliest token each time. Above 0: draw, from logits divided by this."""
    top_k: int = Field(default=0, ge=0)
    """Draw among this many likeliest tokens; 0: among all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the fewest likeliest tokens whose probabilities reach this sum (Holtzman et al., 2020)."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw among tokens at least this probable relative to the likeliest (Nguyen et al., 2024)."""
    seed: Seed = 42
    """Seeds the draws, where there are any. The same text before it and the same seed draw the same tokens, in any
    batch."""
    num_return_sequences: int = Field(default=1, ge=1)
    """How many texts to draw for each prefix, which is read once for all of them."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.temperature == 0 and self.num_return_sequences > 1:
            raise ValueError(
                "num_return_sequences draws several texts, and greedy decoding has one; set a temperature above 0"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1 or self.min_p):
            raise ValueError("top_k, top_p and min_p only matter when tokens are drawn; set a temperature above 0")
        return self


class BeamSettings(DecodingSettings):
    """Several texts at once, the best of which survive."""

    num_beams: int = Field(default=3, ge=1)
    """How many unfinished texts are kept."""
    length_penalty: float = 1.0
    """A text's score is its log-probability over its length to this power: above 0 favours longer texts."""
    early_stopping: bool | Literal["never"] = False
    """True: stop at num_beams finished texts; False: when a better one is unlikely; "never": when impossible."""
    num_return_sequences: int = Field(default=1, ge=1)
    """How many of the best texts to return for each prefix."""

    @model_validator(mode="after")
    def _returnable(self) -> Self:
        if self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) cannot be above num_beams ({self.num_beams})"
            )
        return self


S = TypeVar("S", bound=DecodingSettings)


def make_settings(kind: type[S], values: Mapping[str, Any]) -> S:
    """The settings of these values.

    Raises:
        ValueError: a name is unknown or a value is out of range, in one sentence.
    """
    unknown = sorted(set(values) - set(kind.model_fields))
    if unknown:
        name = unknown[0]
        if name in GreedySettings.model_fields:
            raise ValueError(
                f"{name} is for drawn tokens, and beam search draws none; leave it out, or draw at a temperature "
                "above 0."
            )
        if name in BeamSettings.model_fields:
            raise ValueError(f"{name} is for beam search; leave it out, or search with num_beams above 1.")
        raise ValueError(f"Unknown decoding setting {name!r}; there are {', '.join(sorted(kind.model_fields))}.")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {message}." if where else f"{message}.") from error


_SAME_NAME = (
    "max_new_tokens", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "suppress_tokens",
    "stop_strings", "eos_token_id", "pad_token_id",
)  # fmt: skip
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "num_return_sequences")
_BEAM = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")
_NO_MATTER = (
    "transformers_version", "bos_token_id", "max_length", "min_length", "use_cache", "do_sample", "bad_words_ids",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "prefill_chunk_size",
    "continuous_batching_config", "decoder_start_token_id", "low_memory",
)  # fmt: skip
"""Settings of `GenerationConfig` that are read below, or that do not change which tokens come out here."""


def from_generation_config(
    config: Any, kind: type[DecodingSettings] | None = None, **keywords: Any
) -> tuple[type[DecodingSettings], dict[str, Any]]:
    """What a transformers `GenerationConfig` asks for: which settings, and their values.

    What it leaves open is as in generate: 20 tokens and, where they are drawn, among the 50 likeliest. Its
    ``max_length`` and ``min_length`` count the prompt, which is not known here: use ``max_new_tokens`` and
    ``min_new_tokens``.

    Args:
        kind: whose settings are wanted; None: those of beams where it asks for several.
        keywords: single settings that stand over its own. Among them, ``num_beams`` above 1 also stands over its
            ``do_sample``, and ``temperature`` decides whether tokens are drawn.

    Raises:
        TypeError: it is no `GenerationConfig`.
        ValueError: it uses something that no decoder here has, or not one of this kind.
    """
    from transformers import GenerationConfig

    if not isinstance(config, GenerationConfig):
        raise TypeError(
            f"The settings are a {type(config).__name__}; give GreedySettings, BeamSettings, a GenerationConfig or "
            "keywords."
        )
    neutral = config._get_default_generation_params() | {"max_length": None, "num_beams": None}
    given = {
        name: value
        for name, value in config.to_dict().items()
        if value is not None and not name.startswith("_") and value != neutral.get(name) and name not in keywords
    }
    num_beams = keywords.get("num_beams", given.get("num_beams", 1))
    if "temperature" in keywords:
        samples = bool(keywords["temperature"])
    else:
        samples = bool(given.get("do_sample")) and keywords.get("num_beams", 1) == 1
    if samples and (num_beams != 1 or kind is BeamSettings):
        raise ValueError(
            "Sampling within beam search is not offered; set num_beams=1 and draw, or do_sample=False and search."
        )
    kind = kind or (GreedySettings if num_beams == 1 else BeamSettings)
    if kind is GreedySettings:
        if num_beams != 1:
            raise ValueError(f"num_beams is {num_beams}; take the beam search decoder, or give num_beams=1.")
        keywords.pop("num_beams", None)
    for length, tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if length in given and tokens not in given | keywords:
            raise ValueError(f"{length} counts the prompt, which is not known yet; give {tokens} instead.")
    known = (*_SAME_NAME, *_SAMPLING, *_BEAM, *_NO_MATTER)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"The generation configuration uses {unknown[0]!r}, which no decoder here has.")
    names = _SAME_NAME + (_BEAM if kind is BeamSettings else _SAMPLING if samples else ())
    values: dict[str, Any] = {"max_new_tokens": 20} | ({"temperature": 1.0, "top_k": 50} if samples else {})
    values |= {name: given[name] for name in names if name in given}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if "bad_words_ids" in given:
        values["banned_words"] = tuple(tuple(word) for word in given["bad_words_ids"])
    return kind, values | keywords
