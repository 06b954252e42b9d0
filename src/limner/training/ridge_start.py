"""Where a linear projection begins: at the best linear guess of a caption's words.

A projection from random weights tells a decoder nothing at first, and its gradient has to come through a decoder
that ignores it. Yet which words a picture's captions hold can be read from the mean of its patches by ridge
regression, in closed form. So the projection begins there: it maps the patches to the embeddings of the words that
they predict. A map of the mean is the mean of the maps, so what was fitted to means is right for patches.

N: training pictures. P: image tokens. Dv: the encoder's width. D: the language model's. V: vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

RIDGE = 1 / 6
"""The penalty, in pictures' worth of variance: of N pictures, RIDGE * N times the squared weights."""
SEEN_IN = 3
"""Words in the captions of fewer pictures than this are not predicted."""


def telling_words(captions: Sequence[Sequence[Sequence[int]]], embedding: torch.Tensor) -> torch.Tensor:
    """(N, D): the sum of the embeddings of a picture's words, each times the part of the picture's captions that
    hold it and its inverse document frequency.

    Args:
        captions: the token ids of each caption of each picture.
        embedding: (V, D).
    """
    counts = [Counter(word for words in of_picture for word in set(words)) for of_picture in captions]
    seen_in = Counter(word for of_picture in counts for word in of_picture)
    rarity = {word: math.log(len(counts) / n) for word, n in seen_in.items() if n >= SEEN_IN}
    told = embedding.new_zeros(len(captions), embedding.shape[1])
    for row, of_picture, counted in zip(told, captions, counts, strict=True):
        weights = {word: n / len(of_picture) * rarity[word] for word, n in counted.items() if word in rarity}
        row += embedding.new_tensor(list(weights.values())) @ embedding[list(weights)]
    return told


@torch.no_grad()
def start_projection(
    linear: nn.Linear,
    features: torch.Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    embedding: torch.Tensor,
) -> float:
    """Sets the weight and bias of ``linear`` (Dv -> D).

    Args:
        features: (N, Dv), the mean over each training picture's image tokens.
        captions: the token ids of each caption of each of these pictures.
        embedding: (V, D), of the language model. The prefix's tokens get the mean length of its rows.

    Returns:
        The explained part of the variance of the words' weights seen through the embedding, 0 to 1.
    """
    N, width = features.shape
    features = features.double()
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-3)  # (Dv,)
    known = (features - mean) / deviation  # (N, Dv)
    wanted = telling_words(captions, embedding.double())  # (N, D)
    wanted -= wanted.mean(0)
    penalty = RIDGE * N * torch.eye(width, dtype=known.dtype)
    solution = torch.linalg.solve(known.mT @ known + penalty, known.mT @ wanted)  # (Dv, D)
    guess = known @ solution  # (N, D)
    length = embedding.norm(dim=1).double().mean() / guess.norm(dim=1).mean().clamp_min(1e-12)
    weight = (solution / deviation[:, None]).mT * length  # (D, Dv)
    linear.weight.copy_(weight)
    linear.bias.copy_(-weight @ mean)
    return 1 - float((wanted - guess).square().sum() / wanted.square().sum())
