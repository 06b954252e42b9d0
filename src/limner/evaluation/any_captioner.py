"""Any captioner that can be measured: Limner's own, and what else transformers loads.

`open_captioner` gives an object with ``describe(images, ...)``, as `limner.decoding.captioner.Captioner` has it.
Models of other makes are run by transformers' own ``generate``: encoder-decoders such as mozilla/distilvit, and
image-text models (BLIP, GIT, a LLaVA that is none of Limner's) that may need a prompt.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

from limner.data.images import ImageSource, load_image
from limner.decoding.captioner import Caption, load_captioner
from limner.device import Choice, choose
from limner.models.folder import PARTS
from limner.models.hub import load_stock, local_folder

PROMPT = "Describe the picture in one short sentence."
"""What a model that answers questions is asked, where its chat template wants a question."""


class Describes(Protocol):
    """What evaluation asks of a captioner."""

    tokenizer: Any

    def describe(self, images: Sequence[ImageSource], *, batch_size: int, **settings: Any) -> list[Caption]: ...


class GenerateCaptioner:
    """A captioner of another make, run by transformers' ``generate``."""

    def __init__(
        self, model: Any, image_processor: Any, tokenizer: Any, choice: Choice, processor: Any = None
    ) -> None:
        self.model = model.eval().to(choice.device, choice.dtype)
        self.image_processor, self.tokenizer, self.choice = image_processor, tokenizer, choice
        self.processor = processor
        """Set where the model takes text beside the picture."""

    def describe(
        self,
        images: Sequence[ImageSource],
        *,
        batch_size: int = 8,
        abstain_below: float | None = None,
        consensus: bool = True,
        **settings: Any,
    ) -> list[Caption]:
        """As `Captioner.describe`; settings are those of ``generate`` (num_beams, max_new_tokens). Models of other
        makes remember no captions: ``consensus`` changes nothing."""
        captions: list[Caption] = []
        for first in range(0, len(images), batch_size):
            said = self._batch([load_image(image) for image in images[first : first + batch_size]], settings)
            captions += [caption.if_sure(abstain_below) for caption in said]
        return captions

    @torch.inference_mode()
    def _batch(self, images: list[Any], settings: dict[str, Any]) -> list[Caption]:
        began = time.perf_counter()
        inputs = self._inputs(images)
        prompt = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        found = self.model.generate(
            **inputs, **settings, return_dict_in_generate=True, output_logits=True, output_scores=True
        )
        logprobs = self.model.compute_transition_scores(  # of the logits: before penalties and bans
            found.sequences, found.logits, getattr(found, "beam_indices", None), normalize_logits=True
        )  # (B, N)
        beam_scores = getattr(found, "sequences_scores", None)  # (B,)
        seconds = (time.perf_counter() - began) / len(images)
        eos = settings.get("eos_token_id", self.model.generation_config.eos_token_id)
        ends = set(eos) if isinstance(eos, (list, tuple)) else {eos}
        captions = []
        for row, ids in enumerate(found.sequences.tolist()):
            # An encoder-decoder's sequence begins with its start token, a decoder's with the prompt.
            tokens = ids[prompt or len(ids) - logprobs.shape[1] :]
            end = next((n for n, token in enumerate(tokens, 1) if token in ends), None)
            tokens = tokens[:end]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            chances = logprobs[row, : len(tokens)].tolist()
            score = sum(chances) / max(1, len(chances)) if beam_scores is None else float(beam_scores[row])
            captions.append(Caption(text, tokens, score, seconds, chances, "length" if end is None else "eos"))
        return captions

    def _inputs(self, images: list[Any]) -> dict[str, torch.Tensor]:
        if self.processor is None:
            given = self.image_processor(images, return_tensors="pt")
        elif getattr(self.processor, "chat_template", None):
            asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
            text = self.processor.apply_chat_template(asked, add_generation_prompt=True)
            given = self.processor(
                images=[[image] for image in images], text=[text] * len(images), return_tensors="pt"
            )
        else:
            given = self.processor(images=images, return_tensors="pt")
        device, dtype = self.choice.device, self.choice.dtype
        return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in given.items()}


def open_captioner(
    model: str | Path,
    device: str = "auto",
    precision: str = "auto",
    quantize: str | None = None,
    *,
    threads: int | None = None,
    revision: str | None = None,
) -> Describes:
    """Limner's own captioner where it is one, else whatever transformers makes of the model.

    Raises:
        FileNotFoundError, OSError: there is no such folder or hub id, or it lacks files.
        ValueError: it is no captioner, or lacks weights.
    """
    folder = local_folder(model, "captioner", revision)
    if _is_ours(folder):
        return load_captioner(folder, device, precision, quantize, threads=threads)
    if quantize is not None:
        raise ValueError(f"{model} is run by transformers, which is not quantized here; leave out --quantize.")
    choice = choose(device, "fp32" if precision == "auto" else precision, threads)
    config = load_stock(AutoConfig, folder, "captioner")
    if config.model_type == "vision-encoder-decoder":
        from transformers import VisionEncoderDecoderModel

        network = load_stock(VisionEncoderDecoderModel, folder, "captioner", dtype=torch.float32)
        words = load_stock(AutoTokenizer, folder, "tokenizer")
        pixels = load_stock(AutoImageProcessor, folder, "image processor", backend="pil")
        return GenerateCaptioner(network, pixels, words, choice)
    from transformers import AutoModelForImageTextToText

    network = load_stock(AutoModelForImageTextToText, folder, "captioner", dtype=torch.float32)
    processor = load_stock(AutoProcessor, folder, "processor", backend="pil")
    processor.tokenizer.padding_side = "left"
    return GenerateCaptioner(network, processor.image_processor, processor.tokenizer, choice, processor)


def _is_ours(folder: Path) -> bool:
    if (folder / PARTS).is_file():
        return True
    if not (folder / "config.json").is_file():
        return True  # what is missing is said by our own reader
    config = load_stock(AutoConfig, folder, "captioner")
    return config.model_type == "llava" and config.vision_feature_select_strategy == "full"


def fingerprint(model: str | Path, revision: str | None = None) -> str:
    """A digest of a model's weights and settings, by which a report can be traced to it."""
    folder = local_folder(model, "captioner", revision)
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors") and p.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
