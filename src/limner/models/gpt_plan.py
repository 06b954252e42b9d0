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
    """The costs of one model.

    Args:
        parts: parameters by part; a tied head counts nothing of its own.
        context: tokens of a training window, at most those that the model has positions for.
    """

    config: GPTConfig
    parts: dict[str, int]
    context: int

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
        return 6 * multiplied + 12 * config.num_layers * config.width * self.context

    def training_bytes(
        self, batch_size: int, bf16: bool, keeps_attention: bool, most_logits: int
    ) -> dict[str, int]:
        """An estimate of the memory in training, in bytes, by what it is for.

        Weights, gradients and AdamW's two moments are fp32; bf16 adds a copy of the weights. A block keeps for the
        backward pass, of each token, the stream before each norm in fp32 (2 D numbers) and what its matrices read
        or attention made (both norms, queries, keys, values, attention's result: 6 D; both halves of the
        feed-forward: 2 F); of dropout the factors, in fp32 (2 D).

        Args:
            keeps_attention: attention keeps its (B, H, T, T) weights for the backward pass, in fp32, and beside
                them what dropout made of them; fused kernels make them again.
            most_logits: bytes of logits that the loss holds at once.
        """
        size, config = 2 if bf16 else 4, self.config
        tokens, drops = batch_size * self.context, config.dropout > 0
        streams = (8 + 8 * drops) * config.width
        block = streams + size * (6 * config.width + 2 * config.inner_width)
        if keeps_attention:
            copy = size if config.attention == "manual" else 4
            block += config.num_heads * self.context * (4 + 4 * drops + copy * (drops or bf16))
        return {
            "weights": 4 * self.parameters + (2 * self.parameters if bf16 else 0),
            "gradients": 4 * self.parameters,
            "optimizer": 8 * self.parameters,
            "activations": tokens * (config.num_layers * block + streams),
            "loss": min(most_logits, tokens * size * config.vocab_size),
        }

    def describe(self, memory: dict[str, int]) -> list[str]:
        """Parts, total and memory (of `training_bytes`), for a person."""
        config = self.config
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


def plan(config: GPTConfig, context: int | None = None) -> ModelPlan:
    """Counts on a model without weights, so that the count cannot drift from the code.

    Args:
        context: tokens of a training window; None: as many as the model has positions for.
    """
    with torch.device("meta"):
        model = GPTModel(config)
    parts = dict.fromkeys(_PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, marks in _PARTS.items() if any(mark in name for mark in marks))
        parts[part] += parameter.numel()
    return ModelPlan(config, parts, context or config.context_length)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
