"""What the trainer costs besides forward, backward and optimizer: batches, events, heartbeat, commands.

    python benchmarks/overhead.py [--steps 2000]

A tiny model is trained by a bare loop and by the Trainer, in turns, in one process; the difference per step is told
as a share of a 50 ms step (goal: under 1 %). CPU time is counted, of all threads, so that a busy machine does not
matter; a run's start and end cancel out between a long and a short run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))
from toy import ToyConfig, ToyTask

from limner.training.optimizer import build_optimizer, gradient_norm
from limner.training.trainer import train

STEP_MS = 50.0


def bare(steps: int) -> float:
    """CPU seconds of the same mathematics without a trainer."""
    config = ToyConfig(steps=steps, accumulation=1, dropout=0.0)
    task = ToyTask(config)
    task.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    optimizer = build_optimizer(task.parameter_groups())
    parameters = list(task.model.parameters())
    began = time.process_time()
    for step in range(steps):
        start = 4 * (step % 12)
        batch = task.batch(range(start, start + 4), seed=step)
        loss = task.loss(task.model, batch.tensors) / batch.num_targets
        loss.backward()
        float(gradient_norm(parameters))
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - began


def limner(steps: int) -> float:
    """CPU seconds of a run under the Trainer, all its threads together."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"steps": steps, "accumulation": 1, "dropout": 0.0, "eval_every": 0, "checkpoint_every": 0}
        config = ToyConfig(runs_dir=folder, name="overhead", patience=0, **settings)
        began = time.process_time()
        train(ToyTask(config), config, "toy", "toy", quiet=True)
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    short = steps // 10
    pairs = [
        ((bare(steps) - bare(short)) / (steps - short), (limner(steps) - limner(short)) / (steps - short))
        for _ in range(5)
    ]
    overhead = statistics.median((ours - plain) * 1e3 for plain, ours in pairs)
    plain, ours = (statistics.median(values) * 1e3 for values in zip(*pairs, strict=True))
    print(f"bare loop {plain:.3f} ms a step, Trainer {ours:.3f} ms a step (medians of {len(pairs)} turns)")
    print(f"overhead {overhead:.3f} ms = {overhead / STEP_MS:.2%} of a {STEP_MS:.0f} ms step (goal: under 1 %)")


if __name__ == "__main__":
    main()
