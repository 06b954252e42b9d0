"""A person's own pictures: every form of manifest gives the same records, and every mistake one clear sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from limner.cli.evaluate import _pictures
from limner.data.catalogue import load_dataset_by_name
from limner.data.folder import ImageCaptionDataset
from limner.data.images import load_image

CAPTIONS = {"a.jpg": ["a red square", "a crimson box, seen from above"], "deep/b ü.png": ["a blue square"]}
COLOURS = {"a.jpg": "red", "deep/b ü.png": "blue"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(tmp_path / name)
    return tmp_path


def rows() -> list[tuple[str, str]]:
    return [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def sidecars(root: Path) -> None:
    for name, captions in CAPTIONS.items():
        (root / name).with_suffix(".txt").write_text("\n".join(captions) + "\n\n", encoding="utf-8")


def json_lists(root: Path) -> None:
    (root / "captions.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")


def json_pairs(root: Path) -> None:
    """The same file named twice in one object: both captions are kept."""
    text = ",".join(f"{json.dumps(name)}: {json.dumps(caption)}" for name, caption in rows())
    (root / "captions.json").write_text("{" + text + "}", encoding="utf-8")


def json_objects(root: Path) -> None:
    (root / "any name.json").write_text(json.dumps([{"file": n, "caption": c} for n, c in rows()]))


def json_lines(root: Path) -> None:
    lines = [json.dumps({"image": n, "captions": c}) for n, c in CAPTIONS.items()]
    (root / "captions.jsonl").write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")


def comma_table(root: Path) -> None:
    with (root / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("filename", "text"), *rows()])


def tab_table(root: Path) -> None:
    (root / "list.tsv").write_text("filepath\tcaption\n" + "\n".join(f"{n}\t{c}" for n, c in rows()))


def hugging_face(root: Path) -> None:
    (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": c}) for n, c in rows()))
    (root / "dataset_infos.json").write_text("{}")


def karpathy(root: Path) -> None:
    images = []
    for name, captions in CAPTIONS.items():
        folder, _, file = name.rpartition("/")
        entry = {"filename": file, "split": "train", "sentences": [{"raw": c} for c in captions]}
        images.append(entry | ({"filepath": folder} if folder else {}))
    (root / "dataset_mine.json").write_text(json.dumps({"dataset": "mine", "images": images}))


def coco(root: Path) -> None:
    ids = {name: k for k, name in enumerate(CAPTIONS)}
    images = [{"id": k, "file_name": name} for name, k in ids.items()]
    notes = [{"id": 90 + k, "image_id": ids[n], "caption": c} for k, (n, c) in enumerate(rows())]
    (root / "captions.json").write_text(json.dumps({"info": {"id": 1}, "images": images, "annotations": notes}))


FORMS = [sidecars, json_lists, json_pairs, json_objects, json_lines, comma_table, tab_table]
FORMS += [hugging_face, karpathy, coco]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_records(pictures: Path, form: Callable[[Path], None]) -> None:
    form(pictures)
    dataset = ImageCaptionDataset(pictures)
    assert {record.image_id: record.captions for record in dataset} == CAPTIONS
    assert dataset.remarks == []
    for record in dataset:
        red, _, blue = load_image(record.image).getpixel((4, 3))
        assert (red > 200, blue > 200) == (COLOURS[record.image_id] == "red", COLOURS[record.image_id] == "blue")
    manifests = [file for file in pictures.iterdir() if file.suffix in (".json", ".jsonl", ".csv", ".tsv")]
    named = [file for file in manifests if file.name != "dataset_infos.json"]
    for file in named:  # the manifest itself may be given instead of its folder
        assert [r.captions for r in ImageCaptionDataset(file)] == [r.captions for r in dataset]


def test_flickr8k_token_files(pictures: Path) -> None:
    (pictures / "tokens.txt").write_text("\n".join(f"{n}#{k}\t{c}" for k, (n, c) in enumerate(rows())))
    assert {r.image_id: r.captions for r in ImageCaptionDataset(pictures / "tokens.txt")} == CAPTIONS
    text = "image,caption\n" + "\n".join(f'{n},"{c}"' for n, c in rows())
    (pictures / "captions.txt").write_text(text)
    assert {r.image_id: r.captions for r in ImageCaptionDataset(pictures / "captions.txt")} == CAPTIONS


def test_a_quotation_mark_in_a_tab_table_is_just_that(pictures: Path) -> None:
    """One that opens a caption swallows neither the lines up to the next one nor the pictures in them."""
    captions = {"a.jpg": ['"a 5 inch'], "deep/b ü.png": ['last"']}
    (pictures / "list.tsv").write_text("Image\tCaption\n" + "".join(f"{n}\t{c}\n" for n, (c,) in captions.items()))
    assert {r.image_id: r.captions for r in ImageCaptionDataset(pictures)} == captions


def test_columns_can_be_named(pictures: Path) -> None:
    (pictures / "data.jsonl").write_text("\n".join(json.dumps({"foto": n, "bildtext": c}) for n, c in rows()))
    dataset = ImageCaptionDataset(pictures, image_column="foto", caption_column="bildtext")
    assert {r.image_id: r.captions for r in dataset} == CAPTIONS
    with pytest.raises(ValueError, match=r"no file column .* the columns are: foto, bildtext\..*--image-column"):
        ImageCaptionDataset(pictures)
    (pictures / "data.json").write_text(json.dumps([{"foto": n, "bildtext": c} for n, c in rows()]))
    dataset = ImageCaptionDataset(pictures / "data.json", "foto", "bildtext")
    assert {r.image_id: r.captions for r in dataset} == CAPTIONS


def test_split_folders_of_the_hugging_face_form(tmp_path: Path) -> None:
    for split, colour in (("train", "red"), ("validation", "blue"), ("test", "green")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / split / "1.png")
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": colour}))
    splits = ImageCaptionDataset(tmp_path).splits()
    assert [[r.image_id for r in splits[name]] for name in ("train", "validation", "test")] == [
        ["train/1.png"],
        ["validation/1.png"],
        ["test/1.png"],
    ]


BROKEN = {
    "names a missing file": ('{"a.jpg": "x", "gone.jpg": "y"}', r"names 1 file that is not there: gone\.jpg"),
    "names many": (
        json.dumps({f"gone{k}.jpg": "y" for k in range(9)}),
        r"names 9 files that are not there: gone0\.jpg, gone1\.jpg, gone2\.jpg and 6 more\..*--skip-bad-images",
    ),
    "empty caption": ('{"a.jpg": " "}', r"1 picture has an empty caption: a\.jpg"),
    "no caption": ('{"a.jpg": []}', r"1 picture has an empty caption: a\.jpg"),
    "null caption": ('[{"file": "a.jpg", "caption": null}]', "empty caption"),
    "number": ('{"a.jpg": 7}', "a caption must be text, got 7"),
    "torn": ('{"a.jpg": "x"', "is not valid JSON"),
    "scalar": ("3", "expected an object or a list"),
    "empty": ("{}", "has no entries"),
    "rows are lists": ('[["a.jpg", "x"]]', "expected an object with a file and a caption, got list"),
    "outside": ('{"../a.jpg": "x"}', r"'\.\./a\.jpg' leads out of"),
    "outside backwards": ('{"deep\\\\..\\\\..\\\\a.jpg": "x"}', "leads out of"),
    "absolute": ('{"/etc/passwd": "x"}', "leads out of"),
    "a link out": ('{"link.jpg": "x"}', r"'link\.jpg' is a symbolic link out of"),
    "unknown split": ('[{"file": "a.jpg", "caption": "x", "split": "holdout"}]', "Unknown split 'holdout'"),
    "two splits": (
        '[{"file":"a.jpg","caption":"x","split":"train"},{"file":"a.jpg","caption":"y","split":"test"}]',
        "stands in two splits",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_mistakes_in_a_manifest_are_told_in_one_sentence(pictures: Path, tmp_path_factory, name: str) -> None:
    text, message = BROKEN[name]
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    Image.new("RGB", (4, 4)).save(outside)
    os.symlink(outside, pictures / "link.jpg")
    (pictures / "captions.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        ImageCaptionDataset(pictures)
    assert "\n" not in str(caught.value)
    assert str(pictures) in str(caught.value) or name == "unknown split"


def test_skipping_counts_and_names(pictures: Path) -> None:
    (pictures / "captions.json").write_text(
        '{"a.jpg": ["x", ""], "deep/b ü.png": "", "g1.jpg": "y", "g2.jpg": "y"}'
    )
    dataset = ImageCaptionDataset(pictures, skip_bad_images=True)
    assert [(r.image_id, r.captions) for r in dataset] == [("a.jpg", ["x"])]
    assert [remark.removeprefix(f"{pictures}").split(": ", 1)[1] for remark in dataset.remarks] == [
        "2 pictures are missing and left out: g1.jpg, g2.jpg.",
        "2 pictures have an empty caption, which is left out: a.jpg, deep/b ü.png.",
    ]


def test_nothing_is_left_out_in_silence(pictures: Path) -> None:
    (pictures / "a.txt").write_text("a red square\na red square\n")
    dataset = ImageCaptionDataset(pictures)
    assert dataset[0].captions == ["a red square"] * 2
    assert [remark.split(": ", 1)[1] for remark in dataset.remarks] == [
        "1 picture has no .txt beside it and is left out: deep/b ü.png.",
        "1 picture repeats a caption (kept): a.jpg.",
    ]


def test_folders_without_pictures_or_captions(pictures: Path, tmp_path_factory) -> None:
    with pytest.raises(ValueError, match="holds 2 pictures but no captions: put"):
        ImageCaptionDataset(pictures)
    with pytest.raises(ValueError, match="holds no picture with a caption"):
        ImageCaptionDataset(tmp_path_factory.mktemp("bare"))
    with pytest.raises(FileNotFoundError, match="There is no folder or file /no/such"):
        ImageCaptionDataset("/no/such")
    json_lists(pictures)
    (pictures / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds 2 manifests \(captions.json, manifest.json\); name the one"):
        ImageCaptionDataset(pictures)
    (pictures / "latin.csv").write_bytes(b"file,caption\na.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin\.csv is not UTF-8 text"):
        ImageCaptionDataset(pictures / "latin.csv")


def test_tar_shards_are_read_in_place(pictures: Path) -> None:
    with tarfile.open(pictures / "shard-000.tar", "w") as tar:
        for key, colour in (("x/0001", "red"), ("0002", "blue"), ("0003", "green"), ("0004", "")):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), colour or "black").save(buffer, "PNG")
            parts = {"png": buffer.getvalue(), "txt": f"a {colour} one\nanother\n".encode()}
            if colour == "blue":
                parts["left.png"] = parts.pop("png")
            if colour == "green":
                parts = {"png": parts["png"], "json": b'{"caption": "a green one"}'}
            elif not colour:
                parts = {"txt": b"no picture"}
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    dataset = ImageCaptionDataset(pictures / "shard-000.tar")
    assert {r.image_id: r.captions for r in dataset} == {
        "x/0001.png": ["a red one", "another"],
        "0002.left.png": ["a blue one", "another"],
        "0003.png": ["a green one"],
    }
    assert [load_image(r.image).getpixel((0, 0)) for r in dataset] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]
    assert dataset.remarks[0].endswith("1 sample holds no picture and is left out: 0004.")
    whole = (pictures / "shard-000.tar").read_bytes()
    (pictures / "cut.tar").write_bytes(whole[:1540])
    with pytest.raises(ValueError, match=r"cut\.tar"):
        ImageCaptionDataset(pictures / "cut.tar")
    (pictures / "zip.tar").write_bytes(b"PK\3\4" + bytes(600))
    with pytest.raises(ValueError, match="not an uncompressed"):
        ImageCaptionDataset(pictures / "zip.tar")


def shard(path: Path, **members: bytes) -> None:
    """A shard of these members; ``__`` stands for a dot."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_shards_that_number_from_zero_each_keep_all_pictures(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", x0__png=picture("red"), x0__txt=b"red", x2__png=picture("lime"), x2__txt=b"lime")
    shard(tmp_path / "b.tar", x0__png=picture("blue"), x0__txt=b"blue", x1__png=picture("black"), x1__txt=b"black")
    records = {record.image_id: record for record in ImageCaptionDataset(tmp_path)}
    assert list(records) == ["a/x0.png", "a/x2.png", "b/x0.png", "b/x1.png"]
    for record in records.values():
        assert load_image(record.image).getpixel((0, 0)) == ImageColor.getrgb(record.captions[0])


def test_another_shard_moves_no_picture_to_another_split(tmp_path: Path) -> None:
    def add(name: str) -> None:
        pictures = {f"{number:03}__png": picture("red") for number in range(40)}
        shard(tmp_path / name, **pictures, **{f"{number:03}__txt": b"red" for number in range(40)})

    def splits() -> dict[tuple[str, str], str]:
        """By shard and member."""
        found = ImageCaptionDataset(tmp_path).splits()
        pictures = [(name, r.image) for name in ("train", "validation", "test") for r in found[name]]
        return {(Path(image.shard).name, image.member): name for name, image in pictures}

    add("a.tar")
    assert {record.image_id for record in ImageCaptionDataset(tmp_path)} >= {"000.png", "039.png"}
    shard(tmp_path / "b.tar", x__png=picture("red"), x__txt=b"red")
    two = splits()
    add("c.tar")
    assert two.items() <= splits().items()


def test_shards_name_their_splits(tmp_path: Path) -> None:
    for folder in ("names", "folders"):
        for split, colour in (("train", "red"), ("val", "blue"), ("test", "lime")):
            within = Path("names", f"{split}-000.tar") if folder == "names" else Path(folder, split, "000.tar")
            (tmp_path / within).parent.mkdir(parents=True, exist_ok=True)
            shard(tmp_path / within, a__png=picture(colour), a__txt=colour.encode())
        splits = ImageCaptionDataset(tmp_path / folder).splits()
        found = [[r.captions for r in splits[name]] for name in ("train", "validation", "test")]
        assert found == [[["red"]], [["blue"]], [["lime"]]]


def test_hidden_members_are_none_and_a_column_of_captions_can_be_named(tmp_path: Path) -> None:
    row = json.dumps({"alt": "a red one", "caption": "something else"}).encode()
    hidden = {"__DS_Store": b"x", "____a__png": b"x"}
    (tmp_path / "._a.tar").write_bytes(b"x")
    shard(tmp_path / "a.tar", **hidden, a__png=picture("red"), a__json=row, a__txt=b"a text")
    assert [r.captions for r in ImageCaptionDataset(tmp_path)] == [["a text"]]
    assert [r.captions for r in ImageCaptionDataset(tmp_path, caption_column="alt")] == [["a red one"]]


def test_a_manifest_beside_split_folders_leaves_their_pictures_in_them(tmp_path: Path) -> None:
    names = [f"{split}/{i}.png" for split in ("train", "val", "test") for i in range(4)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture("red"))
    (tmp_path / "captions.json").write_text(json.dumps(dict.fromkeys(names, "a red one")))
    splits = ImageCaptionDataset(tmp_path).splits()
    assert [r.image_id for part in (splits.train, splits.validation, splits.test) for r in part] == names
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 4, 4]


def test_the_real_photos_are_read_from_their_shards(real_data: Path) -> None:
    flickr = ImageCaptionDataset(real_data / "flickr8k")
    splits = flickr.splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6000, 1000, 0)
    assert sum(len(r.captions) for r in flickr) == 35_000
    names = (real_data / "flickr8k" / "Flickr_8k.devImages.txt").read_text().split()
    assert {r.image_id for r in splits.validation} == set(names)
    assert load_image(splits.validation[0].image).size == (192, 192)
    assert "113 pictures stand in several shards" in flickr.remarks[0]
    coco = ImageCaptionDataset(real_data / "coco_mini")
    assert len(coco) == 80
    assert all(len(r.captions) == 5 and max(load_image(r.image).size) == 320 for r in coco)
    assert min(len(part) for part in (coco.splits().train, coco.splits().validation)) > 0


def test_names_of_other_bytes_than_utf8(tmp_path: Path) -> None:
    """Archives from elsewhere hold them. The picture is read, and its id is text that can be written down."""
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", name + b".png")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    with open(name + b".txt", "w") as file:
        file.write("a black square\u2028of eight pixels\n")
    (record,) = ImageCaptionDataset(tmp_path)
    assert record.image_id == "caf\\xe9.png"
    assert record.captions == ["a black square of eight pixels"]
    assert load_image(record.image).size == (8, 8)
    splits = load_dataset_by_name([str(tmp_path)])  # as every verb takes it: through a table
    (listed,) = [*splits.train, *splits.validation, *splits.test]
    assert (listed.image_id, load_image(listed.image).size) == ("caf\\xe9.png", (8, 8))
    assert [picture.image_id for picture in _pictures((str(tmp_path),))] == [f"{tmp_path}/caf\\xe9.png"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for member in sorted(tmp_path.glob("caf*"), reverse=True):
            info = tar.gettarinfo(member, "caf\xe9" + member.suffix)
            tar.addfile(info, io.BytesIO(member.read_bytes()))
    splits = load_dataset_by_name([str(tmp_path / "a.tar")])
    (stored,) = [*splits.train, *splits.validation, *splits.test]
    assert (stored.image_id, load_image(stored.image).size) == ("caf\\xe9.png", (8, 8))


def test_what_no_manifest_names_is_told(pictures: Path) -> None:
    (pictures / "captions.json").write_text(json.dumps({"a.jpg": "a red square"}))
    (pictures / "a.txt").write_text("a square of red\n")
    (pictures / "other.json").write_text("{}")
    told = " ".join(ImageCaptionDataset(pictures).remarks)
    assert "1 picture is not in the manifest and is left out: deep/b ü.png." in told
    assert "1 text is not read, since a manifest is there: a.txt." in told
    assert "1 other manifest is not read: other.json." in told
    (pictures / "captions.json").unlink()
    (pictures / "other.json").unlink()
    (pictures / "nothing.txt").write_text("a caption without a picture\n")
    told = " ".join(ImageCaptionDataset(pictures).remarks)
    assert "1 text has no picture beside it and is left out: nothing.txt." in told


def test_sidecars_do_not_lead_out_of_the_folder(pictures: Path, tmp_path_factory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("nobody's caption\n")
    (pictures / "a.txt").symlink_to(secret)
    with pytest.raises(ValueError, match=r"'a\.txt' is a symbolic link out of"):
        ImageCaptionDataset(pictures)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"file": "a.jpg", "caption": "x", "split": "bogus"}', "line 1: Unknown split 'bogus'"),
        ("a.jsonl", '{"file": "' + "x" * 5000 + '", "caption": "x"}', "line 1: 'xxx.* is no file"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.csv", 'file,caption\na.jpg,"a 5 inch\nb.jpg,last', r"line 3 cannot be read .* must end with one"),
        ("a.csv", "file,caption\na.jpg,red, and blue", "line 2 has more fields than the header"),
        ("a.csv", "file,caption\na.jpg", "1 picture has an empty caption: a.jpg"),
    ],
)
def test_odd_manifests_are_one_sentence(pictures: Path, name: str, content: str, message: str) -> None:
    (pictures / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageCaptionDataset(pictures)


def test_pictures_of_kinds_that_are_not_read_are_told(tmp_path: Path) -> None:
    for name in ("a.heic", "b.JXL", "c.jfif"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).with_suffix(".txt").write_text("a red one")
    dataset = ImageCaptionDataset(tmp_path)
    assert [record.image_id for record in dataset] == ["c.jfif"]
    assert dataset.remarks == [f"{tmp_path}: 2 pictures are left out; convert to JPEG: a.heic, b.JXL."]
    (tmp_path / "c.jfif").unlink()
    with pytest.raises(ValueError, match=r"convert to JPEG: a\.heic, b\.JXL"):
        ImageCaptionDataset(tmp_path)
