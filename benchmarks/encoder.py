"""How fast a vision encoder gives its features: transformers' plain forward against Limner's, interleaved.

    python benchmarks/encoder.py [--threads N] [--rounds N] [--batch-sizes 1 16] [--without NAME ...]

SigLIP-base at 224 pixels with random weights; ``hidden_states[-2]`` is what every variant gives. Times are medians
of interleaved rounds, in wall and in processor milliseconds a picture (the second is what a busy machine tells
truly). The figures that were measured are in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModel, SiglipVisionConfig

from limner.device import keep_freed_memory
from limner.models.encoder import tower_up_to
from limner.models.packed import can_pack, in_pieces, packed

Variant = Callable[[torch.Tensor], torch.Tensor]


def variants() -> dict[str, Variant]:
    """Each gives (B, P, Dv) from (B, 3, H, W)."""
    torch.manual_seed(0)
    exact = AutoModel.from_config(SiglipVisionConfig()).eval()
    half = copy.deepcopy(exact).to(torch.bfloat16)
    made: dict[str, Variant] = {"plain fp32": lambda x: exact(x, output_hidden_states=True).hidden_states[-2]}
    for name, model in (("fp32", exact), ("bf16", half)):
        tower = tower_up_to(model, -2)
        assert tower is not None
        made[f"limner {name}, unpacked"] = _last_state(tower, model.dtype)
        if can_pack(tower):
            made[f"limner {name}"] = _in_pieces(packed(tower), model.dtype)
    made["plain bf16"] = lambda x: half(x.bfloat16(), output_hidden_states=True).hidden_states[-2]
    return made


def _last_state(tower: torch.nn.Module, dtype: torch.dtype) -> Variant:
    return lambda x: tower(x.to(dtype)).last_hidden_state


def _in_pieces(tower: torch.nn.Module, dtype: torch.dtype) -> Variant:
    """As the captioner does it."""
    return lambda x: in_pieces(lambda part: tower(part).last_hidden_state, x.to(dtype))


@torch.inference_mode()
def measure(made: dict[str, Variant], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and processor milliseconds a picture, speed-up over plain fp32, and the error against it."""
    pixels = torch.randn(batch, 3, 224, 224)
    truth = made["plain fp32"](pixels)
    error = {name: float((run(pixels).float() - truth).norm() / truth.norm()) for name, run in made.items()}
    wall: dict[str, list[float]] = {name: [] for name in made}
    work: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, run in made.items():
            began, worked = time.perf_counter(), time.process_time()
            run(pixels)
            wall[name].append(1000 * (time.perf_counter() - began) / batch)
            work[name].append(1000 * (time.process_time() - worked) / batch)
    table = {}
    for name in made:
        wall_ms, work_ms = statistics.median(wall[name]), statistics.median(work[name])
        table[name] = {
            "wall_ms": round(wall_ms, 1),
            "processor_ms": round(work_ms, 1),
            "speed_up": round(statistics.median(wall["plain fp32"]) / wall_ms, 2),
            "speed_up_processor": round(statistics.median(work["plain fp32"]) / work_ms, 2),
            "error": float(f"{error[name]:.1e}"),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--without", nargs="+", default=[], help='variants to leave out ("plain bf16": slow on plain CPUs)'
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads; freed memory kept: {keep_freed_memory()}")
    made = {name: run for name, run in variants().items() if name not in arguments.without}
    for batch in arguments.batch_sizes:
        for name, row in measure(made, batch, arguments.rounds).items():
            print(json.dumps({"batch": batch, "variant": name} | row))


if __name__ == "__main__":
    main()
