"""Pretraining as a task of the trainer: a GPT that learns to predict the next token of a text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from limner.config.pretrain import PretrainConfig
from limner.data.corpora import load_corpus
from limner.data.windows import ReferenceLines, Windows, encoded, fit_windows, reference_lines
from limner.decoding import get_decoder, step_model
from limner.decoding.text_model import visible
from limner.device import compiles, require_compiler
from limner.models.gpt import HUB_IDS, PRESETS, GPTConfig, GPTModel
from limner.models.gpt_plan import ModelPlan, plan
from limner.runs.models import find_model
from limner.tokenizer import Tokenizer, get_tokenizer
from limner.training.chunked_loss import summed_cross_entropy
from limner.training.task import Batch, ParameterGroup, Progress, Task

_TOLD = {
    "epoch": "epoch {:.2f}",
    "loss": "loss {:.3f}",
    "eval_loss": "validation {:.3f}",
    "eval_perplexity": "perplexity {:,.1f}",
    "eval_bits_per_byte": "{:.3f} bits/byte",
    "learning_rate": "lr {:.1e}",
    "gradient_norm": "gradient {:.2f}",
    "tokens": "{:,} tokens",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "eta_seconds": "{:,.0f} s to go",
}
"""What an evaluation tells, in this order."""

COMPILE_FROM_FLOPS = {"cpu": 2e13, "cuda": 3e16, "mps": 3e16}
"""Runs of so much computation are compiled: some minutes of it on such a device."""


class PretrainTask(Task):
    """Windows of a corpus, and the cross-entropy of every next token in them.

    Args:
        config: the settings of ``limner pretrain``.
        say: told, in sentences, what a person should know before training.
    """

    kind = "pretrain"
    unit = "tokens"
    directions = {}  # noqa: RUF012  the validation loss is all there is

    tokenizer: Tokenizer
    training: Windows
    validation: Windows
    lines: ReferenceLines
    plan: ModelPlan
    model: GPTModel

    def __init__(self, config: PretrainConfig, say: Callable[[str], None] = lambda text: None) -> None:
        self.config = config
        self.say = say

    # -- data and model --------------------------------------------------------------------------------------

    def prepare(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        self.prepare_data(progress)
        self.precision = precision
        self.device = device
        self.model = self._model()
        self.plan = plan(self.model.config)
        self.flops_per_unit = float(self.plan.flops_per_token)
        self.compiled = self._worth_compiling(device)
        if self.compiled:
            self.model.compile_training(self.config.batch_size, self.training.context)
        for line in self.describe_data() + self.plan.describe(self.config.batch_size, precision != torch.float32):
            self.say(line)
        if self.compiled:
            self.say("The model is compiled: the first step takes about a minute, the others less than before.")

    def prepare_data(self, progress: Progress) -> None:
        """Text, tokenizer, ids, windows and reference lines; no model yet."""
        config = self.config
        corpus = load_corpus(config.corpus, config.cache_dir)
        texts = corpus.split(config.val_split)
        self.corpus_name = corpus.name
        # A tokenizer that is trained sees the training text only, like the model.
        known = config.tokenizer in ("gpt2", "byte", "bpe")
        tokenizer = config.tokenizer if known else find_model(config.tokenizer, config.runs_dir)
        self.tokenizer = get_tokenizer(tokenizer, texts[0], config.vocab_size)
        rows = [encoded(documents, self.tokenizer, config.cache_dir, progress) for documents in texts]
        context = self.model_config().context_length
        self.training, self.validation, self.notes = fit_windows(rows[0], rows[1], context, config.stride)
        if self.training.context < context and self._source() is None:
            self.notes.append("The model's context is as long as the windows: later positions would learn nothing.")
        if config.tokenizer == "bpe" and self.tokenizer.vocab_size < config.vocab_size:
            self.notes.append(
                f"The tokenizer has {self.tokenizer.vocab_size:,} tokens instead of {config.vocab_size:,}: "
                "each word of the training text is one by now."
            )
        self.num_examples = len(self.training)
        characters = [sum(map(len, documents)) for documents in texts]
        size = [sum(len(document.encode()) for document in documents) for documents in texts]
        self.text_facts = {
            "documents": sum(map(len, texts)),
            "training_characters": characters[0],
            "validation_characters": characters[1],
            "training_tokens": len(rows[0]),
            "validation_tokens": len(rows[1]),
            "bytes_per_token": sum(size) / max(1, len(rows[0]) + len(rows[1])),
        }
        self.lines = reference_lines(rows[0], self.tokenizer.vocab_size)
        self.prompts = config.sample_prompt or (_first_words(texts[1]),)

    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        loop = self.config.loop()
        epoch = -(-len(self.training) // (loop.batch_size * loop.accumulation * _num_processes()))
        by_epochs = math.ceil(loop.epochs * epoch) if loop.epochs is not None else None
        return min(limit for limit in (loop.steps, by_epochs) if limit is not None)

    def total_tokens(self) -> int:
        """Tokens that one process sees in the run."""
        return self.total_steps() * self.config.batch_size * self.config.grad_accum_steps * self.training.context

    def _worth_compiling(self, device: torch.device) -> bool:
        """As asked; else where the run is long enough to win back a minute, and there is a compiler.

        The machine's speed is not measured for it: a resumed run must decide as it did before, since compiled code
        rounds otherwise.
        """
        wanted = self.config.compile
        if self.config.shard:
            return False  # a compiled block does not tell the sharding when it begins and ends
        if wanted is None:
            return self.total_tokens() * self.plan.flops_per_token > COMPILE_FROM_FLOPS[device.type] and compiles()
        if wanted:
            require_compiler()
        return wanted

    def model_config(self, vocab_size: int | None = None) -> GPTConfig:
        """The preset with what was set over it, and the tokenizer's vocabulary."""
        size = self.tokenizer.vocab_size if vocab_size is None else vocab_size
        shape = replace(PRESETS[self.config.config], vocab_size=size, **self.config.overrides())
        windows = getattr(self, "training", None)
        return replace(shape, context_length=windows.context) if windows is not None else shape

    def _source(self) -> str | None:
        """Where trained weights come from; None: the model begins from nothing."""
        if self.config.init_from is not None:
            return find_model(self.config.init_from, self.config.runs_dir, "language model")
        return self.config.config if self.config.config in HUB_IDS else None

    def _model(self) -> GPTModel:
        config, source = self.config, self._source()
        if source is None:
            return GPTModel(self.model_config())
        overrides = {name: value for name, value in config.overrides().items() if name in ("dropout", "attention")}
        model = GPTModel.from_pretrained(source, **overrides)
        if model.config.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"{source} knows {model.config.vocab_size} tokens, but the tokenizer '{config.tokenizer}' has "
                f"{self.tokenizer.vocab_size}; give the model's own folder as --tokenizer too."
            )
        if model.config.context_length < self.training.context:
            raise ValueError(
                f"{source} has a context of {model.config.context_length} tokens; "
                f"give --context-length {model.config.context_length}."
            )
        return model

    def describe_data(self) -> list[str]:
        """The text and what losses on it will mean, for a person."""
        text = self.text_facts
        return [
            f"Corpus '{self.corpus_name}': {text['training_characters']:,} characters to learn from, "
            f"{text['validation_characters']:,} held back; tokenizer '{self.tokenizer.name}' with "
            f"{self.tokenizer.vocab_size:,} tokens makes {text['training_tokens']:,} and "
            f"{text['validation_tokens']:,} of them ({text['bytes_per_token']:.2f} bytes a token).",
            *self.notes,
            f"Losses to compare with (nats a token): {self.lines.uniform:.2f} knowing nothing (ln V), "
            f"{self.lines.unigram:.2f} knowing how often each token comes, {self.lines.bigram:.2f} knowing each "
            "token's successors in this very text.",
        ]

    def facts(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus_name,
            "tokenizer": self.tokenizer.name,
            "model": asdict(self.plan.config),
            "parameters_by_part": self.plan.parts,
            "memory_estimate": self.plan.training_bytes(self.config.batch_size, self.precision != torch.float32),
            "reference_lines": asdict(self.lines),
            "context": self.training.context,
            "stride": self.training.stride,
            "compiled": self.compiled,
            "notes": self.notes,
            **self.text_facts,
        }

    # -- learning --------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[ParameterGroup]:
        parameters = list(self.model.named_parameters())
        return [ParameterGroup("model", parameters, self.config.lr, self.config.weight_decay)]

    def batch(self, indices: Sequence[int], seed: int) -> Batch:
        return _batch(self.training, indices)

    def example_id(self, index: int) -> str:
        start = index * self.training.stride
        return f"tokens {start} to {start + self.training.context}"

    def loss(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        compiled = self.compiled and model.training
        head = partial(summed_cross_entropy, targets=tensors["targets"], compiled=compiled)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return model(tensors["ids"], head=head)

    def validation_batches(self) -> Iterator[Batch]:
        """``eval_iters`` batches of windows for each process, spread evenly over the validation text."""
        count = min(len(self.validation), self.config.eval_iters * self.config.batch_size * _num_processes())
        windows = np.linspace(0, len(self.validation) - 1, count).round().astype(int).tolist()
        for start in range(0, count, self.config.batch_size):
            yield _batch(self.validation, windows[start : start + self.config.batch_size])

    def readings(self, loss: float) -> dict[str, float]:
        """Perplexity: among how many equally likely tokens the model is as unsure. Bits per byte: what coding the
        text with the model would cost, which can be compared between tokenizers."""
        bits = loss / math.log(2) / self.text_facts["bytes_per_token"]
        return {"perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": bits}

    def tell(self, step: int, training: Mapping[str, Any], evaluation: Mapping[str, float]) -> str:
        values = {**training, **{f"eval_{name.removeprefix('eval_')}": v for name, v in evaluation.items()}}
        parts = [f"step {step}/{self.total_steps()}"]
        for name, form in _TOLD.items():
            if name in values:
                parts.append(form.format(values[name]))
        return "  ".join(parts)

    def tell_sample(self, sample: Mapping[str, Any]) -> str:
        text = (str(sample["prompt"]) + "|" + str(sample["text"])).replace("\n", "\u23ce")
        return f"    {visible(text)}"

    # -- samples ---------------------------------------------------------------------------------------------

    def probes(self, model: nn.Module) -> list[dict[str, Any]]:
        return [self.sample(model, {"prompt": prompt}) | {"probe": prompt} for prompt in self.prompts]

    def sample(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        """Continues ``prompt``; ``temperature`` (0.8), ``top_k`` (50), ``max_tokens``, ``seed`` may be given."""
        prompt = str(arguments.get("prompt", ""))
        temperature = float(arguments.get("temperature", 0.8))
        context, wanted = (
            self.plan.config.context_length,
            int(arguments.get("max_tokens", self.config.sample_tokens)),
        )
        # A prompt that leaves too little of the context free loses its beginning, but never more than half of it.
        ids = self.tokenizer.encode(prompt)[-max(context - wanted, context // 2, 1) :] or [self.tokenizer.eos_id]
        decoder = get_decoder(
            "sample" if temperature else "greedy",
            max_new_tokens=min(wanted, context + 1 - len(ids)),  # the last token needs no place in the context
            seed=int(arguments.get("seed", self.config.seed)),
            eos_token_id=(self.tokenizer.eos_id,),
            **({"temperature": temperature, "top_k": int(arguments.get("top_k", 50))} if temperature else {}),
        )
        tokens, _ = decoder.decode(step_model(model), input_ids=torch.tensor([ids], device=self.device))
        generated = [token for token in tokens[0].tolist() if token != self.tokenizer.eos_id]
        return {"prompt": prompt, "text": self.tokenizer.decode(generated)}

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, GPTModel)
        model.save_pretrained(folder, self.tokenizer.eos_id)
        self.tokenizer.save(folder)


def _batch(windows: Windows, indices: Sequence[int]) -> Batch:
    inputs, targets = map(torch.from_numpy, windows.batch(indices))
    count = targets.numel()
    return Batch({"ids": inputs, "targets": targets}, count, count, [str(index) for index in indices])


def _num_processes() -> int:
    """As the launcher says: torchrun and Accelerate set this variable."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _first_words(documents: Sequence[str], count: int = 6) -> str:
    return " ".join(" ".join(documents[:20])[:2000].split()[:count])
