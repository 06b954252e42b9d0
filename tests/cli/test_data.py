"""``limner data list`` and ``prepare``, on miniature hub repositories."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from limner.cli.main import main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror of the hub with ten Pexels photos; the folder that is cached into."""
    folder = tmp_path / "hub" / "Mozilla" / "pexels-gpt4o" / "data"
    folder.mkdir(parents=True)
    cells = []
    for k in range(10):
        buffer = io.BytesIO()
        Pillow.new("RGB", (9, 9), (k, k, k)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue() if k else b"broken", "path": f"{k}.png"})
    columns = {"image": cells, "alt_text": [f"photo number {k}" for k in range(10)]}
    features = Features({"image": Image(), "alt_text": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train-0.parquet")
    monkeypatch.setenv("LIMNER_HUB_MIRROR", str(tmp_path / "hub"))
    return tmp_path / "cache"


def listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    assert main(["data", "list", "--cache-dir", str(cache), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["name"]: row for row in rows}


def test_list_prepare_list(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listed(cache, capsys)
    assert list(before)[:3] == ["flickr", "coco", "docornot"]
    assert len(before) == 9
    assert not any(row["prepared"] for row in before.values())
    assert (before["flickr"]["pictures"], before["flickr"]["repository"][:8]) == (31_014, "Mozilla/")
    assert main(["data", "prepare", "pexels", "--cache-dir", str(cache), "--json", "--check-pictures"]) == 0
    output = capsys.readouterr()
    facts = json.loads(output.out)
    assert facts["train"] + facts["validation"] + facts["test"] == facts["captions"] == 10
    assert min(facts["train"], facts["validation"], facts["unreadable"]) >= 1
    told = " ".join(output.err.split())
    assert "in 1 files" in told
    assert "1 of 10 pictures cannot be read" in told
    after = listed(cache, capsys)["pexels"]
    assert (after["pictures"], after["captions"], after["prepared"]) == (10, 10, True)
    assert after["bytes"] == facts["bytes"] == sum(f.stat().st_size for f in cache.rglob("*train.arrow"))
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["data", "list", "--cache-dir", str(cache)]) == 0
    assert "Pexels photos, captions" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(cache / "datasets" / "pexels-gpt4o")
    assert not listed(cache, capsys)["pexels"]["prepared"]


def test_a_disk_without_room(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    assert main(["data", "prepare", "pexels", "--cache-dir", str(cache)]) == 1
    error = capsys.readouterr().err
    assert "only 1.1 GB are free" in error
    assert "choose another --cache-dir" in error
    assert error.count("\n") == 1


def test_mistakes(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in (
        (["prepare", "flikr"], "no data set, folder or file 'flikr'. Did you mean 'flickr'?"),
        (["prepare", "textcaps"], "lmms-lab/TextCaps is not on this machine and the hub cannot be reached"),
        (["reprot"], "There is no verb 'data reprot'; choose one of list, prepare, report"),
    ):
        extra = ["--cache-dir", str(cache)] if argv[0] == "prepare" else []
        assert main(["data", *argv, *extra]) == 1
        assert message in capsys.readouterr().err


def test_help_needs_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; from limner.cli.main import main; main(['data', '--help']); "
        "print(sorted({'torch', 'datasets', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prepare  download data sets ahead" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
