"""Pretraining as a task of the trainer: a GPT that learns to predict the next token of a text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from limner.runs import Run
from limner.runs.models import find_model
from limner.tokenizer import Tokenizer, get_tokenizer
from limner.training.chunked_loss import CHUNK_BYTES, summed_cross_entropy
from limner.training.order import Order
from limner.training.task import Batch, ParameterGroup, Progress, Task, fingerprint, last_start

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

FIXED_TOKENIZERS = ("gpt2", "byte")
"""Their names are enough to have them again."""
KEPT = "tokenizer"
"""Where in the run's folder any other tokenizer is kept."""

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
    numbered_examples = True
    evaluates_first = True
    counted = {  # noqa: RUF012
        "examples": "training text",
        "training_tokens": "training text",
        "validation_tokens": "validation text",
    }
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
        self.model = self._model()
        self.measure(self.model.config, device, precision)
        self.flops_per_unit = float(self.plan.flops_per_token)
        if self.compiled:
            self.model.compile_training(self._windows_at_once(), self.training.context)
        for line in self.describe_data() + self.plan.describe(self.memory):
            self.say(line)
        if self.compiled:
            self.say("The model is compiled: the first step takes about a minute, the others less than before.")

    def prepare_data(self, progress: Progress) -> None:
        """Text, tokenizer, ids, windows and reference lines; no model yet."""
        config = self.config
        corpus = load_corpus(config.corpus, config.cache_dir)
        if corpus.validation is not None and config.val_split != PretrainConfig.model_fields["val_split"].default:
            raise ValueError(f"The corpus '{corpus.name}' has a validation text of its own; leave out --val-split.")
        texts = corpus.split(config.val_split)
        self.corpus_name = corpus.name
        self.notes = list(corpus.notes)
        # A tokenizer that is trained sees the training text only, like the model.
        self.tokenizer = self._tokenizer(texts[0])
        rows = [encoded(documents, self.tokenizer, config.cache_dir, progress) for documents in texts]
        self.fingerprints = {
            "tokenizer": fingerprint(self.tokenizer.vocabulary()),
            "training text": fingerprint(_pieces(rows[0])),
            "validation text": fingerprint(_pieces(rows[1])),
        }
        context = self.model_config().context_length
        self.training, self.validation, shortened = fit_windows(rows[0], rows[1], context, config.stride)
        self.notes += shortened
        if self.training.context < context and self._source() is None:
            self.notes.append("The model's context is as long as the windows: later positions would learn nothing.")
        if config.tokenizer == "bpe" and self.tokenizer.vocab_size < config.vocab_size:
            self.notes.append(
                f"The tokenizer has {self.tokenizer.vocab_size:,} tokens instead of {config.vocab_size:,}: "
                "each word of the training text is one by now."
            )
        if self.tokenizer.unk_id is not None:
            heads = np.concatenate([row[:20_000_000] for row in rows])
            if unknown := np.count_nonzero(heads == self.tokenizer.unk_id):
                self.notes.append(
                    f"{unknown:,} of {len(heads):,} tokens stand for text that the tokenizer does not know: the "
                    "model cannot learn it, and bits per byte are too low, since what is lost costs nothing. The "
                    "tokenizers gpt2, byte and bpe know all text."
                )
        self.num_examples = len(self.training)
        if config.batch_size > self.num_examples:
            self.notes.append(
                f"The training text has only {self.num_examples:,} windows: a batch holds these, not "
                f"{config.batch_size:,}."
            )
        characters = [sum(map(len, documents)) for documents in texts]
        size = [sum(len(document.encode()) for document in documents) for documents in texts]
        self.text_facts = {
            "documents": sum(map(len, texts)),
            "training_characters": characters[0],
            "validation_characters": characters[1],
            "training_tokens": len(rows[0]),
            "validation_tokens": len(rows[1]),
            "training_bytes_per_token": size[0] / len(rows[0]),
            "validation_bytes_per_token": size[1] / len(rows[1]),
        }
        self.lines = reference_lines(rows[0], self.tokenizer.vocab_size)
        self.prompts = config.sample_prompt or (_first_words(texts[1]),)

    def _tokenizer(self, corpus: Sequence[str]) -> Tokenizer:
        """The one that was asked for; with trained weights their own, since ids of another mean other strings."""
        config, source = self.config, self._source()
        if source is None:
            if config.tokenizer == "bpe" and hasattr(self, "run_path") and (kept := _kept_tokenizer(self.run_path)):
                kept.name = "bpe"
                return kept
            return get_tokenizer(_tokenizer_source(config), corpus, config.vocab_size)
        asked = None if config.tokenizer is None else get_tokenizer(_tokenizer_source(config))
        try:
            own = get_tokenizer("gpt2" if source in HUB_IDS else source)
        except (OSError, ValueError) as error:
            if asked is None:
                raise type(error)(
                    f"{source} is no model whose tokenizer can be read, here or on the hub; give a finished run, "
                    "or a model's folder or hub id, and --tokenizer where that has none."
                ) from error
            self.notes.append(f"{source} has no tokenizer: that '{asked.name}' is the right one is taken on trust.")
            return asked
        if asked is None:
            return own
        if asked.vocabulary() != own.vocabulary():
            raise ValueError(
                f"The weights of {source} were trained with another tokenizer than '{config.tokenizer}', whose ids "
                "mean other strings; leave out --tokenizer, and the model's own is used."
            )
        return asked

    def open(self, run: Run) -> bool:
        """Builds tokenizer and model as the run has them, with random weights: its text is not read, nor the model
        that it began from. False: the run is of a version that did not keep its tokenizer."""
        start = last_start(run)
        if start is None:
            return False
        name = start["tokenizer"]
        tokenizer = get_tokenizer(name) if name in FIXED_TOKENIZERS else _kept_tokenizer(run.path)
        if tokenizer is None:
            return False
        self.tokenizer, self.model = tokenizer, GPTModel(GPTConfig(**start["model"]))
        return True

    def shape(self) -> GPTConfig:
        """What the model will be. --init-from's is read with its weights: they alone tell whether it has biases."""
        source = self._source()
        if self.config.init_from is not None and source is not None:
            return (self._model() if self._has_text() else self._loaded(source)).config
        return self.model_config(None if self._has_text() else _vocabulary(self.config))

    def measure(self, shape: GPTConfig, device: torch.device, precision: torch.dtype) -> None:
        """What training a model of this shape takes, and whether it is compiled; without text, in full windows."""
        self.device, self.precision = device, precision
        self.plan = plan(shape, self.training.context if self._has_text() else None)
        self.compiled = self._has_text() and self._worth_compiling(device)
        # Without a compiler, torch's attention on a CPU writes the weights out where it is to drop some of them.
        unfused = device.type == "cpu" and shape.dropout > 0 and not self.compiled
        self.memory = self.plan.training_bytes(
            self._windows_at_once(),
            precision != torch.float32,
            keeps_attention=shape.attention == "manual" or unfused,
            most_logits=CHUNK_BYTES,
        )

    def _has_text(self) -> bool:
        return hasattr(self, "training")

    def _order(self) -> Order:
        loop = self.config.loop()
        world = _num_processes()
        return Order(self.num_examples, loop.batch_size, loop.accumulation, world, self.config.seed)

    def _windows_at_once(self) -> int:
        """Windows in the largest batch of a process."""
        return min(self.config.batch_size, self.num_examples) if self._has_text() else self.config.batch_size

    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.config.loop().total_steps(self._order().steps_per_epoch)

    def total_tokens(self) -> int:
        """Tokens that one process sees in the run."""
        return self._order().examples_before(self.total_steps()) // _num_processes() * self.training.context

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
        source = self._source()
        if source is None:
            return GPTModel(self.model_config())
        model = self._loaded(source)
        if model.config.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"{source} knows {model.config.vocab_size} tokens, but its tokenizer has "
                f"{self.tokenizer.vocab_size}; begin from a model whose tokenizer fits."
            )
        if model.config.context_length < self.training.context:
            raise ValueError(
                f"{source} has a context of {model.config.context_length} tokens; "
                f"give --context-length {model.config.context_length}."
            )
        return model

    def _loaded(self, source: str) -> GPTModel:
        fields = self.config.overrides()
        overrides = {name: fields[name] for name in ("dropout", "attention") if name in fields}
        return GPTModel.from_pretrained(source, **overrides)

    def describe_data(self) -> list[str]:
        """The text and what losses on it will mean, for a person."""
        text = self.text_facts
        return [
            f"Corpus '{self.corpus_name}': {text['training_characters']:,} characters to learn from, "
            f"{text['validation_characters']:,} held back; tokenizer '{self.tokenizer.name}' with "
            f"{self.tokenizer.vocab_size:,} tokens makes {text['training_tokens']:,} and "
            f"{text['validation_tokens']:,} of them ({text['training_bytes_per_token']:.2f} and "
            f"{text['validation_bytes_per_token']:.2f} bytes a token).",
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
            "memory_estimate": self.memory,
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

    def readings(self, loss: float, split: Literal["training", "validation"]) -> dict[str, float]:
        """Perplexity: among how many equally likely tokens the model is as unsure. Bits per byte: what coding the
        split's text with the model would cost, which can be compared between tokenizers: the bits of all tokens,
        those between documents included, over the bytes of the documents."""
        bits = loss / math.log(2) / self.text_facts[f"{split}_bytes_per_token"]
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
        context = self.plan.config.context_length
        wanted = int(arguments.get("max_tokens", self.config.sample_tokens))
        # A prompt that leaves too little of the context free loses its beginning, but never more than half of it.
        ids = self.tokenizer.encode_prompt(prompt) or [self.tokenizer.eos_id]
        ids = ids[-max(context - wanted, context // 2, 1) :]
        decoder = get_decoder(
            "sample" if temperature else "greedy",
            max_new_tokens=min(wanted, context + 1 - len(ids)),  # the last token needs no place in the context
            seed=int(arguments.get("seed", self.config.seed)),
            eos_token_id=(self.tokenizer.eos_id,),
            **({"temperature": temperature, "top_k": int(arguments.get("top_k", 50))} if temperature else {}),
        )
        tokens, _ = decoder.decode(step_model(model), input_ids=torch.tensor([ids], device=self.device))
        generated = [token for token in tokens[0].tolist() if token != self.tokenizer.eos_id]
        # Decoded together with the prompt: some tokenizers drop a text's first space.
        text = self.tokenizer.decode(ids + generated)[len(self.tokenizer.decode(ids)) :]
        return {"prompt": prompt, "text": text}

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, GPTModel)
        model.save_pretrained(folder, self.tokenizer.eos_id)
        self.tokenizer.save(folder)

    def state(self) -> dict[str, Any]:
        """Names text and tokenizer, without which weights mean nothing. The first time, the tokenizer is written
        into the run's folder, unless a name is enough to have it again.
        """
        folder, aside = self.run_path / KEPT, self.run_path / f".{KEPT}"
        if self.tokenizer.name not in FIXED_TOKENIZERS and not folder.exists():
            self.tokenizer.save(aside)
            aside.rename(folder)
        return {"fingerprints": self.fingerprints}

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError where text or tokenizer have changed since."""
        self.refuse_other_data(state, self.fingerprints, f"corpus '{self.config.corpus}'")


def _batch(windows: Windows, indices: Sequence[int]) -> Batch:
    inputs, targets = map(torch.from_numpy, windows.batch(indices))
    count = targets.numel()
    return Batch({"ids": inputs, "targets": targets}, count, count, [str(index) for index in indices])


def _kept_tokenizer(run_path: Path) -> Tokenizer | None:
    """The tokenizer of a run that has been saved before."""
    return get_tokenizer(run_path / KEPT) if (run_path / KEPT).is_dir() else None


def _pieces(ids: np.ndarray) -> Iterator[bytes]:
    """All of a row of ids, beyond 16 million of them 256 pieces spread over it; and how many there are."""
    size = 2**16
    yield str(len(ids)).encode()
    for start in range(0, len(ids), max(size, len(ids) // 256)):
        yield ids[start : start + size].astype("<u4").tobytes()


def _tokenizer_source(config: PretrainConfig) -> str:
    """The tokenizer's name, or where it lies; without trained weights "gpt2" where none was asked for."""
    name = config.tokenizer or "gpt2"
    return name if name in ("gpt2", "byte", "bpe") else find_model(name, config.runs_dir)


def _vocabulary(config: PretrainConfig) -> int:
    """Tokens of the tokenizer, without the text that it might be trained on."""
    name = _tokenizer_source(config)
    return {"gpt2": 50257, "bpe": config.vocab_size}.get(name) or get_tokenizer(name).vocab_size


def _num_processes() -> int:
    """As the launcher says: torchrun and Accelerate set this variable."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _first_words(documents: Sequence[str], count: int = 6, most: int = 40) -> str:
    """The first words, in at most so many characters: not every script has spaces."""
    words = " ".join(" ".join(documents[:20])[:2000].split()[:count])
    return words if len(words) <= most else words[: most + 1].rpartition(" ")[0] or words[:most]
