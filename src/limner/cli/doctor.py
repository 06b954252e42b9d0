"""``limner doctor``: what this machine has, and what Limner makes of it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from importlib import metadata

from packaging.requirements import Requirement
from rich.console import Console

from limner.cli.parse import parse
from limner.config.doctor import DoctorConfig

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "pillow")


def run(argv: list[str]) -> int:
    config = parse(DoctorConfig, argv, "limner doctor")
    console = Console(highlight=False)
    problems = _torchvision_problem()

    import torch

    from limner import device

    choice = device.choose(config.device, config.precision, None)
    console.print(f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    console.print("  ".join(f"{name} {_version(name) or 'MISSING'}" for name in PACKAGES))
    problems += [f"{name} is not installed: pip install limner" for name in PACKAGES if not _version(name)]
    for extra in metadata.metadata("limner").get_all("Provides-Extra") or []:
        if extra == "dev":
            continue
        missing = [name for name in _needed("limner", extra) if not _version(name)]
        told = f"missing {', '.join(missing)} (pip install 'limner\\[{extra}]')" if missing else "here"
        console.print(f"extra {extra}: {told}")
    console.print(f"Limner computes on {choice}.")
    for dtype in (torch.float32, torch.bfloat16):
        tera = device.matrix_flops(dtype, choice.device.type) / 1e12
        console.print(f"matrix products in {str(dtype).removeprefix('torch.')}: {tera:.2f} TFLOP/s")
    free = shutil.disk_usage(".").free / 2**30
    console.print(f"free disk here: {free:.0f} GB; freed memory is kept: {device.keep_freed_memory()}")
    for problem in problems:
        console.print(f"[bold red]problem:[/] {problem}")
    return 1 if problems else 0


def _torchvision_problem() -> list[str]:
    """A torchvision that does not fit torch makes Llama, Llava and Siglip fail to import from transformers."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever a mismatched binary raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [f"torchvision {_version('torchvision')} does not fit torch ({reason}): pip uninstall torchvision"]
    return []


def _needed(package: str, extra: str) -> list[str]:
    """What an extra of an installed package brings, with what its own extras bring."""
    names = []
    for requirement in map(Requirement, metadata.requires(package) or []):
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            names.append(requirement.name)
            for inner in requirement.extras if _version(requirement.name) else ():
                names += _needed(requirement.name, inner)
    return names


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
