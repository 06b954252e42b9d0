"""CLIPScore, RefCLIPScore (Hessel et al., EMNLP 2021) and the SigLIP score: does a caption fit its picture?

They need no references, and judge with another model's eyes: they inherit its blind spots, and a captioner that
was trained on the same encoder flatters itself. Run only where a CLIP or SigLIP model is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from limner.data.images import ImageSource, load_image
from limner.models.hub import load_stock

WEIGHT = 2.5
"""CLIPScore's w, which stretches cosines that are rarely above 0.4."""
PREFIX = "A photo depicts "
"""What the published CLIPScore puts before every caption."""


class Alignment:
    """A two-tower model (CLIP or SigLIP) that embeds pictures and captions into one space."""

    def __init__(self, model: str, revision: str | None = None, device: torch.device | str = "cpu") -> None:
        """Loads the model from a folder or the hub.

        Raises:
            FileNotFoundError, OSError: it is not there. ValueError: it is no two-tower model.
        """
        config = load_stock(AutoConfig, model, "CLIP model", revision=revision)
        if not config.model_type.startswith(("clip", "siglip")):
            raise ValueError(f"{model} is a model of type {config.model_type}; CLIP or SigLIP is needed.")
        self.kind = "SigLIP" if config.model_type.startswith("siglip") else "CLIP"
        self.device = torch.device(device)
        network: Any = load_stock(AutoModel, model, "CLIP model", revision=revision, dtype=torch.float32)
        self.model = network.eval().to(self.device)
        self.processor = load_stock(AutoProcessor, model, "CLIP processor", revision=revision, backend="pil")

    @torch.inference_mode()
    def images(self, sources: Sequence[ImageSource], batch_size: int = 32) -> np.ndarray:
        """Unit vectors of pictures: (N, D) float32."""
        found = []
        for first in range(0, len(sources), batch_size):
            pictures = [load_image(source) for source in sources[first : first + batch_size]]
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
            found.append(_unit(self.model.get_image_features(pixel_values=pixels)))
        return np.concatenate(found)

    @torch.inference_mode()
    def captions(self, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
        """Unit vectors of captions: (N, D) float32."""
        prefix = PREFIX if self.kind == "CLIP" else ""
        padding = "max_length" if self.kind == "SigLIP" else True  # SigLIP was trained on padded texts only
        found = []
        for first in range(0, len(texts), batch_size):
            batch = [prefix + text for text in texts[first : first + batch_size]]
            ids = self.processor(text=batch, return_tensors="pt", padding=padding, truncation=True)
            found.append(_unit(self.model.get_text_features(**{k: v.to(self.device) for k, v in ids.items()})))
        return np.concatenate(found)

    def scores(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """CLIPScore of each pair, w max(cos, 0); for SigLIP the probability that the two belong together. (N,)"""
        cosines = (images * captions).sum(-1)
        if self.kind == "CLIP":
            return WEIGHT * np.maximum(cosines, 0)
        scale, bias = self.model.logit_scale.exp().item(), self.model.logit_bias.item()
        return 1 / (1 + np.exp(-(scale * cosines + bias)))


def clip_scores(
    alignment: Alignment,
    images: Sequence[ImageSource],
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
) -> dict[str, np.ndarray]:
    """``CLIPScore``, and ``RefCLIPScore`` where there are references, or ``SigLIPScore``: name -> (N,)."""
    pictures, said = alignment.images(images), alignment.captions(captions)
    scores = alignment.scores(pictures, said)
    if alignment.kind == "SigLIP":
        return {"SigLIPScore": scores}
    found = {"CLIPScore": scores}
    if references is not None:
        vectors = alignment.captions([text for group in references for text in group])
        ends = np.cumsum([len(group) for group in references])[:-1]
        found["RefCLIPScore"] = ref_clip_scores(scores, said, np.split(vectors, ends))
    return found


def ref_clip_scores(clip_scores: np.ndarray, captions: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """RefCLIPScore: harmonic mean of CLIPScore (N,) and the best cosine of a caption with its references (R, D)."""
    best = np.array([max(float((group @ one).max()), 0.0) for one, group in zip(captions, references, strict=True)])
    total = clip_scores + best
    return np.divide(2 * clip_scores * best, total, out=np.zeros_like(total), where=total > 0)


def _unit(features: Any) -> np.ndarray:
    vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
