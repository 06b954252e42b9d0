"""Of several captions the one that people would most agree on: judged by what they said of pictures like this one.

A captioner's likeliest caption is not its best: likely are short and general ones. What earns agreement (CIDEr-D)
can be estimated without the decoder. The score of a caption is, but for clipping and the length penalty, a scalar
product of its n-grams' tf-idf vector with the mean vector of what people said of the picture; and that mean can be
predicted from the picture's features by kernel ridge regression over the training pictures, in closed form. So the
decoder proposes, and the regression chooses. Captions of near pictures were used so by Devlin et al. 2015
(arXiv:1505.04467), who took the neighbours' own captions and gave each the same weight.

N: remembered pictures. Dv: the encoder's width. B: other pictures. G: n-grams of all remembered captions.
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

from limner.evaluation.cider import CiderD, caption_ngrams
from limner.evaluation.ngrams import ORDERS, Ngram, count_ngrams
from limner.evaluation.ptb import ptb_tokenize

MOST_PICTURES = 5_000
"""Remembered; of more, as many drawn evenly: the regression's matrix is N x N."""
SHARPNESS = 2.0
"""Of the kernel exp(SHARPNESS (cosine - 1)) between two pictures."""
RIDGE = 0.5
"""Added to the kernel's diagonal."""
FOLDER = "consensus"
"""Of a model's folder. Stock tools do not look there."""


class Consensus:
    """What people said of the training pictures, to choose between captions of a new one.

    Args:
        mean, deviation: (Dv,) of the training pictures' features, each the mean over a picture's image tokens.
        pictures: (N, Dv) int8: each remembered picture's standardized features, the largest of them 127. Only their
            direction counts.
        captions: of each of the N pictures, tokenized as CIDEr-D does it, words between single spaces.

    Raises:
        ValueError: the parts do not fit together.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, pictures: Tensor, captions: Sequence[Sequence[str]]
    ) -> None:
        whole = pictures.dtype == torch.int8 and pictures.dim() == 2 and len(pictures) <= MOST_PICTURES
        if not whole or not mean.shape == deviation.shape == pictures.shape[1:]:
            raise ValueError("features of these shapes and types are not what was saved")
        if not mean.isfinite().all() or not (deviation.isfinite() & (deviation > 0)).all():
            raise ValueError("its features have no finite mean and deviation")
        if len(captions) != len(pictures) or not all(captions):
            raise ValueError(f"{len(pictures)} pictures need captions, and {len(captions)} have some")
        self.mean, self.deviation, self.pictures, self.captions = mean, deviation, pictures, captions

    @classmethod
    def of(cls, features: Tensor, captions: Sequence[Sequence[str]]) -> Consensus:
        """From training pictures.

        Args:
            features: (N, Dv), each the mean over a picture's image tokens.
            captions: raw, of each.
        """
        features = features.float()
        mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-3)
        chosen = torch.arange(len(features))
        if len(chosen) > MOST_PICTURES:
            chosen = torch.linspace(0, len(chosen) - 1, MOST_PICTURES).round().long()
        known = (features[chosen] - mean) / deviation  # (N, Dv)
        pictures = (127 * known / known.abs().amax(1, keepdim=True).clamp_min(1e-12)).round().to(torch.int8)
        return cls(
            mean, deviation, pictures, [[ptb_tokenize(text) for text in captions[n]] for n in chosen.tolist()]
        )

    def save(self, model: Path) -> None:
        """Writes it into the model's folder: N (Dv + about 250) bytes."""
        folder = model / FOLDER
        folder.mkdir(exist_ok=True)
        tensors = {"mean": self.mean, "deviation": self.deviation, "pictures": self.pictures}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "features.safetensors")
        (folder / "captions.json").write_text(json.dumps(self.captions, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, model: str | Path, width: int) -> Consensus | None:
        """What `save` wrote; None where there is none.

        Raises:
            ValueError: the files are something else, or of an encoder of another width than ``width``.
        """
        folder = Path(model) / FOLDER
        if not folder.is_dir():
            return None
        try:
            tensors = load_file(folder / "features.safetensors")
            captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
            if not all(isinstance(text, str) for group in captions for text in group):
                raise ValueError("captions.json holds other things than captions")
            if tensors["mean"].shape != (width,):
                raise ValueError(f"it is not of an encoder of width {width}")
            return cls(tensors["mean"], tensors["deviation"], tensors["pictures"], captions)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder} cannot be used ({error}); delete that folder, and the model captions without it."
            ) from error

    def _direction(self, known: Tensor) -> Tensor:
        """(..., Dv) -> (..., Dv) of length one."""
        return torch.nn.functional.normalize(known.float(), dim=-1)

    def _kernel(self, directions: Tensor) -> Tensor:
        """(B, Dv) of length one -> (N, B)."""
        return torch.exp(SHARPNESS * (self._remembered @ directions.mT - 1))

    @cached_property
    def _remembered(self) -> Tensor:
        return self._direction(self.pictures)  # (N, Dv)

    @cached_property
    def _factor(self) -> Tensor:
        """The Cholesky factor (N, N) of kernel and ridge."""
        return torch.linalg.cholesky(self._kernel(self._remembered) + RIDGE * torch.eye(len(self.pictures)))

    def weights(self, features: Tensor) -> np.ndarray:
        """How much each remembered picture tells of a new one: (Dv,) mean features -> (N,)."""
        direction = self._direction((features.float().cpu() - self.mean) / self.deviation)
        return torch.cholesky_solve(self._kernel(direction[None]), self._factor)[:, 0].numpy()

    @cached_property
    def _scorer(self) -> CiderD:
        return CiderD([[count_ngrams(text.split()) for text in group] for group in self.captions])

    @cached_property
    def _said(self) -> tuple[dict[Ngram, int], np.ndarray, np.ndarray, np.ndarray]:
        """A number for each n-gram (G), and of each n-gram of each caption: its number, its picture, its weight."""
        numbers: dict[Ngram, int] = {}
        ids, owners, weights = [], [], []
        for n, group in enumerate(self._scorer.vectors):
            for vector in group:
                for ngram, weight in vector.unit_weights():
                    ids.append(numbers.setdefault(ngram, len(numbers)))
                    owners.append(n)
                    weights.append(weight / len(group))
        return numbers, np.array(ids, np.int64), np.array(owners, np.int64), np.array(weights, np.float64)

    def scores(self, texts: Sequence[str], weights: np.ndarray) -> np.ndarray:
        """What each caption of one picture is expected to earn, on CIDEr-D's scale.

        Args:
            texts: raw captions.
            weights: (N,), what `weights` gave for the picture.

        Returns:
            (len(texts),): the weighted sum, over the remembered pictures, of the mean cosine with their captions.
        """
        numbers, ids, owners, parts = self._said
        expected = np.bincount(ids, parts * weights[owners], len(numbers))  # (G,)
        found = []
        for text in texts:
            vector = self._scorer.vector(caption_ngrams(text))
            known = ((numbers.get(ngram), weight) for ngram, weight in vector.unit_weights())
            found.append(sum(weight * expected[number] for number, weight in known if number is not None))
        return 10 / ORDERS * np.array(found)
