"""Files that are whole or absent, whoever reads them and whatever ends their writer."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Writes a file aside and renames it: who reads ``path`` finds what was there or all that is new.

    Args:
        content: a text is written in UTF-8.
        mode: permissions, from the first byte on; the umask takes its part of them.

    Raises:
        OSError: it cannot be written; ``path`` is as it was, and nothing lies beside it.
    """
    aside = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")  # a name of its own: two may write at the same time
    try:
        with open(aside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
