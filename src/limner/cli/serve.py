"""``limner serve``: the dashboard."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from typing import Any

from limner.cli.parse import parse
from limner.config.serve import ServeConfig

PORTS_TRIED = 100


def run(argv: list[str]) -> int:
    config = parse(ServeConfig, argv, "limner serve")
    try:
        from limner.server.app import create_server
        from limner.server.page import PAGE
        from limner.server.security import allowed_hint
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The dashboard needs the package '{error.name}'; install it with: pip install 'limner[serve]'"
        ) from error
    server = create_server(config)
    listener = listen(config.host, config.port)
    port = listener.getsockname()[1]
    if config.port not in (0, port):
        print(f"Port {config.port} is in use; taking {port}.", file=sys.stderr)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    shown = "127.0.0.1" if shown in ("0.0.0.0", "[::]") else shown
    address = f"http://{shown}:{port}/?token={server.token}"
    print(f"Limner is at {address}", flush=True)
    print(
        f"Runs: {config.runs_dir.resolve()}. {allowed_hint(config)} Ctrl-C ends the server, and no run.", flush=True
    )
    if not (PAGE / "index.html").is_file():
        print("This copy has no page: build it with `make page` in the source.", file=sys.stderr)
    if config.browser:
        _open_browser(address)
    serve_at(listener, server.application)
    return 0


def serve_at(listener: socket.socket, application: Any) -> None:
    """Serves until it is told to stop."""
    import uvicorn

    _share_freed_memory()
    settings = uvicorn.Config(
        application,
        log_level="warning",
        ws_max_size=65_536,
        ws_max_queue=8,
        ws_per_message_deflate=False,  # local: bytes are cheaper than the trainer's cores
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    # A refused WebSocket handshake is answered properly, and uvicorn still calls it an error of ours.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "completing handshake" not in record.getMessage())
    uvicorn.Server(settings).run(sockets=[listener])


def _share_freed_memory() -> None:
    """One pool of freed memory for all threads: glibc's pool a thread keeps what each once needed, many times over.

    Other C libraries have no such setting, and no such pools.
    """
    import ctypes

    try:
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at ``port``, or at the next free one.

    Raises:
        OSError: the address is not this machine's, or no port is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = min(65_535, port + PORTS_TRIED)
    for candidate in range(port, last + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        # Without it, a restarted server would find its own port taken for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), candidate))
            listener.listen(512)
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise OSError(f"--host {host}: this machine cannot listen there ({error}).") from error
            continue
        return listener
    raise OSError(f"No port from {port} to {last} is free; give another --port.")


def _open_browser(address: str) -> None:
    """In the background: a browser that is slow to come must not hold the server up."""
    import threading
    import webbrowser

    threading.Timer(0.5, webbrowser.open, [address]).start()
