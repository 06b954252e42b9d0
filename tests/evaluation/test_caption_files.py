"""Every form of prediction and reference file gives the same captions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from limner.cli.main import main
from limner.evaluation import score
from limner.evaluation.files import match, read_captions

CAPTIONS = {"1.jpg": ["a dog, running"], "2.jpg": ['the "red" bus']}
REFERENCES = {"1.jpg": ["a dog runs", "the dog"], "2.jpg": ["a red bus", "one bus"], "3.jpg": ["a cat", "cats"]}
COCO = {
    "images": [{"id": int(name[0]), "file_name": name} for name in REFERENCES],
    "annotations": [
        {"id": 10 * int(name[0]) + k, "image_id": int(name[0]), "caption": text}
        for name, group in REFERENCES.items()
        for k, text in enumerate(group)
    ],
}


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({key: group[0] for key, group in CAPTIONS.items()})),
        ("b.json", json.dumps(CAPTIONS)),
        ("c.json", json.dumps([{"image_id": key, "caption": group[0]} for key, group in CAPTIONS.items()])),
        ("d.jsonl", lines([{"path": key, "caption": group[0], "score": -1} for key, group in CAPTIONS.items()])),
        ("e.jsonl", lines([{key: group} for key, group in CAPTIONS.items()])),
        ("f.jsonl", lines([{"image": key, "captions": group} for key, group in CAPTIONS.items()])),
        ("g.tsv", "".join(f"{key}\t{group[0]}\n" for key, group in CAPTIONS.items())),
        ("h.csv", 'file_name,caption\n1.jpg,"a dog, running"\n2.jpg,"the ""red"" bus"\n'),
        ("i.tsv", 'image\tcaption\n1.jpg\ta dog, running\n2.jpg\tthe "red" bus\n'),
        ("k.csv", 'img,description\n1.jpg, "a dog, running"\n2.jpg,the "red" bus\n'),
        ("j.json", "\ufeff" + json.dumps(CAPTIONS)),
    ],
)
def test_every_form_gives_the_same_captions(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_captions(tmp_path / name)[0] == CAPTIONS


def test_coco_files_match_by_id_or_by_file_name(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    references, aliases = read_captions(tmp_path / "captions.json")
    assert references == {key[0]: group for key, group in REFERENCES.items()}
    assert match({"1": ["x"]}, references, aliases) == {"1": ["x"]}
    assert match({"photos/2.jpg": ["x"], "3.jpg": ["y"]}, references, aliases) == {"2": ["x"], "3": ["y"]}
    assert match({"deep/1.jpg": ["x"]}, REFERENCES, {}) == {"1.jpg": ["x"]}
    with pytest.raises(ValueError, match=r"Two predictions mean the image 1\.jpg"):
        match({"a/1.jpg": ["x"], "b/1.jpg": ["y"]}, REFERENCES, {})


def test_a_split_of_the_references(tmp_path: Path) -> None:
    rows = [
        {"image": key, "split": "dev" if key == "1.jpg" else "train", "captions": g}
        for key, g in REFERENCES.items()
    ]
    (tmp_path / "r.jsonl").write_text(lines(rows))
    assert list(read_captions(tmp_path / "r.jsonl", "dev")[0]) == ["1.jpg"]
    with pytest.raises(ValueError, match="no captions of the split test"):
        read_captions(tmp_path / "r.jsonl", "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json is not valid JSON"),
        ("a.json", "3", "expected an object or a list, got int"),
        ("a.json", "{}", "holds no captions"),
        ("a.json", '[{"caption": "x"}]', "entry 1 names no image"),
        ("a.json", '[{"image_id": 1}]', "entry 1 names no caption"),
        ("a.json", '{"1": 5}', "a caption of image 1 is 5"),
        ("a.jsonl", '{"1": "a"}\n[]\n', "line 2: expected an object"),
        ("a.jsonl", '{"1": "a"}\n{\n', r"line 2 is not valid JSON"),
        ("a.tsv", "a\tb\tc\n", "line 1: expected an image and a caption"),
        ("a.csv", "image,caption\n1.jpg,a dog, running\n", "line 2 has more fields than the header"),
        ("a.csv", "image,caption\n1.jpg\n", "line 2 names no caption"),
        ("a.csv", 'image,caption\n1.jpg,"a dog\n', "line 2 cannot be read"),
    ],
)
def test_other_files_are_refused_with_the_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_captions(tmp_path / name)


def test_score_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = tmp_path / "p.jsonl", tmp_path / "r.json"
    predictions.write_text(lines([{"path": f"x/{key}", "caption": group[0]} for key, group in CAPTIONS.items()]))
    references.write_text(json.dumps(REFERENCES))
    arguments = ["score", str(predictions), str(references), "--meteor", "off"]
    assert main([*arguments, "--json", "--per-image", "--save-corpus", str(tmp_path / "df.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = score(CAPTIONS, REFERENCES, meteor="off", per_image=True)
    for metric in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr", "rougeLsum", "vocabulary"):
        assert printed[metric] == pytest.approx(expected[metric])
    assert printed["per_image"]["2.jpg"]["CIDEr"] == pytest.approx(expected["per_image"]["2.jpg"]["CIDEr"])
    assert set(printed["controls"]) >= {"constant", "shuffled", "human", "sight"}

    only_first = tmp_path / "first.json"
    only_first.write_text(json.dumps({"1.jpg": REFERENCES["1.jpg"]}))
    predictions.write_text(lines([{"1.jpg": CAPTIONS["1.jpg"]}]))
    saved = ["score", str(predictions), str(only_first), "--meteor", "off", "--corpus", str(tmp_path / "df.json")]
    assert main([*saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["CIDEr"] == pytest.approx(expected["per_image"]["1.jpg"]["CIDEr"])

    assert main([*arguments, "--per-image"]) == 0
    table = capsys.readouterr().out
    assert "CIDEr" in table and "95 % interval" in table and "shuffled" in table
    assert main(["score", str(tmp_path / "none.json"), str(references)]) == 1
    assert f"There is no file {tmp_path / 'none.json'}" in capsys.readouterr().err
    assert main(["score", str(references), str(only_first)]) == 1
    assert "2 of 3 predictions have no reference" in capsys.readouterr().err


def test_a_caption_may_hold_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,caption\r\n1.jpg,"a red\r\ncar"\r\n', newline="")
    assert read_captions(tmp_path / "a.csv")[0] == {"1.jpg": ["a red\ncar"]}
    (tmp_path / "a.tsv").write_text("1.jpg\ta red\u2028car\n")
    assert read_captions(tmp_path / "a.tsv")[0] == {"1.jpg": ["a red\u2028car"]}


def test_tsv_of_csv_and_tsv_by_hand_give_the_captions_that_were_meant(tmp_path: Path) -> None:
    meant = ['a "stop" sign', '"Stop"', '"', '""', '"Stop" and "go"', 'a "', "plain", '"Stop", it says: "go"']
    with open(tmp_path / "a.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(("1.jpg", caption) for caption in meant)
    assert '"a ""stop"" sign"' in (tmp_path / "a.tsv").read_text()
    (tmp_path / "b.tsv").write_text("".join(f"1.jpg\t{caption}\n" for caption in meant))
    for name in ("a.tsv", "b.tsv"):
        assert read_captions(tmp_path / name)[0] == {"1.jpg": meant}


def test_an_image_named_twice_keeps_the_captions_of_both(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"1.jpg": "a dog", "1.jpg": "one dog"}')
    assert read_captions(tmp_path / "a.json")[0] == {"1.jpg": ["a dog", "one dog"]}
