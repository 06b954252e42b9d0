"""The captioner: vision encoder -> projection -> prefix tokens -> decoder-only LM, with LoRA.

It computes exactly what a stock LLaVA computes (`limner.models.stock`), so that a trained model needs no
conversion. The idea of conditioning a language model on a projected prefix is that of Tsimpoukelli et al. 2021
(Frozen) and Mokady et al. 2021 (ClipCap); LLaVA (Liu et al. 2023) gave it its usual form.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from limner.device import give_back_freed_memory
from limner.models import decoder as decoders
from limner.models import encoder as encoders
from limner.models.decoder import Say
from limner.models.hub import seeded
from limner.models.lora import Lora, add_lora
from limner.models.packed import can_pack, given_up, in_pieces, packed
from limner.models.projection import ProjectionHead, ProjectionType

if TYPE_CHECKING:
    from peft import PeftModel

Source = str | Path | PretrainedConfig
ImageTokens = Literal["patches", "regions", "mean"]

# Letters: B pictures, (H, W) input pixels, P prefix tokens, Dv vision width, N caption tokens, D the language
# model's embedding width, T = P (+ 1 for BOS) + N, V the vocabulary.


class PrefixConditioningVLM(nn.Module):
    """A picture's patches, projected, stand before the caption as if they were embedded words.

    Args:
        encoder: a stock vision model.
        projection: Dv -> D.
        decoder: a stock causal language model, bare or wrapped by peft.
        tokenizer: its tokenizer, with ``<image>`` (`limner.models.decoder`).
        image_processor_config: how pictures become pixels, in the stock ``preprocessor_config`` form.
        feature_layer: the index into the encoder's hidden states; -2 is what every runtime reads alike.
        image_tokens: "patches": a token for each; "regions": the means of all and of five regions
            (`encoder.region_means`); "mean": that of all alone, the cheapest prefix.

    Raises:
        ValueError: ``image_tokens`` is none of these, or the encoder's patches are no square that has regions.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        projection: ProjectionHead,
        decoder: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerFast,
        image_processor_config: dict[str, Any],
        feature_layer: int = -2,
        image_tokens: ImageTokens = "patches",
    ):
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.image_processor_config = image_processor_config
        self.feature_layer = feature_layer
        if image_tokens not in get_args(ImageTokens):
            raise ValueError(f"There are no image tokens '{image_tokens}'; choose patches, regions or mean.")
        self.image_tokens = image_tokens
        self.image_size = encoders.image_size(encoder.config, image_processor_config)
        self.bos_id = decoders.prompt_bos(tokenizer)
        self.encoder_is_frozen = False
        # Not a child: it shares the encoder's weights, and must not stand in the state dict twice.
        self.__dict__["_tower"] = encoders.tower_up_to(encoder, feature_layer)
        self.__dict__["_packed"] = None
        patches = encoders.feature_shape(encoder, feature_layer, self.image_size)[0]
        self.pool: torch.Tensor | None = None
        """(P, patches): the weights that make the image tokens of the patches; None: each is one."""
        if image_tokens == "regions" and self.image_size[0] != self.image_size[1]:
            raise ValueError(f"Regions are those of square pictures, and this encoder's are {self.image_size}.")
        if image_tokens != "patches":
            mean = torch.full((1, patches), 1 / patches)
            self.pool = mean if image_tokens == "mean" else torch.cat([mean, encoders.region_means(patches)])
        self.num_prefix_tokens = patches if self.pool is None else len(self.pool)

    # ---- parts -----------------------------------------------------------------------------------------------

    @property
    def language_model(self) -> PreTrainedModel:
        """The causal language model itself, without peft's wrapper (its adapters stay in their places)."""
        wrapped = hasattr(self.decoder, "get_base_model")
        return cast(PreTrainedModel, self.decoder.get_base_model() if wrapped else self.decoder)  # type: ignore[operator]

    @property
    def tower(self) -> PreTrainedModel:
        """The part of the encoder that is run: up to the feature layer where the family is known."""
        return self.__dict__["_tower"] or self.encoder

    @property
    def device(self) -> torch.device:
        return self.projection.linear_1.weight.device

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The language model's embedding: ids (...) -> (..., D)."""
        return decoders.embedding(self.language_model)

    @property
    def generation_config(self) -> GenerationConfig:
        """How a caption is decoded where nothing else is said: beams, length, tokens never said. Saved along."""
        return cast(GenerationConfig, self.language_model.generation_config)

    @property
    def is_convolutional(self) -> bool:
        """True where the encoder gives a map, whose cells become the prefix line by line."""
        return encoders.is_convolutional(self.encoder, self.image_size)

    # ---- from picture to prompt --------------------------------------------------------------------------------

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, P, Dv), in the encoder's dtype; without gradient where the encoder is frozen."""
        pixels = pixel_values.to(self.device, next(self.encoder.parameters()).dtype)
        if not self.encoder_is_frozen:
            return self._features(pixels)
        with torch.no_grad():
            return self._features(pixels)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        layer = self.feature_layer if self.__dict__["_tower"] is None else None
        packed_tower = self.__dict__["_packed"]

        def run(pixels: torch.Tensor) -> torch.Tensor:
            row = encoders.as_row(encoders.encode(packed_tower or self.tower, pixels, layer))
            return row if self.pool is None else self.pool.to(row) @ row  # (P, patches) @ (B, patches, Dv)

        return in_pieces(run, pixels) if packed_tower else run(pixels)

    def prefix_embeds(self, features: torch.Tensor) -> torch.Tensor:
        """(B, P, Dv) -> (B, P, D), in the dtype of the language model's embeddings."""
        return self.projection(features).to(self.embed_tokens.weight.dtype)

    def prompt_embeds(self, features: torch.Tensor) -> torch.Tensor:
        """(B, P, Dv) -> (B, P, D) or, where the family begins a text with BOS, (B, P + 1, D)."""
        prefix = self.prefix_embeds(features)
        if self.bos_id is None:
            return prefix
        bos = self.embed_tokens(torch.full((len(prefix), 1), self.bos_id, device=prefix.device))  # (B, 1, D)
        return torch.cat([prefix, bos], dim=1)

    @property
    def num_prompt_tokens(self) -> int:
        """P, or P + 1 with BOS."""
        return self.num_prefix_tokens + (self.bos_id is not None)

    @property
    def room_for_caption(self) -> int | None:
        """The most tokens that the language model can say behind the prompt; None: it states no limit.

        The last token needs no position: nothing is read behind it.

        Raises:
            ValueError: the prompt alone is longer than the model's positions.
        """
        positions = getattr(self.language_model.config, "max_position_embeddings", None)
        if positions is None:
            return None
        if self.num_prompt_tokens > positions:
            raise ValueError(
                f"The picture takes {self.num_prompt_tokens} tokens, and the language model has positions for "
                f"{positions}; take an encoder or image_tokens that give fewer, or another language model."
            )
        return positions - self.num_prompt_tokens + 1

    # ---- from prompt to logits ---------------------------------------------------------------------------------

    def hidden_states(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The decoder without its head: (B, T, D) -> (B, T, D).

        Args:
            inputs_embeds: (B, T, D).
            attention_mask: (B, T) with 1 where there is a token; or (B, 1, T, T), which is taken as it is: added to
                the attention scores (0 and the dtype's minimum), or True where a row may look at a column; or one
                such of floats for each type of layer (`decoder.attention_windows`).
            position_ids: (B, T); None: counted from the first position.
        """
        mask = attention_mask
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.ndim == 4:
            mask = self._as_scores(mask, inputs_embeds.dtype)
        return decoders.stack(self.language_model)(
            inputs_embeds=inputs_embeds, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    def _as_scores(self, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """True/False as 0/minimum, which the plain ("eager") attention of some families adds without looking."""
        if self.language_model.config._attn_implementation != "eager":
            return allowed
        return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> logits (..., V). Give it only the positions that have a label."""
        return decoders.head(self.language_model, hidden)

    def forward(
        self,
        caption_ids: torch.Tensor,
        *,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of captions after their pictures' prompts.

        Args:
            caption_ids: (B, N): one caption a row, or several, packed.
            pixel_values: (B, 3, H, W), or else
            features: (B, P, Dv), cached.
            attention_mask: as for `hidden_states`, over prompt and captions.
            position_ids: (B, T).
            at: (B, T) bool: the positions whose logits are wanted; None: those that predict ``caption_ids`` and
                what follows them, that is the prompt's last and all of the captions'.

        Returns:
            (B, N + 1, V), or (number of True in ``at``, V).

        Raises:
            ValueError: not exactly one of ``pixel_values`` and ``features`` was given.
        """
        if (pixel_values is None) == (features is None):
            raise ValueError("Give either pixel_values or features.")
        prompt = self.prompt_embeds(
            cast(torch.Tensor, features) if pixel_values is None else self.features(pixel_values)
        )
        embeds = torch.cat([prompt, self.embed_tokens(caption_ids)], dim=1)  # (B, T, D)
        hidden = self.hidden_states(embeds, attention_mask, position_ids)
        return self.head(hidden[:, prompt.shape[1] - 1 :] if at is None else hidden[at])

    # ---- what is trained ---------------------------------------------------------------------------------------

    def freeze_encoder(self, unfreeze_last: int = 0) -> None:
        """Freezes the encoder, but for its last ``unfreeze_last`` layers in use; those beyond the feature layer
        never train.

        Raises:
            ValueError: single layers of this family cannot be told apart, or there are fewer.
        """
        opened: list[nn.Parameter] = []
        if unfreeze_last:
            opened = encoders.last_layers(self.encoder, self.__dict__["_tower"], unfreeze_last)
        self.encoder.requires_grad_(False)
        for parameter in opened:
            parameter.requires_grad_(True)
        self.encoder_is_frozen = not opened
        self._unpack_encoder()
        self.train(self.training)

    def pack_encoder(self, release: bool = False) -> bool:
        """Prepares a frozen encoder for speed (`limner.models.packed`); True where this machine can.

        Call it when the model stands where and in the precision in which it is to compute; moving or casting it,
        or opening its encoder, undoes it.

        Args:
            release: the encoder gives up every matrix that is packed, and what is beyond the feature layer (they
                keep their shape, on the meta device): the captioner can then only caption, where it stands.
        """
        if self.encoder_is_frozen and can_pack(self.encoder):
            self.__dict__["_packed"] = packed(self.tower, release)
            if release:
                used = {id(parameter) for parameter in self.tower.parameters()}
                for module in self.encoder.modules():
                    for name, parameter in module._parameters.items():
                        if parameter is not None and id(parameter) not in used:
                            module._parameters[name] = given_up(parameter)
        return self.__dict__["_packed"] is not None

    def _unpack_encoder(self) -> None:
        if self.__dict__["_packed"] is not None and any(p.is_meta for p in self.encoder.parameters()):
            raise RuntimeError("This captioner gave up its encoder's weights and only captions; read it again.")
        self.__dict__["_packed"] = None

    def park_encoder(self, folder: Path) -> None:
        """On a CPU, lets the encoder's weights wait in a nameless file of ``folder``, and drops their packed copy:
        the encoder is hardly to be used any more. What is read of them takes memory that the system can have back
        whenever it needs it. Where the disk has no room, they stay in memory.
        """
        self._unpack_encoder()
        if self.device.type != "cpu":
            return
        parameters, starts = list(self.encoder.parameters()), []
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for parameter in parameters:
                    starts.append(file.seek(-(-file.tell() // 64) * 64))  # aligned as torch likes it
                    file.write(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().data)
                file.flush()
                mapped = torch.from_numpy(np.memmap(file, np.uint8, "c"))
        except OSError:
            return
        for parameter, start in zip(parameters, starts, strict=True):
            count = parameter.numel() * parameter.element_size()
            parameter.data = mapped[start : start + count].view(parameter.dtype).view(parameter.shape)
        give_back_freed_memory()

    def _apply(self, *args: Any, **kwargs: Any) -> PrefixConditioningVLM:
        self._unpack_encoder()
        super()._apply(*args, **kwargs)
        return self

    def open_encoder(self) -> None:
        """Lets the whole encoder train, as far as it is in use."""
        self.encoder.requires_grad_(False)
        self.tower.requires_grad_(True)
        self.encoder_is_frozen = False
        self._unpack_encoder()
        self.train(self.training)

    def train(self, mode: bool = True) -> PrefixConditioningVLM:
        """As of any module; but a frozen encoder stays in evaluation (no dropout, fixed batch statistics)."""
        super().train(mode)
        if mode and self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def keep_frozen_in(self, dtype: torch.dtype) -> None:
        """Casts what does not train to ``dtype``; what trains stays in fp32."""
        self._unpack_encoder()
        for part in (self.encoder, self.decoder):
            if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in part.modules()):
                continue  # running statistics lose too much in 8 bits of mantissa, and such trunks are small
            for parameter in part.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of each part, of all, and of what trains."""
        parts = {"encoder": self.encoder, "projection": self.projection, "decoder": self.decoder}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return counts | {"total": sum(counts.values()), "trainable": trainable}


def build_captioner(
    encoder: Source,
    decoder: Source,
    projection_type: ProjectionType = "linear",
    *,
    lora: Lora | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    image_processor: str | Path | dict[str, Any] | None = None,
    feature_layer: int | None = None,
    image_tokens: ImageTokens = "patches",
    freeze_vision: bool | None = None,
    unfreeze_vision_layers: int = 0,
    bos: bool | None = None,
    seed: int = 42,
    cache_dir: str | Path | None = None,
    say: Say = print,
) -> PrefixConditioningVLM:
    """A captioner from two stock checkpoints, two stock configurations (random weights), or one of each.

    Args:
        encoder: hub id, folder or configuration of the vision model.
        decoder: the same of the language model.
        projection_type: "linear" or "mlp".
        lora: adapter settings; None: the whole decoder trains.
        tokenizer: needed where ``decoder`` is a configuration, whose vocabulary size it sets.
        image_processor: another image processor than the encoder's own (folder, hub id or settings).
        feature_layer: index into the encoder's hidden states; None: -2, and the last map of convolutional trunks.
        image_tokens: "patches", "regions" or "mean", as for `PrefixConditioningVLM`.
        freeze_vision: None: frozen, unless the encoder is a configuration.
        unfreeze_vision_layers: the last layers that train nevertheless.
        bos: whether captions begin with BOS; None: as the family does.
        seed: of all random weights.
        cache_dir: where hub downloads are kept.
        say: told, in a sentence each, what was changed to make the parts fit.

    Raises:
        ValueError, OSError: a part cannot be found, read, or used; the message says which and why.
    """
    with seeded(seed):
        eyes, pixels = encoders.load_encoder(encoder, processor=image_processor, cache_dir=cache_dir)
        lm, words = decoders.load_decoder(decoder, tokenizer, bos=bos, say=say, cache_dir=cache_dir)
        text_width = decoders.embedding(lm).embedding_dim
        size = encoders.image_size(eyes.config, pixels)
        if feature_layer is None:
            feature_layer = -1 if encoders.is_convolutional(eyes, size) else -2
        vision_width = encoders.feature_shape(eyes, feature_layer, size)[1]
        projection = ProjectionHead(vision_width, text_width, projection_type)
    adapted: PreTrainedModel | PeftModel = lm
    if lora is not None:
        adapted, sentence = add_lora(lm, lora, seed)
        if sentence:
            say(sentence)
    vlm = PrefixConditioningVLM(eyes, projection, adapted, words, pixels, feature_layer, image_tokens)
    if freeze_vision is None:
        freeze_vision = not isinstance(encoder, PretrainedConfig)
    if freeze_vision:
        vlm.freeze_encoder(unfreeze_vision_layers)
    else:
        vlm.open_encoder()
    return vlm
