"""The step model of an ONNX Runtime session in the layout that transformers.js reads.

Inputs: ``inputs_embeds`` (R, T, D) or ``input_ids`` (R, T), ``attention_mask`` (R, S) int64, optionally
``position_ids`` (R, T) and ``num_logits_to_keep``, and ``past_key_values.{i}.{key,value}`` (R, heads, past, head
width). Outputs: ``logits`` (R, T, V) and ``present.{i}.{key,value}``. One graph serves prefill (a past of length 0)
and steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.decoding.step_model import Prefix

OPTIONS = ("embed", "eos_token_id", "pad_token_id")
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INPUTS = ("inputs_embeds", "input_ids", "attention_mask", "position_ids", "num_logits_to_keep")


@dataclass
class _State:
    past: list[np.ndarray]  # each (R, heads, S, head width)
    mask: np.ndarray  # (R, S) int64
    position: np.ndarray  # (R,) of the next token


class OnnxStepModel:
    """A decoder session, with what turns token ids into the embeddings it takes.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        embed: where the session takes embeddings: a session ``input_ids`` -> ``inputs_embeds``, or a function from
            ids (R, T) to a float tensor (R, T, D).
        eos_token_id, pad_token_id: as in the model's generation_config.json, which a session does not know.

    Raises:
        ValueError: the session's inputs or outputs are not of this layout, or ``embed`` is missing.
    """

    def __init__(
        self,
        session: Any,
        embed: Any = None,
        eos_token_id: int | list[int] | tuple[int, ...] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        self.session = session
        self.device = torch.device("cpu")
        eos = () if eos_token_id is None else eos_token_id
        self.eos_token_ids = (eos,) if isinstance(eos, int) else tuple(eos)
        self.pad_token_id = pad_token_id
        inputs = {node.name: node for node in session.get_inputs()}
        outputs = [node.name for node in session.get_outputs()]
        self.past = [name for name in inputs if name.startswith("past_key_values.")]
        self.present = [name.replace("past_key_values", "present") for name in self.past]
        self.takes_embeds = "inputs_embeds" in inputs
        self.takes_positions = "position_ids" in inputs
        fits = self.takes_embeds or "input_ids" in inputs
        if not (fits and self.past and "logits" in outputs and set(self.present) <= set(outputs)):
            raise ValueError(
                "This ONNX session is no decoder in transformers.js's layout (inputs_embeds or input_ids, "
                f"past_key_values.*; logits, present.*); its inputs are {', '.join(inputs)}."
            )
        if unknown := [name for name in inputs if name not in (*self.past, *_INPUTS)]:
            raise ValueError(f"This ONNX decoder has an input {unknown[0]!r}, for which there is nothing to feed.")
        if self.takes_embeds and embed is None:
            raise ValueError(
                "This ONNX decoder takes embeddings; give embed=, the embed_tokens session or a function."
            )
        self.takes_mask = "attention_mask" in inputs
        self.embed: Callable[[Tensor], Tensor] | None = _embedder(embed)
        self.empty = [_empty_past(inputs[name]) for name in self.past]
        self.float = _float(inputs[self.past[0]])
        self.embeds_float = _float(inputs["inputs_embeds"]) if self.takes_embeds else None
        self.keeps: dict[str, np.ndarray] = {}  # of the logits, those of the last position
        if "num_logits_to_keep" in inputs:
            self.keeps["num_logits_to_keep"] = np.ones([1] * len(inputs["num_logits_to_keep"].shape), np.int64)

    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, _State]:
        B, P = prefix.batch, prefix.length
        positions = prefix.positions("cpu").expand(B, P).numpy()
        mask = np.ones((B, P), np.int64) if prefix.mask is None else prefix.mask.cpu().numpy().astype(np.int64)
        past: list[np.ndarray] = [np.zeros((B, *shape), self.float) for shape in self.empty]
        state = _State(past, mask, positions[:, -1] + 1)
        return self._forward(prefix.embeds, prefix.ids, positions, state), state

    def _forward(self, embeds: Tensor | None, ids: Tensor | None, positions: np.ndarray, state: _State) -> Tensor:
        feeds = dict(zip(self.past, state.past, strict=True)) | self.keeps
        if self.takes_mask:
            feeds["attention_mask"] = state.mask
        if self.takes_positions:
            feeds["position_ids"] = positions
        if self.takes_embeds:
            if embeds is None:
                assert ids is not None and self.embed is not None
                embeds = self.embed(ids)
            feeds["inputs_embeds"] = embeds.detach().float().cpu().numpy().astype(self.embeds_float)
        elif embeds is not None or ids is None:
            raise ValueError("This ONNX decoder takes token ids only; it cannot begin with prefix_embeds.")
        else:
            feeds["input_ids"] = ids.cpu().numpy()
        logits, *state.past = self.session.run(["logits", *self.present], feeds)
        return torch.from_numpy(logits[:, -1])  # (R, V)

    def step(self, tokens: Tensor, state: _State) -> Tensor:
        state.mask = np.concatenate([state.mask, np.ones((len(state.mask), 1), np.int64)], 1)
        logits = self._forward(None, tokens[:, None], state.position[:, None], state)
        state.position = state.position + 1
        return logits

    def reorder(self, rows: Tensor, state: _State) -> None:
        index = rows.numpy()
        if np.array_equal(index, np.arange(len(state.mask))):
            return
        state.past = [past[index] for past in state.past]
        state.mask, state.position = state.mask[index], state.position[index]


def _embedder(embed: Any) -> Callable[[Tensor], Tensor] | None:
    if embed is None or not hasattr(embed, "get_inputs"):
        return embed
    name = embed.get_inputs()[0].name
    return lambda ids: torch.from_numpy(embed.run(None, {name: ids.cpu().numpy()})[0])


def _float(node: Any) -> type:
    if node.type not in _DTYPES:
        raise ValueError(f"The ONNX decoder's input {node.name} is a {node.type}; export it in float32 or float16.")
    return _DTYPES[node.type]


def _empty_past(node: Any) -> tuple[int, int, int]:
    """(heads, 0, head width) of a past input (batch, heads, past, head width)."""
    _, heads, _, width = node.shape
    if not (isinstance(heads, int) and isinstance(width, int)):
        raise ValueError(f"The ONNX decoder's input {node.name} must give heads and head width as numbers.")
    return heads, 0, width
