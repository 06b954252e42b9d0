"""A model worker without models: `limner.server.worker`'s conversation, made-up words.

Models whose id holds "slow" take 0.2 s a token, "stuck" never ends and hears nothing, "dead" kills the process.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

from limner.server.worker import serve_requests

WORDS = [" the", " small", " red", " circle", " left", " of", " a", " large", " blue", " square", ".", "<eos>"]
Answer = Generator[dict[str, Any], None, dict[str, Any]]
Cancelled = Callable[[], bool]
loaded: dict[str, int] = {}


def _load(arguments: dict[str, Any]) -> None:
    id = arguments["id"]
    if "dead" in id:
        os.kill(os.getpid(), signal.SIGKILL)
    if "bad" in id:
        raise ValueError("This model lacks model.safetensors; train it again.")
    loaded[id] = 1000


def _list() -> list[dict[str, Any]]:
    return [{"id": id, "bytes": size} for id, size in loaded.items()]


def load(arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
    yield {"phase": "loading"}
    _load(arguments)
    head = {"model": arguments["id"], "kind": arguments["kind"], "parameters": 250, "bytes": 1000}
    return {**head, "seconds": 0.01, "loaded": _list()}


def unload(arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
    loaded.pop(arguments["id"], None)
    yield {"phase": "unloading"}
    return {"model": arguments["id"], "loaded": _list()}


def _ranked(seed: str) -> list[tuple[int, float]]:
    """Word ids with log-probabilities, the likeliest first: a pure function of what stands before."""
    digest = hashlib.sha256(seed.encode()).digest()
    weights = [1.0 + byte for byte in digest[: len(WORDS)]]
    ranked = [(k, math.log(weight / sum(weights))) for k, weight in enumerate(weights)]
    return sorted(ranked, key=lambda item: -item[1])


def generate(arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
    _load(arguments)
    yield {"loaded": _list()}
    while "stuck" in arguments["id"]:
        time.sleep(1)
    text = "".join(WORDS[id % len(WORDS)] for id in arguments["forced"])
    began, count, finish = time.perf_counter(), 0, "length"
    while count < arguments["max_tokens"]:
        if cancelled():
            finish = "cancelled"
            break
        time.sleep(0.2 if "slow" in arguments["id"] else 0.01)
        ranked = _ranked(f"{arguments['seed']}{arguments['prompt']}{text}")
        id, logprob = ranked[0]
        count += 1
        alternatives = [{"id": k, "text": WORDS[k], "logprob": p} for k, p in ranked[: arguments["alternatives"]]]
        ended = WORDS[id] == "<eos>" and "slow" not in arguments["id"]  # a slow text is there to be cancelled
        yield {
            "token": {
                "id": id,
                "text": "" if ended else WORDS[id],
                "logprob": logprob,
                "alternatives": alternatives,
            }
        }
        if ended:
            finish = "eos"
            break
        text += WORDS[id]
    seconds = time.perf_counter() - began
    return {
        "text": text,
        "finish": finish,
        "prompt_tokens": len(arguments["prompt"].split()),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(count / max(seconds, 1e-6), 1),
    }


def caption(arguments: dict[str, Any], cancelled: Cancelled) -> Answer:
    yield {"phase": "loading"}
    _load(arguments)
    yield {"phase": "captioning", "loaded": _list()}
    with open(arguments["image"], "rb") as file:
        seed = hashlib.sha256(file.read()).hexdigest()
    time.sleep(0.3)
    captions = []
    for beam in range(arguments["num_beams"]):
        tokens, text = [], "A"
        tokens.append({"id": 99, "text": "A", "logprob": -0.1})
        for _ in range(5):
            id, logprob = _ranked(f"{seed}{beam}{text}")[0]
            tokens.append({"id": id, "text": WORDS[id], "logprob": logprob})
            text += WORDS[id]
        captions.append({"text": text, "score": -0.5 - 0.25 * beam, "ending": "eos", "tokens": tokens})
        yield {"caption": captions[-1] | {"index": beam}}
    return {"captions": captions, "finish": "eos", "seconds": 0.3}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    operations = {"load": load, "unload": unload, "generate": generate, "caption": caption}
    serve_requests(operations, sys.stdin, answers)
