"""Starting runs, and the queue of those that wait for their device."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from limner.config import RunConfig, command_line
from limner.runs import create_run
from limner.runs.folder import check_name, default_name, remove_folder
from limner.server.errors import Problem, Refusal, responses
from limner.server.launcher import Launcher
from limner.server.summary import RunSummary
from limner.server.verbs import resolve
from limner.server.watch import Runs

router = APIRouter(tags=["control"])
PLAN_SECONDS = 300.0
OURS = {
    "runs_dir": "the server decides where its runs are",
    "resume": "use POST /api/runs/{id}/resume",
    "force_new": "give another name instead",
    "plan": "use POST /api/runs/plan",
}
"""Settings that the page cannot give."""


class Order(BaseModel):
    """A run that is wanted: a verb and its settings (only those that differ from the defaults need to be there)."""

    model_config = ConfigDict(extra="forbid")
    verb: str = Field(max_length=50)
    config: dict[str, Any] = {}
    name: str | None = Field(default=None, max_length=128)


class Checked(BaseModel):
    valid: bool
    problems: list[Problem] = []
    command: str | None = None
    argv: list[str] | None = None
    config: dict[str, Any] | None = None


class Planned(BaseModel):
    """What a dry run said."""

    ok: bool
    seconds: float
    text: str
    plan: dict[str, Any] | None


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")
    position: int = Field(ge=1, le=10_000)


class Queued(BaseModel):
    id: str
    device: str
    position: int | None = None


class Queue(BaseModel):
    queue: list[Queued]
    active: list[Queued]


def _state(request: Request) -> tuple[Runs, Launcher]:
    return request.app.state.runs, request.app.state.launcher


# -- starting ------------------------------------------------------------------------------------------------------


@router.post("/api/runs", status_code=201, response_model=RunSummary, responses=responses(409))
async def start(request: Request, order: Order) -> RunSummary:
    """Starts a run, or queues it: one run at a time on each device."""
    runs, launcher = _state(request)
    config = _settings(runs, order)
    settings = json.loads(config.model_dump_json())
    try:
        run = create_run(runs.runs_dir, str(config.name), order.verb, settings)
    except FileExistsError as error:
        raise Refusal("wrong_input", str(error), field="name") from error
    try:
        await asyncio.to_thread(launcher.submit, run, command_line(order.verb, config)[1:], config.device)
    except OSError:  # the disk is full: the name is free again
        remove_folder(run.path)
        raise
    return (await runs.summary(run.name))[1]


@router.post("/api/runs/check", response_model=Checked, responses=responses())
async def check(request: Request, order: Order) -> Checked:
    """Whether these settings make a run, and the command that would start it."""
    try:
        config = _settings(request.app.state.runs, order)
        if (request.app.state.runs.runs_dir / str(config.name)).exists():
            raise Refusal("wrong_input", f"There is a run named '{config.name}' already.", field="name")
    except Refusal as refusal:
        detail = refusal.detail
        problems = detail.problems or [Problem(field=detail.field or "", message=detail.message)]
        return Checked(valid=False, problems=problems)
    argv = command_line(order.verb, config)
    return Checked(valid=True, command=shlex.join(argv), argv=argv, config=json.loads(config.model_dump_json()))


@router.post("/api/runs/plan", response_model=Planned, responses=responses(504))
async def plan(request: Request, order: Order) -> Planned:
    """A dry run: parameters, memory and time, as `--plan` tells them."""
    runs, launcher = _state(request)
    config = _settings(runs, order)
    if "plan" not in type(config).model_fields:
        raise Refusal("wrong_input", f"`limner {order.verb}` makes no plans.", field="verb")
    argv = [*launcher.command, *command_line(order.verb, config)[1:], "--plan"]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, remarks = await asyncio.wait_for(process.communicate(), PLAN_SECONDS)
    except TimeoutError:
        raise Refusal("timeout", f"The dry run took longer than {PLAN_SECONDS:g} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told = output.decode("utf-8", "replace")
    return Planned(
        ok=process.returncode == 0,
        seconds=round(time.monotonic() - began, 3),
        text=(remarks.decode("utf-8", "replace") + told)[-50_000:],
        plan=_object(told),
    )


def _settings(runs: Runs, order: Order) -> RunConfig:
    """The typed settings of an order, with the server's runs folder and the run's name in them."""
    for field, instead in OURS.items():
        given = order.config.get(field)
        if given and not (field == "runs_dir" and Path(str(given)) == runs.runs_dir):
            raise Refusal("wrong_input", f"config.{field} cannot be set here: {instead}.", field=f"config.{field}")
    for field, value in order.config.items():
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for text in _texts(value) for letter in text):
            message = f"config.{field} has a letter that no command line takes: NUL, or half a character."
            raise Refusal("wrong_input", message, field=f"config.{field}")
    name = order.name if order.name is not None else order.config.get("name")
    if name is not None:
        try:
            check_name(str(name))
        except ValueError as error:
            raise Refusal("wrong_input", str(error), field="name") from error
    config = resolve(order.verb, order.config | {"runs_dir": str(runs.runs_dir), "name": name})
    if name is None:
        config = config.model_copy(update={"name": default_name(runs.runs_dir, order.verb, config.subject())})
    return config


def _texts(value: Any) -> Iterator[str]:
    """The texts in a setting."""
    if isinstance(value, str):
        yield value
    for item in value if isinstance(value, (list, tuple)) else ():
        yield from _texts(item)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is, where it is one."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


# -- the queue -----------------------------------------------------------------------------------------------------


@router.get("/api/queue", response_model=Queue, responses=responses())
async def queue(request: Request) -> Queue:
    """Runs that wait for their device, and those at work."""
    _, launcher = _state(request)
    busy = await asyncio.to_thread(launcher.busy_devices)
    waiting = [Queued(id=w.run, device=w.device, position=k + 1) for k, w in enumerate(launcher.queue)]
    return Queue(queue=waiting, active=[Queued(id=name, device=device) for device, name in busy.items()])


@router.post("/api/queue/{id}/move", response_model=Queue, responses=responses(404, 409))
async def move(request: Request, id: str, place: Place) -> Queue:
    """Moves a waiting run to another place."""
    runs, launcher = _state(request)
    launcher.move(runs.find(id).run.name, place.position)
    return await queue(request)
