"""A decoder as an ONNX session, in transformers.js's layout, says what its model says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from limner.decoding import get_decoder, step_model
from limner.decoding.onnx_session import OnnxStepModel

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

PAST = [f"past_key_values.{n}.{kind}" for n in range(2) for kind in ("key", "value")]
PRESENT = [name.replace("past_key_values", "present") for name in PAST]


class TorchSession:
    """A two-layer LM with its cache as inputs and outputs: what its export would compute, without the time that
    exporting takes."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm

    def get_inputs(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name=name, shape=["batch", 2, "past", 8], type="tensor(float)")
            for name in ("inputs_embeds", "attention_mask", "position_ids", *PAST)
        ]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in ("logits", *PRESENT)]

    @torch.no_grad()
    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = {name: torch.from_numpy(value.copy()) for name, value in feeds.items()}
        cache = DynamicCache()
        for n in range(2):
            cache.update(given.pop(PAST[2 * n]), given.pop(PAST[2 * n + 1]), n)
        logits = self.lm(**given, past_key_values=cache, use_cache=True).logits
        found = [logits, *(states for layer in cache.layers for states in (layer.keys, layer.values))]
        return [dict(zip(("logits", *PRESENT), found, strict=True))[name].numpy() for name in names]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("greedy", {"repetition_penalty": 1.2}),
        ("sample", {"temperature": 1.3, "num_return_sequences": 3}),
        ("beam", {"num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 2}),
    ],
)
def test_a_session_says_what_its_model_says(models: Any, prompts: Any, name: str, settings: dict[str, Any]) -> None:
    lm = models["qwen2"]
    steps = OnnxStepModel(TorchSession(lm), lm.get_input_embeddings(), eos_token_id=2, pad_token_id=0)
    decoder = get_decoder(name, max_new_tokens=9, **settings)
    for seed, lengths in enumerate(([5], [7, 3, 6], [4, 4])):
        ids, mask = prompts(lengths, seed=seed)
        tokens, scores = decoder.decode(steps, input_ids=ids, prefix_mask=mask)
        expected, expected_scores = decoder.decode(step_model(lm), input_ids=ids, prefix_mask=mask)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)


def counting(dtype: str, *more: Any) -> Any:
    """A session whose logits (of 8 ids) are the embeddings that it is fed, and whose cache grows."""
    make, kind = onnx.helper, getattr(onnx.TensorProto, dtype)
    embeds = make.make_tensor_value_info("inputs_embeds", kind, ["batch", "length", 8])
    logits = make.make_tensor_value_info("logits", kind, ["batch", "length", 8])
    past = [make.make_tensor_value_info(name, kind, ["batch", 1, "past", 8]) for name in PAST[:2]]
    grown = [make.make_tensor_value_info(name, kind, ["batch", 1, "grown", 8]) for name in PRESENT[:2]]
    nodes = [make.make_node("Identity", ["inputs_embeds"], ["logits"])]
    nodes += [make.make_node("Unsqueeze", ["inputs_embeds", "one"], ["new"])]
    nodes += [
        make.make_node("Concat", [old, "new"], [new], axis=2)
        for old, new in zip(PAST[:2], PRESENT[:2], strict=True)
    ]
    one = make.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    graph = make.make_graph(nodes, "counting", [embeds, *past, *more], [logits, *grown], [one])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString())


def next_id(ids: torch.Tensor) -> torch.Tensor:
    return torch.eye(8)[ids + 1]


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16"])
@pytest.mark.parametrize("shape", [None, [], [1]], ids=str)
def test_inputs_are_fed_as_they_are_declared(dtype: str, shape: list[int] | None) -> None:
    name, whole = "num_logits_to_keep", onnx.TensorProto.INT64
    more = [] if shape is None else [onnx.helper.make_tensor_value_info(name, whole, shape)]
    steps = step_model(counting(dtype, *more), embed=next_id, eos_token_id=6)
    decoded = get_decoder("greedy").decode_full(steps, input_ids=torch.tensor([[1, 2]]))
    assert decoded.tokens.tolist() == [[3, 4, 5, 6]]


def test_sessions_and_options_that_do_not_fit_are_refused() -> None:
    branch = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    for session, options, word in (
        (counting("FLOAT"), {}, "embed="),
        (counting("FLOAT"), {"embed": next_id, "eos": 2}, "'eos' is no option"),
        (counting("FLOAT", branch), {"embed": next_id}, "use_cache_branch"),
        (counting("BFLOAT16"), {"embed": next_id}, "float16"),
    ):
        with pytest.raises(ValueError, match=word):
            step_model(session, **options)
