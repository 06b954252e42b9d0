"""Every view: axe finds nothing serious, nothing leaves the origin, and a telephone is wide enough."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import ROOT, TOKEN, Server, tab

AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
VIEWS = [
    "/",
    "/new?verb=pretrain",
    "/new?verb=train",
    "/new?verb=demo",
    "/compare?runs=finished,captions",
    "/runs/finished",
    "/runs/captions?step=40",
    "/runs/captions/samples?diff=1",
    "/runs/finished/checkpoints",
    "/runs/finished/log",
    "/runs/finished/settings",
    "/runs/crashed",
    "/playground",
    "/playground?model=run:finished",
    "/playground?model=run:captions",
    "/nowhere",
    "/runs/at-work/log",
]


@pytest.fixture(scope="module")
def visited(server: Server) -> Iterator[Server]:
    """Runs of every kind to look at."""
    server.train("finished", "--fake-steps", 60, "--fake-interval", 0.002, wait=True)
    server.train("captions", "--fake-steps", 60, "--fake-interval", 0.002, verb="train", wait=True)
    server.train("crashed", "--fake-steps", 60, "--fake-interval", 0.002, "--fake-crash-at", 45, wait=True)
    server.train("at-work", "--fake-steps", 100_000, "--fake-interval", 0.2)
    yield server
    server.trainers[-1].kill()


def settle(page: Any) -> None:
    """Until the view stands and what it asked for has come."""
    page.wait_for_function(
        "() => document.querySelector('main h1, main h2') && !document.querySelector('.empty[role=status]')"
    )
    page.wait_for_timeout(250)


@pytest.mark.parametrize("views", [VIEWS[0::2], VIEWS[1::2]], ids=["even", "odd"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_view(chromium: Any, visited: Server, scheme: str, width: int, views: list[str]) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (npm ci in web/)")
    script, asked = AXE.read_text(), []
    found: list[str] = []
    with tab(chromium, visited, color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        for view in views:
            page.goto(visited.url + view)
            settle(page)
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                found.append(f"{view}: {wide} pixels wide")
            page.evaluate(script)
            result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            found += [
                f"{view}: {violation['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
                for violation in result["violations"]
                if violation["impact"] in ("serious", "critical")
                for node in violation["nodes"][:2]
            ]
        page.goto(visited.url + "/runs/at-work")
        page.wait_for_function("() => document.querySelector('.connection.live')")
    own = f"://127.0.0.1:{visited.port}/"
    found += [
        f"left the origin: {url}" for url in asked if own not in url and not url.startswith(("data:", "blob:"))
    ]
    assert not found, "\n".join(found)
    assert len(asked) > 50
    assert any(url.startswith("ws") for url in asked)


def test_a_browser_without_the_token_is_asked_for_it(chromium: Any, visited: Server) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(visited.url + "/runs/finished")
    page.get_by_label("Address or token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("token").first.wait_for()
    page.get_by_label("Address or token").fill(f"http://somewhere/?token={TOKEN}")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="finished").wait_for()
    context.close()


def test_the_first_load_is_small() -> None:
    """Everything that the list of runs needs, compressed, is below 300 KB."""
    import gzip
    import re

    folder = ROOT / "src" / "limner" / "server" / "page"
    if not folder.is_dir():
        pytest.skip("the page is not built (make page)")
    seen: set[Path] = set()
    waiting = [folder / "index.html", *folder.glob("assets/runs-*"), *folder.glob("assets/inter-latin-*")]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix in (".html", ".js"):
            text = path.read_text()
            static = re.findall(r"""(?:from|import)\s*["']\./([\w.-]+)["']""", text)
            static += re.findall(r"""(?:src|href)="/assets/([\w.-]+)\"""", text)
            waiting += [folder / "assets" / name for name in static]
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 6)) for path in seen}
    assert 100_000 < sum(sizes.values()) < 300_000, sizes
