"""What a person is told of data: how large it is, what room is left, how far its preparation has come."""

import shutil
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, int, int, str], None]
"""``progress(phase, done, total, unit)``."""

SPARE = 2**30
"""Bytes of a disk that are left free."""


def size(num_bytes: float) -> str:
    """ "1.2 GB", in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def free_bytes(folder: Path) -> int:
    """Of the disk on which a folder is, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
