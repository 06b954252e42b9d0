"""What a person types and has chosen stays: in the form of a new run and in the playground."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from browser import Server
from playwright.sync_api import expect

pytestmark = pytest.mark.usefixtures("ended")


@pytest.fixture(scope="module")
def tried(server: Server) -> Server:
    """A finished GPT that the playground can open."""
    server.train("older", "--fake-steps", 40, "--fake-interval", 0.002, wait=True)
    return server


def field(page: Any, name: str) -> Any:
    return page.locator(f"[data-field={name}]")


def test_a_late_answer_does_not_undo_what_was_typed(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/new?verb=pretrain")
    box = field(page, "steps").locator("input")
    box.click()
    page.keyboard.type("300")
    expect(page.locator("pre.command")).to_contain_text("--steps 300")
    left = []
    for _ in range(3):  # the last one leaves the default, of which the server has not heard yet
        page.keyboard.press("Backspace")
        left.append(box.input_value())
    page.keyboard.type("20")
    assert left == ["30", "3", ""]
    expect(page.locator("pre.command")).to_contain_text(re.compile(r"--steps 20\b"))
    expect(box).to_have_value("20")


def test_enter_in_a_field_starts_no_run(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/new?verb=pretrain")
    page.get_by_label("Name", exact=True).fill("by-control-enter")
    page.get_by_label("Find a setting").fill("steps")
    field(page, "steps").locator("input").fill("100000")
    expect(page.locator("pre.command")).to_contain_text("--steps 100000")
    page.get_by_label("Find a setting").press("Enter")
    page.get_by_label("Name", exact=True).press("Enter")
    field(page, "steps").locator("input").press("Enter")
    page.wait_for_timeout(500)
    expect(page).to_have_url(re.compile("/new"))
    assert server.ask("GET", "/api/runs")["active"] == []

    page.get_by_label("Find a setting").press("Control+Enter")
    expect(page).to_have_url(re.compile("/runs/by-control-enter$"))


def test_a_decimal_comma_is_refused_with_a_sentence(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/new?verb=pretrain")
    box = field(page, "lr").locator("input")
    box.fill("0,001")
    expect(field(page, "lr")).to_contain_text("number")
    expect(box).to_have_value("0,001")
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    box.fill("0.001")
    expect(page.locator("pre.command")).to_contain_text("--lr 0.001")
    field(page, "steps").locator("input").fill("1,000")
    expect(page.locator("pre.command")).to_contain_text(re.compile(r"--steps 1000\b"))


def test_a_section_stays_open_when_its_mistake_is_mended(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/new?verb=pretrain")
    page.locator("summary", has_text="Machine").click()
    box = field(page, "threads").locator("input")
    box.fill("two")
    expect(field(page, "threads")).to_contain_text("integer")
    box.press("Control+a")
    page.keyboard.type("2")
    expect(page.locator("pre.command")).to_contain_text("--threads 2")
    expect(box).to_be_visible()
    expect(box).to_be_focused()

    page.goto(f"{server.url}/new?verb=pretrain&c=%7B%22threads%22%3A%22two%22%7D")
    expect(box).to_be_visible()  # a mistake is shown, wherever it is
    box.fill("2")
    expect(page.locator("pre.command")).to_contain_text("--threads 2")
    expect(box).to_be_visible()


def test_what_was_typed_outlives_another_verb_and_a_reload(page: Any, tried: Server) -> None:
    page.goto(f"{tried.url}/new?verb=pretrain")
    name = page.get_by_label("Name", exact=True)
    name.fill("older")
    expect(page.get_by_text("There is a run named 'older' already.")).to_be_visible()
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    name.fill("not-older")
    field(page, "steps").locator("input").fill("300")
    expect(page.locator("pre.command")).to_contain_text("--steps 300")
    for verb in ("Train a captioner", "Pretrain a GPT"):
        page.get_by_role("radiogroup", name="What to train").get_by_text(verb).click()
        expect(page.locator("pre.command")).to_contain_text("train " if "captioner" in verb else "--steps 300")
    page.reload()
    expect(field(page, "steps").locator("input")).to_have_value("300")
    expect(name).to_have_value("not-older")
    long = "texts/" * 14_000
    page.get_by_label("Corpus", exact=True).fill(long)
    expect(page).to_have_url(re.compile("c.kept="))
    field(page, "steps").locator("input").fill("301")
    expect(page.locator("pre.command")).to_contain_text("--steps 301")
    page.reload()
    expect(page.locator("pre.command")).to_contain_text("--corpus")
    assert page.get_by_label("Corpus", exact=True).input_value() == long
    page.evaluate("sessionStorage.clear()")
    page.reload()
    expect(page.get_by_role("alert")).to_have_text("The settings of this address were kept in another tab.")
    field(page, "steps").locator("input").fill("302")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_run_like_one_that_is_gone_says_so(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/new?from=gone")
    expect(page.get_by_role("alert")).to_contain_text("The settings of gone cannot be read")


def test_a_long_prompt_outlives_a_reload(page: Any, tried: Server) -> None:
    prompt = "Once upon a time " * 5_000
    page.goto(f"{tried.url}/playground?model=run:older")
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()
    expect(page).to_have_url(re.compile("prompt.kept="))
    page.reload()
    expect(page.get_by_label("Prompt")).to_be_visible()
    assert page.get_by_label("Prompt").input_value() == prompt


def test_the_playground_keeps_the_model_that_it_began_with(page: Any, tried: Server) -> None:
    page.goto(f"{tried.url}/playground")
    expect(page).to_have_url(re.compile("model="))
    model = page.get_by_role("combobox", name="Model")
    chosen = model.input_value()
    page.get_by_label("Prompt").fill("Once upon")
    page.get_by_label("Seed").fill("7")
    with page.expect_response(lambda answer: answer.url.endswith("/api/models") and "newer" in answer.text()):
        tried.train("newer", "--fake-steps", 40, "--fake-interval", 0.002, wait=True)  # listed first from now on
    page.wait_for_timeout(300)
    expect(model).to_have_value(chosen)
    expect(page.get_by_label("Prompt")).to_have_value("Once upon")
    expect(page.get_by_label("Seed")).to_have_value("7")


def test_the_playground_outlives_its_server(page: Any, tried: Server) -> None:
    page.goto(f"{tried.url}/playground?model=run:older")
    page.get_by_label("Prompt").fill("Once upon")
    ask_again = "() => window.dispatchEvent(new Event('visibilitychange'))"  # else it waits for the next poll
    page.route("**/api/models", lambda route: route.abort())
    page.evaluate(ask_again)
    expect(page.get_by_role("alert")).to_contain_text("cannot be listed")
    expect(page.get_by_label("Prompt")).to_have_value("Once upon")
    page.unroute("**/api/models")
    page.evaluate(ask_again)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_label("Prompt")).to_have_value("Once upon")


def test_another_model_is_asked_the_same(page: Any, tried: Server) -> None:
    for name in ("slow", "quick"):
        tried.train(name, "--fake-steps", 20, "--fake-interval", 0.002, wait=True)
    page.goto(f"{tried.url}/playground?model=run:slow")
    page.get_by_label("Prompt").fill("Once upon")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".token").nth(1)).to_be_visible()
    stop = page.get_by_role("button", name="Stop")
    stop.focus()
    stop.press("Enter")
    said = page.locator(".output-side [role=status]")
    expect(said).to_have_text("slow: stopped")
    expect(stop).to_be_focused()

    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option", name="quick", exact=True).click()
    expect(page).to_have_url(re.compile("run%3Aquick|run:quick"))
    expect(page.get_by_label("Prompt")).to_have_value("Once upon")
    expect(said).to_have_text("slow: stopped")
    page.locator(".token").first.click()
    expect(page.locator(".alternatives button:enabled", has_text="branch")).to_have_count(0)  # its own model only
    page.get_by_role("button", name="Generate").click()
    expect(said).to_have_text(re.compile("^quick: (as many tokens as asked|the model ended the text), .* seed"))
    expect(page.locator(".earlier li")).to_contain_text(["quick:", "slow:"])


def test_a_refused_picture_says_why_beside_it(page: Any, tried: Server) -> None:
    from PIL import Image

    tried.train("captioner", "--fake-steps", 20, "--fake-interval", 0.002, verb="train", wait=True)
    page.goto(f"{tried.url}/playground?model=run:captioner")
    expect(page.get_by_role("button", name="Choose a file")).to_be_visible()
    page.set_input_files("input[type=file]", files=[{"name": "a.png", "mimeType": "image/png", "buffer": b"text"}])
    expect(page.locator(".output-side [role=alert]")).to_contain_text("not a picture")
    expect(page.locator(".output-side")).not_to_contain_text("appear here")
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    file = {"name": "red.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    page.set_input_files("input[type=file]", files=[file])
    expect(page.locator(".beams li")).to_have_count(3)
    expect(page.locator(".output-side [role=alert]")).to_have_count(0)


def test_what_a_run_answered_stays_when_it_ends(page: Any, server: Server) -> None:
    server.train("answering", "--fake-steps", 300, "--fake-interval", 0.02)
    page.goto(f"{server.url}/playground?model=live:answering")
    page.get_by_label("Prompt").fill("Once upon")
    page.get_by_role("button", name="Try").click()
    answer = page.get_by_role("list", name="Answers").locator("li")
    expect(answer).to_contain_text("Once upon")
    its_model = page.get_by_role("button", name="Ask its model")
    expect(its_model).to_be_visible()
    expect(answer).to_contain_text("Once upon")
    its_model.click()
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_have_value("Once upon")
