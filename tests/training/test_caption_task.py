"""Captioner training on real photos with real weights: every shortcut gives the losses of the plain way."""

from __future__ import annotations

import errno
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy import without_fingerprints

from limner.cli.main import main
from limner.cli.train import load_records
from limner.config.train import TrainConfig
from limner.data.folder import ImageCaptionDataset
from limner.data.images import load_image
from limner.data.records import Record
from limner.decoding.captioner import load_captioner
from limner.decoding.consensus import RIDGE, middle
from limner.device import compiles
from limner.runs import Run, create_run, send_command
from limner.training.caption_task import CaptionTask
from limner.training.checkpoint_model import restored_captioner, stock_folder
from limner.training.journal import Journal
from limner.training.opening import saved_settings
from limner.training.trainer import Result, train

Runner = Callable[..., Result]


@pytest.fixture(scope="module")
def photos(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen COCO photos with five captions each."""
    folder = tmp_path_factory.mktemp("photos")
    lines = (real_data / "coco_mini" / "captions.jsonl").read_text().splitlines()[:16]
    with tarfile.open(real_data / "coco_mini" / "coco_mini_train2017.tar") as shard:
        for line in lines:
            shard.extract(json.loads(line)["image"], folder, filter="data")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def fit(photos: Path, real_data: Path, tmp_path: Path) -> Runner:
    """Trains MobileNetV2 + stories260k for a few steps in fp32."""

    def run(name: str, **settings: Any) -> Result:
        config = TrainConfig(
            **{
                "dataset": (str(photos),),
                "encoder_model": str(real_data / "models" / "mobilenet-v2-0.35-224"),
                "decoder_model": str(real_data / "models" / "stories260k"),
                "runs_dir": tmp_path / "runs",
                "cache_dir": tmp_path / "cache",
                "name": name,
                "batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_steps": 4,
                "num_train_epochs": 9,
                "eval_steps": 4,
                "eval_images": 2,
                **({"lora_dropout": 0.0} if settings.get("lora", True) else {}),
                "precision": "fp32",
                "device": "cpu",
                **settings,
            }
        )
        data = ImageCaptionDataset(photos)
        task = CaptionTask(config, lambda progress: data.splits(), say=lambda text: None)
        return train(task, config, "train", "photos", quiet=True)

    return run


def curve(result: Result) -> list[float]:
    return [
        e.get("loss", e.get("eval_loss")) for e in result.run.events() if e["type"] in ("metrics", "validation")
    ]


def eval_loss(result: Result) -> float:
    return [event["eval_loss"] for event in result.run.events() if event["type"] == "validation"][-1]


def test_cached_features_train_as_live_ones(fit: Runner) -> None:
    cached = fit("cached", cache_features="on")
    live = fit("live", cache_features="off")
    assert curve(cached) == pytest.approx(curve(live), rel=1e-5)
    assert curve(cached)[3] < curve(cached)[0]


def test_a_projection_that_begins_at_a_ridge_regression(fit: Runner) -> None:
    """From cached features and live ones alike, and not where a random one begins."""
    still = {"max_steps": 1, "projection_lr": 1e-9, "lora_lr": 1e-9, "eval_steps": 1}
    cached = fit("cached", projection_start="ridge", **still)
    live = fit("live", projection_start="ridge", cache_features="off", **still)
    assert curve(cached) == pytest.approx(curve(live), rel=1e-5)
    assert curve(cached) != pytest.approx(curve(fit("random", **still)), rel=1e-2)


def test_a_captioner_may_remember_what_was_said(fit: Runner) -> None:
    """The same from cached features and live ones, and it is asked when the model captions."""
    cached = fit("cached", consensus=True, max_steps=1, eval_steps=0)
    live = fit("live", consensus=True, max_steps=1, eval_steps=0, cache_features="off")
    one, two = (load_captioner(result.run.model_path, device="cpu").consensus for result in (cached, live))
    assert one is not None and two is not None
    picture = torch.rand(*one.mean.shape)
    assert one.captions == two.captions
    assert one.weights(picture) == pytest.approx(two.weights(picture), abs=0.005)
    assert load_captioner(fit("forgets", max_steps=1, eval_steps=0).run.model_path, device="cpu").consensus is None


def test_of_many_pictures_some_are_remembered(fit: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, the last and some between, each with its own captions."""
    monkeypatch.setattr("limner.training.caption_task.MOST_PICTURES", 5)
    few = load_captioner(
        fit("few", consensus=True, max_steps=1, eval_steps=0).run.model_path, device="cpu"
    ).consensus
    monkeypatch.undo()
    whole = load_captioner(
        fit("all", consensus=True, max_steps=1, eval_steps=0).run.model_path, device="cpu"
    ).consensus
    assert few is not None and whole is not None
    places = [whole.captions.index(captions) for captions in few.captions]
    assert len(places) == len(few.pictures) == 5 and places == sorted(places)
    assert places[0] == 0 and places[-1] == len(whole.captions) - 1


def test_what_is_remembered_is_seen_as_when_captioning(fit: Runner, photos: Path) -> None:
    """An encoder that trains, and whose batch normalization would see batches, is asked as it will be used."""
    result = fit("open", consensus=True, freeze_vision=False, augment=False, max_steps=1, eval_steps=0)
    captioner = load_captioner(result.run.model_path, device="cpu")
    kept = captioner.consensus
    assert kept is not None
    pictures = [load_image(record.image) for record in ImageCaptionDataset(photos).splits().train]
    with torch.no_grad():
        pixels = torch.stack([captioner.pixels.pixels(picture) for picture in pictures])
        looks = torch.stack([captioner.vlm.features(look).mean(1) for look in (pixels, middle(pixels))], 1)
    weights = np.stack([kept.weights(picture) for picture in looks])  # (N, N)
    kernel = kept._kernel(kept._remembered)
    exact = torch.linalg.solve(kernel + RIDGE * torch.eye(len(kernel)), kernel)
    assert weights == pytest.approx(exact.numpy(), abs=0.02)


def test_the_mean_of_the_patches_may_be_the_only_image_token(fit: Runner) -> None:
    """Cached and live, saved and read again."""
    cached = fit("cached", image_tokens="mean")
    live = fit("live", image_tokens="mean", cache_features="off")
    assert curve(cached) == pytest.approx(curve(live), rel=1e-3)  # fp16 rounds the mean, not what it is made of
    vlm = load_captioner(cached.run.model_path, device="cpu").vlm
    assert vlm.num_prefix_tokens == 1
    pixels = torch.randn(2, 3, *vlm.image_size)
    patches = vlm.encoder(pixels).last_hidden_state.flatten(2)  # (2, Dv, P)
    assert torch.allclose(vlm.features(pixels), patches.mean(2)[:, None], atol=1e-5)


def test_the_means_of_regions_may_be_the_image_tokens(fit: Runner) -> None:
    """Cached and live, saved and read again; each token is the mean of the patches that lie where its name says."""
    cached = fit("cached", image_tokens="regions")
    live = fit("live", image_tokens="regions", cache_features="off")
    assert curve(cached) == pytest.approx(curve(live), rel=1e-3)
    vlm = load_captioner(cached.run.model_path, device="cpu").vlm
    pixels = torch.randn(2, 3, *vlm.image_size)
    patches = vlm.encoder(pixels).last_hidden_state  # (2, Dv, h, w)
    side = patches.shape[-1]
    half, rim = side // 2, side // 4
    inside = patches[..., rim : side - rim, rim : side - rim]
    halves = (patches[..., :half, :], patches[..., -half:, :], patches[..., :half], patches[..., -half:])
    wanted = torch.stack([part.mean((2, 3)) for part in (patches, *halves, inside)], 1)  # (2, 6, Dv)
    assert vlm.num_prefix_tokens == 6
    assert torch.allclose(vlm.features(pixels), wanted, atol=1e-5)


def test_pictures_are_learned_mirrored_every_other_time(fit: Runner) -> None:
    """From cached features and live ones alike; not from plain ones alone."""
    cached = fit("cached", mirror=True)
    live = fit("live", mirror=True, cache_features="off")
    assert curve(cached) == pytest.approx(curve(live), rel=1e-3)  # fp16
    assert curve(cached) != pytest.approx(curve(fit("plain")), rel=1e-3)


def test_pictures_of_told_sides_are_not_mirrored(fit: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.training.caption_inputs.can_be_mirrored", lambda captions: False)
    assert curve(fit("mirror", mirror=True)) == curve(fit("plain"))


def test_muon_trains_the_matrices_of_the_layers(fit: Runner) -> None:
    """It is given those and no others, and what it trains learns."""
    still = {"lora": False, "projection_lr": 1e-9, "lora_lr": 1e-9, "batch_size": 8, "eval_steps": 1}
    result, before = fit("muon", muon_lr=1e-3, **still), fit("still", **still)
    assert eval_loss(result) < eval_loss(before)
    new, old = (
        dict(load_captioner(r.run.model_path, device="cpu").vlm.named_parameters()) for r in (result, before)
    )
    moved = {name for name, weight in new.items() if not torch.allclose(weight, old[name], atol=1e-6)}
    assert moved == {name for name, weight in new.items() if ".layers." in name and weight.dim() == 2}


def test_packed_rows_train_as_separate_ones(fit: Runner) -> None:
    packed, separate = fit("packed"), fit("separate", pack=False)
    assert curve(packed) == pytest.approx(curve(separate), rel=1e-5)


def test_activation_checkpointing_changes_nothing(fit: Runner) -> None:
    kept, recomputed = fit("kept"), fit("recomputed", gradient_checkpointing="on")
    assert curve(kept) == pytest.approx(curve(recomputed), rel=1e-6)


def test_a_base_model_goes_on_where_it_ended(fit: Runner) -> None:
    first = fit("first", projection_lr=3e-3, lora_lr=3e-3, save_adapter=True)
    assert (first.run.model_path / "adapter" / "adapter_model.safetensors").is_file()
    again = fit("again", base_model="first", encoder_model=None, decoder_model=None, max_steps=1)
    assert curve(again)[0] < curve(first)[0]
    still = {"max_steps": 1, "projection_lr": 1e-9, "lora_lr": 1e-9}
    zero = fit("zero", base_model="first", encoder_model=None, decoder_model=None, **still)
    assert eval_loss(zero) == pytest.approx(eval_loss(first), rel=1e-4)


def test_a_picture_that_does_not_fit_leaves_nothing_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = object.__new__(CaptionTask)
    task.run_path = tmp_path
    (tmp_path / "samples").mkdir()
    record = Record(Image.effect_noise((64, 64), 90), [], "noise")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "replace", full)
        task._picture_file(record)
    assert not list((tmp_path / "samples").iterdir())
    name = task._picture_file(record)
    assert load_image(tmp_path / "samples" / name).size == (64, 64)


def test_probes_and_samples_are_pictures_with_words(fit: Runner) -> None:
    result = fit("probes")
    samples = [event for event in result.run.events() if event["type"] == "sample"]
    assert {event["step"] for event in samples} == {0, 1, 2, 4}
    assert all((result.run.samples_path / event["image"]).is_file() for event in samples)
    assert all(isinstance(event["text"], str) and event["references"] for event in samples)


def test_from_nothing_learns_and_loads_in_stock_transformers(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as a person gives it; the words of `limner caption` are those of transformers."""
    flags = "--batch-size 4 --gradient-accumulation-steps 1 --max-steps 30 --num-train-epochs 99 --eval-steps 0"
    where = ["--runs-dir", str(tmp_path), "--name", "small", "--device", "cpu", "--eval-images", "2"]
    assert main(["train", "--dataset", str(photos), *flags.split(), *where]) == 0
    losses = curve(Result(Run(tmp_path / "small"), "completed", 30, {}))
    assert losses[29] < 0.75 * losses[0]
    model, picture = tmp_path / "small" / "model", next(photos.glob("*.jpg"))
    capsys.readouterr()
    assert main(["caption", str(model), str(picture), "--json", "--num-beams", "1", "--precision", "fp32"]) == 0
    ours = json.loads(capsys.readouterr().out)

    from transformers import AutoModelForImageTextToText, AutoProcessor

    stock, processor = AutoModelForImageTextToText.from_pretrained(model), AutoProcessor.from_pretrained(model)
    chat = [{"role": "user", "content": [{"type": "image"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=Image.open(picture), text=prompt, return_tensors="pt")
    with torch.no_grad():
        theirs = stock.generate(**inputs, num_beams=1)[0, inputs["input_ids"].shape[1] :].tolist()
    assert ours["tokens"] == theirs


def test_contradictions_are_refused() -> None:
    for settings, message in [
        ({"augment": True, "cache_features": "on"}, "choose one"),
        ({"push_to_hub": True}, "not here yet"),
        ({"dataset": ("a", "b"), "dataset_weights": (1.0,)}, "2 numbers"),
        ({"base_model": "x", "preset": "balanced"}, "brings its own"),
        ({"save_adapter": True, "lora": False}, "no-lora"),
        ({"projection_start": "ridge", "projection_type": "mlp"}, "new linear projection"),
        ({"projection_start": "ridge", "base_model": "x"}, "new linear projection"),
        ({"image_tokens": "mean", "base_model": "x"}, "--image-tokens is what --base-model brings of its own"),
        ({"vision_feature_layer": -1, "base_model": "x"}, "--vision-feature-layer is what --base-model brings"),
        ({"lora_r": 8, "lora": False}, "--lora-r shapes the adapters that --no-lora does without"),
        ({"augment": True, "cache_int8": True}, "--cache-int8 is of the feature cache"),
        ({"mirror": True, "augment": True}, "mirrors pictures already"),
        ({"muon_lr": 1e-3}, "add --no-lora"),
        ({"freeze_vision": False, "unfreeze_vision_layers": 1}, "choose one"),
        ({"consensus": True, "shard": True}, "cannot --shard"),
        ({"sample_temperature": 0.7}, "--sample-temperature is of --objective cider"),
        ({"samples_per_picture": 4}, "it would change nothing; leave it out"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**settings)


def test_presets_fill_in_what_is_not_said(tmp_path: Path) -> None:
    named = TrainConfig(dataset=("flickr",)).with_preset()
    assert (named.encoder_model, named.decoder_model) == (
        "google/siglip-base-patch16-224",
        "HuggingFaceTB/SmolLM-135M",
    )
    own = TrainConfig(dataset=(str(tmp_path),)).with_preset()
    assert own.encoder_model is None and own.decoder_model is None
    mixed = TrainConfig(dataset=("flickr",), decoder_model="gpt2", preset="large").with_preset()
    assert (mixed.decoder_model, mixed.batch_size) == ("gpt2", 2)
    large = TrainConfig(dataset=("flickr",), preset="large", batch_size=4)
    assert large.with_preset({"batch_size"}).batch_size == 4  # as asked, though that is the default elsewhere
    for settings in ({"lora_r": 8}, {"unfreeze_vision_layers": 2}, {"save_adapter": True}, {"lora_lr": 1e-3}):
        with pytest.raises(ValueError, match="begins from random weights"):
            TrainConfig(dataset=(str(tmp_path),), **settings).with_preset()
    with pytest.raises(ValueError, match="--scratch-lr"):
        TrainConfig(encoder_model="x", dataset=(str(tmp_path),), lora_lr=1e-3).with_preset()


def stopped_at_two(fit: Runner, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Run:
    """The run "parts", stopped after two of its steps."""

    def stop(journal: Journal, step: int, *_: Any) -> None:
        if step == 2:
            assert journal.folder is not None
            send_command(journal.folder, "stop")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "training", stop)
        result = fit("parts", **settings)
    assert result.step == 2
    return result.run


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_dropout_resumes_bit_for_bit(
    fit: Runner, monkeypatch: pytest.MonkeyPatch, compile: bool
) -> None:
    if compile and not compiles():
        pytest.skip("torch.compile needs a C++ compiler and Python's headers")
    settings = {"lora_dropout": 0.1, "compile": compile, "lora_lr": 3e-3}
    whole = fit("whole", **settings)
    stopped_at_two(fit, monkeypatch, **settings)
    assert curve(fit("parts", **settings)) == curve(whole)


def test_a_run_whose_captions_have_changed_does_not_go_on(
    fit: Runner, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its validation pictures might be training pictures by now."""
    run = stopped_at_two(fit, monkeypatch)
    before = (photos / "captions.jsonl").read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    held_out = {record.image_id for record in ImageCaptionDataset(photos).splits().validation}
    try:
        for row in rows:
            row["captions"] = row["captions"][::-1] if row["image"] in held_out else row["captions"]
        (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(ValueError, match=r"^The validation data changed since these weights were saved \(data"):
            fit("parts")
        # An earlier version wrote down only how many they were.
        without_fingerprints(run.checkpoints()[-1])
        less = [row for row in rows if row["image"] not in held_out or row["image"] == min(held_out)]
        train_row = next(row for row in less if row["image"] not in held_out)
        train_row["captions"] = train_row["captions"][:-1]
        (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, less)))
        with pytest.raises(ValueError, match=r"^The training data.* changed since these weights were saved"):
            fit("parts")
    finally:
        (photos / "captions.jsonl").write_text(before)
    assert fit("parts").reason == "completed"


@pytest.mark.parametrize("consensus", [False, True])
def test_a_checkpoint_becomes_a_model_without_its_pictures(
    fit: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, consensus: bool
) -> None:
    """Unless it is to remember them."""
    run = stopped_at_two(fit, monkeypatch, consensus=consensus)
    if not consensus:
        monkeypatch.setattr(CaptionTask, "prepare", lambda *_: pytest.fail("read pictures"))
    checkpoint = run.checkpoints()[-1]
    captioner = load_captioner(stock_folder(run.path, checkpoint, tmp_path / "models"), device="cpu")
    assert (captioner.consensus is not None) == consensus
    opened = captioner.vlm.projection.state_dict()
    same = restored_captioner(checkpoint, torch.device("cpu"), torch.float32).projection.state_dict()
    assert opened.keys() == same.keys() and all(torch.equal(opened[name], same[name]) for name in same)


def test_what_cannot_be_compiled_says_so(fit: Runner) -> None:
    with pytest.raises(ValueError, match="frozen decoders of the Llama"):
        fit("whole", lora=False, compile=True)


def test_control_tokens_in_captions_are_letters(fit: Runner, photos: Path) -> None:
    """Somebody's "</s>" ends no caption, and "<image>" is no picture."""
    lines = [json.loads(line) for line in (photos / "captions.jsonl").read_text().splitlines()]
    for row in lines:
        row["captions"] = ["a </s> dog <image> <s> runs"]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = TrainConfig(**fit("told", max_steps=1).run.config["config"])
    task = CaptionTask(config, lambda progress: load_records(config, progress, print), say=lambda _: None)
    task.load(torch.device("cpu"), torch.float32, lambda *_: None)
    task.tokenize()
    special = set(task.vlm.tokenizer.all_special_ids)
    for captions in task.tokens["train"]:
        for *words, end in captions:
            assert not special & set(words) and end == task.vlm.tokenizer.eos_token_id
            assert task.vlm.tokenizer.decode(words).strip() == "a </s> dog <image> <s> runs"


def test_mirrored_pictures_do_not_depend_on_where_features_are_kept(fit: Runner) -> None:
    settings = {"mirror": True, "cache_features": "on"}
    fit("before", sample=8, max_steps=1, cache_features="on")  # its pictures come first in the cache
    shared = curve(fit("shared", **settings))
    assert shared == pytest.approx(curve(fit("live", mirror=True, cache_features="off")), rel=1e-3)
    assert shared != pytest.approx(curve(fit("plain", cache_features="on")), rel=1e-3)


def test_a_caption_longer_than_the_positions_is_refused(fit: Runner) -> None:
    with pytest.raises(
        ValueError, match=r"the picture takes \d+ of its \d+, .* --context-length 10\d{3} or more"
    ) as refused:
        fit("long", max_length=10_000)
    taken, positions, room, wanted = map(int, re.findall(r"\d+", str(refused.value))[1:])
    assert taken + room == positions + 1 and wanted == taken + 10_000 - 1  # the last token needs no position


def test_settings_of_an_earlier_version_that_did_nothing_are_no_change(tmp_path: Path) -> None:
    saved = {
        "dataset": ["photos"],
        "pack": True,
        "freeze_vision": False,
        "unfreeze_vision_layers": 2,
        "lora_lr": 0.5,
        "checkpoints_dir": None,
    }
    run = create_run(tmp_path, "older", "train", saved)
    settings = saved_settings(str(run.path), tmp_path, "train")
    assert TrainConfig(**settings).pack is None and settings["freeze_vision"] is False
    assert not {"unfreeze_vision_layers", "lora_lr"} & settings.keys()
    kept = create_run(tmp_path, "kept", "train", saved | {"decoder_model": "gpt2", "freeze_vision": True})
    assert {"unfreeze_vision_layers", "lora_lr"} <= saved_settings(str(kept.path), tmp_path, "train").keys()
