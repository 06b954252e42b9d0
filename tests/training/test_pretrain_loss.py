"""The chunked loss against the plain one: value, gradients, and what it must never hold."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from limner.device import compiles
from limner.training import chunked_loss
from limner.training.chunked_loss import summed_cross_entropy


def example(rows: int = 37, width: int = 16, vocabulary: int = 101, seed: int = 0):
    torch.manual_seed(seed)
    hidden = torch.randn(rows, width)
    weight = torch.randn(vocabulary, width)
    targets = torch.randint(vocabulary, (rows,))
    targets[::5] = -100
    return hidden, weight, targets


def gradients(loss_function, hidden, weight, targets, **settings):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = loss_function(hidden, weight, targets, **settings)
    (loss / 7).backward()
    return loss.detach(), hidden.grad, weight.grad


def plain(hidden, weight, targets):
    return torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("columns", [16, 101, 4096])
@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 512])
def test_value_and_gradients_equal_the_plain_loss(chunk_rows, columns, monkeypatch):
    monkeypatch.setattr(chunked_loss, "COLUMNS", columns)
    data = example()
    ours, theirs = gradients(summed_cross_entropy, *data, chunk_rows=chunk_rows), gradients(plain, *data)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert_close(summed_cross_entropy(*data, chunk_rows=chunk_rows), theirs[0], atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_changes_none():
    hidden, weight, targets = example()
    expected = gradients(plain, hidden, weight, targets)
    learning = hidden.clone().requires_grad_()
    (summed_cross_entropy(learning, weight, targets, chunk_rows=8) / 7).backward()
    assert_close(learning.grad, expected[1], atol=1e-5, rtol=1e-5)
    assert weight.grad is None


def test_tokens_that_cannot_come_may_fill_a_block(monkeypatch):
    monkeypatch.setattr(chunked_loss, "COLUMNS", 8)
    hidden, weight, targets = example(12)
    hidden[:, 0], weight[:8, 0], targets[:] = 1.0, -torch.inf, 50
    weight[8:, 0] = 0.0
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert_close(summed_cross_entropy(hidden, weight, targets), expected)


def test_no_rows_have_no_loss_and_no_gradient():
    hidden, weight, targets = example()
    for found in gradients(summed_cross_entropy, hidden[:0], weight, targets[:0]):
        assert not found.count_nonzero()


@pytest.mark.parametrize("columns", [7, 4096])
def test_batched_shapes_and_large_logits(columns, monkeypatch):
    monkeypatch.setattr(chunked_loss, "COLUMNS", columns)
    hidden, weight, targets = example(24)
    loss = summed_cross_entropy(hidden.view(2, 12, -1) * 100, weight, targets.view(2, 12))
    assert_close(loss, plain(hidden * 100, weight, targets))
    ours = gradients(summed_cross_entropy, hidden * 10, weight, targets)
    for a, b in zip(ours, gradients(plain, hidden * 10, weight, targets), strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("columns", [512, 4096])
def test_bf16_gradients_follow_fp32(columns, monkeypatch):
    monkeypatch.setattr(chunked_loss, "COLUMNS", columns)
    hidden, weight, targets = example(512, 64, 3001)
    data = (hidden, weight / 4, targets)  # logits of a deviation of 2, as a trained model has
    exact = gradients(plain, *data)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradients(summed_cross_entropy, *data, chunk_rows=128)
    assert rough[2].dtype == torch.float32
    for a, b in zip(rough, exact, strict=True):
        # A wrong term, such as the target's counted twice, is an error of its whole size.
        assert ((a.float() - b).norm() / b.norm()).item() < 0.006


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch):
    hidden, weight, targets = example(256, 8, 1000)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    monkeypatch.setattr(chunked_loss, "COLUMNS", 128)
    with Watch():
        gradients(summed_cross_entropy, hidden, weight, targets, chunk_rows=32)
    assert largest == 32 * 8 * 192  # a chunk's exponentials: eight blocks, padded


@pytest.mark.slow
@pytest.mark.skipif(not compiles(), reason="torch.compile needs a C++ compiler and Python's headers")
def test_the_compiled_kernel_gives_the_same(monkeypatch):
    monkeypatch.setattr(chunked_loss, "COLUMNS", 400)  # a last block of another width
    data = example(64, 16, 999)
    for a, b in zip(
        gradients(summed_cross_entropy, *data, chunk_rows=32, compiled=True),
        gradients(summed_cross_entropy, *data, chunk_rows=32),
        strict=True,
    ):
        assert_close(a, b, atol=1e-5, rtol=1e-5)
