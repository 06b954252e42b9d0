"""Every refusal has one shape: ``{"error": {"code", "message", "field", "state", "flag", "problems"}}``."""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

log = logging.getLogger("limner.server")
Code = Literal[
    "wrong_input",
    "wrong_state",
    "not_found",
    "unauthorized",
    "forbidden",
    "too_large",
    "busy",
    "unavailable",
    "timeout",
]
_STATUS: dict[str, int] = {
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "wrong_state": 409,
    "too_large": 413,
    "wrong_input": 422,
    "busy": 429,
    "unavailable": 503,
    "timeout": 504,
}


class Problem(BaseModel):
    """One field that is wrong."""

    field: str
    message: str


class ErrorDetail(BaseModel):
    """Why something was refused."""

    code: Code
    message: str
    """One sentence: what was wrong, what was expected, what to do."""
    field: str | None = None
    """The (first) input field that is wrong."""
    state: str | None = None
    """The run's state, where it forbids what was asked."""
    flag: str | None = None
    """The flag of `limner serve` that would allow it."""
    problems: list[Problem] = []


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 and above."""

    error: ErrorDetail


class Refusal(Exception):
    """Raised anywhere below a route; becomes the response."""

    def __init__(self, code: Code, message: str, **details: Any) -> None:
        super().__init__(message)
        self.detail = ErrorDetail(code=code, message=message, **details)

    @property
    def status(self) -> int:
        return _STATUS[self.detail.code]

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.detail.model_dump()}


def wrong_fields(error: ValidationError | RequestValidationError, prefix: str = "") -> Refusal:
    """A refusal that names every field that pydantic found wrong."""
    problems = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path"))
        name = ".".join(part for part in (prefix, place) if part)
        problems.append(Problem(field=name, message=problem["msg"].removeprefix("Value error, ")))
    first = problems[0]
    return Refusal(
        "wrong_input",
        f"{first.field or 'the request'}: {first.message}",
        field=first.field or None,
        problems=problems,
    )


def install(app: FastAPI) -> None:
    """Gives every error of ``app`` the one shape."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return _answer(error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _answer(wrong_fields(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        by_status: dict[int, Code] = {status: code for code, status in _STATUS.items()}  # type: ignore[misc]
        code = by_status.get(error.status_code, "wrong_input")
        detail = ErrorDetail(code=code, message=str(error.detail))
        return JSONResponse({"error": detail.model_dump()}, error.status_code, headers=error.headers)

    async def vanished(request: Request, error: Exception) -> Response:
        # Trainers prune and people delete while we look; what can be told without the file is told by the routes.
        log.warning("%s %s: %s", request.method, request.url.path, error)
        return _answer(Refusal("not_found", "It has been deleted, or moved away, while it was looked at."))

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, OSError)
        log.error("%s %s: %s", request.method, request.url.path, error)
        why = error.strerror or str(error) or type(error).__name__
        return _answer(Refusal("unavailable", f"The server's disk or system did not let it do that: {why}."))

    async def no_unicode(request: Request, error: Exception) -> Response:
        return _answer(Refusal("wrong_input", "The text has half a character in it (a lone surrogate)."))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(FileNotFoundError, vanished)
    app.add_exception_handler(OSError, failed)
    app.add_exception_handler(UnicodeEncodeError, no_unicode)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _answer(refusal: Refusal) -> Response:
    # In ASCII: a message may repeat what was asked, and that may be no Unicode.
    return Response(json.dumps(refusal.body), refusal.status, media_type="application/json")


_MEANINGS = {
    401: "No valid token.",
    403: "A foreign Host or Origin, or something that a flag would have to allow.",
    404: "There is no such thing.",
    409: "The run's state forbids it; `state` tells it.",
    413: "The body is too large.",
    422: "Wrong input; `problems` names the fields.",
    429: "Too many requests wait for the model worker.",
    503: "The model worker has died, and the next request starts a new one; or the disk is full.",
    504: "It took too long.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These error statuses for a route's documentation (401, 403 and 422 are on every route)."""
    return {
        status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in (401, 403, 413, 422, *statuses)
    }
