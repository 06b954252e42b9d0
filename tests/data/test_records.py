"""Splits are a pure function of the image's id, and never leave a person without validation pictures."""

from __future__ import annotations

import pytest

from limner.data.records import assign_splits, sampled, split_name, split_of


def test_the_split_is_pinned_for_ever() -> None:
    """Recorded once: a change of these would move images of every existing data set between splits."""
    ids = [f"image-{k}.jpg" for k in range(60)]
    validation = [k for k, i in enumerate(ids) if split_of(i) == "validation"]
    test = [k for k, i in enumerate(ids) if split_of(i) == "test"]
    assert (validation, test) == PINNED
    assert [split_of(i, seed=43) for i in ids] != [split_of(i) for i in ids]


PINNED: tuple[list[int], list[int]] = ([7, 19, 37, 46, 49], [0, 5, 16, 23, 41])


def test_the_shares_are_met() -> None:
    splits = [split_of(str(k)) for k in range(20_000)]
    assert abs(splits.count("validation") / 20_000 - 0.05) < 0.005
    assert abs(splits.count("test") / 20_000 - 0.05) < 0.005
    assert {split_of(str(k), fractions=(0.0, 1.0, 0.0)) for k in range(50)} == {"validation"}


def test_growth_never_moves_an_image_once_both_splits_are_there() -> None:
    ids = [(f"{k}.png", None) for k in range(400)]
    small, large = assign_splits(ids[:150]), assign_splits(ids)
    assert {"train", "validation"} <= set(small)
    assert large[:150] == small


@pytest.mark.parametrize("count", range(2, 40))
def test_training_and_validation_are_never_empty(count: int) -> None:
    for name in ("a", "b", "c"):
        for fractions in ((0.9, 0.05, 0.05), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)):
            splits = assign_splits([(f"{name}{k}", None) for k in range(count)], fractions=fractions)
            assert "train" in splits
            assert "validation" in splits


def test_records_that_share_an_image_move_together() -> None:
    splits = assign_splits([("a", None), ("b", None), ("a", None), ("b", None)], fractions=(1.0, 0.0, 0.0))
    assert splits[0] == splits[2] != splits[1] == splits[3]
    assert assign_splits([("a", None)]) == [split_of("a")]


def test_named_splits_win() -> None:
    assert assign_splits([("a", "test"), ("b", "train"), ("c", "validation")]) == ["test", "train", "validation"]
    ids = [str(k) for k in range(200)]
    assert assign_splits([(i, "train") for i in ids]) == [split_of(i) for i in ids]  # this name says nothing
    for held_out in (["test"] * 200, ["validation"] * 200, ["test", "validation"] * 100):
        assert assign_splits(zip(ids, held_out, strict=True)) == held_out  # type: ignore[arg-type]
    divided = assign_splits([(i, "train") for i in ids] + [("t", "test")])
    assert [s == "validation" for s in divided[:-1]] == [split_of(i) == "validation" for i in ids]
    assert "test" not in divided[:-1]
    assert [split_name(word) for word in ("dev", "restval", "VAL ")] == ["validation", "train", "validation"]
    with pytest.raises(ValueError, match="Unknown split 'holdout'"):
        split_name("holdout")
    with pytest.raises(ValueError, match="add up to 1"):
        split_of("a", fractions=(0.5, 0.1, 0.1))


def test_a_sample_is_drawn_alike_every_time_and_keeps_the_order() -> None:
    """Recorded: an evaluation that is taken up again must be of the same pictures."""
    assert sampled("abcdefghij", 3, seed=42) == ["a", "b", "e"]
    assert sampled("abc", 3, seed=42) == sampled("abc", None, seed=42) == ["a", "b", "c"]
