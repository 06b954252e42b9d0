"""The report finds what was planted in a data set, and cleaning mends just that."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_captioners import toy_picture

from limner.cli.main import main
from limner.data.folder import ImageCaptionDataset
from limner.data.records import Record
from limner.evaluation.quality.new_set import Entry, write_set
from limner.evaluation.quality.pictures import difference_hash, look, near_pairs, same
from limner.evaluation.quality.words import (
    NounFinder,
    distribution,
    protected_terms,
    reading_ease,
    rewrite,
    singular,
)


def smooth_picture(seed: int, side: int = 96) -> Image.Image:
    """A picture with large shapes, as photos have: noise at 6 x 6, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Twenty sound pictures and one of every fault."""
    data = tmp_path / "data"
    for split in ("train", "validation"):
        (data / split).mkdir(parents=True)
    rows: dict[str, list[dict]] = {"train": [], "validation": []}

    def add(split: str, name: str, *captions: str) -> Path:
        rows[split].append({"file_name": name, "captions": list(captions)})
        return data / split / name

    for i in range(16):
        smooth_picture(i).save(add("train", f"good{i}.png", f"A man rides horse {i} there.", "Two dogs run fast."))
    for i in range(16, 20):
        smooth_picture(i).save(add("validation", f"good{i}.png", f"A child holds a big ball {i} here."))
    (data / "train/good0.png").read_bytes()
    add("train", "copy.png", "A rider on a horse.").write_bytes((data / "train/good0.png").read_bytes())
    smooth_picture(17).resize((60, 60)).save(add("train", "leak.jpg", "A kid with a ball."), quality=60)
    smooth_picture(3).save(add("train", "near.jpg", "A man on a brown horse."), quality=30)
    add("train", "broken.jpg", "A broken picture here.").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    smooth_picture(50).save(add("train", "opening.png", "An image of a red bus.", "the bus is red ."))
    smooth_picture(51).save(add("train", "short.png", "Bus", "A bus on a street."))
    smooth_picture(52).save(add("train", "long.png", "A bus " + "very " * 50 + "long.", "One plain bus here."))
    smooth_picture(53).save(add("train", "repeated.png", "A bus stands there.", "a bus stands there"))
    smooth_picture(54).save(add("train", "sign.png", 'A sign that says "stop" here.'))
    page = Image.new("L", (200, 200), 250)
    for line in range(20, 180, 12):
        page.paste(20, (20, line, 170, line + 3))
    page.save(add("train", "page.png", "A page of a book."))
    for split, entries in rows.items():
        (data / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries))
    return data


FAULTS = {
    "broken": ["broken.jpg"],
    "duplicate": ["copy.png"],
    "leak": ["leak.jpg"],
    "near-duplicate": ["near.jpg"],
    "short": ["short.png"],
    "long": ["long.png"],
    "repeated": ["repeated.png"],
    "opening": ["opening.png"],
    "spacing": ["opening.png"],
    "document": ["page.png"],
    "text": ["sign.png"],
}


def tree(folder: Path) -> dict[str, str]:
    """Every file's digest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_report_finds_what_was_planted(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, common = tmp_path / "report", ["--cache-dir", str(tmp_path / "cache")]
    assert main(["data", "report", str(planted), "--out", str(out), "--json", *common]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["pictures"] == 30 and summary["splits"] == {"train": 26, "validation": 4}
    assert summary["findings"] == {name: len(names) for name, names in FAULTS.items()}
    with open(out / "examples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, files in FAULTS.items():
        assert [row["image_id"].split("/")[-1] for row in rows if name in row["findings"].split()] == files
    by_name = {row["image_id"].split("/")[-1]: row for row in rows}
    assert by_name["copy.png"]["like"] == "train/good0.png"
    assert by_name["leak.jpg"]["like"] == "validation/good17.png"
    assert by_name["near.jpg"]["like"] == "train/good3.png"
    assert "broken.jpg" in by_name["broken.jpg"]["problem"]
    # Frequent nouns weigh less than rare ones.
    assert float(by_name["good1.png"]["weight"]) < 1 < float(by_name["sign.png"]["weight"])
    assert np.mean([float(row["weight"]) for row in rows]) == pytest.approx(1, abs=1e-4)
    assert summary["protected"]["gender"]["captions"] == 17
    assert summary["objects"]["most_common"][0][0] in ("man", "dog", "horse")
    document = (out / "report.html").read_text()
    assert "<script" not in document and document.count("data:image/jpeg") >= 10


def test_cleaning_follows_the_report_and_leaves_the_source_alone(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(planted)
    out, common = tmp_path / "clean", ["--cache-dir", str(tmp_path / "cache")]
    assert main(["data", "clean", str(planted), "--out", str(out), *common]) == 0
    assert "27 of 30 pictures" in capsys.readouterr().out
    assert tree(planted) == before
    records = {record.image_id.split("/")[-1]: record for record in ImageCaptionDataset(out)}
    assert set(records) == {path.name for path in planted.glob("*/*.*g")} - {"broken.jpg", "copy.png", "leak.jpg"}
    assert records["good0.png"].captions[-1] == "A rider on a horse."  # of the copy
    assert records["opening.png"].captions == ["A red bus.", "The bus is red."]
    assert records["short.png"].captions == ["A bus on a street."]
    assert records["long.png"].captions == ["One plain bus here."]
    assert records["repeated.png"].captions == ["A bus stands there."]
    assert records["good5.png"].split == "train" and records["good17.png"].split == "validation"
    assert (out / "train/good5.png").read_bytes() == (planted / "train/good5.png").read_bytes()
    # A second look finds nothing more to do, and tells of the original captions.
    assert main(["data", "report", str(out), "--out", str(tmp_path / "again"), "--json", *common]) == 0
    summary = json.loads(capsys.readouterr().out)
    mended = ("broken", "duplicate", "leak", "short", "long", "repeated", "opening", "spacing")
    assert [summary["findings"][name] for name in mended] == [0] * 8
    assert summary["protected"]["gender"]["captions_before"] is not None

    assert main(["data", "clean", str(planted), "--out", str(out), *common]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    keep = ["--keep", "leak", "duplicate", "--dry-run", "--out", str(tmp_path / "other")]
    assert main(["data", "clean", str(planted), *keep, *common]) == 0
    assert "29 of 30 pictures would be left" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()


def test_captions_of_copies_stay_in_their_split(tmp_path: Path) -> None:
    """A picture that is twice in training and twice in validation stays once, in validation, with its captions."""
    data, out, common = tmp_path / "data", tmp_path / "out", ["--cache-dir", str(tmp_path / "cache")]
    for split, names in (("train", ("a1", "a2", "b")), ("validation", ("a3", "a4", "c"))):
        (data / split).mkdir(parents=True)
        for name in names:
            smooth_picture("abc".index(name[0])).save(data / split / f"{name}.png")
            (data / split / f"{name}.txt").write_text(f"A dog that {name} has.")
    assert main(["data", "report", str(data), "--out", str(tmp_path / "report"), *common]) == 0
    with open(tmp_path / "report/examples.csv", newline="") as file:
        found = {Path(row["image_id"]).stem: (row["findings"], row["like"]) for row in csv.DictReader(file)}
    assert found["a1"] == ("leak", "validation/a3.png")
    assert found["a2"] == ("duplicate leak", "train/a1.png")
    assert found["a3"] == ("", "") and found["a4"] == ("duplicate", "validation/a3.png")
    assert main(["data", "clean", str(data), "--out", str(out), *common]) == 0
    assert not any("original_captions" in file.read_text() for file in out.glob("*/metadata.jsonl"))
    captions = {record.image_id: record.captions for record in ImageCaptionDataset(out)}
    assert captions == {
        "train/b.png": ["A dog that b has."],
        "validation/a3.png": ["A dog that a3 has.", "A dog that a4 has."],
        "validation/c.png": ["A dog that c has."],
    }


def test_a_leak_is_like_what_it_leaked(tmp_path: Path) -> None:
    """Also where a picture of its own split, before it, is much like it."""
    data = tmp_path / "data"
    for name in ("train/near.jpg", "train/same.png", "validation/same.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        smooth_picture(1).save(data / name)
        (data / name).with_suffix(".txt").write_text("A dog that runs.")
    arguments = ["--out", str(tmp_path / "report"), "--cache-dir", str(tmp_path / "cache")]
    assert main(["data", "report", str(data), *arguments]) == 0
    with open(tmp_path / "report/examples.csv", newline="") as file:
        found = {row["image_id"]: (row["findings"], row["like"]) for row in csv.DictReader(file)}
    assert found["train/same.png"] == ("leak near-duplicate", "validation/same.png")
    assert found["train/near.jpg"] == ("leak", "validation/same.png") and found["validation/same.png"] == ("", "")


def test_captions_without_spaces_are_not_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["一只棕色的狗在草地上奔跑。", "茶色の犬が草原を走っている。", "สุนัขวิ่งอยู่บนหญ้า", "A dog on 草 runs."]
    for name, captions in (("data", said), ("curt", ["Dog", "A cat"])):
        (tmp_path / name).mkdir()
        for number, caption in enumerate(captions):
            smooth_picture(number).save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text(caption, encoding="utf-8")
    common = ["--cache-dir", str(tmp_path / "cache"), "--out"]
    assert main(["data", "clean", str(tmp_path / "data"), *common, str(tmp_path / "out")]) == 0
    assert sorted(r.captions[0] for r in ImageCaptionDataset(tmp_path / "out")) == sorted(said)
    assert main(["data", "clean", str(tmp_path / "curt"), *common, str(tmp_path / "none")]) == 1
    assert "captions dropped (short): 2" in capsys.readouterr().err


def test_merging_joins_equal_pictures_and_keeps_held_out_ones_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seeds in (("a", (1, 2, 3)), ("b", (3, 4))):
        for split in ("train", "validation"):
            (tmp_path / name / split).mkdir(parents=True)
        rows: dict[str, list[str]] = {"train": [], "validation": []}
        for seed in seeds:
            split = "validation" if (name, seed) in (("a", 2), ("b", 3)) else "train"
            toy_picture(seed).save(
                tmp_path / name / split / "same name.png"
                if seed in (1, 4)
                else tmp_path / name / split / f"{seed}.png"
            )
            file = "same name.png" if seed in (1, 4) else f"{seed}.png"
            rows[split].append(json.dumps({"file_name": file, "captions": [f"{name} says {seed}"]}) + "\n")
        for split, lines in rows.items():
            (tmp_path / name / split / "metadata.jsonl").write_text("".join(lines))
    out = tmp_path / "both"
    sources = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["data", "merge", *sources, "--out", str(out), "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "occur twice, joined: 1" in capsys.readouterr().out
    records = list(ImageCaptionDataset(out))
    captions = {tuple(sorted(record.captions)): record.split for record in records}
    assert captions == {
        ("a says 1",): "train",
        ("a says 2",): "validation",
        ("a says 3", "b says 3"): "validation",
        ("b says 4",): "train",
    }
    # The hub's own reader takes it too.
    from datasets import load_dataset

    loaded = load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "validation": 2}
    assert loaded["train"][0]["image"].size == (56, 40)
    push = ["data", "merge", *sources, "--out", str(tmp_path / "again"), "--push-to-hub", "someone/pictures"]
    assert main([*push, "--cache-dir", str(tmp_path / "cache")]) == 1
    assert "is made, but could not be pushed to someone/pictures" in capsys.readouterr().err


def test_what_captions_were_before_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--cache-dir", str(tmp_path / "cache"), "--out"]
    rows = {
        "one": [(0, "A person rides.", "A man rides there."), (1, "An image of a dog here.", None)],
        "two": [(2, "A woman sits there.", None), (0, "Somebody rides.", "A gentleman rides.")],
    }
    for name, of_set in rows.items():
        (tmp_path / name / "train").mkdir(parents=True)
        lines: list[dict] = []
        for seed, caption, before in of_set:
            smooth_picture(seed).save(tmp_path / name / "train" / f"{seed}.png")
            row = {"file_name": f"{seed}.png", "captions": [caption]}
            lines.append(row | ({"original_captions": [before], "labelled_by": name} if before else {}))
        metadata = tmp_path / name / "train/metadata.jsonl"
        metadata.write_text("".join(json.dumps(row) + "\n" for row in lines))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")

    def told(*arguments: str) -> tuple[int, int, list[str]]:
        assert main(["data", "report", *arguments, "--json", *common, str(tmp_path / "report")]) == 0
        summary = json.loads(capsys.readouterr().out)
        found = summary["protected"]["gender"]
        return found["captions_before"], found["captions"], summary["remarks"]

    before, after, remarks = told(one, two)
    assert (before, after) == (3, 1)
    assert "Of 2 of 4 pictures the captions are known as they were before" in " ".join(remarks)

    assert main(["data", "merge", one, two, *common, str(tmp_path / "both")]) == 0
    assert main(["data", "clean", str(tmp_path / "both"), *common, str(tmp_path / "clean")]) == 0
    capsys.readouterr()
    files = (tmp_path / "clean").glob("*/metadata.jsonl")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    kept = {row["captions"][0]: (row.get("original_captions"), row.get("labelled_by")) for row in found}
    assert kept == {
        "A person rides.": (["A gentleman rides.", "A man rides there."], "two, one"),
        "A dog here.": (["An image of a dog here."], None),
        "A woman sits there.": (None, None),
    }
    assert told(str(tmp_path / "clean"))[:2] == (3, 1)

    original = tmp_path / "before.json"
    original.write_text(json.dumps({"0.png": "A lady rides there.", "elsewhere.png": "A man."}))
    assert told(one, "--original", str(original))[:2] == (1, 0)
    original.write_text(json.dumps({"elsewhere.png": "A man."}))
    assert main(["data", "report", one, "--original", str(original), *common, str(tmp_path / "no")]) == 1
    assert "names none of the pictures" in capsys.readouterr().err


def test_hashes_of_copies_are_near_and_of_others_far() -> None:
    pictures = [smooth_picture(seed) for seed in range(40)]
    hashes = [difference_hash(picture.convert("L")) for picture in pictures]
    copies = [difference_hash(picture.resize((70, 64)).convert("L")) for picture in pictures]
    assert max((a ^ b).bit_count() for a, b in zip(hashes, copies, strict=True)) <= 4
    far = [(hashes[i] ^ hashes[j]).bit_count() for i in range(40) for j in range(i)]
    assert min(far) > 8 and np.mean(far) == pytest.approx(32, abs=2)


def test_near_pairs_are_those_of_the_plain_way() -> None:
    random = np.random.default_rng(0)
    hashes = [int(random.integers(1, 2**63)) for _ in range(120)]
    for i in range(0, 120, 3):  # planted near ones, 1 to 7 bits away
        for bit in random.choice(64, int(random.integers(1, 8)), replace=False):
            hashes[i] ^= 0
            hashes[(i + 1) % 120] = hashes[i] ^ (1 << int(bit))
    for distance in (0, 2, 4, 7):
        plain = [(i, j) for j in range(120) for i in range(j) if (hashes[i] ^ hashes[j]).bit_count() <= distance]
        assert near_pairs(hashes, range(120), distance) == sorted(plain)
    for distance in range(1, 17):  # planted at just this distance
        for one in hashes:
            bits = random.choice(64, distance, replace=False)
            assert near_pairs([one, one ^ sum(1 << int(bit) for bit in bits)], range(2), distance) == [(0, 1)]
    assert same(["a", "b", "", "a", "", "b", "a"]) == [[0, 3, 6], [1, 5]]


def test_looking_never_raises(real_data: Path) -> None:
    problems = {path.name: look(path).problem for path in sorted((real_data / "nasty").iterdir()) if path.suffix}
    for name in ("zero_bytes.jpg", "svg_named.jpg", "html_named.jpg", "bomb_1bit_60000x60000.png"):
        assert problems[name]
    for name in ("cmyk.jpg", "gray16.png", "palette_transparent.png", "hopper.webp"):
        assert problems[name] is None


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a man in a blue shirt is riding a bike", ["man", "shirt", "bike"]),
        ("two dogs run through the tall grass", ["dog", "grass"]),
        ("black dog jumping over a log", ["dog", "log"]),
        ("three children play with a big red ball near the water", ["child", "ball", "water"]),
        ("people sit on wooden benches", ["person", "bench"]),
    ],
)
def test_nouns_by_rule(caption: str, nouns: list[str]) -> None:
    # Verbs are known by their -ing forms in the same set.
    known = ["running running playing playing sitting sitting jumping riding".split()]  # noqa: SIM905
    finder = NounFinder([*known, caption.split()])
    assert finder.nouns(caption.split()) == nouns


def test_small_word_rules() -> None:
    words = ["dogs", "buses", "women", "glasses", "ladies", "grass", "benches", "leaves"]
    assert [singular(word) for word in words] == [
        "dog",
        "bus",
        "woman",
        "glasses",
        "lady",
        "grass",
        "bench",
        "leaf",
    ]
    assert protected_terms(["an", "elderly", "asian", "woman"]) == [
        ("age", "elderly"),
        ("race and ethnicity", "asian"),
        ("gender", "woman"),
    ]
    # 5 words, 5 syllables, 1 sentence: 206.835 - 1.015 * 5 - 84.6
    assert reading_ease("The cat sat on mats.") == pytest.approx(117.16)
    assert reading_ease("") == 0.0


@pytest.mark.parametrize(
    ("counts", "gini", "entropy"),
    [({"a": 5, "b": 5}, 0.0, 1.0), ({"a": 8, "b": 4, "c": 2, "d": 2}, 0.3125, 1.75), ({}, 0.0, 0.0)],
)
def test_distribution(counts: dict[str, int], gini: float, entropy: float) -> None:
    from collections import Counter

    found = distribution(Counter(counts))
    assert found["gini"] == pytest.approx(gini) and found["entropy_bits"] == pytest.approx(entropy)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("an image of a dog running , fast", "A dog running, fast."),
        ("This photo shows two cats .", "Two cats."),
        ("The picture of the old church", "The old church."),
        ("A man 's dog is n't here", "A man's dog isn't here."),
        ("A photographer takes a picture of a bird.", "A photographer takes a picture of a bird."),
        ("Close-up of a bee", "A bee."),
        ("An image of", "An image of."),
        ("What a dog!", "What a dog!"),
        ("an old .22 rifle , loaded", "An old .22 rifle, loaded."),
        ("a child smiles :) at  me !!", "A child smiles :) at me!!"),
        ("  ", ""),
    ],
)
def test_rewriting_by_rule(caption: str, expected: str) -> None:
    assert rewrite(caption) == expected


def test_what_comes_into_the_folder_meanwhile_stays(tmp_path: Path) -> None:
    toy_picture(0).save(tmp_path / "a.png")

    def entries() -> Iterator[Entry]:
        yield Entry(Record(tmp_path / "a.png", ["A dog."], "a.png"), "train", {})
        (tmp_path / "set/notes.txt").write_text("mine")

    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="exists and is not empty"):
        write_set(entries(), tmp_path / "set", "Set", list)
    assert sorted(path.name for path in tmp_path.glob("**/*")) == ["a.png", "notes.txt", "set"]


def test_pictures_of_one_name_stay_apart(tmp_path: Path) -> None:
    ids = ["2020/IMG.png", "IMG.png", "2021/IMG.png", "img.png"]
    entries = []
    for seed, image_id in enumerate(ids):
        data = io.BytesIO()
        toy_picture(seed).save(data, "PNG")
        entries.append(Entry(Record(data.getvalue(), [f"caption {seed}"], image_id), "train", {}))
    assert write_set(entries, tmp_path / "set", "Set", list) == 4
    rows = [json.loads(line) for line in (tmp_path / "set/train/metadata.jsonl").read_text().splitlines()]
    assert len({row["file_name"].lower() for row in rows}) == 4
    for entry, row in zip(entries, rows, strict=True):
        assert (tmp_path / "set/train" / row["file_name"]).read_bytes() == entry.record.image
