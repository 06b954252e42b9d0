"""Reads the configuration of a stock image processor into `PixelSettings`."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from limner.data.images import PixelSettings

# Its stock class needs torchvision; the same steps on Pillow are within one grey level of it.
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_AS_VIT = {"DINOv3ViTImageProcessor": _IMAGENET}


def settings_of_processor(config: dict[str, Any]) -> PixelSettings:
    """What a preprocessor_config.json says, held against its stock class on two pictures of noise.

    Raises:
        ValueError: the processor is unknown or does more than resize, crop, scale and normalise.
    """
    config = config.get("image_processor", config)
    name = _name(config)
    try:
        processor = _stock_processor(config, name)
        settings = PixelSettings(**_fields(processor, name))
        height, width = settings.size
        same = all(_same_pixels(settings, processor, *size) for size in ((37, 53), (2 * height + 11, width + 7)))
    except (AttributeError, TypeError, KeyError, IndexError, ImportError) as error:
        raise ValueError(_ODD.format(name, f"({type(error).__name__}: {error})")) from error
    if not same:
        raise ValueError(_ODD.format(name, "(of noise it makes other pixels)"))
    return settings


def _same_pixels(settings: PixelSettings, processor: Any, height: int, width: int) -> bool:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    theirs = np.asarray(processor(images=noise, return_tensors="np")["pixel_values"])
    ours = settings.pixels(noise).numpy()  # (3, H, W)
    return theirs.size == ours.size and np.allclose(theirs.reshape(ours.shape), ours, rtol=1e-5, atol=1e-5)


_ODD = (
    "The image processor {} does more than resize, crop, scale and normalise {}; take an encoder with a plainer "
    "one, or name another as --feature-extractor-model."
)


def _fields(processor: Any, name: str) -> dict[str, Any]:
    """Those of `PixelSettings`."""
    size, crop = processor.size, getattr(processor, "crop_size", None)
    fields: dict[str, Any] = {
        "resample": int(processor.resample if processor.resample is not None else 2),
        "rescale": float(processor.rescale_factor) if processor.do_rescale else 1.0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "bgr": bool(getattr(processor, "do_flip_channel_order", False)),
    }
    if processor.do_normalize:
        fields["mean"] = _three(processor.image_mean)
        fields["std"] = _three(processor.image_std)
    if name == "EfficientNetImageProcessor":
        if processor.rescale_offset:  # scaled to [-1, 1] by subtracting 1 before the mean
            fields["mean"] = tuple(mean + 1.0 for mean in fields["mean"])
        if processor.include_top:  # divided by the deviation a second time
            fields["std"] = tuple(a * b for a, b in zip(fields["std"], _three(processor.image_std), strict=True))
    fields |= _geometry(processor, name, size, crop if getattr(processor, "do_center_crop", False) else None)
    return fields


def _geometry(processor: Any, name: str, size: Any, crop: Any) -> dict[str, Any]:
    """resize, edge and size."""
    cut = (int(crop.height), int(crop.width)) if crop is not None else None
    if not processor.do_resize:
        if cut is None:
            raise ValueError(f"{name} neither resizes nor crops: pictures of one fixed size are needed.")
        return {"resize": "none", "size": cut}
    if name == "ConvNextImageProcessor" and size.shortest_edge:
        edge = int(size.shortest_edge)
        if edge >= 384:
            return {"resize": "stretch", "size": (edge, edge)}
        return {"resize": "shortest_edge", "edge": int(edge / processor.crop_pct), "size": cut or (edge, edge)}
    if size.shortest_edge and not size.longest_edge and cut is not None:
        edge = int(size.shortest_edge)
        if name == "LevitImageProcessor":
            edge = int(256 / 224 * edge)
        elif name == "PoolFormerImageProcessor" and processor.crop_pct:
            edge = int(edge / processor.crop_pct)
        return {"resize": "shortest_edge", "edge": edge, "size": cut}
    if size.height and size.width:
        whole = (int(size.height), int(size.width))
        if cut not in (None, whole):
            raise ValueError(f"{name} resizes to {whole} and then crops to {cut}, which is not supported.")
        pads = name == "LlavaImageProcessor" and processor.do_pad
        return {"resize": "pad" if pads else "stretch", "size": whole}
    raise ValueError(f"{name} makes pictures of varying size ({size}); set a height and a width, or crop.")


def _name(config: dict[str, Any]) -> str:
    """That of the stock class, as every runtime knows it."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    if name is None:
        raise ValueError("The image processor's configuration names no image_processor_type.")
    name = str(name).removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if name.startswith("Siglip2"):
        raise ValueError(
            "This SigLIP-2 encoder takes patches in varying number (NaFlex); take one of the checkpoints with a "
            "fixed size, such as google/siglip2-base-patch16-224."
        )
    return name


def _stock_processor(config: dict[str, Any], name: str) -> Any:
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    fields = {key: value for key, value in config.items() if key not in _NOT_FIELDS}
    stand_in = "ViTImageProcessor" if name in _AS_VIT else name
    processor_class = get_image_processor_class_from_name(stand_in + "Pil")
    if processor_class is None:
        raise ValueError(f"The image processor {name} is not known here.")
    return processor_class(**(_AS_VIT.get(name, {}) | fields))


_NOT_FIELDS = {"image_processor_type", "feature_extractor_type", "processor_class"}


def _three(value: Any) -> tuple[float, float, float]:
    red, green, blue = [value] * 3 if isinstance(value, (int, float)) else value
    return float(red), float(green), float(blue)
