"""METEOR: the reference METEOR 1.5 (Denkowski and Lavie, 2014) where Java is, else NLTK's; it says which.

The two do not agree: 1.5 has tuned weights, function words and paraphrases, NLTK's is the formula of 2007. Without
WordNet NLTK's lacks synonyms too and is lower again. Never compare scores of different implementations.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

MeteorChoice = Literal["auto", "java", "nltk", "off"]
JAVA, NLTK_WORDNET, NLTK_PLAIN = (
    "METEOR 1.5 (Java)",
    "NLTK (exact, stem, WordNet)",
    "NLTK (exact and stem, no WordNet)",
)

Scores = tuple[float, np.ndarray]
"""The score of the set, and of each image (N,) float64."""


@dataclass
class Meteor:
    """An implementation of METEOR: its name, and its function of tokenized captions and references."""

    name: str
    score: Callable[[Sequence[str], Sequence[Sequence[str]]], Scores]


def find_meteor(choice: MeteorChoice = "auto") -> Meteor | None:
    """The implementation to use; None where ``choice`` is "off", or "auto" finds none.

    Raises:
        ImportError: the one asked for is not installed.
    """
    if choice == "off":
        return None
    jar = _jar()
    if jar is not None and choice != "nltk":
        return Meteor(JAVA, lambda candidates, references: _java_scores(jar, candidates, references))
    if choice == "java":
        raise ImportError("METEOR 1.5 needs a Java runtime and `pip install pycocoevalcap`; or use --meteor nltk.")
    if find_spec("nltk") is not None:
        wordnet = _wordnet()
        name = NLTK_PLAIN if wordnet is None else NLTK_WORDNET
        return Meteor(name, lambda candidates, references: _nltk_scores(wordnet, candidates, references))
    if choice == "nltk":
        raise ImportError("NLTK's METEOR needs `pip install 'limner[metrics]'`; or use --meteor off.")
    return None


def _jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    if shutil.which("java") is None or package is None or not package.submodule_search_locations:
        return None
    jar = Path(next(iter(package.submodule_search_locations))) / "meteor" / "meteor-1.5.jar"
    return jar if jar.is_file() else None


def _java_scores(jar: Path, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Asks the jar for each image's statistics, then for the scores of all of them together."""
    lines = [
        " ||| ".join(["SCORE", *map(_line, group), _line(candidate)])
        for candidate, group in zip(candidates, references, strict=True)
    ]
    # One process, one core: no garbage collector's threads, and only the quick compiler (a tenth less time).
    flags = ["-Xmx2G", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command = ["java", *flags, "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        cwd=jar.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        errors: list[str] = []
        watcher = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        watcher.start()
        try:
            sender = threading.Thread(target=_send, args=(process.stdin, lines), daemon=True)
            sender.start()
            statistics = [process.stdout.readline().strip() for _ in lines]
            sender.join()
            _send(process.stdin, [" ||| ".join(["EVAL", *statistics])])
            numbers = [float(process.stdout.readline()) for _ in range(len(lines) + 1)]
        except (ValueError, OSError) as error:
            process.kill()
            watcher.join(1)
            last = ("".join(errors).strip().splitlines() or [str(error)])[-1]
            raise OSError(f"METEOR 1.5 (Java) failed: {last}; --meteor nltk does without it.") from error
        process.stdin.close()  # at which the jar ends
    return numbers[-1], np.array(numbers[:-1])


def _line(text: str) -> str:
    return text.replace("|||", "").replace("\n", " ").replace("  ", " ")


def _send(stream: Any, lines: Sequence[str]) -> None:
    stream.writelines(line + "\n" for line in lines)
    stream.flush()


class _NoSynonyms:
    """Stands in for WordNet where it is not installed."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _wordnet() -> Any | None:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


class _Stemmer:
    """NLTK's Porter stemmer with a memory: captions repeat their words."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = cache(PorterStemmer().stem)


class _Synonyms:
    """WordNet with a memory."""

    def __init__(self, wordnet: Any) -> None:
        self.synsets = cache(wordnet.synsets)


def _nltk_scores(wordnet: Any | None, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    from nltk.translate.meteor_score import single_meteor_score

    stemmer: Any = _Stemmer()
    synonyms: Any = _NoSynonyms() if wordnet is None else _Synonyms(wordnet)
    scores = []
    for candidate, group in zip(candidates, references, strict=True):
        words = candidate.split()
        scores.append(
            max(single_meteor_score(reference.split(), words, str, stemmer, synonyms) for reference in group)
            if words
            else 0.0
        )
    return float(np.mean(scores)), np.array(scores)
