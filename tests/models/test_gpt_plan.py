"""What a GPT is said to cost, against what torch keeps."""

from __future__ import annotations

import pytest
import torch

from limner.models.gpt import GPTConfig, GPTModel
from limner.models.gpt_plan import plan


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("attention", "dropout"), [("sdpa", 0.0), ("sdpa", 0.1), ("manual", 0.0), ("manual", 0.1)])
def test_activations_are_what_torch_saves_for_the_backward_pass(attention, dropout, bf16):
    config = GPTConfig(
        vocab_size=50, context_length=256, width=64, num_heads=4, num_layers=3, dropout=dropout, attention=attention
    )
    model = GPTModel(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.hidden(torch.randint(50, (2, 256)))
    measured = sum(storage.nbytes() for place, storage in saved.items() if place not in weights)
    kept = attention == "manual" or dropout > 0
    assert plan(config).training_bytes(2, bf16, kept, 0)["activations"] == pytest.approx(measured, rel=0.15)
