"""Speed and memory of fine-tuning SigLIP-base + SmolLM-135M: the straightforward recipe, Limner, and each trick.

    python benchmarks/finetune.py [--rounds 3] [--sides plain limner ...] [--device cuda]
    python benchmarks/finetune.py --ship        a process a side, as they ship, with peak memory
    python benchmarks/finetune.py --list        what the sides are

Random weights of real size, LoRA r = 16 with dropout 0.1 on q, k, v, o, a linear projection, five captions a
picture of 6 to 29 tokens (13 on average, about COCO's). The plain recipe is stock transformers and peft: a row a
caption, padded to 30, the encoder in every step, all logits, gradient checkpointing. Its tricks are added one by
one and alone; Limner's sides are its real trainer over its real task. All sides live in one process, share its
allocator (which keeps freed memory) and take a step in turn; medians over the rounds are told. With --ship each
side is a process of its own, again stepping in turn, and only Limner's keeps freed memory, unless --keep-freed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PICTURES, CAPTIONS, LONGEST, VOCABULARY = 48, 5, 30, 49_152
Step = Callable[[], int]
"""Takes an optimizer step; gives the captions it has learned from."""


@dataclass(frozen=True)
class Plain:
    """The straightforward recipe, and which of its parts are done better."""

    cached: bool = False
    labels_only: bool = False
    checkpointing: bool = True
    packed: bool = False
    autocast: bool = False
    rows: int = 4
    """A step's rows: captions, or pictures where they are packed."""


@dataclass(frozen=True)
class Limner:
    """Limner's trainer, and which settings it is given."""

    pictures: int = 8
    precision: str = "auto"
    cache_features: str = "on"
    compile: bool | None = True
    decoder: str = "ours"
    """"ours", "stock" (as transformers and peft run it), "dense" (ours without FlexAttention)."""


SIDES: dict[str, tuple[str, Plain | Limner]] = {
    "plain": ("plain recipe, fp32", Plain()),
    "bf16": ("plain recipe, bf16 autocast", Plain(autocast=True)),
    "+cached": ("plain, only: features cached", Plain(cached=True)),
    "+labels": ("plain, only: head on labels", Plain(labels_only=True)),
    "+kept": ("plain, only: no checkpointing", Plain(checkpointing=False)),
    "+packed": ("plain, only: five captions packed", Plain(packed=True)),
    "2": ("fp32, cached, head on labels", Plain(cached=True, labels_only=True)),
    "3": ("  + no checkpointing", Plain(cached=True, labels_only=True, checkpointing=False)),
    "4": ("  + packed", Plain(cached=True, labels_only=True, checkpointing=False, packed=True)),
    "5": ("  + bf16 autocast", Plain(True, True, False, True, True)),
    "stock": ("Limner, 4 pictures, decoder as transformers runs it", Limner(4, compile=False, decoder="stock")),
    "eager": ("Limner, 4 pictures, not compiled", Limner(4, compile=False)),
    "four": ("Limner, 4 pictures", Limner(4)),
    "limner": ("Limner, 8 pictures", Limner()),
    "live": ("Limner, encoder live", Limner(cache_features="off")),
    "fp32": ("Limner, all in fp32", Limner(precision="fp32")),
    "dense": ("Limner, dense mask (GPU: without FlexAttention)", Limner(decoder="dense")),
}
CHOSEN = {
    "cpu": ["plain", "bf16", "+cached", "+labels", "+kept", "+packed", "2", "3", "4", "5", "stock", "eager", "four",
            "limner", "live", "fp32"],
    "cuda": ["plain", "bf16", "2", "3", "4", "5", "stock", "eager", "dense", "limner", "live"],
}  # fmt: skip


# ---- what all sides share -----------------------------------------------------------------------------------


def captions_of(picture: int) -> list[str]:
    """Words of a vocabulary of one word a token; the end that Limner and the recipe add makes one more."""
    rng = np.random.default_rng(picture)
    lengths = np.clip(rng.normal(12, 3, CAPTIONS).round().astype(int), 5, LONGEST - 2)
    return [" ".join(f"w{word}" for word in rng.integers(3, VOCABULARY, length)) for length in lengths]


def records() -> Any:
    from limner.data.records import Record, Splits

    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, 224, 224, 3), dtype=np.uint8)
    made = [Record(pixels, captions_of(k), f"picture-{k}") for k, pixels in enumerate(pictures)]
    return Splits(made[:-1], made[-1:])


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0} | {f"w{k}": k for k in range(1, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)


def captioner(*_: Any, layers: int = 30) -> Any:
    """The pair of the `balanced` preset, with random weights; with fewer layers each for a quick look."""
    from transformers import LlamaConfig, SiglipVisionConfig

    from limner.models.captioner import build_captioner
    from limner.models.lora import Lora

    smollm = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
    )  # fmt: skip
    siglip = SiglipVisionConfig(num_hidden_layers=min(12, layers))
    vlm = build_captioner(
        siglip, smollm, lora=Lora(), tokenizer=tokenizer(), freeze_vision=True, say=lambda _: None
    )
    return vlm.train()


# ---- the straightforward recipe -----------------------------------------------------------------------------


class PlainRecipe:
    """Stock parts; shared by all of the recipe's variants."""

    def __init__(self, device: str, layers: int) -> None:
        import torch

        from limner.data.images import PixelSettings

        torch.manual_seed(42)
        vlm = captioner(layers=layers)
        self.encoder, self.projection, self.lm = (
            part.to(device) for part in (vlm.encoder, vlm.projection, vlm.decoder)
        )
        self.device, self.words = device, vlm.tokenizer
        self.lm.get_base_model().enable_input_require_grads()
        trained = [p for part in (self.projection, self.lm) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.01)
        self.trained = trained
        self.records = records().train
        pixels = PixelSettings.from_processor_config(vlm.image_processor_config)
        pictures = np.stack([np.asarray(record.image) for record in self.records])
        self.pixels = pixels.normalize(torch.from_numpy(pictures))
        self.prompt = vlm.num_prompt_tokens
        self.tokens = [[[*self.words.encode(c), 0] for c in r.captions] for r in self.records]
        self.features: Any = None
        self.next = 0

    def encode(self, pixels: Any) -> Any:
        return self.encoder(pixels, output_hidden_states=True).hidden_states[-2]

    def step(self, way: Plain) -> int:
        import torch
        from torch.nn import functional as F

        from limner.data.packing import block_mask, pack_captions

        if way.cached and self.features is None:
            with torch.no_grad():
                self.features = torch.cat([self.encode(p.to(self.device)).half() for p in self.pixels.split(8)])
        lm = self.lm.get_base_model()
        (lm.activation_checkpointing_enable if way.checkpointing else lm.activation_checkpointing_disable)()
        lm.train()
        drawn = [(self.next + k) % len(self.records) for k in range(way.rows)]
        self.next += way.rows
        rows = [self.tokens[k] if way.packed else [self.tokens[k][self.next % CAPTIONS]] for k in drawn]
        with torch.autocast(self.device, torch.bfloat16, enabled=way.autocast):
            seen = self.features[drawn].float() if way.cached else self.encode(self.pixels[drawn].to(self.device))
            prefix = self.projection(seen)  # (B, P, D)
            if way.packed:
                packed = pack_captions(rows, self.prompt)
                put = {name: tensor.to(self.device) for name, tensor in packed.tensors().items()}
                embeds = torch.cat([prefix, lm.get_input_embeddings()(put["input_ids"])], 1)
                at, labels = put["label_positions"], put["labels"]
                mask, positions = block_mask(put["document_ids"]), put["position_ids"]
            else:  # a caption a row, padded to the longest that there may be
                padded = torch.zeros(way.rows, LONGEST, dtype=torch.long)
                mask = torch.zeros(way.rows, self.prompt + LONGEST, dtype=torch.long)
                targets = torch.full((way.rows, self.prompt + LONGEST), -100)
                for row, (caption,) in enumerate(rows):
                    padded[row, : len(caption)] = torch.tensor(caption)
                    mask[row, : self.prompt + len(caption)] = 1
                    targets[row, self.prompt : self.prompt + len(caption)] = torch.tensor(caption)
                embeds = torch.cat([prefix, lm.get_input_embeddings()(padded.to(self.device))], 1)
                mask, targets, positions = mask.to(self.device), targets.to(self.device), None
                shifted = F.pad(targets, (0, 1), value=-100)[:, 1:].flatten()
                at = (shifted >= 0).nonzero()[:, 0]
                labels = shifted[at]
            if way.labels_only or way.packed:  # packed captions share the position of their first token's logits
                hidden = lm.model(
                    inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
                ).last_hidden_state
                if way.labels_only:
                    logits = lm.lm_head(hidden.flatten(0, 1)[at])
                else:
                    logits = lm.lm_head(hidden).flatten(0, 1)[at]
                loss = F.cross_entropy(logits.float(), labels)
            else:
                loss = lm(inputs_embeds=embeds, attention_mask=mask, labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert torch.isfinite(loss.detach())
        return sum(map(len, rows))


# ---- Limner -------------------------------------------------------------------------------------------------


def limner(way: Limner, device: str, layers: int, folder: str) -> Step:
    """Steps of the real trainer over the real task; its run folder and cache are in ``folder``."""
    from functools import partial

    from accelerate import Accelerator

    from limner.config.train import TrainConfig
    from limner.device import choose
    from limner.runs import create_run
    from limner.training.caption_task import CaptionTask
    from limner.training.journal import Journal
    from limner.training.trainer import Trainer

    config = TrainConfig(
        encoder_model="siglip", decoder_model="smollm", batch_size=way.pictures, gradient_accumulation_steps=1,
        max_steps=10**6, num_train_epochs=10**6, eval_steps=0, save_steps=0, cache_features=way.cache_features,
        precision=way.precision, compile=way.compile, device=device, eval_images=1, gradient_checkpointing="off",
        runs_dir=Path(folder), cache_dir=Path(folder) / "cache",
    )  # fmt: skip
    task = CaptionTask(config, lambda _: records(), build=partial(captioner, layers=layers), say=lambda _: None)
    run = create_run(folder, "benchmark", "train", {})
    choice = choose(device, config.precision)
    accelerator = Accelerator(cpu=device == "cpu")
    trainer = Trainer(task, config, run, Journal(run.path, quiet=True), accelerator, choice)
    if way.decoder == "stock":
        task.captioner.stack = None
    if way.decoder == "dense":
        task.captioner.flex = False

    def step() -> int:
        before = trainer.progress.units
        trainer._step()
        return trainer.progress.units - before

    return step


# ---- interleaved in one process -----------------------------------------------------------------------------


def sides(names: list[str], options: argparse.Namespace, folder: str) -> dict[str, Step]:
    made: dict[str, Step] = {}
    recipe: PlainRecipe | None = None
    for name in names:
        way = SIDES[name][1]
        if isinstance(way, Plain):
            recipe = recipe or PlainRecipe(options.device, options.layers)
            made[name] = lambda recipe=recipe, way=way: recipe.step(way)  # type: ignore[misc]
        else:
            made[name] = limner(way, options.device, options.layers, tempfile.mkdtemp(dir=folder))
    return made


def timed(step: Step, device: str) -> tuple[float, float]:
    """Seconds and processor seconds of a step, a caption."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    began, spent = time.perf_counter(), time.process_time()
    count = step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count, (time.process_time() - spent) / count


def interleaved(options: argparse.Namespace) -> None:
    import torch

    from limner.device import keep_freed_memory

    kept = keep_freed_memory()
    print(f"{machine(options.device)}; freed memory kept on every side: {kept}; medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        steps = sides(options.sides, options, folder)
        for step in steps.values():  # warms up, and compiles; batches differ in shape, so twice
            step()
            step()
        print(f"prepared in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                taken[name].append(timed(step, options.device))
        if options.device == "cuda":
            torch.cuda.synchronize()
    base = statistics.median(wall for wall, _ in taken[next(iter(taken))])
    for name, found in taken.items():
        wall, work = (statistics.median(column) for column in zip(*found, strict=True))
        told = f"{SIDES[name][0]:<52} {1 / wall:8.2f} captions/s  {base / wall:6.2f} x"
        print(told + (f"  {1000 * work:8.1f} ms of processor a caption" if options.device == "cpu" else ""))


def fast_bf16(device: str) -> bool:
    from limner.device import choose

    return str(choose(device).dtype) == "torch.bfloat16"


def machine(device: str) -> str:
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"


# ---- a process a side: as they ship, with peak memory -------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    """A side: prints a line when it is ready, then takes a step for each line it reads."""
    import resource

    import torch

    if options.keep_freed:
        from limner.device import keep_freed_memory

        assert keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        step = sides([options.side], options, folder)[options.side]
        step(), step()
        print("ready", flush=True)
        for _ in sys.stdin:
            wall, work = timed(step, options.device)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            if options.device == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**20
            print(json.dumps({"wall": wall, "work": work, "peak_mb": peak}), flush=True)


def shipped(options: argparse.Namespace) -> None:
    processes = {}
    for side in options.sides:
        words = [sys.executable, __file__, "--side", side, "--device", options.device]
        words += ["--layers", str(options.layers)]
        own = options.keep_freed or isinstance(SIDES[side][1], Limner)
        processes[side] = subprocess.Popen(
            [*words, "--keep-freed"] if own else words,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        )  # fmt: skip
        assert _answer(processes[side]) == "ready"
    found: dict[str, list[dict[str, float]]] = {side: [] for side in processes}
    for _ in range(options.rounds):
        for side, process in processes.items():
            assert process.stdin
            process.stdin.write("step\n")
            process.stdin.flush()
            found[side].append(json.loads(_answer(process)))
    for process in processes.values():
        process.kill()
        process.wait()
    how = "freed memory kept on every side" if options.keep_freed else "as they ship"
    print(f"{machine(options.device)}; a process a side, {how}; medians of {options.rounds} rounds")
    first = next(iter(found.values()))
    base, base_peak = statistics.median(one["wall"] for one in first), first[-1]["peak_mb"]
    for side, each in found.items():
        wall, peak = statistics.median(one["wall"] for one in each), each[-1]["peak_mb"]
        print(
            f"{SIDES[side][0]:<52} {1 / wall:8.2f} captions/s  {base / wall:6.2f} x"
            f"  peak {peak:,.0f} MB ({peak / base_peak:.2f})"
        )


def _answer(process: subprocess.Popen[str]) -> str:
    """The next line of a side's own; libraries print as well."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(("ready", "{")):
            return line.strip()
    raise SystemExit("A side ended early; run it alone with --side to see why.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), metavar="SIDE")
    parser.add_argument("--layers", type=int, default=30, help="of the decoder; fewer for a quick look")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ship", action="store_true", help="a process a side, as they ship, with peak memory")
    parser.add_argument("--keep-freed", action="store_true", help="with --ship: give the allocator to every side")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:<9} {told}" for name, (told, _) in SIDES.items()))
        return
    if options.sides is None:
        options.sides = ["plain", "bf16", "limner", "live", "fp32"] if options.ship else CHOSEN[options.device]
        if options.ship and options.device == "cuda":
            options.sides.remove("fp32")
        if not fast_bf16(options.device):
            print("This machine has no fast bf16: no sides in it; Limner computes in fp32, as it would by itself.")
            options.sides = [side for side in options.sides if side not in ("bf16", "5", "fp32")]
    serve(options) if options.side else shipped(options) if options.ship else interleaved(options)


if __name__ == "__main__":
    main()
