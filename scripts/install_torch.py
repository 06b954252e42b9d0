"""Installs PyTorch before everything else: a CPU build where the machine has no CUDA device and pip offers one.
One that is there already is left alone.

    python scripts/install_torch.py [INDEX]

``INDEX`` is an index of PyTorch wheels of your choice (for a certain CUDA version, say); it is then the only one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def tested() -> str:
    """The version that constraints.txt names; CPU builds of it (2.x.y+cpu) are it too."""
    found = re.search(r"torch==([\d.]+)", (Path(__file__).parents[1] / "constraints.txt").read_text())
    assert found, "constraints.txt names no torch"
    return found[1]


def installed() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def pip(*arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments]).returncode == 0


def main() -> int:
    version, here = tested(), installed()
    series = version.rpartition(".")[0]
    if here and not here.startswith(f"{series}."):
        print(f"PyTorch {here} is installed, and Limner needs {series}; install one, or uninstall this one.")
        return 1
    if here:
        return 0
    requirement = f"torch=={version}"
    if len(sys.argv) > 1:
        return 0 if pip("--index-url", sys.argv[1], requirement) else 1
    if shutil.which("nvidia-smi") is None and pip("--only-binary", ":all:", f"{requirement}+cpu"):
        return 0
    print(
        "pip offers no CPU build of PyTorch here; taking its default build (TORCH_INDEX=... names another index)."
    )
    return 0 if pip(requirement) else 1


if __name__ == "__main__":
    raise SystemExit(main())
