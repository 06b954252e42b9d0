"""Choosing by consensus: the regression against its normal equations, scores against sums written out, and use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_captioners import toy_captioner, toy_picture

import limner
from limner.decoding import consensus
from limner.decoding.consensus import LOOKS, RIDGE, SHARPNESS, Consensus, middle
from limner.evaluation.cider import CiderD
from limner.models import stock
from limner.words.ngrams import caption_ngrams

SAID = {
    "dog": ["A dog runs over the grass.", "A brown dog is running."],
    "boat": ["A boat on the water", "A small boat lies on a lake"],
    "cat": ["A cat sleeps on a sofa", "A sleeping cat"],
}


def remembered(copies: int = 6, width: int = 8) -> tuple[torch.Tensor, list[list[str]]]:
    """Pictures (N, LOOKS, width) of three kinds, each kind around a point of its own, and their captions."""
    noise = torch.randn(3 * copies, LOOKS, width, generator=torch.Generator().manual_seed(0))
    kinds = torch.eye(3, width).repeat(copies, 1)[:, None]
    return 5 * kinds + 0.3 * noise, [SAID[name] for name in SAID] * copies


def test_it_says_what_was_said_of_such_pictures() -> None:
    features, captions = remembered()
    made = Consensus.of(features, captions)
    proposed = ["a cat on a sofa", "a brown dog", "a small boat on the water"]
    for kind, best in enumerate((1, 2, 0)):
        scores = made.scores(proposed, made.weights(5 * torch.eye(8)[[kind] * LOOKS]))
        assert scores.argmax() == best


def test_weights_solve_the_regression() -> None:
    """All axes are kept: the cosine of two pictures is the mean of their looks' cosines."""
    features, captions = remembered()
    made = Consensus.of(features, captions)
    known = (features - features.mean(0)) / features.std(0, correction=0)  # (18, LOOKS, 8)
    new = torch.randn(LOOKS, 8)
    asked = (new - features.mean(0)) / features.std(0, correction=0)
    cosine = torch.nn.functional.cosine_similarity
    between = torch.exp(SHARPNESS * (cosine(known[:, None], known[None], dim=-1).mean(-1) - 1))
    to_new = torch.exp(SHARPNESS * (cosine(known, asked[None], dim=-1).mean(-1) - 1))
    exact = torch.linalg.solve((between + RIDGE * torch.eye(18)).double(), to_new.double())
    assert made.weights(new) == pytest.approx(exact.numpy(), abs=0.01)  # features are kept in 8 bits


def test_the_middle_of_a_picture_is_enlarged() -> None:
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    seen = middle(ramp)
    row = seen[0, 0, 7]
    assert seen.shape == ramp.shape
    assert row[7:9].mean() == pytest.approx(7.5)
    assert row[12] - row[3] == pytest.approx(9 * 0.75, abs=0.1)  # a unit step takes more room


def test_pictures_are_kept_on_few_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "MOST_AXES", 4)
    features, captions = remembered()
    made = Consensus.of(features, captions)
    known = torch.nn.functional.normalize((features - made.mean) / made.deviation, dim=2).flatten(1) / LOOKS**0.5
    along = known @ torch.linalg.svd(known)[2][:4].mT  # (18, 4)
    cosine = torch.nn.functional.cosine_similarity(along[:, None], along[None], dim=-1)
    assert made.pictures.shape == (18, 4)
    assert torch.allclose(made._remembered @ made._remembered.mT, cosine, atol=0.02)


def test_scores_are_weighted_cider_d_terms() -> None:
    """Sum over pictures of weight times mean, over captions and orders, of cosine times the length's Gaussian."""
    features, captions = remembered(2)
    made = Consensus.of(features, captions)
    scorer = CiderD([[caption_ngrams(text) for text in group] for group in captions])
    weights = np.random.default_rng(0).standard_normal(6)

    def cosines(text: str, other: str) -> float:
        one, two = (scorer.weigher.vector(caption_ngrams(part)) for part in (text, other))
        total = 0.0
        for n in range(4):
            dot = sum(weight * two.weights[n].get(ngram, 0.0) for ngram, weight in one.weights[n].items())
            total += dot / (one.norms[n] * two.norms[n]) if one.norms[n] and two.norms[n] else 0.0
        return total / 4 * np.exp(-((len(text.split()) - len(other.split())) ** 2) / (2 * 6.0**2))

    for text in ("A brown dog runs over the water", "cat", "nothing known here"):
        expected = sum(
            weight * np.mean([cosines(text, other) for other in group])
            for weight, group in zip(weights, captions, strict=True)
        )
        assert made.scores([text], weights) == pytest.approx([10 * expected], abs=1e-9)


def test_one_picture_is_enough_to_remember() -> None:
    made = Consensus.of(torch.randn(1, LOOKS, 8), [["A dog runs."]])
    weights = made.weights(torch.randn(LOOKS, 8))
    assert np.isfinite(weights).all()
    assert np.isfinite(made.scores(["a dog", "a cat"], weights)).all()


def test_a_captioner_asks_it(tmp_path: Path) -> None:
    """A toy that remembers, of six pictures, its own third-best captions says these, and not its best ones."""
    folder = tmp_path / "toy"
    vlm = toy_captioner(text="llama_untied", lora=True)
    stock.save_captioner(vlm, folder)
    plain = limner.load_captioner(folder, device="cpu")
    pictures = [toy_picture(seed) for seed in range(6)]
    likeliest = plain.caption_batch(pictures)
    with torch.no_grad():
        features = plain.vlm.features(torch.stack([plain.pixels.pixels(picture) for picture in pictures]))
        decoder = plain._decoder({"num_beams": 3, "num_return_sequences": 3}, proposes=False)
        found = decoder.decode_full(plain.steps, prefix_embeds=plain.vlm.prompt_embeds(features))
    third = plain.tokenizer.batch_decode(found.tokens[2::3], skip_special_tokens=True)
    Consensus.of(torch.stack([features.mean(1)] * LOOKS, 1), [[text] for text in third]).save(folder)

    captioner = limner.load_captioner(folder, device="cpu")
    chosen = captioner.describe(pictures)
    assert [one.text for one in chosen] == [text.strip() for text in third] != likeliest
    assert [one.score for one in chosen] == pytest.approx(found.scores[2::3].tolist())
    assert [captioner.caption(picture) for picture in pictures] == [one.text for one in chosen]
    assert captioner.caption_batch(pictures, consensus=False) == likeliest
    assert captioner.caption_batch(pictures, num_beams=1) == plain.caption_batch(pictures, num_beams=1)
    drawn = {"temperature": 1.0, "num_return_sequences": 2}
    assert [one.text for one in captioner.describe(pictures, **drawn)] == [
        one.text for one in plain.describe(pictures, **drawn)
    ]
    with pytest.raises(ValueError, match="set consensus=False for num_return_sequences"):
        captioner.describe(pictures, num_return_sequences=2)
    assert captioner.caption_batch(pictures, num_return_sequences=1) == captioner.caption_batch(pictures)
    asked = iter([False] * 3 + [True] * 5)
    cut = captioner.describe(pictures, cancel=lambda: next(asked))  # the likeliest so far
    assert len(cut) == 6 and cut[0].ending == "cancelled" and len(cut[0].tokens) == 3


def test_another_thing_in_its_place_is_refused(tmp_path: Path) -> None:
    made = Consensus.of(*remembered())
    made.save(tmp_path)
    again = Consensus.load(tmp_path, 8)
    assert again is not None and again.captions == made.captions and torch.equal(again.pictures, made.pictures)
    assert Consensus.load(tmp_path / "elsewhere", 8) is None
    with pytest.raises(ValueError, match="not of an encoder of width 9"):
        Consensus.load(tmp_path, 9)
    captions = tmp_path / "consensus" / "captions.json"
    for content in ("{", "3", "[[]]", "[[3]]", '[["one picture"]]'):
        captions.write_text(content)
        with pytest.raises(ValueError, match="delete that folder, and the model captions without it"):
            Consensus.load(tmp_path, 8)
    (tmp_path / "consensus" / "features.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="delete that folder, and the model captions without it"):
        Consensus.load(tmp_path, 8)
