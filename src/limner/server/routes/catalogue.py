"""What a new run can be made of: settings, presets, corpora, data sets; and whether the server is well."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from limner import __version__
from limner.config.pretrain import PretrainConfig
from limner.server import verbs
from limner.server.errors import Refusal, responses
from limner.server.launcher import resolve_device
from limner.server.security import session_cookie

router = APIRouter(prefix="/api", tags=["catalogue"])
DATASETS_SECONDS = 60.0


class Health(BaseModel):
    status: str
    version: str
    time: float | None = None
    runs_dir: str | None = None
    models_dir: str | None = None
    demo: bool | None = None
    device: dict[str, Any] | None = None
    limits: dict[str, int] | None = None
    allow_urls: bool | None = None


class Session(BaseModel):
    authenticated: bool


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    token: str = Field(max_length=500)


class Preset(BaseModel):
    verb: str
    name: str
    label: str
    description: str
    config: dict[str, Any]
    """Settings to put into the form."""


class Presets(BaseModel):
    presets: list[Preset]


class Source(BaseModel):
    name: str
    description: str
    bytes: int | None
    available: bool
    """It is on this machine; else it is fetched when it is used."""


class Corpora(BaseModel):
    corpora: list[Source]


class DataSets(BaseModel):
    datasets: list[Source]


@router.get("/health", response_model=Health, response_model_exclude_none=True)
async def health(request: Request) -> Health:
    """Public: that the server is there. More for those who are signed in."""
    if not request.scope.get("limner_signed_in"):
        return Health(status="ok", version=__version__)
    config = request.app.state.config
    return Health(
        status="ok",
        version=__version__,
        time=time.time(),
        runs_dir=str(request.app.state.runs.runs_dir),
        models_dir=str(config.models_dir) if config.models_dir else None,
        demo=config.demo,
        device={
            "name": resolve_device("auto"),
            "cores": os.cpu_count() or 1,
            "memory_bytes": psutil.virtual_memory().total,
        },
        limits={"upload_bytes": config.max_upload_mb * 1_000_000, "pixels": config.max_megapixels * 1_000_000},
        allow_urls=config.allow_urls,
    )


@router.get("/session", response_model=Session)
async def session(request: Request) -> Session:
    """Public: whether this browser is signed in."""
    return Session(authenticated=bool(request.scope.get("limner_signed_in")))


@router.post("/session", status_code=204, responses=responses())
async def sign_in(request: Request, body: SignIn) -> Response:
    """Exchanges the token for the cookie."""
    if not request.app.state.is_token(body.token):
        raise Refusal("unauthorized", "That is not this server's token; it stands in the address that it printed.")
    return Response(status_code=204, headers={"set-cookie": session_cookie(request.scope)})


@router.delete("/session", status_code=204, responses=responses())
async def sign_out(request: Request) -> Response:
    """Forgets the cookie."""
    return Response(status_code=204, headers={"set-cookie": session_cookie(request.scope, clear=True)})


@router.get("/schemas", responses=responses())
async def schemas() -> dict[str, Any]:
    """The JSON Schema of every verb that makes runs; a field's description is its help."""
    return {verb: verbs.schema(verb) for verb in verbs.RUN_CONFIGS}


@router.get("/schemas/{verb}", responses=responses(404))
async def schema(verb: str) -> dict[str, Any]:
    """The JSON Schema of one verb's settings."""
    if verb not in verbs.RUN_CONFIGS:
        known = ", ".join(verbs.RUN_CONFIGS)
        raise Refusal("not_found", f"'{verb[:50]}' makes no runs; there are: {known}.", field="verb")
    return verbs.schema(verb)


@router.get("/presets", response_model=Presets, responses=responses())
async def presets() -> Presets:
    """Ready-made settings."""
    return Presets(presets=[Preset(**preset) for preset in verbs.presets()])


@router.get("/corpora", response_model=Corpora, responses=responses())
async def corpora() -> Corpora:
    """Texts that a GPT can learn from, by name; files, folders and hub ids can be given as well."""
    return Corpora(corpora=await asyncio.to_thread(_corpora))


@router.get("/datasets", response_model=DataSets, responses=responses())
async def datasets(request: Request) -> DataSets:
    """Captioned pictures that a captioner can learn from, by name."""
    return DataSets(datasets=await _datasets(request))


def _corpora() -> list[Source]:
    from limner.data.corpora import CORPORA, corpus_file

    found = []
    cache_dir: Path = PretrainConfig.model_fields["cache_dir"].default
    for name, load in CORPORA.items():
        cached = corpus_file(name, cache_dir)
        size = cached.stat().st_size if cached.is_file() else None
        made_here = name in ("tiny", "scenes")
        text = (inspect.getdoc(load) or "").split("\n\n")[0].replace("\n", " ")
        found.append(Source(name=name, description=text, bytes=size, available=made_here or size is not None))
    return found


async def _datasets(request: Request) -> list[Source]:
    """As `limner data list --json` tells them: asked once, however many wait; anew where there was no answer."""
    state = request.app.state
    asked: asyncio.Task[list[Source]] | None = getattr(state, "datasets", None)
    if asked is None or (asked.done() and (asked.cancelled() or asked.exception() or not asked.result())):
        asked = state.datasets = asyncio.create_task(_list_datasets(state.launcher.command))
    return await asyncio.shield(asked)


async def _list_datasets(command: list[str]) -> list[Source]:
    """A process of its own loads what the server must not."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *("data", "list", "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DATASETS_SECONDS)
    except TimeoutError:
        process.kill()
        raise Refusal("timeout", "`limner data list` took too long.") from None
    lines = output.decode("utf-8", "replace").splitlines()
    return [_dataset(json.loads(line)) for line in lines if line.startswith("{")]


def _dataset(entry: dict[str, Any]) -> Source:
    about = str(entry.get("about") or "")
    return Source(
        name=entry["name"],
        description=f"{about} {entry['pictures']:,} pictures." if entry.get("pictures") else about,
        bytes=entry.get("bytes"),
        available=bool(entry.get("prepared")) or entry["name"] == "scenes",  # which are drawn, not fetched
    )
