"""A picture is encoded once, whatever is killed, renamed or added; what is read back is what was computed."""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.feature_cache import FeatureCache, weights_digest
from limner.data.folder import ImageCaptionDataset
from limner.data.images import PixelSettings, load_image
from limner.data.records import Record

SETTINGS = PixelSettings((32, 48))
WEIGHT = torch.randn(3 * 64, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 128)


class Encoder:
    """Patches of 8 x 8 -> (B, 24, 128), channels of very different size; counts the pictures it has seen."""

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.pictures += len(pixels)
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (B, 3, 24, 8, 8)
        return patches.permute(0, 2, 1, 3, 4).flatten(2) @ WEIGHT


@pytest.fixture(scope="module")
def records(real_data: Path) -> list[Record]:
    return ImageCaptionDataset(real_data / "coco_mini").records[:20]


def live(records: list[Record]) -> torch.Tensor:
    return torch.cat([Encoder()(SETTINGS.pixels(load_image(r.image))[None]) for r in records])


def filled(root: Path, records: list[Record], encoder: Encoder, **options) -> tuple[FeatureCache, np.ndarray]:
    cache = FeatureCache(root, {"encoder": "patches", "layer": -2}, SETTINGS, encoder, **options)
    rows, remarks = cache.fill(records, cache.plan(records), batch_size=6, workers=0)
    assert remarks == []
    return cache, rows


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 0.0), ("fp16", 3e-4), ("int8", 1e-2)])
def test_what_is_read_is_what_was_computed(tmp_path: Path, records: list[Record], dtype: str, limit: float) -> None:
    cache, rows = filled(tmp_path, records, Encoder(), dtype=dtype)
    expected = live(records)
    found = cache.read(rows).float()
    error = float((found - expected).norm() / expected.norm())
    assert error <= limit
    assert cache.relative_error == pytest.approx(error, rel=0.05, abs=1e-7)
    some = [7, 3, 3]
    assert torch.equal(cache.read(rows[some]).float(), found[some])
    on_disk = sum(f.stat().st_size for f in cache.folder.iterdir() if f.name in ("features.bin", "scales.bin"))
    assert on_disk == 20 * cache.row_bytes == 20 * 24 * {"fp32": 512, "fp16": 256, "int8": 128 + 8}[dtype]
    again = pickle.loads(pickle.dumps(cache))  # as a worker process gets it
    assert torch.equal(again.read(rows), cache.read(rows))
    assert (
        cache.relative_error
        == FeatureCache(tmp_path, {"encoder": "patches", "layer": -2}, SETTINGS, Encoder(), dtype).relative_error
    )


def test_nothing_is_encoded_twice(tmp_path: Path, records: list[Record]) -> None:
    encoder = Encoder()
    cache, rows = filled(tmp_path, records[:12], encoder)
    assert encoder.pictures == 12 + 1  # and a black one, for the shape
    encoder = Encoder()
    renamed = [Record(r.image, r.captions, f"other/{r.image_id}") for r in records[:5]]
    plan = cache.plan(records[:12] + renamed)
    assert (plan.new, plan.need_bytes, len(plan.digests)) == ([], 0, 17)
    again, all_rows = filled(tmp_path, records + renamed, encoder)
    assert encoder.pictures == 8
    assert all_rows[:12].tolist() == rows.tolist()
    assert all_rows[20:].tolist() == rows[:5].tolist()
    assert torch.equal(again.read(all_rows[:20]), live(records).half())
    again.remove()
    assert not cache.folder.exists()


def test_a_changed_key_is_another_cache(tmp_path: Path) -> None:
    def folder(key=None, settings=SETTINGS, **options) -> str:
        return FeatureCache(tmp_path, key or {"encoder": "a"}, settings, Encoder(), **options).folder.name

    names = [
        folder(),
        folder({"encoder": "b"}),
        folder({"encoder": "a", "layer": -1}),
        folder(settings=replace(SETTINGS, resample=2)),
        folder(settings=replace(SETTINGS, mean=(0.5, 0.5, 0.49))),
        folder(dtype="int8"),
        folder(draft=True),
    ]
    assert len(set(names)) == len(names)
    assert folder() == names[0]
    module = torch.nn.Linear(3, 2)
    before = weights_digest(module)
    assert before == weights_digest(module)
    with torch.no_grad():
        module.bias[0] += 1e-7 if module.bias[0].abs() < 0.5 else 1e-3
    assert weights_digest(module) != before


@pytest.mark.parametrize("tear", ["nothing", "half a row", "a row without its digest", "a digest without its row"])
def test_a_kill_loses_no_counted_row_and_leaves_no_torn_one(
    tmp_path: Path, records: list[Record], tear: str, real_data: Path
) -> None:
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from test_feature_cache import *
        from limner.data import feature_cache
        feature_cache._FLUSH_SECONDS = 0
        class Killed(Encoder):
            def __call__(self, pixels):
                if self.pictures > 12:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(pixels)
        records = ImageCaptionDataset({str(real_data / "coco_mini")!r}).records
        filled(Path({str(tmp_path)!r}), records[:20], Killed())
    """)
    if tear == "nothing":
        died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr
    else:
        filled(tmp_path, records[:12], Encoder())
    (folder,) = tmp_path.iterdir()
    counted = (folder / "index.bin").stat().st_size // 32
    assert counted == 12
    if tear == "half a row":
        with (folder / "features.bin").open("ab") as file:
            file.write(bytes(1000))
    elif tear == "a row without its digest":
        with (folder / "features.bin").open("ab") as file:
            file.write(bytes(24 * 256 + 5))
    elif tear == "a digest without its row":
        with (folder / "index.bin").open("ab") as file:
            file.write(bytes(32 + 7))
    encoder = Encoder()
    cache, rows = filled(tmp_path, records, encoder)
    assert encoder.pictures == 8
    assert torch.equal(cache.read(rows), live(records).half())
    assert (folder / "index.bin").stat().st_size == 20 * 32


def test_two_at_once_fill_one_cache(tmp_path: Path, records: list[Record]) -> None:
    encoders = [Encoder(), Encoder()]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda encoder: filled(tmp_path, records, encoder), encoders))
    (folder,) = tmp_path.iterdir()
    assert (folder / "index.bin").stat().st_size == 20 * 32
    for cache, rows in results:
        assert torch.equal(cache.read(rows), live(records).half())
    assert sum(encoder.pictures for encoder in encoders) <= 20 + 2


def test_worker_processes_change_nothing(tmp_path: Path, records: list[Record]) -> None:
    cache = FeatureCache(tmp_path, {}, SETTINGS, Encoder())
    rows, _ = cache.fill(records, cache.plan(records), batch_size=3, workers=2)
    assert torch.equal(cache.read(rows), live(records).half())


def test_a_full_disk_is_foreseen(tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path / "not" / "made yet", {}, SETTINGS, Encoder())
    plan = cache.plan(records)
    assert plan.fits
    assert plan.need_bytes == 20 * 24 * 128 * 2
    assert str(plan).startswith(
        "feature cache: 20 pictures to encode, 0 there already or twice; 122.9 kB (6.1 kB a"
    )
    free = 2**30 + plan.need_bytes - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    plan = cache.plan(records)
    assert not plan.fits
    with pytest.raises(ValueError, match=r"but only 1\.1 GB are free there .* --cache-features off"):
        cache.fill(records, plan)
    assert not cache.folder.exists()


def test_pictures_that_cannot_be_read(tmp_path: Path, records: list[Record], real_data: Path) -> None:
    nasty = [real_data / "nasty" / name for name in ("jpeg_half.jpg", "zero_bytes.jpg")] + [tmp_path / "gone.jpg"]
    bad = [Record(path, ["x"], path.name) for path in nasty]
    mixed = [records[0], bad[0], bad[1], records[1], bad[2], replace(bad[0], image_id="again.jpg")]
    cache = FeatureCache(tmp_path / "cache", {}, SETTINGS, Encoder())
    with pytest.raises(ValueError, match=r"4 of 6 pictures cannot be read: .*--skip-bad-images"):
        cache.fill(mixed, cache.plan(mixed), workers=0)
    rows, remarks = cache.fill(mixed, cache.plan(mixed), workers=0, skip_bad_images=True)
    assert (rows >= 0).tolist() == [True, False, False, True, False, False]
    assert torch.equal(cache.read(rows[[0, 3]]), live(records[:2]).half())
    assert len(remarks) == 1
    assert "4 of 6 pictures cannot be read" in remarks[0]
    with pytest.raises(ValueError, match="None is left"):
        cache.fill(bad, cache.plan(bad), workers=0, skip_bad_images=True)


def test_features_beyond_fp16_are_refused(tmp_path: Path) -> None:
    white = [Record(Image.new("RGB", (8, 8), "white"), ["x"], "white")]
    cache = FeatureCache(tmp_path, {}, SETTINGS, lambda pixels: pixels.mean((2, 3))[:, None] * 1e5)
    with pytest.raises(ValueError, match=r"features reach 1e\+05, which fp16 cannot hold"):
        cache.fill(white, cache.plan(white), workers=0)
    assert cache.plan(white).new == [0]
