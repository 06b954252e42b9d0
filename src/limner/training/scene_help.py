"""Help that exists only in training: heads that read from each patch what the scene knows of it.

A captioner from nothing learns slowly from captions alone: the words come long before any use of the picture, and
until the picture is used nothing tells the encoder what to see. Scenes know their shapes, so every patch with the
centre of a shape is asked what that shape is, how many like it there are, where the other group lies and what that
is, so that the patch comes to hold a whole sentence; every patch is asked whether it has a shape. The heads are
thrown away: nothing of them is in the saved model.

What training never shows must not be learned from its absence. No small blue thing of the training scenes is a
circle; a model that is asked for the shape of each of them learns the rule instead of the looks, and then sees
squares where there are small blue circles. So an answer that would make the scene a held-out one counts as rare,
not as absent, here and among a caption's words: `UNTOLD` is added to its logit in training. That is logit
adjustment (Menon et al. 2021, arXiv:2007.07314).

N: scenes of a batch. P = G * G: patches, and prefix tokens. Dv: the encoder's width. F: questions. A: all answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from limner.data.scene_drawing import COLOURS, SHAPES
from limner.data.scenes import COUNT_WORDS, OPPOSITES, SIZES, Scene

UNTOLD = -3.0
"""The log of the frequency, 1 in 20, that is assumed for what training never shows. Were it left out altogether,
nothing would tell small white circles from the small white squares that are held out, and they were mixed up."""
NOTHING = -100
"""The label of a patch without a shape, and of what is asked of another group where there is none: left out."""
SIZE_NAMES, COLOUR_NAMES, RELATIONS = list(SIZES), list(COLOURS), [None, *OPPOSITES]
KIND_QUESTIONS = {"size": len(SIZES), "colour": len(COLOURS), "shape": len(SHAPES), "count": len(COUNT_WORDS)}
QUESTIONS = {
    **KIND_QUESTIONS,
    "relation": len(RELATIONS),
    **{f"other {question}": answers for question, answers in KIND_QUESTIONS.items()},
    "column": 3,
    "row": 3,
}
"""What is asked of a patch with a shape, and how many answers there are: of its own group, of the relation to the
other group and of that group, and of the shape's own place."""
FIRST = (0, *itertools.accumulate(QUESTIONS.values()))
"""Where each question's answers begin in the row of all A answers."""


def cell_labels(scenes: Sequence[Scene], grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The answers for every patch, and those that training never shows in their place.

    Returns:
        labels (N, P, F) int64; all `NOTHING` where a patch has no shape's centre. Where two small shapes share a
        patch, the answers are those of the later one.
        untold (N, P, A) bool: the answers that would make the scene one of its `Scene.held_out_neighbours`.
    """
    labels = np.full((len(scenes), grid, grid, len(QUESTIONS)), NOTHING, dtype=np.int64)
    untold = np.zeros((len(scenes), grid, grid, sum(QUESTIONS.values())), dtype=np.bool_)
    for number, scene in enumerate(scenes):
        own = _answers(scene)
        rows = np.zeros((len(own), untold.shape[-1]), dtype=np.bool_)
        for neighbour in scene.held_out_neighbours:
            for row, true, other in zip(rows, own, _answers(neighbour), strict=True):
                row[[first + b for first, a, b in zip(FIRST, true, other, strict=False) if a != b]] = True
        for group, answers, row in zip(scene.groups, own, rows, strict=True):
            for x, y, _ in group.spots:
                patch = number, int(grid * y), int(grid * x)
                labels[patch] = (*answers, int(3 * x), int(3 * y))
                untold[patch] = row
    return torch.from_numpy(labels).flatten(1, 2), torch.from_numpy(untold).flatten(1, 2)


def _answers(scene: Scene) -> list[tuple[int, ...]]:
    """For each group the answers to all questions but those after a shape's own place."""
    kinds = [
        (
            SIZE_NAMES.index(group.kind.size),
            COLOUR_NAMES.index(group.kind.colour),
            SHAPES.index(group.kind.shape),
            group.count - 1,
        )
        for group in scene.groups
    ]
    others = kinds[::-1] if len(kinds) == 2 else [(NOTHING,) * len(KIND_QUESTIONS)]
    return [
        (*own, RELATIONS.index(relation), *other)
        for own, relation, other in zip(kinds, scene.relations, others, strict=False)
    ]


class CellHeads(nn.Module):
    """One linear map from a patch's features to all answers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.answers = nn.Linear(width, 1 + sum(QUESTIONS.values()))

    def forward(self, features: torch.Tensor, labels: torch.Tensor, untold: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of each question, summed: features (N, P, Dv), labels (N, P, F), untold answers
        (N, P, A) -> scalar."""
        present = labels[..., 0] != NOTHING  # (N, P)
        presence, answers = self.answers(features).split([1, untold.shape[-1]], dim=-1)
        loss = F.binary_cross_entropy_with_logits(presence[..., 0], present.to(presence.dtype))
        answers = answers + UNTOLD * untold
        for logits, wanted in zip(answers.split([*QUESTIONS.values()], dim=-1), labels.unbind(-1), strict=True):
            asked = wanted != NOTHING  # (N, P)
            loss = loss + F.cross_entropy(logits[asked], wanted[asked], reduction="sum") / asked.sum().clamp(min=1)
        return loss
