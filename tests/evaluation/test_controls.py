"""What stands beside every score, and the judgement whether a model looks at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from limner.evaluation import Scorer, cider_d, score
from limner.evaluation.assessment import assess
from limner.evaluation.controls import controls, judge, shuffle, typical_caption


def dev_captions(real_data: Path) -> dict[str, list[str]]:
    rows = map(json.loads, (real_data / "flickr8k" / "captions_train_dev.jsonl").read_text().splitlines())
    return {row["image"]: row["captions"] for row in rows if row["split"] == "dev"}


def test_people_see_and_shuffled_captions_are_blind(real_data: Path) -> None:
    references = dev_captions(real_data)
    human = {key: group[0] for key, group in references.items()}
    others = {key: group[1:] for key, group in references.items()}
    scorer = Scorer(others)
    told = controls(scorer, human)
    assert told.sight == "sees"
    assert told.shuffled is not None and told.human is not None
    own = scorer.score(human).corpus["CIDEr"]
    assert own == pytest.approx(0.804, abs=0.001)  # the figure of pycocoevalcap for these captions
    assert told.fall is not None and told.fall[0] < own - told.shuffled["CIDEr"] < told.fall[1]
    assert told.human["CIDEr"] == pytest.approx(own, rel=0.1)  # another human against the rest says about the same
    assert 0.07 < told.constant["CIDEr"] < 0.16  # known for this data set: 0.07 to 0.09 for a plain constant
    assert told.shuffled["CIDEr"] < 0.05 < told.constant["CIDEr"]
    blind = controls(scorer, shuffle(human, seed=7))
    assert blind.sight == "blind"
    constant = controls(scorer, dict.fromkeys(human, told.constant_caption))
    assert constant.sight == "blind"


def test_the_typical_caption_beats_chance_candidates(real_data: Path) -> None:
    references = dict(list(dev_captions(real_data).items())[:200])
    scorer = Scorer(references)
    best = scorer.score(dict.fromkeys(references, typical_caption(scorer))).corpus["CIDEr"]
    some = [group[0] for group in list(references.values())[::10]]
    assert best > max(scorer.score(dict.fromkeys(references, text)).corpus["CIDEr"] for text in some)


def test_shuffling_moves_every_caption_and_keeps_them_all() -> None:
    captions = {str(i): f"caption {i}" for i in range(50)}
    moved = shuffle(captions)
    assert list(moved) == list(captions)
    assert sorted(moved.values()) == sorted(captions.values())
    assert not any(moved[key] == captions[key] for key in captions)
    assert shuffle(captions) == moved != shuffle(captions, seed=1)


def test_the_judgement() -> None:
    random = np.random.default_rng(0)
    base = random.random(200)
    assert judge(base + 0.3, base)[1] == "sees"
    assert judge(base, random.permutation(base))[1] == "blind"
    assert judge(base, base + 0.3)[1] == "blind"
    assert judge(base + 0.02, base)[1] == "blind"  # sure, and next to nothing
    assert judge(base[:10] + 1, base[:10])[1] == "unclear"


def test_human_control_scores_one_reference_against_the_others_with_the_same_frequencies() -> None:
    references = {
        "1": ["a dog runs fast", "the dog is running"],
        "2": ["a cat", "a cat sits here"],
        "3": ["a bird"],
    }
    scorer = Scorer(references)
    table = scorer.score_references({"1": 0, "2": 1})
    expected = cider_d(
        {"1": "a dog runs fast", "2": "a cat sits here"},
        {"1": ["the dog is running"], "2": ["a cat"]},
        scorer.cider.document_frequency,
    )
    assert table.corpus["CIDEr"] == pytest.approx(expected[0])
    told = controls(scorer, {"3": "a bird"})
    assert told.human is None and told.shuffled is None and told.sight == "unclear"


def test_assessment_is_the_score_with_its_company() -> None:
    references = {
        str(i): [f"a {c} dog runs", f"the {c} dog"] for i, c in enumerate(["red", "blue", "big", "small"])
    }
    predictions = {key: [group[0], "another"] for key, group in list(references.items())[:3]}
    told = assess(predictions, references, meteor="off")
    plain = score(predictions, references, meteor="off", intervals=True)
    for name in ("Bleu_4", "ROUGE_L", "CIDEr", "rougeL", "self_CIDEr"):
        assert told.scores[name] == plain[name]
    assert told.scores["intervals"] == plain["intervals"]
    assert [row[0] for row in told.rows()] == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert any("1 of 4 images with references have no prediction" in remark for remark in told.remarks)
    assert json.loads(json.dumps(told.as_dict()))["controls"]["sight"] == "unclear"
