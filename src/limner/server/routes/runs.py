"""Reading runs: the list, one run, its events, series, samples, log, report and checkpoints."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from limner.runs import Status
from limner.runs.events import EVENT_TYPES
from limner.runs.folder import checkpoint_step, folder_size, remove_checkpoint
from limner.runs.series import series
from limner.server.errors import Refusal, responses
from limner.server.summary import RunDetail, RunSummary, describe, read_labels, report, write_labels
from limner.server.watch import Runs, Watched, inside

router = APIRouter(prefix="/api/runs", tags=["runs"])

PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
MOST_LOG_BYTES = 256 << 10
Seq = Annotated[int, Query(ge=0, le=2**53)]


class LeftOut(BaseModel):
    """A folder with a run in it that cannot be shown, and why."""

    name: str
    message: str


class RunList(BaseModel):
    runs: list[RunSummary]
    active: list[str]
    left_out: list[LeftOut]


class Labelling(BaseModel):
    """What a person sticks onto a run; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")
    tags: list[Annotated[str, Field(min_length=1, max_length=50)]] | None = Field(default=None, max_length=50)
    note: str | None = Field(default=None, max_length=20_000)
    pinned: bool | None = None


class Deleted(BaseModel):
    id: str
    bytes: int


class Events(BaseModel):
    """Events as they stand in the log; ``more``: there are others in the range."""

    model_config = ConfigDict(populate_by_name=True)
    events: list[dict[str, Any]]
    first: int = Field(alias="from")
    to: int
    last_seq: int
    more: bool


class Samples(BaseModel):
    """Rows are probes, columns are steps."""

    probes: list[dict[str, Any]]
    steps: list[int]
    samples: list[dict[str, Any]]
    last_seq: int
    more: bool


class LogPart(BaseModel):
    lines: list[str] | None = None
    text: str | None = None
    offset: int
    """Where to go on reading."""
    size: int


class CheckpointInfo(BaseModel):
    name: str
    step: int
    time: float
    bytes: int
    best: bool
    latest: bool
    metrics: dict[str, Any]
    sha256: str | None
    model: str
    """Its id in the playground."""


class Checkpoints(BaseModel):
    checkpoints: list[CheckpointInfo]


def _runs(request: Request) -> Runs:
    return request.app.state.runs


@router.get("", response_model=RunList, responses=responses())
async def list_runs(request: Request) -> Response:
    """All runs, newest first. Answers 304 to an `If-None-Match` of its ETag."""
    summaries, unshown = await asyncio.to_thread(_runs(request).summaries)
    active = [summary.id for summary in summaries if summary.status.active]
    left_out = [LeftOut(name=name, message=message) for name, message in sorted(unshown.items())]
    return _tagged(request, RunList(runs=summaries, active=active, left_out=left_out).model_dump(mode="json"))


@router.get("/{id}", response_model=RunDetail, responses=responses(404))
async def one_run(request: Request, id: str) -> RunDetail:
    """A run with its settings and its story."""
    watched, summary = await _runs(request).summary(id)
    return await asyncio.to_thread(describe, watched.run, watched.shown, summary)


@router.get("/{id}/config", responses=responses(404))
async def config(request: Request, id: str) -> dict[str, Any]:
    """`config.json` as it is."""
    return _runs(request).find(id).run.config


@router.patch("/{id}", response_model=RunSummary, responses=responses(404, 409))
async def label(request: Request, id: str, labelling: Labelling) -> RunSummary:
    """Tags, a note, a pin."""
    watched, _ = await _runs(request).summary(id)
    _refuse_recorded(watched)
    labels = read_labels(watched.run)
    write_labels(watched.run, labels.model_copy(update=labelling.model_dump(exclude_none=True)))
    return (await _runs(request).summary(id))[1]


@router.delete("/{id}", response_model=Deleted, responses=responses(404, 409))
async def delete(request: Request, id: str) -> Deleted:
    """Removes a run's folder; 409 while a process is at work on it."""
    watched, summary = await _runs(request).summary(id, whole=True)
    _refuse_recorded(watched)
    if summary.status.active:
        raise Refusal("wrong_state", f"Run '{id}' is at work; stop it first.", state=summary.status)
    request.app.state.launcher.withdraw(id)
    size = await asyncio.to_thread(watched.run.size)
    try:
        await asyncio.to_thread(watched.run.delete, watched.index.told)
    except ValueError as error:  # started in this moment
        raise Refusal("wrong_state", str(error), state=Status.RUNNING) from error
    watched.gone = True
    watched.ring()
    return Deleted(id=id, bytes=size)


@router.get("/{id}/events", response_model=Events, responses=responses(404))
async def events(
    request: Request,
    id: str,
    after_seq: Seq = 0,
    before_seq: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    types: Annotated[str | None, Query(max_length=300, description="comma-separated")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    newest: Annotated[bool, Query(description="the last `limit` of the range instead of the first")] = False,
) -> Events:
    """Events with after_seq < seq < before_seq, of some types or of all."""
    watched, _ = await _runs(request).summary(id)
    wanted = _types(types)

    def read() -> Events:
        index = watched.index
        index.update()
        seqs = index.seqs(wanted, after_seq, before_seq)
        part = seqs[-limit:] if newest else seqs[:limit]
        found = index.events(part)
        first, to = (int(part[0]), int(part[-1])) if len(part) else (after_seq + 1, after_seq)
        more = len(part) < len(seqs)
        return Events(**{"from": first}, events=found, to=to, last_seq=index.last_seq, more=more)

    return await asyncio.to_thread(read)


@router.get("/{id}/series", responses=responses(404))
async def metric_series(
    request: Request,
    id: str,
    metrics: Annotated[str | None, Query(max_length=4000, description="comma-separated; all if left out")] = None,
    x: Literal["step", "time", "seq", "epoch", "tokens", "captions"] = "step",
    low: Annotated[float | None, Query(alias="from", allow_inf_nan=False)] = None,
    high: Annotated[float | None, Query(alias="to", allow_inf_nan=False)] = None,
    points: Annotated[int, Query(ge=20, le=4000)] = 1000,
) -> Response:
    """Metrics in at most `points` buckets, made of ALL points: no spike is lost at any zoom.

    Of a long log that has never been read, `first_look` is true for some seconds: points from all over it, not all.
    """
    watched, _ = await _runs(request).summary(id)
    wanted = None if metrics is None else [name for name in metrics.split(",") if name]

    def draw() -> bytes:
        shown = watched.shown
        first_look = shown is not watched.index
        return to_json({"run": id, "first_look": first_look} | series(shown, wanted, x, low, high, points))

    return Response(await asyncio.to_thread(draw), media_type="application/json")


@router.get("/{id}/samples", response_model=Samples, responses=responses(404))
async def samples(
    request: Request,
    id: str,
    after_seq: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 2000,
) -> Samples:
    """What probes said at each step. Where there are more than `limit`, they are thinned out evenly by steps."""
    watched, _ = await _runs(request).summary(id)

    def read() -> Samples:
        watched.index.update()
        seqs = watched.index.seqs({"sample"}, after_seq)
        more = len(seqs) > limit
        found = watched.index.events(seqs)
        steps = sorted({event["step"] for event in found})
        if more:
            stride = -(-len(found) // limit)
            steps = sorted({*steps[::stride], *steps[-1:]})
            kept = set(steps)
            found = [event for event in found if event["step"] in kept][-limit:]
        probes: dict[str, dict[str, Any]] = {}
        for event in found:
            name = str(event.get("probe", "asked"))
            probes[name] = {
                "probe": name,
                "prompt": event.get("prompt"),
                "image": event.get("image"),
                "references": event.get("references") or [],
            }
        last = watched.index.last_seq
        return Samples(probes=list(probes.values()), steps=steps, samples=found, last_seq=last, more=more)

    return await asyncio.to_thread(read)


@router.get("/{id}/samples/{file}", response_class=Response, responses=responses(404))
async def sample_picture(request: Request, id: str, file: str) -> Response:
    """A probe's picture. Its name is its hash: it never changes."""
    path = inside(_runs(request).find(id).run.samples_path, file, "picture")
    kind = PICTURES.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise Refusal("not_found", f"There is no picture '{file[:100]}' here.")
    content = await asyncio.to_thread(path.read_bytes)
    return Response(content, media_type=kind, headers={"cache-control": "private, max-age=31536000, immutable"})


@router.get("/{id}/log", response_model=LogPart, responses=responses(404))
async def log(
    request: Request,
    id: str,
    lines: Annotated[int, Query(ge=1, le=5000)] = 200,
    offset: Annotated[int | None, Query(ge=0, le=2**53)] = None,
) -> LogPart:
    """The end of the trainer's output; with `offset`, what follows it."""
    run = _runs(request).find(id).run

    def read() -> LogPart:
        try:
            file = open(run.log_path, "rb")  # noqa: SIM115  closed by the `with` below
        except FileNotFoundError:  # it has said nothing yet
            return LogPart(
                lines=[] if offset is None else None, text=None if offset is None else "", offset=0, size=0
            )
        with file:
            size = os.fstat(file.fileno()).st_size
            if offset is None:
                return LogPart(lines=run.log_tail(lines), offset=size, size=size)
            if offset >= size:
                return LogPart(text="", offset=size, size=size)
            file.seek(offset)
            part = file.read(MOST_LOG_BYTES)
        text, taken = codecs.utf_8_decode(part, "replace", False)  # a letter that is half there comes with its rest
        return LogPart(text=text, offset=offset + taken, size=size)

    return await asyncio.to_thread(read)


@router.get("/{id}/report", responses=responses(404))
async def run_report(request: Request, id: str) -> dict[str, Any]:
    """What the run came to: best and final metrics, time, attempts, the model."""
    watched, summary = await _runs(request).summary(id)
    return await asyncio.to_thread(report, watched.run, watched.shown, summary)


@router.get("/{id}/checkpoints", response_model=Checkpoints, responses=responses(404))
async def checkpoints(request: Request, id: str) -> Checkpoints:
    """The resumable states that are kept, oldest first."""
    watched, _ = await _runs(request).summary(id)
    return Checkpoints(checkpoints=await asyncio.to_thread(_checkpoints, watched))


@router.delete("/{id}/checkpoints/{name}", response_model=Deleted, responses=responses(404, 409))
async def delete_checkpoint(request: Request, id: str, name: str) -> Deleted:
    """Removes a checkpoint; 409 for the latest one of a run that is at work, and for one that is being read."""
    watched, summary = await _runs(request).summary(id)
    _refuse_recorded(watched)
    path = checkpoint_path(watched, name)
    known = await asyncio.to_thread(_checkpoints, watched)
    if summary.status.active and known and known[-1].name == name:
        message = f"{name} is what run '{id}' would go on from; stop the run, or wait for its next checkpoint."
        raise Refusal("wrong_state", message, state=summary.status)
    size = await asyncio.to_thread(folder_size, path)
    if not await asyncio.to_thread(remove_checkpoint, path):
        message = f"{name} is being read; try again when its reader is done."
        raise Refusal("wrong_state", message, state=summary.status)
    return Deleted(id=name, bytes=size)


def checkpoint_path(watched: Watched, name: str) -> Path:
    """A checkpoint's folder.

    Raises:
        Refusal: there is none of that name.
    """
    path = inside(watched.run.checkpoints_path, name, "checkpoint")
    if checkpoint_step(name) is None or not path.is_dir():
        raise Refusal("not_found", f"There is no checkpoint '{name[:100]}' in run '{watched.run.name}'.")
    return path


def _checkpoints(watched: Watched) -> list[CheckpointInfo]:
    found = []
    best = _best_checkpoint(watched)
    paths = watched.run.checkpoints()
    for path in paths:
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            files = manifest["files"]
            weights: dict[str, Any] = next((files[name] for name in files if name.endswith(".safetensors")), {})
            found.append(
                CheckpointInfo(
                    name=path.name,
                    step=int(manifest["step"]),
                    time=(path / "manifest.json").stat().st_mtime,
                    bytes=folder_size(path),
                    best=path.name == best,
                    latest=path == paths[-1],
                    metrics=manifest.get("metrics", {}),
                    sha256=weights.get("sha256"),
                    model=f"run:{watched.run.name}/{path.name}",
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # pruned while we looked, or written by something else
    return found


def _best_checkpoint(watched: Watched) -> str | None:
    """The last one that was the best when it was saved."""
    watched.index.update()
    for event in reversed(watched.index.events(watched.index.seqs({"checkpoint"}))):
        if event.get("best"):
            return Path(str(event.get("path", ""))).name
    return None


def _refuse_recorded(watched: Watched) -> None:
    if watched.recorded:
        message = f"Run '{watched.run.name}' is a recording that comes with Limner; it can only be looked at."
        raise Refusal("wrong_state", message, state="recorded")


def _types(text: str | None) -> set[str]:
    if text is None:
        return set(EVENT_TYPES)
    wanted = {name for name in text.split(",") if name}
    unknown = sorted(wanted - set(EVENT_TYPES))
    if unknown:
        known = ", ".join(EVENT_TYPES)
        raise Refusal("wrong_input", f"'{unknown[0]}' is no type of event; there are: {known}.", field="types")
    return wanted


def _tagged(request: Request, content: dict[str, Any]) -> Response:
    """The content as JSON, or 304 where the client has it already."""
    body = to_json(content)
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(body, media_type="application/json", headers={"etag": tag})
