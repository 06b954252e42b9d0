"""Token windows: what a language model is trained on.

A text is encoded once into a memory-mapped file of ids. A training example is a window of it: ids t .. t + T - 1 go
in, ids t + 1 .. t + T are what should come out.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limner.data.sizes import Progress
from limner.tokenizer import Tokenizer

_PIECE = 1_000_000
"""Characters that are encoded at once."""
_FORMAT = "limner-tokens-2"


def encoded(
    documents: Sequence[str], tokenizer: Tokenizer, cache_dir: Path, progress: Progress | None = None
) -> np.ndarray:
    """The ids of all documents in one memory-mapped row, the tokenizer's end token between two documents.

    Where the tokenizer has another token that begins a text, it stands before each document, as it will before
    each prompt.

    The file's name is the hash of the text and of everything the tokenizer's ids depend on, so a changed text or
    tokenizer is another file, and an old one is never stale.

    Returns:
        (N) uint16, or uint32 for vocabularies beyond 65,536; read-only.
    """
    wide = tokenizer.vocab_size > 2**16
    dtype = np.dtype(np.uint32 if wide else np.uint16)
    key = hashlib.sha256(f"{_FORMAT} {tokenizer.fingerprint} {dtype} {len(documents)}".encode())
    for document in documents:
        data = document.encode()
        key.update(len(data).to_bytes(8, "little") + data)
    path = cache_dir / "tokens" / f"{key.hexdigest()[:32]}.{dtype.name}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                for ids in _encode(documents, tokenizer, progress):
                    file.write(np.asarray(ids, dtype=dtype).tobytes())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _encode(documents: Sequence[str], tokenizer: Tokenizer, progress: Progress | None) -> Iterator[list[int]]:
    """Ids in order, about `_PIECE` characters at a time."""
    total, done = sum(map(len, documents)), 0
    between = [tokenizer.eos_id, *tokenizer.opening]
    yield tokenizer.opening if documents else []
    for group in _groups(documents):
        texts = [piece for piece in group if piece is not None]
        ids = iter(tokenizer.encode_batch(texts))
        yield [id for piece in group for id in (between if piece is None else next(ids))]
        done += sum(map(len, texts))
        if progress:
            progress("encoding text", done, total, "characters")


def _groups(documents: Sequence[str]) -> Iterator[list[str | None]]:
    """Pieces of about `_PIECE` characters together; None stands between two documents."""
    group: list[str | None] = []
    size = 0
    for number, document in enumerate(documents):
        group += [None] if number else []
        for piece in _pieces(document):
            group.append(piece)
            size += len(piece)
            if size >= _PIECE:
                yield group
                group, size = [], 0
    yield group


_BREAK = re.compile(r"(?<=\S\n)(?=\S)")
"""Between a line's end and the next line's beginning, with no other space around: byte-level BPE never joins tokens
across such a place, so the ids of the pieces are those of the whole."""


def _pieces(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > _PIECE and (cut := _BREAK.search(document, start + _PIECE)):
        yield document[start : cut.start()]
        start = cut.start()
    if start < len(document):
        yield document[start:]


@dataclass(frozen=True)
class Windows:
    """Sliding windows over a row of ids.

    Window i begins at ``i x stride``. With a stride of the context length every id is a target once; with a
    smaller one windows overlap, and an id is predicted from several lengths of context. Ids after the last whole
    window (fewer than a stride) are left out.

    Args:
        ids: (N) tokens.
        context: T, the tokens that go in.
        stride: tokens between the beginnings of two windows.
    """

    ids: np.ndarray
    context: int
    stride: int

    def __post_init__(self) -> None:
        assert len(self.ids) > self.context >= 1 and self.stride >= 1

    def __len__(self) -> int:
        return (len(self.ids) - self.context - 1) // self.stride + 1

    def batch(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (B, T) and targets (B, T), int64."""
        starts = np.asarray(indices, dtype=np.int64)[:, None] * self.stride
        rows = np.asarray(self.ids[starts + np.arange(self.context + 1)], dtype=np.int64)  # (B, T + 1)
        return rows[:, :-1], rows[:, 1:]


def fit_windows(
    training: np.ndarray, validation: np.ndarray, context: int, stride: int | None = None
) -> tuple[Windows, Windows, list[str]]:
    """Windows of the training and the validation ids, shortened where a text is too short for the context.

    Validation windows do not overlap: every token counts once.

    Returns:
        training windows, validation windows, and what was shortened, in sentences.

    Raises:
        ValueError: a text has fewer than two tokens, so that nothing could be predicted; or the stride would leave
            out text.
    """
    if stride is not None and stride > context:
        raise ValueError(
            f"A --stride of {stride} would leave out text between windows of {context} tokens; "
            f"give at most {context}."
        )
    for ids, what in ((training, "training"), (validation, "validation")):
        if len(ids) < 2:
            raise ValueError(
                f"The {what} text has {len(ids)} token{'s' * (len(ids) != 1)}; at least 2 are needed to predict "
                "one from another. Use a longer corpus, or another --val-split."
            )
    notes = []
    length = min(context, len(training) - 1)
    if length < context:
        notes.append(
            f"The training text has only {len(training)} tokens: windows are {length} tokens instead of {context}."
        )
    eval_length = min(length, len(validation) - 1)
    if eval_length < length:
        notes.append(
            f"The validation text has only {len(validation)} tokens: its windows are {eval_length} tokens instead "
            f"of {length}. A short context makes its loss a little higher."
        )
    step = min(stride or length, length)
    return Windows(training, length, step), Windows(validation, eval_length, eval_length), notes


@dataclass(frozen=True)
class ReferenceLines:
    """Losses (nats a token) that simple guessers reach on a text, so that a curve can be read.

    A model that knows nothing is at ``uniform``; one that knows how often each token comes, at ``unigram``; one
    that also knows which token came before, at ``bigram``. Below that a model uses more than one token of context.
    The last two are of the text's own counts: on a small text most pairs come once, and ``bigram`` is lower than
    any model can reach on new text.
    """

    uniform: float
    unigram: float
    bigram: float


def reference_lines(ids: np.ndarray, vocab_size: int) -> ReferenceLines:
    """The entropies of ``ids`` (at most its first 20 million tokens): ln V, H(x_t), H(x_t | x_t-1)."""
    ids = np.asarray(ids[:20_000_000], dtype=np.int64)
    single = np.bincount(ids, minlength=vocab_size)
    # H(b | a) = H(a, b) - H(a), with a counted as the first of a pair
    pairs = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)[1]
    first = np.bincount(ids[:-1], minlength=vocab_size)
    return ReferenceLines(float(np.log(vocab_size)), _entropy(single), max(0.0, _entropy(pairs) - _entropy(first)))


def _entropy(counts: np.ndarray) -> float:
    """-sum p ln p of counts, in nats."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float((shares * np.log(1 / shares)).sum())
