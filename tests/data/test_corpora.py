"""Corpora: where text comes from, and how it is split."""

from __future__ import annotations

import re

import pytest

from limner.data.corpora import CORPORA, Corpus, load_corpus


def test_tiny_ships_with_limner(tmp_path):
    corpus = load_corpus("tiny", tmp_path)
    (text,) = corpus.documents
    assert 15_000 < len(text) < 40_000
    assert text.startswith("The Limner of Low Bridge")
    assert not list(tmp_path.iterdir())


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8")
    assert load_corpus(tmp_path).documents == ("first", "second")
    assert load_corpus(tmp_path / "b.txt") == Corpus("b", ("second",))


def test_bad_sources_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name in ("nothing", "./nope", "../nope", "texts/typo", "a/b/c", "mine/words.txt"):
        with pytest.raises(FileNotFoundError, match=rf"^There is no file or folder '{re.escape(name)}' here, and"):
            load_corpus(name)
    with pytest.raises(ValueError, match="holds no text file"):
        load_corpus(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text \(byte 3\)"):
        load_corpus(tmp_path / "latin.txt")
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no text"):
        load_corpus(tmp_path / "blank.txt")


def test_split_is_of_the_text():
    text = " ".join(str(number) for number in range(1000))
    training, held_back = Corpus("numbers", (text,)).split(0.1)
    assert training[0] + held_back[0] == text
    assert training[0].endswith(" ")  # no word is cut
    assert len(held_back[0]) == pytest.approx(0.1 * len(text), abs=5)


def test_split_of_documents_keeps_order_and_everything():
    documents = tuple(f"document {number} " * 10 for number in range(20))
    training, held_back = Corpus("many", documents).split(0.25)
    assert "".join(training + held_back) == "".join(documents)
    assert sum(map(len, held_back)) == pytest.approx(0.25 * len("".join(documents)), abs=20)


def test_own_validation_is_kept():
    assert Corpus("hub", ("a",), ("b",)).split(0.5) == (("a",), ("b",))


@pytest.mark.parametrize("documents", [("a",), ("ab",), ("  a",)])
def test_no_empty_side(documents):
    with pytest.raises(ValueError, match="too short to hold back"):
        Corpus("short", documents).split(0.1)
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        Corpus("short", documents).split(1.0)


def test_verdict_and_shakespeare_from_the_cache(real_data, tmp_path):
    folder = tmp_path / "corpora"
    folder.mkdir()
    story = (real_data / "text" / "the-verdict.txt").read_text()
    # As Project Gutenberg sends it: framed, with other line breaks
    framed = "THE VERDICT\r\n\r\n" + story.replace(" the ", "\r\nthe ") + "\r\n\r\nEnd of the Project"
    (folder / "verdict.txt").write_bytes(framed.encode())
    (text,) = load_corpus("verdict", tmp_path).documents
    assert text.split() == story.split()
    (folder / "verdict.txt").write_text(story.replace("cheap genius", "dear genius"))
    with pytest.raises(ValueError, match="not the expected edition"):
        load_corpus("verdict", tmp_path)
    (folder / "shakespeare.txt").write_bytes((real_data / "text" / "tinyshakespeare.txt").read_bytes())
    assert len(load_corpus("shakespeare", tmp_path).documents[0]) == 1_115_394


def test_what_cannot_be_fetched_says_what_to_do(tmp_path, monkeypatch):
    import urllib.request

    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(OSError, match=r"verdict\.txt.*--corpus tiny"):
        load_corpus("verdict", tmp_path)
    with pytest.raises(
        OSError, match=r"no file or folder .* here, and no data set .* could be loaded from the hub"
    ):
        load_corpus("tinystories", tmp_path)


def test_hub_data_sets_are_read(tmp_path, monkeypatch):
    import datasets

    def fake(repository, configuration):
        assert (repository, configuration) == ("someone/stories", "small")
        table = datasets.Dataset.from_dict({"title": ["x", "y"], "story": ["one", "two"], "n": [1, 2]})
        return datasets.DatasetDict({"train": table, "validation": table.select([1])})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load_corpus("someone/stories:small", tmp_path) == Corpus("stories", ("one", "two"), ("two",))


def test_scene_captions_hold_nothing_back_that_training_must_not_see(tmp_path):
    from limner.data.scenes import HELD_OUT_KINDS

    corpus = load_corpus("scenes", tmp_path)
    training, held_back = corpus.split(0.1)
    assert len(training) > 10_000 and len(held_back) > 500
    words = {" ".join(kind) for kind in HELD_OUT_KINDS}
    assert not any(phrase in caption for caption in training for phrase in words)


def test_names_of_the_registry():
    assert set(CORPORA) == {"tiny", "verdict", "shakespeare", "tinystories", "wikitext-2", "scenes"}


def test_text_without_spaces_is_cut_where_it_should_be():
    """Chinese, or DNA: the last space may be at the beginning."""
    text = "a title \n" + "的" * 20_000
    training, held_back = Corpus("zh", (text,)).split(0.1)
    assert training[0] + held_back[0] == text
    assert len(held_back[0]) == pytest.approx(2000, abs=2)


def test_files_of_rows_are_documents(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"title": ["x", "y"], "text": ["one\nline", "zwei \u2028 é"], "n": [1, 2]})
    folder = tmp_path / "texts"
    folder.mkdir()
    rows.to_json(str(folder / "a.jsonl"), force_ascii=False)
    large = rows.cast_column("text", datasets.Value("large_string"))  # as polars writes
    large.to_parquet(str(folder / "b.parquet"))
    (folder / "c.txt").write_text("three")
    (folder / "d.pdf").write_bytes(b"%PDF")
    for name in ("a.jsonl", "b.parquet"):
        assert load_corpus(folder / name, tmp_path).documents == tuple(rows["text"])
    assert load_corpus(folder, tmp_path) == Corpus(
        "texts",
        (*rows["text"], *rows["text"], "three"),
        notes=(f"1 of 4 files of {folder} are no text (.pdf) and left out.",),
    )
    (folder / "a.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read as rows of json \("):
        load_corpus(folder / "a.jsonl", tmp_path)
    (folder / "a.jsonl").write_text('{"title": "x", "name": "y"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl' has no column named text \(it has title, name\)"):
        load_corpus(folder / "a.jsonl", tmp_path)


def test_what_a_folder_leaves_out_is_told_in_few_words(tmp_path):
    folder = tmp_path / "texts"
    objects = folder / ".git" / "objects"
    objects.mkdir(parents=True)
    for number in range(300):
        (objects / f"{number:040}").write_bytes(b"x")
        (folder / f"name-{number:040}").write_bytes(b"x")
    (objects / "hidden.txt").write_text("hidden")
    (folder / "a.txt").write_text("words")
    for number in range(9):
        (folder / f"x.kind{number}").write_bytes(b"x")
    corpus = load_corpus(folder, tmp_path)
    assert corpus.documents == ("words",)
    kinds = "no suffix, .kind0, .kind1, .kind2, .kind3, 5 more"
    assert corpus.notes == (f"309 of 310 files of {folder} are no text ({kinds}) and left out.",)


def test_rows_without_text_in_a_folder_of_texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "sizes.jsonl").write_text('{"id": 1, "width": 2}\n')
    with pytest.raises(ValueError, match=r"holds no text\. 1 file of rows .* left out: sizes\.jsonl\.$"):
        load_corpus(folder, tmp_path)
    (folder / "nothing.jsonl").touch()
    with pytest.raises(ValueError, match=r"nothing\.jsonl' holds no text\.$"):
        load_corpus(folder / "nothing.jsonl", tmp_path)
    (folder / "a.txt").write_text("words")
    corpus = load_corpus(folder, tmp_path)
    assert corpus.documents == ("words",)
    assert corpus.notes == ("1 file of rows has no column of text and is left out: sizes.jsonl.",)
    with pytest.raises(ValueError, match=r"sizes\.jsonl' has no column named text"):
        load_corpus(folder / "sizes.jsonl", tmp_path)
