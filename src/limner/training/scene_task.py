"""The demo's task: a captioner from nothing on endless scenes, with help that only training sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from limner.config.demo import DemoConfig
from limner.data.images import PixelSettings
from limner.data.packing import caption_tokens, pack_captions
from limner.data.scenes import PIXELS, Scene, make_scene, vocabulary
from limner.evaluation import cider_d
from limner.models.captioner import PrefixConditioningVLM, build_captioner
from limner.models.trained import TrainedStack
from limner.training.caption_inputs import pixel_inputs
from limner.training.caption_task import CaptionLoss, CaptionTask
from limner.training.scene_help import UNTOLD, CellHeads, cell_labels
from limner.training.scratch import scratch_decoder, scratch_encoder, scratch_tokenizer
from limner.training.task import Batch, ParameterGroup, Progress

TOKENIZER_SCENES = 2000
"""Scenes of whose captions the tokenizer is made; every word of the grammar becomes one token."""


def build_scene_captioner(seed: int, say: Callable[[str], None] = print) -> PrefixConditioningVLM:
    """The demo's captioner: LeViT -> mlp projection -> Llama, all random, 16 prefix tokens.

    The stem's kernels are 4 wide: a convolution tells where it is by the padding that it sees, and LeViT has no
    other sense of place. With kernels of 3 the inner patches see no padding, and relations are learned late.
    """
    words = scratch_tokenizer(text for index in range(TOKENIZER_SCENES) for text in make_scene(index).captions())
    return build_captioner(
        scratch_encoder(PIXELS, width=128, depth=2, num_heads=4, kernel_size=4),
        scratch_decoder(width=128, depth=2, num_heads=4, expansion=2),
        "mlp",
        tokenizer=words,
        seed=seed,
        say=say,
    )


class SceneLoss(CaptionLoss):
    """The caption loss, and that of the helping heads where there are labels for them."""

    def __init__(self, vlm: PrefixConditioningVLM, help_weight: float) -> None:
        super().__init__(vlm)
        self.help_weight, self.untold_logit = help_weight, UNTOLD
        if help_weight:
            self.heads = CellHeads(vlm.projection.linear_1.in_features)

    def forward(  # type: ignore[override]
        self,
        picture: torch.Tensor,
        cells: torch.Tensor | None = None,
        untold_answers: torch.Tensor | None = None,
        **captions: torch.Tensor,
    ) -> torch.Tensor:
        """(2): the captions' loss, as of `CaptionLoss`, and the heads', which is 0 where there is no help.

        Both are later divided by the number of labels, so the heads' mean is multiplied by it here.

        Args:
            cells: (N, P, F) and ``untold_answers``: (N, P, A), the heads' `cell_labels`.
        """
        # Channels last in memory: so the stem's convolutions are a sixth faster on CPUs.
        features = self.vlm.features(picture.contiguous(memory_format=torch.channels_last))  # (N, P, Dv)
        loss = super().forward(features[: len(captions["row_images"])], **captions)  # the first ones are captioned
        if cells is None or not self.help_weight:
            return torch.stack([loss, torch.zeros_like(loss)])
        help = self.help_weight * captions["labels"].numel() * self.heads(features, cells, untold_answers)
        return torch.stack([loss, help])


class SceneTask(CaptionTask):
    """Every step draws scenes that no step drew before; the picture's index is its place in the run."""

    directions: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "exact_match": "max",
        "exact_match_unseen": "max",
        "CIDEr": "max",
    }

    def __init__(self, config: DemoConfig, say: Callable[[str], None] = print) -> None:
        self.config: DemoConfig = config  # type: ignore[assignment]
        self.say = say

    def prepare(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        config = self.config
        self.vlm = build_scene_captioner(config.seed, self.say).to(device)
        self.compute_dtype = precision
        self.grid = int(self.vlm.num_prefix_tokens**0.5)
        torch.manual_seed(config.seed)
        self.model = self.captioner = SceneLoss(self.vlm, config.help_weight).to(device)
        if precision == torch.float32 and not config.shard:
            self.captioner.stack = TrainedStack(self.vlm.language_model)  # type: ignore[assignment]
        encode = self.vlm.tokenizer.encode
        self.word_ids = {word: encode(word, add_special_tokens=False)[0] for word in vocabulary()}
        self.pixels = PixelSettings.from_processor_config(self.vlm.image_processor_config)
        self.num_examples = config.steps * config.batch_size
        half = config.eval_images // 2
        self.validation = [make_scene(i, "validation", config.seed) for i in range(half)]
        self.validation += [make_scene(i, "validation-held-out", config.seed) for i in range(half)]
        self.records = {"validation": [scene.record() for scene in self.validation]}
        self.inputs, self.records = pixel_inputs(self.records, self.pixels, progress)

    def facts(self) -> dict[str, Any]:
        return {
            "parts": self.vlm.parameter_counts(),
            "captions_per_picture": self.config.captions_per_scene,
            "validation_pictures": len(self.validation),
            "prefix_tokens": self.vlm.num_prefix_tokens,
            "inputs": "scenes, drawn as they are needed",
            "baselines": {"ln_vocabulary": float(np.log(len(self.vlm.tokenizer)))},
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Muon for the matrices between hidden states, AdamW for all else.

        Embeddings are tables, not maps, attention biases are too, the helping heads' outputs are no hidden states,
        and Muon's orthogonal steps are defined for matrices only, not for convolutions.
        """
        config = self.config
        members: dict[str, list[tuple[str, nn.Parameter]]] = {"matrices": [], "rest": []}
        for name, parameter in self.model.named_parameters():
            inner = parameter.dim() == 2 and not any(word in name for word in ("embed", "biases", "heads"))
            members["matrices" if inner else "rest"].append((name, parameter))
        return [
            ParameterGroup("matrices", members["matrices"], config.learning_rate, config.weight_decay, "muon"),
            ParameterGroup("rest", members["rest"], config.learning_rate, config.weight_decay),
        ]

    def arrange(self, permutation: np.ndarray, epoch: int) -> np.ndarray:
        """Scenes come in the order of their numbers: they are random already."""
        return np.arange(len(permutation))

    def example_id(self, index: int) -> str:
        return f"scene-{self.config.seed}-train-{index:06d}"

    def batch(self, indices: Sequence[int], seed: int, split: str = "train") -> Batch:
        """Training: some captions of each scene, the labels of the helping heads, and what training never shows in
        the place of either (see `limner.training.scene_help`). Validation: all captions."""
        if split == "validation":
            scenes = [self.validation[index] for index in indices]
            captions = [self.records[split][index].captions for index in indices]
        else:
            scenes = [make_scene(index, "train", self.config.seed) for index in indices]
            captioned = scenes[: self._num_captioned(indices)]
            captions = [scene.captions(self.config.captions_per_scene) for scene in captioned]
        words = self.vlm.tokenizer
        eos, pad = int(words.eos_token_id), int(words.pad_token_id)
        texts = [text for of_scene in captions for text in of_scene]
        encoded = words(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        encode = dict(zip(texts, encoded, strict=True)).__getitem__
        tokens = [caption_tokens(of_scene, encode, eos, self.config.max_length)[0] for of_scene in captions]
        packed = pack_captions(tokens, self.vlm.num_prompt_tokens, pad_id=pad)
        tensors = packed.tensors()
        del tensors["label_captions"]
        pictures = np.stack([scene.picture() for scene in scenes])  # (N, H, W, 3) uint8, of the encoder's size
        tensors["picture"] = self.pixels.normalize(torch.from_numpy(pictures))
        if split == "train":
            tensors["cells"], tensors["untold_answers"] = cell_labels(scenes, self.grid)
            tensors["untold"] = self._untold(captioned, captions, tokens)
        return Batch(tensors, len(packed.labels), packed.num_captions, [scene.image_id for scene in scenes])

    def _untold(
        self, scenes: Sequence[Scene], captions: Sequence[Sequence[str]], tokens: Sequence[Sequence[Sequence[int]]]
    ) -> torch.Tensor:
        """(U, 2) int64: the label's number in the batch, and a token that training never shows in its place."""
        untold, labels = [], 0
        for scene, texts, ids in zip(scenes, captions, tokens, strict=True):
            for text, of_text in zip(texts, ids, strict=True):
                pairs = ((place, self.word_ids[word]) for place, word in scene.untold(text) if place < len(of_text))
                untold += [(labels + place, token) for place, token in pairs]
                labels += len(of_text)
        return torch.tensor(sorted(untold), dtype=torch.int64).view(-1, 2)

    def _num_captioned(self, indices: Sequence[int]) -> int:
        """How many scenes of a training batch are captioned; the helping heads see them all."""
        early = indices[0] < self.config.seeing_first * self.num_examples
        return -(-len(indices) // 4) if early else len(indices)

    def loss(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The captions' loss; in training `figures` tell the heads' (``help_loss``), weighted and a word."""
        captions, help = super().loss(model, tensors)
        told = {"help_loss": float(help.detach()) / len(tensors["labels"])}
        self.auxiliary_loss, self.figures = help, told if "cells" in tensors else {}
        return captions

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Exact match on both kinds of validation scenes, and CIDEr-D over all of them."""
        captions = self._captions(model, range(len(self.validation)))
        accepted = [scene.accepts(text) for scene, text in zip(self.validation, captions, strict=True)]
        half = len(accepted) // 2
        references = {record.image_id: record.captions for record in self.records["validation"]}
        cider, _ = cider_d(dict(zip(references, captions, strict=True)), references)
        return {
            "exact_match": sum(accepted[half:]) / half,
            "exact_match_unseen": sum(accepted[:half]) / half,
            "CIDEr": cider,
        }
