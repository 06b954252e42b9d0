"""``limner generate`` as one types it, with a tiny byte model that has learned nothing."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

from limner.cli.main import main
from limner.models.gpt import GPTConfig, GPTModel
from limner.tokenizer import get_tokenizer


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("gpt"), get_tokenizer("byte")
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=257, context_length=32, width=32, num_heads=2, num_layers=1))
    model.save_pretrained(folder, tokenizer.eos_id)
    tokenizer.save(folder)
    return str(folder)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["generate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_end_of_the_context_is_told(gpt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, gpt, "--prompt", "Once", "--seed", "3")["ending"] == "context"
    assert answer(capsys, gpt, "--prompt", "Once", "--seed", "3", "--max-tokens", "4")["ending"] == "length"
    assert main(["generate", gpt, "--prompt", "Once", "--seed", "3"]) == 0
    assert "(The model's context of 32 tokens allowed no more.)" in capsys.readouterr().err


def test_a_prompt_may_be_any_bytes(gpt: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = b"caf\xff".decode("utf-8", "surrogateescape")  # as Python gives arguments
    told = answer(capsys, gpt, "--prompt", prompt, "--max-tokens", "3", "--temperature", "0")
    ids = torch.tensor([[256, *b"caf\xff"][1:]])
    assert told["tokens"][0]["id"] == int(GPTModel.from_pretrained(gpt).eval()(ids)[0, -1].argmax())


def test_a_terminal_is_spared_control_characters(
    gpt: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", gpt, "--prompt", "\x1b[31mOnce\n"]
    assert main(words) == 0
    piped = capsys.readouterr().out
    assert piped.startswith("\x1b[31mOnce\n") and any(character < " " for character in piped[10:-1])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("\\x1b[31mOnce\n") and all(
        character >= " " or character in "\n\t" for character in shown
    )


def test_eight_bits(gpt: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, packed = (
        answer(capsys, gpt, "--prompt", "Once", "--temperature", "0", "--max-tokens", "3", *more)
        for more in ((), ("--quantize", "int8"))
    )
    assert packed["mean_logprob"] == pytest.approx(plain["mean_logprob"], abs=0.02)
    assert packed["mean_logprob"] != plain["mean_logprob"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_any_terminal_is_told_what_it_can_show(gpt: str, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    prompt = "é\x80你\N{GRINNING FACE}"

    def said(*more: str) -> str:
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            assert main(["generate", gpt, "--prompt", prompt, "--max-tokens", "9", *more]) == 0
        stdout.flush()
        return stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]

    told = json.loads(said("--json"))
    assert told["prompt"] == prompt
    assert said() == f"{prompt}{told['text']}\n".encode(encoding, "replace").decode(encoding)
