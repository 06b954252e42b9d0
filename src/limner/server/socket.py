"""The live wire: ``/ws/runs/{id}`` tells a run's events as they come, numbered, none lost and none twice.

A client has a cursor and nothing more: its queue is the log itself, read again from the disk. So the memory that a
client costs is one batch, however slow it is or frozen; one that falls too far behind is told to `resync`, and one
that takes nothing for a minute is cut off (it will come back with its last number).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError

from limner.server.errors import Refusal
from limner.server.summary import RunSummary
from limner.server.watch import Runs, Watched

log = logging.getLogger("limner.server")
router = APIRouter()

BATCH_SECONDS = 0.1
BATCH_EVENTS = 1000
BATCH_BYTES = 64 << 10
SNAPSHOT_EVENTS = 20_000
"""A gap of more events than this is not told one by one: the client fetches a chart of it instead."""
RESYNC_EVENTS = 20_000
"""A client that falls behind the log by more events than this, while it is told, must subscribe again."""
PING_SECONDS = 10.0
STATE_SECONDS = 2.0
SEND_SECONDS = 60.0
"""A client whose connection takes nothing for so long is cut off."""


class Subscribe(BaseModel):
    type: str
    after_seq: int = Field(default=0, ge=0, le=2**53)


class Client:
    """One connection that watches one run."""

    def __init__(self, socket: WebSocket, runs: Runs, watched: Watched) -> None:
        self.socket, self.runs, self.watched = socket, runs, watched
        self.cursor: int | None = None
        self.begun: float | None = None
        """Of the log that the cursor counts in."""
        self._told_state: tuple[Any, ...] = ()
        self._told_time = 0.0
        self._turn = asyncio.Event()
        self._asked: int | None = None

    async def talk(self) -> None:
        async with self.runs.following(self.watched):
            tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._tell())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        while True:
            try:
                text = await self.socket.receive_text()
            except KeyError:  # a binary frame
                text = ""
            try:
                message = json.loads(text)
                kind = message.get("type")
                if kind == "subscribe":
                    self.subscribe(Subscribe.model_validate(message).after_seq)
                elif kind != "pong":
                    await self.send(
                        {"type": "error", "message": f"'{str(kind)[:50]}' is no message; say subscribe."}
                    )
            except (ValueError, AttributeError, ValidationError, RecursionError):
                await self.send({"type": "error", "message": 'Say {"type": "subscribe", "after_seq": N}.'})

    def subscribe(self, after_seq: int) -> None:
        self._asked = after_seq
        self._turn.set()

    def subscribe_from_start(self) -> None:
        """For clients of the older form, which say nothing."""
        if self.cursor is None and self._asked is None:
            self.subscribe(0)

    async def _tell(self) -> None:
        last_ping = time.monotonic()
        while True:
            if self._asked is not None:
                await self._begin()
            if self.watched.gone:
                await self.socket.close(4404, "the run has been deleted")
                return
            if self.cursor is not None:
                await self._catch_up()
                await self._tell_state()
            if time.monotonic() - last_ping >= PING_SECONDS:
                last_ping = time.monotonic()
                await self.send({"type": "ping", "time": time.time()})
            await self._rest(min(PING_SECONDS, STATE_SECONDS))

    async def _rest(self, seconds: float) -> None:
        """Until there is something to tell; never shorter than a batch's time, except for a new subscription."""
        self._turn.clear()
        if self._asked is not None:
            return
        turn = asyncio.create_task(self._turn.wait())
        bell = asyncio.create_task(self.watched.wait(seconds))
        began = time.monotonic()
        try:
            behind = self.cursor is not None and self.cursor < self.watched.index.last_seq
            if not behind:
                await asyncio.wait([turn, bell], return_when=asyncio.FIRST_COMPLETED)
            left = BATCH_SECONDS - (time.monotonic() - began)
            if left > 0 and not turn.done():
                await asyncio.wait([turn], timeout=left)
        finally:
            turn.cancel()
            bell.cancel()
            await asyncio.gather(turn, bell, return_exceptions=True)

    async def _begin(self) -> None:
        """Answers a subscription: hello (``begun`` tells logs of one name apart), and a snapshot of a large gap."""
        after, self._asked = self._asked or 0, None
        await asyncio.to_thread(self.watched.index.update)  # all of it: numbers are told from here on
        summary = await asyncio.to_thread(self.runs.update, self.watched)
        last, self.begun = self.watched.index.last_seq, self._log_begun()
        hello = {"type": "hello", "protocol": 1, "run": summary.id, "after_seq": after, "last_seq": last}
        await self.send(hello | {"begun": self.begun, "status": summary.status, "time": time.time()})
        self.cursor = min(after, last)
        if last - after > SNAPSHOT_EVENTS:
            self.cursor = last
            snapshot = {"type": "snapshot", "after_seq": after, "to": last}
            await self.send(snapshot | {"run": summary.model_dump(mode="json")})
        self._told_state = ()

    def _log_begun(self) -> float | None:
        """The time of the log's first event; None: there is none yet."""
        attempts = self.watched.index.attempts
        return attempts[0]["started"] if attempts else None

    async def _catch_up(self) -> None:
        """Sends what is new, batch by batch; falls back to `resync` when the log runs away from the client."""
        index = self.watched.index
        begun = self._log_begun()
        if self.begun is None:
            self.begun = begun
        if begun != self.begun:  # a run of the same name, in the place of the one that was told
            await self._resync("the log was begun anew")
            return
        began = index.last_seq
        while self.cursor is not None and self.cursor < index.last_seq and self._asked is None:
            first, last = self.cursor + 1, min(self.cursor + BATCH_EVENTS, index.last_seq)
            lines = await asyncio.to_thread(index.lines, first, last, BATCH_BYTES)
            if not lines:  # the log was replaced by a shorter one
                await self._resync("the log was begun anew")
                return
            last = first + len(lines) - 1
            head = b'{"type":"events","from":%d,"to":%d,"events":[' % (first, last)
            await self.send_bytes(head + b",".join(lines) + b"]}")
            self.cursor = last
            # What grew while we sent, not what was missing at the beginning, tells a slow client.
            if index.last_seq - max(began, last) > RESYNC_EVENTS:
                await self._resync("too far behind")
                return

    async def _resync(self, reason: str) -> None:
        self.cursor = None
        await self.send({"type": "resync", "last_seq": self.watched.index.last_seq, "reason": reason})

    async def _tell_state(self) -> None:
        summary = self.watched.summary
        if summary is None:
            return
        state = (summary.status, summary.detail, tuple(summary.actions), summary.queue_position)
        stale = summary.seq != self._told_seq and time.monotonic() - self._told_time >= STATE_SECONDS
        if state != self._told_state or stale:
            self._told_state, self._told_seq, self._told_time = state, summary.seq, time.monotonic()
            await self.send({"type": "state", "run": summary.model_dump(mode="json")})

    _told_seq = -1

    async def send(self, message: dict[str, Any]) -> None:
        await self.send_bytes(json.dumps(message, allow_nan=False).encode())

    async def send_bytes(self, body: bytes) -> None:
        try:
            await asyncio.wait_for(self.socket.send_text(body.decode()), SEND_SECONDS)
        except TimeoutError:
            raise WebSocketDisconnect(1013, "takes nothing") from None


async def _serve(socket: WebSocket, name: str, subscribe_after: float | None = None) -> None:
    runs: Runs = socket.app.state.runs
    await socket.accept()
    try:
        watched, _ = await runs.summary(name)
    except Refusal as refusal:
        await socket.close(4404, refusal.detail.message[:120])
        return
    client = Client(socket, runs, watched)
    waiting = None
    if subscribe_after is not None:
        waiting = asyncio.get_running_loop().call_later(subscribe_after, client.subscribe_from_start)
    try:
        # Disconnects end here, also those that show only as a send after the close.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            try:
                await client.talk()
            except (Refusal, FileNotFoundError):  # deleted while it was read
                await socket.close(4404, "the run has been deleted")
    finally:
        if waiting is not None:
            waiting.cancel()


@router.websocket("/ws/runs/{id}")
async def watch_run(socket: WebSocket, id: str) -> None:
    await _serve(socket, id)


@router.websocket("/ws/training")
async def watch_current(socket: WebSocket) -> None:
    """The older form: the current run, told from its beginning where the client does not say from where."""
    found = current_run((await asyncio.to_thread(socket.app.state.runs.summaries))[0])
    if found is None:
        await socket.accept()
        await socket.close(4404, "there is no run yet")
        return
    await _serve(socket, found.id, subscribe_after=1.0)


def current_run(summaries: list[RunSummary]) -> RunSummary | None:
    """The newest active run, else the newest of all that are not recordings."""
    own = [summary for summary in summaries if not summary.recorded]
    return next((summary for summary in own if summary.status.active), own[0] if own else None)
