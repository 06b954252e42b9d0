"""Steering runs: each request becomes a command file, or another process of the run; nothing else."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from limner.runs import Run, Status, send_command
from limner.runs.folder import checkpoint_step, remove_folder
from limner.server.errors import Refusal, responses
from limner.server.launcher import Launcher
from limner.server.routes.runs import checkpoint_path
from limner.server.summary import RunSummary
from limner.server.watch import Runs, Watched, inside

router = APIRouter(prefix="/api/runs/{id}", tags=["control"])


class Steered(BaseModel):
    """``command``: the id that the acknowledging event will name."""

    id: str
    command: str | None = None
    status: Status
    event: dict[str, Any] | None = None


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Resumption(BaseModel):
    model_config = ConfigDict(extra="forbid")
    checkpoint: str | None = Field(default=None, max_length=100)
    """Go on from this checkpoint instead of the latest; needs ``discard_later``."""
    discard_later: bool = False
    """Delete the checkpoints after it."""


class SampleWish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prompt: str | None = Field(default=None, max_length=20_000)
    image: str | None = Field(default=None, max_length=200)
    """The name of a picture in the run's samples."""
    settings: dict[str, float | int | str | bool | None] = {}


class Remark(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, max_length=20_000)


def _state(request: Request) -> tuple[Runs, Launcher]:
    return request.app.state.runs, request.app.state.launcher


async def _may(request: Request, id: str, action: str) -> tuple[Watched, RunSummary]:
    """The run, if this may be asked of it now.

    Raises:
        Refusal: 404, or 409 with the state.
    """
    watched, summary = await request.app.state.runs.summary(id, whole=True)
    if action not in summary.actions:
        state = "recorded" if watched.recorded else summary.status.value
        can = ", ".join(summary.actions) or "only be looked at"
        message = f"Run '{id}' is {state}; {action} makes no sense now (it can: {can})."
        raise Refusal("wrong_state", message, state=state)
    return watched, summary


async def _command(request: Request, id: str, action: str, **arguments: Any) -> Steered:
    watched, summary = await _may(request, id, action)
    command = await asyncio.to_thread(send_command, watched.run.path, action, **arguments)
    return Steered(id=id, command=command, status=summary.status)


@router.post("/pause", status_code=202, response_model=Steered, responses=responses(404, 409))
async def pause(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Holds the run at its next step boundary, the model kept in memory."""
    return await _command(request, id, "pause")


@router.post("/stop", status_code=202, response_model=Steered, responses=responses(404, 409))
async def stop(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Saves a checkpoint, then ends the run; one that waits in the queue leaves it."""
    runs, launcher = _state(request)
    if launcher.withdraw(runs.find(id).run.name):
        return Steered(id=id, status=(await runs.summary(id))[1].status)
    return await _command(request, id, "stop")


@router.post("/checkpoint", status_code=202, response_model=Steered, responses=responses(404, 409))
async def checkpoint(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Saves a resumable state now."""
    return await _command(request, id, "checkpoint")


@router.post("/note", status_code=202, response_model=Steered, responses=responses(404, 409))
async def note(request: Request, id: str, remark: Remark) -> Steered:
    """Puts a remark into the run's log."""
    return await _command(request, id, "note", text=remark.text)


@router.post("/kill", status_code=202, response_model=Steered, responses=responses(404, 409))
async def kill(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Ends the run's process at once; what came after its last checkpoint is lost."""
    runs, launcher = _state(request)
    watched, _ = await _may(request, id, "kill")
    await asyncio.to_thread(launcher.kill, watched.run)
    return Steered(id=id, status=(await runs.summary(id))[1].status)


@router.post("/resume", status_code=202, response_model=Steered, responses=responses(404, 409))
async def resume(request: Request, id: str, wish: Resumption | None = None) -> Steered:
    """Goes on: a paused run at once, an ended one in a new process (or in the queue)."""
    runs, launcher = _state(request)
    watched, summary = await _may(request, id, "resume")
    if summary.status is Status.PAUSED:
        if wish is not None and (wish.checkpoint is not None or wish.discard_later):
            message = f"Run '{id}' is paused and goes on as it is; stop it first to go on from a checkpoint."
            raise Refusal("wrong_state", message, field="checkpoint", state=summary.status)
        return await _command(request, id, "resume")
    if wish is not None and wish.checkpoint is not None:
        await asyncio.to_thread(_rewind, watched, wish)
    run: Run = watched.run
    arguments = [summary.verb, "--resume", run.name, "--runs-dir", str(runs.runs_dir.resolve())]
    device = str(run.config.get("config", {}).get("device", "auto"))
    await asyncio.to_thread(launcher.submit, run, arguments, device)
    return Steered(id=id, status=(await runs.summary(id))[1].status)


def _rewind(watched: Watched, wish: Resumption) -> None:
    """Removes the checkpoints after the wanted one, so that it is the latest."""
    wanted = checkpoint_path(watched, str(wish.checkpoint))
    step = checkpoint_step(wanted.name) or 0
    later = [path for path in watched.run.checkpoints() if (checkpoint_step(path.name) or 0) > step]
    if later and not wish.discard_later:
        message = f"{len(later)} later checkpoints would be deleted; say discard_later to go on from {wanted.name}."
        raise Refusal("wrong_input", message, field="discard_later")
    try:
        lock = watched.run.lock()
    except ValueError as error:
        raise Refusal("wrong_state", str(error), state=Status.RUNNING) from error
    with lock:
        for path in later:
            remove_folder(path)


@router.post("/sample", status_code=202, response_model=Steered, responses=responses(404, 409, 504))
async def sample(
    request: Request,
    id: str,
    wish: SampleWish,
    wait: Annotated[float, Query(ge=0, le=120, description="seconds to wait for the answer")] = 0,
) -> Steered:
    """Decodes a prompt or a picture with the run's live weights; the answer is a `sample` event."""
    if wish.prompt is None and wish.image is None:
        raise Refusal("wrong_input", "Give a prompt or a picture's name.", field="prompt")
    watched, _ = await _may(request, id, "sample")
    if wish.image is not None:
        inside(watched.run.samples_path, wish.image, "picture")
        steered = await _command(request, id, "sample", image=wish.image, settings=wish.settings)
    else:
        own = {name: value for name, value in wish.settings.items() if name not in ("name", "run_folder", "image")}
        steered = await _command(request, id, "sample", **{**own, "prompt": wish.prompt})
    if wait:
        steered.event = await _acknowledgement(request, id, str(steered.command), wait)
    return steered


async def _acknowledgement(request: Request, id: str, command: str, seconds: float) -> dict[str, Any]:
    """The event that names the command, as soon as the run has written it."""
    runs: Runs = request.app.state.runs
    watched = runs.find(id)
    seen = max(0, watched.index.last_seq - 100)
    deadline = time.monotonic() + seconds
    async with runs.following(watched):
        while (left := deadline - time.monotonic()) > 0:
            for event in watched.index.events(watched.index.seqs({"sample", "command"}, seen)):
                if event.get("command") == command:
                    if event.get("ok") is False:
                        raise Refusal("wrong_input", str(event.get("message", "The run refused.")), field="prompt")
                    return event
            await watched.wait(min(left, 1.0))
    raise Refusal("timeout", f"Run '{id}' has not answered within {seconds:g} s; it may be in a long step.")
