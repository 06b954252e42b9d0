"""Penn Treebank tokenization as the COCO caption evaluation does it: lower case, punctuation dropped.

The field's scores are computed on the output of Stanford's PTBTokenizer (CoreNLP 3.4.1, options
``-preserveLines -lowerCase``) from which pycocoevalcap then drops punctuation. It needs Java; this module
does not. The rules below were learnt from the tokenizer's behaviour (the inputs and outputs of many thousand
probes), not from its source. Like it, the scanner takes at each place the longest of all rules, the earlier
one where two are equally long.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""What the COCO evaluation drops. Its list has "-LRB-" too, in capitals, which never occur: brackets stay."""

_PLAIN = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*(?:[ ,;]* [A-Za-z]+(?:-[A-Za-z]+)*)*[ ,;]*[.!?]? *")
"""Captions of plain and hyphenated words, which is most of them: no rule but `_SPLIT_WORDS` applies."""

_SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
"""Plain words that are two tokens."""

_ABBREVIATIONS = """
    a adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave b bancorp bhd bldg blvd brig bros c
    calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct d dak dec dept det dr drs e ens esq est etc ext
    f feb fla fri ft g ga gen gov govs h hon i inc ind insp intl j jan jos jr jul jun k kan kans ky l lieut lt ltd
    m maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms mt n natl neb nev nov o oct okla p penn pfc ph
    plc pres prof profs q r rd rep reps rev rt s sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys t
    tel tenn thu thurs treas tue tues u univ v va vs vt w wed wis wisc wm wyo x y z"""
_ABBREVIATIONS_NOT_UPPER = "mfg mtg pte ptes pty pvt Mfg Mtg Pte Ptes Pty Pvt"
_ABBREVIATIONS_NOT_LOWER = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH"
_ABBREVIATIONS_OF_NUMBERS = "art ca fig figs no nos op pp prop"
_SENTENCE_STARTS = """
    A About After An As At But He Her Here However If In It Last Many More Now Once One Other Our She Since So Some
    That The Their Then There These They This We What When While Yet You"""
"""Before one of these a single letter ends the sentence: "plan b. The man"; "B. Clinton" is an initial."""

_MARKS = r"\u00ad\u0300-\u036f\u0591-\u05bd\u064b-\u065e\u0900-\u0903\u093c-\u0954\u0e31-\u0e4e"
_LETTER = rf"(?:[^\W\d_²³¹¼-¾⁰-ₜ⅐-↏①-⓿]|[{_MARKS}])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_APOS = "['\u0092\u2019]"
_APOS_OR_GRAVE = "['`\u0092\u2019]"
_CLITIC = rf"{_APOS}(?:[msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])"
_NUMBER = r"(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"  # of a word with slashes
_HOST = r"[^\s\"`'<>|.!?(){},_$]+"
_ELISION = rf"(?:[dlnoA-HJ-XZ]{_APOS_OR_GRAVE}(?={_ALNUM}{{2}}))?"
_SYMBOLS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "£": "#", "€": "$", "¢": "cents"}
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def _any(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


_RULES: list[tuple[re.Pattern[str], str]] = [
    # A group `token` is what is taken; what the pattern matches beyond it counts for the length only.
    (re.compile(pattern), kind)
    for pattern, kind in [
        (r"</?[A-Za-z][\w:.-]*(?: +[\w:.-]+(?: *= *['\"][^'\"\r\n]*['\"])?)* *(?:/ *)?>"
         r"|<![A-Za-z-][^>\r\n]*>", "tag"),
        (r"https?://[^\s\"<>|(){}]+[^\s\"<>|.!?(){},-]", "word"),
        (rf"(?:www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}|(?:{_HOST}\.)+(?:com|net|org|edu))"
         r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?", "word"),
        (r"[A-Za-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}]+", "word"),
        (r"@[A-Za-z_]\w*|#[A-Za-z]+", "word"),
        (r"(?i:(?P<token>can)not|(?P<token2>gon|wan)na|(?P<token3>got)ta|(?P<token4>lem|gim)me)(?![A-Za-z0-9])",
         "word"),
        (r"(?i:(?P<token>'t)(?:is|was))", "word"),
        (rf"(?P<token>[A-Za-z]*[A-MO-Za-mo-z])[nN]{_APOS_OR_GRAVE}[tT]", "word"),
        (rf"[nN]{_APOS_OR_GRAVE}[tT](?![A-Za-z])", "word"),
        (rf"(?P<token>{_LETTER}+){_CLITIC}(?:[^A-Za-z]|$)", "word"),
        (rf"(?P<token>{_CLITIC})(?:[^A-Za-z]|$)", "word"),
        (rf"(?i:{_APOS}n{_APOS}?|[ldj]{_APOS}|dunkin{_APOS}|somethin{_APOS}|ol{_APOS}|{_APOS}em|c{_APOS}(?:mon|est)"
         rf"|{_APOS}[2-9]0s|{_APOS}till?|{_APOS}cause|nor{_APOS}easter|e{_APOS}er|s{_APOS}mores|ev{_APOS}ry"
         rf"|li{_APOS}l|nat{_APOS}l|cap{_APOS}n)", "word"),
        (rf"(?P<token>{_APOS})[A-Za-z]\S", "symbol"),
        (rf"{_APOS}\d\d(?!\S)", "word"),
        (rf"(?i:(?P<token>y{_APOS}){_LETTER})", "word"),
        (rf"{_LETTER}+[aeiouyAEIOUY]{_APOS}[aeiouA-Z]{_LETTER}*", "word"),
        (rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*", "word"),
        (rf"{_ELISION}{_ALNUM}+(?:-{_ELISION}{_ALNUM}+)*", "word"),
        (rf"{_ALNUM}+(?:_{_ALNUM}+)+", "word"),
        (r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+", "word"),
        (rf"{_PART}(?:\\?/{_PART}){{1,2}}", "word"),
        (r"[A-Z]+(?:(?:&|&amp;)[A-Z]+)+", "word"),
        (r"[A-Za-z](?:\.[A-Za-z])+\.", "word"),
        (rf"(?i:{_any(_ABBREVIATIONS)})\.", "word"),
        (rf"(?:{_any(_ABBREVIATIONS_NOT_LOWER)}|{_any(_ABBREVIATIONS_NOT_UPPER)})\.", "word"),
        (rf"(?i:(?P<token>{_any(_ABBREVIATIONS_OF_NUMBERS)}\.)\s*\d)", "word"),
        (rf"(?P<token>[A-Za-z])\.\s+{_any(_SENTENCE_STARTS + _SENTENCE_STARTS.upper())}(?![^\s.])", "word"),
        (r"(?:Ed|Ph)\.D\.", "word"),
        (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", "word"),
        (rf"[-+]?{_NUMBER}", "word"),
        (r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", "word"),
        (r"(?:\(\d{3}\)[ \u00a0]?|\d{3}[- \u00a0])\d{3}[- \u00a0]\d{4}", "phone"),
        (r"[A-Z]*\$|#+", "word"),
        (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])|[\^x=~<>-]_[\^x=~<>-]", "smiley"),
        (r"\.{3,}|…", "word"),
        (r"-(?:[lL][rR]|[rR][rR]|[lL][cC]|[rR][cC]|[lL][sS]|[rR][sS])[bB]-", "word"),
        (r"-{5,}|[?!]{2,}|_{2,}|\*+|<<|>>|'{2}|`{2}", "word"),
        (r"-+|[–—―]", "dash"),
        (r"[\U00010000-\U0010ffff\u200b-\u200f\ufe00-\ufe0f\ufeff\u20a5-\u20ab\u20ad-\u20cf]", "nothing"),
        (r"&(?:amp|lt|gt|quot);", "entity"),
        (r"&(?:mdash|ndash);", "dash"),
        (r"&(?:#\d+|[aeiouAEIOU](?:acute|grave|uml));", "word"),
        (r"\S", "symbol"),
    ]
]  # fmt: skip

_CONTRACTION = re.compile(r"[nN]?['\u0092\u2019](?:[msdtMSDT]|[rR][eE]|[vV][eE]|[lL][lL])")
_TO_SPACES = str.maketrans(",;.!?", "     ")
_KEEPS_PERIOD = frozenset(
    " ".join([_ABBREVIATIONS, _ABBREVIATIONS_NOT_UPPER, _ABBREVIATIONS_NOT_LOWER, _ABBREVIATIONS_OF_NUMBERS])
    .lower()
    .split()
)
"""Words that may keep a period; the scanner decides."""


def ptb_tokenize(text: str) -> str:
    """The caption's tokens joined by spaces, as pycocoevalcap's ``PTBTokenizer`` gives them.

    >>> ptb_tokenize("A man's dog isn't barking.")
    "a man 's dog is n't barking"
    """
    if _PLAIN.fullmatch(text):
        words = text.lower().translate(_TO_SPACES).split()
        if _SPLIT_WORDS.isdisjoint(words) and not (words[-1] in _KEEPS_PERIOD and "." in text):
            return " ".join(words)
    return " ".join(token for token in _scan(text) if token not in PUNCTUATION)


def _scan(text: str) -> list[str]:
    """All tokens in lower case, punctuation too: at each place the longest rule, the earlier of equals."""
    text = text.replace("\n", " ").replace("&nbsp;", " ").replace("&apos;", "'").strip()
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        best, kind = None, ""
        for pattern, name in _RULES:
            match = pattern.match(text, at)
            if match and (best is None or match.end() > best.end()):
                best, kind = match, name
        assert best is not None  # the last rule takes any character
        found = next((group for group in best.groups() if group), best[0])
        at += len(found)
        token = _normalized(found, kind)
        if token:
            tokens.append(token)
    return tokens


def _normalized(found: str, kind: str) -> str:
    if kind == "nothing":
        return ""
    if kind == "dash":
        return "-" if found == "-" else "--"
    if kind == "entity":
        return _ENTITIES[found]
    if kind == "symbol" and found in _SYMBOLS:
        return _SYMBOLS[found]
    if kind == "symbol" and found in "'\"“”‘’‛«»‹›\u0091\u0092\u0093\u0094":
        return "'"
    if kind in ("symbol", "phone", "smiley"):
        for bracket, name in _BRACKETS.items():
            if kind == "symbol" or bracket in "()":
                found = found.replace(bracket, name)
    if kind in ("tag", "phone") or "/" in found or "\u2044" in found:
        found = found.replace(" ", "\u00a0")  # a token is never split again at its spaces
    found = found.replace("&amp;", "&").replace("\u00ad", "")
    found = re.sub("[\u0092\u2019]", "'", found) if _CONTRACTION.fullmatch(found) else found
    return "..." if found.startswith("...") or found == "…" else found.lower()
