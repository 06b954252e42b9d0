"""Learning from the score itself: self-critical training (Rennie et al. 2017, arXiv:1612.00563).

Cross-entropy teaches all that people wrote of a picture; CIDEr-D rewards what most of them would write. So a
captioner that has learned from words goes on like this: it captions each picture K times by drawing its words; each
caption is scored against the people's, and made likelier where it is better than the mean of the picture's other
K - 1, less likely where it is worse (Luo 2020, arXiv:2003.09971). No gradient goes through the score.

Words are drawn at a temperature below 1, and it is this sharper distribution that is taught. At 1 a caption of ten
words almost always holds one that hardly fits, though beams would never say it, and the first thousand steps go
into unlearning such words; at 0.5 the draws are what beams choose from (docs/LOG.md).

N: pictures of a batch. K: captions drawn of each. L: their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn

from limner.data.packing import pack_captions
from limner.decoding import get_decoder, step_model
from limner.evaluation.cider import CiderD
from limner.training.caption_task import CaptionTask
from limner.training.task import Batch, Progress
from limner.words.ngrams import caption_ngrams


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(N, K) -> (N, K): how much better each caption is than the mean of the picture's others."""
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


class SelfCriticalTask(CaptionTask):
    """A trained captioner, taught by CIDEr-D. Validation is that of `CaptionTask`, its ``eval_loss`` too, which
    may well rise: likely words are no longer what is learned."""

    def prepare(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        super().prepare(device, precision, progress)
        self.captioner.temperature = self.config.sample_temperature

    def _most_in_a_row(self) -> int:
        return max(super()._most_in_a_row(), self.config.samples_per_picture)

    @cached_property
    def cider(self) -> CiderD:
        """Scores captions of the training pictures."""
        return CiderD([[caption_ngrams(text) for text in record.captions] for record in self.records["train"]])

    def batch(self, indices: Sequence[int], seed: int, split: str = "train") -> Batch:
        """Training: the pictures, and which they are; their captions are drawn when the weights are known."""
        if split != "train":
            return super().batch(indices, seed, split)
        tensors = {"picture": self.inputs[split].read(indices, seed), "examples": torch.tensor(list(indices))}
        drawn = len(indices) * self.config.samples_per_picture
        return Batch(tensors, drawn, drawn, [self.example_id(index) for index in indices])

    def loss(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Training: minus the advantage of each drawn caption times its log-probability, summed over captions.
        `figures` then tell their ``reward``: the mean CIDEr-D."""
        if "examples" not in tensors:
            self.figures = {}
            return super().loss(model, tensors)
        vlm, K = self.vlm, self.config.samples_per_picture
        picture = tensors["picture"]
        features, drawn = self._draw(picture)
        if vlm.encoder_is_frozen:
            picture = features  # an open one learns from the pixels
        captions = [drawn[start : start + K] for start in range(0, len(drawn), K)]
        rewards = torch.tensor(self._rewards(tensors["examples"].tolist(), captions))  # (N, K)
        self.figures = {"reward": float(rewards.mean())}
        packed = pack_captions(
            captions, vlm.num_prompt_tokens, pad_id=int(vlm.tokenizer.pad_token_id), pack=self.captioner.packs
        )
        words = packed.tensors()
        words["weights"] = advantages(rewards).flatten()[words.pop("label_captions")]  # (L,)
        return super().loss(model, {name: t.to(picture.device) for name, t in words.items()} | {"picture": picture})

    @torch.no_grad()
    def _draw(self, picture: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
        """The features of pixels or features, (N, P, Dv), and N * K captions' token ids, the end-of-text token
        included where one was drawn in time."""
        vlm, device = self.vlm, picture.device.type
        was_training = self.model.training
        self.model.eval()
        decoder = get_decoder(
            "sample",
            temperature=self.config.sample_temperature,
            max_new_tokens=self.config.max_length,
            num_return_sequences=self.config.samples_per_picture,
            suppress_tokens=tuple(vlm.generation_config.suppress_tokens or ()),
            seed=int(torch.randint(2**31, ())),  # from the generator that every micro-batch seeds anew
        )
        with torch.autocast(device, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            features = picture if picture.dim() == 3 else self.captioner.features(picture)
            found = decoder.decode_full(
                step_model(vlm.decoder), vlm.prompt_embeds(features), row_ids=range(len(features))
            )
        self.model.train(was_training)
        drawn = [row[:length] for row, length in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)]
        return features, drawn

    def _rewards(self, examples: Sequence[int], captions: list[list[list[int]]]) -> list[list[float]]:
        """CIDEr-D of each picture's drawn captions against all of its references."""
        rewards = []
        for example, of_picture in zip(examples, captions, strict=True):
            texts = self.vlm.tokenizer.batch_decode(of_picture, skip_special_tokens=True)
            references = self.cider.vectors[example]
            scores = {text: self.cider.score(caption_ngrams(text), references) for text in set(texts)}
            rewards.append([scores[text] for text in texts])
        return rewards
