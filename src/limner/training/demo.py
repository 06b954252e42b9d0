"""The demo, from nothing to figures: train on scenes, read the model back from disk, caption scenes it never saw.

The proof that the words come from the pixels is a control: the same captions held against the other scenes (the
pictures shuffled among each other) must be as wrong as words without sight are.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from limner.config.demo import DemoConfig
from limner.data.scenes import Scene, Split, make_scene
from limner.decoding.captioner import Captioner, load_captioner
from limner.evaluation import cider_d
from limner.training.meter import peak_memory_mb
from limner.training.scene_sheet import COLUMNS, Card, contact_sheet
from limner.training.scene_task import SceneTask
from limner.training.trainer import Result, train

SHEET_ROWS = 2
"""Rows of the contact sheet for each kind of scene. They are the first of each split: nobody chose them."""


@dataclass(frozen=True)
class Figures:
    """What ``limner demo --json`` prints. Shares are 0 to 1; CIDEr-D is of the held-out combinations."""

    exact_match: float
    exact_match_unseen: float
    cider: float
    shuffled_exact_match: float
    shuffled_cider: float
    train_seconds: float
    captions_per_second: float
    peak_memory_mb: float
    run: str
    model: str


@dataclass(frozen=True)
class Captioned:
    """Scenes of one split, what the model said of them, and whether that is true."""

    scenes: list[Scene]
    captions: list[str]
    accepted: list[bool]

    @property
    def exact_match(self) -> float:
        return sum(self.accepted) / len(self.accepted)

    def against(self, scenes: Sequence[Scene]) -> tuple[float, float]:
        """Exact match and CIDEr-D of the captions, held against these scenes in this order."""
        pairs = list(zip(self.captions, scenes, strict=True))
        references = {scene.image_id: scene.captions() for scene in scenes}
        cider, _ = cider_d({scene.image_id: caption for caption, scene in pairs}, references)
        return sum(scene.accepts(caption) for caption, scene in pairs) / len(pairs), cider


@dataclass(frozen=True)
class Demo:
    """How the demo ended. ``figures`` and what follows are None where it was stopped and can be resumed, and in all
    processes but the first."""

    result: Result
    figures: Figures | None = None
    unseen: Captioned | None = None
    held_out: Captioned | None = None
    sheet: Path | None = None


def run_demo(config: DemoConfig, say: Callable[[str], None], quiet: bool = False) -> Demo:
    """Trains, captions test scenes with the saved model, and writes ``demo.png`` and ``demo.json`` into the run.

    Args:
        say: told what a person should know, a sentence each.
        quiet: no progress bar.
    """
    began = time.perf_counter()
    result = train(SceneTask(config, say), config, "demo", config.subject(), quiet)
    train_seconds = time.perf_counter() - began
    if result.reason == "stopped" or not result.is_main_process:
        return Demo(result)
    captioner = load_captioner(result.run.model_path, str(config.device))
    unseen = caption_scenes(captioner, "test", config)
    held_out = caption_scenes(captioner, "test-held-out", config)
    exact_match, cider = held_out.against(held_out.scenes)
    shuffled_exact_match, shuffled_cider = held_out.against(_shuffled(held_out.scenes, config.seed))
    figures = Figures(
        exact_match=exact_match,
        exact_match_unseen=unseen.exact_match,
        cider=cider,
        shuffled_exact_match=shuffled_exact_match,
        shuffled_cider=shuffled_cider,
        train_seconds=train_seconds,
        captions_per_second=_captions(result) / train_seconds,
        peak_memory_mb=peak_memory_mb(),
        run=str(result.run.path),
        model=str(result.run.model_path),
    )
    sheet = result.run.path / "demo.png"
    contact_sheet(
        sheet,
        "Limner demo",
        f"A captioner trained from nothing in {train_seconds:.0f} s. The first scenes of each test set, as it saw "
        f"them; what it said; where that is wrong, in red, and below it what is there.",
        [
            ("Scenes it never saw", f"{unseen.exact_match:.1%} exactly right", _cards(unseen)),
            ("Combinations it never saw", f"{exact_match:.1%} exactly right", _cards(held_out)),
        ],
    )
    (result.run.path / "demo.json").write_text(json.dumps(asdict(figures), indent=2) + "\n")
    return Demo(result, figures, unseen, held_out, sheet)


def caption_scenes(captioner: Captioner, split: Split, config: DemoConfig) -> Captioned:
    """Captions the first ``test_scenes`` scenes of a split."""
    scenes = [make_scene(index, split, config.seed) for index in range(config.test_scenes)]
    pictures = [scene.picture() for scene in scenes]
    captions = captioner.caption_batch(pictures, num_beams=config.num_beams, batch_size=50)
    return Captioned(scenes, captions, [s.accepts(text) for s, text in zip(scenes, captions, strict=True)])


def _captions(result: Result) -> int:
    """How many captions the run has learned from."""
    return next(event["captions"] for event in reversed(result.run.events()) if event["type"] == "metrics")


def _shuffled(scenes: Sequence[Scene], seed: int) -> list[Scene]:
    """The scenes in a random cycle: none stays in its place."""
    order = list(range(len(scenes)))
    random.Random(seed).shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [scenes[following[index]] for index in range(len(scenes))]


def _cards(captioned: Captioned) -> list[Card]:
    rows = zip(captioned.scenes, captioned.captions, captioned.accepted, strict=True)
    return [
        Card(
            scene.picture(), caption, None if right else min(scene.all_captions, key=lambda text: (len(text), text))
        )
        for scene, caption, right in list(rows)[: COLUMNS * SHEET_ROWS]
    ]
