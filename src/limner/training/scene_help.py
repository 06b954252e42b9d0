"""Help that exists only in training: heads that read from each patch what the scene knows of it.

A captioner from nothing learns slowly from captions alone: the words come long before any use of the picture, and
until the picture is used nothing tells the encoder what to see. Scenes know their shapes, so every patch with the
centre of a shape is asked what that shape is, how many like it there are, and where the other group lies; every
patch is asked whether it has one. The heads are thrown away: nothing of them is in the saved model.

N: scenes of a batch. P = G * G: patches, and prefix tokens. Dv: the encoder's width. F: questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from limner.data.scene_drawing import COLOURS, SHAPES
from limner.data.scenes import OPPOSITES, SIZES, Scene

NOTHING = -100
"""The label of a patch without a shape; cross-entropy leaves it out."""
RELATIONS = (None, *OPPOSITES)
QUESTIONS = {
    "size": len(SIZES),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "count": 4,
    "relation": len(RELATIONS),
    "column": 3,
    "row": 3,
}
"""What is asked of a patch with a shape, and how many answers there are."""


def cell_labels(scenes: Sequence[Scene], grid: int) -> torch.Tensor:
    """(N, grid * grid, F) int64: the answers for every patch; all `NOTHING` where it has no shape's centre.

    Where two small shapes share a patch, the answers are those of the later one.
    """
    labels = np.full((len(scenes), grid, grid, len(QUESTIONS)), NOTHING, dtype=np.int64)
    sizes, colours = list(SIZES), list(COLOURS)
    for scene, cells in zip(scenes, labels, strict=True):
        relations = (scene.relation, OPPOSITES.get(scene.relation or ""))
        for group, relation in zip(scene.groups, relations, strict=False):
            size, colour, shape = group.kind
            what = (sizes.index(size), colours.index(colour), SHAPES.index(shape), group.count - 1)
            for x, y, _ in group.spots:
                answers = (*what, RELATIONS.index(relation), int(3 * x), int(3 * y))
                cells[int(grid * y), int(grid * x)] = answers
    return torch.from_numpy(labels.reshape(len(scenes), grid * grid, len(QUESTIONS)))


class CellHeads(nn.Module):
    """One linear map from a patch's features to all answers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.answers = nn.Linear(width, 1 + sum(QUESTIONS.values()))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of each question, summed: features (N, P, Dv), labels (N, P, F) -> scalar."""
        present = labels[..., 0] != NOTHING  # (N, P)
        presence, *answers = self.answers(features).split([1, *QUESTIONS.values()], dim=-1)
        loss = F.binary_cross_entropy_with_logits(presence[..., 0], present.to(presence.dtype))
        for logits, wanted in zip(answers, labels.unbind(-1), strict=True):
            loss = loss + F.cross_entropy(logits[present], wanted[present])
        return loss
