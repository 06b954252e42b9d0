"""``limner generate``: continue a prompt, token by token as they come."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.cli.models import model_named
from limner.cli.parse import parse
from limner.config.generate import GenerateConfig

if TYPE_CHECKING:
    from limner.decoding import Decoder, StepModel
    from limner.tokenizer import Tokenizer


def run(argv: list[str]) -> int:
    config = parse(GenerateConfig, argv, "limner generate")
    prompt = sys.stdin.read() if config.prompt == "-" else config.prompt
    import torch

    from limner.decoding import get_decoder, step_model

    lm, tokenizer, context, device = _load(config)
    ids = tokenizer.encode_prompt(prompt)
    if not ids:
        raise ValueError("This model's tokenizer has no token that begins a text; give a --prompt.")
    room = (context or len(ids) + config.max_tokens) + 1 - len(ids)  # the last token needs no place of its own
    if room < 1:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, and the model's context holds {context}; give a shorter prompt."
        )
    drawing = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
    decoder = get_decoder(
        "sample" if config.temperature else "greedy",
        tokenizer=tokenizer,
        max_new_tokens=min(config.max_tokens, room),
        repetition_penalty=config.repetition_penalty,
        stop_strings=config.stop,
        eos_token_id=(tokenizer.eos_id,),
        **(drawing if config.temperature else {}),
    )
    inputs = torch.tensor([ids], device=device)
    if config.json_output:
        answer = {"prompt": prompt} | _whole(decoder, step_model(lm), inputs, tokenizer)
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print(prompt, end="", flush=True)
        count = _stream(decoder, step_model(lm), inputs, tokenizer)
        if count == room < config.max_tokens:
            print(f"(The model's context of {context} tokens allowed {room} more.)", file=sys.stderr)
    return 0


def _load(config: GenerateConfig) -> tuple[Any, Tokenizer, int | None, Any]:
    """The language model, its tokenizer, the longest text it can hold (None: not said), and where it is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from limner.device import choose
    from limner.models.hub import load_stock
    from limner.tokenizer import get_tokenizer

    folder = model_named(config.model, config.runs_dir)
    choice = choose(config.device, config.precision, config.threads)
    try:
        stock_config = load_stock(AutoConfig, folder, "language model")
    except OSError as error:
        if Path(folder).exists() or "/" in folder:
            raise
        raise FileNotFoundError(f"There is no run '{folder}' in {config.runs_dir}. {error}") from error
    if stock_config.model_type == "gpt2":
        from limner.models.gpt import GPTModel

        lm: Any = GPTModel.from_pretrained(folder)
    else:
        lm = load_stock(AutoModelForCausalLM, folder, "language model")
    tokenizer = get_tokenizer(folder)
    context = getattr(stock_config, "max_position_embeddings", None)
    return lm.to(choice.device, choice.dtype).eval(), tokenizer, context, choice.device


def _stream(decoder: Decoder[Any], model: StepModel, inputs: Any, tokenizer: Tokenizer) -> int:
    """Prints the text as it grows; half a character waits for its other half. Returns the number of tokens."""
    began, tokens, shown = time.perf_counter(), [], 0
    prompt = inputs[0].tolist()
    for column in decoder.stream(model, input_ids=inputs):
        tokens.append(int(column[0]))
        text = _text(tokenizer, prompt, tokens)
        whole = text.rstrip("\ufffd") if len(text) - len(text.rstrip("\ufffd")) <= 3 else text
        print(whole[shown:], end="", flush=True)
        shown = len(whole)
    seconds = time.perf_counter() - began
    print(_text(tokenizer, prompt, tokens)[shown:])
    print(f"({len(tokens)} tokens, {len(tokens) / seconds:.1f} tokens/s)", file=sys.stderr)
    return len(tokens)


def _text(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> str:
    """What was added to the prompt. Decoded together with it: some tokenizers drop a text's first space."""
    new = [token for token in tokens if token != tokenizer.eos_id]
    return tokenizer.decode(prompt + new)[len(tokenizer.decode(prompt)) :]


def _whole(decoder: Decoder[Any], model: StepModel, inputs: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """What --json prints. A token's ``logprob`` is the model's own, before temperature, filters and penalties."""
    began = time.perf_counter()
    decoded = decoder.decode_full(model, input_ids=inputs)
    tokens = decoded.tokens[0].tolist()
    return {
        "text": _text(tokenizer, inputs[0].tolist(), tokens),
        "tokens": [
            {"id": token, "piece": tokenizer.piece(token), "logprob": logprob}
            for token, logprob in zip(tokens, decoded.token_logprobs[0].tolist(), strict=True)
        ],
        "ending": decoded.endings[0],
        "mean_logprob": float(decoded.mean_logprobs[0]),
        "seconds": time.perf_counter() - began,
    }
