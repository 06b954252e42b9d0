"""The real server with a fake trainer and a fake model worker: quick, without torch, for the page's tests.

    python tests/server/serve_fake.py --runs-dir /tmp/runs --port 8100 [--token T] [--allow-origin O] [--demo]

Prints its address on the first line, as `limner serve` does. A model of any run exists once the fake has ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

from limner.cli.parse import parse
from limner.cli.serve import listen, serve_at
from limner.config.serve import ServeConfig
from limner.server.app import create_server

HERE = Path(__file__).parent
FAKE_TRAINER = [sys.executable, str(HERE / "fake_trainer.py")]
FAKE_WORKER = [sys.executable, str(HERE / "fake_worker.py")]


def main() -> None:
    config = parse(ServeConfig, sys.argv[1:], "serve_fake")
    server = create_server(config, FAKE_TRAINER, FAKE_WORKER)
    listener = listen(config.host, config.port)
    print(f"Limner is at http://127.0.0.1:{listener.getsockname()[1]}/?token={server.token}", flush=True)
    serve_at(listener, server.application)


if __name__ == "__main__":
    main()
