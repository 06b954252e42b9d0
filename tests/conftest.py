"""What all tests share: one thread, no hub, and the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

DATA = Path(os.environ.get("LIMNER_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, scores and weights; tests skip, saying so, where it is absent (an error in CI)."""
    if not DATA.is_dir():
        message = f"no real data at {DATA} (set LIMNER_TEST_DATA)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return DATA
