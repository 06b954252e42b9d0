"""The verbs that make runs, as the page sees them: their settings' schema, their presets, their command line."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from limner.config import command_line
from limner.config.base import RunConfig
from limner.config.demo import DemoConfig
from limner.config.pretrain import PRESET_NAMES, PretrainConfig
from limner.config.train import PRESETS, TrainConfig
from limner.server.errors import Refusal, wrong_fields

RUN_CONFIGS: dict[str, type[RunConfig]] = {"demo": DemoConfig, "pretrain": PretrainConfig, "train": TrainConfig}


def resolve(verb: str, settings: dict[str, Any]) -> RunConfig:
    """The typed settings.

    Raises:
        Refusal: the verb is unknown, or a setting is wrong; the fields are named ``config.<field>``.
    """
    if verb not in RUN_CONFIGS:
        message = f"'{verb[:50]}' makes no runs; use one of: {', '.join(RUN_CONFIGS)}."
        raise Refusal("wrong_input", message, field="verb")
    try:
        return RUN_CONFIGS[verb].model_validate(settings)
    except ValidationError as error:
        raise wrong_fields(error, "config") from error


def arguments(verb: str, settings: dict[str, Any]) -> list[str]:
    """The command that gives these settings, beginning with "limner".

    Raises:
        KeyError, ValueError: there is no such verb, or these are not its settings.
    """
    return command_line(verb, RUN_CONFIGS[verb].model_validate(settings))


def schema(verb: str) -> dict[str, Any]:
    """The JSON Schema of a verb's settings; `description` is the field's docstring."""
    return RUN_CONFIGS[verb].model_json_schema()


_ABOUT = {
    "scratch": "A small encoder and a small decoder, both from random weights; nothing is downloaded",
    "nano": "6 layers, 256 wide, 256 tokens of context",
    "small": "8 layers, 512 wide, 512 tokens of context",
    "medium": "12 layers, 768 wide, 1,024 tokens of context",
    "large": "12 layers, 1,024 wide, 1,024 tokens of context",
    "xlarge": "24 layers, 1,024 wide, 1,024 tokens of context",
    "gpt2-124m": "12 layers, 768 wide, 1,024 tokens of context: GPT-2's own shape",
}
"""Presets whose settings do not say what they are."""


def presets() -> list[dict[str, Any]]:
    """Ready-made settings: the presets that the verbs' settings know, each as a field of the form."""
    models = {name: [word for word in given.values() if isinstance(word, str)] for name, given in PRESETS.items()}
    return [
        *(_preset("pretrain", "config", name, _ABOUT[name]) for name in PRESET_NAMES),
        *(_preset("train", "preset", name, " + ".join(pair) or _ABOUT[name]) for name, pair in models.items()),
    ]


def _preset(verb: str, field: str, name: str, description: str) -> dict[str, Any]:
    return {"verb": verb, "name": name, "label": name, "description": description, "config": {field: name}}
