"""``--augment`` varies training pictures with the seed of their place in the run, and no others."""

from __future__ import annotations

from pathlib import Path

import torch

from limner.data.folder import ImageCaptionDataset
from limner.data.images import PixelSettings
from limner.training.caption_inputs import pixel_inputs


def test_only_training_pictures_vary_and_only_with_the_seed(real_data: Path) -> None:
    records = ImageCaptionDataset(real_data / "coco_mini").records
    splits = {"train": records[:4], "validation": records[4:6]}
    settings = PixelSettings((32, 32))
    inputs, _ = pixel_inputs(splits, settings, lambda *_: None, varied="augmented")
    plain, _ = pixel_inputs(splits, settings, lambda *_: None)
    first = inputs["train"].read([0, 2], seed=1)
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(first, inputs["train"].read([0, 2], seed=1))
    assert torch.equal(first[1:], inputs["train"].read([2], seed=1))
    assert not torch.equal(first, inputs["train"].read([0, 2], seed=2))
    assert torch.equal(inputs["validation"].read([0, 1], seed=1), plain["validation"].read([0, 1], seed=2))
    assert inputs["train"].describe().endswith("decoded in every epoch, augmented")
