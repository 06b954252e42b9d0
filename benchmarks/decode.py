"""How fast captions come out of a language model: transformers' ``generate`` against Limner, interleaved.

    python benchmarks/decode.py [--threads N] [--seconds N] [--only NAME ...] [--keep-freed]
    python benchmarks/decode.py --quality MODEL [--scenes N]

SmolLM-135M's dimensions with random weights, a prefix of 196 embeddings (the patches of a picture), 30 new tokens
and no early end; the encoder is not in it (`benchmarks/encoder.py` is). Rounds of all variants are interleaved in
one process until each has had its seconds; times are medians. A token's share of the memory's bandwidth is the
bytes that a step must read (weights, and keys and values) over the time of a step, against reading a large tensor.
Memory is of one process for each variant, which decodes one picture with three beams, less what a process has
after its imports: its peak, in which the fp32 model is made, and what it holds in the end. bf16 and int8 release
the fp32 model as they pack it, as `load_captioner` does.

``--quality`` is the other side of the bargain, for a trained model: a language model's tokens (greedy, and each
next token given the true text before it), or the captions of a captioner that `limner demo` trained.
The figures that were measured are in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor

from limner.decoding import Prefix, get_decoder, step_model
from limner.decoding.weights import num_parameters, read_weights
from limner.device import keep_freed_memory
from limner.training.meter import peak_memory_mb

PREFIX, NEW = 196, 30
WORKLOADS = {"1 greedy": (1, 1), "1 x 3 beams": (1, 3), "16 greedy": (16, 1), "16 x 3 beams": (16, 3)}
"""Pictures and beams."""
OPTIONS: dict[str, dict[str, Any]] = {
    "limner fp32": {},
    "limner bf16": {"dtype": torch.bfloat16},
    "limner int8": {"quantize": "int8"},
}
"""What ``limner caption --precision`` and ``--quantize`` hand to `step_model`."""
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}

Decode = Callable[[Tensor, int, int], Tensor]
"""Prefix (B, P, D), number of beams, number of tokens -> tokens (B, N)."""


def smollm() -> Any:
    """SmolLM-135M's dimensions, random weights, and no end of text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def variant(name: str, lm: Any, release: bool = False) -> Decode:
    """The language model (fp32) as this variant runs it; ``release``: nobody else needs it."""
    if name in OPTIONS:
        return partial(_limner, step_model(lm, release=release, **OPTIONS[name]))
    if name == "generate bf16":
        import copy

        lm = copy.deepcopy(lm).to(torch.bfloat16)
    return partial(_generate, lm)


def _limner(steps: Any, prefix: Tensor, num_beams: int, num_tokens: int) -> Tensor:
    settings = {"num_beams": num_beams} if num_beams > 1 else {}
    decoder = get_decoder("beam" if num_beams > 1 else "greedy", max_new_tokens=num_tokens, **settings)
    return decoder.decode(steps, prefix_embeds=prefix)[0]


@torch.inference_mode()
def _generate(lm: Any, prefix: Tensor, num_beams: int, num_tokens: int) -> Tensor:
    return lm.generate(
        inputs_embeds=prefix.to(lm.dtype),
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64),
        max_new_tokens=num_tokens,
        num_beams=num_beams,
        do_sample=False,
    )


NAMES = ("generate fp32", "generate bf16", *OPTIONS)


def measure(
    decodes: dict[str, Decode], num_pictures: int, num_beams: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Of each variant the median seconds of a decode and of its first token, and how its tokens agree."""
    prefix = 0.02 * torch.randn(num_pictures, PREFIX, 576, generator=torch.Generator().manual_seed(1))
    spent = dict.fromkeys(decodes, 0.0)
    whole: dict[str, list[float]] = {name: [] for name in decodes}
    first: dict[str, list[float]] = {name: [] for name in decodes}
    tokens: dict[str, Tensor] = {}
    while min(spent.values()) < seconds:
        for name, decode in decodes.items():
            if spent[name] >= seconds:
                continue
            for times, num_tokens in ((first, 1), (whole, NEW)):
                began = time.perf_counter()
                said = decode(prefix, num_beams, num_tokens)
                times[name].append(time.perf_counter() - began)
                spent[name] += times[name][-1]
            tokens[name] = said
    truth = next(iter(tokens.values()))
    return {
        name: {
            "seconds": _median(whole[name]),
            "first": _median(first[name]),
            "rest": {
                "rounds": len(whole[name]),
                "same_tokens": round(float((tokens[name] == truth).float().mean()), 3),
            },
        }
        for name in decodes
    }


def _median(times: list[float]) -> float:
    """Without the first one, which warms up, where there are others."""
    return statistics.median(times[1:] or times)


def read_bandwidth() -> float:
    """Bytes a second that reading a large tensor gives."""
    numbers = torch.ones(100_000_000)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.nbytes / (time.perf_counter() - began))
    return best


def bytes_per_step(lm: Any, name: str, num_pictures: int, num_beams: int) -> float:
    """Weights in the variant's width; keys and values of the prefix and of half the new tokens, in fp32."""
    config = lm.config
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # numbers a position
    cached *= num_pictures * (PREFIX + num_beams * NEW / 2)
    return num_parameters(read_weights(lm)) * BYTES[name.split()[-1]] + cached * 4


def print_memory(name: str) -> None:
    """Of this process."""
    from transformers import GenerationMixin, LlamaForCausalLM  # noqa: F401  they are not the model's memory

    imported = _held_megabytes()
    decode = variant(name, smollm(), release=bool(OPTIONS.get(name)))
    decode(0.02 * torch.randn(1, PREFIX, 576), 3, NEW)
    gc.collect()
    peak, held = round(peak_memory_mb() - imported), round(_held_megabytes() - imported)
    print(json.dumps({"variant": name, "peak_mb": peak, "held_mb": held}))


def _held_megabytes() -> float:
    return psutil.Process().memory_info().rss / 2**20


def speed(arguments: argparse.Namespace) -> None:
    kept = arguments.keep_freed and keep_freed_memory()
    bandwidth = read_bandwidth()
    print(f"{torch.get_num_threads()} threads; freed memory kept: {kept}; memory read: {bandwidth / 1e9:.1f} GB/s")
    lm = smollm()
    names = [name for name in NAMES if name in arguments.only]
    decodes = {name: variant(name, lm) for name in names}
    for workload in arguments.workloads:
        num_pictures, num_beams = WORKLOADS[workload]
        results = measure(decodes, num_pictures, num_beams, arguments.seconds)
        plain = next(iter(results.values()))["seconds"]
        for name, result in results.items():
            step = (result["seconds"] - result["first"]) / (NEW - 1)
            limit = bytes_per_step(lm, name, num_pictures, num_beams) / bandwidth
            row = {
                "ms": round(1000 * result["seconds"]),
                "speed_up": round(plain / result["seconds"], 2),
                "pictures_per_second": round(num_pictures / result["seconds"], 2),
                "prefill_ms": round(1000 * result["first"]),
                "step_ms": round(1000 * step, 1),
                "limit_ms": round(1000 * limit, 1),
                "of_bandwidth": round(limit / step, 2),
            }
            print(json.dumps({"workload": workload, "variant": name} | row | result["rest"]), flush=True)
    if not arguments.no_memory:
        for name in names:
            subprocess.run([sys.executable, __file__, "--memory-of", name], check=True)


# ---- quality ----------------------------------------------------------------------------------------------------


def quality(model: str, num_scenes: int) -> None:
    """Prints how each variant's words differ from those of fp32."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    rows = captions_quality(model, num_scenes) if hasattr(config, "vision_config") else tokens_quality(model)
    for name, row in rows.items():
        print(json.dumps({"variant": name} | row), flush=True)


def captions_quality(model: str, num_scenes: int) -> dict[str, dict[str, Any]]:
    """Captions of drawn scenes with held-out combinations, which `limner demo`'s model is least sure of."""
    from limner.data.scenes import make_scene
    from limner.decoding.captioner import load_captioner
    from limner.evaluation import cider_d

    scenes = [make_scene(index, "test-held-out") for index in range(num_scenes)]
    references = {scene.image_id: scene.captions() for scene in scenes}
    rows: dict[str, dict[str, Any]] = {}
    exact: list[str] = []
    for name, precision, quantize in (("fp32", "fp32", None), ("bf16", "bf16", None), ("int8", "fp32", "int8")):
        captioner = load_captioner(model, "cpu", precision, quantize)
        said = captioner.caption_batch([scene.picture() for scene in scenes])
        exact = exact or said
        rows[name] = {
            "cider": round(cider_d(dict(zip(references, said, strict=True)), references)[0], 4),
            "exact_match": round(_share(scene.accepts(text) for scene, text in zip(scenes, said, strict=True)), 4),
            "same_captions": round(_share(a == b for a, b in zip(said, exact, strict=True)), 4),
        }
    return rows


def _share(truths: Iterable[bool]) -> float:
    return statistics.fmean(truths)


@torch.inference_mode()
def tokens_quality(model: str, num_texts: int = 64, length: int = 128) -> dict[str, dict[str, Any]]:
    """Each next token of texts that the fp32 model wrote (sampled), and greedy texts that go their own way."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    begin = torch.full((num_texts, 1), lm.config.bos_token_id)
    writer = get_decoder("sample", max_new_tokens=length, eos_token_id=())
    texts, _ = writer.decode(step_model(lm), input_ids=begin, row_ids=range(num_texts))  # (B, N)
    prompts = texts[:, :8]
    rows: dict[str, dict[str, Any]] = {}
    exact: tuple[Tensor, Tensor] | None = None
    for name, options in OPTIONS.items():
        steps = step_model(lm, **options)
        logits, state = steps.prefill(Prefix(ids=begin), length)
        logprobs, best = [], []
        for column in texts.T:
            logprobs.append(logits.float().log_softmax(1).gather(1, column[:, None])[:, 0])
            best.append(logits.argmax(1))
            logits = steps.step(column, state)
        greedy, _ = get_decoder("greedy", max_new_tokens=32, eos_token_id=()).decode(steps, input_ids=prompts)
        likeliest = torch.stack(best, 1)
        exact = exact or (likeliest, greedy)
        rows[name] = {
            "loss": round(-float(torch.stack(logprobs).mean()), 4),
            "same_next_token": round(float((likeliest == exact[0]).float().mean()), 4),
            "same_32_greedy_tokens": round(float((greedy == exact[1]).all(1).float().mean()), 4),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=8, help="of each variant in each workload, at least a round"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="the first one is the measure")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--keep-freed", action="store_true", help="glibc keeps freed memory, for all variants")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--quality", metavar="MODEL", help="a language model's or a demo captioner's folder")
    parser.add_argument("--scenes", type=int, default=500, help="drawn for --quality")
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments.memory_of)
    elif arguments.quality:
        quality(arguments.quality, arguments.scenes)
    else:
        speed(arguments)


if __name__ == "__main__":
    main()
