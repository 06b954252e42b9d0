"""SPICE (Anderson et al., ECCV 2016), where Java and its files are: a program of its own, which parses sentences.

pycocoevalcap brings the program but not the parser's models (`python -m pycocoevalcap.spice.get_stanford_models`
fetches them, 400 MB). It is slow, and asked for only by name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

_JAR = "spice-1.0.jar"
_MODELS = "lib/stanford-corenlp-3.6.0-models.jar"


def find_spice() -> Path:
    """The folder of SPICE's program.

    Raises:
        ImportError: Java, the program or its models are missing; with what to do.
    """
    package = find_spec("pycocoevalcap")
    places = list(package.submodule_search_locations or ()) if package else []
    folder = Path(places[0]) / "spice" if places else Path("spice")
    if shutil.which("java") is None or not (folder / _JAR).is_file():
        raise ImportError("SPICE needs a Java runtime and `pip install pycocoevalcap`.")
    if not (folder / _MODELS).is_file():
        raise ImportError(f"SPICE lacks its parser's models ({folder / _MODELS}); pycocoevalcap can fetch them.")
    return folder


def spice_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE of tokenized captions, (N,) float64; 0 where neither side says anything.

    Raises:
        ImportError: as `find_spice`. OSError: the program failed.
    """
    folder = find_spice()
    rows = [
        {"image_id": row, "test": candidate, "refs": list(group)}
        for row, (candidate, group) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "in.json", Path(scratch) / "out.json"
        given.write_text(json.dumps(rows))
        command = [
            "java",
            "-Xmx8G",
            "-jar",
            _JAR,
            str(given),
            "-cache",
            scratch,
            "-out",
            str(found),
            "-subset",
            "-silent",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not found.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise OSError(f"SPICE (Java) failed: {last}")
        scores = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(found.read_text())}
    return np.nan_to_num([float(scores[row]) for row in range(len(rows))])
