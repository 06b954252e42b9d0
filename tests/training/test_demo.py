"""The demo: what its task feeds the model, what the help adds, and the whole of it in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import limner
from limner.cli.demo import next_steps
from limner.cli.main import main
from limner.config.demo import DemoConfig
from limner.data.images import load_image
from limner.data.scene_drawing import COLOURS, SHAPES
from limner.data.scenes import Group, Kind, Scene, make_scene, vocabulary
from limner.runs import send_command
from limner.training.demo import Captioned, _shuffled
from limner.training.scene_help import NOTHING, QUESTIONS, CellHeads, cell_labels
from limner.training.scene_sheet import Card, contact_sheet
from limner.training.scene_task import SceneTask
from limner.training.trainer import train

TINY = {"batch_size": 4, "test_scenes": 8, "eval_images": 4, "threads": 1}


def prepared(**settings) -> SceneTask:
    task = SceneTask(DemoConfig(**(TINY | settings)), say=lambda text: None)
    task.prepare(torch.device("cpu"), torch.float32, lambda *progress: None)
    return task


@pytest.fixture(scope="module")
def task() -> SceneTask:
    return prepared()


def test_its_scenes_are_told_from_others(task: SceneTask, tmp_path: Path) -> None:
    task.run_path = tmp_path
    for state in (task.state(), {}):
        task.load_state(json.loads(json.dumps(state)))
    with pytest.raises(ValueError, match=r"^The validation data changed since"):
        task.load_state(prepared(seed=1).state())


# -- the help ----------------------------------------------------------------------------------------------------


def scene(relation, *groups) -> Scene:
    return Scene((0, "train", 0), tuple(Group(Kind(*words.split()), spots) for words, spots in groups), relation)


def test_cell_labels_tell_each_shape_at_its_own_patch():
    two = scene(
        "right",
        ("large blue triangle", ((0.9, 0.30, 0.15),)),
        ("small red star", ((0.1, 0.05, 0.08), (0.2, 0.6, 0.08))),
    )
    lone = scene(None, ("small white circle", ((0.5, 0.99, 0.08),)))
    labels, _ = cell_labels([two, lone], 4)
    assert labels.shape == (2, 16, len(QUESTIONS))
    # size, colour, shape, count - 1, relation (none, left, right, above, below), those four of the other group,
    # column, row
    triangle, stars, nobody = (1, 3, 2, 0), (0, 0, 3, 1), (NOTHING,) * 4
    expected = {(0, 7): (*triangle, 2, *stars, 2, 0)}
    expected |= {(0, 0): (*stars, 1, *triangle, 0, 0), (0, 8): (*stars, 1, *triangle, 0, 1)}
    expected[1, 14] = (0, 4, 0, 0, 0, *nobody, 1, 2)
    for (row, cell), answers in expected.items():
        assert tuple(labels[row, cell].tolist()) == answers
    assert (labels != NOTHING).any(-1).sum() == len(expected)


def test_answers_that_would_make_the_scene_a_held_out_one_are_marked():
    # No small blue circle, no blue square left of anything, no three blue stars are in training.
    blue = scene("left", ("small blue triangle", ((0.1, 0.1, 0.08),)), ("small blue star", ((0.6, 0.1, 0.08),) * 2))
    _, untold = cell_labels([blue], 4)
    named = {}
    for cell, row in enumerate(untold[0]):
        answers = dict(zip(QUESTIONS, row.split([*QUESTIONS.values()]), strict=True))
        named[cell] = {
            question: picked.nonzero().flatten().tolist() for question, picked in answers.items() if picked.any()
        }
    circle, square, red = SHAPES.index("circle"), SHAPES.index("square"), list(COLOURS).index("red")
    triangle = {"shape": [circle, square]}
    stars = {"colour": [red, list(COLOURS).index("white")], "shape": [circle], "count": [2]}
    assert named.pop(0) == triangle | {f"other {question}": answers for question, answers in stars.items()}
    assert named.pop(2) == stars | {f"other {question}": answers for question, answers in triangle.items()}
    assert not any(named.values())


def test_captions_that_are_cut_keep_their_labels_and_alternatives():
    task = prepared(max_length=4)
    batch = task.batch(range(12), seed=0)
    where, tokens = batch.tensors["untold"].unbind(-1)
    assert len(where) and not (batch.tensors["labels"][where] == tokens).any()
    assert task.loss(task.model, batch.tensors).isfinite()


def test_what_training_never_shows_counts_as_rare_among_a_captions_words(task: SceneTask):
    batch = task.batch(range(12), seed=0)
    labels, untold = batch.tensors["labels"], batch.tensors["untold"]
    where, tokens = untold.unbind(-1)
    assert len(where) > 12 and len(set(where.tolist())) > 6
    assert not (labels[where] == tokens).any()
    tensors = {name: tensor for name, tensor in batch.tensors.items() if name not in ("cells", "untold_answers")}
    hidden = torch.randn(len(labels), 128)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        real = task.vlm.head
        patch.setattr(task.vlm, "head", lambda states: real(hidden))
        loss = task.loss(task.model, tensors)
        logits = real(hidden)
    for label, token in untold.tolist():
        logits[label, token] -= 3
    torch.testing.assert_close(loss, -logits.log_softmax(-1).gather(1, labels[:, None]).sum())


def test_heads_ask_only_where_there_is_a_shape():
    torch.manual_seed(0)
    scenes = [make_scene(index) for index in range(6)]
    assert {len(scene.groups) for scene in scenes} == {1, 2}
    heads, features = CellHeads(8), torch.randn(6, 16, 8)
    labels, untold = cell_labels(scenes, 4)
    loss = heads(features, labels, untold)
    # by hand: presence over all patches, each question over the patches with a shape
    present = labels[..., 0] != NOTHING
    out = heads.answers(features)
    by_hand = -torch.where(present, out[..., 0].sigmoid().log(), (-out[..., 0]).sigmoid().log()).mean()
    start = 1
    for question, answers in enumerate(QUESTIONS.values()):
        asked, row = labels[..., question] != NOTHING, slice(start, start + answers)
        odds = torch.where(untold[..., start - 1 : start - 1 + answers], 1 / torch.e**3, 1.0) * out[..., row].exp()
        chances = (odds / odds.sum(-1, keepdim=True)).log()[asked]
        by_hand -= chances.gather(1, labels[..., question][asked][:, None]).mean()
        start += answers
    torch.testing.assert_close(loss, by_hand)
    lone = [number for number, scene in enumerate(scenes) if scene.relation is None]
    assert heads(features[lone], labels[lone], untold[lone]).isfinite()  # nobody is asked of another group


def test_help_is_told_apart_from_the_caption_loss_and_comes_only_in_training(task: SceneTask):
    batch = task.batch([0, 1, 2], seed=0)
    task.model.eval()
    with torch.no_grad():
        cells, untold = batch.tensors.pop("cells"), batch.tensors.pop("untold_answers")
        captions_alone = task.loss(task.model, batch.tensors)
        assert task.auxiliary_loss == 0 and task.figures == {}
        captions = task.loss(task.model, batch.tensors | {"cells": cells, "untold_answers": untold})
        help_alone = task.model.heads(task.vlm.features(batch.tensors["picture"]), cells, untold)
    assert captions == captions_alone
    torch.testing.assert_close(task.auxiliary_loss, batch.num_targets * help_alone)
    assert task.figures == {"help_loss": pytest.approx(float(help_alone))}
    assert all("cells" not in validation.tensors for validation in task.validation_batches())


# -- the task ----------------------------------------------------------------------------------------------------


def test_batches_are_pure_and_show_the_scenes_that_they_name(task: SceneTask):
    first, again = task.batch([5, 9], seed=1), task.batch([5, 9], seed=2)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())
    assert (
        first.ids == ["scene-42-train-000005", "scene-42-train-000009"] == [task.example_id(5), task.example_id(9)]
    )
    for row, index in enumerate((5, 9)):
        drawn = make_scene(index)
        pixels = task.pixels.pixels(load_image(drawn.picture()))  # the way of captioning
        assert torch.equal(first.tensors["picture"][row], pixels)
    text = task.vlm.tokenizer.decode(first.tensors["labels"], skip_special_tokens=True)
    assert any(text.strip().startswith(caption) for caption in make_scene(5).all_captions)
    assert first.num_targets == first.tensors["labels"].numel() and first.num_units == 2


def test_at_first_a_quarter_of_the_scenes_is_captioned_and_all_are_seen():
    task = prepared(batch_size=8, steps=10, seeing_first=0.2, captions_per_scene=2)
    for step, captioned in ((0, 2), (1, 2), (2, 8), (9, 8)):
        batch = task.batch(range(8 * step, 8 * step + 8), seed=0)
        assert batch.num_units == 2 * captioned
        assert batch.tensors["row_images"].tolist() == list(range(captioned))
        assert len(batch.tensors["picture"]) == len(batch.tensors["cells"]) == 8
    assert prepared(batch_size=8, steps=10, seeing_first=0.0).batch(range(8), seed=0).num_units == 16


def test_every_word_of_the_grammar_is_one_token(task: SceneTask):
    words = task.vlm.tokenizer
    assert {len(words.encode(" " + word, add_special_tokens=False)) for word in vocabulary()} == {1}
    assert (
        words.decode(words.encode("a small red circle", add_special_tokens=False)).strip() == "a small red circle"
    )


def test_scenes_come_in_order_so_that_none_is_seen_twice(task: SceneTask):
    assert task.num_examples == task.config.steps * task.config.batch_size
    assert task.arrange(np.array([3, 1, 2, 0]), epoch=0).tolist() == [0, 1, 2, 3]


# -- the proof ---------------------------------------------------------------------------------------------------


def test_captions_held_against_other_scenes_are_wrong():
    scenes = [make_scene(index, "test") for index in range(50)]
    shuffled = _shuffled(scenes, seed=1)
    assert all(a is not b for a, b in zip(scenes, shuffled, strict=True)) and set(map(id, shuffled)) == set(
        map(id, scenes)
    )
    captions = [one.captions(1)[0] for one in scenes]
    perfect = Captioned(scenes, captions, [True] * 50)
    exact, cider = perfect.against(scenes)
    by_chance, blind_cider = perfect.against(shuffled)
    assert exact == perfect.exact_match == 1.0
    assert by_chance < 0.05 and blind_cider < 0.2 * cider


def test_contact_sheet_shows_every_picture(tmp_path: Path):
    rng = np.random.default_rng(0)
    pictures = [np.full((64, 64, 3), colour, np.uint8) for colour in rng.integers(0, 255, (7, 3))]
    cards = [
        Card(picture, "a small red circle at the top left", "a big one" if k == 0 else None)
        for k, picture in enumerate(pictures)
    ]
    contact_sheet(tmp_path / "sheet.png", "Title", "below", [("Some", "50.0%", cards)])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for picture in pictures:  # each plain colour fills at least its rounded square, less the red rim
        same = (sheet == picture[0, 0]).all(-1).sum()
        assert same > 0.93 * 384 * 384


# -- the whole ---------------------------------------------------------------------------------------------------


def test_demo_in_small_prints_its_figures_and_leaves_a_stock_model(tmp_path: Path, capsys: pytest.CaptureFixture):
    options = ["--steps", "3", "--batch-size", "4", "--test-scenes", "8", "--eval-images", "4", "--threads", "1"]
    assert main(["demo", "--json", "--runs-dir", str(tmp_path), "--name", "small", *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    for command in next_steps(figures["run"], figures["model"])[:2]:
        assert main(command.split()[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2
    assert set(figures) == {
        "exact_match", "exact_match_unseen", "cider", "shuffled_exact_match", "shuffled_cider",
        "train_seconds", "captions_per_second", "peak_memory_mb", "run", "model",
    }  # fmt: skip
    run = tmp_path / "small"
    assert figures["run"] == str(run) and figures["model"] == str(run / "model")
    assert json.loads((run / "demo.json").read_text()) == figures
    assert Image.open(run / "demo.png").format == "PNG"
    assert not [name for name in load_file(run / "model" / "model.safetensors") if "heads" in name]

    from transformers import AutoModelForImageTextToText, AutoProcessor

    stock, processor = (
        kind.from_pretrained(run / "model") for kind in (AutoModelForImageTextToText, AutoProcessor)
    )
    pictures = [make_scene(index, "test").picture() for index in range(3)]
    ours = limner.load_captioner(run / "model", device="cpu").describe(pictures, num_beams=1)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True
    )
    for picture, caption in zip(pictures, ours, strict=True):
        inputs = processor(images=Image.fromarray(picture), text=prompt, return_tensors="pt")
        said = stock.generate(**inputs, num_beams=1, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert said.tolist() == caption.tokens


def test_a_stopped_demo_goes_on_bit_for_bit(tmp_path: Path):
    class Stopping(SceneTask):
        def loss(self, model, tensors):
            if self.config.name == "halves" and model.training and not sent:
                sent.append(send_command(self.run_path, "stop"))
            return super().loss(model, tensors)

    sent: list[str] = []
    losses = {}
    for name in ("whole", "halves"):
        config = DemoConfig(**TINY, steps=4, runs_dir=tmp_path, name=name)
        result = train(Stopping(config, lambda text: None), config, "demo", "scenes", quiet=True)
        if name == "halves":
            assert (result.reason, result.step) == ("stopped", 1)
            result = train(Stopping(config, lambda text: None), config, "demo", "scenes", quiet=True)
        losses[name] = [event["loss"] for event in result.run.events() if event["type"] == "metrics"]
        assert max(losses[name]) < 7  # nats a word of the captions, as in the evaluation; what helps is told apart
        losses[name] += [event["help_loss"] for event in result.run.events() if event["type"] == "metrics"]
        losses[name].append(result.metrics["eval_loss"])  # also tells whether batch statistics went on
    assert losses["whole"] == losses["halves"]
