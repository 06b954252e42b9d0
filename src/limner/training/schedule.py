"""The learning rate over a run: a linear warm-up, then a way down; a pure function of the step."""

from __future__ import annotations

import math

DECAY = 0.4
"""The share of a run, at its end, in which ``wsd`` goes down."""


def lr_scale(step: int, total_steps: int, warmup_steps: int, schedule: str, floor: float) -> float:
    """The factor on every group's peak learning rate for optimizer step ``step`` (counted from 0).

    The warm-up rises from 1/warmup to 1, so that no step is spent on a rate of zero; early Adam steps are
    noisy because its second moments are still estimates of few gradients (Goyal et al. 2017, arXiv:1706.02677;
    cosine: Loshchilov & Hutter 2016, arXiv:1608.03983; wsd, for warm-up, stable, decay: Hu et al. 2024,
    arXiv:2404.06395, with the linear way down of Hägele et al. 2024, arXiv:2405.18392).

    Raises:
        ValueError: the schedule is unknown.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - floor) * progress
        case "cosine":
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "wsd":
            return floor + (1.0 - floor) * min(1.0, (1.0 - progress) / DECAY)
    raise ValueError(f"'{schedule}' is not a schedule; use cosine, linear, wsd or constant.")
