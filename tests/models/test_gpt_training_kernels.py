"""What training on a CPU takes instead of torch's own: blocked attention, cheap dropout, compiled blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from limner.data.packing import block_mask
from limner.device import compiles
from limner.models.blocked_attention import blocked_attention
from limner.models.dropout import Dropout, kept, random_bytes
from limner.models.gpt import GPTConfig, GPTModel

pytestmark = pytest.mark.skipif(not compiles(), reason="torch.compile needs a C++ compiler and Python's headers")


def heads(length: int = 300, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(3, B, H, T, K): queries, keys, values; T is no multiple of a block."""
    torch.manual_seed(0)
    return torch.randn(3, 2, 3, length, 16, dtype=dtype)


def run(attention, parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    parts = parts.clone().requires_grad_()
    result = attention(*parts)
    slopes = torch.linspace(-1, 1, result.numel()).view_as(result).to(result.dtype)
    result.backward(slopes)
    return result.detach(), parts.grad


@pytest.mark.parametrize("length", [1, 5, 128, 300])
def test_blocked_attention_is_attention(length):
    ours = run(lambda q, k, v: blocked_attention(q, k, v, 0.0), heads(length))
    theirs = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), heads(length))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_blocked_attention_of_packed_captions_with_shared_keys():
    """Three heads share a key; captions see the prefix and themselves."""
    documents = torch.tensor([[0] * 200 + [1] * 40 + [2] * 60, [0] * 200 + [1] * 70 + [2] * 20 + [3] * 10])
    mask = block_mask(documents, torch.float32)

    def shared(q, k, v):
        return blocked_attention(q, k[:, :1], v[:, :1], 0.0, mask)

    def expected(q, k, v):
        allowed = block_mask(documents)
        return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], attn_mask=allowed, enable_gqa=True)

    for a, b in zip(run(shared, heads()), run(expected, heads()), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)

    def dropped(share: bool):
        def attend(q, k, v):
            torch.manual_seed(1)
            k, v = (part[:, :1] if share else part[:, :1].expand_as(q) for part in (k, v))
            return blocked_attention(q, k, v, 0.25, mask)

        return run(attend, heads())

    for a, b in zip(dropped(True), dropped(False), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_blocked_attention_in_bf16_follows_fp32():
    ours = run(lambda q, k, v: blocked_attention(q, k, v, 0.0), heads(dtype=torch.bfloat16))
    theirs = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), heads())
    for a, b in zip(ours, theirs, strict=True):
        assert ((a.float() - b).norm() / b.norm()).item() < 0.01


def test_dropout_of_weights_and_its_gradient():
    """With the same seed the drops are the same, so finite differences see the gradient of one fixed function."""
    parts = heads(40).double()

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return blocked_attention(*parts, 0.25)

    assert torch.equal(attend(*parts), attend(*parts))
    assert not torch.allclose(attend(*parts), blocked_attention(*parts, 0.0))
    loss = lambda x: (attend(*x) * torch.linspace(-1, 1, 2 * 3 * 40 * 16).view(2, 3, 40, 16)).sum()  # noqa: E731
    parts.requires_grad_()
    loss(parts).backward()
    direction = torch.randn_like(parts)
    with torch.no_grad():
        numeric = (loss(parts + 1e-2 * direction) - loss(parts - 1e-2 * direction)) / 2e-2
    assert (parts.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=2e-2)
    average = torch.stack([blocked_attention(*parts.detach(), 0.25) for _ in range(400)]).mean(0)
    assert ((average - blocked_attention(*parts.detach(), 0.0)).norm() / average.norm()).item() < 0.1


@pytest.mark.parametrize(("p", "dropped"), [(0.1, 26), (0.004, 1), (0.996, 255), (0.999, 255)])
def test_dropped_share_and_mean(p, dropped):
    torch.manual_seed(0)
    factors = kept(random_bytes((1000, 1001)), p)
    assert sorted(factors.unique().tolist()) == pytest.approx([0.0, 256 / (256 - dropped)])
    assert (factors == 0).float().mean().item() == pytest.approx(dropped / 256, abs=1e-3)
    assert factors.mean().item() == pytest.approx(1.0, abs=2e-3 if p < 0.9 else 0.05)


def test_dropout_is_seeded_and_off_in_evaluation():
    drop, x = Dropout(0.5), torch.randn(64, 64)
    torch.manual_seed(5)
    first = drop(x)
    torch.manual_seed(5)
    assert torch.equal(drop(x), first) and not torch.equal(drop(x), first)
    assert torch.equal(first[first != 0], x[first != 0] * 2)
    assert torch.equal(drop.eval()(x), x)


def test_operators_keep_torch_s_contract():
    q, k, v = heads(20)
    torch.library.opcheck(torch.ops.limner.blocked_attention.default, (q, k, v, 0.0, None))
    k, v, mask = k[:, :1].contiguous(), v[:, :1].contiguous(), torch.ones(2, 1, 20, 20).tril().log()
    torch.library.opcheck(torch.ops.limner.blocked_attention.default, (q, k, v, 0.0, mask))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiled_training_equals_eager_training(dropout):
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=64, context_length=32, width=32, num_heads=2, num_layers=2, dropout=dropout)
    model, ids = GPTModel(config), torch.randint(64, (2, 32))
    other = GPTModel(replace(config))
    other.load_state_dict(model.state_dict())
    other.compile_training(2, 32)
    results = []
    for each in (model, other):
        torch.manual_seed(1)
        loss = F.cross_entropy(each(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        results.append((loss.item(), each.blocks[0].attention.qkv.weight.grad))
    if dropout:  # drawn in another order: the same only on average
        assert results[1][0] == pytest.approx(results[0][0], rel=0.02)
    else:
        assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
        assert_close(results[1][1], results[0][1], atol=1e-6, rtol=1e-4)
    assert torch.equal(other.eval()(ids), model.eval()(ids))
