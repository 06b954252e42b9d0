"""The captioner that a run begins with: a base model, stock parts, or a small pair from nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from limner.config.train import TrainConfig
from limner.device import free_memory
from limner.models.captioner import PrefixConditioningVLM, build_captioner
from limner.models.lora import Lora, add_lora
from limner.models.stock import read_captioner
from limner.runs.models import find_model
from limner.training.scratch import scratch_decoder, scratch_encoder, scratch_tokenizer


def build_model(config: TrainConfig, captions: Sequence[str], say: Callable[[str], None]) -> PrefixConditioningVLM:
    """The model as ``config`` says, with what trains and what is frozen.

    Args:
        config: settings, presets filled in.
        captions: the training captions; a decoder from nothing makes its tokenizer of them.
        say: told, in a sentence each, what was changed to make the parts fit.
    """
    lora = Lora(config.lora_r, config.lora_alpha, config.lora_dropout) if config.lora else None
    if config.base_model is not None:
        return _from_base(config, lora, say)
    new_encoder, new_decoder = config.encoder_model is None, config.decoder_model is None
    if new_encoder and new_decoder:
        say(
            "Both encoder and decoder begin from random weights. "
            "To fine-tune SigLIP + SmolLM-135M from the hub instead: --preset balanced."
        )
    return build_captioner(
        scratch_encoder() if new_encoder else str(config.encoder_model),
        scratch_decoder()
        if new_decoder
        else find_model(str(config.decoder_model), config.runs_dir, "language model"),
        config.projection_type,
        lora=None if new_decoder else lora,
        tokenizer=scratch_tokenizer(captions) if new_decoder else None,
        image_processor=config.feature_extractor_model,
        feature_layer=config.vision_feature_layer,
        image_tokens=config.image_tokens,
        freeze_vision=config.freeze_vision and not new_encoder,
        unfreeze_vision_layers=config.unfreeze_vision_layers,
        seed=config.seed,
        cache_dir=config.cache_dir / "hub",
        say=say,
    )


def _from_base(config: TrainConfig, lora: Lora | None, say: Callable[[str], None]) -> PrefixConditioningVLM:
    """Goes on from a captioner: its adapters were merged when it was saved, so new ones begin at zero."""
    base = find_model(str(config.base_model), config.runs_dir, "captioner")
    vlm = read_captioner(base, revision=config.base_model_revision, cache_dir=config.cache_dir / "hub")
    vlm.projection.requires_grad_(True)
    if lora is None:
        vlm.decoder.requires_grad_(True)
    else:
        vlm.decoder, sentence = add_lora(vlm.language_model, lora, config.seed)  # type: ignore[arg-type]
        if sentence:
            say(sentence)
    if config.freeze_vision:
        vlm.freeze_encoder(config.unfreeze_vision_layers)
    else:
        vlm.open_encoder()
    return vlm


ACTIVATIONS_SHARE = 0.5
"""How much of the free memory activations may take before they are recomputed instead."""


def activation_bytes(vlm: PrefixConditioningVLM, positions: int, dtype: torch.dtype) -> int:
    """What the decoder keeps for its backward pass: about 17 numbers for each position, layer and channel, which
    are the 34 bytes in half precision of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) without the
    attention maps, which SDPA does not keep."""
    config = vlm.language_model.config
    return 17 * positions * config.num_hidden_layers * config.hidden_size * dtype.itemsize


def checkpoint_activations(
    vlm: PrefixConditioningVLM, positions: int, config: TrainConfig, dtype: torch.dtype
) -> bool:
    """Turns activation checkpointing on where it is asked for, or (auto) where memory needs it.

    Args:
        positions: the most positions of a micro-batch. Returns: whether it is on.
    """
    on = config.gradient_checkpointing == "on"
    if config.gradient_checkpointing == "auto":
        on = activation_bytes(vlm, positions, dtype) > ACTIVATIONS_SHARE * free_memory(vlm.device)
    if on:
        vlm.language_model.activation_checkpointing_enable()
        vlm.language_model.enable_input_require_grads()  # frozen embeddings would cut the graph off
    return on
