"""Speed and memory of pretraining: Limner, a plain transformers loop, a minimal GPT loop, the Hugging Face Trainer.

    python benchmarks/pretrain.py [--config nano|medium] [--dropout 0.1] [--rounds 7] [--text FILE]

The same model, batch and text go through every side. Each side lives in a process of its own, so that its peak
memory is its own; one of them computes at a time, a step each in turn, and the medians over the rounds are told, so
that whatever else the machine does falls on all sides alike. On a busy machine the processor time of a step (with
--threads 1) says more than its duration. Twice: as they ship (Limner keeps freed memory, the
others do not), and with that allocator setting given to every side. Limner's side is its real trainer, run folder
and log included.

`--curve STEPS` instead trains Limner from one seed over the same tokens in bf16 and in fp32 and shows both losses.
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

SIDES = {
    "limner": "Limner, as --precision (auto) decides",
    "plain": "transformers GPT2LMHeadModel, plain loop, fp32",
    "minimal": "minimal GPT, all written out, plain loop, fp32",
    "modules": "minimal GPT, torch's own modules, plain loop, fp32",
    "trainer": "Hugging Face Trainer, bf16 where Limner takes it",
}


# ---- a side: prints a line when it is ready, then does a step for each line it reads --------------------------


def steps(side: str, options: argparse.Namespace) -> Iterator[float]:
    """Trains; yields the loss after each step, and begins the next one only when asked for it."""
    return globals()[f"{side}_steps"](options)


def settings(options: argparse.Namespace, folder: str, **more: Any) -> Any:
    from limner.config.pretrain import PretrainConfig

    return PretrainConfig(
        config=options.config, corpus=options.text, tokenizer=options.tokenizer, context_length=options.length,
        dropout=options.dropout, batch_size=options.batch, tie_embeddings=options.config == "medium" or None,
        steps=100_000, eval_freq=0, checkpoint_freq=0, warmup_steps=100, runs_dir=Path(folder), name="benchmark",
        compile=True, cache_dir=Path(tempfile.gettempdir()) / "limner-benchmark-cache", device="cpu", **more,
    )  # fmt: skip


def limner_trainer(options: argparse.Namespace, folder: str, **more: Any) -> Any:
    from accelerate import Accelerator

    from limner.device import choose
    from limner.runs import create_run
    from limner.training.journal import Journal
    from limner.training.pretrain_task import PretrainTask
    from limner.training.trainer import Trainer

    config = settings(options, folder, **more)
    run = create_run(folder, "benchmark", "pretrain", {})
    choice = choose("cpu", config.precision)
    return Trainer(PretrainTask(config), config, run, Journal(run.path, quiet=True), Accelerator(cpu=True), choice)


def chosen() -> Any:
    """The dtype that Limner computes with on this CPU."""
    from limner.device import choose

    return choose("cpu").dtype


def limner_steps(options: argparse.Namespace) -> Iterator[float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = limner_trainer(options, folder, precision=options.precision)
        events = trainer.run.path / "events.jsonl"
        while True:
            trainer._apply(trainer._gradient())
            yield json.loads(events.read_text().splitlines()[-1])["loss"]


def windows(options: argparse.Namespace) -> Any:
    """The same windows of the same tokens for the other sides: inputs (N, T), targets (N, T)."""
    import torch

    from limner.training.pretrain_task import PretrainTask

    task = PretrainTask(settings(options, tempfile.gettempdir()))
    task.prepare_data(lambda *_: None)
    inputs, targets = task.training.batch(range(len(task.training)))
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def stock_model(options: argparse.Namespace) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from limner.models.gpt import PRESETS

    preset, p = PRESETS[options.config], options.dropout
    torch.manual_seed(42)
    config = GPT2Config(
        n_positions=options.length, n_embd=preset.width, n_layer=preset.num_layers, n_head=preset.num_heads,
        tie_word_embeddings=options.config == "medium", resid_pdrop=p, embd_pdrop=p, attn_pdrop=p,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def plain_steps(options: argparse.Namespace) -> Iterator[float]:
    import torch

    inputs, _ = windows(options)
    model = stock_model(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    while True:
        rows = torch.randint(len(inputs), (options.batch,))
        loss = model(input_ids=inputs[rows], labels=inputs[rows]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def minimal_steps(options: argparse.Namespace) -> Iterator[float]:
    """The loop of small GPTs for teaching: attention, norm and GELU as their formulas stand in the papers."""
    return _minimal_steps(options, written_out=True)


def modules_steps(options: argparse.Namespace) -> Iterator[float]:
    """The same with torch's fused attention, LayerNorm and GELU."""
    return _minimal_steps(options, written_out=False)


def _minimal_steps(options: argparse.Namespace, written_out: bool) -> Iterator[float]:
    """A few plain modules, all logits at once, AdamW, fp32."""
    import math

    import torch
    import torch.nn.functional as F
    from torch import nn

    from limner.models.gpt import PRESETS

    preset, p, T = PRESETS[options.config], options.dropout, options.length
    D, H = preset.width, preset.num_heads

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.shift = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            return self.gain * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift

    class GELU(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    norm: Callable[[], nn.Module] = Norm if written_out else partial(nn.LayerNorm, D)
    gelu: Callable[[], nn.Module] = GELU if written_out else nn.GELU
    future = torch.ones(T, T, dtype=torch.bool).triu(1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            B, T, _ = x.shape
            q, k, v = (part.view(B, T, H, D // H).transpose(1, 2) for part in self.qkv(x).split(D, dim=2))
            if written_out:
                scores = (q @ k.transpose(2, 3) / math.sqrt(D // H)).masked_fill(future[:T, :T], -torch.inf)
                y = F.dropout(scores.softmax(-1), p) @ v
            else:
                y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
            return F.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)), p)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention, self.norm2 = norm(), Attention(), norm()
            self.mlp = nn.Sequential(nn.Linear(D, 4 * D), gelu(), nn.Linear(4 * D, D), nn.Dropout(p))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(preset.vocab_size, D), nn.Embedding(T, D)
            self.blocks = nn.Sequential(*(Block() for _ in range(preset.num_layers)))
            self.norm, self.head = norm(), nn.Linear(D, preset.vocab_size, bias=False)
            for matrix in (self.tokens.weight, self.positions.weight, self.head.weight):
                nn.init.normal_(matrix, std=0.02)
            if options.config == "medium":
                self.head.weight = self.tokens.weight

        def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = F.dropout(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])), p)
            logits = self.head(self.norm(self.blocks(x)))
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    torch.manual_seed(42)
    inputs, targets = windows(options)
    model = GPT().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    while True:
        rows = torch.randint(len(inputs), (options.batch,))
        loss = model(inputs[rows], targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def trainer_steps(options: argparse.Namespace) -> Iterator[float]:
    """The Trainer's loop cannot be stepped from outside: it runs in a thread and waits at the end of each step."""
    import queue
    import threading

    import torch
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    inputs, _ = windows(options)
    go: queue.Queue[None] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    class Stepper(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.get()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.put(float("nan"))

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.batch, max_steps=100_000, use_cpu=True,
        bf16=chosen() == torch.bfloat16, learning_rate=3e-4, weight_decay=0.1, report_to="none",
        save_strategy="no", logging_steps=10**6, disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": inputs.tolist(), "labels": inputs.tolist()}).with_format("torch")
    trainer = Trainer(stock_model(options), arguments, train_dataset=data, callbacks=[Stepper()])
    threading.Thread(target=trainer.train, daemon=True).start()
    while True:
        go.put(None)
        yield done.get()


def serve(options: argparse.Namespace) -> None:
    from limner.training.meter import peak_memory_mb

    if options.keep_freed:
        from limner.device import keep_freed_memory

        assert keep_freed_memory()
    stepper = steps(options.side, options)
    next(stepper)
    print("ready", flush=True)
    for _ in sys.stdin:
        began, spent = time.perf_counter(), time.process_time()
        loss = next(stepper)
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
        print(json.dumps({"seconds": seconds, "cpu": spent, "loss": loss, "peak_mb": peak_memory_mb()}), flush=True)


# ---- the parent ---------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, equal: bool) -> dict[str, dict[str, float]]:
    """Medians of every side. ``equal``: keeping freed memory is given to all sides, else to Limner's only."""
    sides = {}
    for side in options.sides:
        words = [sys.executable, __file__, *options.words, "--side", side]
        words += ["--keep-freed"] if equal or side == "limner" else []
        environment = dict(os.environ)
        if options.threads:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        sides[side] = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert answer(sides[side]) == "ready", f"{side} did not start"
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(options.rounds + 1):
        for side, process in sides.items():
            assert process.stdin
            process.stdin.write("step\n")
            process.stdin.flush()
            found = json.loads(answer(process))
            if number:  # the first round warms up
                results[side].append(found)
    for process in sides.values():
        process.kill()
        process.wait()
    return {
        side: {
            "seconds": statistics.median(one["seconds"] for one in found),
            "cpu": min(one["cpu"] for one in found),
            "peak_mb": found[-1]["peak_mb"],
        }
        for side, found in results.items()
    }


def answer(process: subprocess.Popen[str]) -> str:
    """The next line of a side's own; libraries print as well."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(("ready", "{")):
            return line.strip()
    raise SystemExit("A side ended early; run it alone with --side to see why.")


def report(options: argparse.Namespace) -> None:
    import torch

    from limner.device import matrix_flops
    from limner.models.gpt_plan import plan
    from limner.training.pretrain_task import PretrainTask

    task = PretrainTask(settings(options, tempfile.gettempdir()))
    task.prepare_data(lambda *_: None)
    costs, tokens = plan(task.model_config()), options.batch * options.length
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = chosen()
    peak = dict.fromkeys((torch.float32, dtype), 0.0)

    def measure() -> None:
        """Often, and the best counts: a neighbour's work would lower the peak and so flatter every share of it."""
        for kind in peak:
            peak[kind] = max(peak[kind], matrix_flops.__wrapped__(kind))

    measure()
    print(
        f"{options.config}: {costs.parameters / 1e6:.1f} M parameters, batch {options.batch} x {options.length}, "
        f"dropout {options.dropout}, {torch.get_num_threads()} threads; medians of {options.rounds} rounds"
    )
    for equal in (False, True):
        print("\nThe allocator keeps freed memory on every side:" if equal else "\nAs they ship:")
        results = compare(options, equal)
        measure()
        base = results.get("plain")
        for side, found in results.items():
            rate = tokens / found["seconds"]
            ratio = f"{base['seconds'] / found['seconds']:5.2f} x plain" if base else ""
            memory = f"{found['peak_mb'] / base['peak_mb']:.2f} of plain's" if base else ""
            mfu = rate * costs.flops_per_token / peak[dtype if side in ("limner", "trainer") else torch.float32]
            print(
                f"  {SIDES[side]:<48} {rate:7,.0f} tokens/s  {ratio}  MFU {mfu:.1%}"
                f"  peak {found['peak_mb']:,.0f} MB ({memory}); least processor time of a step {found['cpu']:.2f} s"
            )
    peaks = (f"{flops / 1e12:.2f} TFLOP/s in {str(kind).removeprefix('torch.')}" for kind, flops in peak.items())
    print(f"\nMFU is of the matrix peak as measured beside: {', '.join(peaks)}.")


def curve(options: argparse.Namespace) -> None:
    """Losses of bf16 and fp32 over the same tokens from the same weights."""
    losses: dict[str, list[float]] = {}
    for precision in ("bf16", "fp32"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = limner_trainer(options, folder, precision=precision)
            for _ in range(options.curve):
                trainer._apply(trainer._gradient())
            lines = (trainer.run.path / "events.jsonl").read_text().splitlines()
            losses[precision] = [event["loss"] for event in map(json.loads, lines) if event["type"] == "metrics"]
    print(" step     bf16     fp32  difference")
    for step in range(0, options.curve, max(1, options.curve // 20)):
        a, b = losses["bf16"][step], losses["fp32"][step]
        print(f"{step + 1:5}  {a:7.4f}  {b:7.4f}  {a / b - 1:+.3%}")
    worst = max(abs(a / b - 1) for a, b in zip(losses["bf16"], losses["fp32"], strict=True))
    print(f"largest difference over {options.curve} steps: {worst:.3%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default="nano", choices=("nano", "medium"), help="medium is GPT-2's 124 M, tied"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--text", default="shakespeare", help="a corpus of limner pretrain, or a file")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--precision", default="auto", help="Limner's; bf16 tells its memory also where it is slow")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--curve", type=int, default=0, metavar="STEPS")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--keep-freed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.words = sys.argv[1:]
    if options.side:
        serve(options)
    elif options.curve:
        curve(options)
    else:
        report(options)


if __name__ == "__main__":
    main()
