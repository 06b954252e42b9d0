"""Every data set of the catalogue, from miniature hub repositories with its own columns and oddities."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from PIL import Image as Pillow

from limner.data.catalogue import ALL, CATALOGUE, describe, expand, get_dataset, load_dataset_by_name, module_of
from limner.data.catalogue import scenes as scenes_entry
from limner.data.catalogue.rows import Options, records_of
from limner.data.folder import ImageCaptionDataset
from limner.data.images import load_image
from limner.data.records import split_of
from limner.data.scenes import scene_splits

TEXT = Value("string")


def picture(number: int) -> bytes:
    """A picture of its own for each number; its first pixel tells the number."""
    buffer = io.BytesIO()
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = number % 256, number // 256
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(record) -> int:
    red, green, _ = load_image(record.image).getpixel((0, 0))
    return red + 256 * green


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``write(repository, file, numbers, column=(type, values), ...)`` adds a parquet file to a hub repository."""
    monkeypatch.setenv("LIMNER_HUB_MIRROR", str(tmp_path / "hub"))

    def write(repository: str, file: str, numbers: list[int], image: str = "image", **columns: Any) -> None:
        folder = tmp_path / "hub" / repository / "data"
        folder.mkdir(parents=True, exist_ok=True)
        cells = [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers]
        values = {image: cells} | {name: list(column[1]) for name, column in columns.items()}
        features = Features({image: Image()} | {name: column[0] for name, column in columns.items()})
        Dataset.from_dict(values, features=features).to_parquet(folder / file)

    return write


@pytest.fixture
def options(tmp_path: Path) -> Options:
    told: list[str] = []
    return Options(cache_dir=tmp_path / "cache", say=told.append)


def told(options: Options) -> list[str]:
    return options.say.__self__  # type: ignore[attr-defined]


FLICKR = "Mozilla/flickr30k-transformed-captions-gpt4o"


def write_all(hub: Callable[..., None]) -> None:
    hub(
        FLICKR,
        "test-0.parquet",
        list(range(40)),
        alt_text=(List(TEXT), [[f"photo {n}", f"p {n}"] for n in range(40)]),
    )
    hub("Mozilla/coco-gpt4o", "train-0.parquet", [100, 101], alt_text=(TEXT, ["a string", "another"]))
    hub("Mozilla/coco-gpt4o", "train-1.parquet", [102, 103], alt_text=(List(TEXT), [["a list", "of two"], ["one"]]))
    hub("Mozilla/coco-gpt4o", "validation-0.parquet", [104], alt_text=(List(TEXT), [["held out"]]))
    documents = (Value("int64"), [1, 0, 1, 1, 0, 1])
    hub("mozilla/docornot", "train-0.parquet", list(range(200, 206)), is_document=documents)
    hub("mozilla/docornot", "test-0.parquet", [210, 211], is_document=(Value("int64"), [1, 0]))
    hub(
        "Mozilla/pexels-gpt4o",
        "train-0.parquet",
        list(range(300, 310)),
        alt_text=(TEXT, [f"stock {n}" for n in range(10)]),
    )
    checked = ["a checked one", "", "  ", None, "a second", "a third", "a second, said again"]
    hub(
        "Mozilla/alt-text-validation",
        "train-0.parquet",
        [400, 401, 402, 403, 404, 405, 404],
        gpt_alt_text=(TEXT, checked),
        alt_text=(TEXT, ["old"] * 7),
    )
    for split, numbers in (("train", [500, 501]), ("val", [502]), ("test", [503])):
        said = [[] if split == "test" else [f"says {n}", f"reads {n}"] for n in numbers]
        ids = (TEXT, [f"id-{n}" for n in numbers])
        hub("lmms-lab/TextCaps", f"{split}-0.parquet", numbers, image_id=ids, caption_str=(List(TEXT), said))


def numbers(rows: Dataset) -> list[int]:
    return [number_of(record) for record in records_of(rows)]


def test_flickr_has_one_split_which_is_divided(hub, options: Options) -> None:
    write_all(hub)
    first = get_dataset("flickr", options)
    assert {"train", "validation"} <= first.keys()
    assert first["train"].column_names == ["image", "captions", "image_id"]
    found = {split: set(numbers(rows)) for split, rows in first.items()}
    assert set().union(*found.values()) == set(range(40))
    assert sum(map(len, found.values())) == 40
    for rows in first.values():
        for record in records_of(rows):
            assert record.captions == [f"photo {number_of(record)}", f"p {number_of(record)}"]
    for split, rows in first.items():
        assert all(split_of(i) == split for i in rows["image_id"])
    more = list(range(1000, 1040))
    hub(FLICKR, "test-1.parquet", more, alt_text=(List(TEXT), [[f"new {n}"] for n in more]))
    grown = get_dataset("flickr", options)
    for split in first:
        assert found[split] == set(numbers(grown[split])) - set(more)


def test_coco_has_strings_in_some_files_and_lists_in_others(hub, options: Options) -> None:
    write_all(hub)
    whole = get_dataset("coco", options)
    captions = {number_of(r): r.captions for r in records_of(whole["train"])}
    assert captions == {100: ["a string"], 101: ["another"], 102: ["a list", "of two"], 103: ["one"]}
    assert [(number_of(r), r.captions) for r in records_of(whole["validation"])] == [(104, ["held out"])]


def test_docornot_takes_the_documents_only(hub, options: Options) -> None:
    write_all(hub)
    whole = get_dataset("docornot", options)
    assert {n for rows in whole.values() for n in numbers(rows)} == {200, 202, 203, 205, 210}
    assert numbers(whole["test"]) == [210]
    assert len(whole["train"]) >= 1 <= len(whole["validation"])
    assert {c for rows in whole.values() for captions in rows["captions"] for c in captions} == {"Text document."}


def test_the_validation_set_never_trains_on_what_it_validates(hub, options: Options) -> None:
    write_all(hub)
    whole = get_dataset("validation", options)
    found = {split: numbers(rows) for split, rows in whole.items()}
    assert sorted(n for of_split in found.values() for n in of_split) == [
        400,
        404,
        405,
    ]  # 404 once, though twice there
    assert found["train"]
    assert found["validation"]
    said = {number_of(r): r.captions for rows in whole.values() for r in records_of(rows)}
    assert said[404] == ["a second", "a second, said again"]
    assert told(options) == ["validation: 3 of 7 rows have no caption and are left out."]


def test_textcaps_and_pexels(hub, options: Options) -> None:
    write_all(hub)
    whole = get_dataset("textcaps", options)
    assert {split: rows["image_id"] for split, rows in whole.items()} == {
        "train": ["id-500", "id-501"],
        "validation": ["id-502"],
    }
    assert records_of(whole["validation"])[0].captions == ["says 502", "reads 502"]
    pexels = get_dataset("pexels", options)
    assert sorted(n for rows in pexels.values() for n in numbers(rows)) == list(range(300, 310))
    assert min(len(pexels["train"]), len(pexels["validation"])) > 0


def test_all_means_every_hub_data_set_concatenated_and_shuffled(hub, options: Options) -> None:
    write_all(hub)
    names = ["flickr", "coco", "docornot", "pexels", "validation", "textcaps"]
    assert expand([ALL]) == expand(["flickr", ALL]) == names
    splits = load_dataset_by_name([ALL], options)
    parts = [get_dataset(name, options)["train"] for name in names]
    expected = concatenate_datasets(parts).shuffle(seed=42)["image_id"]
    assert [record.image_id for record in splits.train] == list(expected)
    everything = {number_of(r) for part in (splits.train, splits.validation, splits.test) for r in part}
    assert everything == {
        *range(40),
        *range(100, 105),
        200,
        202,
        203,
        205,
        210,
        *range(300, 310),
        400,
        404,
        405,
        500,
        501,
        502,
    }
    record = pickle.loads(pickle.dumps(splits.train[3]))  # as a worker process gets it
    assert number_of(record) == number_of(splits.train[3])
    assert describe(splits).startswith(f"train {len(splits.train)} pictures (")


def test_weights_mix(hub, options: Options) -> None:
    write_all(hub)
    splits = load_dataset_by_name(["flickr", "coco"], options, weights=[1, 1])
    from_coco = sum(100 <= number_of(record) < 200 for record in splits.train)
    assert 0.35 < from_coco / len(splits.train) < 0.65
    assert {number_of(r) for r in splits.train} >= {100, 101, 102, 103}
    assert len({number_of(r) for r in splits.train if number_of(r) < 40}) == len(
        get_dataset("flickr", options)["train"]
    )
    again = load_dataset_by_name(["flickr", "coco"], options, weights=[1, 1])
    assert [r.image_id for r in again.train] == [r.image_id for r in splits.train]
    with pytest.raises(ValueError, match="1 weights were given for 2 data sets"):
        load_dataset_by_name(["flickr", "coco"], options, weights=[1])


def test_what_one_data_set_validates_on_is_not_trained_on_from_another(hub, options: Options) -> None:
    write_all(hub)
    held_out = numbers(get_dataset("flickr", options)["validation"])
    hub("me/mine", "train-0.parquet", [held_out[0], 900], caption=(TEXT, ["the same photo", "a new one"]))
    hub("me/mine", "validation-0.parquet", [901], caption=(TEXT, ["mine"]))
    splits = load_dataset_by_name(["flickr", "me/mine"], options)
    assert held_out[0] in [number_of(r) for r in splits.validation]
    assert held_out[0] not in [number_of(r) for r in splits.train]
    assert 900 in [number_of(r) for r in splits.train]
    assert told(options)[-1].startswith("1 training pictures are validated or tested on elsewhere")


def test_any_hub_id_with_its_columns(hub, options: Options) -> None:
    from dataclasses import replace

    for k, split in enumerate(("train", "validation")):
        hub(
            "me/fotos",
            f"{split}-0.parquet",
            [k],
            image="foto",
            bildtext=(TEXT, [f"bild {k}"]),
            size=(Value("int64"), [1]),
        )
    with pytest.raises(
        ValueError, match=r"no column named .*; its columns are: foto, bildtext, size\..*--caption-column"
    ):
        get_dataset("me/fotos", options)
    whole = get_dataset("me/fotos", replace(options, caption_column="bildtext"))
    assert [records_of(whole[split])[0].captions for split in ("train", "validation")] == [["bild 0"], ["bild 1"]]
    with pytest.raises(ValueError, match="has no column 'size2'"):
        get_dataset("me/fotos", replace(options, caption_column="size2"))
    with pytest.raises(ValueError, match="me/fotos has no row with a caption"):
        get_dataset("me/fotos", replace(options, caption_column="size"))


def test_names_that_do_not_exist(options: Options, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"There is no data set, folder or file 'flikr'\. Did you mean 'flickr'"
    ):
        get_dataset("flikr", options)
    with pytest.raises(OSError, match=r"someone/pictures is not on this machine and the hub cannot be reached"):
        get_dataset("someone/pictures", options)
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*flickr8k: put the photos and Flickr8k\.token\.txt there"
    ):
        get_dataset("flickr8k", options)
    with pytest.raises(FileNotFoundError, match=r"'./photos/of/mine'"):
        get_dataset("./photos/of/mine", options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture with a caption"):
        get_dataset(str(tmp_path / "empty"), options)


def test_a_damaged_repository(hub, options: Options, tmp_path: Path) -> None:
    write_all(hub)
    file = tmp_path / "hub" / FLICKR / "data" / "test-0.parquet"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read: ") as caught:
        get_dataset("flickr", options)
    assert "\n" not in str(caught.value)


def flickr8k_as_published(real_data: Path, folder: Path) -> list[str]:
    """The published layout, with some of the real photos."""
    source = ImageCaptionDataset(real_data / "flickr8k").splits()
    photos = [*source.train[:6], *source.validation[:3]]
    (folder / "Flicker8k_Dataset").mkdir(parents=True)
    lines = []
    for record in photos:
        (folder / "Flicker8k_Dataset" / record.image_id).write_bytes(record.image.read())
        lines += [f"{record.image_id}#{k}\t{caption}" for k, caption in enumerate(record.captions)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for name in ("train", "dev"):
        shutil.copy(real_data / "flickr8k" / f"Flickr_8k.{name}Images.txt", folder)
    return [record.image_id for record in photos]


def test_flickr8k_from_local_files(real_data: Path, options: Options, tmp_path: Path) -> None:
    names = flickr8k_as_published(real_data, tmp_path / "cache" / "flickr8k")
    for name in ("flickr8k", f"flickr8k={tmp_path / 'cache' / 'flickr8k'}"):
        splits = load_dataset_by_name([name], options)
        assert [r.image_id for r in splits.train] == names[:6]
        assert [r.image_id for r in splits.validation] == names[6:]
        assert all(len(r.captions) == 5 for r in splits.train)
        assert load_image(splits.validation[0].image).size == (192, 192)
    whole = load_dataset_by_name([f"flickr8k={real_data / 'flickr8k'}"], options)
    assert (len(whole.train), len(whole.validation)) == (6000, 1000)
    assert load_image(whole.train[5999].image).size == (192, 192)


def test_coco_in_karpathys_splits(real_data: Path, options: Options, tmp_path: Path) -> None:
    folder = tmp_path / "karpathy"
    (folder / "val2014").mkdir(parents=True)
    images = []
    for record, split in zip(
        ImageCaptionDataset(real_data / "coco_mini")[:4], ["restval", "val", "test", "train"], strict=True
    ):
        (folder / "val2014" / record.image_id).write_bytes(record.image.read())
        sentences = [{"raw": caption, "tokens": []} for caption in record.captions]
        images.append({"filename": record.image_id, "filepath": "val2014", "split": split, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    splits = load_dataset_by_name([f"coco-karpathy={folder}"], options)
    ids = [f"val2014/{image['filename']}" for image in images]
    assert [r.image_id for r in splits.train] == [ids[0], ids[3]]
    assert [[r.image_id for r in part] for part in (splits.validation, splits.test)] == [[ids[1]], [ids[2]]]
    assert splits.test[0].captions == [" ".join(s["raw"].split()) for s in images[2]["sentences"]]


def test_folders_are_combined_and_keep_their_splits(real_data: Path, options: Options, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for k in range(12):
            Pillow.new("RGB", (4, 4), (k, 0 if name == "one" else 9, 0)).save(tmp_path / name / f"{k}.png")
            (tmp_path / name / f"{k}.txt").write_text(f"{name} {k}")
    alone = load_dataset_by_name([str(tmp_path / "one")], options)
    both = load_dataset_by_name([str(tmp_path / "one"), str(tmp_path / "two")], options)
    assert len(both.train) + len(both.validation) + len(both.test) == 24
    assert {c for r in alone.validation for c in r.captions} <= {c for r in both.validation for c in r.captions}
    assert len({r.image_id for part in (both.train, both.validation, both.test) for r in part}) == 24
    mixed = load_dataset_by_name([str(real_data / "coco_mini"), str(tmp_path / "one")], options)
    assert len(mixed.train) + len(mixed.validation) + len(mixed.test) == 92
    assert all(load_image(record.image).mode == "RGB" for record in mixed.train)


def test_scenes_are_a_data_set_like_any_other(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes_entry, "scene_splits", lambda: scene_splits(6, 2, 2))
    splits = load_dataset_by_name(["scenes"], options)
    expected = scene_splits(6, 2, 2)
    for ours, theirs in zip(splits.train, expected.train, strict=True):
        assert np.array_equal(np.array(load_image(ours.image)), theirs.image)
        assert (ours.captions, ours.image_id) == (theirs.captions, theirs.image_id)
    assert (len(splits.validation), len(splits.test)) == (2, 2)


def test_every_entry_says_what_it_is() -> None:
    for name in CATALOGUE:
        module = module_of(name)
        assert module.__doc__
        assert len(module.__doc__.splitlines()[0]) > 30
        assert callable(module.get_dataset)
        assert module.REPOSITORY is None or "/" in module.REPOSITORY
