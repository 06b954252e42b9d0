"""The learning rate's way, at the steps whose numbers the page's preview is held against too (schedule.test.ts)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from limner.training.schedule import lr_scale

STEPS = (0, 9, 10, 55, 80, 99)
EXPECTED = {
    "cosine": (0.1, 1, 1, 0.5420582, 0.1974695, 0.1),
    "linear": (0.1, 1, 1, 0.5449438, 0.2921348, 0.1),
    "wsd": (0.1, 1, 1, 1, 0.5803371, 0.1),
    "constant": (0.1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("schedule", EXPECTED)
def test_warm_up_and_way_down(schedule: str) -> None:
    values = [lr_scale(step, 100, 10, schedule, 0.1) for step in STEPS]
    assert values == pytest.approx(EXPECTED[schedule], abs=1e-7)


def test_wsd_ends_where_it_should() -> None:
    scales = [lr_scale(step, 1000, 0, "wsd", 0.0) for step in range(1000)]
    assert scales[:600] == [1.0] * 600 and scales[-1] == 0.0
    falling = [a - b for a, b in pairwise(scales[601:])]
    assert min(falling) == pytest.approx(max(falling))  # a straight line
