"""Where and how to compute: device, precision and threads, chosen once, with the reason.

Every hardware branch of Limner stands here, behind `choose`.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Choice:
    """What a run computes with. ``dtype`` is the precision of the computation, not of the master weights."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    reason: str

    def __str__(self) -> str:
        name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]
        return f"{self.device}, {name}, {self.threads} thread{'s' if self.threads != 1 else ''} ({self.reason})"


def choose(device: str = "auto", precision: str = "auto", threads: int | None = None) -> Choice:
    """Chooses device, precision and threads, and sets torch's thread count.

    Args:
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "mps".
        precision: "auto" takes bf16 where it is measurably faster here; else "fp32", "bf16", "fp16".
        threads: CPU threads; None: one a physical core, or what OMP_NUM_THREADS says.

    Raises:
        ValueError: the device is not on this machine, or cannot do the precision.
    """
    reasons = []
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if device == "cpu":
            reasons.append("no GPU found")
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("No CUDA device is usable here; use --device cpu, or install a CUDA build of PyTorch.")
    elif device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("No MPS device is usable here; use --device cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    if precision == "auto":
        dtype, why = _auto_precision(device)
        reasons.append(why)
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if dtype == torch.float16 and device == "cpu":
            raise ValueError("fp16 is for GPUs; use --precision bf16 or fp32 on a CPU.")
        reasons.append("as asked")
    return Choice(torch.device(device), dtype, torch.get_num_threads(), "; ".join(reasons))


def _auto_precision(device: str) -> tuple[torch.dtype, str]:
    if device == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bf16 tensor cores"
        return torch.float32, "this GPU has no bf16"
    if device == "mps":
        return torch.float32, "fp32 is the tested precision on MPS"
    ratio = bf16_speedup()
    if ratio >= 1.5:
        return torch.bfloat16, f"bf16 matrix products are {ratio:.1f} times as fast as fp32 on this CPU"
    return torch.float32, f"bf16 matrix products are only {ratio:.2g} times as fast as fp32 on this CPU"


@lru_cache(maxsize=1)
def bf16_speedup() -> float:
    """How many times as fast as fp32 this CPU multiplies bf16 matrices (0.3 s of measuring, once a process)."""
    return matrix_flops(torch.bfloat16, "cpu") / matrix_flops(torch.float32, "cpu")


@lru_cache(maxsize=4)
def matrix_flops(dtype: torch.dtype, device: str) -> float:
    """This machine's measured matrix peak in FLOP/s: the best of the n x n products of 0.1 s, 2 n^3 each.

    A CPU is asked for a small product first: one without bf16 units takes seconds for a large one.
    """
    best = 0.0
    for n in (256, 1024) if device == "cpu" else (8192,):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        best, spent, products = 0.0, 0.0, 0
        while (spent < 0.1 and products < 100) or products < 2:  # the first one may still be setting things up
            _finish(device)
            began = time.perf_counter()
            a @ b
            _finish(device)
            seconds = time.perf_counter() - began
            best, spent, products = max(best, 2 * n**3 / seconds), spent + seconds, products + 1
        if device == "cpu" and best < 2e9:
            break  # a large product would take a second, and say the same
    return best


def _finish(device: str) -> None:
    """Waits until a GPU has computed what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type that the device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def fuses_clipping(device: torch.device) -> bool:
    """Whether fused AdamW divides gradients by its ``grad_scale``; MPS's takes it, and does nothing with it."""
    return device.type != "mps"


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this precision are multiplied as they are; 16 bits on a plain CPU are only emulated."""
    if device.type != "cpu" or dtype.itemsize > 2:
        return True
    return dtype == torch.bfloat16 and multiplies_bf16()


@lru_cache(maxsize=1)
def multiplies_bf16() -> bool:
    """Whether this CPU has oneDNN's bf16 products."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache(maxsize=1)
def multiplies_int8() -> bool:
    """Whether this CPU adds products of 8-bit integers in 32 bits (VNNI); in 16 bits they can overflow."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


@lru_cache(maxsize=1)
def has_fbgemm() -> bool:
    """Whether torch has FBGEMM's products of fp32 rows with fp16 and 8-bit weights: x86 CPUs with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of this device.

    ``torch.manual_seed`` also queues a call with a whole stack trace for every kind of device that is not there,
    which costs more than a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@lru_cache(maxsize=1)
def compiles() -> bool:
    """Whether torch.compile works here: on a CPU it needs a C++ compiler and Python's headers (a second, once)."""
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.zeros(64))
    except RuntimeError:  # every failure of torch's compiler is one
        return False
    return True


def require_compiler() -> None:
    """Raises ValueError, with what to install, where torch.compile was asked for and does not work."""
    if not compiles():
        raise ValueError(
            "torch.compile does not work here: it needs a C++ compiler and Python's headers (Debian: g++ and "
            "python3-dev); install them, or use --no-compile."
        )


_KEEP_FREED = {-4: 0, -1: 17_179_869_184 - 1, -2: 268_435_456}
"""mallopt parameters: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of giving it back to the system.

    A training step frees and asks for the same large blocks again and again; each fresh block costs page
    faults, which are slow on virtual machines (docs/LOG.md has what it gave). True where it took effect; other
    C libraries, and ``LIMNER_KEEP_FREED=0``, leave things as they are.
    """
    if os.environ.get("LIMNER_KEEP_FREED") == "0":
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    # mallopt takes C ints: the trim threshold is capped at 2 GiB - 1, which no step here exceeds at once.
    return all(mallopt(key, min(value, 2**31 - 1)) == 1 for key, value in _KEEP_FREED.items())


def give_back_freed_memory() -> None:
    """Tells glibc to give freed memory that lies between what is in use back to the system; once, after much of it
    has come free for good. Other C libraries leave things as they are."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
