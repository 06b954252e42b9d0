"""Installs PyTorch before everything else: a CPU build where the machine has no CUDA device and pip offers one.

    python scripts/install_torch.py [INDEX]

``INDEX`` is an index of PyTorch wheels of your choice (for a certain CUDA version, say); it is then the only one.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path


def wanted() -> str:
    """The requirement that constraints.txt pins, so that CPU builds of it (2.x.y+cpu) satisfy it too."""
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def pip(*arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments]).returncode == 0


def main() -> int:
    if importlib.util.find_spec("torch"):
        return 0
    requirement = wanted()
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
