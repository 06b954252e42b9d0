"""What the captions of a data set talk about, and how: by plain rules that can be read here.

No tagger is used: nouns are the heads of noun phrases that begin with a determiner, a number or an adjective. That
finds most of what captions name, and errs now and then ("a swing" and "to swing"); the counts are for judging a
distribution, not single words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

RARE = 50
"""Nouns that occur less often are reported as rare."""

OPENINGS = re.compile(
    r"^(?:(?:this|here|the following|it)\s+(?:is\s+)?)?(?:an?|the|this)?\s*"
    r"(?:close-?up\s+)?(?:image|picture|photo|photograph|photography|pic|snapshot|shot|close-?up|view)\s+"
    r"(?:(?:shows?|showing|depicts?|depicting|features?|featuring|displays?|contains?|captures?|portrays?)\s+|of\s+)",
    re.IGNORECASE,
)
"""Openings that say nothing: "an image of", "this photo shows"."""
TEXT_HINTS = re.compile(
    r"\b(?:says?|reads?|reading|written|text|words?|letters?|lettering|caption(?:ed)?|label(?:ed|led)?|logo|"
    r"sign|signs|banner|poster|billboard|screenshot|document|license plate|number \d+)\b|[\"“].+?[\"”]",
    re.IGNORECASE,
)
"""Words by which a caption hints that there is text in the picture."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROTECTED: dict[str, frozenset[str]] = {
    "gender": _words("""
        man men woman women boy boys girl girls male males female females lady ladies guy guys gentleman
        gentlemen gal mother father mom dad husband wife son daughter brother sister he she his her him hers
        himself herself businessman businesswoman policeman fireman bride groom transgender nonbinary
    """),
    "age": _words("""
        young old older elderly teen teens teenage teenager teenagers toddler toddlers baby babies infant
        infants child children kid kids adult adults middle-aged senior seniors youth
    """),
    "race and ethnicity": _words("""
        black-skinned white-skinned dark-skinned light-skinned african african-american asian caucasian
        hispanic latino latina arab arabic indian native-american oriental blacks whites
    """),
    "nationality": _words("""
        american chinese japanese korean mexican english british french german italian spanish russian
        brazilian canadian australian irish scottish indian vietnamese thai turkish
    """),
    "religion": _words("""
        christian muslim jewish hindu buddhist sikh catholic priest nun monk monks imam rabbi hijab burka
        turban cross mosque synagogue
    """),
    "disability": _words("""
        disabled blind deaf wheelchair crippled handicapped autistic amputee
    """),
    "body": _words("""
        fat overweight obese skinny thin chubby bald pregnant muscular
    """),
    "sexual orientation": _words("""
        gay lesbian bisexual queer homosexual heterosexual
    """),
}  # fmt: skip
"""Words that name what law or taste protects. A picture seldom shows it for certain; captions guess."""

_DETERMINERS = _words("""
    a an the this that these those his her its their my our your some two three four five six several many
""")
_BOUNDARIES = _words("""
    in on at of with by from to into onto over under through near behind beside between across along around
    against above below down up off out for as while who which that where and or but is are was were be been
    being has have had am do does did next front during after before towards toward inside outside past without
    within about he she it they there then than so not dressed covered filled surrounded seen like alike one
""")
_ADJECTIVES = _words("""
    red blue green yellow black white brown orange pink purple gray grey tan blond blonde golden silver dark
    light big small large little tiny huge tall short long young old other another new wet dry empty full dirty
    clean colorful bright snowy rocky grassy sandy wooden busy crowded several different same
""")
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "wolves": "wolf", "knives": "knife", "leaves": "leaf", "shelves": "shelf",
    "lives": "life", "calves": "calf", "scarves": "scarf", "buses": "bus",
}  # fmt: skip
_KEEP_S = ("ss", "us", "is", "ous")
_ALWAYS_PLURAL = {"shorts", "jeans", "pants", "glasses", "sunglasses", "goggles", "clothes", "stairs", "trousers"}


def singular(word: str) -> str:
    """The singular of an English noun, by rule."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(_KEEP_S) or word in _ALWAYS_PLURAL:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return word[:-2]
    return word[:-1]


class NounFinder:
    """Finds what captions name. Verbs are known by their -ing forms in the same captions ("run": "running")."""

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        counts = Counter(word for words in captions for word in words)
        self._verbs = {
            stem
            for word, count in counts.items()
            if word.endswith("ing") and len(word) > 5 and count > 1
            for stem in _stems(word[:-3])
        }

    def nouns(self, words: Sequence[str]) -> list[str]:
        """The head nouns of a tokenized caption, singular, in order."""
        found: list[str] = []
        phrase: list[str] | None = None
        for word in [*words, "."]:
            ends = word in _BOUNDARIES or not word[0].isalpha() or word.startswith("'") or word.endswith("ing")
            if phrase and not ends and self._is_verb(word, phrase[-1]):
                ends = True
            if ends or word in _DETERMINERS:
                if phrase and phrase[-1] not in _ADJECTIVES:
                    found.append(singular(phrase[-1]))
                phrase = [] if word in _DETERMINERS or word.isdigit() else None
            elif phrase is not None:
                phrase.append(word)
            elif word in _ADJECTIVES or (not found and word is words[0]):
                phrase = [word]  # captions leave out determiners: "dogs run", "black dog in snow"
        return found

    def _is_verb(self, word: str, before: str) -> bool:
        return before not in _ADJECTIVES and (word in self._verbs or singular(word) in self._verbs)


def _stems(stem: str) -> list[str]:
    doubled = len(stem) > 2 and stem[-1] == stem[-2]
    return [stem, stem + "e", *([stem[:-1]] if doubled else [])]


def distribution(counts: Counter[str]) -> dict[str, float]:
    """How evenly things occur: Gini coefficient (0 all alike, 1 one has all), entropy in bits, rare ones."""
    values = np.sort(np.array(list(counts.values()), dtype=np.float64))
    if not len(values):
        return {"kinds": 0, "gini": 0.0, "entropy_bits": 0.0, "rare": 0}
    shares = values / values.sum()
    ranks = np.arange(1, len(values) + 1)
    gini = float((2 * ranks - len(values) - 1) @ values / (len(values) * values.sum()))
    entropy = float(-(shares * np.log2(shares)).sum())
    return {"kinds": len(values), "gini": gini, "entropy_bits": entropy, "rare": int((values < RARE).sum())}


_TERMS = {term: kind for kind, terms in PROTECTED.items() for term in terms}


def protected_terms(words: Iterable[str]) -> list[tuple[str, str]]:
    """(category, word) for every word of a tokenized caption that names a protected attribute."""
    return [(_TERMS[word], word) for word in words if word in _TERMS]


def reading_ease(text: str) -> float:
    """Flesch reading ease (1948) of a caption taken as sentences: 100 is easy, 30 hard, by syllables and length."""
    words = re.findall(r"[A-Za-z]+", text)
    if not words:
        return 0.0
    sentences = max(1, len(re.findall(r"[.!?]+(?:\s|$)", text.strip())))
    syllables = sum(_syllables(word.lower()) for word in words)
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)


def _syllables(word: str) -> int:
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = word.endswith("e") and not word.endswith(("le", "ee")) and groups > 1
    return max(1, groups - silent)


_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def spaced(caption: str) -> bool:
    """Whether most of it is in a script with spaces between words, as Chinese, Japanese or Thai are not."""
    return 2 * len(_UNSPACED.findall(caption)) <= len("".join(caption.split()))


def respaced(caption: str) -> str:
    """The caption with plain spacing: none before punctuation that ends a word, none doubled, contractions in one
    piece."""
    text = " ".join(caption.split())
    text = re.sub(r"\s+([.,;:!?]+)(?=\s|$)", r"\1", text)
    return re.sub(r"\s+('(?:s|re|ve|ll|d|m)|n't)\b", r"\1", text)


def rewrite(caption: str) -> str:
    """The caption by the rules of the house: no empty opening, plain spacing, a capital, and a full stop.

    >>> rewrite("an image of a dog running , fast")
    'A dog running, fast.'
    """
    text = OPENINGS.sub("", respaced(caption))
    text = re.sub(r"\.{2,}$", ".", text).strip(" -,;:")
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?\"'”’)" else text + "."
