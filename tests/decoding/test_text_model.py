"""Texts continued, against stock transformers and against a plain decode of all ids at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from limner.decoding.text_model import Continuation, Detokenizer, TextModel, Token, load_text_model, visible
from limner.tokenizer import Tokenizer, get_tokenizer, train_bpe

WORDS = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁cat", "s", "▁sat", ".", "▁on", "▁the", "▁mat", "é", "▁dog", "t"]


def sentencepiece(folder: Path) -> Tokenizer:
    """Llama's kind: spaces before words, the first one dropped; what it does not know is bytes."""
    words = WORDS + [f"▁w{i}" for i in range(61 - len(WORDS))]  # the tiny models know these only
    vocabulary = [(word, -1.0) for word in words] + [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    backend = Backend(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in WORDS[:3]])
    stock = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    stock.save_pretrained(folder)
    return get_tokenizer(folder)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return sentencepiece(tmp_path_factory.mktemp("words"))


def finish(tokens: Generator[Token, None, Continuation]) -> tuple[list[Token], Continuation]:
    told = []
    while True:
        try:
            told.append(next(tokens))
        except StopIteration as end:
            return told, end.value


def added(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> tuple[list[str], str]:
    words = Detokenizer(tokenizer, before)
    parts = [words.add(id) for id in ids]
    return parts, "".join(parts) + words.rest()


# ---- what each token adds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte", "bpe", "sentencepiece"])
def test_parts_are_the_whole_text(pieces: Tokenizer, name: str) -> None:
    trained = train_bpe(["the cat sat on the mat " * 9], 270)
    tokenizer = {"byte": get_tokenizer("byte"), "bpe": trained, "sentencepiece": pieces}[name]
    for text in ("a cat sats.", "naïve 😀😀 日本語 é", "  the  mat \n"):
        ids = tokenizer.encode(text)
        for cut in range(len(ids) + 1):  # also within a character
            before = tokenizer.decode(ids[:cut])
            if tokenizer.byte_level or not before.endswith("\ufffd"):
                _, whole = added(tokenizer, ids[:cut], ids[cut:])
                assert whole == tokenizer.decode(ids)[len(before.rstrip("\ufffd")) :]
    assert added(pieces, [pieces.bos_id], pieces.encode("a cat"))[1] == "a cat"  # no space begins a text
    assert added(pieces, pieces.encode_prompt("a"), pieces.encode("cat"))[1] == " cat"


def test_bytes_that_are_no_text() -> None:
    tokenizer, draws = get_tokenizer("byte"), random.Random(0)
    for _ in range(200):  # a model that has learned nothing yet
        ids = [draws.choice([0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 65]) for _ in range(12)]
        assert added(tokenizer, [], ids)[1] == tokenizer.decode(ids)
    assert added(tokenizer, [0xE2, 0x82], [0xAC, 0xC3])[0] == ["€", ""]


def test_a_long_prompt_is_decoded_once(pieces: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    decode = type(pieces).decode
    monkeypatch.setattr(type(pieces), "decode", lambda self, ids: lengths.append(len(ids)) or decode(self, ids))
    added(pieces, [5] * 5000, [4, 5, 6] * 100)
    assert sum(length > 8 for length in lengths) <= 2


# ---- the model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def talker(make_model: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path, Tokenizer]:
    tokenizer = sentencepiece(tmp_path)
    lm = make_model("llama", seed=1)
    lm.generation_config.pad_token_id = 0
    lm.save_pretrained(tmp_path)
    return lm, tmp_path, tokenizer


def test_a_text_ends_where_stock_generate_ends_it(talker: tuple[Any, Path, Tokenizer]) -> None:
    lm, folder, tokenizer = talker
    ids = torch.tensor([tokenizer.encode_prompt("a cat")])
    last = int(lm.generate(ids, max_new_tokens=3, do_sample=False)[0, -1])  # some word of its own text
    lm.generation_config.eos_token_id = [2, last]
    lm.save_pretrained(folder)
    stock = lm.generate(ids, max_new_tokens=12, do_sample=False)[0]
    model = load_text_model(folder, "cpu")
    tokens, said = finish(model.continued("a cat", temperature=0, max_tokens=12))
    assert [token.id for token in tokens] == stock[ids.shape[1] :].tolist() and tokens[-1].id == last
    assert said.ending == "eos"
    assert "a cat" + said.text == tokenizer.stock().decode(stock, skip_special_tokens=True)
    assert said.text == "".join(token.text for token in tokens)
    logprobs = lm(stock[None]).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, stock[ids.shape[1] :, None])[:, 0].tolist()
    assert [token.logprob for token in tokens] == pytest.approx(expected, abs=1e-4)
    assert said.mean_logprob == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    # Without a word of the model's, the tokenizer's end ends a text
    lm.generation_config.eos_token_id = lm.config.eos_token_id = None
    assert TextModel(lm, tokenizer).eos_ids == (2,)


def test_endings(talker: tuple[Any, Path, Tokenizer]) -> None:
    lm, _, tokenizer = talker
    lm.generation_config.eos_token_id = [300]
    model = TextModel(lm, tokenizer)
    wish: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    tokens, said = finish(model.continued("a", **wish))
    assert (said.ending, said.num_tokens, said.prompt_tokens) == ("length", 8, 2)
    _, rest = finish(model.continued("a", forced=[token.id for token in tokens[:3]], temperature=0, max_tokens=5))
    assert rest.text == said.text
    asked: Iterator[bool] = iter([False, False, True])
    _, stopped = finish(model.continued("a", cancel=lambda: next(asked), **wish))
    assert (stopped.ending, stopped.num_tokens) == ("cancelled", 2)
    _, full = finish(model.continued("s" * 91, temperature=0))
    assert (full.ending, full.num_tokens) == ("context", 96 + 1 - full.prompt_tokens)
    with pytest.raises(ValueError, match="context holds 96; give a shorter prompt"):
        model.continued("s" * 100)  # at once, not at the first token
    with pytest.raises(ValueError, match="no setting 'topk'"):
        model.continued("Once", temperature=0, topk=3)
    with pytest.raises(ValueError, match="no token 999"):
        model.continued("a", forced=[999])


def test_a_packed_model_is_held_once(talker: tuple[Any, Path, Tokenizer]) -> None:
    from limner.decoding import get_decoder, step_model

    lm, folder, tokenizer = talker
    model = load_text_model(folder, "cpu", quantize="int8")
    tokens, _ = finish(model.continued("a cat", temperature=0, max_tokens=9))
    ids = torch.tensor([tokenizer.encode_prompt("a cat")])
    expected, _ = get_decoder("greedy", max_new_tokens=9).decode(step_model(lm, quantize="int8"), input_ids=ids)
    assert [token.id for token in tokens] == expected[0].tolist()
    assert all(p.is_meta for name, p in model.module.named_parameters() if "proj" in name)
    assert not any(p.is_meta for p in load_text_model(folder, "cpu").module.parameters())


def test_a_captioner_continues_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match=r"is a captioner: .*limner caption"):
        load_text_model(tmp_path)


def test_control_characters_are_shown() -> None:
    assert visible("a\x1b[2J\x0e\x9b\x7fé\n\t€") == r"a\x1b[2J\x0e\x9b\x7fé" + "\n\t€"
