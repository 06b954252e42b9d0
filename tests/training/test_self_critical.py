"""Self-critical training: its gradient against finite differences, its rewards against CIDEr-D, its learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limner.config.train import TrainConfig
from limner.data.records import Record, Splits
from limner.evaluation import cider_d
from limner.models.captioner import build_captioner
from limner.training.caption_model import build_model
from limner.training.caption_plan import plan
from limner.training.caption_task import CaptionTask
from limner.training.scratch import scratch_decoder, scratch_encoder, scratch_tokenizer
from limner.training.self_critical import SelfCriticalTask, advantages
from limner.training.trainer import train

CAPTIONS = {
    "red": ["a red box", "the red box here", "a red box is here"],
    "blue": ["a blue ball", "the blue ball there", "a blue ball is there"],
}
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def records(count: int, first: int = 0) -> list[Record]:
    made = []
    for index in range(first, first + count):
        name = ("red", "blue")[index % 2]
        noise = np.random.default_rng(index).integers(-25, 25, (32, 32, 3))
        picture = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        made.append(Record(picture, CAPTIONS[name], f"{name}-{index}"))
    return made


def build(config: TrainConfig, captions: list[str], say: Any) -> Any:
    return build_captioner(
        scratch_encoder(32, width=32, depth=1, num_heads=2),
        scratch_decoder(32, depth=1, num_heads=2),
        tokenizer=scratch_tokenizer(sorted(set(captions)) * 2),
        seed=config.seed,
        say=lambda text: None,
    )


def task(tmp_path: Path, **settings: Any) -> SelfCriticalTask:
    config = TrainConfig(
        **{
            "dataset": ("made here",),
            "base_model": "made here",
            "objective": "cider",
            "metric_for_best_model": "CIDEr",
            "runs_dir": tmp_path / "runs",
            "cache_dir": tmp_path / "cache",
            "precision": "fp32",
            "device": "cpu",
            "threads": 1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "lora": False,
            "max_length": 8,
            **settings,
        }
    )
    splits = Splits(train=records(16), validation=records(8, 100), test=[])
    return SelfCriticalTask(config, lambda progress: splits, build, say=lambda text: None)


@pytest.fixture
def prepared(tmp_path: Path) -> SelfCriticalTask:
    made = task(tmp_path)
    made.run_path = tmp_path
    made.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    return made


def test_advantages_compare_a_caption_with_the_others_of_its_picture() -> None:
    found = advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    assert found.tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


def test_rewards_are_cider_d(prepared: SelfCriticalTask) -> None:
    words = prepared.vlm.tokenizer
    said = ["a red box", "a blue ball is there"]
    ids = [[[*words.encode(text, add_special_tokens=False), words.eos_token_id]] * 2 for text in said]
    rewards = prepared._rewards([0, 1], ids)
    own = {record.image_id: record.captions for record in prepared.records["train"]}
    names = list(own)
    for index in (0, 1):
        others = {name: own[name][0] for name in names} | {names[index]: said[index]}
        assert rewards[index] == pytest.approx([cider_d(others, own)[1][names[index]]] * 2)


def test_the_gradient_raises_the_expected_score(prepared: SelfCriticalTask) -> None:
    """The estimate's mean over many draws against finite differences of the exact expectation.

    Captions of one word out of V have an expected score that can be summed: sum of p(word) * score(word).
    """
    made = prepared
    vlm, model = made.vlm, made.model
    torch.manual_seed(0)
    model.eval()  # batch normalization without noise, in both
    features = made.captioner.features(made.inputs["train"].read([0], 0)).detach()
    scores = torch.zeros(len(vlm.tokenizer))
    made.config = made.config.model_copy(update={"max_length": 1, "samples_per_picture": 400})
    made._rewards = lambda examples, captions: [  # type: ignore[method-assign]
        [float(scores[text[0]]) for text in of_picture] for of_picture in captions
    ]
    never = list(vlm.generation_config.suppress_tokens or ())
    vlm.embed_tokens.weight.data *= 6  # so that it prefers some words
    gain = vlm.language_model.model.norm.weight  # (D,): the last thing before the words

    with torch.no_grad():
        likely = vlm.head(vlm.hidden_states(vlm.prompt_embeds(features))[:, -1])[0, : len(scores)].topk(8).indices
    scores[likely[::2]] = 10.0
    temperature = made.config.sample_temperature

    def expected() -> torch.Tensor:
        logits = vlm.head(vlm.hidden_states(vlm.prompt_embeds(features))[:, -1])[0] / temperature
        logits = logits.masked_fill(torch.isin(torch.arange(len(logits)), torch.tensor(never)), -torch.inf)
        return (logits.softmax(0)[: len(scores)] * scores).sum()

    (exact,) = torch.autograd.grad(expected(), gain)
    with torch.no_grad():  # autograd itself, held against differences
        for index in (5, 9):
            step = torch.zeros_like(gain)
            step[index] = 1e-2
            gain += step
            above = expected()
            gain -= 2 * step
            assert (above - expected()) / 2e-2 == pytest.approx(float(exact[index]), rel=0.02, abs=1e-3)
            gain += step
    estimates = []
    for seed in range(60):
        torch.manual_seed(seed)
        loss = made.loss(model, {"picture": features, "examples": torch.tensor([0])})
        (gradient,) = torch.autograd.grad(-loss / 400, gain)
        estimates.append(gradient)
    told = torch.stack(estimates)
    error = told.std(0) / len(estimates) ** 0.5
    assert exact.abs().max() > 20 * error.max()  # sharp enough to tell
    assert ((told.mean(0) - exact).abs() < 5 * error + 2e-3).all()


def test_a_captioner_learns_what_scores(tmp_path: Path) -> None:
    """After people's captions: what it draws scores better and better, and a twin run draws the same."""
    lengths = {"num_train_epochs": 99, "eval_steps": 0, "scratch_lr": 3e-3}
    likely = task(tmp_path, name="likely", objective="likelihood", base_model=None, max_steps=90, **lengths)
    words = CaptionTask(likely.config, likely.load_records, build, say=lambda text: None)
    model = train(words, likely.config, "train", "made", quiet=True).run.model_path

    def rewards(name: str) -> list[float]:
        made = task(tmp_path, name=name, base_model=str(model), max_steps=40, lora_lr=3e-3, **lengths)
        made.build = build_model
        events = train(made, made.config, "train", "made", quiet=True).run.events()
        return [event["reward"] for event in events if event["type"] == "metrics"]

    found = rewards("one")
    assert np.mean(found[-5:]) > 1.3 * np.mean(found[:5])
    assert rewards("twin") == found


def test_the_reward_told_is_that_of_the_whole_step_and_of_training_alone(tmp_path: Path) -> None:
    seldom = {"max_steps": 4, "log_every": 2, "eval_steps": 1, "batch_size": 2, "gradient_accumulation_steps": 2}
    made = task(tmp_path, num_train_epochs=99, **seldom)
    drawn: list[list[list[float]]] = []
    scores = made._rewards

    def remembered(*given: Any) -> list[list[float]]:
        drawn.append(scores(*given))
        return drawn[-1]

    made._rewards = remembered  # type: ignore[method-assign]
    events = train(made, made.config, "train", "made", quiet=True).run.events()
    told = {event["step"]: event["reward"] for event in events if event["type"] == "metrics"}
    assert told == {step: pytest.approx(np.mean(drawn[2 * step - 2 : 2 * step])) for step in (2, 4)}
    assert not any("reward" in event for event in events if event["type"] == "validation")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base_model": None}, "name it here as --base-model"),
        ({"metric_for_best_model": "eval_loss"}, "--metric-for-best-model CIDEr"),
    ],
)
def test_what_it_needs_is_said(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task(tmp_path, **settings)


def test_an_open_encoder_learns_too(tmp_path: Path) -> None:
    made = task(tmp_path, freeze_vision=False)
    made.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    made._rewards = lambda *_: [[1.0, 0, 0, 0, 0]] * 2  # type: ignore[method-assign]
    made.loss(made.model, made.batch([0, 1], seed=0).tensors).backward()
    gradients = {name: p.grad for name, p in made.vlm.encoder.named_parameters() if p.requires_grad}
    assert gradients and all(gradient is not None for gradient in gradients.values())
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize(("pack", "rows"), [(None, 2), (False, 10)])
def test_drawn_captions_share_a_row_unless_told_not_to(tmp_path: Path, pack: bool | None, rows: int) -> None:
    made = task(tmp_path, pack=pack)
    made.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    seen: list[int] = []
    made.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(len(given["row_images"])), with_kwargs=True
    )
    made.loss(made.model, made.batch([0, 1], seed=0).tensors)
    assert seen == [rows]


def test_a_plan_draws_captions_too(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert plan(made, made.config)["captions"] == 48
