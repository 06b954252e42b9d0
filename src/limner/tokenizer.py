"""Text to tokens and back: one small interface over GPT-2's vocabulary, bytes, a BPE of one's own, and any other.

A language model sees numbers. Bytes are the smallest vocabulary (256, nothing to learn or to download) but make
long sequences; byte-pair encoding (Sennrich et al., 2016; on bytes: Radford et al., 2019) joins the pairs that are
frequent in a corpus, so that a token is about a word. Every tokenizer here can be saved as a stock `transformers`
tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tiktoken
    import tokenizers
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer(ABC):
    """Encodes text without adding anything to it: what is decoded again is the text, character for character.

    SentencePiece's tokenizers are an exception: most begin every text with a space, and some drop spaces or put
    <unk> for what they do not know. Names of special tokens in a text (such as "<|endoftext|>") are ordinary text;
    `eos_id` is put in by number.
    """

    name: str
    """What `get_tokenizer` was asked for."""
    vocab_size: int
    """Ids are below this."""
    eos_id: int
    """The token that ends a text."""
    bos_id: int | None
    """The token that begins a text, where the family has one (GPT-2 uses its end token)."""
    byte_level: bool = True
    """Whether a text is the bytes of its tokens, whatever stands before them."""
    unk_id: int | None = None
    """The token for text that the tokenizer does not know; None: it knows all text."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    @property
    def opening(self) -> list[int]:
        """What stands before every text, in training and in prompts: a token that begins texts and ends none."""
        return [] if self.bos_id is None or self.bos_id == self.eos_id else [self.bos_id]

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to continue; of an empty one the token that begins (or ends) texts.

        Bytes that are no UTF-8 may stand in it as a command line brings them (surrogate escapes).
        """
        ids = self.opening + self.encode_bytes(text.encode("utf-8", "surrogateescape"))
        return ids or ([] if self.bos_id is None else [self.bos_id])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def token_bytes(self, id: int) -> bytes:
        """What a token stands for: special tokens for their name, ids beyond the vocabulary for nothing.

        A model may have more rows than its tokenizer has tokens, and draw one of those: stock generation draws it
        too, and stock tokenizers make nothing of it.

        Raises:
            ValueError: the id is negative.
        """
        if id < 0:
            raise ValueError(f"There is no token {id}; ids begin at 0.")
        return self._token_bytes(id) if id < self.vocab_size else b""

    @abstractmethod
    def _token_bytes(self, id: int) -> bytes:
        """As `token_bytes`, of an id of the vocabulary."""

    def vocabulary(self) -> list[bytes]:
        """What each id stands for."""
        return [self.token_bytes(id) for id in range(self.vocab_size)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 (half a character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any byte string, UTF-8 or not; byte-level tokenizers' `decode_bytes` gives it back.

        Raises:
            ValueError: the data is not UTF-8 and the tokenizer has no tokens for single bytes.
        """
        ids: list[int] = []
        # surrogateescape turns each byte that is no UTF-8 into one character of U+DC80..U+DCFF
        text = data.decode("utf-8", "surrogateescape")
        start = 0
        for position, character in enumerate(text):
            if "\udc80" <= character <= "\udcff":
                ids += self.encode(text[start:position]) if position > start else []
                ids.append(self._byte_id(ord(character) - 0xDC00))
                start = position + 1
        return ids + self.encode(text[start:])

    def _byte_id(self, byte: int) -> int:
        raise ValueError(f"The tokenizer '{self.name}' has no token for the byte 0x{byte:02X}; give it UTF-8 text.")

    def tokenize(self, text: str) -> list[str]:
        """The pieces as strings, spaces kept; a piece that is part of a character shows its bytes as ``\\xe2``."""
        return [self.piece(id) for id in self.encode(text)]

    def piece(self, id: int) -> str:
        return self.token_bytes(id).decode("utf-8", "backslashreplace")

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.encode(text))

    @cached_property
    def fingerprint(self) -> str:
        """Names everything that ids depend on; part of the key of token caches."""
        return hashlib.sha256(self.stock().backend_tokenizer.to_str().encode()).hexdigest()[:16]

    @abstractmethod
    def stock(self) -> PreTrainedTokenizerFast:
        """The same tokenizer for `transformers`."""

    def save(self, folder: Path | str) -> None:
        """Writes a stock tokenizer, which `transformers.AutoTokenizer` and `get_tokenizer` load."""
        self.stock().save_pretrained(folder)


def get_tokenizer(
    name_or_path: str | Path, corpus: Iterable[str] | None = None, vocab_size: int = 4096
) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name_or_path: "gpt2" (50,257 tokens), "byte" (256 and one special, no file at all), "bpe" (trained on
            ``corpus``), a folder with a stock tokenizer, or a hub id.
        corpus: the texts that "bpe" learns from.
        vocab_size: tokens of "bpe", at least 257.

    Raises:
        OSError: the vocabulary is neither on this machine nor to be fetched; the message says what to do.
        ValueError: "bpe" without a corpus, or too small a vocabulary.
    """
    name = str(name_or_path)
    if name == "gpt2":
        return _Tiktoken(name, _gpt2_encoding())
    if name == "byte":
        return _Bytes()
    if name == "bpe":
        if corpus is None:
            raise ValueError("The tokenizer 'bpe' is trained on a corpus; none was given.")
        return train_bpe(corpus, vocab_size)
    return _Stock(name, _load_stock(name))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding learned from texts: id 0 ends a text, then the 256 bytes, then the merges in order.

    Raises:
        ValueError: the vocabulary has no room for the bytes.
    """
    if vocab_size < 257:
        raise ValueError(f"A byte-level BPE needs at least 257 tokens; --vocab-size is {vocab_size}.")
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _Stock("bpe", _as_stock(backend))


class _Bytes(Tokenizer):
    """Token b is the byte b; 256 ends a text."""

    name = "byte"
    vocab_size = 257
    eos_id = 256
    bos_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _token_bytes(self, id: int) -> bytes:
        return END_OF_TEXT.encode() if id == self.eos_id else bytes([id])

    def _byte_id(self, byte: int) -> int:
        return byte

    def stock(self) -> PreTrainedTokenizerFast:
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return _as_stock(backend)


class _Tiktoken(Tokenizer):
    """A tiktoken encoding; several times as fast as the stock tokenizer of the same vocabulary."""

    def __init__(self, name: str, encoding: tiktoken.Encoding) -> None:
        self.name = name
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.eos_id = self.bos_id = encoding.eot_token

    @cached_property
    def fingerprint(self) -> str:
        return f"tiktoken-{self.name}"

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def _token_bytes(self, id: int) -> bytes:
        return self.encoding.decode_single_token_bytes(id)

    def _byte_id(self, byte: int) -> int:
        return self.encoding.encode_single_token(bytes([byte]))

    def stock(self) -> PreTrainedTokenizerFast:
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        ranks = self.encoding._mergeable_ranks
        characters = _byte_characters()

        def readable(token: bytes) -> str:
            return "".join(characters[byte] for byte in token)

        vocabulary = {readable(token): rank for token, rank in ranks.items()}
        merges = [(readable(a), readable(b)) for a, b in _merges(ranks)]
        backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return _as_stock(backend)


class _Stock(Tokenizer):
    """Any fast tokenizer of `transformers`."""

    def __init__(self, name: str, stock: PreTrainedTokenizerFast) -> None:
        self.name = name
        self._stock = stock
        # A copy that takes the names of special tokens for ordinary text and adds nothing.
        from tokenizers import Tokenizer as Backend

        self._backend: tokenizers.Tokenizer = Backend.from_str(stock.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = 1 + max(stock.get_vocab().values())  # ids may have gaps
        if stock.eos_token_id is None:
            raise ValueError(f"The tokenizer '{name}' has no end-of-text token, which a language model needs.")
        self.eos_id = stock.eos_token_id
        self.bos_id = stock.bos_token_id
        self.byte_level = "ByteLevel" in str(stock.backend_tokenizer.decoder)
        self.unk_id = None if stock.unk_token_id in (self.eos_id, self.bos_id) else stock.unk_token_id
        self._added = {id: token.content for id, token in stock.added_tokens_decoder.items()}

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def _token_bytes(self, id: int) -> bytes:
        if id in self._added:  # special or not, an added token is found in a text as it is written
            return self._added[id].encode()
        token = self._backend.id_to_token(id)
        if token is None:  # a gap in the ids, of which a model may draw one: no text, as stock tokenizers say
            return b""
        if self.byte_level:
            values = _byte_values()
            return bytes(values[character] for character in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # SentencePiece's byte tokens
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece's mark of a space

    def decode(self, ids: Iterable[int]) -> str:
        if self.byte_level:
            return super().decode(ids)
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def _byte_id(self, byte: int) -> int:
        token = _byte_characters()[byte] if self.byte_level else f"<0x{byte:02X}>"
        id = self._backend.token_to_id(token)
        return super()._byte_id(byte) if id is None else id

    def stock(self) -> PreTrainedTokenizerFast:
        return self._stock


def _as_stock(backend: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


def _load_stock(source: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    advice = "give a folder with a stock tokenizer, or use --tokenizer bpe (trained on the corpus) or byte"
    try:
        stock = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if Path(source).exists():
            raise ValueError(f"{source} holds no tokenizer that transformers can read; {advice}.") from error
        raise OSError(f"The tokenizer '{source}' is not here and could not be fetched; {advice}.") from error
    if not isinstance(stock, PreTrainedTokenizerFast):
        raise ValueError(f"The tokenizer {source} has no tokenizer.json (a fast tokenizer); {advice}.")
    if not stock.backend_tokenizer.get_vocab_size(with_added_tokens=False):  # transformers makes one up, empty
        raise ValueError(f"{source} holds a model's settings, but no vocabulary; {advice}.")
    return stock


def _gpt2_encoding() -> tiktoken.Encoding:
    """GPT-2's vocabulary from the cache, or fetched into it once (1.5 MB)."""
    import tiktoken

    # tiktoken's own default lies in the temporary folder and is lost at the next start of the machine
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(Path.home() / ".cache" / "limner" / "tiktoken"))
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no connection; or a file that fails its checksum
        raise OSError(
            "GPT-2's vocabulary is not on this machine and could not be fetched; use --tokenizer bpe (trained on "
            "the corpus) or byte, or the folder of a saved tokenizer, or set TIKTOKEN_CACHE_DIR to a filled cache."
        ) from error


@lru_cache(maxsize=1)
def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes: itself where printable, else from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@lru_cache(maxsize=1)
def _byte_values() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_byte_characters())}


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token of more than one byte, in order of rank.

    tiktoken keeps only ranks. A token's merge is found by encoding it with the tokens of lower rank: exactly two
    pieces remain, because BPE had joined it from those two.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pair_ranks = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(pair_ranks)
            assert best < rank, "a token that no merge makes"
            i = pair_ranks.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges
