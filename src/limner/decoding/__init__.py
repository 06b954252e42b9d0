"""Greedy, sampling and beam search, written once against a step model."""

from __future__ import annotations

from typing import Any

from limner.decoding.beam import BeamSearchDecoder
from limner.decoding.decoder import NOT_SURE, Decoded, Decoder, is_sure
from limner.decoding.greedy import GreedyDecoder
from limner.decoding.settings import BeamSettings, DecodingSettings, GreedySettings, from_generation_config
from limner.decoding.step_model import Prefix, StepModel, step_model

__all__ = [
    "NOT_SURE",
    "BeamSearchDecoder",
    "BeamSettings",
    "Decoded",
    "Decoder",
    "DecodingSettings",
    "GreedyDecoder",
    "GreedySettings",
    "Prefix",
    "StepModel",
    "from_generation_config",
    "get_decoder",
    "is_sure",
    "step_model",
]


def get_decoder(name: str, settings: Any = None, **keywords: Any) -> Decoder[Any]:
    """The decoder of this name: "greedy", "sample" (at temperature 1 unless given) or "beam".

    Args:
        settings: a settings object or a transformers `GenerationConfig`.
        keywords: single settings (`GreedySettings`, `BeamSettings`), and ``tokenizer``.

    Raises:
        ValueError: there is no such decoder, or a setting is not one of its.
        TypeError: the settings are neither of the two.
    """
    if name == "greedy":
        greedy = GreedyDecoder(settings, **keywords)
        if greedy.settings.temperature:
            raise ValueError(
                'A greedy decoder draws nothing; leave out temperature and do_sample, or ask for "sample".'
            )
        return greedy
    if name == "sample":
        is_open = isinstance(settings, DecodingSettings) and "temperature" not in settings.model_fields_set
        own = None if is_open else getattr(settings, "temperature", None)
        sampling = GreedyDecoder(settings, **{"temperature": 1.0 if own is None else own} | keywords)
        if not sampling.settings.temperature:
            raise ValueError('At temperature 0 nothing is drawn; set one above it, or ask for "greedy".')
        return sampling
    if name == "beam":
        return BeamSearchDecoder(settings, **keywords)
    raise ValueError(f"There is no decoder {name!r}; there are greedy, sample and beam.")
