"""``limner evaluate``: captions kept as they come, scored, told; and two models held against each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_captioners import toy_captioner, toy_picture

from limner.cli.main import main
from limner.config.evaluate import EvaluateConfig
from limner.data.records import Record
from limner.decoding.captioner import Caption, load_captioner
from limner.evaluation import Scorer, score
from limner.evaluation.captioning import CaptionLog, caption_records
from limner.evaluation.comparison import compare, first_difference
from limner.models.stock import save_captioner


class Parrot:
    """Says the name of the picture; dies after so many."""

    tokenizer = None

    def __init__(self, lives: int = 10**6) -> None:
        self.lives, self.seen = lives, []

    def describe(self, images: Any, *, batch_size: int, **settings: Any) -> list[Caption]:
        if len(self.seen) + len(images) > self.lives:
            raise KeyboardInterrupt
        self.seen += images
        return [Caption(f"picture {image}", [], 0.0, 0.1, []) for image in images]


def records(count: int) -> list[Record]:
    return [Record(str(i), [f"a picture {i}"], str(i)) for i in range(count)]


def test_an_interrupted_evaluation_goes_on_where_it_stood(tmp_path: Path) -> None:
    settings = {"model": "parrot"}
    with pytest.raises(KeyboardInterrupt):
        log = CaptionLog(tmp_path, settings, False, ["captions"])
        caption_records(lambda: Parrot(6), records(10), log, batch_size=3)
    with open(tmp_path / "captions.jsonl", "ab") as file:
        file.write(b'{"image_id": "6", "capt')  # killed while writing
    with pytest.raises(ValueError, match="holds an evaluation already: --resume"):
        CaptionLog(tmp_path, settings, False, ["captions"])
    with pytest.raises(ValueError, match=r"other settings \(model: parrot there, owl now\)"):
        CaptionLog(tmp_path, {"model": "owl"}, True, ["captions"])
    second = Parrot()
    told: list[tuple[int, int]] = []
    said = caption_records(
        lambda: second,
        records(10),
        CaptionLog(tmp_path, settings, True, ["captions"]),
        batch_size=3,
        progress=lambda *counts: told.append(counts),
    )
    assert second.seen == ["6", "7", "8", "9"]
    assert [one.caption for one in said.values()] == [f"picture {i}" for i in range(10)]
    assert told == [(6, 10), (9, 10), (10, 10)]
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == [str(i) for i in range(10)]

    def never() -> Parrot:
        raise AssertionError("nothing is left to caption")

    assert caption_records(never, records(10), CaptionLog(tmp_path, settings, True, ["captions"])) == said


def test_a_picture_that_was_replaced_is_captioned_anew(tmp_path: Path) -> None:
    for i in range(3):
        toy_picture(i).save(tmp_path / f"{i}.png")
    pictures = [Record(tmp_path / f"{i}.png", [f"a picture {i}"], str(i)) for i in range(3)]
    caption_records(Parrot, pictures, CaptionLog(tmp_path / "log", {}, False, ["captions"]))
    toy_picture(9).save(tmp_path / "1.png")
    for expected in ([tmp_path / "1.png"], []):  # and then not again
        again = Parrot()
        caption_records(lambda: again, pictures, CaptionLog(tmp_path / "log", {}, True, ["captions"]))  # noqa: B023
        assert again.seen == expected


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    seen = []
    for number in (2, 1, 3):
        log = CaptionLog(tmp_path, {}, False, [f"captions-{number}-of-3"])
        parrot = Parrot()
        said = caption_records(lambda parrot=parrot: parrot, records(8), log, shard=(number, 3), batch_size=2)
        seen.append(parrot.seen)
    assert seen == [["1", "4", "7"], ["0", "3", "6"], ["2", "5"]]
    assert list(said) == [str(i) for i in range(8)]


def test_the_paired_bootstrap_finds_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    words = ["red", "dog", "runs", "cat", "sits", "man", "ball", "grass", "tree", "sky"]
    references = {str(i): [" ".join(random.choice(words, 6)) for _ in range(3)] for i in range(150)}
    worse = {key: " ".join(random.choice(words, 6)) for key in references}
    better = {key: group[0] if random.random() < 0.5 else worse[key] for key, group in references.items()}
    scorer = Scorer(references)
    for one in compare(scorer.score(worse), scorer.score(better)):
        assert one.better == "after" and one.low > 0 and one.p_value < 0.01
        assert one.low < one.difference == one.after - one.before < one.high
    assert {d.better for d in compare(scorer.score(better), scorer.score(worse))} == {"before"}
    same = compare(scorer.score(worse), scorer.score(worse))
    assert {(d.better, d.p_value, d.difference) for d in same} == {("neither", 1.0, 0.0)}
    chance = {key: " ".join(random.choice(words, 6)) for key in references}
    assert (
        next(d for d in compare(scorer.score(worse), scorer.score(chance)) if d.metric == "CIDEr").better
        == "neither"
    )


@pytest.mark.parametrize(
    ("before", "after", "number"),
    [("a dog runs", "a cat runs", 1), ("a dog", "a dog", None), ("a dog", "a dog runs", 2), ("a dog", "", 0)],
)
def test_the_first_differing_word(before: str, after: str, number: int | None) -> None:
    assert first_difference(before, after) == number


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and a data set whose captions and names would break a page that forgot to escape."""
    folder = tmp_path_factory.mktemp("world")
    for name, text in (("one", "llama"), ("two", "qwen2")):
        save_captioner(toy_captioner(text=text), folder / name)
    (folder / "data").mkdir()
    captions = {}
    for i in range(12):
        toy_picture(i).save(folder / "data" / f"{i}&<b>.png")
        captions[f"{i}&<b>.png"] = [f"<script>alert({i})</script> a red circle", "a small square & more"]
    (folder / "data" / "captions.json").write_text(json.dumps(captions))
    return folder


def evaluate(world: Path, *arguments: str) -> int:
    common = ["--meteor", "off", "--threads", "1", "--device", "cpu", "--cache-dir", str(world / "cache")]
    return main(["evaluate", *arguments, *common])


def test_evaluate_scores_and_reports(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(world / "data"), world / "report"
    arguments = [str(world / "one"), "--dataset", data, "--split", "train", "--out", str(out), "--max-length", "6"]
    assert evaluate(world, *arguments, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    said = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    captions = json.loads((world / "data" / "captions.json").read_text())
    expected = score(
        {row["image_id"]: row["caption"] for row in said},
        {row["image_id"]: captions[row["image_id"]] for row in said},
        meteor="off",
        intervals=True,
    )
    for metric in ("Bleu_1", "ROUGE_L", "CIDEr", "vocabulary"):
        assert printed[metric] == expected[metric]
    assert printed["intervals"] == {name: list(pair) for name, pair in expected["intervals"].items()}
    assert printed["settings"]["seed"] == 42 and len(printed["settings"]["fingerprints"][0]) == 16
    captioner = load_captioner(world / "one", device="cpu")
    for row in said:
        picture = world / "data" / row["image_id"]
        assert captioner.caption(picture, max_new_tokens=6) == row["caption"]
        assert [word for word, _ in row["words"]] == row["caption"].split()
    document = (out / "report.html").read_text()
    assert "<script" not in document and "&lt;script&gt;alert(" in document
    assert "0&<b>" not in document
    assert "default-src 'none'" in document.replace("&#x27;", "'")
    assert document.count("data:image/jpeg;base64,") >= 2 * min(12, len(said))
    assert not re.search(r'(src|href)="(?!data:)|href', document)
    stored = json.loads((out / "scores.json").read_text())
    assert stored["per_image"].keys() == {row["image_id"] for row in said}

    assert evaluate(world, *arguments) == 1
    assert "--resume goes on with it" in capsys.readouterr().err
    assert evaluate(world, *arguments, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["CIDEr"] == printed["CIDEr"]


def test_before_and_after(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--before", str(world / "one"), "--after", str(world / "two")]
    data = ["--dataset", str(world / "data"), "--split", "train", "--max-length", "6"]
    assert evaluate(world, *pair, *data, "--out", str(world / "pair"), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [d["metric"] for d in result["differences"]] == [
        "Bleu_1",
        "Bleu_2",
        "Bleu_3",
        "Bleu_4",
        "ROUGE_L",
        "CIDEr",
    ]
    for picture in result["pictures"]:
        number = picture["first_differing_word"]
        words = picture["before"].split(), picture["after"].split()
        assert words[0][:number] == words[1][:number] if number is not None else words[0] == words[1]
    document = (world / "pair" / "report.html").read_text()
    assert "Better after" in document and "<script" not in document
    # Pictures without captions are shown, not scored; the table is for people.
    picture = str(world / "data" / "3&<b>.png")
    assert evaluate(world, *pair, picture, "--out", str(world / "plain")) == 0
    printed = capsys.readouterr().out
    assert "1 pictures" in printed and "metric" not in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Name one model"),
        ({"targets": ("m",)}, "Say what to evaluate on"),
        ({"targets": ("m",), "dataset": ("d",), "before": "b"}, "both --before and --after"),
        ({"before": "a", "after": "b"}, "Compare on --dataset D or on pictures"),
        ({"targets": ("m",), "dataset": ("d",), "shard": "3/2"}, "no part 3 of 2"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**settings)


def test_what_is_not_there_is_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(world, "m", "--dataset", "/nowhere/at/all") == 1
    assert "There is no data set, folder or file '/nowhere/at/all'" in capsys.readouterr().err
    assert evaluate(world, "--before", "a", "--after", "b", "/nowhere.jpg") == 1
    assert "There is no file or folder /nowhere.jpg" in capsys.readouterr().err
    assert evaluate(world, str(world / "data"), "--dataset", str(world / "data"), "--split", "train") == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_two_checkpoints_of_one_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--dataset", str(world / "data"), "--cache-dir", str(world / "cache"), "--runs-dir", str(tmp_path)]
    steps = ["--max-steps", "4", "--eval-steps", "2", "--save-steps", "2", "--patience", "0", "--threads", "1"]
    small = ["--batch-size", "4", "--gradient-accumulation-steps", "1", "--device", "cpu", "--precision", "fp32"]
    assert main(["train", *data, *steps, *small, "--name", "two", "--scratch-lr", "0.01"]) == 0
    capsys.readouterr()
    checkpoints = [str(tmp_path / f"two/checkpoints/step-{step:06d}") for step in (2, 4)]
    split = ["--dataset", str(world / "data"), "--split", "train", "--max-length", "8", "--runs-dir", str(tmp_path)]
    pair = ["--before", checkpoints[0], "--after", checkpoints[1], "--out", str(tmp_path / "pair"), "--json"]
    assert evaluate(world, *pair, *split) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["fingerprints"][0] != result["settings"]["fingerprints"][1]
    # The finished model is the better of the two: it says what that checkpoint says.
    assert evaluate(world, "two", *split, "--out", str(tmp_path / "final"), "--json") == 0
    capsys.readouterr()
    said = [json.loads(line)["caption"] for line in (tmp_path / "final/captions.jsonl").read_text().splitlines()]
    assert said in [[picture[side] for picture in result["pictures"]] for side in ("before", "after")]


def test_parts_with_unreadable_pictures_end(tmp_path: Path) -> None:
    """Each part knows only its own bad pictures; the last one has to learn of the others'."""
    for i in (0, 1, 2, 4):
        toy_picture(i).save(tmp_path / f"{i}.png")
    pictures = [Record(str(tmp_path / f"{i}.png"), [f"a picture {i}"], str(i)) for i in range(6)]
    (tmp_path / "3.png").write_bytes(b"no picture")
    left_out: dict[str, str] = {}
    for number in (1, 2):
        log = CaptionLog(tmp_path / "log", {}, False, [f"captions-{number}-of-2"])
        left_out = {}
        said = caption_records(Parrot, pictures, log, shard=(number, 2), bad=left_out)
    assert list(said) == ["0", "1", "2", "4"] and sorted(left_out) == ["3", "5"]
    again: dict[str, str] = {}
    log = CaptionLog(tmp_path / "log", {}, True, ["captions-1-of-2"])
    assert list(caption_records(Parrot, pictures, log, shard=(1, 2), bad=again)) == list(said)
    assert sorted(again) == ["3", "5"]


def test_a_caption_is_not_given_to_what_replaced_its_picture(tmp_path: Path) -> None:
    """A picture that cannot be read any more is told, each time, until it can be read again."""
    pictures = [Record(str(tmp_path / f"{i}.png"), [f"a picture {i}"], str(i)) for i in range(2)]
    captioned = {}
    for step in ("whole", "broken", "broken still", "whole again"):
        for i in range(2):
            toy_picture(i).save(tmp_path / f"{i}.png")
        if "broken" in step:
            (tmp_path / "1.png").write_bytes(b"no picture")
        bad: dict[str, str] = {}
        log = CaptionLog(tmp_path / "log", {}, True, ["captions"])
        captioned[step] = (list(caption_records(Parrot, pictures, log, bad=bad)), list(bad))
        found, known_bad = log.read("captions")
        assert (list(found), list(known_bad)) == captioned[step]
    whole, broken = (["0", "1"], []), (["0"], ["1"])
    assert list(captioned.values()) == [whole, broken, broken, whole]
