"""Dropout whose random numbers cost next to nothing on a CPU.

A random number for each value is the dear part of dropout there: torch's own takes 5 ns a value on one core,
compiled code 7, where everything else that happens to the value takes 2. One random byte a value is enough to drop
one in ten, and eight of them come from one 64-bit draw: 0.4 ns each. The share that is dropped is therefore a
multiple of 1/256 (26/256 = 0.1016 for 0.1; at least one and at most 255 of them), and what is kept is scaled by
exactly its inverse, so that the mean stays what it was.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_bytes(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Uniform bytes of this shape, on the CPU; from torch's global generator unless another is given."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.uint8)[:count].view(shape)


def kept(noise: Tensor, p: float) -> Tensor:
    """fp32: 0 where a byte is among the lowest round(256 p) (1 to 255 of them), elsewhere what makes the mean 1.

    Written without a comparison, which compiled code does byte by byte.
    """
    dropped = min(max(1, round(256 * p)), 255)
    return (noise.float() - (dropped - 1)).clamp(0, 1) * (256 / (256 - dropped))


@torch.library.custom_op("limner::random_bytes_like", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def random_bytes_like(x: Tensor) -> Tensor:
    """Opaque to the compiler, which would draw in its own, slow way."""
    return random_bytes(tuple(x.shape))


@random_bytes_like.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.uint8, device=x.device)


def dropout(x: Tensor, p: float) -> Tensor:
    """Sets a share ``p`` of the values to zero and scales the others up; from torch's global generator."""
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return (x * kept(random_bytes_like(x.detach()), p)).to(x.dtype)


class Dropout(nn.Module):
    """Sets a share ``p`` of the values to zero in training, and scales the others up (Srivastava et al., 2014).

    Why: no unit can count on another one, so what is learned is spread out; a small corpus needs that, a large one
    does not.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return dropout(x, self.p) if self.training else x
