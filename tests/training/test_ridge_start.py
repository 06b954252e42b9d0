"""The projection's start: against the normal equations' defining property, and on words that pictures do tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limner.training.ridge_start import RIDGE, start_projection, telling_words


def told_pictures(count: int = 300) -> tuple[torch.Tensor, list[list[list[int]]]]:
    """Features of which one column says whether the captions hold word 3 or word 4; word 5 stands everywhere."""
    features = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return features, [[[5, 3 if row[0] > 0 else 4]] * 2 for row in features]


def test_words_count_by_captions_and_rarity() -> None:
    captions = [[[1, 1, 2], [1]], [[1]], [[1], [2]], [[2]], [[7]]]
    told = telling_words(captions, torch.eye(8))
    assert told[0].tolist() == pytest.approx([0, math.log(5 / 3), math.log(5 / 3) / 2, 0, 0, 0, 0, 0])
    assert told[4].count_nonzero() == 0  # a word of one picture only


def test_no_step_from_there_lowers_the_penalized_error() -> None:
    features, captions = told_pictures()
    embedding = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    linear = nn.Linear(6, 5)
    start_projection(linear, features, captions, embedding)
    guess = linear(features).detach().double()
    assert guess.mean(0) == pytest.approx(torch.zeros(5), abs=1e-5)
    assert guess.norm(dim=1).mean() == pytest.approx(float(embedding.norm(dim=1).mean()), rel=1e-5)

    known = ((features - features.mean(0)) / features.std(0, correction=0)).double()
    wanted = telling_words(captions, embedding.double())
    wanted -= wanted.mean(0)
    weight = (linear.weight.detach().double() * features.std(0, correction=0)).mT  # (Dv, D), up to a scale
    size = (known @ weight).square().sum() + RIDGE * len(known) * weight.square().sum()
    weight *= (known @ weight * wanted).sum() / size  # the scale that fits best
    weight.requires_grad_(True)

    def slope(weight: torch.Tensor) -> torch.Tensor:
        error = (wanted - known @ weight).square().sum() + RIDGE * len(known) * weight.square().sum()
        return torch.autograd.grad(error, weight)[0].abs().max()

    assert slope(weight) < 1e-5 * slope(torch.zeros_like(weight, requires_grad=True))


def test_it_points_to_the_words() -> None:
    features, captions = told_pictures()
    embedding = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    linear = nn.Linear(6, 32)
    told = start_projection(linear, features, captions, embedding)
    assert 0.4 < told < 0.9  # a line cannot tell a step exactly
    scores = linear(features) @ embedding.mT  # (N, V)
    assert (scores[:, [3, 4]].argmax(1) == (features[:, 0] <= 0)).float().mean() > 0.95


def test_a_column_that_never_changes_does_no_harm() -> None:
    features, captions = told_pictures()
    linear = nn.Linear(7, 5)
    start_projection(linear, torch.cat([features, torch.ones(300, 1)], 1), captions, torch.randn(8, 5))
    assert linear.weight.isfinite().all() and linear.bias.isfinite().all()
