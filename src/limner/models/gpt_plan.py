"""What a GPT of a given shape costs, before any of it is made: parameters, FLOPs, memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from limner.models.gpt import GPTConfig, GPTModel

_PARTS = {
    "token embedding": ("token_embedding",),
    "position embedding": ("position_embedding",),
    "attention": ("attention.qkv", "attention.output"),
    "feed-forward": ("feed_forward.",),
    "norms": ("_norm.",),
    "head": ("head.",),
}


@dataclass(frozen=True)
class ModelPlan:
    """The costs of one model. ``parts``: parameters by part; a tied head counts nothing of its own."""

    config: GPTConfig
    parts: dict[str, int]

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def flops_per_token(self) -> int:
        """FLOPs of forward and backward for one token.

        6 for each parameter that is multiplied (2 forward, 4 backward), the head's matrix included and lookup
        tables not, and 12 L D T for attention's two products (Chowdhery et al., "PaLM", 2022, appendix B).
        """
        config = self.config
        tables = self.parts["token embedding"] + self.parts["position embedding"]
        multiplied = self.parameters - tables + (config.vocab_size * config.width if config.tie_embeddings else 0)
        return 6 * multiplied + 12 * config.num_layers * config.width * config.context_length

    def training_bytes(self, batch_size: int, bf16: bool) -> dict[str, int]:
        """An estimate of the memory in training, by what it is for.

        Weights, gradients and AdamW's two moments are fp32; bf16 adds a copy of the weights. Activations: a block
        keeps about 16 D numbers a token for the backward pass (its inputs, norms, queries, keys and values, the
        two halves of the feed-forward), and the loss one chunk of logits.
        """
        size = 2 if bf16 else 4
        config = self.config
        tokens = batch_size * config.context_length
        return {
            "weights": 4 * self.parameters + (2 * self.parameters if bf16 else 0),
            "gradients": 4 * self.parameters,
            "optimizer": 8 * self.parameters,
            "activations": size * tokens * config.width * 16 * config.num_layers,
        }

    def describe(self, batch_size: int, bf16: bool) -> list[str]:
        """Parts, total and memory, for a person."""
        config, memory = self.config, self.training_bytes(batch_size, bf16)
        total = f"{self.parameters:>13,}" + ("  (the head is the token embedding)" if config.tie_embeddings else "")
        return [
            f"Model: context {config.context_length}, width {config.width}, {config.num_heads} heads, "
            f"{config.num_layers} blocks. Parameters:",
            *(f"  {part:<20}{count:>13,}" for part, count in self.parts.items()),
            f"  {'total':<20}{total}",
            "Memory in training, about: "
            + ", ".join(f"{what} {_size(count)}" for what, count in memory.items())
            + f"; {_size(sum(memory.values()))} in all.",
        ]


def plan(config: GPTConfig) -> ModelPlan:
    """Counts on a model without weights, so that the count cannot drift from the code."""
    with torch.device("meta"):
        model = GPTModel(config)
    parts = dict.fromkeys(_PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, marks in _PARTS.items() if any(mark in name for mark in marks))
        parts[part] += parameter.numel()
    return ModelPlan(config, parts)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
