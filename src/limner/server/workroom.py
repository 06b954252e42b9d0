"""The server's end of the model worker: starts it, hands it requests, and ends it when it does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from limner.server.errors import Refusal

log = logging.getLogger("limner.server")
Answers = asyncio.Queue[tuple[str, Any]]
MOST_WAITING = 16
"""Requests that may wait for the worker; more are refused."""
GRACE_SECONDS = 5.0
"""How long a cancelled request may take to end before the worker is killed."""
_LINE_BYTES = 64 << 20


class Workroom:
    """One worker process, started at the first request, and again after it has died.

    Args:
        log_path: where the worker's own output goes.
        command: starts the worker; None: Limner's own.
    """

    def __init__(
        self,
        log_path: Path,
        threads: int,
        memory_bytes: int,
        timeout: float,
        command: list[str] | None = None,
    ) -> None:
        self.log_path, self.timeout = log_path, timeout
        self.threads, self.memory_bytes = threads, memory_bytes
        self.command = command or [sys.executable, "-m", "limner.server.worker"]
        self.loaded: list[dict[str, Any]] = []
        """The models that the worker holds, as it last said."""
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._last_id = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._cancelled: set[int] = set()
        self._current: int | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def new_id(self) -> int:
        """A number for a request, by which it can be cancelled."""
        self._last_id += 1
        return self._last_id

    async def ask(self, operation: str, arguments: dict[str, Any], id: int | None = None) -> dict[str, Any]:
        """The result of an operation.

        Raises:
            Refusal: see `stream`.
        """
        result: dict[str, Any] = {}
        async with contextlib.aclosing(self.stream(operation, arguments, id)) as answers:
            async for kind, body in answers:
                if kind == "result":
                    result = body
        return result

    async def stream(
        self, operation: str, arguments: dict[str, Any], id: int | None = None
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """("event", ...) as often as there is one, then ("result", ...). Leaving the loop cancels the request.

        Raises:
            Refusal: too many wait (busy), it took too long (timeout), the worker died (unavailable), or it
                refused what was asked (wrong_input).
        """
        if len(self._tasks) >= MOST_WAITING:
            waiting = len(self._tasks)
            raise Refusal("busy", f"{waiting} requests wait for the model worker already; try again later.")
        id = self.new_id() if id is None else id
        answers: Answers = asyncio.Queue()
        # A task of its own: whoever asked may be gone at any moment, and the worker must still be left in order.
        task = asyncio.create_task(self._run(id, operation, arguments, answers))
        self._tasks[id] = task
        try:
            while True:
                kind, body = await answers.get()
                if isinstance(body, Refusal):
                    raise body
                yield kind, body
                if kind == "result":
                    return
        finally:
            self.cancel(id)

    def cancel(self, id: int) -> None:
        """Ends a request at its next token, and the worker if it takes longer; ended ones are no error."""
        if id not in self._tasks or id in self._cancelled:
            return
        self._cancelled.add(id)
        if id == self._current:
            self._tell_cancel(id)

    async def close(self) -> None:
        """Ends the worker."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    # -- one request -----------------------------------------------------------------------------------------

    async def _run(self, id: int, operation: str, arguments: dict[str, Any], answers: Answers) -> None:
        try:
            async with self._turn:
                if id in self._cancelled:
                    message = "The request was cancelled before its turn came."
                    answers.put_nowait(("error", Refusal("unavailable", message)))
                    return
                self._current = id
                await self._converse(id, operation, arguments, answers)
        except Refusal as refusal:
            answers.put_nowait(("error", refusal))
        except Exception as error:
            log.exception("A request to the model worker failed.")
            message = f"The model worker cannot be used: {type(error).__name__}: {error}"
            answers.put_nowait(("error", Refusal("unavailable", message)))
        finally:
            self._current = None
            self._tasks.pop(id, None)
            self._cancelled.discard(id)

    async def _converse(self, id: int, operation: str, arguments: dict[str, Any], answers: Answers) -> None:
        await self._ensure()
        await self._send({"id": id, "operation": operation, "arguments": arguments})
        overdue = asyncio.get_running_loop().call_later(self.timeout, self._overdue, id, answers)
        try:
            while True:
                answer = await self._read()
                if answer["id"] != id:
                    continue
                if "error" in answer:
                    raise Refusal(**answer["error"])
                kind = "result" if "result" in answer else "event"
                if "loaded" in answer[kind]:
                    self.loaded = answer[kind]["loaded"]
                answers.put_nowait((kind, answer[kind]))
                if kind == "result":
                    return
        finally:
            overdue.cancel()

    async def _read(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = await self._process.wait()
        self._process, self.loaded = None, []
        why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise Refusal("unavailable", f"The model worker has died ({why}); {self.log_path} has its last words.")

    def _overdue(self, id: int, answers: Answers) -> None:
        message = f"The model took longer than {self.timeout:g} s (--worker-timeout)."
        answers.put_nowait(("error", Refusal("timeout", message, flag="--worker-timeout")))
        self.cancel(id)

    def _tell_cancel(self, id: int) -> None:
        task = asyncio.create_task(self._send({"id": id, "operation": "cancel"}))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._kill_if_stuck, id)

    def _kill_if_stuck(self, id: int) -> None:
        if self._current == id and self._process is not None and self._process.returncode is None:
            log.warning("The model worker did not end a cancelled request in %g s and is killed.", GRACE_SECONDS)
            self._process.kill()

    async def _ensure(self) -> None:
        if self.alive:
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        threads = str(self.threads)
        capped = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        with open(self.log_path, "ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                threads,
                str(self.memory_bytes),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                limit=_LINE_BYTES,
                env={**os.environ, **capped},
                start_new_session=True,  # a Ctrl-C in the terminal ends the server, which ends the worker
            )
        self.loaded = []

    async def _send(self, request: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died; the next read tells
