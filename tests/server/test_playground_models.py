"""The worker's own work, in this process: real models, tiny ones, against the library's plain calls."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_captioners import toy_captioner, toy_picture

from limner.decoding import get_decoder, step_model
from limner.decoding.captioner import load_captioner
from limner.decoding.consensus import LOOKS, Consensus
from limner.models.gpt import GPTConfig, GPTModel
from limner.models.stock import save_captioner
from limner.server.models import count_parameters, describe, kind_of
from limner.server.playground import Playground
from limner.tokenizer import get_tokenizer


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    tokenizer = get_tokenizer("byte")
    model = GPTModel(
        GPTConfig(vocab_size=tokenizer.vocab_size, context_length=64, width=32, num_heads=2, num_layers=2)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder, tokenizer.eos_id)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "captioner"
    save_captioner(toy_captioner(), folder)
    return folder


@pytest.fixture
def playground() -> Generator[Playground]:
    yield Playground(threads=1, memory_bytes=10**9)
    torch.set_grad_enabled(True)


def finish(answer: Generator[dict, None, dict]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    events = []
    while True:
        try:
            events.append(next(answer))
        except StopIteration as end:
            return events, end.value


def never() -> bool:
    return False


def text(path: Path, **more: Any) -> dict[str, Any]:
    plain = {"id": "m", "path": str(path), "kind": "text", "prompt": "Once", "forced": [], "max_tokens": 8}
    plain |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    return plain | {"seed": 5, "stop": [], "alternatives": 3} | more


def said(playground: Playground, path: Path, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    events, result = finish(playground.generate(text(path, **more), never))
    return [event["token"] for event in events if "token" in event], result


def test_tokens_and_probabilities_are_the_models(playground: Playground, gpt: Path) -> None:
    tokens, result = said(playground, gpt)
    model, tokenizer = GPTModel.from_pretrained(str(gpt)).eval(), get_tokenizer(str(gpt))
    prompt = torch.tensor([tokenizer.encode("Once")])
    decoder = get_decoder("greedy", max_new_tokens=8, eos_token_id=(tokenizer.eos_id,))
    decoded = decoder.decode_full(step_model(model), input_ids=prompt)
    assert [token["id"] for token in tokens] == decoded.tokens[0].tolist()
    assert [token["logprob"] for token in tokens] == pytest.approx(decoded.token_logprobs[0].tolist(), abs=1e-4)
    logits = model.logits(model.hidden(torch.cat([prompt, decoded.tokens[:, :3]], 1)))[0, -1].log_softmax(0)
    best = logits.topk(3)
    assert [other["id"] for other in tokens[3]["alternatives"]] == best.indices.tolist()
    assert [other["logprob"] for other in tokens[3]["alternatives"]] == pytest.approx(
        best.values.tolist(), abs=1e-4
    )
    assert result["text"].startswith("".join(token["text"] for token in tokens)[:1])


def test_a_branch_goes_on_as_if_it_had_been_said(playground: Playground, gpt: Path) -> None:
    whole, _ = said(playground, gpt)
    rest, _ = said(playground, gpt, forced=[token["id"] for token in whole[:3]], max_tokens=5)
    assert [token["id"] for token in rest] == [token["id"] for token in whole[3:]]
    other = whole[3]["alternatives"][1]["id"]
    branch, result = said(playground, gpt, forced=[token["id"] for token in whole[:3]] + [other], max_tokens=4)
    assert len(branch) == 4 and result["prompt_tokens"] == 4


def test_seeds_stops_room_and_cancelling(playground: Playground, gpt: Path) -> None:
    drawn = [[t["id"] for t in said(playground, gpt, temperature=1.5, seed=s, max_tokens=12)[0]] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    full, result = said(playground, gpt, prompt="x" * 60, max_tokens=50)
    assert (len(full), result["finish"]) == (5, "context")  # which holds 64, and the last token needs no place
    assert said(playground, gpt, max_tokens=3)[1]["finish"] == "length"
    with pytest.raises(ValueError, match="holds 64"):
        said(playground, gpt, prompt="x" * 65)
    with pytest.raises(ValueError, match="no token 999"):
        said(playground, gpt, forced=[999])
    plain = said(playground, gpt)[1]["text"]
    if plain.isascii() and len(plain) > 3:
        assert said(playground, gpt, stop=[plain[2]])[1]["finish"] == "stop"
    asked = iter([False, False, False, True, True, True])
    events, result = finish(playground.generate(text(gpt), lambda: next(asked)))
    assert result["finish"] == "cancelled" and sum("token" in event for event in events) == 3


def test_captions_are_the_captioners(playground: Playground, captioner: Path, tmp_path: Path) -> None:
    assert kind_of(captioner) == "caption"
    picture = tmp_path / "p.png"
    toy_picture(3).save(picture)
    wish = {"id": "c", "path": str(captioner), "kind": "caption", "image": str(picture)}
    wish |= {"num_beams": 3, "max_length": 8, "num_captions": None, "consensus": True}
    events, result = finish(playground.caption(wish, never))
    plain = load_captioner(captioner, "cpu").describe(
        [picture], num_beams=3, max_new_tokens=8, num_return_sequences=3
    )
    assert [caption["text"] for caption in result["captions"]] == [caption.text for caption in plain]
    assert [c["score"] for c in result["captions"]] == pytest.approx([c.score for c in plain], abs=1e-4)
    assert [[t["id"] for t in c["tokens"]] for c in result["captions"]] == [c.tokens for c in plain]
    assert [caption["ending"] for caption in result["captions"]] == [caption.ending for caption in plain]
    _, cut = finish(playground.caption(wish | {"max_length": 2}, never))
    assert cut["finish"] == cut["captions"][0]["ending"] == "length"
    for caption in result["captions"]:
        assert "".join(token["text"] for token in caption["tokens"]).strip() == caption["text"]
    assert len([event for event in events if "caption" in event]) == 3
    _, cancelled = finish(playground.caption(wish, lambda: True))
    assert cancelled["finish"] == "cancelled" and cancelled["captions"] == []
    with pytest.raises(ValueError, match="captions pictures"):
        said(playground, captioner, id="c", kind="caption")


def test_models_are_dropped_when_memory_is_short(gpt: Path, tmp_path: Path) -> None:
    playground = Playground(threads=1, memory_bytes=10**9)
    try:
        _, first = finish(playground.load(text(gpt, id="a"), never))
        size = first["bytes"]
        assert first["parameters"] > 10_000 and size >= 4 * first["parameters"]
        playground.memory_bytes = int(2.5 * size)
        for id in ("b", "a", "c"):
            _, last = finish(playground.load(text(gpt, id=id), never))
        assert [model["id"] for model in last["loaded"]] == ["a", "c"]  # b was used longest ago
        copy = tmp_path / "copy"
        shutil.copytree(gpt, copy)
        finish(playground.load(text(copy, id="a"), never))
        before = playground._models["a"].model
        finish(playground.load(text(copy, id="a"), never))
        assert playground._models["a"].model is before
        (copy / "model.safetensors").touch()  # trained anew: loaded anew
        finish(playground.load(text(copy, id="a"), never))
        assert playground._models["a"].model is not before
        _, gone = finish(playground.unload({"id": "a"}, never))
        assert [model["id"] for model in gone["loaded"]] == ["c"]
    finally:
        torch.set_grad_enabled(True)


def test_training_captions_choose_as_they_do_in_the_terminal(playground: Playground, tmp_path: Path) -> None:
    folder, picture = tmp_path / "toy", tmp_path / "p.png"
    vlm = toy_captioner(text="llama_untied")
    save_captioner(vlm, folder)
    toy_picture(3).save(picture)
    plain = load_captioner(folder, "cpu")
    beams = plain.describe([picture], num_beams=3, max_new_tokens=8, num_return_sequences=3)
    last = beams[2].text
    pictures = torch.stack([plain.pixels.pixels(toy_picture(seed)) for seed in (3, 4)])
    looks = plain.vlm.features(pictures).mean(1)[:, None].expand(-1, LOOKS, -1)  # (2, LOOKS, Dv)
    Consensus.of(looks, [[last], ["something else"]]).save(folder)
    info = describe(folder, "dir:toy", "toy")
    assert info is not None and info.consensus
    assert info.parameters == sum(count_parameters(file) for file in folder.glob("*.safetensors"))
    wish = {"id": "c", "path": str(folder), "kind": "caption", "image": str(picture)}
    wish |= {"num_beams": 3, "max_length": 8, "num_captions": None}
    _, chosen = finish(playground.caption(wish | {"consensus": True}, never))
    _, likeliest = finish(playground.caption(wish | {"consensus": False}, never))
    assert (chosen["consensus"], [caption["text"] for caption in chosen["captions"]]) == (True, [last])
    assert (likeliest["consensus"], likeliest["captions"][0]["text"]) == (False, beams[0].text)
    assert beams[0].text != last
    wish["image"] = str(tmp_path / "upload-x7")
    Path(wish["image"]).write_bytes(picture.read_bytes()[:-200])
    with pytest.raises(ValueError, match="the picture cannot be decoded") as error:
        finish(playground.caption(wish | {"consensus": True}, never))
    assert str(tmp_path) not in str(error.value)
