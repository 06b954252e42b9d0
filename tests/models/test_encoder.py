"""Encoders: the part that is run equals the whole, maps become rows, checkpoints give their vision half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from toy_captioners import CONVOLUTIONAL, TRANSFORMERS, VISION, toy_captioner

from limner.models import encoder as encoders
from limner.models.encoder import load_encoder
from limner.models.packed import can_pack

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
}
_NO_IDS = {"bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize("layer", [-1, -2, -3, 1])
@pytest.mark.parametrize("vision", TRANSFORMERS)
@torch.no_grad()
def test_the_short_tower_equals_the_whole(vision: str, layer: int) -> None:
    tower, settings = load_encoder(VISION[vision]())
    tower.eval()
    pixels = torch.randn(2, 3, *encoders.image_size(tower.config, settings))
    whole = encoders.encode(tower, pixels, layer)
    view = encoders.tower_up_to(tower, layer)
    assert view is not None
    torch.testing.assert_close(view(pixels).last_hidden_state, whole, rtol=0, atol=0)
    assert sum(p.numel() for p in view.parameters()) < sum(p.numel() for p in tower.parameters())
    assert encoders.feature_shape(tower, layer, (32, 32)) == tuple(whole.shape[1:])


@torch.no_grad()
def test_the_short_tower_shares_its_weights() -> None:
    tower, _ = load_encoder(VISION["siglip"]())
    view = encoders.tower_up_to(tower, -2)
    assert view is not None
    pixels = torch.randn(1, 3, 32, 32)
    before = view(pixels).last_hidden_state
    next(tower.parameters()).mul_(2)
    after = view(pixels).last_hidden_state
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, encoders.encode(tower, pixels, -2), rtol=0, atol=0)
    assert len(tower.encoder.layers) == 3  # and it left the tower whole
    assert tower(pixels).pooler_output is not None


@pytest.mark.parametrize(("vision", "tokens"), [("clip", 5), ("siglip", 4), ("dinov2_registers", 8), ("dinov3", 7)])
def test_class_and_register_tokens_are_kept(vision: str, tokens: int) -> None:
    tower, _ = load_encoder(VISION[vision]())
    assert encoders.feature_shape(tower, -2, (32, 32)) == (tokens, 32)


@pytest.mark.parametrize("vision", CONVOLUTIONAL)
@torch.no_grad()
def test_a_map_becomes_a_row_line_by_line(vision: str) -> None:
    trunk, _ = load_encoder(VISION[vision]())
    trunk.eval()
    assert encoders.is_convolutional(trunk, (64, 96))
    states = trunk(torch.randn(2, 3, 64, 96)).last_hidden_state  # (2, C, h, w)
    row = encoders.as_row(states)
    height, width = states.shape[2:]
    assert width > height
    assert row.shape == (2, height * width, states.shape[1])
    assert torch.equal(row[1, width + 2], states[1, :, 1, 2])
    assert encoders.feature_shape(trunk, -1, (64, 96)) == tuple(row.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vision", TRANSFORMERS)
@torch.no_grad()
def test_packed_towers_equal_plain_ones(vision: str, dtype: torch.dtype) -> None:
    vlm = toy_captioner(vision, freeze_vision=True)
    vlm.keep_frozen_in(dtype)
    pixels = torch.randn(2, 3, 32, 32)
    plain = vlm.features(pixels)
    if not can_pack(vlm.encoder):
        pytest.skip(f"no oneDNN for {dtype} on this machine")
    assert vlm.pack_encoder()
    fast = vlm.features(pixels)
    # In bf16 the fused activation sees the product before it is rounded, so that the packed one is the truer.
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(fast, plain, rtol=0, atol=tolerance)
    assert len(list(vlm.encoder.parameters())) == len(list(toy_captioner(vision).encoder.parameters()))


def test_packing_is_undone_by_what_would_make_it_stale() -> None:
    vlm = toy_captioner(freeze_vision=True)
    pixels = torch.randn(1, 3, 32, 32)
    for change in (vlm.double, lambda: vlm.keep_frozen_in(torch.bfloat16), vlm.open_encoder, vlm.freeze_encoder):
        vlm.float()
        vlm.freeze_encoder()
        if not vlm.pack_encoder():
            pytest.skip("no oneDNN on this machine")
        change()
        plain = encoders.encode(vlm.tower, pixels.to(vlm.encoder.dtype), None)
        assert torch.equal(vlm.features(pixels), plain)
    vlm.open_encoder()
    assert not vlm.pack_encoder()  # what trains is never packed


def test_no_such_layer() -> None:
    tower, _ = load_encoder(VISION["vit"]())
    with pytest.raises(ValueError, match="has 3 layers: there is no feature layer -5"):
        encoders.tower_up_to(tower, -5)


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_the_vision_half_of_a_two_tower_checkpoint(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_class, model_class, processor_class = {
        "siglip": (hf.SiglipConfig, hf.SiglipModel, hf.SiglipImageProcessorPil),
        "clip": (hf.CLIPConfig, hf.CLIPModel, hf.CLIPImageProcessorPil),
    }[family]
    vision = VISION[family]().to_dict()
    whole = model_class(config_class(vision_config=vision, text_config=_TEXT | _NO_IDS))
    whole.save_pretrained(tmp_path)
    processor_class(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    capsys.readouterr()
    tower, settings = load_encoder(tmp_path)
    assert tower.config.model_type == f"{family}_vision_model"
    theirs = whole.vision_model.state_dict()
    assert set(theirs) == set(tower.state_dict())
    assert all(torch.equal(theirs[name], weight) for name, weight in tower.state_dict().items())
    assert settings["image_processor_type"] in ("SiglipImageProcessor", "CLIPImageProcessor")
    assert list(settings["image_mean"]) == [0.1, 0.2, 0.3]
    assert capsys.readouterr() == ("", "")


@torch.no_grad()
def test_a_classifier_gives_its_trunk(tmp_path: Path) -> None:
    """It has no pooler, which `ViTModel` would; nothing else may be missing."""
    whole = hf.ViTForImageClassification(VISION["vit"]()).eval()
    whole.save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    tower, _ = load_encoder(tmp_path)
    pixels = torch.randn(1, 3, 32, 32)
    theirs = whole.vit(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoders.encode(tower.eval(), pixels, -2), theirs, rtol=0, atol=0)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(ValueError, match="lacks 16 weights"):
        load_encoder(tmp_path)


@torch.no_grad()
def test_naflex_siglip2_becomes_a_fixed_tower(tmp_path: Path) -> None:
    naflex = hf.Siglip2VisionModel(VISION["siglip2"]()).eval()
    naflex.save_pretrained(tmp_path)
    tower, settings = load_encoder(tmp_path)
    assert tower.config.model_type == "siglip_vision_model" and settings["size"] == {"height": 32, "width": 32}
    pixels = torch.randn(2, 3, 32, 32)
    patches = pixels.reshape(2, 3, 2, 16, 2, 16).permute(0, 2, 4, 3, 5, 1).reshape(2, 4, -1)
    theirs = naflex(
        patches,
        pixel_attention_mask=torch.ones(2, 4, dtype=torch.long),
        spatial_shapes=torch.tensor([[2, 2], [2, 2]]),
    ).last_hidden_state
    torch.testing.assert_close(tower.eval()(pixels).last_hidden_state, theirs, rtol=0, atol=1e-5)


def test_the_real_mobilenet_trunk(real_data: Path) -> None:
    trunk, settings = load_encoder(real_data / "models" / "mobilenet-v2-0.35-224")
    size = encoders.image_size(trunk.config, settings)
    assert size == (224, 224)
    assert encoders.feature_shape(trunk, -1, size) == (49, 1280)
    assert settings["image_processor_type"] == "MobileNetV2ImageProcessor"


def test_another_image_processor_needs_no_model_beside_it(real_data: Path, tmp_path: Path) -> None:
    trunk = real_data / "models" / "mobilenet-v2-0.35-224"
    own = json.loads((trunk / "preprocessor_config.json").read_text())
    with pytest.raises(FileNotFoundError, match="it is not an image processor in stock format"):
        load_encoder(trunk, processor=tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own | {"size": {"height": 192, "width": 160}}))
    encoder, settings = load_encoder(trunk, processor=tmp_path)
    assert encoders.image_size(encoder.config, settings) == (192, 160)
    assert list(settings["image_mean"]) == own["image_mean"]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    model = hf.SiglipVisionModel(VISION["siglip"]())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_encoder(tmp_path)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises((ValueError, OSError)):
        load_encoder(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("vision", TRANSFORMERS)
@torch.no_grad()
def test_a_tower_that_is_held_packed_only_computes_the_same(vision: str) -> None:
    vlm = toy_captioner(vision, freeze_vision=True)
    pixels, counts = torch.randn(2, 3, 32, 32), vlm.parameter_counts()
    if not vlm.pack_encoder():
        pytest.skip("no oneDNN on this machine")
    beside = vlm.features(pixels)
    assert vlm.pack_encoder(release=True)
    assert torch.equal(vlm.features(pixels), beside)
    assert vlm.parameter_counts() == counts
    held = {id(p) for p in vlm.encoder.parameters() if not p.is_meta}
    matrices = {id(m.weight) for m in vlm.encoder.modules() if type(m) is torch.nn.Linear}
    assert held and not held & matrices
    assert held <= {id(p) for p in vlm.tower.parameters()}
    for change in (vlm.double, vlm.open_encoder, vlm.freeze_encoder, lambda: vlm.keep_frozen_in(torch.bfloat16)):
        with pytest.raises(RuntimeError, match="gave up its encoder"):
            change()
