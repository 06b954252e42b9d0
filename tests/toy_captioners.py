"""Tiny captioners of every family, with random weights large enough to say something of each picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from limner.models.captioner import PrefixConditioningVLM, build_captioner
from limner.models.lora import Lora

NOUNS = "red blue green circle square cross left of right above small large"
WORDS = ["<s>", "</s>", "<unk>", "a", *NOUNS.split(" ")]

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def _levit() -> hf.LevitConfig:
    """One stage of attention behind a convolutional stem, and an empty second one: the kind that learns from
    nothing."""
    config = hf.LevitConfig(
        image_size=32,
        hidden_sizes=[32, 32],
        depths=[1, 0],
        num_attention_heads=[2, 2],
        key_dim=[16, 16],
        mlp_ratio=[2, 2],
        attention_ratio=[2, 2],
    )
    config.down_ops = [[""], [""]]
    return config


VISION: dict[str, Any] = {
    "siglip": lambda: hf.SiglipVisionConfig(**_TOWER),
    "siglip2": lambda: hf.Siglip2VisionConfig(
        **{k: v for k, v in _TOWER.items() if k != "image_size"}, num_patches=4
    ),
    "clip": lambda: hf.CLIPVisionConfig(**_TOWER),
    "vit": lambda: hf.ViTConfig(**_TOWER),
    "deit": lambda: hf.DeiTConfig(**_TOWER),
    "dinov2": lambda: hf.Dinov2Config(**_TOWER),
    "dinov2_registers": lambda: hf.Dinov2WithRegistersConfig(**_TOWER, num_register_tokens=3),
    "dinov3": lambda: hf.DINOv3ViTConfig(**_TOWER, num_register_tokens=2),
    "levit": _levit,
    "mobilenet_v2": lambda: hf.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, image_size=64),
    "convnext": lambda: hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], image_size=64),
    "resnet": lambda: hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
    "efficientnet": lambda: hf.EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, image_size=64
    ),
}
_SMALL = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}}
TRANSFORMERS = ("siglip", "siglip2", "clip", "vit", "deit", "dinov2", "dinov2_registers", "dinov3")
CONVOLUTIONAL = ("mobilenet_v2", "convnext", "resnet", "efficientnet")

_STACK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
_ROPE = _STACK | {"intermediate_size": 48, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_GROUPED = _ROPE | {"num_key_value_heads": 2}
TEXT: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "llama_untied": lambda: hf.LlamaConfig(**_GROUPED),
    "mistral": lambda: hf.MistralConfig(**_GROUPED),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=8, tie_word_embeddings=True),
    "phi3": lambda: hf.Phi3Config(**_GROUPED, pad_token_id=0),
    "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "opt": lambda: hf.OPTConfig(**_STACK, ffn_dim=48, word_embed_proj_dim=32),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_ROPE),
    "opt_narrow": lambda: hf.OPTConfig(**_STACK, ffn_dim=48, word_embed_proj_dim=16),
    "phi": lambda: hf.PhiConfig(**_GROUPED),
    "gemma2": lambda: hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=64, final_logit_softcapping=5.0),
    "granite": lambda: hf.GraniteConfig(**_GROUPED, logits_scaling=4.0),
}
LLAVA_CARRIES = ("llama", "llama_untied", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "opt", "gpt_neox")
LLAVA_REFUSES = ("opt_narrow", "phi", "gemma2", "granite")


def toy_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A word-level tokenizer of 16 words, with BOS, EOS and unknown."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def toy_captioner(
    vision: str = "siglip", text: str = "llama", kind: Any = "linear", lora: bool = False, **settings: Any
) -> PrefixConditioningVLM:
    """A captioner of these families, in evaluation; with ``lora``, one whose adapter is not zero."""
    if vision in ("resnet", "convnext"):  # whose configurations state no size of picture
        settings = {"image_processor": _SMALL} | settings
    vlm = build_captioner(
        VISION[vision](),
        TEXT[text](),
        kind,
        tokenizer=toy_tokenizer(),
        lora=Lora(r=4, alpha=8) if lora else None,
        say=lambda _: None,
        **settings,
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
            elif name.startswith("projection"):
                parameter.normal_(std=0.3, generator=generator)
            elif name.startswith("decoder") and parameter.ndim == 2:
                parameter.normal_(std=0.17, generator=generator)
    return vlm.eval()


def toy_picture(seed: int = 0, height: int = 40, width: int = 56) -> Image.Image:
    """Coloured noise over a gradient."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3), dtype=np.uint8)
    slope = np.linspace(0, 127, width, dtype=np.uint8)[None, :, None]
    return Image.fromarray(noise + slope)
