"""Matrices in the form in which this machine multiplies them fastest. All kernels come with PyTorch.

A step reads every weight once and computes little with it: its time is the bytes of the weights over the memory's
bandwidth, if the kernel keeps up. docs/LOG.md has what each kernel gave.

A module holds the same matrix of all layers: TorchScript, which is to call it, needs milliseconds for each module
that it reads. Its forward takes x (..., in) of any float type and the number n of the layer, and gives (..., out)
in the precision of the matrix.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.decoding.weights import Matrix, stacked
from limner.device import has_fbgemm, multiplies, multiplies_bf16, multiplies_int8

Kernel = Callable[[Iterable[Matrix]], nn.Module]


def kernel(matrices: list[Matrix], dtype: torch.dtype, quantize: str | None) -> Kernel:
    """Which module multiplies these matrices.

    Args:
        dtype: of the weights. Weights that have it already are shared with the model, not copied, where the machine
            multiplies it as it is.
        quantize: "int8": weights rounded to 8 bits, one scale an output row; None: kept.
    """
    weights = [weight for matrix in matrices for weight in matrix.weights]
    device = weights[0].device
    on_cpu = device.type == "cpu"
    if quantize == "int8":
        if on_cpu and multiplies_int8():
            return _Int8
        return _Int8In16 if on_cpu and has_fbgemm() else _Widened
    if not multiplies(dtype, device) and has_fbgemm():
        return _Half
    if all(weight.dtype == dtype for weight in weights):
        return _Shared
    return partial(_Plain, dtype=dtype, packed=on_cpu and dtype == torch.bfloat16 and multiplies_bf16())


class _Shared(nn.Module):
    """The model's own tensors, one product a part."""

    weights: list[list[Tensor]]
    biases: list[list[Tensor | None]]

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        super().__init__()
        self.weights, self.biases = [], []
        for matrix in matrices:
            self.weights.append(list(matrix.weights))
            self.biases.append(list(matrix.biases))
        weight = self.weights[0][0]
        self.swaps = weight.device.type == "cpu" and weight.dtype == torch.float32

    def forward(self, x: Tensor, n: int) -> Tensor:
        x = x.to(self.weights[n][0].dtype)
        swaps = self.swaps and 1 < x.numel() // x.shape[-1] <= 8
        outputs = []
        for weight, bias in zip(self.weights[n], self.biases[n]):  # noqa: B905  TorchScript knows no strict
            outputs.append(_swapped(x, weight, bias) if swaps else F.linear(x, weight, bias))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _swapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same product as W x^T: MKL multiplies two to eight rows in two thirds of the time that way round."""
    y = torch.mm(weight, x.flatten(0, -2).t()).t()  # (rows, out)
    return (y if bias is None else y + bias).reshape(x.shape[:-1] + y.shape[-1:]).contiguous()


class _Plain(nn.Module):
    """A copy in another precision; ``packed``: laid out by oneDNN, for CPUs that compute bf16 in hardware.

    Against a plain product of one row that took 0.7 of the time, of 16 rows 0.6 (docs/LOG.md).
    """

    biases: list[Tensor | None]

    def __init__(self, matrices: Iterable[Matrix], dtype: torch.dtype, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.weights, self.biases = [], []
        for matrix in matrices:
            weight, bias = stacked(matrix, dtype)
            laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, None) if packed else weight.contiguous()
            self.weights.append(laid_out)
            self.biases.append(bias)

    def forward(self, x: Tensor, n: int) -> Tensor:
        weight, bias = self.weights[n], self.biases[n]
        x = x.to(weight.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return F.linear(x, weight, bias)


class _Half(nn.Module):
    """For CPUs that multiply no 16-bit numbers: FBGEMM keeps weights in fp16 and widens them as it reads them.

    Inputs, sums and outputs are fp32. A bf16 weight fits into fp16 exactly unless it is tiny (below 6e-5, where
    what is lost is below 3e-8) or above 65,504. The older ``fbgemm_linear_fp16_weight`` has one thread.
    """

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        super().__init__()
        pack = torch.ops.quantized.linear_prepack_fp16
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch means to retire such weights
            self.packed = [pack(*stacked(matrix, torch.float32)) for matrix in matrices]

    def forward(self, x: Tensor, n: int) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self.packed[n])


class _Int8(nn.Module):
    """Weights in 8 bits with a scale for each output, for CPUs that multiply 8-bit integers.

    The inputs are rounded to 8 bits too as they come in, each row with a scale of its own (so that no row depends
    on another), and oneDNN multiplies integers.
    """

    biases: list[Tensor | None]

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        super().__init__()
        self.weights, self.scales, self.biases = [], [], []
        for rounded, scale, bias in _rounded(matrices):
            self.weights.append(torch.ops.onednn.qlinear_prepack(rounded, None))
            self.scales.append(scale / 127)
            self.biases.append(bias)
        self.zeros = torch.zeros(len(scale), dtype=torch.int64)
        self.middle = torch.tensor(128.5)

    def forward(self, x: Tensor, n: int) -> Tensor:
        x, weight, scale, bias = x.float(), self.weights[n], self.scales[n], self.biases[n]
        largest = torch.amax(x.abs(), -1, True)  # (..., 1)
        # -127 .. 127 become 1 .. 255 (oneDNN has slow paths for signed inputs); the cast cuts, the half rounds. A
        # row of zeros becomes NaN here, then some integer; times its largest value it is 0 again.
        rounded = torch.add(self.middle, x / largest, alpha=127).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, weight, scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        ).mul_(largest)
        return y if bias is None else y.add_(bias)


class _Int8In16(nn.Module):
    """The same for other x86 CPUs (AVX2), by FBGEMM.

    Their instruction adds two products of 8 bits in 16: inputs get 7 bits, so that it cannot overflow.
    """

    biases: list[Tensor | None]

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        super().__init__()
        self.packed, self.biases = [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to retire such tensors
            for rounded, scale, bias in _rounded(matrices):
                zeros = torch.zeros(len(scale), dtype=torch.int64)
                tensor = torch._make_per_channel_quantized_tensor(rounded, scale.double(), zeros, 0)
                self.packed.append(torch.ops.quantized.linear_prepack(tensor, None))
                self.biases.append(bias)

    def forward(self, x: Tensor, n: int) -> Tensor:
        x, packed, bias = x.float(), self.packed[n], self.biases[n]
        largest = torch.amax(x.abs(), -1, True)  # (..., 1)
        # -1 .. 1 become 1 .. 127 as they are read; zeros as in `_Int8`.
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x / largest, 1 / 63, 64, packed)
        y = y.mul_(largest)
        return y if bias is None else y.add_(bias)


class _Widened(nn.Module):
    """Weights in 8 bits, widened as they are read: that saves memory, and time where a compiler fuses the two."""

    biases: list[Tensor | None]

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        super().__init__()
        self.weights, self.scales, self.biases = [], [], []
        for rounded, scale, bias in _rounded(matrices):
            self.weights.append(rounded)
            self.scales.append(scale)
            self.biases.append(bias)

    def forward(self, x: Tensor, n: int) -> Tensor:
        bias = self.biases[n]
        y = F.linear(x, self.weights[n].to(x.dtype)) * self.scales[n].to(x.dtype)
        return y if bias is None else y + bias.to(x.dtype)


def _rounded(matrices: Iterable[Matrix]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Weight, scales and bias of each matrix."""
    for matrix in matrices:
        weight, bias = stacked(matrix, torch.float32)
        yield *round_rows(weight), bias


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (N, in) as int8 (N, in) and the scale (N,) of each row: symmetric, the largest weight becomes 127."""
    scale = torch.maximum(weight.amax(1), -weight.amin(1)).clamp_min(1e-12) / 127  # abs() would copy it
    return (weight / scale[:, None]).round_().to(torch.int8), scale
