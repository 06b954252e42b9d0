"""Learning to caption: pictures (or their cached features) and packed captions, to the loss of the captions' words.

N: pictures of a batch. P: prompt length. T: caption tokens in the longest row. S = P + T. D: the language model's
width. Dv: the encoder's. L: labels. V: vocabulary.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F

from limner.config.train import TrainConfig
from limner.data.images import PixelSettings, load_image
from limner.data.packing import LengthBuckets, block_mask, caption_tokens, flex_block_mask, pack_captions
from limner.data.records import Record, Splits
from limner.decoding import get_decoder, step_model
from limner.decoding.consensus import MOST_PICTURES, Consensus
from limner.device import compiles, require_compiler
from limner.evaluation import Scorer
from limner.evaluation.meteor import Meteor, find_meteor
from limner.models.adapted import AdaptedStack, NotAdapted
from limner.models.captioner import PrefixConditioningVLM
from limner.models.decoder import attention_windows, plain_head
from limner.models.stock import expressible, save_adapter, save_captioner
from limner.training.caption_inputs import LOOKS_AT, FeatureInputs, Look, prepare_inputs
from limner.training.caption_model import build_model, checkpoint_activations
from limner.training.chunked_loss import summed_cross_entropy
from limner.training.ridge_start import start_projection
from limner.training.task import Batch, ParameterGroup, Progress, Task, fingerprint
from limner.whole_files import write_whole

COMPILE_FROM_OPERATIONS = 1e14
"""Runs on a CPU with more operations than this are compiled: some minutes of computing. On GPUs, where nothing of
this has been measured, only those that ask for it."""
MEAN_PICTURES = 20_000
"""To which the projection's start is fitted, at most."""
PACKING = ("llama", "mistral", "qwen2", "gpt2")
"""Families that the tests hold to computing of packed captions what they compute of each alone."""
NUM_PROBES = 6
PROBE_SIZE = 384


class CaptionLoss(nn.Module):
    """The captioner with its loss: what is trained, and what DDP wraps."""

    def __init__(self, vlm: PrefixConditioningVLM) -> None:
        super().__init__()
        self.vlm = vlm
        self.stack: AdaptedStack | None = None
        """The decoder as it is trained fastest; None: as transformers runs it."""
        self.packs = True
        """Rows hold all captions of a picture; False: one each, and transformers makes the mask."""
        self.flex = False
        """Attention by FlexAttention, which skips blocks that nothing looks at, instead of a dense mask."""
        self.untold_logit = 0.0
        """What is added to the logit of an untold token."""
        self.temperature = 1.0
        """Of the distribution whose log-probabilities are weighted."""

    def adapt(self) -> None:
        """Takes the fast stack where it computes such a decoder. The model must stand where it is to train."""
        try:
            self.stack = AdaptedStack(self.vlm.language_model)
        except NotAdapted:
            self.stack = None

    def compile_decoder(self) -> None:
        """Compiles the decoder's layers and, on GPUs, FlexAttention; `adapt` must have found a stack."""
        assert self.stack is not None
        self.stack.compile()
        self.flex = self.vlm.device.type == "cuda" and self.stack.can_flex

    def forward(
        self,
        picture: torch.Tensor,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        document_ids: torch.Tensor,
        label_positions: torch.Tensor,
        labels: torch.Tensor,
        row_images: torch.Tensor,
        weights: torch.Tensor | None = None,
        untold: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The summed cross-entropy of ``labels``; the head runs on their positions only.

        Args:
            picture: (N, P, Dv) cached features, or (N, 3, H, W) pixels. The rest: see `PackedCaptions`.
            weights: (L,) what each label's cross-entropy, at `temperature`, is multiplied by; None: 1.
            untold: (U, 2) pairs of a label's number and a token whose logit there gets `untold_logit` added.
        """
        vlm = self.vlm
        features = picture if picture.dim() == 3 else self.features(picture)  # (N, P, Dv)
        prompt = vlm.prompt_embeds(features)[row_images]  # (B, P, D)
        embeds = torch.cat([prompt, vlm.embed_tokens(input_ids)], dim=1)  # (B, S, D)
        if self.stack is None:
            if self.packs:
                mask = self._packed_mask(document_ids, position_ids, embeds.dtype)
            else:
                mask = (document_ids < 2).long()  # (B, S): behind the one caption there is padding
            states = vlm.hidden_states(embeds, mask, position_ids)  # (B, S, D)
            hidden = states.flatten(0, 1)[label_positions]  # (L, D)
        else:
            blocks = flex_block_mask(document_ids) if self.flex else block_mask(document_ids, embeds.dtype)
            hidden = self.stack(embeds, blocks, position_ids, label_positions, self.training)  # (L, D)
        if weights is not None:
            logits = vlm.head(hidden).float() / self.temperature  # (L, V)
            losses = F.cross_entropy(logits, labels, reduction="none")  # (L,)
            return (losses * weights).sum()
        matrix = plain_head(vlm.language_model)
        if matrix is not None and not matrix.requires_grad and untold is None:
            compiled = self.training and self.stack is not None and self.stack.is_compiled
            return summed_cross_entropy(hidden, matrix, labels, compiled=compiled)
        logits = vlm.head(hidden).float()  # (L, V)
        if untold is not None:
            logits = logits.index_put(tuple(untold.mT), logits.new_tensor(self.untold_logit), accumulate=True)
        return F.cross_entropy(logits, labels, reduction="sum")

    def _packed_mask(
        self, document_ids: torch.Tensor, position_ids: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """(B, 1, S, S) for the decoder as transformers runs it, or one for each type of layer."""
        windows = attention_windows(self.vlm.language_model)
        masks = {of: block_mask(document_ids, dtype, position_ids, window) for of, window in windows.items()}
        return masks.get("", masks)

    @torch.no_grad()
    def packs_exactly(self, captions: int, length: int) -> bool:
        """Whether the last of so many captions of a row computes what it computes alone, under the decoder's own
        mask. It does not where a layer counts places in the row: a convolution, a recurrence, ALiBi.

        Call it in fp32. ``length``: of each caption, in tokens. Of families in `PACKING` nothing is computed.
        """
        if self.vlm.language_model.config.model_type in PACKING:
            return True
        vlm, P = self.vlm, self.vlm.num_prompt_tokens
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(len(vlm.tokenizer), (P + captions * length,), generator=generator)
        prompt, texts = tokens[:P], tokens[P:].view(captions, length)
        row = pack_captions([texts.tolist()], P)
        embeds = vlm.embed_tokens(torch.cat([prompt[None], row.input_ids], 1).to(vlm.device))  # (1, S, D)
        document_ids, position_ids = row.document_ids.to(vlm.device), row.position_ids.to(vlm.device)
        own = (document_ids[0] == 0) | (document_ids[0] == captions)  # (S,)
        was_training = self.training
        self.eval()
        alone = vlm.hidden_states(embeds[:, own])
        try:
            mask = self._packed_mask(document_ids, position_ids, embeds.dtype)
            packed = vlm.hidden_states(embeds, mask, position_ids)[:, own]
        except (ValueError, TypeError, RuntimeError):  # the family takes no mask of this form
            return False
        finally:
            self.train(was_training)
        return bool((packed - alone).norm() < 1e-3 * alone.norm())

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, P, Dv). A frozen encoder's are rounded as the cache rounds them, so that a run gives
        the same losses with the cache and without."""
        features = self.vlm.features(pixels)
        return features.half() if self.vlm.encoder_is_frozen else features


class CaptionTask(Task):
    """A captioner from records of pictures and captions.

    Args:
        config: settings, presets filled in.
        load_records: gives the splits; called once, in `prepare`.
        build: gives the model, from the settings and the training captions.
        say: told what a person should know, a sentence each.
    """

    kind, unit = "caption", "captions"
    counted: ClassVar[Mapping[str, str]] = {
        "captions": "training data",
        "captions_per_picture": "training data",
        "validation_pictures": "validation data",
    }
    directions: ClassVar[Mapping[str, Literal["min", "max"]]] = {"CIDEr": "max", "ROUGE_L": "max", "METEOR": "max"}

    def __init__(
        self,
        config: TrainConfig,
        load_records: Callable[[Progress], Splits],
        build: Callable[..., PrefixConditioningVLM] = build_model,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self.load_records, self.build, self.say = config, load_records, build, say

    # -- preparation -----------------------------------------------------------------------------------------

    def load(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        """Records and model, but no picture yet."""
        config = self.config
        splits = self.load_records(progress)
        self.records: dict[str, list[Record]] = {
            "train": _sampled(splits.train, config.sample, config.seed),
            "validation": _sampled(splits.validation, config.sample and max(2, config.sample // 10), config.seed),
        }
        for split, records in self.records.items():
            if not records:
                raise ValueError(
                    f"The {split} split is empty; give more pictures. (What a data set names validation or test is "
                    "not trained on.)"
                )
        captions = [caption for record in self.records["train"] for caption in record.captions]
        self.vlm = self.build(config, captions, self.say)
        room = self.vlm.room_for_caption
        if room is not None and config.max_length > room:
            taken = self.vlm.num_prompt_tokens
            raise ValueError(
                f"--max-length {config.max_length} is beyond the decoder's positions: the picture takes {taken} of "
                f"its {taken + room - 1}, which leaves {room} (the last token needs none); lower --max-length, or "
                f"take a decoder that was pretrained with --context-length {taken + config.max_length - 1} or more."
            )
        self.vlm.generation_config.num_beams = config.num_beams
        self.vlm.generation_config.max_new_tokens = config.max_length
        can, reason = expressible(self.vlm)
        if not can:
            self.say(reason)
        self.model = self.captioner = CaptionLoss(self.vlm)
        packs = config.pack is not False and self.captioner.packs_exactly(self._most_in_a_row(), config.max_length)
        self.captioner.packs = packs
        # A frozen base is kept in the fast precision; what is trained keeps fp32 master weights.
        self.compute_dtype = precision
        if precision != torch.float32:
            self.vlm.keep_frozen_in(precision)
        self.vlm.to(device)
        if not config.shard:
            # Packed weights cannot be copied, and a sharded layer must be called as the module that it is.
            self.vlm.pack_encoder()
            self.captioner.adapt()
        self.pixels = PixelSettings.from_processor_config(self.vlm.image_processor_config)

    def _most_in_a_row(self) -> int:
        """Captions that a row would hold, at most."""
        return max(len(record.captions) for records in self.records.values() for record in records)

    def _tell_of_packing(self) -> None:
        """Where the decoder would compute something else of packed captions.

        Raises:
            ValueError: they are to be packed nevertheless.
        """
        if self.captioner.packs or self.config.pack is False:
            return
        kind = self.vlm.language_model.config.model_type
        why = f"a {kind} decoder would compute something else of one that stands behind others in its row"
        if self.config.pack:
            raise ValueError(f"Captions cannot --pack: {why}; leave it out, or say --no-pack.")
        self.say(f"Every caption takes a row of its own: {why}.")

    def prepare(self, device: torch.device, precision: torch.dtype, progress: Progress) -> None:
        self.load(device, precision, progress)
        self._tell_of_packing()
        self.inputs, self.records = prepare_inputs(
            self.vlm, self.records, self.pixels, self.config, self.say, progress
        )
        if isinstance(self.inputs["train"], FeatureInputs) and not self.config.shard:
            self.vlm.park_encoder(self.inputs["train"].cache.folder)  # every picture is encoded
        self.num_examples = len(self.records["train"])
        self.tokenize()
        if self.config.projection_start == "ridge":
            self._start_projection()
        self.scorer, self.meteor = self._metrics()
        if checkpoint_activations(self.vlm, self._positions(), self.config, precision):
            why = "as was asked" if self.config.gradient_checkpointing == "on" else "they would not fit into memory"
            self.say(f"Activations are recomputed in the backward pass: {why}.")
            if self.captioner.stack is not None:
                self.captioner.stack.recompute = True
        if self._worth_compiling(device):
            self.captioner.compile_decoder()
            self.say("The decoder is compiled: the first step takes about a minute, the others less than before.")

    def _worth_compiling(self, device: torch.device) -> bool:
        """As asked; else where the run is long enough to win back a minute, and there is a compiler.

        Nothing is measured: a resumed run must decide as it did before, since compiled code drops other values.
        """
        wanted, stack = self.config.compile, self.captioner.stack
        if stack is None:
            if wanted:
                raise ValueError(
                    "--compile is for frozen decoders of the Llama, Mistral, Qwen2 and GPT-2 families with "
                    "adapters; leave it out."
                )
            return False
        if wanted is None:
            lengths = [sum(map(len, captions)) + self.vlm.num_prompt_tokens for captions in self.tokens["train"]]
            loop = self.config.loop()
            pictures = (loop.epochs or 1) * len(lengths)
            if loop.steps is not None:
                pictures = min(pictures, loop.steps * loop.batch_size * loop.accumulation)
            # Forward, and backward to what is read: 2 operations for each weight and position, twice.
            operations = 4 * self.vlm.parameter_counts()["decoder"] * pictures * float(np.mean(lengths))
            return device.type == "cpu" and operations > COMPILE_FROM_OPERATIONS and compiles()
        if wanted:
            require_compiler()
        return wanted

    def tokenize(self) -> None:
        """Token ids of every caption, and the epoch order that puts rows of like length together."""
        tokenizer, cut = self.vlm.tokenizer, 0

        def encode(text: str) -> list[int]:
            # A person may write "<s>"; those are letters, and no order to begin a text.
            return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

        self.tokens: dict[str, list[list[list[int]]]] = {}
        for split, records in self.records.items():
            self.tokens[split] = []
            for record in records:
                ids, num_cut = caption_tokens(
                    record.captions, encode, int(tokenizer.eos_token_id), self.config.max_length
                )
                self.tokens[split].append(ids)
                cut += num_cut
        total = sum(len(captions) for of_split in self.tokens.values() for captions in of_split)
        if cut:
            self.say(f"{cut:,} of {total:,} captions are longer than {self.config.max_length} tokens and are cut.")
        lengths = np.array([sum(map(len, captions)) for captions in self.tokens["train"]])
        loop = self.config.loop()
        window = loop.batch_size * loop.accumulation
        self.arrange = LengthBuckets(lengths, loop.batch_size, self.config.seed, window)  # type: ignore[method-assign]

    @torch.no_grad()
    def _mean_features(self, chosen: Sequence[int], look: Look = "plain") -> torch.Tensor:
        """(N, Dv): of these training pictures, the mean over the image tokens of a look at them."""
        inputs, found = self.inputs["train"], []
        if isinstance(inputs, FeatureInputs) and look != "plain":
            inputs = inputs.looks[look]
        was_training = self.model.training
        self.model.eval()  # as they will be when it captions: an open encoder may hold batch normalization
        for first in range(0, len(chosen), 64):
            picture = inputs.read(chosen[first : first + 64], seed=None)
            if picture.dim() == 4:
                picture = self.captioner.features(LOOKS_AT[look](picture))  # (64, P, Dv)
            found.append(picture.float().mean(1).cpu())
        self.model.train(was_training)
        return torch.cat(found)

    def _start_projection(self) -> None:
        """Sets the projection to the best linear guess of a caption's words (`ridge_start`)."""
        chosen = evenly(len(self.records["train"]), MEAN_PICTURES)
        means = self._mean_features(chosen)
        embedding = self.vlm.embed_tokens.weight.detach().float().cpu()
        captions = [self.tokens["train"][index] for index in chosen]
        told = start_projection(self.vlm.projection.linear_1, means, captions, embedding)
        self.say(f"The projection begins at a ridge regression that tells {told:.0%} of the captions' words.")

    def _metrics(self) -> tuple[Scorer, Meteor | None]:
        """What scores the fixed validation pictures at every evaluation."""
        chosen = self.records["validation"][: self.config.eval_images]
        # NLTK's METEOR stays in this process; the reference's Java would take a core from the training.
        meteor = find_meteor("nltk") if find_spec("nltk") else None
        if meteor is None:
            self.directions = {n: way for n, way in self.directions.items() if n != "METEOR"}  # type: ignore[misc]
        return Scorer({str(index): record.captions for index, record in enumerate(chosen)}), meteor

    def _positions(self) -> int:
        """The most positions that a micro-batch of the longest captions holds."""
        prompt, tokens = self.vlm.num_prompt_tokens, self.tokens["train"]
        rows = [1 if self.captioner.packs else len(captions) for captions in tokens]
        longest = max(n * prompt + sum(map(len, captions)) for n, captions in zip(rows, tokens, strict=True))
        return self.config.batch_size * longest

    def facts(self) -> dict[str, Any]:
        counts = self.vlm.parameter_counts()
        captions = sum(len(record.captions) for record in self.records["train"])
        return {
            "parts": counts,
            "captions": captions,
            "captions_per_picture": captions / self.num_examples,
            "validation_pictures": len(self.records["validation"]),
            "prefix_tokens": self.vlm.num_prefix_tokens,
            "inputs": self.inputs["train"].describe(),
            "baselines": {"ln_vocabulary": float(np.log(len(self.vlm.tokenizer)))},
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """The projection, the adapters and the open vision layers learn at rates of their own."""
        config = self.config
        new = config.base_model is None
        rates = {
            "projection": config.projection_lr,
            "decoder": config.scratch_lr if new and not config.decoder_model else config.lora_lr,
            "encoder": config.scratch_lr if new and not config.encoder_model else config.vision_lr,
            "matrices": config.muon_lr or 0.0,
        }
        hidden = self._hidden_matrices() if config.muon_lr else set()
        members: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in rates}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                group = "matrices" if parameter in hidden else name.split(".")[1]
                members[group].append((name, parameter))
        return [
            ParameterGroup(name, of, rates[name], config.weight_decay, "muon" if name == "matrices" else "adamw")
            for name, of in members.items()
            if of
        ]

    def _hidden_matrices(self) -> set[nn.Parameter]:
        """What Muon trains: the decoder's matrices, but for its embeddings and head."""
        lm = self.vlm.language_model
        outer = [lm.get_output_embeddings(), *(part for part in lm.modules() if isinstance(part, nn.Embedding))]
        return {p for p in lm.parameters() if p.dim() == 2} - {p for part in outer for p in part.parameters()}

    # -- training --------------------------------------------------------------------------------------------

    def batch(self, indices: Sequence[int], seed: int, split: str = "train") -> Batch:
        packed = pack_captions(
            [self.tokens[split][index] for index in indices],
            self.vlm.num_prompt_tokens,
            pad_id=int(self.vlm.tokenizer.pad_token_id),
            pack=self.captioner.packs,
        )
        tensors = packed.tensors()
        del tensors["label_captions"]
        tensors["picture"] = self.inputs[split].read(indices, seed)
        ids = [self.records[split][index].image_id for index in indices]
        return Batch(tensors, len(packed.labels), packed.num_captions, ids)

    def example_id(self, index: int) -> str:
        return self.records["train"][index].image_id

    def loss(self, model: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        device = tensors["labels"].device.type
        with torch.autocast(device, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            return model(**tensors)

    # -- evaluation ------------------------------------------------------------------------------------------

    def validation_batches(self) -> Iterator[Batch]:
        size = self.config.batch_size
        for start in range(0, len(self.records["validation"]), size):
            stop = min(start + size, len(self.records["validation"]))
            yield self.batch(range(start, stop), seed=0, split="validation")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """CIDEr-D, ROUGE-L and METEOR of the first ``eval_images`` validation pictures, captioned with beams."""
        chosen = range(min(self.config.eval_images, len(self.records["validation"])))
        captions = self._captions(model, chosen)
        if self.config.debug:
            for index, got in zip(chosen, captions, strict=True):
                self.say(f"expected: {self.records['validation'][index].captions[0]}\n     got: {got}")
        named = {str(index): caption for index, caption in enumerate(captions)}
        found = self.scorer.score(named, self.meteor).corpus
        return {name: found[name] for name in self.directions if name in found}

    def _captions(self, model: nn.Module, indices: Sequence[int], split: str = "validation") -> list[str]:
        texts: list[str] = []
        for start in range(0, len(indices), 16):
            part = indices[start : start + 16]
            texts += self._describe(model, self.inputs[split].read(part, seed=0))
        return texts

    def _describe(self, model: nn.Module, picture: torch.Tensor, **settings: Any) -> list[str]:
        """Captions of (N, P, Dv) features or (N, 3, H, W) pixels, with the live weights."""
        assert isinstance(model, CaptionLoss)
        vlm = model.vlm
        never = tuple(vlm.generation_config.suppress_tokens or ())  # <image>, and rows without a token
        wanted = {"num_beams": self.config.num_beams, "max_new_tokens": self.config.max_length}
        settings = {**wanted, "suppress_tokens": never, **settings}
        decoder = get_decoder("beam" if settings["num_beams"] > 1 else "greedy", **_fitting(settings))
        device = vlm.device
        with torch.autocast(device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            features = picture.to(device) if picture.dim() == 3 else model.features(picture.to(device))
            prompt = vlm.prompt_embeds(features)  # (N, P, D)
            tokens, _ = decoder.decode(step_model(vlm.decoder), prefix_embeds=prompt)
        return [text.strip() for text in vlm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def probes(self, model: nn.Module) -> list[dict[str, Any]]:
        chosen = range(min(NUM_PROBES, len(self.records["validation"])))
        return [
            {
                "probe": self.records["validation"][index].image_id,
                "image": self._picture_file(self.records["validation"][index]),
                "text": text,
                "references": self.records["validation"][index].captions,
            }
            for index, text in zip(chosen, self._captions(model, chosen), strict=True)
        ]

    def sample(self, model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
        name = arguments.get("image")
        if not name:
            raise ValueError(
                "A captioning run decodes pictures: name one of its samples, or give a path, as `image`."
            )
        inside = self.run_path / "samples" / Path(name).name
        image = load_image(inside if inside.is_file() else name)
        settings = dict(arguments.get("settings") or {})
        text = self._describe(model, self.pixels.pixels(image)[None], **settings)[0]
        return {"probe": str(name), "image": self._picture_file(Record(image, [], str(name))), "text": text}

    def _picture_file(self, record: Record) -> str:
        """Puts a small copy of the picture into samples/, named by its hash; returns that name."""
        image = load_image(record.image)
        image.thumbnail((PROBE_SIZE, PROBE_SIZE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        name = hashlib.sha256(buffer.getvalue()).hexdigest()[:24] + ".jpg"
        path = self.run_path / "samples" / name
        if not path.exists():
            write_whole(path, buffer.getvalue())
        return name

    # -- what is left ----------------------------------------------------------------------------------------

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, CaptionLoss)
        vlm = model.vlm
        save_captioner(vlm, folder)
        if getattr(self.config, "consensus", False):  # the demo, whose task this is too, has none
            chosen = evenly(len(self.records["train"]), MOST_PICTURES)
            looks = torch.stack([self._mean_features(chosen, look) for look in ("plain", "middle")], 1)
            Consensus.of(looks, [self.records["train"][index].captions for index in chosen]).save(folder)
        if getattr(self.config, "save_adapter", False):  # nor an adapter
            if not isinstance(vlm.decoder, PeftModel):
                self.say("There is no adapter to save: the whole decoder was trained.")
                return
            save_adapter(vlm, folder / "adapter")

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the pictures' ids and captions, in their order."""
        names = {"train": "training data", "validation": "validation data"}
        return {
            names[split]: fingerprint(json.dumps([record.image_id, record.captions]).encode() for record in records)
            for split, records in self.records.items()
        }

    def state(self) -> dict[str, Any]:
        return {"fingerprints": self.fingerprints}

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError where there are other pictures or captions now, or the splits are other ones."""
        source = ", ".join(map(str, getattr(self.config, "dataset", ())))  # the demo has none
        self.refuse_other_data(state, self.fingerprints, f"data set '{source}'")

    def prune_cache(self) -> None:
        """Removes the feature cache from the disk."""
        inputs = self.inputs["train"]
        if isinstance(inputs, FeatureInputs):
            for folder in inputs.remove():
                self.say(f"Removed {folder}.")


def evenly(count: int, most: int) -> list[int]:
    """At most so many of ``count`` indices."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, most)).round()]


def _fitting(settings: dict[str, Any]) -> dict[str, Any]:
    """Greedy decoding knows no beams."""
    return {name: value for name, value in settings.items() if name != "num_beams" or value > 1}


def _sampled(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """``count`` of the records, the same ones every time, in their order."""
    if count is None or count >= len(records):
        return list(records)
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    return [records[index] for index in sorted(chosen.tolist())]
