"""CLIPScore, RefCLIPScore and the SigLIP score by their published formulas, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy_captioners import toy_picture

from limner.cli.main import main
from limner.evaluation.clipscore import PREFIX, Alignment, clip_scores, ref_clip_scores

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "A", "photo", "depicts", "a", "red", "blue", "dog", "cat", "runs"]
SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CLIP and a SigLIP of one layer, with their processors."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=12,
    )
    text = SIZE | {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 12,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    vision = SIZE | {"image_size": 32, "patch_size": 16}
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    siglip = hf.SiglipModel(hf.SiglipConfig(text_config=text | {"pad_token_id": 0}, vision_config=vision))
    with torch.no_grad():
        for model in (clip, siglip):
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.3)
        siglip.logit_scale.fill_(1.2)
        siglip.logit_bias.fill_(-0.7)
    square = {"height": 32, "width": 32}
    pixels: dict[str, Any] = {
        "clip": hf.CLIPImageProcessorPil(size=square, crop_size=square),
        "siglip": hf.SiglipImageProcessorPil(size=square),
    }
    clip.save_pretrained(folder / "clip")
    hf.CLIPProcessor(pixels["clip"], words).save_pretrained(folder / "clip")
    siglip.save_pretrained(folder / "siglip")
    hf.SiglipProcessor(pixels["siglip"], words).save_pretrained(folder / "siglip")
    return {"clip": folder / "clip", "siglip": folder / "siglip"}


PICTURES = [toy_picture(seed) for seed in range(3)]
CAPTIONS = ["a red dog runs", "a blue cat", "dog"]
REFERENCES = [["a dog", "red dog runs"], ["a blue cat"], ["cat runs", "a red cat", "dog"]]


def test_clip_scores_follow_the_formulas(towers: dict[str, Path]) -> None:
    found = clip_scores(Alignment(str(towers["clip"])), PICTURES, CAPTIONS, REFERENCES)
    model = hf.CLIPModel.from_pretrained(towers["clip"]).eval()
    processor = hf.AutoProcessor.from_pretrained(towers["clip"], backend="pil")

    def unit(texts: list[str]) -> torch.Tensor:
        ids = processor(text=[PREFIX + text for text in texts], return_tensors="pt", padding=True)
        return torch.nn.functional.normalize(model.get_text_features(**ids).pooler_output, dim=-1)

    with torch.no_grad():
        pixels = processor(images=PICTURES, return_tensors="pt").pixel_values
        images = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        for row, caption in enumerate(CAPTIONS):
            said = unit([caption])[0]
            score = 2.5 * max(0.0, float(images[row] @ said))
            best = max(0.0, *(float(unit([text])[0] @ said) for text in REFERENCES[row]))
            harmonic = 2 * score * best / (score + best) if score + best else 0.0
            assert found["CLIPScore"][row] == pytest.approx(score, abs=1e-5)
            assert found["RefCLIPScore"][row] == pytest.approx(harmonic, abs=1e-5)
    assert len(set(found["CLIPScore"].round(4))) > 1
    assert found["RefCLIPScore"][2] > 0  # its caption is one of its references


def test_siglip_score_is_the_model_s_own_probability(towers: dict[str, Path]) -> None:
    found = clip_scores(Alignment(str(towers["siglip"])), PICTURES, CAPTIONS, REFERENCES)
    model = hf.SiglipModel.from_pretrained(towers["siglip"]).eval()
    processor = hf.AutoProcessor.from_pretrained(towers["siglip"], backend="pil")
    inputs = processor(images=PICTURES, text=CAPTIONS, return_tensors="pt", padding="max_length")
    with torch.no_grad():
        expected = torch.sigmoid(model(**inputs).logits_per_image).diagonal().numpy()
    assert found.keys() == {"SigLIPScore"}
    np.testing.assert_allclose(found["SigLIPScore"], expected, atol=1e-5)


def test_the_harmonic_mean_of_nothing_is_nothing() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])
    references = [np.array([[0.6, 0.8]]), np.array([[1.0, 0.0], [0.0, -1.0]])]
    found = ref_clip_scores(np.array([0.9, 0.0]), vectors, references)
    assert found.tolist() == pytest.approx([2 * 0.9 * 0.6 / 1.5, 0.0])


def test_another_model_is_refused(tmp_path: Path) -> None:
    hf.GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type gpt2; CLIP or SigLIP is needed"):
        Alignment(str(tmp_path))


def test_the_report_tells_alignment(
    towers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, picture in enumerate(PICTURES):
        picture.save(data / f"{i}.png")
    (data / "captions.json").write_text(json.dumps({f"{i}.png": [text] for i, text in enumerate(CAPTIONS)}))
    command = ["data", "report", str(data), "--clip", str(towers["clip"]), "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, "--cache-dir", str(tmp_path / "cache"), "--device", "cpu"]) == 0
    summary = json.loads(capsys.readouterr().out)
    expected = clip_scores(Alignment(str(towers["clip"])), PICTURES, CAPTIONS)["CLIPScore"]
    assert summary["alignment"]["mean"] == pytest.approx(expected.mean(), abs=1e-5)
    assert summary["alignment"]["lowest"] == pytest.approx(expected.min(), abs=1e-5)
    assert "Least aligned" in (tmp_path / "out" / "report.html").read_text()
