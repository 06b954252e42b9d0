"""Which model a word means."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.runs import EventWriter, create_run
from limner.runs.models import find_checkpoint, find_model


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, verb in (("words", "pretrain"), ("begun", "pretrain"), ("stopped", "pretrain"), ("sight", "train")):
        create_run("runs", name, verb, {})
    for name in ("words", "sight"):
        (tmp_path / "runs" / name / "model").mkdir()
    for step in (5, 20):
        folder = tmp_path / "runs" / "stopped" / "checkpoints" / f"step-{step:06d}"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "config.json").write_text('{"model_type": "gpt2"}')
    return Path("runs")


def test_names_folders_and_hub_ids(runs: Path) -> None:
    for name in ("words", "runs/words", "runs/words/model"):
        assert find_model(name, runs, "language model") == "runs/words/model"
    assert find_model("sight", runs) == "runs/sight/model"
    assert find_model("stock", runs, "captioner") == "stock"  # what it holds is told by reading it
    assert find_model("owner/name", runs) == "owner/name"


def test_the_other_kind_of_run_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"runs/sight makes a captioner \(for `limner caption`\), and a language"):
        find_model("sight", runs, "language model")
    with pytest.raises(ValueError, match=r"runs/words makes a language model .*, and a captioner is wanted"):
        find_model("runs/words", runs, "captioner")
    with pytest.raises(ValueError, match="makes a language model"):
        find_checkpoint("runs/stopped/checkpoints/step-000005", runs, "captioner")


def test_an_unfinished_run_has_checkpoints_or_none(runs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no finished model yet: resume it \(`limner pretrain --resume"):
        find_model("stopped", runs)
    with pytest.raises(FileNotFoundError, match="no finished model and no checkpoint yet"):
        find_model("begun", runs)
    log = EventWriter(runs / "begun" / "events.jsonl")
    log.write("start", 0, total_steps=5)
    log.write("error", 0, message="the vocabulary could not be fetched")
    with pytest.raises(FileNotFoundError, match=r"vocabulary could not be fetched'; mend that.*--name begun"):
        find_model("begun", runs)
    folder = runs / "stopped" / "checkpoints"
    expected = {"stopped": 20, "stopped/checkpoints/step-000005": 5, f"{folder}/step-000005": 5}
    for name, step in expected.items():
        found = find_checkpoint(name, runs, "language model")
        assert found is not None and found[1] == folder / f"step-{step:06d}" and found[0].name == "stopped"
    for name in ("begun", "words", "stock", "owner/name"):
        assert find_checkpoint(name, runs, "language model") is None
