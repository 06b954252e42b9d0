"""Whatever the documented interface is sent, it answers, and never with a 5xx (but for a full or dead worker)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from server_process import BEARER, FAKE_WORKER, TOKEN, write_run
from starlette.testclient import TestClient

from limner.config.serve import ServeConfig
from limner.server.app import create_app, create_server

SCHEMA = schemathesis.openapi.from_dict(create_app(ServeConfig()).openapi())
OPERATIONS = {f"{found.ok().method} {found.ok().path}": found.ok() for found in SCHEMA.get_all_operations()}
KNOWN = "run", "live", "step-000001", "pretrain", "none", "..%2f..", "%00", "ö" * 300


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    runs_dir: Path = tmp_path_factory.mktemp("runs")
    write_run(runs_dir, "run", [3.0, 2.0, 1.0])
    write_run(runs_dir, "live", [3.0, 2.0], complete=False)
    # The trainer ends at once: what is started here must not stay.
    server = create_server(ServeConfig(runs_dir=runs_dir, token=TOKEN), ["true"], FAKE_WORKER)
    with TestClient(
        server.application,  # type: ignore[arg-type]
        base_url="http://127.0.0.1:8000",
        headers=BEARER,
        raise_server_exceptions=True,
    ) as client:
        yield client


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_no_5xx(living: TestClient, operation: str) -> None:
    found = OPERATIONS[operation]
    fitting = found.as_strategy()
    unfitting = found.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    names = [word for word in operation.split("/") if word.startswith("{")]

    @hypothesis.settings(
        max_examples=20, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(
        case=st.one_of(fitting, unfitting), known=st.lists(st.sampled_from(KNOWN), min_size=2, max_size=2)
    )
    def holds(case: Any, known: list[str]) -> None:
        if operation.endswith("kill"):  # "live" is this very process
            known = ["run", "run"]
        case.path_parameters = dict(zip((name.strip("{}") for name in names), known, strict=False))
        sent = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
        sent["headers"] = {k: v for k, v in dict(sent.get("headers") or {}).items() if k.lower() == "content-type"}
        sent.pop("cookies", None)
        if isinstance(sent.get("data"), bytes):
            sent["content"] = sent.pop("data")
        answer = living.request(**sent)
        assert answer.status_code < 500, (sent, answer.content)
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}, (sent, answer.content)

    holds()


def test_every_route_tells_its_errors(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    assert len(paths) > 35
    for path, methods in paths.items():
        for method, route in methods.items():
            assert route["description"] or route["summary"], (method, path)
            if path not in ("/api/health", "/api/session"):
                for status in ("401", "403", "422"):
                    content = route["responses"][status]["content"]["application/json"]["schema"]
                    assert content == {"$ref": "#/components/schemas/ErrorBody"}, (method, path, status)


def test_the_server_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, limner.server.app, limner.cli.serve; print({'torch', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
