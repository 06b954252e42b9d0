"""Files that grow by a line of JSON at a time while work is done, and survive that it is cut off."""

from __future__ import annotations

from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """The lines of such a file, for its one writer: what a killed process left of a last one is cut off.

    The file is made where there is none.
    """
    with open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
    return content[:end].decode().split("\n")[:-1]
