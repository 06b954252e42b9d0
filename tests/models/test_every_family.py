"""Every encoder family with a decoder and every decoder family with an encoder: learns, is saved, goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_captioners import CONVOLUTIONAL, LLAVA_CARRIES, LLAVA_REFUSES, TRANSFORMERS, VISION, toy_captioner

from limner.models import stock
from limner.models.captioner import PrefixConditioningVLM
from limner.models.lora import Lora, add_lora

# Two pictures, and what is to be said of each, ended by EOS (1).
CAPTIONS = torch.tensor([[3, 4, 7, 1], [6, 9, 10, 1]])
PAIRS = [
    *((vision, "llama") for vision in (*TRANSFORMERS, "levit", *CONVOLUTIONAL)),
    *(("siglip", text) for text in (*LLAVA_CARRIES[1:], *LLAVA_REFUSES)),
]


def _loss(vlm: PrefixConditioningVLM, features: torch.Tensor) -> torch.Tensor:
    logits = vlm(CAPTIONS[:, :-1], features=features)  # (2, 4, V)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), CAPTIONS.flatten())


def _learn(vlm: PrefixConditioningVLM, features: torch.Tensor, steps: int) -> tuple[float, float]:
    """The loss before and after, without dropout."""
    before = float(_loss(vlm.eval(), features).detach())
    trained = [p for p in vlm.train().parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(vlm, features).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return before, float(_loss(vlm.eval(), features).detach())


@torch.no_grad()
def _said(vlm: PrefixConditioningVLM, features: torch.Tensor) -> list[list[int]]:
    said = torch.empty(2, 0, dtype=torch.long)
    for _ in range(4):
        said = torch.cat([said, vlm.eval()(said, features=features)[:, -1:].argmax(-1)], 1)
    return said.tolist()


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_learns_two_captions_and_goes_on_from_the_saved_model(vision: str, text: str, tmp_path: Path) -> None:
    vlm = toy_captioner(vision, text, "mlp", lora=True, freeze_vision=True)
    size = vlm.image_size
    pixels = torch.stack(
        [torch.full((3, *size), -0.8), torch.linspace(-1, 1, 3 * size[0] * size[1]).view(3, *size)]
    )
    before, after = _learn(vlm, vlm.features(pixels), 25)
    assert after < 0.9 * before
    said = _said(vlm, vlm.features(pixels))
    stock.save_captioner(vlm, tmp_path / "m")
    again = stock.read_captioner(tmp_path / "m")
    assert _said(again, again.features(pixels)) == said
    # --base-model: new adapters begin at zero, so the loss goes on from where it stood
    again.decoder, _ = add_lora(again.language_model, Lora(r=4))
    again.projection.requires_grad_(True)
    start, end = _learn(again, again.features(pixels), 8)
    assert start == pytest.approx(after, abs=1e-4)
    assert end < start


def test_the_pairs_cover_every_family() -> None:
    assert {vision for vision, _ in PAIRS} == set(VISION)
