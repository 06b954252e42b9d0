"""The files beside a stock checkpoint's weights, written so that every runtime finds what it looks for.

transformers 5 nests the image processor and names its own tokenizer class; transformers.js and transformers 4.57
read the flat forms and the older names. Both are written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from limner.models.captioner import PrefixConditioningVLM
from limner.models.decoder import IMAGE_TOKEN


def processor_for_runtimes(vlm: PrefixConditioningVLM) -> dict[str, Any]:
    """The image processor's settings with what some runtime insists on: vLLM indexes ``crop_size`` even where
    nothing is cropped."""
    height, width = vlm.image_size
    given = {key: value for key, value in vlm.image_processor_config.items() if value is not None}
    return {"crop_size": {"height": height, "width": width}, "do_center_crop": False} | given


def save_processor(vlm: PrefixConditioningVLM, folder: Path) -> None:
    """The processor as transformers 5 nests it, and flat as transformers.js and 4.57 read it; the tokenizer."""
    height, width = vlm.image_size
    patch = _patch_size(vlm)
    pixels = processor_for_runtimes(vlm) | {"processor_class": "LlavaProcessor"}
    settings = {
        "image_token": IMAGE_TOKEN,
        "num_additional_image_tokens": vlm.num_prefix_tokens - (height // patch) * (width // patch),
        "patch_size": patch,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    }
    write_json(folder / "preprocessor_config.json", pixels)
    write_json(folder / "processor_config.json", settings | {"image_processor": pixels})
    save_tokenizer(vlm.tokenizer, folder, "LlavaProcessor")


def _patch_size(vlm: PrefixConditioningVLM) -> int:
    """The patch size by which runtimes count the image tokens, (H // p) * (W // p) + class and register tokens."""
    stated = getattr(vlm.encoder.config, "patch_size", None)
    if (
        isinstance(stated, int)
        and (vlm.image_size[0] // stated) * (vlm.image_size[1] // stated) <= vlm.num_prefix_tokens
    ):
        return stated
    return vlm.image_size[0] // int(vlm.num_prefix_tokens**0.5)


def save_tokenizer(words: PreTrainedTokenizerFast, folder: Path, processor: str | None = None) -> None:
    """tokenizer.json, and by hand tokenizer_config.json: 5.23 alone would put in no chat template."""
    words.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(str(words.chat_template), encoding="utf-8")
    special = ("bos_token", "eos_token", "unk_token", "pad_token")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": [IMAGE_TOKEN],
        "chat_template": words.chat_template,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": words.model_max_length,
        "padding_side": "left",
    } | {name: getattr(words, name) for name in special if getattr(words, name) is not None}
    write_json(folder / "tokenizer_config.json", settings | ({"processor_class": processor} if processor else {}))


def add_older_names(path: Path) -> None:
    """transformers 4 and vLLM look for the rotary base by its old names, and take 10,000 where they are missing."""
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:
        text["rope_theta"] = text["rotary_emb_base"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        text["partial_rotary_factor"] = text["rotary_pct"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        text["rope_scaling"] = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    write_json(path, config)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError, naming the file, where it does not hold a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the model folder is damaged.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; the model folder is damaged.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
