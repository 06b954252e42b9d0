"""Of several captions the one that people would most agree on: judged by what they said of pictures like this one.

A captioner's likeliest caption is not its best: likely are short and general ones. What earns agreement (CIDEr-D)
can be estimated without the decoder. The score of a caption of a given length is, but for clipping, a scalar
product of its n-grams' tf-idf vector with the mean vector of what people said of the picture, captions of other
lengths weighing less; and that mean can be predicted from the picture's features by kernel ridge regression over
the training pictures, in closed form. So the decoder proposes, and the regression chooses. Captions of near
pictures were used so by Devlin et al. 2015 (arXiv:1505.04467), who took the neighbours' own, all of one weight.

A picture is known by two looks at it: the mean over the image tokens that the decoder sees, and that of the
picture's middle, enlarged, whose errors are not the decoder's.

N: remembered pictures. Dv: the encoder's width. K: principal axes. B: other pictures. G: n-grams of all remembered
captions. M: weights of all their captions' vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.models.folder import CONSENSUS
from limner.words.ngrams import ORDERS, Ngram, caption_ngrams, count_ngrams
from limner.words.ptb import ptb_tokenize
from limner.words.tf_idf import SIGMA, DocumentFrequency, TfIdf, Weigher

MOST_PICTURES = 6_000
"""Remembered: the regression's matrix is N x N."""
LOOKS = 2
"""At a picture: the whole, and its `middle`."""
MIDDLE = 0.75
"""Of the height and width."""
MOST_AXES = 720
"""The principal axes on which pictures are kept: fewer choose worse, more take more room."""
SHARPNESS = 2.0
"""Of the kernel exp(SHARPNESS (cosine - 1)) between two pictures."""
RIDGE = 0.5
"""Added to the kernel's diagonal."""
LONGEST = 127
"""A caption of more words counts as one of so many."""


class Consensus:
    """What people said of the training pictures, to choose between captions of a new one.

    Args:
        mean, deviation: (LOOKS, Dv) of the pictures' features.
        axes: (K, LOOKS Dv) int8: the directions of the principal axes of standardized pictures.
        pictures: (N, K) int8: each remembered picture along these. Only its direction counts.
        captions: of each of the N pictures, tokenized as CIDEr-D does it, words between single spaces.

    Raises:
        ValueError: the parts do not fit together.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, axes: Tensor, pictures: Tensor, captions: Sequence[Sequence[str]]
    ) -> None:
        small = all(part.dtype == torch.int8 and part.dim() == 2 for part in (axes, pictures))
        small = small and len(pictures) <= MOST_PICTURES and len(axes) <= MOST_AXES
        fit = mean.shape == deviation.shape == (LOOKS, mean.shape[-1]) and axes.shape[1] == mean.numel()
        if not (small and fit and pictures.shape[1] == len(axes)):
            raise ValueError("features of these shapes and types are not what was saved")
        if not mean.isfinite().all() or not (deviation.isfinite() & (deviation > 0)).all():
            raise ValueError("its features have no finite mean and deviation")
        if len(captions) != len(pictures) or not all(captions):
            raise ValueError(f"{len(pictures)} pictures need captions, and {len(captions)} have some")
        self.mean, self.deviation, self.axes = mean, deviation, axes
        self.pictures, self.captions = pictures, captions

    @classmethod
    def of(cls, features: Tensor, captions: Sequence[Sequence[str]]) -> Consensus:
        """From at most `MOST_PICTURES` training pictures.

        Args:
            features: (N, LOOKS, Dv), of each look the mean over the image tokens.
            captions: raw, of each.
        """
        features = features.float()
        mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-3)  # (LOOKS, Dv)
        known = _looks_alike((features - mean) / deviation)  # (N, LOOKS Dv)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            axes = torch.svd_lowrank(known, min(MOST_AXES + 64, *known.shape))[2].mT  # the last are inexact
        axes = _in_8_bits(axes[:MOST_AXES])  # (K, LOOKS Dv)
        pictures = _in_8_bits(known @ _length_one(axes).mT)
        return cls(mean, deviation, axes, pictures, [[ptb_tokenize(text) for text in group] for group in captions])

    def save(self, model: Path) -> None:
        """Writes it into the model's folder: N (K + about 250) + 2 K Dv bytes."""
        folder = model / CONSENSUS
        folder.mkdir(exist_ok=True)
        tensors = {name: getattr(self, name) for name in ("mean", "deviation", "axes", "pictures")}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "features.safetensors")
        (folder / "captions.json").write_text(json.dumps(self.captions, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, model: str | Path, width: int) -> Consensus | None:
        """What `save` wrote; None where there is none.

        Raises:
            ValueError: the files are something else, or of an encoder of another width than ``width``.
        """
        folder = Path(model) / CONSENSUS
        if not folder.is_dir():
            return None
        try:
            tensors = load_file(folder / "features.safetensors")
            captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
            if not all(isinstance(text, str) for group in captions for text in group):
                raise ValueError("captions.json holds other things than captions")
            if tensors["mean"].shape != (LOOKS, width):
                raise ValueError(f"it is not of an encoder of width {width}")
            return cls(**tensors, captions=captions)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder} cannot be used ({error}); delete that folder, and the model captions without it."
            ) from error

    def _kernel(self, directions: Tensor) -> Tensor:
        """(B, K) of length one -> (N, B)."""
        return torch.exp(SHARPNESS * (self._remembered @ directions.mT - 1))

    @cached_property
    def _remembered(self) -> Tensor:
        return _length_one(self.pictures)  # (N, K)

    @cached_property
    def _factor(self) -> Tensor:
        """The Cholesky factor (N, N) of kernel and ridge."""
        return torch.linalg.cholesky(self._kernel(self._remembered) + RIDGE * torch.eye(len(self.pictures)))

    def weights(self, features: Tensor) -> np.ndarray:
        """How much each remembered picture tells of a new one: (LOOKS, Dv) features -> (N,)."""
        known = _looks_alike(((features.float().cpu() - self.mean) / self.deviation)[None])  # (1, LOOKS Dv)
        direction = _length_one(known @ _length_one(self.axes).mT)  # (1, K)
        return torch.cholesky_solve(self._kernel(direction), self._factor)[:, 0].numpy()

    @cached_property
    def _vectors(self) -> tuple[Weigher, list[list[TfIdf]]]:
        """What weighs n-grams by the remembered captions, and these, of each picture."""
        counted = [[count_ngrams(text.split()) for text in group] for group in self.captions]
        weigher = Weigher(DocumentFrequency.counted(counted))
        return weigher, [[weigher.vector(counts) for counts in group] for group in counted]

    @cached_property
    def _said(self) -> tuple[dict[Ngram, int], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A number for each n-gram (G), and of each n-gram of each caption its number, its picture, its weight and
        the caption's length: four times (M,)."""
        numbers: dict[Ngram, int] = {}
        ids, owners, weights, lengths = [], [], [], []
        for n, group in enumerate(self._vectors[1]):
            for vector in group:
                for ngram, weight in vector.unit_weights():
                    ids.append(numbers.setdefault(ngram, len(numbers)))
                    owners.append(n)
                    weights.append(weight / len(group))
                    lengths.append(min(vector.length, LONGEST))
        of_ngrams = (
            np.array(ids, np.int64),
            np.array(owners, np.int64),
            np.array(weights),
            np.array(lengths, np.int64),
        )
        return numbers, *of_ngrams

    def scores(self, texts: Sequence[str], weights: np.ndarray) -> np.ndarray:
        """What each caption of one picture is expected to earn, on CIDEr-D's scale.

        Args:
            texts: raw captions.
            weights: (N,), what `weights` gave for the picture.

        Returns:
            (len(texts),): the weighted sum, over the remembered pictures, of the mean, over their captions, of the
            cosine times CIDEr-D's Gaussian of the difference in length.
        """
        numbers, ids, owners, parts, lengths = self._said
        weigher, _ = self._vectors
        vectors = [weigher.vector(caption_ngrams(text)) for text in texts]
        known = [{numbers[n]: weight for n, weight in vector.unit_weights() if n in numbers} for vector in vectors]
        asked = np.unique([number for of_text in known for number in of_text]).astype(np.int64)  # (A,)
        place = np.full(len(numbers), -1)
        place[asked] = np.arange(len(asked))
        here = np.flatnonzero(place[ids] >= 0)  # of the M
        ids, owners, parts, lengths = place[ids[here]], owners[here], parts[here], lengths[here]
        sizes = np.arange(LONGEST + 1)  # (S,)
        said = np.bincount(ids * len(sizes) + lengths, parts * weights[owners], len(asked) * len(sizes))
        penalty = np.exp(-((sizes[:, None] - sizes) ** 2) / (2 * SIGMA**2))  # (S, S)
        expected = (
            said.reshape(len(asked), len(sizes)) @ penalty
        )  # (A, S): of an n-gram in a caption of each length
        found = [
            sum(weight * expected[place[number], min(vector.length, LONGEST)] for number, weight in of_text.items())
            for vector, of_text in zip(vectors, known, strict=True)
        ]
        return 10 / ORDERS * np.array(found)


def middle(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H, W): the middle of each picture, enlarged to the whole's size."""
    size = pixels.shape[-2:]
    high, wide = (max(1, round(MIDDLE * side)) for side in size)
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    part = pixels[..., top : top + high, left : left + wide]
    return torch.nn.functional.interpolate(part, tuple(size), mode="bicubic", align_corners=False)


def _length_one(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def _looks_alike(known: Tensor) -> Tensor:
    """(B, LOOKS, Dv) standardized -> (B, LOOKS Dv) of length one, each look of the same length."""
    return _length_one(_length_one(known).flatten(1))


def _in_8_bits(rows: Tensor) -> Tensor:
    """The directions of rows: the largest number of each becomes 127."""
    return (127 * rows / rows.abs().amax(-1, keepdim=True).clamp_min(1e-12)).round().to(torch.int8)
