"""What a package offers is there, and asking for it is what loads it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["limner", "limner.data", "limner.decoding", "limner.evaluation", "limner.models", "limner.runs"]


@pytest.mark.parametrize("name", [*PACKAGES, "limner.training"])
def test_every_name_is_there(name: str) -> None:
    package = import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for offered in package.__all__:
        getattr(package, offered)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_importing_loads_nothing_heavy_and_leaves_other_loggers_as_they_were_set() -> None:
    code = """
import logging, sys
logging.getLogger("torchao").setLevel(logging.DEBUG)
import limner, limner.data, limner.models, limner.training, limner.runs
assert logging.getLogger("torchao").level == logging.DEBUG
print({"torch", "transformers", "datasets"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_reading_and_writing_models_leaves_transformers_bars_as_they_were() -> None:
    from transformers.utils import logging

    from limner.models.hub import quiet_transformers

    assert logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
