"""From a picture to words in one call: `load_captioner(MODEL).caption(image)`."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from limner.data.images import ImageSource, PixelSettings, load_image
from limner.decoding import NOT_SURE, Decoded, Decoder, StepModel, get_decoder, is_sure, step_model
from limner.decoding.consensus import Consensus, middle
from limner.decoding.decoder import Cancel
from limner.decoding.rules import NOTHING
from limner.decoding.settings import BeamSettings, DecodingSettings, from_generation_config
from limner.decoding.weights import is_known
from limner.device import Choice, choose, multiplies
from limner.models.captioner import PrefixConditioningVLM
from limner.models.hub import local_folder
from limner.models.stock import read_captioner

DRAWS_A_BEAM = 4
"""Captions that are drawn beside each beam's, where a consensus chooses."""
DRAW_TEMPERATURE = 0.5

# Letters: B pictures, (H, W) pixels, P prefix tokens, Dv the encoder's width, D the language model's, N pictures
# that are remembered.


@dataclass(frozen=True)
class Caption:
    """What was said of one picture, and how surely."""

    text: str
    tokens: list[int]
    """The generated ids, the final end-of-text token included where there is one."""
    score: float
    """The decoder's own score: beam search's length-normalised sum of log-probabilities, greedy's mean."""
    seconds: float
    """Wall time from the picture to the words; of a batch, its share."""
    token_logprobs: list[float]
    """How likely the model itself held each token, before any penalty, ban, temperature or filter."""
    ending: str = "eos"
    """Why it ended: "eos", "stop" (a stop string), "length" (cut at max_new_tokens) or "cancelled"."""

    @property
    def mean_logprob(self) -> float:
        """Confidence: the mean log-probability of the tokens, NaN of none. ``abstain_below`` is held against it."""
        return sum(self.token_logprobs) / len(self.token_logprobs) if self.token_logprobs else math.nan

    def if_sure(self, abstain_below: float | None) -> Caption:
        """This caption; `NOT_SURE` in its words' place where its confidence is below."""
        return self if is_sure(self.mean_logprob, abstain_below) else replace(self, text=NOT_SURE)


class Captioner:
    """A model that is ready to caption.

    Args:
        vlm: the model, already where and in the precision it is to compute.
        choice: device, precision, threads and the reason, for those who want to tell.
        steps: how its language model is run step by step; None: as it is.
        consensus: what people said of the training pictures: it chooses among the captions of a beam search.
    """

    def __init__(
        self,
        vlm: PrefixConditioningVLM,
        choice: Choice | None = None,
        steps: StepModel | None = None,
        consensus: Consensus | None = None,
    ):
        self.vlm = vlm.eval()
        self.choice = choice
        self.tokenizer = vlm.tokenizer
        self.pixels = PixelSettings.from_processor_config(vlm.image_processor_config)
        self.steps = steps or step_model(vlm.language_model)
        self.consensus = consensus

    def caption(self, image: ImageSource, **settings: Any) -> str:
        """The words for one picture: a path, encoded bytes, a PIL image, or an array (H, W, 3) of uint8.

        Args:
            settings: as for `describe`, but for ``num_return_sequences``.

        Raises:
            FileNotFoundError, ValueError: the picture is not there or cannot be read, or a setting makes no sense.
        """
        return self.caption_batch([image], **settings)[0]

    def caption_batch(self, images: Sequence[ImageSource], **settings: Any) -> list[str]:
        """The words for each picture, in their order; settings and errors as for `caption`."""
        if settings.get("num_return_sequences") not in (None, 1):
            raise ValueError("This says one caption a picture; use describe for num_return_sequences.")
        return [caption.text for caption in self.describe(images, **settings)]

    def describe(
        self,
        images: Sequence[ImageSource],
        *,
        batch_size: int = 16,
        abstain_below: float | None = None,
        consensus: bool = True,
        cancel: Cancel | None = None,
        **settings: Any,
    ) -> list[Caption]:
        """The words for each picture, with tokens, scores and times.

        Args:
            batch_size: pictures that are computed at once.
            abstain_below: say "(not sure)" where the mean log-probability of the tokens is below this.
            consensus: where the model remembers what people said of its training pictures, say of the beams'
                captions and of four drawn ones a beam the one that would earn the most agreement.
            cancel: asked before every step. Once it says True, the captions of the batch at work end where they
                are (of a beam search the best that had ended, if one had), and later batches are left out.
            settings: of the decoder; those that are None or not given come from the model's generation
                configuration (three beams, 30 tokens). ``num_beams=1`` is greedy; a ``temperature`` above 0 draws,
                as in generate among the 50 likeliest tokens unless ``top_k`` says otherwise. What is drawn of a
                picture depends on its pixels and the seed, not on the batch.

        Returns:
            A caption a picture, in their order; ``num_return_sequences`` of a picture stand side by side, the best
            beams first.

        Raises:
            FileNotFoundError, ValueError: as for `caption`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed.")
        chooser = self.consensus if consensus else None
        settings = {name: value for name, value in settings.items() if value is not None}
        decoder = self._decoder(settings, proposes=chooser is not None)
        if not isinstance(decoder.settings, BeamSettings):
            chooser = None
        elif chooser is not None and settings.get("num_return_sequences", 1) != 1:
            raise ValueError(
                "The consensus chooses one caption a picture; set consensus=False for num_return_sequences."
            )
        captions: list[Caption] = []
        for first in range(0, len(images), batch_size):
            said = self._describe_batch(images[first : first + batch_size], decoder, chooser, cancel)
            captions += [caption.if_sure(abstain_below) for caption in said]
            if cancel is not None and cancel():
                break
        return captions

    @torch.inference_mode()
    def _describe_batch(
        self,
        images: Sequence[ImageSource],
        decoder: Decoder[Any],
        chooser: Consensus | None,
        cancel: Cancel | None,
    ) -> list[Caption]:
        began = time.perf_counter()
        pixels = torch.stack([self.pixels.pixels(load_image(image)) for image in images])  # (B, 3, H, W)
        features = self.vlm.features(pixels)  # (B, P, Dv)
        prompt = self.vlm.prompt_embeds(features)  # (B, P or P + 1, D)
        seen = self._prompt_ids(prompt)
        draws = getattr(decoder.settings, "temperature", 0) > 0
        names = [hashlib.sha256(picture.numpy()).hexdigest() for picture in pixels] if draws else None
        decoded = decoder.decode_full(self.steps, prompt, seen, row_ids=names, cancel=cancel)
        said = [(decoded, row) for row in range(len(decoded.tokens))]
        if chooser is not None:
            beams = len(said) // len(images)
            # One name for all rows: like pictures (a film's, say) are told in like words.
            drawn = self._drawer(decoder, beams).decode_full(
                self.steps, prompt, seen, row_ids=["picture"] * len(images), cancel=cancel
            )
            if "cancelled" in decoded.endings + drawn.endings:
                said = said[::beams]
            else:
                looks = [look.float().mean(1) for look in (features, self.vlm.features(middle(pixels)))]
                said = self._chosen(chooser, torch.stack(looks, 1), (decoded, drawn))
        seconds = (time.perf_counter() - began) / len(images)
        captions = []
        for decoded, row in said:
            tokens = decoded.tokens[row, : int(decoded.lengths[row])].tolist()
            captions.append(
                Caption(
                    text=str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip(),
                    tokens=tokens,
                    score=float(decoded.scores[row]),
                    seconds=seconds,
                    token_logprobs=decoded.token_logprobs[row, : len(tokens)].tolist(),
                    ending=decoded.endings[row],
                )
            )
        return captions

    def _chosen(self, chooser: Consensus, looks: Tensor, proposals: Sequence[Decoded]) -> list[tuple[Decoded, int]]:
        """Of each of B pictures (B, LOOKS, Dv), the proposal that is said: of which decode, and its row there."""
        chosen = []
        for n, picture in enumerate(looks):
            rows, texts = [], []
            for decoded in proposals:
                each = len(decoded.tokens) // len(looks)
                of_picture = slice(n * each, (n + 1) * each)
                rows += [(decoded, row) for row in range(of_picture.start, of_picture.stop)]
                texts += self.tokenizer.batch_decode(decoded.tokens[of_picture], skip_special_tokens=True)
            chosen.append(rows[int(chooser.scores(texts, chooser.weights(picture)).argmax())])
        return chosen

    def _drawer(self, decoder: Decoder[Any], beams: int) -> Decoder[Any]:
        """Draws some more captions to choose from, under the same bans and lengths as ``decoder``'s."""
        shared = {name: getattr(decoder.settings, name) for name in DecodingSettings.model_fields}
        drawing = {"temperature": DRAW_TEMPERATURE, "num_return_sequences": DRAWS_A_BEAM * beams}
        return get_decoder("sample", **drawing, tokenizer=self.tokenizer, **shared)

    def _prompt_ids(self, prompt: Tensor) -> Tensor | None:
        """What penalties and bans see of the prompt (B, P, D), as in generate: BOS, where it ends with that. Image
        tokens, which are never said, make no difference."""
        if self.vlm.bos_id is None:
            return None
        ids = torch.full(prompt.shape[:2], NOTHING, device=prompt.device)
        ids[:, -1] = self.vlm.bos_id
        return ids

    def _decoder(self, settings: dict[str, Any], proposes: bool) -> Decoder[Any]:
        """Greedy, sampling or beams, by what the settings ask for over the model's own generation configuration.

        Args:
            proposes: beam search gives all of its captions, to choose from.
        """
        config = self.vlm.generation_config
        asked: dict[str, Any] = {
            "max_new_tokens": config.max_new_tokens or 30,
            "num_return_sequences": 1,
        } | settings
        if settings.get("temperature"):
            asked.setdefault("num_beams", 1)
        kind, values = from_generation_config(config, **asked)
        if kind is BeamSettings:
            values.pop("temperature", None)  # 0: nothing is drawn
            if proposes:
                values["num_return_sequences"] = values["num_beams"]
            name = "beam"
        else:
            name = "sample" if values.get("temperature") else "greedy"
        decoder = get_decoder(name, tokenizer=self.tokenizer, **values)
        room, longest = self.vlm.room_for_caption, decoder.settings.max_new_tokens
        if room is not None and longest > room:
            raise ValueError(f"The model has positions for captions of {room} tokens, and {longest} are asked for.")
        return decoder


def load_captioner(
    model: str | Path,
    device: str = "auto",
    precision: str = "auto",
    quantize: str | None = None,
    *,
    threads: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Captioner:
    """A captioner from a model directory or a hub id.

    In another precision than fp32, or quantized, encoder and language model are held once, packed: of ``vlm`` the
    matrices are then gone, and all it can do is caption.

    Args:
        model: a folder that `limner train` wrote (a stock LLaVA checkpoint, or stock parts), or a hub id.
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "mps".
        precision: "auto" is fp32, in which the words are those of stock runtimes; "bf16" is faster where the
            machine multiplies it faster; "fp16" on GPUs.
        quantize: "int8": the language model's matrices in 8 bits.
        threads: CPU threads; None: as torch has it.
        revision: of a hub id.
        cache_dir: where hub downloads are kept.

    Raises:
        FileNotFoundError: the folder does not exist or lacks a file.
        OSError: a hub id cannot be had.
        ValueError: not a captioner; weights are missing; the device or precision is not to be had here.
    """
    if revision is not None and Path(model).is_dir():
        raise ValueError(f"A revision is of a hub id, and {model} is a folder; leave it out.")
    choice = choose(device, "fp32" if precision == "auto" else precision, threads)
    folder = local_folder(model, "captioner", revision, cache_dir)
    vlm = read_captioner(folder)
    # Where a CPU does not multiply 16 bits, only the language model's matrices are kept in them: the encoder would
    # be slower than in fp32.
    native = multiplies(choice.dtype, choice.device) or not is_known(vlm.language_model)
    vlm.keep_frozen_in(choice.dtype if native else torch.float32)
    vlm.to(choice.device)
    release = quantize is not None or choice.dtype != torch.float32
    if release and choice.device.type == "cpu":
        _leave_file(vlm)
    vlm.pack_encoder(release)
    dtype = None if native else choice.dtype
    steps = step_model(vlm.language_model, dtype=dtype, quantize=quantize, release=release)
    return Captioner(vlm, choice, steps, Consensus.load(folder, vlm.projection.linear_1.in_features))


def _leave_file(vlm: PrefixConditioningVLM) -> None:
    """Weights that were read are views of a mapped file, which stays in memory as a whole while one of them is in
    use. All that is not to be packed gets memory of its own."""
    words = vlm.embed_tokens.weight
    maps = [m for part in (vlm.encoder, vlm.decoder) for m in part.modules() if type(m) in (nn.Linear, Conv1D)]
    packable = {id(module.weight) for module in maps}
    for parameter in vlm.parameters():
        if parameter is words or id(parameter) not in packable:
            parameter.data = parameter.data.clone()
