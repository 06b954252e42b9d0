"""The playground: models, texts and captions, by the model worker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import re
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from limner.server.errors import ErrorDetail, Refusal, responses
from limner.server.models import ModelInfo, find_model, list_models
from limner.server.routes.runs import checkpoint_path
from limner.server.workroom import Workroom

router = APIRouter(tags=["playground"])
NDJSON = "application/x-ndjson"


class ModelWish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=300)


class Worker(BaseModel):
    alive: bool
    loaded: list[dict[str, Any]]
    limit_bytes: int
    threads: int
    busy: bool


class Models(BaseModel):
    models: list[ModelInfo]
    worker: Worker


class LoadedModel(BaseModel):
    model: str
    kind: str
    parameters: int
    bytes: int
    seconds: float


class TextWish(BaseModel):
    """A prompt to be continued."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=300)
    prompt: str = Field(default="", max_length=100_000)
    max_tokens: int = Field(default=100, ge=1, le=4096)
    temperature: float = Field(default=1.0, ge=0, le=100)
    """0: the likeliest token each time."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    seed: int | None = Field(default=None, ge=0, le=2**53)
    """Unset: a new one, told in the answer."""
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=16)
    alternatives: int = Field(default=5, ge=0, le=20)
    """How many likely tokens are told in the place of each."""
    forced: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(default=[], max_length=4096)
    """Ids that the text begins with after the prompt: what a branch keeps, and the token that it takes."""
    stream: bool = False
    """Answer in lines of JSON, a token a line, as they come."""


class Alternative(BaseModel):
    id: int
    text: str
    logprob: float


class Token(BaseModel):
    id: int
    text: str
    """What it adds to the text; empty while a character is incomplete."""
    logprob: float
    """The model's own, before temperature, filters and penalties."""
    alternatives: list[Alternative] = []


class Text(BaseModel):
    work: str
    model: str
    prompt: str
    text: str
    """All that follows the prompt, forced tokens included."""
    tokens: list[Token]
    """The generated tokens (forced ones are not among them)."""
    finish: str
    """eos, stop, length (as many as asked), context (the model holds no more), cancelled."""
    seed: int
    prompt_tokens: int
    seconds: float
    tokens_per_second: float


class CaptionToken(BaseModel):
    id: int
    text: str
    logprob: float


class Caption(BaseModel):
    text: str
    score: float
    ending: str
    """eos, or length (cut at max_length)."""
    tokens: list[CaptionToken]


class Captions(BaseModel):
    work: str
    model: str
    captions: list[Caption]
    consensus: bool = False
    """Whether the training captions chose."""
    finish: str
    """The first caption's ending, or cancelled: then there are no captions."""
    width: int
    height: int
    seconds: float


def _workroom(request: Request) -> Workroom:
    return request.app.state.workroom


# -- models --------------------------------------------------------------------------------------------------------


@router.get("/api/models", response_model=Models, responses=responses())
async def models(request: Request) -> Models:
    """The models that can be opened, and what the worker holds."""
    state = request.app.state
    room = _workroom(request)
    found = await asyncio.to_thread(list_models, state.runs, state.config.models_dir)
    loaded = {model["id"] for model in room.loaded}
    for info in found:
        info.loaded = info.id in loaded
    worker = Worker(
        alive=room.alive,
        loaded=room.loaded,
        limit_bytes=room.memory_bytes,
        threads=room.threads,
        busy=room.busy,
    )
    return Models(models=found, worker=worker)


@router.post("/api/models/load", response_model=LoadedModel, responses=responses(404, 429, 503, 504))
async def load(request: Request, wish: ModelWish) -> dict[str, Any]:
    """Loads a model ahead of its first use."""
    return await _workroom(request).ask("load", await _model(request, wish.model))


@router.post("/api/models/unload", responses=responses(404, 429, 503, 504))
async def unload(request: Request, wish: ModelWish) -> dict[str, Any]:
    """Frees a model's memory; one that is not loaded is no error."""
    room = _workroom(request)
    if any(model["id"] == wish.model for model in room.loaded):
        await room.ask("unload", {"id": wish.model})
    return {"model": wish.model, "loaded": False}


@router.post(
    "/api/runs/{id}/checkpoints/{name}/load",
    response_model=LoadedModel,
    responses=responses(404, 429, 503, 504),
)
async def load_checkpoint(request: Request, id: str, name: str) -> dict[str, Any]:
    """Loads a checkpoint of a run into the playground."""
    checkpoint_path(request.app.state.runs.find(id), name)
    return await load(request, ModelWish(model=f"run:{id}/{name}"))


async def _model(request: Request, id: str) -> dict[str, Any]:
    """What the worker needs to know of a model."""
    state = request.app.state
    info = await asyncio.to_thread(find_model, state.runs, state.config.models_dir, id)
    known: dict[str, Any] = {"id": info.id, "path": info.path, "kind": info.kind}
    if info.step is not None:
        known |= {"run": str(state.runs.find(str(info.run)).run.path), "cache": str(state.state_dir / "models")}
    return known


@router.post("/api/work/{id}/cancel", status_code=202, responses=responses())
async def cancel(request: Request, id: str) -> dict[str, str]:
    """Ends a request to the worker at its next token; ended and unknown ones are no error."""
    if re.fullmatch(r"[0-9]{1,15}", id):
        _workroom(request).cancel(int(id))
    return {"work": id}


# -- texts ---------------------------------------------------------------------------------------------------------


@router.post(
    "/api/generate",
    response_model=Text,
    responses={200: {"content": {NDJSON: {}}}, **responses(404, 429, 503, 504)},
)
async def generate(request: Request, wish: TextWish) -> Any:
    """Continues a prompt. Every token comes with its probability and the likeliest others in its place."""
    room = _workroom(request)
    seed = wish.seed if wish.seed is not None else random.SystemRandom().randrange(2**31)
    arguments = wish.model_dump(exclude={"model", "stream"}) | await _model(request, wish.model) | {"seed": seed}
    id = room.new_id()
    head = {"work": str(id), "model": wish.model, "seed": seed}

    async def lines() -> AsyncGenerator[dict[str, Any]]:
        yield {"type": "start", **head}
        async with contextlib.aclosing(room.stream("generate", arguments, id)) as answers:
            async for kind, body in answers:
                if kind == "result":
                    yield {"type": "done", **head, "prompt": wish.prompt, **body}
                elif "token" in body:
                    yield {"type": "token", **body["token"]}

    if wish.stream:
        return _streamed(lines())
    tokens, done = [], {}
    async for line in lines():
        if line["type"] == "token":
            tokens.append(line)
        done = line
    return {**done, "tokens": tokens}


# -- pictures ------------------------------------------------------------------------------------------------------


@router.post(
    "/api/caption",
    response_model=Captions,
    responses={200: {"content": {NDJSON: {}}}, **responses(404, 429, 503, 504)},
)
async def caption(
    request: Request,
    model: Annotated[str, Form(min_length=1, max_length=300)],
    image: Annotated[UploadFile | None, File(description="the picture's file")] = None,
    url: Annotated[str | None, Form(max_length=2000, description="its address instead (--allow-urls)")] = None,
    num_beams: Annotated[int, Form(ge=1, le=16)] = 3,
    max_length: Annotated[int, Form(ge=1, le=512)] = 30,
    num_captions: Annotated[int | None, Form(ge=1, le=16)] = None,
    consensus: Annotated[bool, Form(description="the training captions choose, where the model has them")] = True,
    stream: Annotated[bool, Form()] = False,
) -> Any:
    """Puts a picture into words: every beam with its score, every word with its probability; or the one that the
    training captions choose."""
    room, config = _workroom(request), request.app.state.config
    content = await _picture(request, image, url)
    width, height = await asyncio.to_thread(check_picture, content, config.max_megapixels * 1_000_000)
    arguments = await _model(request, model)
    arguments |= {"num_beams": num_beams, "max_length": max_length, "num_captions": num_captions}
    arguments["consensus"] = consensus
    id = room.new_id()
    head = {"work": str(id), "model": model, "width": width, "height": height}

    async def lines() -> AsyncGenerator[dict[str, Any]]:
        with _file(content, request.app.state.state_dir) as path:
            yield {"type": "start", **head}
            asked = arguments | {"image": str(path)}
            async with contextlib.aclosing(room.stream("caption", asked, id)) as answers:
                async for kind, body in answers:
                    if kind == "result":
                        yield {"type": "done", **head, **body}
                    elif "caption" in body:
                        yield {"type": "caption", **body["caption"]}
                    elif "phase" in body:
                        yield {"type": "phase", "phase": body["phase"]}

    if stream:
        return _streamed(lines())
    done: dict[str, Any] = {}
    async for line in lines():
        done = line
    return done


async def _picture(request: Request, image: UploadFile | None, url: str | None) -> bytes:
    config = request.app.state.config
    if image is not None:
        return await image.read()
    if not url:
        raise Refusal("wrong_input", "Send a picture as `image`.", field="image")
    if not config.allow_urls:
        message = "Pictures are not fetched from addresses; start the server with --allow-urls to allow it."
        raise Refusal("forbidden", message, field="url", flag="--allow-urls")
    from limner.server.fetch import fetch

    return await asyncio.to_thread(fetch, url, config.max_upload_mb * 1_000_000)


def check_picture(content: bytes, max_pixels: int) -> tuple[int, int]:
    """(width, height), read from the header; nothing is decoded.

    Raises:
        Refusal: no picture, or one that is too large.
    """
    from PIL import Image

    try:
        # Pillow's own limit warns at less and refuses at twice that; ours is told with its flag.
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        width, height = (int(found[1]) if found else max_pixels + 1), 1
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        message = "This is not a picture (JPEG, PNG, GIF, BMP, WebP or TIFF), or its header is damaged."
        raise Refusal("wrong_input", message, field="image") from error
    if width * height > max_pixels:
        size = f"{width:,} x {height:,} pixels" if height > 1 else f"{width:,} pixels"
        message = f"The picture has {size}; at most {max_pixels:,} are taken (--max-megapixels)."
        raise Refusal("wrong_input", message, field="image", flag="--max-megapixels")
    return width, height


@contextlib.contextmanager
def _file(content: bytes, folder: Path) -> Any:
    """The picture as a file that the worker can read, for as long as it is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="upload-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


# -- streams -------------------------------------------------------------------------------------------------------


def _streamed(lines: AsyncGenerator[dict[str, Any]]) -> StreamingResponse:
    """Lines of JSON; a refusal that comes once the answer has begun is its last line."""

    async def encoded() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(lines):
            try:
                async for line in lines:
                    yield json.dumps(line).encode() + b"\n"
            except Refusal as refusal:
                detail: ErrorDetail = refusal.detail
                yield json.dumps({"type": "error", "error": detail.model_dump()}).encode() + b"\n"

    headers = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}  # for proxies in between
    return StreamingResponse(encoded(), media_type=NDJSON, headers=headers)
