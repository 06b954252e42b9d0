"""Tokenizers against tiktoken's and transformers' own, recorded vectors, and round trips of any bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from limner.tokenizer import END_OF_TEXT, Tokenizer, get_tokenizer, train_bpe

TEXT = "The painter drew a red circle. The red circle was small; the painter's hand was not. " * 20


@pytest.fixture
def gpt2(real_data, monkeypatch) -> Tokenizer:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_data / "tokenizers" / "tiktoken_cache"))
    return get_tokenizer("gpt2")


BYTE = get_tokenizer("byte")
BPE = train_bpe([TEXT], 320)


def test_gpt2_known_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.vocab_size == 50257 and gpt2.eos_id == gpt2.bos_id == 50256
    assert gpt2.tokenize("Hello world") == ["Hello", " world"]
    assert gpt2.encode_batch(["Hello world", ""]) == [[15496, 995], []]
    assert gpt2.decode_batch([[15496, 995], []]) == ["Hello world", ""]
    assert gpt2.count("Hello world") == 2
    assert 50256 not in gpt2.encode("a <|endoftext|> in a text is ordinary text")


def test_gpt2_equals_recorded_vectors(gpt2, real_data):
    folder = real_data / "tokenizers" / "gpt2"
    texts = (folder / "gpt-2.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    lines = (folder / "gpt-2.out").read_text().splitlines()
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        ids = [int(word) for word in line.split()]
        assert gpt2.encode(text) == ids
        assert gpt2.decode(ids) == text


def test_gpt2_saved_is_stock(gpt2, real_data, tmp_path):
    from transformers import AutoTokenizer

    gpt2.save(tmp_path)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "gpt2")
    text = (real_data / "text" / "the-verdict.txt").read_text() + " Führer 12345 \n\n\t 日本語 \U0001f600 don't"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"] == gpt2.encode(text)
    assert ours.decode(gpt2.encode(text)) == text
    assert len(ours) == 50257 and ours.eos_token_id == 50256
    again = get_tokenizer(tmp_path)
    assert again.encode(text) == gpt2.encode(text) and again.eos_id == 50256


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode())))
@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_any_byte_string_round_trips(tokenizer, data):
    ids = tokenizer.encode_bytes(data)
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert tokenizer.decode_bytes(ids) == data


def test_any_byte_string_round_trips_in_gpt2(gpt2):
    for data in (bytes(range(256)), b"\xff\xfehalf \xe2\x82", "日本語 \U0001f600".encode(), b"", b"a\x80b"):
        assert gpt2.decode_bytes(gpt2.encode_bytes(data)) == data


def test_byte_pieces():
    assert BYTE.encode("aé") == [97, 0xC3, 0xA9]
    assert BYTE.tokenize("aé") == ["a", "\\xc3", "\\xa9"]
    assert BYTE.decode([97, 0xC3]) == "a\ufffd"
    assert (BYTE.vocab_size, BYTE.eos_id) == (257, 256)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_saved_tokenizers_are_stock(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT[:200], "Zoë\n\n  12 \u00a0x", "日本 \U0001f600"):
        assert stock(text)["input_ids"] == tokenizer.encode(text)
        assert stock.decode(tokenizer.encode(text)) == text
    assert stock.eos_token_id == tokenizer.eos_id and len(stock) == tokenizer.vocab_size
    again = get_tokenizer(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.fingerprint == tokenizer.fingerprint
    assert "".join(again.tokenize(TEXT)) == TEXT


def test_bpe_is_shorter_than_bytes_and_needs_room():
    assert 257 < BPE.vocab_size <= 320
    assert BPE.count(TEXT) < BYTE.count(TEXT) / 3
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe([TEXT], 256)
    with pytest.raises(ValueError, match="none was given"):
        get_tokenizer("bpe")


def test_bpe_training_finds_the_reference_merges(real_data):
    folder = real_data / "tokenizers" / "bpe_training_reference"
    reference = (folder / "train-bpe-reference-merges.txt").read_text().splitlines()
    tokenizer = train_bpe([(folder / "corpus.en").read_text()], 500)
    merges = [
        " ".join(pair) for pair in json.loads(tokenizer.stock().backend_tokenizer.to_str())["model"]["merges"]
    ]
    assert merges[:30] == reference[:30]
    # Equally frequent pairs may be merged in either order: near the end four others made it into the vocabulary.
    assert len(merges) == len(reference) == 243
    assert len(set(merges) & set(reference)) >= 239


def test_a_sentencepiece_like_tokenizer_is_read(real_data):
    tokenizer = get_tokenizer(real_data / "models" / "stories260k")
    text = "Once upon a time, there was a girl named Zoë."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == b" " + text.encode()  # SentencePiece begins every text with a space
    assert tokenizer.vocab_size == 512 and len(ids) < len(text)


def stock_bpe(*added: AddedToken, **special: str) -> PreTrainedTokenizerFast:
    """The learned BPE with further tokens, as other families have them."""
    backend = Backend.from_str(BPE.stock().backend_tokenizer.to_str())
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": END_OF_TEXT} | special))


def test_added_tokens_stand_for_their_own_text(tmp_path):
    """GPT-NeoX has runs of spaces as added tokens, which are not in the byte-level alphabet."""
    stock = stock_bpe(AddedToken("    ", normalized=True, special=False))
    stock.save_pretrained(tmp_path)
    tokenizer, text = get_tokenizer(tmp_path), "The\n    red circle"
    assert tokenizer.encode(text) == stock(text)["input_ids"]
    assert "    " in tokenizer.tokenize(text)
    assert tokenizer.decode(tokenizer.encode(text)) == stock.decode(stock(text)["input_ids"]) == text


def test_ids_with_gaps_are_below_the_vocabulary_size(tmp_path):
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 10, "b": 70_000}
    backend = Backend(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Split("", "isolated")
    backend.decoder = Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = get_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.unk_id, tokenizer.bos_id) == (70_001, 0, None)
    assert tokenizer.encode("abc") == [10, 70_000, 0]
    assert tokenizer.decode([10, 11, 70_000]) == "ab" and tokenizer.piece(11) == ""  # a model may draw a gap


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_ids_that_no_token_has_are_no_text(tokenizer):
    """A model with more rows than its tokenizer has tokens may draw one."""
    beyond = [tokenizer.vocab_size, 9999]
    assert tokenizer.decode([97, *beyond, 98]) == tokenizer.decode([97, 98])
    assert tokenizer.decode([97, *beyond, 98]) == tokenizer.stock().decode([97, *beyond, 98])
    assert tokenizer.piece(beyond[0]) == ""
    with pytest.raises(ValueError, match="no token -1"):
        tokenizer.decode([97, -1])


def test_a_prompt_begins_as_a_text_does(tmp_path):
    assert BYTE.opening == BPE.opening == []
    assert BYTE.encode_prompt("a") == [97] and BYTE.encode_prompt("") == [256]
    stock_bpe(AddedToken("<s>", special=True), bos_token="<s>").save_pretrained(tmp_path)
    tokenizer = get_tokenizer(tmp_path)
    assert tokenizer.opening == [tokenizer.bos_id] != [tokenizer.eos_id]
    assert tokenizer.encode_prompt("a") == [tokenizer.bos_id, *tokenizer.encode("a")]
    assert tokenizer.encode_prompt("") == [tokenizer.bos_id]


def test_a_model_without_a_vocabulary_is_no_tokenizer(tmp_path):
    """transformers makes up an empty one from the model's type."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="no vocabulary; give a folder"):
        get_tokenizer(tmp_path)


def test_missing_vocabularies_say_what_to_do(tmp_path, monkeypatch):
    import tiktoken

    def offline(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(OSError, match="--tokenizer bpe"):
        get_tokenizer("gpt2")
    with pytest.raises(OSError, match="could not be fetched; give a folder"):
        get_tokenizer("nobody/nothing")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        get_tokenizer(tmp_path)


def test_a_tokenizer_brings_no_code(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    named = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises((ValueError, OSError)):
        get_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()
