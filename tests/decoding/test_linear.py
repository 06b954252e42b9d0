"""Packed matrices against the plain product in fp64, on every kernel that this machine has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from limner import device
from limner.decoding import linear
from limner.decoding.weights import Matrix

Product = Callable[[torch.Tensor], torch.Tensor]

OUT, IN = 96, 80
KERNELS: dict[str, tuple[Callable[[], bool], float]] = {
    # class: (whether this machine has it, relative error)
    "_Half": (device.has_fbgemm, 4e-4),
    "_Int8": (device.multiplies_int8, 0.015),
    "_Int8In16": (device.has_fbgemm, 0.025),
    "_Widened": (lambda: True, 0.012),
}


def product(kernel: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """The second of two matrices, as scripts call it."""
    both = kernel([Matrix([torch.zeros(OUT, IN)], [None]), Matrix([weight], [bias])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(both)
    return lambda x: script(x, 1)


def matrix(bias: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator) * torch.logspace(-2, 1, OUT)[:, None]  # rows differ in size
    return weight, torch.randn(OUT, generator=generator) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_multiplies(name: str, bias: bool) -> None:
    has, bound = KERNELS[name]
    if not has():
        pytest.skip("this processor has no such instruction")
    weight, offset = matrix(bias)
    packed = product(getattr(linear, name), weight, offset)
    x = torch.randn(7, 3, IN, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 7)[:, None, None]
    found = packed(x).double()
    if offset is not None:
        found -= offset.double()
    # What a product of unrelated vectors measures, so that every row and every output counts alike.
    size = x.double().norm(dim=-1, keepdim=True) * weight.double().norm(dim=1) / IN**0.5
    errors = (found - x.double() @ weight.double().T) / size  # (7, 3, OUT)
    assert 0 < float(errors.square().mean().sqrt()) < bound


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_warns_of_nothing(name: str) -> None:
    """torch means to retire scripts and quantized tensors, which is nothing that a user can mend."""
    if not KERNELS[name][0]():
        pytest.skip("this processor has no such instruction")
    packed = product(getattr(linear, name), *matrix())
    for _ in range(3):  # scripts are optimised in their second call
        packed(torch.ones(2, IN))


@pytest.mark.parametrize("name", KERNELS)
def test_rows_do_not_see_each_other(name: str) -> None:
    """Bit for bit where integers are added; and a row of zeros is the bias."""
    if not KERNELS[name][0]():
        pytest.skip("this processor has no such instruction")
    weight, offset = matrix()
    packed = product(getattr(linear, name), weight, offset)
    x = torch.randn(9, IN, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 3, 9)[:, None]
    x[4] = 0
    together = packed(x)
    assert torch.equal(together[4], offset)
    for rows in ([0], [8], [2, 7], [3, 4, 5, 6]):
        if name.startswith("_Int8"):
            assert torch.equal(packed(x[rows]), together[rows])
        else:  # floating point may be added in another order
            torch.testing.assert_close(packed(x[rows]), together[rows], atol=0, rtol=1e-4)


def test_the_largest_values_do_not_overflow() -> None:
    """Sums of products at both ends of the range, where 16 bits would not do."""
    weight = torch.ones(4, 256)
    weight[1::2] = -1
    x = torch.ones(2, 256)
    x[1] = -1
    matrices = [Matrix([weight], [None])]
    packed = linear.kernel(matrices, torch.float32, "int8")(matrices)
    torch.testing.assert_close(packed(x, 0), x @ weight.T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [*KERNELS, "_Shared", "_Plain"])
def test_a_script_says_what_its_python_says(name: str, bias: bool) -> None:
    """Bit for bit; also of kernels that this machine would not choose, whose sums may overflow alike."""
    if name in ("_Half", "_Int8In16") and not device.has_fbgemm():
        pytest.skip("this torch has no FBGEMM")
    kernel: Any = getattr(linear, name)
    if name == "_Plain":
        kernel = partial(kernel, dtype=torch.bfloat16, packed=False)
    weight, offset = matrix(bias)
    plain, script = kernel([Matrix([weight], [offset])]), product(kernel, weight, offset)
    for rows in (1, 3, 20):
        x = torch.randn(rows, 2, IN, generator=torch.Generator().manual_seed(3))
        assert torch.equal(plain(x, 0), script(x))
        assert torch.equal(plain(x, 0), script(x))  # optimised in its second call


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_layout_of_onednn_multiplies_the_same() -> None:
    """In fp32, which every machine multiplies, through the branch that bf16 takes in hardware."""
    weight, offset = matrix()
    script = product(partial(linear._Plain, dtype=torch.float32, packed=True), weight, offset)
    x = torch.randn(2, 3, IN)
    torch.testing.assert_close(script(x), torch.nn.functional.linear(x, weight, offset))


def test_the_kernel_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(fbgemm: bool, int8: bool, bf16: bool) -> tuple[str, str, str]:
        monkeypatch.setattr(linear, "has_fbgemm", lambda: fbgemm)
        monkeypatch.setattr(linear, "multiplies_int8", lambda: int8)
        monkeypatch.setattr(linear, "multiplies_bf16", lambda: False)
        monkeypatch.setattr(linear, "multiplies", lambda dtype, where: bf16 or dtype == torch.float32)
        matrices = [Matrix([torch.ones(8, 8)], [None])]
        packed = [
            linear.kernel(matrices, dtype, quantize)(matrices)
            for dtype, quantize in ((torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8"))
        ]
        return tuple(type(p).__name__ for p in packed)  # type: ignore[return-value]

    if device.has_fbgemm():
        assert kinds(fbgemm=True, int8=False, bf16=False) == ("_Shared", "_Half", "_Int8In16")
    assert kinds(fbgemm=False, int8=False, bf16=False) == ("_Shared", "_Plain", "_Widened")
    assert kinds(fbgemm=False, int8=False, bf16=True) == ("_Shared", "_Plain", "_Widened")
