"""Every step model gives the logits of a plain forward over the whole text, whatever is reordered on the way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from limner.decoding import Prefix, StepModel, cached_lm, get_decoder, linear, recorded, step_model
from limner.decoding.cached_lm import CachedStepModel
from limner.decoding.step_model import TransformersStepModel
from limner.models.gpt import GPTConfig, GPTModel

V = 61


def walk(steps: StepModel, logits_of: Callable[[torch.Tensor], torch.Tensor], ids: Any, mask: Any) -> None:
    """Prefill, then steps with beams made, crossed and dropped; every row's logits against the plain forward."""
    generator = torch.Generator().manual_seed(0)
    logits, state = steps.prefill(Prefix(ids=ids, mask=mask), 12, 3)
    real = [
        row if mask is None else row[m.bool()] for row, m in zip(ids, ids if mask is None else mask, strict=True)
    ]
    texts = list(real)
    B = len(ids)
    orders = [
        torch.arange(B).repeat_interleave(3),  # beams
        None,
        torch.tensor([i * 3 + j for i in range(B) for j in (2, 0, 0)]),  # crossed
        None,
        torch.tensor([i * 3 + j for i in range(1, B) for j in (1, 2, 0)]),  # the first prefix is done
        torch.tensor([i * 3 + j for i in range(B - 2) for j in (0, 2, 1)]),  # the last one is
        None,
        torch.arange(0, 3 * (B - 2), 3).flip(0),  # one row each, the prefixes turned round
        torch.tensor([0, 0, 1, 0]) % (B - 2),  # anything at all
        None,
    ]
    for order in orders:
        for row, text in enumerate(texts):
            torch.testing.assert_close(logits[row].double(), logits_of(text).double(), atol=2e-5, rtol=1e-4)
        if order is not None:
            steps.reorder(order, state)
            texts = [texts[i] for i in order.tolist()]
        tokens = torch.randint(3, V, (len(texts),), generator=generator)
        texts = [torch.cat([text, token[None]]) for text, token in zip(texts, tokens, strict=True)]
        logits = steps.step(tokens, state)


def plainly(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    @torch.no_grad()
    def last_logits(text: torch.Tensor) -> torch.Tensor:
        return model(text[None]).logits[0, -1]

    return last_logits


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("make", [CachedStepModel, TransformersStepModel])
def test_logits_of_transformers_models(models: Any, prompts: Any, family: str, make: Any, padded: bool) -> None:
    ids, mask = prompts([7, 3, 5, 6] if padded else [6, 6, 6, 6])
    walk(make(models[family]), plainly(models[family]), ids, mask if padded else None)


def again(work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """What a CUDA graph does, without one: the same work on the same memory, its result in the same place."""
    result = work().clone()

    def replay() -> None:
        result.copy_(work())

    return replay, result


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_of_steps_that_are_replayed(
    models: Any, prompts: Any, family: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays = 0

    def counted(work: Callable[[], torch.Tensor]) -> Any:
        replay, result = again(work)

        def and_count() -> None:
            nonlocal replays
            replays += 1
            replay()

        return and_count, result

    steps = CachedStepModel(models[family])
    steps.record = counted
    ids, mask = prompts([7, 3, 5, 6] if padded else [6, 6, 6, 6])
    walk(steps, plainly(models[family]), ids, mask if padded else None)
    monkeypatch.setattr(recorded, "WARM_UP", 0)
    walk(steps, plainly(models[family]), ids, mask if padded else None)
    assert replays > 10
    inputs = {"input_ids": ids, "prefix_mask": mask}
    for name, settings in (("greedy", {}), ("beam", {"num_beams": 3})):
        decoder = get_decoder(name, max_new_tokens=12, **settings)
        plain = decoder.decode(CachedStepModel(models[family]), **inputs)
        for ours, theirs in zip(decoder.decode(steps, **inputs), plain, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_step_that_cannot_be_recorded_is_computed(models: Any, prompts: Any) -> None:
    def fails(work: Callable[[], torch.Tensor]) -> Any:
        raise RuntimeError("no graphs here")

    steps = CachedStepModel(models["llama"])
    steps.record = fails
    ids, _ = prompts([6, 6])
    decoder = get_decoder("greedy", max_new_tokens=8, eos_token_id=[])
    with pytest.warns(UserWarning, match="no graphs here"):
        tokens, _ = decoder.decode(steps, input_ids=ids)
    assert torch.equal(tokens, decoder.decode(CachedStepModel(models["llama"]), input_ids=ids)[0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_of_prefixes_read_a_few_at_a_time(
    models: Any, prompts: Any, family: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_lm, "_ROWS_A_THREAD", 15)  # two prefixes, or four on two threads
    ids, mask = prompts([7, 3, 5, 6, 2] if padded else [7, 7, 7, 7, 7])
    walk(CachedStepModel(models[family]), plainly(models[family]), ids, mask if padded else None)


@pytest.mark.parametrize("padded", [False, True])
def test_logits_of_our_gpt(prompts: Any, padded: bool) -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=V, context_length=40, width=32, num_heads=4, num_layers=2, qkv_bias=True)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids, mask = prompts([7, 3, 5, 6] if padded else [6, 6, 6, 6])
    steps = step_model(model)
    assert isinstance(steps, CachedStepModel)
    with torch.no_grad():
        walk(steps, lambda text: model(text[None])[0, -1], ids, mask if padded else None)


@pytest.mark.parametrize("other_machine", [False, True])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"quantize": "int8"}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scripts_say_what_their_python_says(
    models: Any,
    prompts: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    options: dict[str, Any],
    other_machine: bool,
) -> None:
    """Bit for bit: GPUs run the Python. The other machine multiplies 16 bits as they are, and 8 by oneDNN."""
    if other_machine:
        monkeypatch.setattr(linear, "multiplies_int8", torch.backends.mkldnn.is_available)
        monkeypatch.setattr(linear, "multiplies", lambda dtype, where: True)
        monkeypatch.setattr(cached_lm, "multiplies", lambda dtype, where: True)
    script = step_model(models[family], **options)
    monkeypatch.setattr(cached_lm, "_scripted", lambda module, _: module)
    plain = step_model(models[family], **options)
    ids, mask = prompts([7, 3, 5])
    for _ in range(3):  # scripts are optimised in their second call
        found = [steps.prefill(Prefix(ids=ids, mask=mask), 4, 2) for steps in (script, plain)]
        assert torch.equal(found[0][0], found[1][0])
        for tokens, rows in (([3, 4, 5], [0, 0, 1, 1, 2, 2]), ([6, 7, 8, 9, 3, 4], [1, 0, 2, 2, 4, 5])):
            logits = [
                steps.step(torch.tensor(tokens), state)
                for steps, (_, state) in zip((script, plain), found, strict=True)
            ]
            assert torch.equal(*logits)
            for steps, (_, state) in zip((script, plain), found, strict=True):
                steps.reorder(torch.tensor(rows), state)


def test_float64_is_exact(make_model: Any, prompts: Any) -> None:
    model = make_model("gpt2").double()  # transformers' Llama computes its norms and angles in float32
    ids, mask = prompts([7, 3, 5])
    steps = step_model(model)
    logits, state = steps.prefill(Prefix(ids=ids, mask=mask), 4)
    more = steps.step(torch.tensor([5, 6, 7]), state)
    for row, token in enumerate((5, 6, 7)):
        text = ids[row][mask[row].bool()]
        torch.testing.assert_close(logits[row], plainly(model)(text), atol=1e-12, rtol=1e-12)
        whole = torch.cat([text, torch.tensor([token])])
        torch.testing.assert_close(more[row], plainly(model)(whole), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_is_merged_into_a_copy(make_model: Any, prompts: Any, family: str) -> None:
    base = make_model(family)
    targets = ["q_proj", "o_proj", "down_proj"] if family == "llama" else ["attn.c_attn", "mlp.c_proj"]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=family == "gpt2")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    ids, _ = prompts([6, 6, 6, 6])
    before = copy.deepcopy(model.state_dict())
    steps = step_model(model)
    assert isinstance(steps, CachedStepModel)
    walk(steps, plainly(model), ids, None)
    walk(step_model(base), plainly(model), ids, None)  # the layers that peft put adapters into
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_the_same_precision_are_shared(models: Any) -> None:
    model = models["llama"]
    steps = CachedStepModel(model)
    assert steps.layers.contract.weights[0][0].data_ptr() == model.model.layers[0].mlp.down_proj.weight.data_ptr()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "rope_theta": 5e5,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_variants(prompts: Any, rope: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(small(LlamaConfig, rope_parameters=rope, head_dim=16, attention_bias=True)).eval()
    ids, _ = prompts([6, 6, 6, 6])
    steps = step_model(model)
    assert isinstance(steps, TransformersStepModel if rope["rope_type"] == "dynamic" else CachedStepModel)
    walk(steps, plainly(model), ids, None)


def small(config: Any, **settings: Any) -> Any:
    return config(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **settings,
    )


@pytest.mark.parametrize("kind", ["neox", "sliding"])
def test_other_models_run_by_their_own_forward(prompts: Any, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "neox":
        model: Any = GPTNeoXForCausalLM(small(GPTNeoXConfig)).eval()
    else:
        model = MistralForCausalLM(small(MistralConfig, num_key_value_heads=2, sliding_window=8)).eval()
    ids, _ = prompts([9, 9, 9, 9])
    steps = step_model(model)
    assert isinstance(steps, TransformersStepModel)
    walk(steps, plainly(model), ids, None)
    with pytest.raises(ValueError, match="by its own forward"):
        step_model(model, quantize="int8")


def test_positions_run_out_with_a_sentence(make_model: Any, prompts: Any) -> None:
    ids, _ = prompts([90])  # GPT-2 here has 96 positions
    decoder = get_decoder("greedy", max_new_tokens=10, eos_token_id=())
    with pytest.raises(ValueError, match="positions for 96 tokens"):
        decoder.decode(step_model(make_model("gpt2")), input_ids=ids)
    short = get_decoder("greedy", max_new_tokens=7, eos_token_id=())
    assert short.decode(step_model(make_model("gpt2")), input_ids=ids)[0].shape == (1, 7)


def test_prefixes_that_make_no_sense_are_refused() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    for arguments, word in (
        ({}, "prefix_embeds or input_ids"),
        ({"ids": ids, "embeds": torch.zeros(2, 4, 8)}, "whole numbers"),
        ({"ids": ids.float()}, "whole numbers"),
        ({"ids": ids[:, :0]}, "neither of them empty"),
        ({"ids": ids, "mask": ids[:1]}, "prefix_mask"),
        ({"ids": ids, "mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, "on the left"),
    ):
        with pytest.raises(ValueError, match=word):
            Prefix(**arguments)
    with pytest.raises(TypeError, match="cannot be decoded"):
        step_model("a model")


def test_nothing_is_warned_of(models: Any, prompts: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, mask = prompts([4, 3])
        for quantize in (None, "int8"):
            get_decoder("beam").decode(
                step_model(models["llama"], quantize=quantize), input_ids=ids, prefix_mask=mask
            )


def test_a_real_model_tells_its_story(real_data: Path) -> None:
    """Greedy from BOS, in fp32 as recorded; beams as transformers' generate."""
    folder = real_data / "models" / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[model.config.bos_token_id]])
    tokens, _ = get_decoder("greedy", max_new_tokens=60).decode(step_model(model), input_ids=ids)
    text = tokenizer.decode(tokens[0])
    assert text.startswith("Once upon a time, there was a little girl named Lily.")
    wanted = model.generate(ids, num_beams=4, max_new_tokens=40, do_sample=False)[0, 1:]
    tokens, _ = get_decoder("beam", num_beams=4, max_new_tokens=40).decode(step_model(model), input_ids=ids)
    assert torch.equal(tokens[0], wanted[: len(tokens[0])])
    decoder = get_decoder("greedy", max_new_tokens=60, stop_strings=[" named"], tokenizer=tokenizer)
    decoded = decoder.decode_full(step_model(model), input_ids=ids)
    assert tokenizer.decode(decoded.tokens[0]).endswith("girl named")
    assert decoded.endings == ["stop"]
    for string, count in ((" Once", 1), (" upon a", 3), ("On", 1)):  # as soon as generate stops, spaces and all
        stops = get_decoder("greedy", max_new_tokens=9, stop_strings=string, tokenizer=tokenizer)
        wanted = model.generate(ids, max_new_tokens=9, do_sample=False, stop_strings=string, tokenizer=tokenizer)
        tokens, _ = stops.decode(step_model(model), input_ids=ids)
        assert torch.equal(tokens, wanted[:, 1:])
        assert tokens.shape[1] == count
    banned = get_decoder("greedy", max_new_tokens=60, banned_words=["Lily", "time"], tokenizer=tokenizer)
    text = tokenizer.decode(banned.decode(step_model(model), input_ids=ids)[0][0])
    assert "Lily" not in text
    assert "time" not in text


def test_linear_attention_is_reordered_too(prompts: Any) -> None:
    """Half of its layers keep a convolution's last inputs instead of keys and values."""
    torch.manual_seed(0)
    config = small(Lfm2Config, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    model = Lfm2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    ids, _ = prompts([9, 9, 9, 9])
    walk(step_model(model), plainly(model), ids, None)


@pytest.mark.parametrize(
    "model",
    [
        lambda: MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4)),
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=V, n_embd=16, n_layer=1, n_head=2)),
        lambda: RecurrentGemmaForCausalLM(small(RecurrentGemmaConfig, lru_width=32)),
        lambda: LlamaModel(small(LlamaConfig)),
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=16, num_layers=1)),
    ],
)
def test_models_that_would_say_nonsense_are_refused(model: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="cannot be decoded"):
        step_model(model())


def test_a_released_model_makes_no_second_step_model(make_model: Any) -> None:
    model = make_model("qwen2")
    step_model(model, quantize="int8", release=True)
    with pytest.raises(ValueError, match="given up its weights"):
        step_model(model)


@pytest.mark.parametrize("release", [False, True])
def test_a_step_model_of_other_weights_is_refused(make_model: Any, prompts: Any, release: bool) -> None:
    """Some of them are shared, some copied: after a training step it would be a mixture."""
    model = make_model("llama")
    steps, (ids, _) = step_model(model, release=release), prompts([5])
    decoder = get_decoder("greedy", max_new_tokens=2)
    first, _ = decoder.decode(steps, input_ids=ids)
    assert torch.equal(decoder.decode(steps, input_ids=ids)[0], first)
    learns = [parameter for parameter in model.parameters() if not parameter.is_meta]
    for parameter in learns:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(learns).step()
    with pytest.raises(ValueError, match="make a new step model"):
        decoder.decode(steps, input_ids=ids)
    del model
    decoder.decode(steps, input_ids=ids)  # alone, it is only as old as it is


def test_what_cannot_be_decoded_is_said_in_a_sentence(models: Any, prompts: Any) -> None:
    decoder, (ids, _) = get_decoder("greedy", max_new_tokens=2), prompts([5])
    with pytest.raises(TypeError, match=r"make one of it with step_model\(\)"):
        decoder.decode(models["llama"], input_ids=ids)
    for steps in (CachedStepModel(models["llama"]), TransformersStepModel(models["llama"])):
        with pytest.raises(ValueError, match="33 wide, and the model's embeddings 32"):
            decoder.decode(steps, prefix_embeds=torch.randn(1, 4, 33))
    for dtype in (torch.int8, "bf16"):
        with pytest.raises(ValueError, match="of floating point"):
            step_model(models["llama"], dtype=dtype)
