"""Muon in fp32, held against torch's, which rounds to bf16, and against the singular value decomposition."""

from __future__ import annotations

import torch

from limner.training.muon import Muon, orthogonal


def test_steps_are_those_of_torch_but_for_its_rounding() -> None:
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
        assert (ours - theirs).norm() < 0.01 * moved  # bf16 keeps 8 bits of each orthogonal step


def test_what_it_makes_orthogonal() -> None:
    """Singular values within the band that the quintic promises; singular vectors are the matrix's own."""
    torch.manual_seed(0)
    for shape in ((3, 12, 40), (3, 40, 12), (2, 16, 16)):
        made = orthogonal(torch.randn(shape))
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.25
    matrix = torch.randn(1, 12, 40)
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    core = u.T @ orthogonal(matrix)[0] @ v.T  # diagonal, where the vectors are the same
    assert (core - core.diag().diag()).abs().max() < 1e-4
