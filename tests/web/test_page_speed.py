"""Eight live charts at 50 events a second, by Chromium's own trace: no long task, and little script a frame."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser import Server, tab

CHARTS = 8
SECONDS = 6
LONG_TASK_MS = 50
SCRIPT_MS = 12
SCRIPT = {"FunctionCall", "EvaluateScript", "FireAnimationFrame", "TimerFire", "RunMicrotasks", "EventDispatch"}


@pytest.fixture
def live(server: Server) -> Any:
    server.train("fast", "--fake-steps", 100_000, "--fake-interval", 0.018, "--fake-eval-every", 100)
    yield server
    server.trainers[-1].kill()


def main_thread(trace: bytes) -> list[dict[str, Any]]:
    """The complete events of the page's main thread, in order."""
    events = json.loads(trace)["traceEvents"]
    frames = [event for event in events if event["name"] == "FireAnimationFrame"]
    home = max(
        {(e["pid"], e["tid"]) for e in frames}, key=lambda at: sum((e["pid"], e["tid"]) == at for e in frames)
    )
    own = [event for event in events if (event["pid"], event["tid"]) == home and event["ph"] == "X"]
    return sorted(own, key=lambda event: event["ts"])


def milliseconds(event: dict[str, Any]) -> float:
    """CPU time where the trace has it: what other programs on a busy machine take is not the page's."""
    return float(event.get("tdur", event.get("dur", 0))) / 1000


def script_by_frame(events: list[dict[str, Any]]) -> list[float]:
    """Milliseconds of script between one animation frame and the next, nested calls counted once."""
    totals, end = [0.0], 0.0
    for event in events:
        if event["name"] not in SCRIPT or event["ts"] < end:
            continue
        end = event["ts"] + event.get("dur", 0)
        if event["name"] == "FireAnimationFrame":
            totals.append(0.0)
        totals[-1] += milliseconds(event)
    return totals[1:]


def measure(chromium: Any, page: Any) -> tuple[bool, bool, str]:
    """Whether the page was good, whether the window was a fair one (else the machine starved it), and the words."""
    before = page.evaluate("window.limner.held().count")
    chromium.start_tracing(page=page, categories=["devtools.timeline", "toplevel"])
    page.wait_for_timeout(SECONDS * 1000)
    events = main_thread(chromium.stop_tracing())
    came = page.evaluate("window.limner.held().count") - before
    tasks = [
        milliseconds(event) for event in events if event["name"] in ("RunTask", "ThreadControllerImpl::RunTask")
    ]
    frames = sorted(script_by_frame(events))
    p95 = frames[len(frames) * 95 // 100]
    told = f"{came} events, {len(frames)} frames, longest task {max(tasks):.1f} ms, script a frame p95 {p95:.1f} ms"
    # Numbers are shown once a second: a browser that is not starved has a frame in each.
    fair = came >= 30 * SECONDS and len(frames) >= SECONDS - 1
    return max(tasks) <= LONG_TASK_MS and p95 <= SCRIPT_MS, fair, told


def test_eight_live_charts(chromium: Any, live: Server) -> None:
    with tab(chromium, live) as page:
        page.set_viewport_size({"width": 1400, "height": 1500})  # all charts are in view
        page.goto(f"{live.url}/runs/fast")
        page.wait_for_function(f"() => document.querySelectorAll('[data-chart] canvas').length >= {CHARTS}")
        page.wait_for_timeout(1_500)  # "after load"
        told: list[str] = []
        verdicts: list[bool] = []
        for _ in range(6):  # a window in which other programs starve the browser tells of them, not of the page
            good, fair, words = measure(chromium, page)
            told.append(words)
            if fair:
                verdicts.append(good)
            if any(verdicts) or len(verdicts) == 3:
                break
    print(*told, sep="; ")
    if not verdicts:
        pytest.skip(f"other programs starved the browser: {told}")
    assert any(verdicts), told
