"""What is saved loads in plain transformers and says the same words; what is read is what was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_captioners import (
    CONVOLUTIONAL,
    LLAVA_CARRIES,
    LLAVA_REFUSES,
    TRANSFORMERS,
    VISION,
    toy_captioner,
    toy_picture,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from limner.data.images import PixelSettings
from limner.models import stock
from limner.models.captioner import PrefixConditioningVLM, build_captioner
from limner.models.gpt import GPTConfig, GPTModel
from limner.models.lora import Lora
from limner.tokenizer import train_bpe

CAPTION = torch.tensor([[3, 4, 7, 10, 11, 3, 5, 8]])
PROMPT = [{"role": "user", "content": [{"type": "image"}]}]


def _greedy(vlm: PrefixConditioningVLM, pixels: torch.Tensor, steps: int = 12) -> list[int]:
    """The plainest greedy decoding: the whole text anew for each token."""
    said: list[int] = []
    banned = vlm.language_model.generation_config.suppress_tokens
    while len(said) < steps:
        logits = vlm(torch.tensor([said], dtype=torch.long), pixel_values=pixels)[0, -1]
        logits[banned] = -torch.inf
        said.append(int(logits.argmax()))
        if said[-1] == vlm.tokenizer.eos_token_id:
            break
    return said


@torch.no_grad()
def _assert_stock_agrees(vlm: PrefixConditioningVLM, folder: Path) -> None:
    stock.save_captioner(vlm, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    picture = toy_picture()
    text = processor.apply_chat_template(PROMPT, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    pixels = PixelSettings.from_processor_config(vlm.image_processor_config).pixels(picture)[None]
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=1e-6)
    assert inputs["input_ids"].shape[1] == vlm.num_prompt_tokens

    ours = vlm(CAPTION, pixel_values=pixels)
    ids = torch.cat([inputs["input_ids"], CAPTION], dim=1)
    theirs = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[:, -CAPTION.shape[1] - 1 :]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert ours.std() > 0.1  # far from degenerate

    said = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=12)
    assert said[0, inputs["input_ids"].shape[1] :].tolist() == _greedy(vlm, pixels)

    again = stock.read_captioner(folder)
    torch.testing.assert_close(again(CAPTION, pixel_values=pixels), theirs, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("text", LLAVA_CARRIES)
def test_stock_llava_says_the_same(text: str, kind: str, tmp_path: Path) -> None:
    vlm = toy_captioner(text=text, kind=kind, lora=True)
    assert stock.expressible(vlm)[0]
    _assert_stock_agrees(vlm, tmp_path / "model")


@pytest.mark.parametrize("layer", [-2, -1])
@pytest.mark.parametrize("vision", TRANSFORMERS)
def test_every_tower_agrees(vision: str, layer: int, tmp_path: Path) -> None:
    vlm = toy_captioner(vision=vision, feature_layer=layer)
    _assert_stock_agrees(vlm, tmp_path / "model")


def test_a_levit_agrees(tmp_path: Path) -> None:
    vlm = toy_captioner(vision="levit")
    assert vlm.num_prefix_tokens == 4
    _assert_stock_agrees(vlm, tmp_path / "model")


def test_weights_have_the_names_every_runtime_reads(tmp_path: Path) -> None:
    stock.save_captioner(toy_captioner("siglip", "gpt2"), tmp_path / "m")
    names = set(load_file(tmp_path / "m" / "model.safetensors"))
    assert {
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.2.mlp.fc2.bias",
        "multi_modal_projector.linear_2.weight",
        "language_model.model.wte.weight",
        "language_model.lm_head.weight",
    } <= names
    assert not any(name.startswith(("model.", "lm_head")) for name in names)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["vision_feature_layer"] == -2 and config["vision_feature_select_strategy"] == "full"
    assert config["text_config"]["architectures"] == ["GPT2LMHeadModel"]
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    words = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast" and "<image>" in words["chat_template"]
    pixels = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    assert pixels["processor_class"] == "LlavaProcessor" and pixels["crop_size"] == {"height": 32, "width": 32}
    generation = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert generation["num_beams"] == 3 and generation["max_new_tokens"] == 30
    assert generation["suppress_tokens"][0] == config["image_token_index"]


def test_rotary_base_stands_where_transformers_4_looks(tmp_path: Path) -> None:
    stock.save_captioner(toy_captioner(text="qwen2"), tmp_path / "m")
    text = json.loads((tmp_path / "m" / "config.json").read_text())["text_config"]
    assert text["rope_theta"] == 500.0 == text["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize(
    ("vision", "text"), [*((v, "llama") for v in CONVOLUTIONAL), *(("siglip", t) for t in LLAVA_REFUSES)]
)
@torch.no_grad()
def test_stock_parts(vision: str, text: str, tmp_path: Path) -> None:
    vlm = toy_captioner(vision, text, "mlp", lora=True)
    can, why = stock.expressible(vlm)
    assert not can and why.count(". ") == 0 and "stock parts" in why
    stock.save_captioner(vlm, tmp_path / "m")
    pixels = torch.randn(2, 3, *vlm.image_size)
    captions = CAPTION.expand(2, -1)
    expected = vlm(captions, pixel_values=pixels)
    again = stock.read_captioner(tmp_path / "m")
    torch.testing.assert_close(again(captions, pixel_values=pixels), expected, rtol=0, atol=1e-5)
    # each part is a stock checkpoint by itself
    encoder = AutoModel.from_pretrained(tmp_path / "m" / "encoder")
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "decoder")
    states = again.encoder.eval()(pixels).last_hidden_state
    torch.testing.assert_close(encoder.eval()(pixels).last_hidden_state, states)
    logits = decoder.eval()(inputs_embeds=vlm.embed_tokens(CAPTION)).logits
    torch.testing.assert_close(
        logits, vlm.language_model(inputs_embeds=vlm.embed_tokens(CAPTION)).logits, rtol=0, atol=1e-5
    )


def test_saving_leaves_the_model_in_training_alone(tmp_path: Path) -> None:
    vlm = toy_captioner(text="gpt2", lora=True)
    before = {name: tensor.clone() for name, tensor in vlm.state_dict().items()}
    flags = [parameter.requires_grad for parameter in vlm.parameters()]
    vlm.train()
    stock.save_captioner(vlm, tmp_path / "m")
    assert vlm.training and flags == [parameter.requires_grad for parameter in vlm.parameters()]
    for name, tensor in vlm.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"],
)
def test_a_folder_that_lacks_a_file(name: str, tmp_path: Path) -> None:
    stock.save_captioner(toy_captioner(), tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        stock.read_captioner(tmp_path / "m")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stock.save_captioner(toy_captioner(), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    del weights["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        stock.read_captioner(tmp_path / "m")


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    stock.save_captioner(toy_captioner(), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((ValueError, OSError), match="cannot be read"):
        stock.read_captioner(tmp_path / "m")


def test_failed_saving_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock.save_captioner(toy_captioner(), tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stock, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        stock.save_captioner(toy_captioner(kind="mlp"), tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_unknown_hub_id_offline_is_one_sentence() -> None:
    with pytest.raises(OSError, match="nobody/nothing is not on this machine"):
        stock.read_captioner("nobody/nothing")


@pytest.mark.parametrize("tie", [False, True])
def test_a_gpt_pretrained_here_becomes_a_decoder(tie: bool, tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=300, context_length=64, width=32, num_heads=2, num_layers=2, tie_embeddings=tie)
    words = train_bpe(["a red circle left of a blue square " * 20], vocab_size=300)
    GPTModel(config).save_pretrained(tmp_path / "gpt")
    words.save(tmp_path / "gpt")
    vlm = build_captioner(VISION["siglip"](), tmp_path / "gpt", "mlp", lora=Lora(r=2), say=str)
    assert vlm.language_model.config.model_type == "gpt2"
    folder = tmp_path / "captioner"
    stock.save_captioner(vlm, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = AutoProcessor.from_pretrained(folder, backend="pil").tokenizer
    text = "a red circle left of a blue square"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    pixels = torch.randn(1, 3, 32, 32)
    caption = torch.tensor([tokenizer(text)["input_ids"]])
    image = torch.full((1, vlm.num_prefix_tokens), tokenizer.convert_tokens_to_ids("<image>"))
    bos = torch.full((1, vlm.num_prompt_tokens - vlm.num_prefix_tokens), vlm.bos_id or 0)
    theirs = model(input_ids=torch.cat([image, bos, caption], 1), pixel_values=pixels).logits
    ours = vlm.eval()(caption, pixel_values=pixels)
    torch.testing.assert_close(ours, theirs[:, -ours.shape[1] :], rtol=0, atol=1e-5)


def test_others_may_read_what_they_may_read_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    stock.save_captioner(toy_captioner(), tmp_path / "m")
    usual = (tmp_path / "plain").stat().st_mode & 0o777
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {usual}
    assert (tmp_path / "m").stat().st_mode & 0o444 == usual & 0o444


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "no-such-thing"}'),
        ("config.json", '{"model_type": "gpt2"}'),
        ("preprocessor_config.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("model.safetensors", ""),
        ("limner.json", "{"),
    ],
)
def test_damaged_files_are_one_sentence(name: str, content: str, tmp_path: Path) -> None:
    vision = "mobilenet_v2" if name == "limner.json" else "siglip"
    stock.save_captioner(toy_captioner(vision), tmp_path / "m")
    (tmp_path / "m" / name).write_text(content)
    with pytest.raises((ValueError, OSError)) as caught:
        stock.read_captioner(tmp_path / "m")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and str(tmp_path) in message


@pytest.mark.parametrize("parts", [False, True])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, parts: bool) -> None:
    vlm = toy_captioner(vision=CONVOLUTIONAL[0] if parts else "siglip")
    with torch.no_grad():
        vlm.projection.linear_1.weight[0, 0] = float("nan")
    stock.save_captioner(vlm, tmp_path / "diverged")
    with pytest.raises(ValueError, match=r"not finite \(in .*linear_1.weight\).*take an earlier checkpoint"):
        stock.read_captioner(tmp_path / "diverged")
