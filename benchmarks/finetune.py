"""Speed and memory of fine-tuning SigLIP-base + SmolLM-135M: the straightforward recipe, Limner, and each trick.

    python benchmarks/finetune.py [--rounds 3] [--sides plain limner ...] [--device cuda]
    python benchmarks/finetune.py --ship        a process a side, as they ship, with peak memory
    python benchmarks/finetune.py --list        what the sides are
    python benchmarks/finetune.py --proof       equal validation loss after equal epochs, small and with real photos

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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

PICTURES, CAPTIONS, LONGEST, VOCABULARY = 33, 5, 30, 49_152
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
    "+packed": ("plain, only: five captions packed", Plain(packed=True, rows=2)),
    "2": ("fp32, cached, head on labels", Plain(cached=True, labels_only=True)),
    "3": ("  + no checkpointing", Plain(cached=True, labels_only=True, checkpointing=False)),
    "4": ("  + packed", Plain(True, True, False, True, rows=2)),
    "5": ("  + bf16 autocast", Plain(True, True, False, True, True, rows=2)),
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


def siglip_features(encoder: Any, pixels: Any) -> Any:
    """(N, 3, H, W) -> (N, P, Dv): the last layer but one, as LLaVA reads it."""
    return encoder(pixels, output_hidden_states=True).hidden_states[-2]


def padded_loss(vlm: Any, prefix: Any, captions: list[list[int]], longest: int) -> Any:
    """The mean loss of captions' tokens, one caption a row, padded to ``longest``, with all logits: stock code."""
    import torch

    shape = (len(captions), prefix.shape[1] + longest)
    ids = torch.zeros(len(captions), longest, dtype=torch.long)
    mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, caption in enumerate(captions):
        end = prefix.shape[1] + len(caption)
        ids[row, : len(caption)] = torch.tensor(caption)
        mask[row, :end] = 1
        labels[row, prefix.shape[1] : end] = torch.tensor(caption)
    lm, device = vlm.language_model, prefix.device
    embeds = torch.cat([prefix, lm.get_input_embeddings()(ids.to(device))], 1)
    return lm(inputs_embeds=embeds, attention_mask=mask.to(device), labels=labels.to(device), use_cache=False).loss


def better_loss(vlm: Any, prefix: Any, captions: list[list[list[int]]], way: Plain) -> Any:
    """The same, of rows that may hold several captions, with the head on labels only or everywhere."""
    from torch.nn import functional as F

    from limner.data.packing import block_mask, pack_captions

    width = max(sum(len(caption) - 1 for caption in row) for row in captions)
    room = prefix.shape[1] + (width if way.packed else LONGEST)
    packed = pack_captions(captions, prefix.shape[1], pad_to_multiple=room)
    put = {name: tensor.to(prefix.device) for name, tensor in packed.tensors().items()}
    embeds = vlm.language_model.get_input_embeddings()(put["input_ids"])
    hidden = vlm.hidden_states(
        _beside(prefix, embeds), block_mask(put["document_ids"]), put["position_ids"]
    )  # (B, S, D)
    at = put["label_positions"]
    logits = vlm.head(hidden.flatten(0, 1)[at]) if way.labels_only else vlm.head(hidden).flatten(0, 1)[at]
    return F.cross_entropy(logits.float(), put["labels"])


def _beside(prefix: Any, embeds: Any) -> Any:
    import torch

    return torch.cat([prefix, embeds], 1)


class PlainRecipe:
    """Stock parts and a stock optimizer; shared by all of the recipe's variants."""

    def __init__(self, device: str, layers: int) -> None:
        import torch

        from limner.data.images import PixelSettings

        torch.manual_seed(42)
        self.vlm, self.device = captioner(layers=layers).to(device), device
        self.vlm.language_model.enable_input_require_grads()
        self.trained = [p for p in self.vlm.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-5, weight_decay=0.01)
        examples = records().train
        pictures = np.stack([np.asarray(record.image) for record in examples])
        pixels = PixelSettings.from_processor_config(self.vlm.image_processor_config)
        self.pixels = pixels.normalize(torch.from_numpy(pictures))
        self.tokens = [[[*self.vlm.tokenizer.encode(c), 0] for c in record.captions] for record in examples]
        self.features: Any = None
        self.next = 0

    def step(self, way: Plain) -> int:
        import torch

        if way.cached and self.features is None:
            with torch.no_grad():
                some = self.pixels.split(8)
                self.features = torch.cat([siglip_features(self.vlm.encoder, p.to(self.device)) for p in some])
        lm = self.vlm.language_model
        (lm.activation_checkpointing_enable if way.checkpointing else lm.activation_checkpointing_disable)()
        self.vlm.train()
        drawn = [(self.next + k) % len(self.tokens) for k in range(way.rows)]
        self.next += way.rows
        rows = [self.tokens[k] if way.packed else [self.tokens[k][self.next % CAPTIONS]] for k in drawn]
        with torch.autocast(self.device, torch.bfloat16, enabled=way.autocast):
            if way.cached:
                seen = self.features[drawn]
            else:
                seen = siglip_features(self.vlm.encoder, self.pixels[drawn].to(self.device))
            prefix = self.vlm.projection(seen)  # (B, P, D)
            if way.packed or way.labels_only:
                loss = better_loss(self.vlm, prefix, rows, way)
            else:
                loss = padded_loss(self.vlm, prefix, [row[0] for row in rows], LONGEST)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert torch.isfinite(loss.detach())
        return sum(map(len, rows))


# ---- Limner -------------------------------------------------------------------------------------------------


def limner(way: Limner, device: str, layers: int, folder: str) -> Step:
    """Steps of the real trainer over the real task; its run folder and cache are in ``folder``."""
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
        trainer._apply(trainer._gradient())
        return trainer.progress.units - before

    return step


# ---- interleaved in one process -----------------------------------------------------------------------------


def side(name: str, options: argparse.Namespace, folder: str) -> Step:
    way = SIDES[name][1]
    if isinstance(way, Limner):
        return limner(way, options.device, options.layers, tempfile.mkdtemp(dir=folder))
    recipe = plain_recipe(options.device, options.layers)
    return lambda: recipe.step(way)


@lru_cache(maxsize=1)
def plain_recipe(device: str, layers: int) -> PlainRecipe:
    return PlainRecipe(device, layers)


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
        steps: dict[str, Step] = {}
        for name in options.sides:
            try:
                step = side(name, options, folder)
                step()  # warms up, and compiles
                if isinstance(SIDES[name][1], Limner):
                    step()  # batches differ in shape
                steps[name] = step
            except Exception as error:  # no compiler, no memory: the other sides are still worth telling
                print(f"{SIDES[name][0]}: {type(error).__name__}: {str(error)[:500]}")
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
    import torch

    from limner.training.meter import peak_memory_mb

    if options.keep_freed:
        from limner.device import keep_freed_memory

        assert keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        step = side(options.side, options, folder)
        step(), step()
        print("ready", flush=True)
        for _ in sys.stdin:
            wall, work = timed(step, options.device)
            on_gpu = options.device == "cuda"
            peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_memory_mb()
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


# ---- the proof: equal validation loss after equal epochs -----------------------------------------------------


def photos(folder: Path, shard: str, split: str, count: int) -> list[Any]:
    """The first photos of a shard of Flickr8k, with five captions each."""
    import io
    import tarfile

    from PIL import Image

    from limner.data.records import Record

    lines = map(json.loads, (folder / "flickr8k" / "captions_train_dev.jsonl").read_text().splitlines())
    captions = {line["image"]: line["captions"] for line in lines if line["split"] == split}
    found = []
    with tarfile.open(folder / "flickr8k" / shard) as tar:
        for member in tar:
            name = Path(member.name).name
            if name in captions and len(found) < count:
                with Image.open(io.BytesIO(tar.extractfile(member).read())) as image:  # type: ignore[union-attr]
                    found.append(Record(image.convert("RGB"), captions[name], name))
    return found


class Proof:
    """MobileNetV2 and stories260k with LoRA on photos of Flickr8k: one way to train them against the other."""

    pictures = 4
    """Of a step, with all their captions."""

    def __init__(self, options: argparse.Namespace, seed: int, folder: str) -> None:
        from limner.config.train import TrainConfig
        from limner.data.records import Splits
        from limner.models.captioner import build_captioner
        from limner.models.lora import Lora

        data = options.data
        train = photos(data, "images192_train_00.tar", "train", options.photos)
        self.splits = Splits(train, photos(data, "images192_dev.tar", "dev", options.photos // 2))
        models = data / "models"
        parts = models / "mobilenet-v2-0.35-224", models / "stories260k"
        self.build = partial(
            build_captioner, *parts, lora=Lora(), freeze_vision=True, seed=seed, say=lambda _: None
        )
        self.config = TrainConfig(
            encoder_model="mobilenet", decoder_model="stories260k", batch_size=self.pictures,
            gradient_accumulation_steps=1, num_train_epochs=options.epochs, max_length=48, lora_lr=1e-3,
            eval_steps=0, save_steps=0, eval_images=1, compile=True, seed=seed, device="cpu",
            runs_dir=Path(folder), cache_dir=Path(folder) / "cache",
        )  # fmt: skip
        self.epochs = options.epochs

    def tokens(self, vlm: Any, captions: list[str]) -> list[list[int]]:
        from limner.data.packing import caption_tokens

        encode = lambda text: vlm.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        return caption_tokens(captions, encode, vlm.tokenizer.eos_token_id, self.config.max_length)[0]

    def pixels(self, vlm: Any, examples: list[Any]) -> Any:
        import torch

        from limner.data.images import PixelSettings

        settings = PixelSettings.from_processor_config(vlm.image_processor_config)
        return torch.stack([settings.pixels(record.image) for record in examples])

    def plain(self, together: bool = False) -> Any:
        """Trains: a caption a row, the encoder in every step, all logits, checkpointing.

        Args:
            together: a step takes Limner's pictures with all their captions; else captions are shuffled singly.
        """
        import torch

        from limner.training.order import Order
        from limner.training.schedule import lr_scale

        vlm, config = self.build().train(), self.config
        vlm.language_model.activation_checkpointing_enable()
        vlm.language_model.enable_input_require_grads()
        rates = {"projection": config.projection_lr, "decoder": config.lora_lr}
        groups = [
            {"params": [p for p in getattr(vlm, name).parameters() if p.requires_grad], "peak": rate}
            for name, rate in rates.items()
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=config.weight_decay)
        parameters = [p for group in groups for p in group["params"]]
        pixels = self.pixels(vlm, self.splits.train)
        tokens = [self.tokens(vlm, record.captions) for record in self.splits.train]
        pairs = [(k, caption) for k, of_picture in enumerate(tokens) for caption in of_picture]
        steps = Order(len(tokens), self.pictures, 1, 1, config.seed)
        total, step = self.epochs * steps.steps_per_epoch, 0
        torch.manual_seed(config.seed)
        for epoch in range(self.epochs):
            order = np.random.default_rng([config.seed, epoch]).permutation(len(pairs))
            for part in np.array_split(order, steps.steps_per_epoch):
                scale = lr_scale(step, total, config.warmup(total), config.schedule, config.lr_floor)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * scale
                rows = [pairs[k] for k in part]
                if together:
                    rows = [(k, caption) for k in steps.step_examples(step).tolist() for caption in tokens[k]]
                prefix = vlm.prompt_embeds(mobilenet_features(vlm.encoder, pixels[[k for k, _ in rows]]))
                padded_loss(vlm, prefix, [caption for _, caption in rows], config.max_length).backward()
                torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
        return vlm

    def limner(self) -> Any:
        """Trains as `limner train` does: cached features, packed captions, the compiled stack, its own loss."""
        from accelerate import Accelerator

        from limner.device import choose
        from limner.runs import create_run
        from limner.training.caption_task import CaptionTask
        from limner.training.journal import Journal
        from limner.training.trainer import Trainer

        config = self.config
        task = CaptionTask(config, lambda _: self.splits, build=lambda *_: self.build(), say=lambda _: None)
        run = create_run(config.runs_dir, "proof", "train", {})
        choice = choose("cpu", config.precision)
        trainer = Trainer(task, config, run, Journal(run.path, quiet=True), Accelerator(cpu=True), choice)
        while trainer.progress.step < trainer.total_steps:
            trainer._apply(trainer._gradient())
        assert task.captioner.stack is not None and task.captioner.stack.is_compiled
        return task.vlm.float()

    def validation_loss(self, vlm: Any) -> float:
        """Of a token, by the plain recipe's code for either side."""
        import torch

        vlm.eval()
        total = count = 0.0
        with torch.no_grad():
            for record, pixels in zip(
                self.splits.validation, self.pixels(vlm, self.splits.validation), strict=True
            ):
                captions = self.tokens(vlm, record.captions)
                prefix = vlm.prompt_embeds(mobilenet_features(vlm.encoder, pixels[None]))
                size = sum(map(len, captions))
                prefix = prefix.expand(len(captions), -1, -1)
                total += size * float(padded_loss(vlm, prefix, captions, self.config.max_length))
                count += size
        return total / count


def mobilenet_features(encoder: Any, pixels: Any) -> Any:
    """(N, 3, H, W) -> (N, P, Dv): the cells of the last map, line by line."""
    return encoder(pixels).last_hidden_state.flatten(2).transpose(1, 2)


def prove(options: argparse.Namespace) -> None:
    from limner.device import keep_freed_memory

    keep_freed_memory()
    losses: dict[str, list[float]] = {"plain": [], "together": [], "limner": []}
    print(f"{options.photos} photos x {CAPTIONS} captions, {options.epochs} epochs; validation loss a token:")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            proof = Proof(options, seed, folder)
            before = proof.validation_loss(proof.build())
            for side in losses:
                began = time.perf_counter()
                trained = proof.limner() if side == "limner" else proof.plain(side == "together")
                losses[side].append(proof.validation_loss(trained))
                seconds = time.perf_counter() - began
                print(f"seed {seed}  {side:<8} {before:.4f} -> {losses[side][-1]:.4f}  {seconds:.0f} s", flush=True)
    means = {side: statistics.mean(found) for side, found in losses.items()}
    spread = max(statistics.stdev(found) for found in losses.values()) if options.seeds > 1 else float("nan")
    told = ", ".join(f"{side} {mean:.4f}" for side, mean in means.items())
    print(f"mean: {told}; deviation between seeds {spread:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), metavar="SIDE")
    parser.add_argument("--layers", type=int, default=30, help="of the decoder; fewer for a quick look")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ship", action="store_true", help="a process a side, as they ship, with peak memory")
    parser.add_argument("--keep-freed", action="store_true", help="with --ship: give the allocator to every side")
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--proof", action="store_true", help="equal validation loss after equal epochs, small and real"
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LIMNER_TEST_DATA", "../shared/data")))
    parser.add_argument("--photos", type=int, default=240, help="of --proof")
    parser.add_argument("--epochs", type=int, default=4, help="of --proof")
    parser.add_argument("--seeds", type=int, default=2, help="of --proof")
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
    modes = {prove: options.proof, serve: options.side, shipped: options.ship, interleaved: True}
    next(mode for mode, wanted in modes.items() if wanted)(options)


if __name__ == "__main__":
    main()
