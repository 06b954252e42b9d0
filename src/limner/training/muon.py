"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum, made orthogonal.

The same steps as ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, but computed in fp32, for all
matrices of a shape at once, and with better polynomials: four rounds come as near to orthogonal as its five.
torch's computes in bf16 always, which a CPU without bf16 units emulates at a hundredth of its speed: 1.4 s a step
of the demo, six times the forward and backward pass (docs/LOG.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

NEWTON_SCHULZ = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)
"""Coefficients of each round's quintic. Of all four in a row these bring the singular values of [0.003, 1] nearest
to 1: each is the best quintic for the interval that the one before it leaves (Polar Express, Amsel et al. 2025,
arXiv:2505.16932)."""


class Muon(torch.optim.Optimizer):
    """For hidden matrices only; every parameter has two dimensions.

    Args:
        params: parameter groups, each with ``lr`` and ``weight_decay`` (decoupled, as in AdamW).
        momentum: of Nesterov's kind.
    """

    def __init__(self, params: Iterable[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": 1e-3, "weight_decay": 0.1, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            of_shape: defaultdict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape[parameter.shape].append(parameter)
            for shape, parameters in of_shape.items():
                gradients: list[Any] = [p.grad for p in parameters]
                for parameter in parameters:
                    if "momentum_buffer" not in self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffers = [self.state[p]["momentum_buffer"] for p in parameters]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"]))  # (K, R, C)
                # An orthogonal (R, C) matrix has a root mean square of 1 / sqrt(max(R, C)); AdamW's steps have
                # about 0.2 (Liu et al. 2025, arXiv:2502.16982, section 2.2), so one learning rate serves both.
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(orthogonal(nesterov)), alpha=-rate)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(K, R, C) -> (K, R, C): near the closest matrices with orthonormal rows (or columns, if those are fewer).

    Newton-Schulz: x <- a x + b (x x') x + c (x x')^2 x maps every singular value s to a s + b s^3 + c s^5. Four
    rounds send [0.003, 1] into 0.8 to 1.2, and smaller ones to at most 296 times themselves. The smaller side is
    multiplied: fewer operations.

    At first no singular value may be above 1. The root of the Gram matrix's norm, the fourth root of the sum of
    s^4, is as sure a bound as the norm, and less far above the largest; and the Gram matrix is needed anyway.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)  # else the Gram matrix might underflow
    gram = x @ x.mT  # (K, R, R)
    bound = gram.norm(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-7)
    x, gram = x / bound, gram / bound.square()
    for number, (a, b, c) in enumerate(NEWTON_SCHULZ):
        if number:
            gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        x = factor @ x
    return x.mT if tall else x
