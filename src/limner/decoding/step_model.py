"""The one thing that decoders know of a language model: prefill, step, reorder.

Letters in the shape comments:
    B  prefixes          P  prefix positions        V  vocabulary
    R  rows (texts)      D  width of the model
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass
class Prefix:
    """What stands before the texts: embeddings (image tokens, projected) or token ids, one row a prefix. Where both
    are given, the embeddings are read, and the ids are what penalties and bans see of the prefix.

    ``mask`` (B, P) bool is False where a row is padded. Padding stands on the left, so that the last position of
    every row is real: it is the one that predicts the first token. Positions are counted from the first real one.

    Raises:
        ValueError: neither embeddings nor ids are given, or shapes or mask do not fit.
    """

    embeds: Tensor | None = None  # (B, P, D)
    ids: Tensor | None = None  # (B, P) int64
    mask: Tensor | None = None  # (B, P) bool

    def __post_init__(self) -> None:
        if self.embeds is None and self.ids is None:
            raise ValueError("Give prefix_embeds or input_ids.")
        shape = self._shape
        if len(shape) != 2 or min(shape) < 1 or (self.embeds is not None and self.embeds.dim() != 3):
            raise ValueError(
                "A prefix is prefix_embeds (B, P, D) or input_ids (B, P), neither of them empty; "
                f"the shape given is {tuple(self._given.shape)}."
            )
        if self.ids is not None:
            if self.ids.is_floating_point() or tuple(self.ids.shape) != shape:
                raise ValueError(
                    f"input_ids must be whole numbers {shape}, not {self.ids.dtype} {tuple(self.ids.shape)}."
                )
            self.ids = self.ids.long()
        if self.mask is not None:
            if tuple(self.mask.shape) != shape:
                raise ValueError(f"prefix_mask is {tuple(self.mask.shape)}, but the prefix is {shape}.")
            self.mask = self.mask.to(self._given.device, torch.bool)
            if not bool(self.mask[:, -1].all()):
                raise ValueError("A prefix is padded on the left: the last position of prefix_mask must be True.")
            if bool(self.mask.all()):
                self.mask = None

    @property
    def _given(self) -> Tensor:
        given = self.ids if self.embeds is None else self.embeds
        assert given is not None
        return given

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._given.shape[:2])

    @property
    def batch(self) -> int:
        return self._shape[0]

    @property
    def length(self) -> int:
        return self._shape[1]

    def require_width(self, width: int) -> None:
        """Raises ValueError where embeddings are given that are not this wide."""
        if self.embeds is not None and self.embeds.shape[2] != width:
            raise ValueError(
                f"prefix_embeds are {self.embeds.shape[2]} wide, and the model's embeddings {width}; project them."
            )

    def positions(self, device: torch.device | str) -> Tensor:
        """(B, P) int64, or (1, P) where no row is padded; a padded position has 0, which nothing looks at."""
        if self.mask is None:
            return torch.arange(self.length, device=device)[None]
        return (self.mask.long().cumsum(1) - 1).clamp_min(0).to(device)


@runtime_checkable
class StepModel(Protocol):
    """A language model that says, step by step, how likely each next token is.

    A prefill begins a batch and returns its state, which belongs to the caller: one step model serves any number of
    decodes side by side. Rows begin as the prefixes; `reorder` makes row i what row ``rows[i]`` was, so that beams
    are repeated rows (``[0, 0, 0, 1, 1, 1]``) and a finished text is a row left out.
    """

    device: torch.device
    """Where logits lie, and where tokens and rows are expected."""
    eos_token_ids: tuple[int, ...]
    """The model's own end-of-text tokens; empty where it has none."""
    pad_token_id: int | None

    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, Any]:
        """Reads the prefixes; logits (B, V) of the first token, and a state with room for so many steps of rows."""
        ...

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Appends one token (R,) int64 to each row; logits (R, V) of the next one."""
        ...

    def reorder(self, rows: Tensor, state: Any) -> None:
        """Row i of the state becomes what row ``rows[i]`` (R',) int64 was."""
        ...


def step_model(
    lm: Any,
    *,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    release: bool = False,
    **options: Any,
) -> StepModel:
    """The step model of a transformers causal LM (also inside peft), a `GPTModel` or an ONNX Runtime session.

    Families that `CachedStepModel` knows are computed by it, from the weights as they are now: after a training
    step, make another. Others are computed by their own forward, and put in evaluation mode for that.

    Args:
        lm: the model; a `StepModel` is returned as it is.
        dtype: compute in this precision, of floating point; None: the model's own.
        quantize: "int8": matrices rounded to 8 bits.
        release: a model whose matrices are packed gives them up, so that they are held once: but for its embedding
            it is then of use to the step model only. Where nothing is packed, nothing is given up.
        options: ``embed``, ``eos_token_id`` and ``pad_token_id`` of an ONNX session (`OnnxStepModel`).

    Raises:
        ValueError: the backend has no such option, or cannot do this precision.
        TypeError: nothing here can decode such a thing: it has no head over the vocabulary, it is an encoder with a
            decoder, its forward takes no ``past_key_values`` (Mamba, RWKV), or its states lie in the model.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; give one of floating point, such as torch.bfloat16.")
    if quantize not in (None, "int8"):
        raise ValueError(f"There is no quantization {quantize!r}; there is int8.")
    if type(lm).__module__.partition(".")[0] == "onnxruntime":
        _refuse(lm, dtype=dtype, quantize=quantize)
        from limner.decoding.onnx_session import OPTIONS, OnnxStepModel

        _refuse(lm, **{name: value for name, value in options.items() if name not in OPTIONS})
        return OnnxStepModel(lm, **options)
    _refuse(lm, **options)
    if isinstance(lm, StepModel):
        _refuse(lm, dtype=dtype, quantize=quantize)
        return lm
    from limner.decoding.cached_lm import CachedStepModel
    from limner.decoding.weights import UnknownModel

    if not hasattr(lm, "config"):
        raise TypeError(
            f"A {type(lm).__name__} cannot be decoded; a transformers causal LM, a GPTModel, an ONNX Runtime "
            "session or a StepModel can."
        )
    if getattr(lm.config, "is_encoder_decoder", False) or (
        hasattr(lm, "get_output_embeddings") and lm.get_output_embeddings() is None
    ):
        raise TypeError(
            f"A {type(lm).__name__} cannot be decoded: it is no decoder with a head over the vocabulary; load it "
            "with AutoModelForCausalLM."
        )
    try:
        return CachedStepModel(lm, dtype, quantize, release)
    except UnknownModel as reason:
        own = lm.get_input_embeddings().weight.dtype
        if quantize or dtype not in (None, own):
            raise ValueError(
                f"This {type(lm).__name__} can only be decoded as it is, in {own}, by its own forward: {reason}."
            ) from reason
        return TransformersStepModel(lm)


def _refuse(lm: Any, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]!r} is no option for a {type(lm).__name__}.")


def special_tokens(*configs: Any) -> tuple[tuple[int, ...], int | None]:
    """End-of-text ids and pad id, from the first of these (generation) configurations that has them."""
    eos: tuple[int, ...] = ()
    pad: int | None = None
    for config in configs:
        found = getattr(config, "eos_token_id", None)
        if not eos and found is not None:
            eos = (found,) if isinstance(found, int) else tuple(found)
        pad = getattr(config, "pad_token_id", None) if pad is None else pad
    return eos, pad


@dataclass
class _CacheState:
    cache: Any
    mask: Tensor | None  # (R, positions so far) int64
    position: Tensor  # (R,) of the next token


class TransformersStepModel:
    """Any causal LM of transformers that takes ``past_key_values``, through its own forward and its own cache.

    Raises:
        TypeError: its forward takes none, so that it would read each token as if it were the first; or it keeps
            states in itself (RecurrentGemma), where they cannot be reordered and two decodes would share them.
    """

    def __init__(self, lm: Any) -> None:
        own = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
        if lm.config.model_type == "recurrent_gemma":
            raise TypeError(f"A {type(own).__name__} cannot be decoded here: its states lie in it, not in a cache.")
        if "past_key_values" not in inspect.signature(own.forward).parameters:
            raise TypeError(
                f"A {type(own).__name__} cannot be decoded step by step here: its forward takes no past_key_values."
            )
        self.lm = lm.eval()
        self.device = lm.get_input_embeddings().weight.device
        self.eos_token_ids, self.pad_token_id = special_tokens(getattr(lm, "generation_config", None), lm.config)

    @torch.inference_mode()
    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, _CacheState]:
        prefix.require_width(self.lm.get_input_embeddings().weight.shape[1])
        positions = prefix.positions(self.device)
        mask = None if prefix.mask is None else prefix.mask.long().to(self.device)
        if prefix.embeds is None:
            assert prefix.ids is not None
            inputs = {"input_ids": prefix.ids.to(self.device)}
        else:
            inputs = {"inputs_embeds": prefix.embeds.to(self.device, self.lm.get_input_embeddings().weight.dtype)}
        from transformers import DynamicCache

        # the model's own layers decide what is cached (sliding windows, for one)
        cache = DynamicCache(config=self.lm.config.get_text_config())
        logits = self._forward(inputs, cache, mask, positions)
        position = (positions[:, -1] + 1).expand(prefix.batch)
        return logits, _CacheState(cache, mask, position)

    def _forward(self, inputs: dict[str, Tensor], cache: Any, mask: Tensor | None, positions: Tensor) -> Tensor:
        outputs = self.lm(
            **inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1]  # (R, V)

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: _CacheState) -> Tensor:
        if state.mask is not None:
            state.mask = torch.cat([state.mask, state.mask.new_ones(len(state.mask), 1)], dim=1)
        logits = self._forward({"input_ids": tokens[:, None]}, state.cache, state.mask, state.position[:, None])
        state.position = state.position + 1
        return logits

    @torch.inference_mode()
    def reorder(self, rows: Tensor, state: _CacheState) -> None:
        state.cache.reorder_cache(rows)  # takes any number of rows; not all layers have batch_select_indices
        state.position = state.position[rows]
        if state.mask is not None:
            state.mask = state.mask[rows]
