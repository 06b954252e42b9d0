"""Decoding in worker processes gives the pixels of decoding here; damaged pictures are named and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limner.data.folder import ImageCaptionDataset
from limner.data.images import PixelSettings, load_image
from limner.data.loading import check_images, load_pictures, num_workers
from limner.data.records import Record

SETTINGS = PixelSettings((40, 24))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_come_in_order(real_data: Path, workers: int) -> None:
    records = ImageCaptionDataset(real_data / "coco_mini").records[:11]
    records[4] = Record(real_data / "nasty" / "truncated_jpeg.jpg", ["x"], "bad")
    batches = list(load_pictures(records, SETTINGS, [10, 4, *range(4)], batch_size=4, workers=workers))
    assert [batch.indices for batch in batches] == [[10, 0, 1], [2, 3]]
    assert list(batches[0].failures) == [4]
    assert "truncated" in batches[0].failures[4]
    for batch in batches:
        expected = [torch.from_numpy(SETTINGS.array(load_image(records[k].image))) for k in batch.indices]
        assert torch.equal(batch.pixels, torch.stack(expected))


def test_the_check_names_and_counts(real_data: Path, tmp_path: Path) -> None:
    records = ImageCaptionDataset(real_data / "coco_mini").records[:3]
    assert check_images(records) == ([0, 1, 2], [])
    names = ["jpeg_half.jpg", "svg_named.jpg", "bomb_1bit_60000x60000.png", "zero_bytes.jpg"]
    records[1:1] = [Record(real_data / "nasty" / name, ["x"], name) for name in names]
    with pytest.raises(ValueError) as caught:
        check_images(records, workers=0)
    told = str(caught.value)
    assert told.startswith("4 of 7 pictures cannot be read: ")
    assert all(name in told for name in names[:3])
    assert "and 1 more. Mend or remove them, or pass --skip-bad-images." in told
    seen: list[tuple[int, int]] = []
    good, remarks = check_images(records, True, 0, lambda phase, done, total, unit: seen.append((done, total)))
    assert good == [0, 5, 6]
    assert remarks[0].endswith("They are left out.")
    assert seen == [(7, 7)]


def test_drafted_pictures_are_close(real_data: Path) -> None:
    records = ImageCaptionDataset(real_data / "coco_mini").records
    (full,) = load_pictures(records, SETTINGS, batch_size=80, workers=0)
    (fast,) = load_pictures(records, SETTINGS, batch_size=80, workers=0, draft=True)
    difference = (full.pixels.float() - fast.pixels.float()).abs()
    assert 0 < difference.mean() < 4  # grey levels of 255


def test_no_workers_for_a_handful() -> None:
    assert num_workers(10) == 0
    assert 1 <= num_workers(10_000) <= 8
