"""The loss of a caption is what the saved model makes of it in stock transformers, whatever stands in its row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from toy_captioners import _GROUPED, NOUNS, TEXT, toy_captioner, toy_picture

from limner.config.train import TrainConfig
from limner.data.records import Record, Splits
from limner.training.caption_task import CaptionLoss, CaptionTask
from limner.training.self_critical import SelfCriticalTask

WINDOW = {"sliding_window": 3}  # shorter than any row
WINDOWED: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: hf.Gemma2Config(**_GROUPED, **WINDOW, head_dim=8, final_logit_softcapping=5.0),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **_GROUPED, **WINDOW, head_dim=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, **WINDOW),
    "ministral": lambda: hf.MinistralConfig(**_GROUPED, **WINDOW, head_dim=8),
    "qwen2": lambda: hf.Qwen2Config(**_GROUPED, **WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, **WINDOW, head_dim=8, use_sliding_window=True, max_window_layers=1),
    "phi3": lambda: hf.Phi3Config(**_GROUPED, **WINDOW, pad_token_id=0),
    "starcoder2": lambda: hf.Starcoder2Config(**_GROUPED, **WINDOW),
    "gpt_oss": lambda: hf.GptOssConfig(
        **_GROUPED, **WINDOW, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    ),
    "cohere2": lambda: hf.Cohere2Config(**_GROUPED, **WINDOW, pad_token_id=0),
    "exaone4": lambda: hf.Exaone4Config(**_GROUPED, **WINDOW, pad_token_id=0),
    "olmo3": lambda: hf.Olmo3Config(**_GROUPED, **WINDOW, pad_token_id=0),
}
_HEADS = {"n_layer": 2, "n_head": 4}
COUNTS_PLACES: dict[str, Callable[[], Any]] = {
    "gpt_neo": lambda: hf.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, window_size=3, attention_types=[[["global", "local"], 1]]
    ),
    "lfm2": lambda: hf.Lfm2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    ),
    "bloom": lambda: hf.BloomConfig(hidden_size=32, **_HEADS),
    "mpt": lambda: hf.MptConfig(d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
}


def record(number: int, num_captions: int = 4) -> Record:
    """A picture with captions of many lengths."""
    words = NOUNS.split()
    captions = [" ".join(words[(number + i) % 5 : (number + i) % 5 + 3 + i]) for i in range(num_captions)]
    return Record(toy_picture(number), captions, str(number))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CaptionTask]:
    """A task with a decoder of this configuration, loaded; what it said stands in its ``told``."""

    def loaded(
        make: Callable[[], Any], kind: type[CaptionTask] = CaptionTask, num_captions: int = 4, **settings: Any
    ) -> CaptionTask:
        monkeypatch.setitem(TEXT, "this", make)
        config = TrainConfig(
            dataset=("made here",),
            base_model="made here",
            cache_dir=tmp_path / "cache",
            device="cpu",
            max_length=12,
            **settings,
        )
        told: list[str] = []
        splits = Splits(train=[record(i, num_captions) for i in range(4)], validation=[record(9)], test=[])

        def build(*_: Any) -> Any:
            lora = make is not COUNTS_PLACES["mpt"]  # which peft cannot wrap
            return toy_captioner("siglip", "this", lora=lora, freeze_vision=True)

        task = kind(config, lambda progress: splits, build, say=told.append)
        task.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
        task.told = told  # type: ignore[attr-defined]
        return task

    return loaded


@torch.no_grad()
def losses(task: CaptionTask) -> tuple[float, float]:
    """Of a batch: as it is trained, and caption by caption under the decoder's own mask."""
    task.model.eval()
    ours = task.loss(task.model, task.batch(range(4), seed=0).tensors)
    theirs = torch.zeros(())
    for index, captions in enumerate(task.tokens["train"]):
        features = task.inputs["train"].read([index], seed=0)
        for caption in captions:
            logits = task.vlm(torch.tensor([caption[:-1]]), features=features.float())[0]
            theirs += torch.nn.functional.cross_entropy(logits, torch.tensor(caption), reduction="sum")
    return float(ours), float(theirs)


@pytest.mark.parametrize("pack", [None, False])
@pytest.mark.parametrize("family", WINDOWED)
def test_windows_hold_in_training(family: str, pack: bool | None, load: Callable[..., CaptionTask]) -> None:
    task = load(WINDOWED[family], pack=pack)
    ours, theirs = losses(task)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(task.batch(range(4), seed=0).tensors["row_images"]) == (4 if pack is None else 16)


@pytest.mark.parametrize("family", COUNTS_PLACES)
def test_what_counts_places_in_a_row_gets_a_row_for_each_caption(
    family: str, load: Callable[..., CaptionTask]
) -> None:
    task = load(COUNTS_PLACES[family])
    ours, theirs = losses(task)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert any("Every caption takes a row of its own" in said for said in task.told)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="Captions cannot --pack"):
        load(COUNTS_PLACES[family], pack=True)


@pytest.mark.parametrize(
    ("kind", "settings", "most"),
    [
        (CaptionTask, {}, 4),
        (SelfCriticalTask, {"objective": "cider", "metric_for_best_model": "CIDEr", "samples_per_picture": 6}, 6),
    ],
)
def test_whether_captions_pack_is_asked_for_as_many_as_a_row_may_hold(
    kind: type[CaptionTask],
    settings: dict[str, Any],
    most: int,
    load: Callable[..., CaptionTask],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One caption alone packs with any decoder; validation pictures may have more, and some are drawn."""
    asked: list[int] = []
    monkeypatch.setattr(CaptionLoss, "packs_exactly", lambda self, captions, length: asked.append(captions))
    load(COUNTS_PLACES["lfm2"], kind, num_captions=1, **settings)
    assert asked == [most]


def test_what_packs_is_not_told_about(load: Callable[..., CaptionTask]) -> None:
    task = load(TEXT["gpt_neox"])
    assert task.captioner.stack is None and task.captioner.packs
    assert not any("row of its own" in said for said in task.told)  # type: ignore[attr-defined]


def test_recomputed_activations_are_told_with_the_reason(load: Callable[..., CaptionTask]) -> None:
    told = load(TEXT["gpt_neox"], gradient_checkpointing="on").told  # type: ignore[attr-defined]
    assert "Activations are recomputed in the backward pass: as was asked." in told
