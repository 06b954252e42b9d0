"""Starting and steering runs. Everything here writes a folder, a command file or the queue: nothing else."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from limner.config import RunConfig, command_line
from limner.runs import Run, Status, create_run, send_command
from limner.runs.folder import check_name
from limner.server.errors import Problem, Refusal, responses
from limner.server.launcher import Launcher
from limner.server.routes.runs import checkpoint_path
from limner.server.socket import current_run
from limner.server.summary import RunSummary
from limner.server.verbs import resolve
from limner.server.watch import Runs, Watched, inside

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
    await asyncio.to_thread(launcher.submit, run, command_line(order.verb, config)[1:], config.device)
    return (await runs.summary(run.name))[1]


@router.post("/api/runs/check", response_model=Checked, responses=responses())
async def check(request: Request, order: Order) -> Checked:
    """Whether these settings make a run, and the command that would start it."""
    try:
        config = _settings(request.app.state.runs, order)
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
    name = order.name if order.name is not None else order.config.get("name")
    if name is not None:
        try:
            check_name(str(name))
        except ValueError as error:
            raise Refusal("wrong_input", str(error), field="name") from error
    config = resolve(order.verb, order.config | {"runs_dir": str(runs.runs_dir), "name": name})
    if name is None:
        config = config.model_copy(update={"name": _free_name(runs.runs_dir, order.verb, config)})
    return config


def _free_name(runs_dir: Path, verb: str, config: RunConfig) -> str:
    """Verb, data set and date, as the verbs themselves name their runs."""
    subject = getattr(config, "corpus", None) or "-".join(getattr(config, "dataset", ())) or "run"
    subject = "".join(letter if letter.isalnum() else "-" for letter in Path(subject).name).strip("-") or "run"
    name = f"{verb}-{subject[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidate, number = name, 1
    while (runs_dir / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


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


# -- steering ------------------------------------------------------------------------------------------------------


async def _may(request: Request, id: str, action: str) -> tuple[Watched, RunSummary]:
    """The run, if this may be asked of it now.

    Raises:
        Refusal: 404, or 409 with the state.
    """
    watched, summary = await request.app.state.runs.summary(id)
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


@router.post("/api/runs/{id}/pause", status_code=202, response_model=Steered, responses=responses(404, 409))
async def pause(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Holds the run at its next step boundary, the model kept in memory."""
    return await _command(request, id, "pause")


@router.post("/api/runs/{id}/stop", status_code=202, response_model=Steered, responses=responses(404, 409))
async def stop(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Saves a checkpoint, then ends the run; one that waits in the queue leaves it."""
    runs, launcher = _state(request)
    if launcher.withdraw(runs.find(id).run.name):
        return Steered(id=id, status=(await runs.summary(id))[1].status)
    return await _command(request, id, "stop")


@router.post("/api/runs/{id}/checkpoint", status_code=202, response_model=Steered, responses=responses(404, 409))
async def checkpoint(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Saves a resumable state now."""
    return await _command(request, id, "checkpoint")


@router.post("/api/runs/{id}/note", status_code=202, response_model=Steered, responses=responses(404, 409))
async def note(request: Request, id: str, remark: Remark) -> Steered:
    """Puts a remark into the run's log."""
    return await _command(request, id, "note", text=remark.text)


@router.post("/api/runs/{id}/kill", status_code=202, response_model=Steered, responses=responses(404, 409))
async def kill(request: Request, id: str, body: Nothing | None = None) -> Steered:
    """Ends the run's process at once; what came after its last checkpoint is lost."""
    runs, launcher = _state(request)
    watched, _ = await _may(request, id, "kill")
    await asyncio.to_thread(launcher.kill, watched.run)
    return Steered(id=id, status=(await runs.summary(id))[1].status)


@router.post("/api/runs/{id}/resume", status_code=202, response_model=Steered, responses=responses(404, 409))
async def resume(request: Request, id: str, wish: Resumption | None = None) -> Steered:
    """Goes on: a paused run at once, an ended one in a new process (or in the queue)."""
    runs, launcher = _state(request)
    watched, summary = await _may(request, id, "resume")
    if summary.status is Status.PAUSED:
        return await _command(request, id, "resume")
    if wish is not None and wish.checkpoint is not None:
        await asyncio.to_thread(_rewind, watched, wish)
    run: Run = watched.run
    arguments = [summary.verb, "--resume", run.name, "--runs-dir", str(runs.runs_dir)]
    device = str(run.config.get("config", {}).get("device", "auto"))
    await asyncio.to_thread(launcher.submit, run, arguments, device)
    return Steered(id=id, status=(await runs.summary(id))[1].status)


def _rewind(watched: Watched, wish: Resumption) -> None:
    """Removes the checkpoints after the wanted one, so that it is the latest."""
    wanted = checkpoint_path(watched, str(wish.checkpoint))
    later = [path for path in watched.run.checkpoints() if path.name > wanted.name]
    if later and not wish.discard_later:
        message = f"{len(later)} later checkpoints would be deleted; say discard_later to go on from {wanted.name}."
        raise Refusal("wrong_input", message, field="discard_later")
    for path in later:
        shutil.rmtree(path)


@router.post("/api/runs/{id}/sample", status_code=202, response_model=Steered, responses=responses(404, 409, 504))
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


# -- the older forms -----------------------------------------------------------------------------------------------


@router.post("/api/train/start", status_code=201, responses=responses(409), tags=["older"])
async def train_start(request: Request, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Starts a run: `{"verb", "config": {...}}`, or the settings flat. The verb is "pretrain" unless said."""
    settings = dict(body or {})
    verb = str(settings.pop("verb", "pretrain"))
    name = settings.pop("name", None)
    if isinstance(settings.get("config"), dict):
        settings = settings["config"]
    order = Order(verb=verb[:50], config=settings, name=None if name is None else str(name)[:128])
    return _older(await start(request, order))


@router.get("/api/train/status", responses=responses(), tags=["older"])
async def train_status(request: Request) -> dict[str, Any]:
    """The current run: the newest active one, else the newest."""
    found = await _current(request)
    return _older(found) if found else {"status": "idle", "run_id": None}


@router.post("/api/train/{action}", responses=responses(404, 409), tags=["older"])
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
    return current_run(await asyncio.to_thread(request.app.state.runs.summaries))


def _older(summary: RunSummary) -> dict[str, Any]:
    told = summary.model_dump(mode="json")
    return {name: told[name] for name in ("status", "step", "total_steps", "last", "detail")} | {
        "run_id": summary.id
    }
