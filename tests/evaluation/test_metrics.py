"""Metrics against the field's reference tools: recorded scores, and the tools themselves where installed."""

from __future__ import annotations

import importlib.machinery
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from limner.evaluation import DocumentFrequency, cider_d, score
from limner.evaluation.rouge import ROUGE_NAMES, lcs_length, rouge_scores

WORDS = "a the man dog red big ball runs on in with and grass of two"
RECORDED = ["edge12", "nlgeval_pair", "clipscore_good", "clipscore_bad"]


def random_captions(seed: int, num_images: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions of few words with repetitions, of lengths 1 to 14, one to five references an image."""
    chooser = random.Random(seed)

    def caption() -> str:
        return " ".join(chooser.choices(WORDS.split(), k=chooser.randint(1, 14)))

    references = {str(i): [caption() for _ in range(chooser.randint(1, 5))] for i in range(num_images)}
    return {key: caption() for key in references}, references


@pytest.mark.parametrize("name", RECORDED)
def test_scores_equal_those_recorded_from_the_coco_evaluation(real_data: Path, name: str) -> None:
    recorded = json.loads((real_data / "metrics" / f"{name}.json").read_text())
    scores = score(recorded["candidates_raw"], recorded["references_raw"], meteor="off", per_image=True)
    for metric in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert scores[metric] == pytest.approx(recorded["scores"][metric], abs=1e-9)
    for metric in ("Bleu_4", "ROUGE_L", "CIDEr"):
        ours = [scores["per_image"][key][metric] for key in recorded["keys"]]
        np.testing.assert_allclose(ours, recorded["per_image"][metric], atol=1e-8)


@pytest.mark.slow
def test_meteor_equals_that_recorded(real_data: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    recorded = json.loads((real_data / "metrics" / "edge12.json").read_text())
    try:
        scores = score(recorded["candidates_raw"], recorded["references_raw"], meteor="java", per_image=True)
    except ImportError as missing:
        pytest.skip(str(missing))
    assert scores["METEOR_implementation"] == "METEOR 1.5 (Java)"
    assert scores["METEOR"] == pytest.approx(recorded["scores"]["METEOR"], abs=1e-9)
    ours = [scores["per_image"][key]["METEOR"] for key in recorded["keys"]]
    np.testing.assert_allclose(ours, recorded["per_image"]["METEOR"], atol=1e-8)


def test_meteor_without_java_is_nltk_s_and_says_so() -> None:
    meteor_score = pytest.importorskip("nltk.translate.meteor_score")
    predictions, references = random_captions(3, 10)
    scores = score(predictions, references, meteor="nltk", per_image=True)
    assert scores["METEOR_implementation"].startswith("NLTK (exact")

    class NoSynonyms:
        def synsets(self, word: str) -> list:
            return []

    if "no WordNet" in scores["METEOR_implementation"]:
        for key, text in predictions.items():
            expected = meteor_score.meteor_score(
                [reference.split() for reference in references[key]], text.split(), wordnet=NoSynonyms()
            )
            assert scores["per_image"][key]["METEOR"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_pycocoevalcap_on_random_captions(seed: int) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    predictions, references = random_captions(seed)
    results = {key: [text] for key, text in predictions.items()}
    scores = score(predictions, references, meteor="off", per_image=True)
    corpus, images = bleu.Bleu(4).compute_score(references, results, verbose=0)
    for n in range(4):
        assert scores[f"Bleu_{n + 1}"] == pytest.approx(corpus[n], abs=1e-12)
        ours = [scores["per_image"][key][f"Bleu_{n + 1}"] for key in references]
        np.testing.assert_allclose(ours, images[n], atol=1e-12)
    for metric, tool in (("CIDEr", cider.Cider()), ("ROUGE_L", rouge.Rouge())):
        mean, images = tool.compute_score(references, results)
        assert scores[metric] == pytest.approx(mean, abs=1e-10)
        np.testing.assert_allclose([scores["per_image"][key][metric] for key in references], images, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_rouge_equals_the_rouge_score_package(seed: int) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(list(ROUGE_NAMES))
    predictions, references = random_captions(seed, 25)
    chooser = random.Random(seed)
    for key, group in references.items():
        several_lines = [text.replace(" ", "\n", chooser.randint(0, 2)) for text in [predictions[key], *group]]
        for prediction, targets in ((predictions[key], group), (several_lines[0], several_lines[1:])):
            expected = scorer.score_multi(targets, prediction)
            ours = rouge_scores(prediction, targets)
            for name in ROUGE_NAMES:
                assert ours[name] == pytest.approx(expected[name].fmeasure, abs=1e-12)


def test_bit_parallel_subsequence_is_the_longest() -> None:
    chooser = random.Random(0)
    for _ in range(200):
        a, b = ("".join(chooser.choices("abc", k=chooser.randint(0, 9))) for _ in range(2))
        lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                lengths[i + 1][j + 1] = lengths[i][j] + 1 if x == y else max(lengths[i][j + 1], lengths[i + 1][j])
        assert lcs_length(list(a), list(b)) == lengths[-1][-1]


def test_cider_alone_and_from_a_saved_corpus(tmp_path: Path) -> None:
    predictions, references = random_captions(1)
    mean, images = cider_d(predictions, references)
    whole = score(predictions, references, meteor="off", per_image=True)
    assert mean == pytest.approx(whole["CIDEr"], abs=1e-12)
    assert images == pytest.approx({key: row["CIDEr"] for key, row in whole["per_image"].items()})
    # A subset scored with the saved frequencies of the whole keeps its scores; with its own it does not.
    frequencies = DocumentFrequency.of(references.values())
    frequencies.save(tmp_path / "corpus.json")
    some = {key: references[key] for key in list(references)[:5]}
    few = {key: predictions[key] for key in some}
    loaded = DocumentFrequency.load(tmp_path / "corpus.json")
    assert cider_d(few, some, loaded)[1] == pytest.approx({key: images[key] for key in some})
    assert cider_d(few, some)[1] != pytest.approx({key: images[key] for key in some})
    (tmp_path / "corpus.json").write_text("[]")
    with pytest.raises(ValueError, match=r"corpus\.json is no CIDEr corpus file"):
        DocumentFrequency.load(tmp_path / "corpus.json")


def test_variety_figures() -> None:
    scores = score(
        {"1": ["a dog runs", "the man is here"], "2": ["a dog runs", "a dog runs"], "3": "a cat"},
        {"1": ["a dog"], "2": ["a man"], "3": ["cats and dogs"]},
        meteor="off",
    )
    assert scores["distinct_1"] == 4 / 8  # a dog runs cat, of 3 + 3 + 2 words
    assert scores["vocabulary"] == 4
    assert scores["mean_length"] == pytest.approx(8 / 3)
    assert scores["different_captions"] == pytest.approx(2 / 3)
    assert scores["self_CIDEr"] == pytest.approx(0.5)  # image 1 shares nothing (1), image 2 everything (0)


def test_intervals_hold_the_score_and_narrow_with_more_images() -> None:
    widths = []
    for num_images in (30, 480):
        predictions, references = random_captions(0, num_images)
        scores = score(predictions, references, meteor="off", intervals=True)
        for metric in ("Bleu_4", "ROUGE_L", "CIDEr"):
            low, high = scores["intervals"][metric]
            assert low < scores[metric] < high
        widths.append(np.diff(scores["intervals"]["ROUGE_L"])[0])
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # one over the root of 16
    # The normal approximation of a mean: 2 x 1.96 standard errors.
    values = [
        row["ROUGE_L"] for row in score(predictions, references, meteor="off", per_image=True)["per_image"].values()
    ]
    assert widths[1] == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(len(values)), rel=0.1)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {"1": ["a"]}, "no predictions"),
        ({"1": "a"}, {}, "1 of 1 predictions have no reference"),
        ({"1": "a", "9": "b"}, {"1": ["a"]}, r"1 of 2 predictions have no reference \(the first: 9\)"),
        ({"1": "a"}, {"1": []}, "Image 1 needs at least one reference"),
        ({"1": "a"}, {"1": [None]}, "Image 1 needs at least one reference"),
        ({"1": [7]}, {"1": ["a"]}, "prediction of image 1 is no text"),
        (["a"], [["a"], ["b"]], "1 predictions do not match 2"),
        (["a"], {"0": ["a"]}, "both by image id, or both as lists"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(predictions, references, message) -> None:
    with pytest.raises(ValueError, match=message):
        score(predictions, references, meteor="off")


def test_lists_and_integer_ids_are_taken_too() -> None:
    by_list = score(["a dog runs", "a cat"], [["a dog runs fast"], "the cat sits"], meteor="off")
    by_id = score({7: "a dog runs", 8: "a cat"}, {7: ["a dog runs fast"], 8: ["the cat sits"]}, meteor="off")
    assert by_list["CIDEr"] == by_id["CIDEr"] > 0


def test_an_empty_caption_scores_nothing() -> None:
    scores = score({"1": "", "2": "a dog"}, {"1": ["a cat"], "2": ["a dog"]}, meteor="off", per_image=True)
    assert scores["per_image"]["1"]["CIDEr"] == scores["per_image"]["1"]["ROUGE_L"] == 0
    assert scores["per_image"]["1"]["Bleu_1"] == pytest.approx(0, abs=1e-6)


def test_spice_is_asked_in_its_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program is played by a script that gives each image its number, and none to the last."""
    from limner.evaluation import spice

    folder = tmp_path / "pycocoevalcap" / "spice"
    (folder / "lib").mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    monkeypatch.setattr(
        spice, "find_spec", lambda name: importlib.machinery.PathFinder.find_spec(name, [str(tmp_path)])
    )
    java = tmp_path / "java"
    java.write_text(
        f"#!{sys.executable}\nimport json, sys\nrows = json.load(open(sys.argv[4]))\n"
        "assert rows[0] == {'image_id': 0, 'test': 'a dog', 'refs': ['a cat', 'b']}, rows\n"
        "found = [{'image_id': r['image_id'], 'scores': {'All': {'f': r['image_id'] / 2}}} for r in rows]\n"
        "json.dump(found[::-1], open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match="needs a Java runtime"):
        spice.spice_scores(["a dog"], [["a cat"]])
    (folder / "spice-1.0.jar").touch()
    with pytest.raises(ImportError, match="lacks its parser's models"):
        spice.spice_scores(["a dog"], [["a cat"]])
    (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    assert spice.spice_scores(["a dog", "x"], [["a cat", "b"], ["y"]]).tolist() == [0.0, 0.5]
    java.write_text("#!/bin/sh\necho OutOfMemory >&2\nexit 3\n")
    with pytest.raises(OSError, match="SPICE \\(Java\\) failed: OutOfMemory"):
        spice.spice_scores(["a dog"], [["a cat"]])
