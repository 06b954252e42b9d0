"""A Llama that is trained whole, by Limner's stack: held against transformers, states and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor

from limner.data.packing import block_mask, pack_captions
from limner.models.adapted import NotAdapted
from limner.models.trained import TrainedStack

WIDTH, PROMPT = 32, 5
SIZES = {"vocab_size": 61, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3}
CAPTIONS = [[[5, 9, 3, 2, 1], [7, 1], [11, 12, 13, 14, 15, 16, 17, 1]], [[21, 22, 1]], [[1], [31, 32, 33, 34, 1]]]
PACKED = pack_captions(CAPTIONS, PROMPT)


def llama() -> hf.LlamaForCausalLM:
    """A decoder whose norms say something."""
    torch.manual_seed(0)
    lm = hf.LlamaForCausalLM(hf.LlamaConfig(num_attention_heads=4, **SIZES))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return lm.train()


def states_and_gradients(lm: hf.LlamaForCausalLM, run: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    lm.zero_grad()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*PACKED.document_ids.shape, WIDTH, generator=generator).requires_grad_()
    states = run(x, block_mask(PACKED.document_ids, torch.float32))  # (L, D)
    (states * torch.randn(states.shape, generator=generator)).sum().backward()
    named = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    return named | {"states": states.detach(), "embeds": x.grad}


def test_states_and_gradients_are_those_of_transformers() -> None:
    lm = llama()

    def stock(x: Tensor, mask: Tensor) -> Tensor:
        hidden = lm.model(inputs_embeds=x, attention_mask=mask, position_ids=PACKED.position_ids, use_cache=False)[
            0
        ]
        return hidden.flatten(0, 1)[PACKED.label_positions]

    stack = TrainedStack(lm)
    theirs = states_and_gradients(lm, stock)
    ours = states_and_gradients(lm, lambda x, mask: stack(x, mask, PACKED.position_ids, PACKED.label_positions))
    assert ours.keys() == theirs.keys() and len(theirs) == 3 * 9 + 1 + 2
    for name, expected in theirs.items():
        assert (ours[name] - expected).norm() < 1e-5 * expected.norm(), name


def test_what_it_does_not_compute_is_refused() -> None:
    for other in ({"num_key_value_heads": 2}, {"attention_bias": True}, {"hidden_act": "gelu"}):
        with pytest.raises(NotAdapted):
            TrainedStack(hf.LlamaForCausalLM(hf.LlamaConfig(num_attention_heads=4, **SIZES, **other)))
    with pytest.raises(NotAdapted):
        TrainedStack(hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4)))
