"""A file that is written whole: its readers, its permissions, and what a failure leaves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from limner.whole_files import write_whole


def test_readers_see_one_writer_or_the_other_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = {letter * 200_000 for letter in "éx"}
    write_whole(path, "é" * 200_000)

    def write(text: str) -> None:
        for _ in range(100):
            write_whole(path, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text(encoding="utf-8") in contents
    assert os.listdir(tmp_path) == ["a"]


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "usual", b"\0")
        write_whole(tmp_path / "secret", "x", mode=0o600)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("usual", "secret")] == [0o640, 0o600]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", "before")

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "a", "after")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "a", "x")
