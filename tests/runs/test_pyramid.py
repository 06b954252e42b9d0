"""Pyramids against a plain look at all rows."""

from __future__ import annotations

import numpy as np
import pytest

from limner.runs.pyramid import LEVELS, Pyramid, bucket_rows, bucket_starts


def random_column(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    values = rng.normal(size=rows)
    values[rng.random(rows) < 0.01] = np.nan
    values[rng.random(rows) < 0.01] = np.inf
    values[rng.random(rows) < 0.01] = -np.inf
    return values, rng.random(rows) < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_every_view_equals_a_look_at_all_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pyramid, parts = Pyramid(), []
    for _ in range(40):
        parts.append(random_column(rng, int(rng.integers(1, 900))))
        pyramid.extend(*parts[-1])
        if rng.random() < 0.2:
            pyramid.view(0, len(pyramid), 64)  # kept buckets are made in passing
    values, present = (np.concatenate(part) for part in zip(*parts, strict=True))
    for _ in range(60):
        start, stop = sorted(rng.integers(0, len(values), 2).tolist())
        stop += 1
        rows = int(rng.choice([1, 3, 17, 64, 100, 128, 640, 4096, 8192]))
        view, starts = pyramid.view(start, stop, rows), bucket_starts(start, stop, rows)
        ends = np.append(starts[1:], stop)
        assert len(starts) == len(view.total) and ((starts[1:] % rows) == 0).all()
        for k in rng.integers(0, len(starts), 20):
            some, here = values[starts[k] : ends[k]], present[starts[k] : ends[k]]
            finite = some[here & np.isfinite(some)]
            assert view.present[k] == here.sum()
            assert view.nonfinite[k] == (here & ~np.isfinite(some)).sum()
            assert view.minimum[k] == finite.min(initial=np.inf)
            assert view.maximum[k] == finite.max(initial=-np.inf)
            assert view.total[k] == pytest.approx(finite.sum(), abs=1e-9)
            if here.any():
                assert view.first_row[k] == starts[k] + here.argmax()
                assert view.last_row[k] == ends[k] - 1 - here[::-1].argmax()


def test_a_spike_in_a_million_is_seen_at_every_zoom() -> None:
    column = np.zeros(1_000_000)
    column[654_321] = 7.0
    pyramid = Pyramid()
    pyramid.extend(column, np.ones(len(column), bool))
    for width in (1_000_000, 300_001, 65_536, 4097, 1000, 64, 3, 1):
        start = min(max(0, 654_321 - width // 3), 1_000_000 - width)
        view = pyramid.view(start, start + width, bucket_rows(width, 500))
        assert view.maximum.max() == 7.0 and len(view.maximum) <= 500


@pytest.mark.parametrize("rows", [1, 499, 500, 501, 63_999, 64_001, 10_000_000])
def test_bucket_rows_fit(rows: int) -> None:
    for most in (20, 500, 4000):
        size = bucket_rows(rows, most)
        assert len(bucket_starts(0, rows, size)) <= most
        assert len(bucket_starts(17, rows + 17, size)) <= most
        assert size == 1 or rows > most
        if size > LEVELS[0]:
            assert size % LEVELS[0] == 0
