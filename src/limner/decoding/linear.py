"""Matrices in the form in which this machine multiplies them fastest. All kernels come with PyTorch.

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
"""x (..., in) of any float type -> (..., out), in the precision of the matrix."""


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
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        outputs = [F.linear(x, weight, bias) for weight, bias in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


class _Plain:
    """A copy in another precision, laid out by oneDNN where it computes bf16 in hardware.

    Against a plain product of one row that took 0.7 of the time, of 16 rows 0.6 (docs/LOG.md).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.dtype = weight.dtype
        self.packed = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and _has_bf16()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class _Int8:
    """Weights in 8 bits, with a scale for each output.

    Where the processor multiplies 8-bit integers, the inputs are rounded to 8 bits too as they come in, each row
    with a scale of its own (so that no row depends on another), and oneDNN multiplies integers. Elsewhere weights
    are widened as they are read: that saves memory, and time where a compiler fuses the two.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        rounded, self.scale = round_rows(weight)
        self.packed = weight.device.type == "cpu" and _has_int8()
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None) if self.packed else rounded
        self.zeros = torch.zeros(len(rounded), dtype=torch.int64, device=weight.device)
        self.middle = torch.tensor(128.5, device=weight.device)
        self.input_scale = self.scale / 127

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
            return y if self.bias is None else y + self.bias.to(x.dtype)
        if x.dtype != torch.float32:
            x = x.float()
        largest = torch.amax(x.abs(), -1, True)  # (..., 1)
        # -127 .. 127 become 1 .. 255 (oneDNN has slow paths for signed inputs); the cast cuts, the half rounds. A
        # row of zeros becomes NaN here, then some integer; times its largest value it is 0 again.
        rounded = torch.add(self.middle, x / largest, alpha=127).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,
            128,
            self.weight,
            self.input_scale,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        ).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, in) as int8 (N, in) and the scale (N,) of each row: symmetric, the largest weight becomes 127."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_int8() -> bool:
    # Without VNNI, oneDNN's 8-bit kernels add in 16 bits, which can overflow.
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()
