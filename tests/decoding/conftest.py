"""Tiny random models whose choices are far from ties, so that equal mathematics gives equal tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB, EOS, PAD = 61, 2, 0


def sharpened(model: Any, factor: float = 6.0) -> Any:
    """Weights far larger than at birth: logits spread over many units instead of lying within 0.1."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny(family: str, *, eos: int | list[int] = EOS, seed: int = 0) -> Any:
    """A causal LM of two layers with vocabulary 61, in float32."""
    torch.manual_seed(seed)
    ids = {"eos_token_id": eos, "pad_token_id": PAD, "bos_token_id": 1}
    if family == "gpt2":
        config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=96, **ids)
        return sharpened(GPT2LMHeadModel(config))
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    }
    if family == "llama":
        return sharpened(LlamaForCausalLM(LlamaConfig(**sizes, **ids, tie_word_embeddings=True)))
    return sharpened(Qwen2ForCausalLM(Qwen2Config(**sizes, **ids)))


def left_padded(lengths: list[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random prompts of these lengths: ids (B, P) with padding on the left, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    P = max(lengths)
    ids = torch.randint(3, VOCAB, (len(lengths), P), generator=generator)
    mask = torch.arange(P)[None] >= P - torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, PAD), mask.long()


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    return {family: tiny(family) for family in ("llama", "qwen2", "gpt2")}


@pytest.fixture(scope="session")
def talkative() -> dict[str, Any]:
    """Models of which every fourth text or so ends at each step: the head's row of the end-of-text token leans
    towards the mean of the final hidden states."""
    made = {family: tiny(family, seed=3) for family in ("llama", "qwen2", "gpt2")}
    for model in made.values():
        seen: list[torch.Tensor] = []
        hook = model.lm_head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        with torch.no_grad():
            model(torch.randint(3, VOCAB, (8, 12), generator=torch.Generator().manual_seed(0)))
            hook.remove()
            mean = seen[0].flatten(0, 1).mean(0)
            head = model.lm_head.weight.clone()  # untied from the embedding, which stays
            model.lm_head.weight = torch.nn.Parameter(head)
            scores = seen[0].flatten(0, 1) @ head.T
            best = scores.max(1).values.median()
            head[EOS] += mean / mean.square().sum() * (best - (mean @ head[EOS]) - 0.3)
    return made


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return tiny


@pytest.fixture(scope="session")
def prompts() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return left_padded
