"""From JPEG to pixels on one core, with and without draft scaling; and the feature cache on real photos.

    python benchmarks/preprocessing.py DATA [--photos 60]

DATA holds flickr8k/natural256_dev.tar, flickr8k/images192_*.tar and models/mobilenet-v2-0.35-224 (the real data of
the tests). Photos are enlarged to common camera sizes and stored at quality 90 first, so that decoding has its real
cost. CPU time of this one process is counted, so that a busy machine matters little; the best of three passes.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

from limner.data.feature_cache import FeatureCache
from limner.data.folder import ImageCaptionDataset
from limner.data.images import PixelSettings, load_image
from limner.data.shards import index_shard

SIZES = ((500, 375), (640, 480), (1024, 768), (4000, 3000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    decoding(arguments.data, arguments.photos)
    caching(arguments.data)


def decoding(data: Path, count: int) -> None:
    settings = PixelSettings((224, 224))
    photos = [load_image(member) for member in index_shard(data / "flickr8k" / "natural256_dev.tar")[:count]]
    print("JPEG -> (3, 224, 224) float32, one core, pictures/s; and mean difference in grey levels of 255")
    print(f"{'size':>12} {'plain':>8} {'draft':>8} {'x':>6} {'difference':>11}")
    for width, height in SIZES:
        few = photos if width < 2000 else photos[:12]
        files = [jpeg(photo.resize((width, height), Image.Resampling.LANCZOS)) for photo in few]
        plain = best(lambda files=files: [settings.pixels(load_image(file)) for file in files])
        drafted = best(lambda files=files: [settings.pixels(load_image(f, settings.draft_size)) for f in files])
        differences = [
            np.abs(
                settings.array(load_image(file)).astype(float)
                - settings.array(load_image(file, settings.draft_size)).astype(float)
            ).mean()
            for file in files
        ]
        rate, fast = len(files) / plain, len(files) / drafted
        print(f"{width:>7}x{height:<4} {rate:8.0f} {fast:8.0f} {fast / rate:6.2f} {np.mean(differences):11.2f}")
    arrays = torch.from_numpy(np.stack([settings.array(photo) for photo in photos[:32]]))
    seconds = best(lambda: settings.normalize(arrays))
    print(f"normalize alone: {32 / seconds:.0f} pictures/s")


def caching(data: Path) -> None:
    folder = data / "models" / "mobilenet-v2-0.35-224"
    trunk = AutoModel.from_pretrained(folder).eval()
    settings = PixelSettings.from_processor_config(json.loads((folder / "preprocessor_config.json").read_text()))
    records = ImageCaptionDataset(data / "flickr8k").splits().validation

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return trunk(pixels).last_hidden_state.flatten(2).transpose(1, 2)  # (B, 49, 1280)

    print(f"\nfeature cache: MobileNetV2 0.35 on {len(records):,} real photos of 192 x 192, one thread")
    for dtype in ("fp32", "fp16", "int8"):
        with tempfile.TemporaryDirectory() as root:
            cache = FeatureCache(Path(root), {"encoder": "mobilenet"}, settings, encode, dtype)
            start = time.process_time()
            plan = cache.plan(records)
            planned = time.process_time() - start
            start = time.process_time()
            rows, _ = cache.fill(records, plan, workers=0)
            filled = time.process_time() - start
            order = np.random.default_rng(0).permutation(len(rows))
            read = best(
                lambda cache=cache, rows=rows, order=order: [cache.read(rows[k]) for k in order.reshape(-1, 8)]
            )
            print(
                f"{dtype}: plan {len(rows) / planned:,.0f}/s, fill {len(rows) / filled:,.0f}/s, read "
                f"{len(rows) / read:,.0f}/s, {cache.row_bytes:,} bytes a picture, relative error "
                f"{cache.relative_error:.1e}"
            )


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def best(function: Callable[[], object], passes: int = 3) -> float:
    times = []
    for _ in range(passes):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
