"""The model worker: a process of its own that answers one request after the other, in JSON lines.

    in   {"id": 7, "operation": "generate", "arguments": {...}}     {"id": 7, "operation": "cancel"}
    out  {"id": 7, "event": {...}} ...   {"id": 7, "result": {...}} or {"id": 7, "error": {"code", "message", ...}}

It has few threads and a low priority, so that it never takes the cores from a trainer; it ends when its input
closes, that is, with the server. An operation is a generator: it yields events and returns the result.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import IO, Any

Event = dict[str, Any]
Operation = Callable[[dict[str, Any], Callable[[], bool]], Generator[Event, None, Event]]
"""``operation(arguments, cancelled)``: ``cancelled()`` is to be asked between tokens."""


def serve_requests(operations: dict[str, Operation], requests: IO[str], answers: IO[str]) -> None:
    """Answers until the input ends."""
    waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
    cancelled: set[int] = set()

    def listen() -> None:
        for line in requests:
            request = json.loads(line)
            if request["operation"] == "cancel":
                cancelled.add(request["id"])
            else:
                waiting.put(request)
        waiting.put(None)

    def say(id: int, **body: Any) -> None:
        answers.write(json.dumps({"id": id, **body}, allow_nan=False) + "\n")
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    while (request := waiting.get()) is not None:
        id = request["id"]
        try:
            steps = operations[request["operation"]](request["arguments"], partial(cancelled.__contains__, id))
            while True:
                say(id, event=next(steps))
        except StopIteration as end:
            say(id, result=end.value)
        except Exception as error:
            say(id, error=_refusal(error))
        cancelled.discard(id)


def _refusal(error: Exception) -> dict[str, Any]:
    """What the user can mend is told as wrong input; the rest is told with its type, and goes to the log."""
    if isinstance(error, (ValueError, FileNotFoundError, ImportError)):
        return {"code": "wrong_input", "message": str(error), "field": getattr(error, "field", None)}
    if isinstance(error, MemoryError):
        return {"code": "unavailable", "message": "There is not enough memory for this model.", "field": None}
    import traceback

    traceback.print_exception(error)
    return {"code": "unavailable", "message": f"The model failed: {type(error).__name__}: {error}", "field": None}


def main(argv: list[str]) -> int:
    """``python -m limner.server.worker THREADS MEMORY_BYTES``."""
    threads, memory = int(argv[0]), int(argv[1])
    with contextlib.suppress(OSError):  # some containers forbid it
        os.nice(10)
    # Libraries print what they like to standard output: it must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from limner.server.playground import Playground

    serve_requests(Playground(threads, memory).operations, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
