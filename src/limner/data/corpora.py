"""Text to learn from: named corpora, files, folders, and data sets of the hub."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from limner.whole_files import write_whole

TEXT_ENDINGS = (".txt", ".md", ".text")
TABLE_ENDINGS = (".jsonl", ".parquet")
"""Files of rows, whose text column is read: a document a row."""
NEAR = 200
"""Characters within which a space is looked for, to cut at."""


class NoTextColumn(ValueError):
    """Rows that have no column of text, or several and none of a known name."""


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from. ``validation``: the source's own validation documents, where it has them; ``notes``:
    what a person should know of the source."""

    name: str
    documents: tuple[str, ...]
    validation: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def split(self, fraction: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Training and validation documents: the source's own split, or else the last ``fraction`` of the TEXT.

        The text is cut before any window is laid over it, so that no window sees both sides. The cut falls inside
        a document if need be, and on a space where there is one near: not every script has spaces.

        Raises:
            ValueError: the fraction is not between 0 and 1, or one side would be empty.
        """
        if self.validation is not None:
            return self.documents, self.validation
        if not 0 < fraction < 1:
            raise ValueError(f"The validation share (--val-split) lies between 0 and 1; it is {fraction}.")
        place = round(sum(map(len, self.documents)) * (1 - fraction))
        training: list[str] = []
        for number, document in enumerate(self.documents):
            if place < len(document):
                near = max(0, place - NEAR)
                cut = max(document.rfind(" ", near, place), document.rfind("\n", near, place)) + 1 or place
                training += [document[:cut]] if cut else []
                held_back = (document[cut:], *self.documents[number + 1 :])
                if not any(map(str.strip, training)) or not any(map(str.strip, held_back)):
                    break
                return tuple(training), held_back
            training.append(document)
            place -= len(document)
        raise ValueError(
            f"The corpus '{self.name}' is too short to hold back a validation share of {fraction}; "
            "use more text, or another --val-split."
        )


def load_corpus(name_or_path: str | Path, cache_dir: Path = Path("cache")) -> Corpus:
    """The corpus of a name in `CORPORA`, a file of text or of rows, a folder of such, or a hub id (``owner/name``).

    Args:
        cache_dir: where fetched texts and read rows are kept.

    Raises:
        FileNotFoundError: there is no such name, file or folder.
        ValueError: there is no text in it, or it is not UTF-8.
        OSError: it has to be fetched, and cannot be; the message says what to do.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if name in CORPORA:
        corpus = CORPORA[name](cache_dir)
    elif path.is_file():
        corpus = Corpus(path.stem, _documents(path, cache_dir))
    elif path.is_dir():
        corpus = _folder(path, cache_dir)
    elif _is_hub_id(name):
        corpus = _hub(name)
    else:
        raise FileNotFoundError(
            f"There is no file or folder '{name}' here, and no corpus of that name ({', '.join(CORPORA)})."
        )
    if not any(document.strip() for document in corpus.documents):
        raise ValueError(" ".join((f"The corpus '{name}' holds no text.", *corpus.notes)))
    return corpus


def _is_hub_id(name: str) -> bool:
    """Whether a name that nothing here has is ``owner/name``, and not a path that was mistyped."""
    owner = name.partition("/")[0]
    mistyped = owner.startswith(".") or name.endswith(TEXT_ENDINGS + TABLE_ENDINGS) or Path(owner).is_dir()
    return not mistyped and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name) is not None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it first, e.g. with iconv."
        ) from error


def _documents(path: Path, cache_dir: Path) -> tuple[str, ...]:
    """A file's text, or each row's of a file of rows."""
    if path.suffix.lower() not in TABLE_ENDINGS:
        return (_read(path),)
    if not path.stat().st_size:
        return ()
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    kind = "json" if path.suffix.lower() == ".jsonl" else "parquet"
    try:
        rows = load_dataset(kind, data_files=[str(path)], split="train", cache_dir=str(cache_dir / "rows"))
    except (DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read as rows of {kind} ({reason}).") from error
    return _kept(rows[_text_column(rows.column_names, rows.features, str(path))])


def _folder(path: Path, cache_dir: Path) -> Corpus:
    """All texts below a folder, but not in hidden ones; the notes tell what is left out."""
    below = sorted(file for file in path.rglob("*") if file.is_file())
    files = [f for f in below if not any(part.startswith(".") for part in f.relative_to(path).parts[:-1])]
    read = [file for file in files if file.suffix.lower() in TEXT_ENDINGS + TABLE_ENDINGS]
    if not read:
        raise ValueError(f"The folder {path} holds no text file ({', '.join(TEXT_ENDINGS + TABLE_ENDINGS)}).")
    documents: list[str] = []
    without: list[str] = []
    for file in read:
        try:
            documents += filter(str.strip, _documents(file, cache_dir))
        except NoTextColumn:
            without.append(str(file.relative_to(path)))
    notes = []
    if len(read) < len(files):
        kinds = Counter(file.suffix or "no suffix" for file in set(files) - set(read))
        names = _listed(sorted(kinds, key=lambda kind: (-kinds[kind], kind)))
        notes.append(f"{kinds.total():,} of {len(files):,} files of {path} are no text ({names}) and left out.")
    if without:
        what, verb = ("file of rows has", "is") if len(without) == 1 else ("files of rows have", "are")
        notes.append(f"{len(without):,} {what} no column of text and {verb} left out: {_listed(without)}.")
    return Corpus(path.resolve().name, tuple(documents), notes=tuple(notes))


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _tiny(_: Path) -> Corpus:
    """Short stories of a village of painters, written for Limner."""
    text = resources.files("limner.data").joinpath("tiny.txt").read_text(encoding="utf-8")
    return Corpus("tiny", (text,))


def _verdict(cache_dir: Path) -> Corpus:
    """Edith Wharton, "The Verdict" (1908), public domain: the story without Project Gutenberg's frame."""
    text = _fetched("verdict", "https://www.gutenberg.org/cache/epub/24131/pg24131.txt", cache_dir)
    found = re.search(r"I HAD always thought.*our kind of art\.[\"”]?", text, re.DOTALL)
    story = found.group() if found else ""
    # Line breaks, quotation marks and dashes differ between editions; the letters do not.
    letters = re.sub(r"[^a-z]+", "", story.lower())
    if hashlib.sha256(letters.encode()).hexdigest() != _VERDICT_LETTERS:
        raise ValueError(
            f"{corpus_file('verdict', cache_dir)} is not the expected edition of The Verdict; remove it to fetch "
            "it again, or give a text file: --corpus FILE."
        )
    return Corpus("verdict", (story,))


_VERDICT_LETTERS = "6adf687319d9403bd080a2e28d7b0d04fc12666e86479b5f2a6d2b9a9941551d"


def _shakespeare(cache_dir: Path) -> Corpus:
    """Tiny Shakespeare (A. Karpathy's selection of the plays, 1.1 MB), public domain."""
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    text = _fetched("shakespeare", url, cache_dir)
    if hashlib.sha256(text.encode()).hexdigest() != _SHAKESPEARE:
        raise ValueError(
            f"{corpus_file('shakespeare', cache_dir)} is not the expected text; remove it to fetch it again."
        )
    return Corpus("shakespeare", (text,))


_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def _tinystories(_: Path) -> Corpus:
    """Stories in the words of small children (Eldan and Li, 2023); 2.1 million documents."""
    return _hub("roneneldan/TinyStories", name="tinystories")


def _wikitext(_: Path) -> Corpus:
    """Good and featured articles of Wikipedia (Merity et al., 2016), the small selection, untokenized."""
    corpus = _hub("Salesforce/wikitext:wikitext-2-raw-v1", name="wikitext-2")
    # Its rows are lines: join them, or every line would be a document of its own.
    return Corpus(corpus.name, ("".join(corpus.documents),), ("".join(corpus.validation or ()),))


def _scenes(_: Path) -> Corpus:
    """Captions of the demo's scenes: the training split only, so that what it holds out stays unseen."""
    from limner.data.scenes import make_scene

    training = [text for index in range(20_000) for text in make_scene(index, "train").captions()]
    validation = [text for index in range(500) for text in make_scene(index, "validation").captions()]
    return Corpus("scenes", tuple(training), tuple(validation))


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "tiny": _tiny,
    "verdict": _verdict,
    "shakespeare": _shakespeare,
    "tinystories": _tinystories,
    "wikitext-2": _wikitext,
    "scenes": _scenes,
}


def corpus_file(name: str, cache_dir: Path) -> Path:
    """Where the text of a named corpus is kept, once it was fetched."""
    return cache_dir / "corpora" / f"{name}.txt"


def _fetched(name: str, url: str, cache_dir: Path) -> str:
    """The text of an address, fetched into the cache once."""
    path = corpus_file(name, cache_dir)
    if not path.exists():
        import urllib.request

        try:
            request = urllib.request.Request(url, headers={"User-Agent": "limner"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                data = answer.read()
        except OSError as error:
            raise OSError(
                f"The corpus '{name}' is not on this machine and could not be fetched ({error}); put its text at "
                f"{path}, give a text file (--corpus FILE), or use --corpus tiny, which needs no download."
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    return _read(path).replace("\r\n", "\n")


def _hub(source: str, name: str | None = None) -> Corpus:
    """A data set of the hub: ``owner/name`` or ``owner/name:configuration``; its text column is found by name."""
    from datasets import load_dataset

    repository, _, configuration = source.partition(":")
    try:
        splits = load_dataset(repository, configuration or None)
    except (OSError, ValueError) as error:  # datasets' own errors are kinds of these
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"There is no file or folder '{source}' here, and no data set of that name could be loaded from the "
            f"hub ({reason}); give a text file (--corpus FILE), or use --corpus tiny, which needs no download."
        ) from error
    train = splits["train"] if "train" in splits else splits[next(iter(splits))]
    column = _text_column(train.column_names, train.features, source)
    validation = next((splits[key][column] for key in ("validation", "valid", "dev") if key in splits), None)
    return Corpus(
        name or repository.partition("/")[2],
        _kept(train[column]),
        _kept(validation) if validation is not None else None,
    )


def _kept(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _text_column(names: Sequence[str], features: object, source: str) -> str:
    kinds = {name: getattr(features[name], "dtype", None) for name in names}  # type: ignore[index]
    strings = [name for name in names if kinds[name] in ("string", "large_string")]
    for candidate in ("text", "content", "story", "document"):
        if candidate in strings:
            return candidate
    if len(strings) == 1:
        return strings[0]
    raise NoTextColumn(f"The data set '{source}' has no column named text (it has {', '.join(names)}).")
