"""The older forms of the interface, for scripts written against them: they mean the current run."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from limner.server.errors import Refusal, responses
from limner.server.routes.start import Order, start
from limner.server.routes.steer import pause, resume, stop
from limner.server.socket import current_run
from limner.server.summary import RunSummary

router = APIRouter(prefix="/api/train", tags=["older"])


@router.post("/start", status_code=201, responses=responses(409))
async def train_start(request: Request, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Starts a run: `{"verb", "config": {...}}`, or the settings flat. The verb is "pretrain" unless said."""
    settings = dict(body or {})
    verb = str(settings.pop("verb", "pretrain"))
    name = settings.pop("name", None)
    if isinstance(settings.get("config"), dict):
        settings = settings["config"]
    order = Order(verb=verb[:50], config=settings, name=None if name is None else str(name)[:128])
    return _older(await start(request, order))


@router.get("/status", responses=responses())
async def train_status(request: Request) -> dict[str, Any]:
    """The current run: the newest active one, else the newest."""
    found = await _current(request)
    return _older(found) if found else {"status": "idle", "run_id": None}


@router.post("/{action}", responses=responses(404, 409))
async def train_steer(request: Request, action: str) -> dict[str, Any]:
    """`pause`, `resume` or `stop` the current run."""
    actions = {"pause": pause, "resume": resume, "stop": stop}
    if action not in actions:
        raise Refusal("not_found", f"'{action[:50]}' is none of: start, {', '.join(actions)}, status.")
    found = await _current(request)
    if found is None:
        raise Refusal("wrong_state", f"There is no run to {action}.", state="idle")
    await actions[action](request, found.id)  # type: ignore[operator]
    return _older((await request.app.state.runs.summary(found.id))[1])


async def _current(request: Request) -> RunSummary | None:
    return current_run((await asyncio.to_thread(request.app.state.runs.summaries))[0])


def _older(summary: RunSummary) -> dict[str, Any]:
    told = summary.model_dump(mode="json")
    return {name: told[name] for name in ("status", "step", "total_steps", "last", "detail")} | {
        "run_id": summary.id
    }
