"""Start, watch, pause, ask the live weights, resume, stop and save, resume: by mouse, and by keyboard only."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.usefixtures("ended")


def status(page: Any, name: str) -> None:
    expect(page.locator(".run-header .pill")).to_have_text(name)


def step(page: Any) -> int:
    return int(page.locator(".vitals dd").first.inner_text().split(" of ")[0].replace(",", ""))


def wait_for_step(page: Any, least: int) -> None:
    shown = "document.querySelector('.vitals dd').innerText.split(' of ')[0].replace(',', '')"
    page.wait_for_function(f"least => Number({shown}) >= least", arg=least)


def test_a_run_is_steered_by_mouse(page: Any) -> None:
    page.get_by_role("link", name="New run").first.click()
    page.get_by_text("Pretrain a GPT").click()
    page.get_by_label("Name", exact=True).fill("by-mouse")
    page.locator("[data-field=steps] input").fill("5000")
    expect(page.locator("pre.command")).to_contain_text("--steps 5000")
    page.get_by_role("button", name="Start").click()

    expect(page).to_have_url(re.compile("/runs/by-mouse$"))
    status(page, "running")
    wait_for_step(page, 10)
    expect(page.locator("[data-chart=loss] .legend b").first).to_have_text(re.compile(r"^\d"))
    expect(page).to_have_title(re.compile(r"\d+ % · by-mouse"))
    for name in ("Resume",):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()

    page.get_by_role("button", name="Pause").click()
    status(page, "paused")
    held = step(page)
    page.get_by_role("navigation", name="Views of the run").get_by_text("Samples").click()
    page.get_by_label("Try a prompt with the live weights").fill("Once upon a time")
    page.get_by_role("button", name="Try").click()
    expect(page.get_by_label("Answers").locator("li")).to_contain_text(["Once upon a time"])
    assert step(page) == held  # the answer came from a run that stands still

    page.get_by_role("button", name="Resume").click()
    status(page, "running")
    wait_for_step(page, held + 5)
    page.get_by_role("button", name="Stop and save").click()
    status(page, "stopped")
    stopped = step(page)
    for name in ("Pause", "Checkpoint", "Stop and save", "Kill"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()

    page.get_by_role("button", name="Resume").click()
    status(page, "running")
    wait_for_step(page, stopped + 5)
    page.get_by_role("navigation", name="Views of the run").get_by_text("Log").click()
    expect(page.locator(".journal")).to_contain_text("attempt 2")
    page.get_by_role("button", name="Kill").click()
    page.get_by_role("dialog").get_by_role("button", name="Kill").click()
    status(page, "crashed")
    expect(page.get_by_role("alert")).to_contain_text("Resume goes on from the last checkpoint")


def test_a_run_is_steered_by_keyboard_alone(page: Any) -> None:
    keys = page.keyboard

    def type_keys(*names: str) -> None:
        for name in names:
            keys.press(name)

    def tab_to(selector: str) -> None:
        page.locator(selector).first.wait_for()
        for _ in range(120):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            keys.press("Tab")
        raise AssertionError(f"Tab never came to {selector}")

    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    type_keys("g", "n")
    expect(page.get_by_role("heading", name="New run")).to_be_visible()
    tab_to(".names input")
    keys.type("by-keyboard")
    tab_to("[data-field=steps] input")
    keys.type("5000")
    expect(page.locator("pre.command")).to_contain_text("--steps 5000")
    tab_to("aside button[type=submit]")
    keys.press("Enter")

    status(page, "running")
    wait_for_step(page, 10)
    tab_to("[data-chart=loss] [role=slider]")
    type_keys("ArrowLeft", "ArrowLeft")
    expect(page.locator("[data-chart=loss] [role=slider]")).to_have_attribute(
        "aria-valuetext", re.compile(r"^step \d+: training \d")
    )
    keys.press("Escape")
    keys.press("p")
    status(page, "paused")
    held = step(page)
    keys.press("2")
    tab_to(".ask input")
    keys.type("The moon")
    keys.press("Enter")
    expect(page.get_by_label("Answers").locator("li")).to_contain_text(["The moon"])
    assert step(page) == held

    tab_to(".tabs a")
    keys.press("p")
    status(page, "running")
    wait_for_step(page, held + 5)
    page.evaluate("document.activeElement.blur()")
    tab_to(".actions button:nth-of-type(4)")
    keys.press("Enter")
    status(page, "stopped")
    stopped = step(page)
    keys.press("p")
    status(page, "running")
    wait_for_step(page, stopped + 5)
    keys.press("1")
    expect(page.locator("[data-chart=loss]")).to_be_visible()
