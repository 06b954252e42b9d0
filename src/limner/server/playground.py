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
from torch import nn

from limner.decoding.captioner import Caption, Captioner, load_captioner
from limner.decoding.text_model import HALF, Continuation, TextModel, Token, load_text_model
from limner.server.worker import Event, Operation
from limner.tokenizer import Tokenizer

Answer = Generator[Event, None, Event]
Cancelled = Callable[[], bool]


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
                from limner.training.checkpoint_model import stock_folder

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
        return load_text_model(path, self.device, precision=None, threads=self.threads)

    # -- texts -----------------------------------------------------------------------------------------------

    def generate(self, arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
        """Continues ``prompt``; an event for each token, with the likeliest others in its place."""
        loaded = self._get(arguments)
        model = loaded.model
        if not isinstance(model, TextModel):
            raise ValueError("This model captions pictures; choose a language model.")
        names = ("forced", "max_tokens", "stop", "repetition_penalty", "temperature", "alternatives")
        drawing = ("top_k", "top_p", "min_p", "seed")
        settings = {name: arguments[name] for name in (*names, *drawing)}
        tokens = model.continued(arguments["prompt"], cancel=cancelled, **settings)
        yield {"loaded": self._list()}
        while True:
            try:
                token = next(tokens)
            except StopIteration as end:
                said: Continuation = end.value
                break
            yield {"token": _token(model.tokenizer, token)}
        return {
            "text": said.text,
            "finish": said.ending,
            "prompt_tokens": said.prompt_tokens,
            "seconds": round(said.seconds, 3),
            "tokens_per_second": round(said.num_tokens / said.seconds, 2) if said.seconds > 0 else 0.0,
        }

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


def _token(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    alternatives = [
        {"id": id, "text": tokenizer.piece(id) if id < tokenizer.vocab_size else "", "logprob": _finite(logprob)}
        for id, logprob in token.alternatives
    ]
    return {"id": token.id, "text": token.text, "logprob": _finite(token.logprob), "alternatives": alternatives}


def _caption(tokenizer: Any, caption: Caption) -> dict[str, Any]:
    """A caption with its tokens, each with what it adds to the text."""
    tokens, before = [], ""
    for k, (id, logprob) in enumerate(zip(caption.tokens, caption.token_logprobs, strict=True)):
        text = tokenizer.decode(caption.tokens[: k + 1], skip_special_tokens=True)
        whole = text if not text.endswith(HALF) else before
        tokens.append({"id": id, "text": whole[len(before) :], "logprob": _finite(logprob)})
        before = whole
    return {"text": caption.text, "score": round(caption.score, 5), "ending": caption.ending, "tokens": tokens}


def _finite(logprob: float) -> float:
    """For JSON: a token that the model rules out altogether has a log-probability of minus infinity."""
    return round(max(logprob, -1e4), 5)
