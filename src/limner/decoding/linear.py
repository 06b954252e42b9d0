"""Matrices in the form in which this machine multiplies them fastest. All kernels are PyTorch's own.

A step reads every weight once and computes little with it: its time is the bytes of the weights over the memory's
bandwidth, if the kernel keeps up. docs/LOG.md has what each kernel gave.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.decoding.weights import Matrix, stacked

Linear = Callable[[Tensor], Tensor]
"""x (M, in) float -> (M, out), in the precision of the matrix."""


def pack(matrix: Matrix, dtype: torch.dtype, quantize: str | None) -> Linear:
    """The matrix, ready to be multiplied.

    Args:
        dtype: of the products. Weights that have it already are shared with the model, not copied.
        quantize: "int8": weights rounded to 8 bits, one scale an output row; None: kept.
    """
    if quantize == "int8":
        return _Int8(*stacked(matrix, torch.float32))
    if all(weight.dtype == dtype for weight in matrix.weights):
        return _Shared(matrix)
    return _Plain(*stacked(matrix, dtype))


class _Shared:
    """The model's own tensors, one product a part."""

    def __init__(self, matrix: Matrix) -> None:
        self.parts = list(zip(matrix.weights, matrix.biases, strict=True))
        self.dtype = matrix.weights[0].dtype

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        outputs = [F.linear(x, weight, bias) for weight, bias in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


class _Plain:
    """A copy in another precision."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, in) as int8 (N, in) and the scale (N,) of each row: symmetric, the largest weight becomes 127."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _has_fbgemm() -> bool:
    return "x86" in torch.backends.quantized.supported_engines


class _Int8:
    """Weights in 8 bits.

    On x86 processors the inputs are rounded to 8 bits too as they come in, each row with a scale of its own (so
    that no row depends on another), and FBGEMM multiplies the integers. Elsewhere the weights are widened and
    multiplied as floats, which saves memory, and time where a compiler fuses the two.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        rounded, self.scale = round_rows(weight)
        self.packed = None
        if weight.device.type == "cpu" and _has_fbgemm():
            # Without VNNI the kernel adds two 8-bit products in 16 bits: 7-bit inputs keep that from overflowing.
            self.levels, self.zero = (127, 128) if torch.cpu._is_vnni_supported() else (63, 64)
            zeros = torch.zeros(len(rounded), dtype=torch.int64)
            quantized = torch._make_per_channel_quantized_tensor(rounded, self.scale.double(), zeros, 0)
            with _engine("x86"):
                self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        else:
            self.rounded = rounded

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            y = F.linear(x, self.rounded.to(x.dtype)) * self.scale.to(x.dtype)
        else:
            x = x.float()
            scale = x.abs().amax(-1, keepdim=True).div_(self.levels).clamp_min_(1e-12)  # (M, 1)
            multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
            y = multiply(x / scale, 1.0, self.zero, self.packed).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)


class _engine:
    """The quantized engine for the length of a `with`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.name

    def __exit__(self, *_: object) -> None:
        torch.backends.quantized.engine = self.before
