"""What the model worker can do: load models, continue texts, caption pictures; and which models it keeps.

Runs in the worker process only: this module imports torch.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.decoding import Prefix, StepModel, get_decoder, step_model
from limner.decoding.captioner import Caption, Captioner, load_captioner
from limner.models.hub import load_stock
from limner.server.worker import Event, Operation
from limner.tokenizer import Tokenizer, get_tokenizer

Answer = Generator[Event, None, Event]
Cancelled = Callable[[], bool]
_HALF = "\ufffd"
"""What stands for half a character."""


class Stopped(Exception):
    """The request was cancelled."""


class Spy:
    """A step model that remembers its last logits, and stops when the request is cancelled."""

    def __init__(self, model: StepModel, cancelled: Cancelled) -> None:
        self.model, self.cancelled = model, cancelled
        self.device, self.eos_token_ids = model.device, model.eos_token_ids
        self.pad_token_id = model.pad_token_id
        self.logits = torch.empty(0)

    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, Any]:
        self._ask()
        self.logits, state = self.model.prefill(prefix, max_new_tokens, num_beams)
        return self.logits, state

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        self._ask()
        self.logits = self.model.step(tokens, state)
        return self.logits

    def reorder(self, rows: Tensor, state: Any) -> None:
        self.model.reorder(rows, state)

    def _ask(self) -> None:
        if self.cancelled():
            raise Stopped


@dataclass
class TextModel:
    """A language model with its tokenizer."""

    lm: nn.Module
    tokenizer: Tokenizer
    context: int | None
    """The longest text that it can hold; None: not said."""

    @property
    def module(self) -> nn.Module:
        return self.lm


@dataclass
class PictureModel:
    """A captioner."""

    captioner: Captioner

    @property
    def module(self) -> nn.Module:
        return self.captioner.vlm


@dataclass
class Loaded:
    model: TextModel | PictureModel
    kind: str
    stamp: float
    """When its files were written: a changed model is loaded anew."""
    bytes: int
    parameters: int


class Playground:
    """The worker's models and operations.

    Args:
        memory_bytes: the most that models may take together; the least recently used ones are dropped.
    """

    def __init__(self, threads: int, memory_bytes: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.memory_bytes, self.device, self.threads = memory_bytes, device, threads
        self._models: OrderedDict[str, Loaded] = OrderedDict()
        self.operations: dict[str, Operation] = {
            "load": self.load,
            "unload": self.unload,
            "generate": self.generate,
            "caption": self.caption,
        }

    # -- models ----------------------------------------------------------------------------------------------

    def load(self, arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
        """``id``, ``path``, ``kind`` ("text" or "caption")."""
        began = time.perf_counter()
        yield {"phase": "loading"}
        loaded = self._get(arguments)
        return {
            "model": arguments["id"],
            "kind": loaded.kind,
            "parameters": loaded.parameters,
            "bytes": loaded.bytes,
            "seconds": round(time.perf_counter() - began, 3),
            "loaded": self._list(),
        }

    def unload(self, arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
        self._models.pop(arguments["id"], None)
        yield {"phase": "unloading"}
        return {"model": arguments["id"], "loaded": self._list()}

    def _get(self, arguments: dict[str, Any]) -> Loaded:
        id, path = arguments["id"], Path(arguments["path"])
        stamp = max((file.stat().st_mtime for file in path.iterdir()), default=0.0)
        found = self._models.get(id)
        if found is None or found.stamp != stamp:
            self._models.pop(id, None)
            if "cache" in arguments:
                from limner.server.checkpoint_model import stock_folder

                path = stock_folder(Path(arguments["run"]), path, Path(arguments["cache"]))
            model = self._read(path, arguments["kind"])
            tensors = {t.data_ptr(): t for t in (*model.module.parameters(), *model.module.buffers())}
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            parameters = sum(p.numel() for p in model.module.parameters())
            found = Loaded(model, arguments["kind"], stamp, size, parameters)
            self._make_room(size)
            self._models[id] = found
        self._models.move_to_end(id)
        return found

    def _make_room(self, size: int) -> None:
        while self._models and sum(m.bytes for m in self._models.values()) + size > self.memory_bytes:
            self._models.popitem(last=False)

    def _list(self) -> list[dict[str, Any]]:
        return [{"id": id, "bytes": loaded.bytes} for id, loaded in self._models.items()]

    def _read(self, path: Path, kind: str) -> TextModel | PictureModel:
        if kind == "caption":
            return PictureModel(load_captioner(path, self.device, threads=self.threads))
        from transformers import AutoConfig, AutoModelForCausalLM

        config = load_stock(AutoConfig, path, "language model")
        if config.model_type == "gpt2":
            from limner.models.gpt import GPTModel

            lm: Any = GPTModel.from_pretrained(str(path))
        else:
            lm = load_stock(AutoModelForCausalLM, path, "language model")
        context = getattr(config, "max_position_embeddings", None)
        return TextModel(lm.to(self.device).eval(), get_tokenizer(str(path)), context)

    # -- texts -----------------------------------------------------------------------------------------------

    def generate(self, arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
        """Continues ``prompt``; an event for each token, with the likeliest others in its place."""
        loaded = self._get(arguments)
        model = loaded.model
        if not isinstance(model, TextModel):
            raise ValueError("This model captions pictures; choose a language model.")
        prefix = self._prefix(model, arguments["prompt"], arguments["forced"])
        room = arguments["max_tokens"]
        if model.context is not None:
            room = min(room, model.context + 1 - len(prefix))  # the last token needs no place of its own
        if room < 1:
            raise ValueError(
                f"The prompt has {len(prefix)} tokens, and the model's context holds {model.context}; shorten it."
            )
        decoder = get_decoder(
            "sample" if arguments["temperature"] else "greedy",
            tokenizer=model.tokenizer,
            max_new_tokens=room,
            repetition_penalty=arguments["repetition_penalty"],
            stop_strings=tuple(arguments["stop"]),
            eos_token_id=(model.tokenizer.eos_id,),
            **(
                {name: arguments[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
                if arguments["temperature"]
                else {}
            ),
        )
        yield {"loaded": self._list()}
        spy = Spy(step_model(model.lm), cancelled)
        began = time.perf_counter()
        tokens: list[int] = []
        shown = 0
        finish = "length"
        inputs = torch.tensor([prefix], device=spy.device)
        try:
            for column in decoder.stream(spy, input_ids=inputs):
                tokens.append(int(column[0]))
                text = _added(model.tokenizer, prefix, tokens)
                whole = text.rstrip(_HALF) if len(text) - len(text.rstrip(_HALF)) <= 3 else text
                token = _token(model.tokenizer, spy.logits[0], tokens[-1], arguments["alternatives"])
                yield {"token": token | {"text": whole[shown:]}}
                shown = max(shown, len(whole))
        except Stopped:
            finish = "cancelled"
        else:
            if tokens and tokens[-1] == model.tokenizer.eos_id:
                finish = "eos"
            elif any(stop in _added(model.tokenizer, prefix, tokens) for stop in arguments["stop"]):
                finish = "stop"
            elif len(tokens) < arguments["max_tokens"]:
                finish = "context"
        seconds = time.perf_counter() - began
        forced = arguments["forced"]
        plain = prefix[: len(prefix) - len(forced)]
        return {
            "text": _added(model.tokenizer, plain, [*forced, *tokens]),
            "finish": finish,
            "prompt_tokens": len(plain),
            "seconds": round(seconds, 3),
            "tokens_per_second": round(len(tokens) / seconds, 2) if seconds > 0 else 0.0,
        }

    def _prefix(self, model: TextModel, prompt: str, forced: list[int]) -> list[int]:
        tokenizer = model.tokenizer
        ids = tokenizer.encode_prompt(prompt)
        unknown = [id for id in forced if not 0 <= id < tokenizer.vocab_size]
        if unknown:
            raise ValueError(f"The model has no token {unknown[0]}; its ids are below {tokenizer.vocab_size}.")
        if not ids + forced:
            raise ValueError("This model's tokenizer has no token that begins a text; give a prompt.")
        return ids + forced

    # -- pictures --------------------------------------------------------------------------------------------

    def caption(self, arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
        """Captions the picture at ``image`` (a file): all beams, the best first, or what a consensus chose."""
        yield {"phase": "loading"}
        loaded = self._get(arguments)
        if not isinstance(loaded.model, PictureModel):
            raise ValueError("This model continues texts; choose one that captions pictures.")
        yield {"phase": "captioning", "loaded": self._list()}
        captioner = loaded.model.captioner
        beams = arguments["num_beams"]
        chooses = arguments["consensus"] and captioner.consensus is not None and beams > 1
        count = None if chooses or beams == 1 else min(beams, arguments["num_captions"] or beams)
        began = time.perf_counter()
        captions = captioner.describe(
            [Path(arguments["image"]).read_bytes()],
            consensus=chooses,
            cancel=cancelled,
            num_beams=beams,
            max_new_tokens=arguments["max_length"],
            num_return_sequences=count,
        )
        finish = "cancelled" if cancelled() else captions[0].ending
        shown = [] if finish == "cancelled" else [_caption(captioner.tokenizer, caption) for caption in captions]
        for index, found in enumerate(shown):
            yield {"caption": found | {"index": index}}
        seconds = round(time.perf_counter() - began, 3)
        return {"consensus": chooses, "captions": shown, "finish": finish, "seconds": seconds}


def _added(tokenizer: Tokenizer, prefix: list[int], tokens: list[int]) -> str:
    """What the tokens add to the prefix's text. Decoded together: some tokenizers drop a text's first space."""
    new = [token for token in tokens if token != tokenizer.eos_id]
    return tokenizer.decode(prefix + new)[len(tokenizer.decode(prefix)) :]


def _token(tokenizer: Tokenizer, logits: Tensor, chosen: int, alternatives: int) -> dict[str, Any]:
    """A token with the model's own log-probability, before temperature, filters and penalties."""
    logprobs = logits.float().log_softmax(0)  # (V,)
    found: dict[str, Any] = {"id": chosen, "logprob": _finite(float(logprobs[chosen])), "alternatives": []}
    if alternatives:
        values, ids = logprobs.topk(min(alternatives, len(logprobs)))
        for value, id in zip(values.tolist(), ids.tolist(), strict=True):
            piece = tokenizer.piece(id) if id < tokenizer.vocab_size else ""
            found["alternatives"].append({"id": id, "text": piece, "logprob": _finite(value)})
    return found


def _caption(tokenizer: Any, caption: Caption) -> dict[str, Any]:
    """A caption with its tokens, each with what it adds to the text."""
    tokens, before = [], ""
    for k, (id, logprob) in enumerate(zip(caption.tokens, caption.token_logprobs, strict=True)):
        text = tokenizer.decode(caption.tokens[: k + 1], skip_special_tokens=True)
        whole = text if not text.endswith(_HALF) else before
        tokens.append({"id": id, "text": whole[len(before) :], "logprob": _finite(logprob)})
        before = whole
    return {"text": caption.text, "score": round(caption.score, 5), "ending": caption.ending, "tokens": tokens}


def _finite(logprob: float) -> float:
    """For JSON: a token that the model rules out altogether has a log-probability of minus infinity."""
    return round(max(logprob, -1e4), 5)
