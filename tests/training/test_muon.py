"""Muon: its steps held against torch's, what it makes orthogonal against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch.optim import _muon

from limner.training import muon
from limner.training.muon import Muon, orthogonal


def nearest_orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u @ vh


def test_steps_are_those_of_torch_but_for_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum, decay and step length; both made orthogonal by the same decomposition."""
    monkeypatch.setattr(muon, "orthogonal", nearest_orthogonal)
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", lambda x, *_: nearest_orthogonal(x))
    torch.manual_seed(0)
    start = [torch.randn(16, 48), torch.randn(48, 16), torch.randn(16, 48), torch.randn(16, 16)]
    gradients = [[torch.randn_like(p) for p in start] for _ in range(8)]
    trained = []
    for make in (
        lambda groups: Muon(groups),
        lambda groups: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"),
    ):
        parameters = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = make([{"params": parameters, "lr": 3e-3, "weight_decay": 0.05}])
        for of_step in gradients:
            for parameter, gradient in zip(parameters, of_step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        trained.append(parameters)
    for ours, theirs, first in zip(*trained, start, strict=True):
        moved = (theirs - first).norm()
        assert (ours - theirs).norm() < 1e-4 * moved


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_what_it_makes_orthogonal(scale: float) -> None:
    """Singular values within the band that the quintics promise; singular vectors are the matrix's own."""
    torch.manual_seed(0)
    for shape in ((3, 12, 40), (3, 40, 12), (2, 16, 16)):
        made = orthogonal(scale * torch.randn(shape))
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.25
    matrix = torch.randn(1, 12, 40)
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    core = u.T @ orthogonal(scale * matrix)[0] @ v.T  # diagonal, where the vectors are the same
    assert (core - core.diag().diag()).abs().max() < 1e-4
    assert not orthogonal(torch.zeros(1, 12, 40)).any()


def test_four_rounds_come_as_near_as_the_five_of_torch() -> None:
    """Over spectra like those of a run: few directions carry most of the momentum."""
    torch.manual_seed(0)
    bases = nearest_orthogonal(torch.randn(2, 96, 96))
    for decades in (1.0, 2.0, 3.0, 4.0):
        values = torch.logspace(0, -decades, 96)
        matrix = bases[0] @ values.diag() @ bases[1]
        x = matrix / matrix.norm()  # torch's rounds, without its rounding
        for _ in range(_muon.DEFAULT_NS_STEPS):
            gram = x @ x.mT
            x = _muon.DEFAULT_A * x + (_muon.DEFAULT_B * gram + _muon.DEFAULT_C * gram @ gram) @ x
        ours, theirs = (
            (torch.linalg.svdvals(made) - 1).square().mean().sqrt() for made in (orthogonal(matrix[None])[0], x)
        )
        assert ours < 1.05 * theirs
