"""Matrices in the form in which this machine multiplies them fastest. All kernels come with PyTorch.

A step reads every weight once and computes little with it: its time is the bytes of the weights over the memory's
bandwidth, if the kernel keeps up. docs/LOG.md has what each kernel gave.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.decoding.weights import Matrix, stacked
from limner.device import has_fbgemm, multiplies, multiplies_bf16, multiplies_int8

Linear = Callable[[Tensor], Tensor]
"""x (..., in) of any float type -> (..., out), in the precision of the matrix."""


def pack(matrix: Matrix, dtype: torch.dtype, quantize: str | None) -> Linear:
    """The matrix, ready to be multiplied.

    Args:
        dtype: of the weights. Weights that have it already are shared with the model, not copied, where the machine
            multiplies it as it is.
        quantize: "int8": weights rounded to 8 bits, one scale an output row; None: kept.
    """
    on_cpu = matrix.weights[0].device.type == "cpu"
    if quantize == "int8":
        weight, bias = stacked(matrix, torch.float32)
        if on_cpu and multiplies_int8():
            return _Int8(weight, bias)
        return _Int8In16(weight, bias) if on_cpu and has_fbgemm() else _Widened(weight, bias)
    if not multiplies(dtype, matrix.weights[0].device) and has_fbgemm():
        return _Half(*stacked(matrix, torch.float32))
    if all(weight.dtype == dtype for weight in matrix.weights):
        return _Shared(matrix)
    return _Plain(*stacked(matrix, dtype))


class _Shared:
    """The model's own tensors, one product a part."""

    def __init__(self, matrix: Matrix) -> None:
        self.parts = list(zip(matrix.weights, matrix.biases, strict=True))
        self.dtype = matrix.weights[0].dtype
        self.swaps = matrix.weights[0].device.type == "cpu" and self.dtype == torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if self.swaps and 1 < x.numel() // x.shape[-1] <= 8:
            outputs = [_swapped(x, weight, bias) for weight, bias in self.parts]
        else:
            outputs = [F.linear(x, weight, bias) for weight, bias in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _swapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same product as W x^T: MKL multiplies two to eight rows in two thirds of the time that way round."""
    y = torch.mm(weight, x.flatten(0, -2).t()).t()  # (rows, out)
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], -1).contiguous()


class _Plain:
    """A copy in another precision, laid out by oneDNN where it computes bf16 in hardware.

    Against a plain product of one row that took 0.7 of the time, of 16 rows 0.6 (docs/LOG.md).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.dtype = weight.dtype
        self.packed = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and multiplies_bf16()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class _Half:
    """For CPUs that multiply no 16-bit numbers: FBGEMM keeps weights in fp16 and widens them as it reads them.

    Inputs, sums and outputs are fp32. A bf16 weight fits into fp16 exactly unless it is tiny (below 6e-5, where
    what is lost is below 3e-8) or above 65,504.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch means to retire scripts
            packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
            self.product = torch.jit.script(_HalfProduct(packed)).forward

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x)


class _HalfProduct(nn.Module):
    """Scripted: handing FBGEMM's weights over from Python takes 15 us a call, as long as many a product.

    The older ``fbgemm_linear_fp16_weight`` needs no script, but has one thread.
    """

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class _Int8:
    """Weights in 8 bits with a scale for each output, for CPUs that multiply 8-bit integers.

    The inputs are rounded to 8 bits too as they come in, each row with a scale of its own (so that no row depends
    on another), and oneDNN multiplies integers.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        rounded, scale = round_rows(weight)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(rounded), dtype=torch.int64)
        self.middle = torch.tensor(128.5)
        self.scale = scale / 127

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            x = x.float()
        largest = torch.amax(x.abs(), -1, True)  # (..., 1)
        # -127 .. 127 become 1 .. 255 (oneDNN has slow paths for signed inputs); the cast cuts, the half rounds. A
        # row of zeros becomes NaN here, then some integer; times its largest value it is 0 again.
        rounded = torch.add(self.middle, x / largest, alpha=127).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        ).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)


class _Int8In16:
    """The same for other x86 CPUs (AVX2), by FBGEMM.

    Their instruction adds two products of 8 bits in 16: inputs get 7 bits, so that it cannot overflow.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        rounded, scale = round_rows(weight)
        zeros = torch.zeros(len(rounded), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to retire such tensors, and scripts
            tensor = torch._make_per_channel_quantized_tensor(rounded, scale.double(), zeros, 0)
            packed = torch.ops.quantized.linear_prepack(tensor, None)
            self.product = torch.jit.script(_ProductIn16(packed)).forward

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            x = x.float()
        y = self.product(x)
        return y if self.bias is None else y.add_(self.bias)


class _ProductIn16(nn.Module):
    """Scripted, as `_HalfProduct` is."""

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        largest = torch.amax(x.abs(), -1, True)  # (..., 1)
        # -1 .. 1 become 1 .. 127 as they are read; zeros as in `_Int8`.
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x / largest, 1 / 63, 64, self.packed)
        return y.mul_(largest)


class _Widened:
    """Weights in 8 bits, widened as they are read: that saves memory, and time where a compiler fuses the two."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.weight, self.scale = round_rows(weight)

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, in) as int8 (N, in) and the scale (N,) of each row: symmetric, the largest weight becomes 127."""
    scale = torch.maximum(weight.amax(1), -weight.amin(1)).clamp_min(1e-12) / 127  # abs() would copy it
    return (weight / scale[:, None]).round_().to(torch.int8), scale
