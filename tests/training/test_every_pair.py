"""``limner train`` with every family of encoders and decoders: it learns, is saved, says the same in stock
transformers, and goes on from there. Each family once; all 169 pairs with LIMNER_EVERY_PAIR=1 (four minutes)."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from toy_captioners import CONVOLUTIONAL, LLAVA_REFUSES, TEXT, VISION, WORDS, toy_picture, toy_tokenizer

import limner
from limner.cli.main import main
from limner.runs import Run

ONCE = [(vision, text) for (vision, text) in zip(VISION, TEXT, strict=True)]
PAIRS = list(itertools.product(VISION, TEXT)) if os.environ.get("LIMNER_EVERY_PAIR") else ONCE
CAPTIONS = ("a red circle left of a small square", "a large green cross above a blue circle")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock checkpoints of every family with random weights, and eight captioned pictures."""
    folder = tmp_path_factory.mktemp("parts")
    for name, make in VISION.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = hf.AutoModel.from_config(make())
        encoder.save_pretrained(folder / name)
        side = getattr(encoder.config, "image_size", 64 if name in CONVOLUTIONAL else 32)
        pixels = {"image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(pixels))
    for name, make in TEXT.items():
        config = make()
        config.vocab_size = len(WORDS)
        for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout"):
            if hasattr(config, dropout):
                setattr(config, dropout, 0.0)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            decoder = hf.AutoModelForCausalLM.from_config(config)
            for parameter in decoder.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.17)  # it stays as it is, and its adapters need something to turn
        decoder.save_pretrained(folder / name)
        toy_tokenizer().save_pretrained(folder / name)
    (folder / "data").mkdir()
    for number in range(8):
        toy_picture(number).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(CAPTIONS[number % 2])
    return folder


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in Run(run).events() if event["type"] == "metrics"]


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_a_pair(vision: str, text: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["train", "--dataset", str(parts / "data"), "--batch-size", "8", "--gradient-accumulation-steps", "1"]
    shared += ["--warmup-steps", "0", "--device", "cpu", "--precision", "fp32", "--threads", "1"]
    shared += ["--num-train-epochs", "99", "--eval-steps", "0", "--eval-images", "1", "--max-length", "12"]
    shared += ["--lora-dropout", "0"]
    fast, slow = (["--lora-lr", rate, "--projection-lr", rate] for rate in ("2e-2", "1e-3"))
    pair = ["--encoder-model", str(parts / vision), "--decoder-model", str(parts / text)]
    assert main([*shared, *fast, *pair, "--max-steps", "12", "--name", "first"]) == 0
    learned = losses(tmp_path / "runs" / "first")
    assert learned[-1] < 0.9 * learned[0]

    folder = tmp_path / "runs" / "first" / "model"
    picture = parts / "data" / "0.png"
    said = limner.load_captioner(folder, device="cpu").describe([picture], num_beams=1)[0].tokens
    if vision not in CONVOLUTIONAL and text not in LLAVA_REFUSES:  # the others are stock parts (test_stock_parts)
        stock = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor = hf.AutoProcessor.from_pretrained(folder, backend="pil")
        chat = [{"role": "user", "content": [{"type": "image"}]}]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=Image.open(picture), text=prompt, return_tensors="pt")
        with torch.no_grad():
            theirs = stock.generate(**inputs, num_beams=1)[0, inputs["input_ids"].shape[1] :].tolist()
        assert said == theirs

    assert main([*shared, *slow, "--base-model", str(folder), "--max-steps", "3", "--name", "second"]) == 0
    went_on = losses(tmp_path / "runs" / "second")
    assert went_on[0] < 0.95 * learned[0] and went_on[-1] < went_on[0]
