"""The verbs that make runs, as the page sees them: their settings' schema, their presets, their command line."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from limner.config import command_line
from limner.config.base import RunConfig
from limner.server.errors import Refusal, wrong_fields

RUN_VERBS = ("demo", "pretrain", "train")


@lru_cache(maxsize=8)
def config_type(verb: str) -> type[RunConfig]:
    """The settings of a verb that makes runs: the run configuration that ``limner.config.<verb>`` defines.

    Raises:
        KeyError: there is no such verb, or this installation lacks it.
    """
    if verb not in RUN_VERBS:
        raise KeyError(verb)
    try:
        module = import_module(f"limner.config.{verb}")
    except ModuleNotFoundError as error:
        raise KeyError(verb) from error
    for found in vars(module).values():
        if isinstance(found, type) and issubclass(found, RunConfig) and found.__module__ == module.__name__:
            return found
    raise KeyError(verb)


def available() -> list[str]:
    """The verbs of `RUN_VERBS` that can be used here."""
    found = []
    for verb in RUN_VERBS:
        try:
            config_type(verb)
        except KeyError:
            continue
        found.append(verb)
    return found


def resolve(verb: str, settings: dict[str, Any]) -> RunConfig:
    """The typed settings.

    Raises:
        Refusal: the verb is unknown, or a setting is wrong; the fields are named ``config.<field>``.
    """
    try:
        kind = config_type(verb)
    except KeyError:
        message = f"'{verb[:50]}' makes no runs here; use one of: {', '.join(available())}."
        raise Refusal("wrong_input", message, field="verb") from None
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise wrong_fields(error, "config") from error


def arguments(verb: str, settings: dict[str, Any]) -> list[str]:
    """The command that gives these settings, beginning with "limner".

    Raises:
        KeyError, ValueError: there is no such verb, or these are not its settings.
    """
    return command_line(verb, config_type(verb).model_validate(settings))


def schema(verb: str) -> dict[str, Any]:
    """The JSON Schema of a verb's settings; `description` is the field's docstring."""
    return config_type(verb).model_json_schema()


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
    found = []
    for verb in available():
        kind = config_type(verb)
        module = import_module(kind.__module__)
        field = "preset" if "preset" in kind.model_fields else "config"
        given: dict[str, Any] = vars(module).get("PRESETS", {})
        for name in given or vars(module).get("PRESET_NAMES", ()):
            parts = [str(value) for value in given.get(name, {}).values() if isinstance(value, str)]
            description = " + ".join(parts) or _ABOUT.get(name, "")
            preset = {"verb": verb, "name": name, "label": name, "description": description}
            found.append(preset | {"config": {field: name}})
    return found
