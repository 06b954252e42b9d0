"""``limner train --plan``: what a run would need and take, from five small steps here; trains nothing."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from limner import device as hardware
from limner.config.train import TrainConfig
from limner.data.loading import check_images
from limner.training.caption_inputs import Look, PixelInputs, feature_cache, other_looks
from limner.training.caption_task import CaptionTask
from limner.training.meter import peak_memory_mb
from limner.training.optimizer import build_optimizer
from limner.training.order import Order

STEPS = 5


def plan(task: CaptionTask, config: TrainConfig) -> dict[str, Any]:
    """Parameters, captions, steps, cache size, memory and time to go. Times are this machine's, now."""
    choice = hardware.choose(config.device, config.precision, config.threads)
    hardware.keep_freed_memory()
    task.load(choice.device, choice.dtype, lambda *_: None)
    vlm, loop = task.vlm, config.loop()
    num_pictures = {split: len(records) for split, records in task.records.items()}
    num_captions = sum(len(record.captions) for record in task.records["train"])
    order = Order(num_pictures["train"], loop.batch_size, loop.accumulation, 1, config.seed)
    steps = loop.total_steps(order.steps_per_epoch)

    cached = vlm.encoder_is_frozen and not config.augment and config.cache_features != "off"
    looks: dict[Look, int] = {"plain": sum(num_pictures.values())}
    looks |= dict.fromkeys(other_looks(config), num_pictures["train"])
    cache_bytes = 0
    if cached:
        cache_bytes = sum(feature_cache(vlm, task.pixels, config, look).row_bytes * n for look, n in looks.items())
    encode, step = _measure(task, loop.batch_size, cached)
    encoding = encode * sum(looks.values()) if cached else 0.0
    training = step * loop.accumulation * steps
    counts = vlm.parameter_counts()
    return {
        "device": str(choice),
        "parameters": counts,
        "trainable_share": round(counts["trainable"] / counts["total"], 4),
        "pictures": num_pictures,
        "captions": num_captions,
        "prefix_tokens": vlm.num_prefix_tokens,
        "steps": steps,
        "steps_per_epoch": order.steps_per_epoch,
        "feature_cache_mb": round(cache_bytes / 2**20, 1),
        "peak_memory_mb": round(peak_memory_mb()),
        "captions_per_second": round(num_captions / num_pictures["train"] * loop.batch_size / step, 2),
        "seconds": {"encoding": round(encoding), "training": round(training)},
        "minutes_to_go": round((encoding + training) / 60, 1),
    }


def _measure(task: CaptionTask, batch_size: int, cached: bool) -> tuple[float, float]:
    """Seconds to encode a picture, and of a micro-batch: forward, backward and its optimizer step."""
    few = task.records["train"][: STEPS * batch_size]
    few = [few[index] for index in check_images(few, task.config.skip_bad_images)[0]]
    task.records = {"train": few, "validation": few[:1]}
    task.say = lambda text: None  # of these few captions nothing is worth telling
    task.tokenize()
    rows = torch.arange(len(few)).numpy()
    task.inputs = {"train": PixelInputs(few, rows, task.pixels, None)}
    task.model.train()
    optimizer = build_optimizer(task.parameter_groups())
    encodings, steps = [], []
    for start in range(0, len(few), batch_size):
        indices = range(start, min(start + batch_size, len(few)))
        batch = task.batch(indices, seed=0)
        tensors = {name: tensor.to(task.vlm.device) for name, tensor in batch.tensors.items()}
        began = time.perf_counter()
        if cached:
            tensors["picture"] = task.captioner.features(tensors["picture"])
        encoded = time.perf_counter()
        (task.loss(task.model, tensors) / batch.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        encodings.append((encoded - began) / len(indices))
        steps.append(time.perf_counter() - encoded)
    return statistics.median(encodings), statistics.median(steps)
