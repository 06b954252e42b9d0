"""``limner generate``: continue a prompt, token by token as they come."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from limner.cli.parse import parse
from limner.cli.telling import json_line, writes_utf8
from limner.config.generate import GenerateConfig
from limner.runs.models import find_checkpoint, find_model

if TYPE_CHECKING:
    from limner.decoding.text_model import Continuation, TextModel, Token
    from limner.runs import Run


def run(argv: list[str]) -> int:
    config = parse(GenerateConfig, argv, "limner generate")
    prompt = config.prompt
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A prompt may have bytes that are no text; JSON says them as \udcff.
        plain = "surrogateescape" if writes_utf8() else "replace"
        sys.stdout.reconfigure(errors="backslashreplace" if config.json_output else plain)
    model = _load(config)
    drawing = {name: getattr(config, name) for name in ("top_k", "top_p", "min_p", "seed")}
    tokens = model.continued(
        prompt,
        max_tokens=config.max_tokens,
        stop=config.stop,
        repetition_penalty=config.repetition_penalty,
        temperature=config.temperature,
        **drawing,
    )
    if config.json_output:
        told: list[Token] = []
        said = _finish(tokens, told.append)
        print(json_line({"prompt": prompt} | _answer(said, told, model)))
        return 0
    _say(prompt)
    shown = 0

    def show(token: Token) -> None:
        nonlocal shown
        _say(token.text)
        shown += len(token.text)

    said = _finish(tokens, show)
    _say(said.text[shown:] + "\n")
    print(f"({said.num_tokens} tokens, {said.num_tokens / said.seconds:.1f} tokens/s)", file=sys.stderr)
    if said.ending == "context":
        print(f"(The model's context of {model.context} tokens allowed no more.)", file=sys.stderr)
    return 0


def _load(config: GenerateConfig) -> TextModel:
    from limner.decoding.text_model import load_text_model

    found = find_checkpoint(config.model, config.runs_dir, "language model")
    if found is not None:
        return _at_checkpoint(*found, config)
    source = find_model(config.model, config.runs_dir, "language model")
    try:
        return load_text_model(source, config.device, config.precision, config.quantize, threads=config.threads)
    except OSError as error:
        if Path(source).exists() or "/" in source:
            raise
        raise FileNotFoundError(f"There is no run '{source}' in {config.runs_dir}. {error}") from error


def _at_checkpoint(run: Run, checkpoint: Path, config: GenerateConfig) -> TextModel:
    """The model as it stood at a checkpoint: built again as its run built it, then given those weights."""
    from limner.decoding.text_model import TextModel
    from limner.device import choose
    from limner.models.gpt_stock import to_stock
    from limner.training.checkpoint_model import restored

    choice = choose(config.device, config.precision, config.threads)
    print(f"(Run {run.name} is {run.state().status}; this is its checkpoint {checkpoint}.)", file=sys.stderr)
    with TemporaryDirectory() as scratch:
        task: Any = restored(run, checkpoint, Path(scratch))
    lm: Any = to_stock(task.model, task.tokenizer.eos_id)
    return TextModel(lm.to(choice.device), task.tokenizer, choice.dtype, config.quantize)


def _finish(tokens: Generator[Token, None, Continuation], tell: Callable[[Token], None]) -> Continuation:
    while True:
        try:
            tell(next(tokens))
        except StopIteration as end:
            return end.value


def _say(text: str) -> None:
    from limner.decoding.text_model import visible

    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def _answer(said: Continuation, told: list[Token], model: TextModel) -> dict[str, Any]:
    """What --json prints. A token's ``logprob`` is the model's own, before temperature, filters and penalties."""
    return {
        "text": said.text,
        "tokens": [
            {"id": token.id, "piece": model.tokenizer.piece(token.id), "logprob": token.logprob} for token in told
        ],
        "ending": said.ending,
        "mean_logprob": said.mean_logprob,
        "seconds": said.seconds,
    }
