"""Windows over tokens: what goes in, what comes out, and that nothing is counted twice or seen too early."""

from __future__ import annotations

import math

import numpy as np
import pytest

from limner.data import windows
from limner.data.windows import Windows, encoded, fit_windows, reference_lines
from limner.tokenizer import get_tokenizer, train_bpe

BYTE = get_tokenizer("byte")


def test_targets_are_inputs_one_later():
    row = Windows(np.arange(23, dtype=np.uint16), context=5, stride=5)
    inputs, targets = row.batch(range(len(row)))
    assert np.array_equal(targets, inputs + 1)
    assert inputs[:, 0].tolist() == [0, 5, 10, 15]
    assert sorted(targets.flatten().tolist()) == list(range(1, 21))  # each once; 21 and 22 make no whole window
    assert inputs.dtype == np.int64


def test_stride_below_the_context_overlaps():
    row = Windows(np.arange(12), context=4, stride=2)
    assert row.batch(range(len(row)))[0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]


def test_the_last_window_may_end_with_the_text():
    assert len(Windows(np.arange(11), context=5, stride=5)) == 2
    assert len(Windows(np.arange(10), context=5, stride=5)) == 1


def test_too_small_texts_shrink_the_window_and_say_so():
    training, validation, notes = fit_windows(np.arange(50), np.arange(11), context=64)
    assert (training.context, validation.context) == (49, 10)
    assert len(training) == len(validation) == 1
    assert notes[0] == "The training text has only 50 tokens: windows are 49 tokens instead of 64."
    assert "windows are 10 tokens instead of 49" in notes[1]
    assert fit_windows(np.arange(500), np.arange(65), context=64)[2] == []


def test_a_stride_that_would_leave_out_text_is_refused():
    with pytest.raises(ValueError, match="stride of 65 would leave out text between windows of 64 tokens"):
        fit_windows(np.arange(500), np.arange(500), context=64, stride=65)
    assert fit_windows(np.arange(50), np.arange(50), context=64, stride=64)[0].stride == 49  # told with the length


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_left_is_an_error(count):
    with pytest.raises(ValueError, match=f"validation text has {count} token"):
        fit_windows(np.arange(50), np.arange(count), context=8)


def test_documents_are_encoded_once_and_separated(tmp_path):
    told = []
    ids = encoded(("ab", "c"), BYTE, tmp_path, lambda *progress: told.append(progress))
    assert ids.tolist() == [97, 98, 256, 99] and ids.dtype == np.uint16
    assert told == [("encoding text", 3, 3, "characters")]
    assert isinstance(ids, np.memmap) and not ids.flags.writeable
    again = encoded(("ab", "c"), BYTE, tmp_path, lambda *progress: told.append(progress))
    assert again.tolist() == ids.tolist() and len(told) == 1
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_each_document_begins_as_a_prompt_does(tmp_path, monkeypatch):
    class Beginning(type(BYTE)):
        bos_id = 7

    tokenizer = Beginning()
    assert encoded(("ab", "", "c"), tokenizer, tmp_path).tolist() == [7, 97, 98, 256, 7, 256, 7, 99]
    assert encoded((), tokenizer, tmp_path).tolist() == []
    monkeypatch.setattr(windows, "_PIECE", 2)  # a document in several pieces begins once
    ids = encoded(("a\nb\nc\nd\n",), tokenizer, tmp_path).tolist()
    assert ids == tokenizer.encode_prompt("a\nb\nc\nd\n")


def test_another_text_or_tokenizer_is_another_file(tmp_path):
    bpe = train_bpe(["ab ab ab"], 300)
    rows = [
        encoded(("ab", "c"), BYTE, tmp_path),
        encoded(("abc",), BYTE, tmp_path),
        encoded(("ab", "c"), bpe, tmp_path),
    ]
    assert len({tuple(row.tolist()) for row in rows}) == 3
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_pieces_of_a_long_document_give_its_own_ids(tmp_path, monkeypatch, real_data):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_data / "tokenizers" / "tiktoken_cache"))
    text = (real_data / "text" / "tinyshakespeare.txt").read_text()[:60_000] + "\n\n\n  end\n \n x"
    for tokenizer in (get_tokenizer("gpt2"), train_bpe([text], 600)):
        whole = tokenizer.encode(text)
        monkeypatch.setattr(windows, "_PIECE", 500)
        assert encoded((text,), tokenizer, tmp_path).tolist() == whole
        monkeypatch.setattr(windows, "_PIECE", 1_000_000)


def test_a_wide_vocabulary_takes_wide_ids(tmp_path):
    class Wide(type(BYTE)):
        vocab_size = 100_000

        def encode(self, text):
            return [70_000 for _ in text]

    assert encoded(("ab",), Wide(), tmp_path).tolist() == [70_000, 70_000]


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(("ab",), BYTE, tmp_path, interrupt)
    assert not list((tmp_path / "tokens").iterdir())


def test_reference_lines_of_known_sources():
    # a b a b ...: each half the time, and the next is certain
    lines = reference_lines(np.array([0, 1] * 500), vocab_size=8)
    assert lines.uniform == pytest.approx(math.log(8))
    assert lines.unigram == pytest.approx(math.log(2))
    assert lines.bigram == pytest.approx(0, abs=1e-6)
    only = reference_lines(np.array([3] * 10), vocab_size=8)
    assert f"{only.unigram:.2f} {only.bigram:.2f}" == "0.00 0.00"  # and not -0.00
    # independent draws: knowing the one before does not help
    draws = np.random.default_rng(0).integers(0, 4, 200_000)
    lines = reference_lines(draws, vocab_size=4)
    assert lines.bigram == pytest.approx(lines.unigram, abs=1e-3) == pytest.approx(math.log(4), abs=1e-3)
