"""The bootstrap (Efron, 1979): how far a score would move if other pictures had been drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


def resample_counts(num_images: int, seed: int = 42, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each image is drawn in each resample: (R, N) float64; rows sum to N."""
    random = np.random.default_rng(seed)
    draws = random.integers(0, num_images, (resamples, num_images))
    return np.stack([np.bincount(row, minlength=num_images) for row in draws]).astype(np.float64)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values (R,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def resampled_means(per_image: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean score of each resample: (N,) and (R, N) -> (R,)."""
    return counts @ per_image / counts.shape[1]


def resampled_sums(
    statistics: np.ndarray, counts: np.ndarray, formula: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A corpus-level score of each resample, from sums of per-image statistics: (N, S) -> (R, ...)."""
    return formula(counts @ statistics)


def paired_p_value(differences: np.ndarray) -> float:
    """Two-sided p of resampled differences (R,): how often their sign is not the usual one, never exactly zero."""
    smaller = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1)))
