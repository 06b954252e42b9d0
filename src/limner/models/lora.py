"""Low-rank adapters on a decoder's attention (Hu et al. 2021), by peft: where they go, and how they merge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limner.models.hub import seeded

if TYPE_CHECKING:
    from peft import PeftModel

_SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj")
_TARGETS: dict[str, tuple[str, ...]] = {
    "llama": _SEPARATE,
    "mistral": _SEPARATE,
    "smollm3": _SEPARATE,
    "qwen2": _SEPARATE,
    "qwen3": _SEPARATE,
    "gemma": _SEPARATE,
    "gemma2": _SEPARATE,
    "gemma3_text": _SEPARATE,
    "granite": _SEPARATE,
    "cohere": _SEPARATE,
    "olmo2": _SEPARATE,
    "phi": ("q_proj", "k_proj", "v_proj", "dense"),
    "phi3": ("qkv_proj", "o_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),  # a bare c_proj would also hit the feed-forward
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense"),
    "gptj": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


@dataclass(frozen=True)
class Lora:
    """Rank, scale (the update is multiplied by alpha / r) and dropout of an adapter."""

    r: int = 16
    alpha: int = 16
    dropout: float = 0.1


def lora_targets(lm: PreTrainedModel) -> tuple[list[str], str | None]:
    """The linear maps that get an adapter: the attention's projections.

    Returns:
        Endings of module names, as peft takes them; and, for families not in the table, a sentence that names
        every linear map found inside an attention block, which are then taken.

    Raises:
        ValueError: an unknown family in which no attention block was found.
    """
    config: Any = lm.config
    if config.model_type in _TARGETS:
        return list(_TARGETS[config.model_type]), None
    found: list[str] = []
    for name, module in lm.named_modules():
        path = name.split(".")
        inside = next((i for i, part in enumerate(path[:-1]) if "attn" in part or "attention" in part), None)
        if isinstance(module, (nn.Linear, Conv1D)) and inside is not None:
            found.append(".".join(path[inside:]))
    if not found:
        raise ValueError(f"No attention projections were found in a {config.model_type} decoder; use --no-lora.")
    names = sorted(set(found))
    return names, f"Decoders of type {config.model_type} are new to Limner: LoRA goes to {', '.join(names)}."


def add_lora(lm: PreTrainedModel, lora: Lora, seed: int = 42) -> tuple[PeftModel, str | None]:
    """Freezes ``lm`` and wraps it with a new adapter; with `lora_targets`' sentence.

    The second factor begins at zero, so that the wrapped model computes what the bare one does.

    Raises:
        ValueError: peft wraps such a decoder and then gives it no embeddings.
    """
    if lm.config.model_type == "mpt":
        raise ValueError(
            "An mpt decoder with adapters cannot be shown a picture (peft gives it no embeddings); add --no-lora, "
            "or take another language model."
        )
    targets, sentence = lora_targets(lm)
    import peft

    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.modules()),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with seeded(seed), _peft_is_older_than_transformers():
        return peft.get_peft_model(lm, settings), sentence  # type: ignore[arg-type,return-value]


@contextmanager
def _peft_is_older_than_transformers() -> Iterator[None]:
    """peft 0.21 asks transformers 5 for a name that is deprecated there: nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def apply_adapter(lm: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Wraps ``lm`` with an adapter that `PeftModel.save_pretrained` wrote (safetensors only), for more training.

    Raises:
        FileNotFoundError: the folder has no adapter.
        ValueError: the adapter is for another model.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is not a saved adapter.")
    import peft

    try:
        with _peft_is_older_than_transformers():
            return peft.PeftModel.from_pretrained(lm, str(folder), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The adapter in {folder} does not fit this decoder: {str(error).splitlines()[0]}"
        ) from error


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the bare model with the adapter added in fp32: W + alpha/r * B A.

    ``model`` itself is left as it is and goes on training. Keys are those of the model without peft.
    """
    if not hasattr(model, "get_base_model"):
        return dict(model.state_dict())
    from peft.tuners.lora import LoraLayer

    bare: Any = model.get_base_model()  # type: ignore[operator]
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in bare.state_dict(keep_vars=False).items():
        if "lora_" not in name:
            weights[name.replace(".base_layer.", ".")] = tensor
    for name, module in bare.named_modules():
        if isinstance(module, LoraLayer):
            key = f"{name}.weight"
            for adapter in module.active_adapters:
                delta = module.get_delta_weight(adapter)  # type: ignore[attr-defined]
                weights[key] = weights[key].float() + delta.float()
    return weights
