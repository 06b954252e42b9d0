"""Vision encoders: any stock tower that gives patch states, and convolutional trunks, whose map becomes a row.

What LLaVA reads, and so what is read here, is ``hidden_states[layer]`` with every token kept. Only the layers up
to that one are run.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PretrainedConfig, PreTrainedModel

from limner.models.hub import load_stock

# Letters: B pictures, (H, W) input pixels, P patches (with class and register tokens), Dv the vision width,
# (C, h, w) a convolutional map.

_TOWERS: dict[str, tuple[str, tuple[str, ...]]] = {
    # model type: (the path of its layers, what comes after them and is not needed)
    "siglip_vision_model": ("encoder.layers", ("post_layernorm", "head")),
    "clip_vision_model": ("encoder.layers", ("post_layernorm",)),
    "vit": ("layers", ("layernorm", "pooler")),
    "deit": ("layers", ("layernorm", "pooler")),
    "dinov2": ("encoder.layer", ("layernorm",)),
    "dinov2_with_registers": ("encoder.layer", ("layernorm",)),
    "dinov3_vit": ("model.layer", ("norm",)),
}

_DEFAULT_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def load_encoder(
    source: str | Path | PretrainedConfig, *, processor: str | Path | dict[str, Any] | None = None, **hub: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The vision half of a stock checkpoint, or a new one from a stock configuration (random weights).

    Args:
        source: a hub id, a folder in stock format, or a configuration.
        processor: a hub id or folder whose image processor is used instead of the encoder's own, or its settings.
        hub: ``revision`` and ``cache_dir`` for hub ids.

    Returns:
        The encoder in fp32 and the settings of its image processor, in the stock ``preprocessor_config`` form.

    Raises:
        ValueError: the checkpoint is not a vision model, or lacks weights.
        OSError: it cannot be found or downloaded.
    """
    if isinstance(source, PretrainedConfig):
        config = _fixed_resolution(getattr(source, "vision_config", source))
        encoder = AutoModel.from_config(config)
        settings = {} if processor else _default_processor(config)
    else:
        whole = load_stock(AutoConfig, source, "vision encoder", **hub)
        config = getattr(whole, "vision_config", whole)
        # A classifier's checkpoint has no pooler, and nobody reads one here.
        encoder = load_stock(
            AutoModel, source, "vision encoder", unused=("pooler.",), config=config, dtype=torch.float32, **hub
        )
        if config.model_type == "siglip2_vision_model":
            encoder = _from_siglip2(encoder)
            settings = {} if processor else _default_processor(encoder.config)
        else:
            settings = {} if processor else _processor_settings(source, **hub)
    if encoder.main_input_name != "pixel_values":
        raise ValueError(f"{source} is not a vision encoder: it reads {encoder.main_input_name}, not pixel_values.")
    if processor is not None:
        settings = dict(processor) if isinstance(processor, dict) else _processor_settings(processor, **hub)
    return encoder, settings


def _default_processor(config: PretrainedConfig) -> dict[str, Any]:
    # Convolutional trunks state no size; 224 is what almost all were trained at.
    height, width = image_size(config, {} if getattr(config, "image_size", None) else {"size": 224})
    return _DEFAULT_PROCESSOR | {"size": {"height": height, "width": width}}


def _processor_settings(source: str | Path, **hub: Any) -> dict[str, Any]:
    """The image processor's settings with their defaults, named as every runtime knows the class."""
    settings = load_stock(AutoImageProcessor, source, "image processor", backend="pil", **hub).to_dict()
    settings["image_processor_type"] = settings["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
    return {key: value for key, value in settings.items() if key not in ("backend", "device", "return_tensors")}


def image_size(config: PretrainedConfig, processor: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of the pictures that the encoder is given.

    Raises:
        ValueError: neither the image processor nor the configuration tells a size.
    """
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    size = size or getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    if size is None:
        raise ValueError(f"The vision encoder ({config.model_type}) does not say what size of picture it reads.")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _fixed_resolution(config: PretrainedConfig) -> PretrainedConfig:
    """A NaFlex SigLIP-2 configuration as the plain SigLIP one that computes the same on square pictures."""
    if config.model_type != "siglip2_vision_model":
        return config
    from transformers import SiglipVisionConfig

    settings = {
        k: v for k, v in config.to_dict().items() if k not in ("model_type", "num_patches", "architectures")
    }
    side = int(config.num_patches**0.5) * config.patch_size
    return SiglipVisionConfig(**(settings | {"image_size": side}))


def _from_siglip2(encoder: PreTrainedModel) -> PreTrainedModel:
    """NaFlex SigLIP-2 as a SigLIP tower: at its own square grid the positions need no resizing, and a linear map
    of a flattened patch is a convolution. LLaVA can carry the result; the NaFlex form it cannot."""
    config: Any = _fixed_resolution(encoder.config)
    tower = AutoModel.from_config(config)
    weights = encoder.state_dict()
    linear = weights["embeddings.patch_embedding.weight"]  # (Dv, patch * patch * 3): rows, columns, channels
    patches = linear.reshape(len(linear), config.patch_size, config.patch_size, config.num_channels)
    weights["embeddings.patch_embedding.weight"] = patches.permute(0, 3, 1, 2).contiguous()  # (Dv, 3, patch, patch)
    tower.load_state_dict(weights)
    return tower


def is_convolutional(encoder: PreTrainedModel, size: tuple[int, int]) -> bool:
    """True where the encoder's last state is a map (B, C, h, w) and not a row of tokens."""
    config: Any = encoder.config
    return config.model_type not in _TOWERS and _on_nothing(encoder, None, size).ndim == 4


def feature_shape(encoder: PreTrainedModel, layer: int, size: tuple[int, int]) -> tuple[int, int]:
    """(P, Dv) of the features of one picture of ``size`` (H, W), found by running an empty one."""
    view = tower_up_to(encoder, layer)
    states = _on_nothing(encoder, layer, size) if view is None else _on_nothing(view, None, size)
    _, tokens, width = as_row(states).shape
    return tokens, width


@torch.no_grad()
def _on_nothing(encoder: PreTrainedModel, layer: int | None, size: tuple[int, int]) -> torch.Tensor:
    weight = next(encoder.parameters())
    channels = getattr(encoder.config, "num_channels", 3)
    was_training = encoder.training
    encoder.eval()
    nothing = torch.zeros(1, channels, *size, dtype=weight.dtype, device=weight.device)
    try:
        states = encode(encoder, nothing, layer)
    except RuntimeError as error:
        raise ValueError(
            f"The image processor makes pictures of {size[0]} x {size[1]}, which the vision encoder "
            f"({encoder.config.model_type}) cannot read: {error}. Give it one of its own size."
        ) from error
    encoder.train()  # LeViT keeps what it computed from its weights until it is told to train
    encoder.train(was_training)
    return states


def tower_up_to(encoder: PreTrainedModel, layer: int) -> PreTrainedModel | None:
    """A view of a transformer tower that ends at ``hidden_states[layer]``: the same weights, fewer layers.

    None for families whose layers are not in the table; they run whole.

    Raises:
        ValueError: the tower has no such layer.
    """
    config: Any = encoder.config
    if config.model_type not in _TOWERS:
        return None
    path, after = _TOWERS[config.model_type]
    layers: Any = encoder.get_submodule(path)
    count = len(layers) + 1 + layer if layer < 0 else layer  # hidden_states[0] is the embeddings
    if not 0 < count <= len(layers):
        raise ValueError(f"The vision encoder has {len(layers)} layers: there is no feature layer {layer}.")
    view: Any = _shallow(encoder)
    parent = view
    *parents, name = path.split(".")
    for step in parents:
        parent._modules[step] = _shallow(parent.get_submodule(step))
        parent = parent.get_submodule(step)
    parent._modules[name] = nn.ModuleList(list(layers)[:count])
    for skipped in after:
        view._modules[skipped] = nn.Identity() if "norm" in skipped else None
    if hasattr(view, "use_head"):
        view.use_head = False  # type: ignore[assignment]
    return view


def _shallow(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def encode(encoder: PreTrainedModel, pixel_values: torch.Tensor, layer: int | None) -> torch.Tensor:
    """The plain way: the whole encoder, then ``hidden_states[layer]`` (None: its last state).

    Returns:
        (B, P, Dv), or a map (B, C, h, w) for convolutional trunks, for which -1 is the last state.

    Raises:
        ValueError: there is no such state.
    """
    if layer is None:
        return encoder(pixel_values).last_hidden_state
    outputs = encoder(pixel_values, output_hidden_states=True)
    if outputs.last_hidden_state.ndim == 4 and layer == -1:
        return outputs.last_hidden_state
    states = outputs.hidden_states or ()
    if not -len(states) <= layer < len(states):
        raise ValueError(f"The vision encoder gives {len(states)} states: there is no feature layer {layer}.")
    return states[layer]


def as_row(states: torch.Tensor) -> torch.Tensor:
    """A map (B, C, h, w) as a row of tokens (B, h*w, C), line by line; a row stays as it is."""
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def region_means(patches: int) -> torch.Tensor:
    """(5, patches): the weights that take the means of the upper, lower, left and right half of a square of
    patches, and of its middle (all but a quarter at each side, rounded down). Tokens before the square, a class
    token or registers, have no place and no weight.

    Raises:
        ValueError: there are too few patches for halves.
    """
    side = math.isqrt(patches)
    if side < 2:
        raise ValueError(f"Regions need at least 2 x 2 patches, and this encoder gives {patches}.")
    half, rim = side // 2, side // 4
    within = torch.zeros(5, side, side)
    within[0, :half] = within[1, -half:] = within[2, :, :half] = within[3, :, -half:] = 1
    within[4, rim : side - rim, rim : side - rim] = 1
    weights = within.flatten(1) / within.sum((1, 2))[:, None]  # (5, side^2)
    return torch.nn.functional.pad(weights, (patches - side**2, 0))


def last_layers(encoder: PreTrainedModel, view: PreTrainedModel | None, count: int) -> list[nn.Parameter]:
    """The parameters of the last ``count`` layers that are in use: those that `--unfreeze-vision-layers` opens.

    Raises:
        ValueError: the encoder's layers are not known, or fewer.
    """
    config: Any = encoder.config
    if view is None:
        raise ValueError(
            f"Single layers of a {config.model_type} encoder cannot be opened; --no-freeze-vision opens all."
        )
    layers = list(view.get_submodule(_TOWERS[config.model_type][0]).children())
    if count > len(layers):
        raise ValueError(f"--unfreeze-vision-layers {count}: the encoder has {len(layers)} layers in use.")
    return [parameter for layer in layers[-count:] for parameter in layer.parameters()]
