"""The application: what it is made of, and its life. Importing it imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from limner import __version__
from limner.config.serve import ServeConfig
from limner.runs.folder import clear_graves, take_lock
from limner.server import errors, page, socket
from limner.server.launcher import Launcher
from limner.server.routes import catalogue, older, playground, runs, start, steer
from limner.server.security import Application, Guard, read_token
from limner.server.watch import Runs
from limner.server.workroom import Workroom

RECORDED = Path(__file__).parent / "recorded"
"""Runs that come with Limner, to look at (`--demo`)."""
log = logging.getLogger("limner.server")


@dataclass(frozen=True)
class Server:
    """The guarded application, its inside, and the token that opens it."""

    application: Application
    app: FastAPI
    token: str


def create_server(
    config: ServeConfig,
    trainer: list[str] | None = None,
    worker: list[str] | None = None,
    page_dir: Path = page.PAGE,
) -> Server:
    """Puts the application together; nothing runs yet.

    Args:
        trainer: starts a trainer, before its verb; None: this Python's Limner.
        worker: starts the model worker; None: Limner's own.

    Raises:
        OSError: the runs folder cannot be made.
        ValueError: another server is at work there: two would start each run of the queue twice.
    """
    config.runs_dir.mkdir(parents=True, exist_ok=True)
    state_dir = config.runs_dir / ".server"
    try:
        state_dir.mkdir(exist_ok=True)
        lock = take_lock(state_dir / "lock")
    except BlockingIOError:
        raise ValueError(
            f"A `limner serve` is at work on {config.runs_dir.resolve()} already (process "
            f"{(state_dir / 'lock').read_text()}); use that one, or give another --runs-dir."
        ) from None
    except OSError:  # a folder that cannot be written: there is no queue in it to start runs from
        lock = None
    clear_graves(config.runs_dir)
    token = config.token or read_token(state_dir, config.new_token)
    app = create_app(config, trainer, worker, page_dir)
    app.state.lock = lock
    guard = Guard(app, config, token)
    app.state.is_token = guard.is_token
    return Server(guard, app, token)


def create_app(
    config: ServeConfig,
    trainer: list[str] | None = None,
    worker: list[str] | None = None,
    page_dir: Path = page.PAGE,
) -> FastAPI:
    """The application without its guard: for documentation and tests of the schema."""
    app = FastAPI(
        title="Limner",
        version=__version__,
        summary="Watch and steer runs; try models.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=_life,
    )
    state_dir = config.runs_dir / ".server"
    app.state.config, app.state.state_dir, app.state.page_dir = config, state_dir, page_dir
    app.state.runs = Runs(config.runs_dir, RECORDED if config.demo and RECORDED.is_dir() else None)
    app.state.launcher = Launcher(app.state.runs, state_dir, trainer)
    app.state.workroom = Workroom(
        log_path=state_dir / "worker.log",
        threads=config.worker_threads,
        memory_bytes=round(config.worker_memory_gb * 1e9),
        timeout=config.worker_timeout,
        command=worker,
    )
    app.state.is_token, app.state.lock = lambda text: False, None
    errors.install(app)
    # Streams of tokens are left alone: a compressor would hold them back.
    plain = (*DEFAULT_EXCLUDED_CONTENT_TYPES, playground.NDJSON)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=1, exclude_content_types=plain)
    for module in (catalogue, playground, start, steer, older, runs):
        app.include_router(module.router)
    app.include_router(socket.router)
    app.include_router(page.router)
    return app


@contextlib.asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    """While the server lives: the queue is looked after. Its end ends the model worker, and no trainer."""
    shutil.rmtree(
        app.state.state_dir / "models", ignore_errors=True
    )  # checkpoints made into models, of a past life
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(app.state.launcher.run_forever()),
        asyncio.create_task(asyncio.to_thread(app.state.runs.summaries)),  # so that the first chart need not wait
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await app.state.workroom.close()
        if app.state.lock is not None:
            app.state.lock.close()
