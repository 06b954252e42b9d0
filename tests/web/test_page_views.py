"""The views one by one: curves, the one step cursor, samples, checkpoints, labels, comparing, the playground."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from browser import Server
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def looked_at(server: Server) -> Server:
    """A finished captioner and two finished GPTs, one with a model that the playground can open."""
    server.train("pictures", "--fake-steps", 120, "--fake-interval", 0.002, verb="train", wait=True)
    server.train("first", "--fake-steps", 120, "--fake-interval", 0.002, wait=True)
    server.train("second", "--fake-steps", 80, "--fake-interval", 0.002, wait=True)
    return server


def slider(page: Any) -> Any:
    return page.locator("[data-chart=loss] [role=slider]")


def test_one_cursor_moves_curves_and_samples(page: Any, looked_at: Server) -> None:
    page.goto(f"{looked_at.url}/runs/pictures")
    box = page.locator("[data-chart=loss] .u-over").bounding_box()
    samples = page.get_by_role("region", name="Samples at the cursor")
    expect(samples).to_contain_text("at step 120")
    middle = (box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.move(*middle)
    expect(samples).to_contain_text("at step 60")
    for chart in ("loss", "gradient", "rate"):  # one cursor over all charts
        expect(page.locator(f"[data-chart={chart}] .place")).to_have_text(re.compile("step (59|60|61)"))
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 40)
    expect(samples).to_contain_text("at step 20")
    page.mouse.click(*middle)
    page.mouse.move(5, 5)
    expect(samples).to_contain_text("at step 60")
    expect(page).to_have_url(re.compile(r"step=(59|60|61)"))

    page.get_by_role("navigation", name="Views of the run").get_by_text("Samples").click()
    expect(page.locator("th.chosen")).to_have_text(re.compile("^(40|60)$"))
    page.reload()  # the view is a link
    expect(page.locator("th.chosen")).to_have_text(re.compile("^(40|60)$"))
    page.get_by_label("Step of the samples").focus()
    page.keyboard.press("Home")
    expect(page.locator("th.chosen")).to_have_text("0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("th.chosen")).to_have_text("20")
    page.get_by_label("Difference from the step before").check(force=True)
    expect(page.locator("td.chosen ins").first).to_be_visible()
    page.get_by_role("button", name="Play").click()
    expect(page.locator("th.chosen")).to_have_text("40")
    page.get_by_role("button", name="Hold").click()


def test_zoom_move_and_reset(page: Any, looked_at: Server) -> None:
    page.goto(f"{looked_at.url}/runs/first")
    over = page.locator("[data-chart=loss] .u-over")
    box = over.bounding_box()
    left, width, top = box["x"], box["width"], box["y"] + 50
    page.mouse.move(left + width * 0.25, top)
    page.mouse.down()
    page.mouse.move(left + width * 0.75, top, steps=4)
    page.mouse.up()
    page.wait_for_url(re.compile("from="))
    window = re.search(r"from=([\d.]+)&to=([\d.]+)", page.url)
    assert window
    low, high = float(window[1]), float(window[2])
    assert (low, high) == pytest.approx((31, 90), abs=2)
    page.keyboard.down("Shift")
    page.mouse.move(left + width * 0.5, top)
    page.mouse.down()
    page.mouse.move(left + width * 0.25, top, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_function("low => Number(new URL(location).searchParams.get('from')) > low + 5", arg=low)
    moved = re.search(r"from=([\d.]+)&to=([\d.]+)", page.url)
    assert moved
    assert float(moved[2]) - float(moved[1]) == pytest.approx(high - low, rel=1e-6)
    over.dblclick()
    page.wait_for_function("() => !new URL(location).searchParams.has('from')")
    slider(page).focus()
    page.keyboard.press("+")
    page.wait_for_url(re.compile("from="))
    page.keyboard.press("0")
    page.wait_for_function("() => !new URL(location).searchParams.has('from')")


def test_every_axis_has_its_range(page: Any, looked_at: Server) -> None:
    page.goto(f"{looked_at.url}/runs/first?step=60")
    for label, place in (("Tokens", "tokens 960"), ("Epoch", "epoch 0.6"), ("Step", "step 60")):
        page.get_by_role("radiogroup", name="Horizontal axis").get_by_text(label, exact=True).click()
        expect(page.locator("[data-chart=loss] .place")).to_have_text(place)
    page.get_by_role("radiogroup", name="Horizontal axis").get_by_text("Time", exact=True).click()
    expect(page.locator("[data-chart=loss] .place")).to_have_text(re.compile(r"^time [\d.]+ s$"))
    assert "x=time" in page.url


def test_labels_filter_pin_and_delete(page: Any, looked_at: Server) -> None:
    looked_at.train("unwanted", "--fake-steps", 20, "--fake-interval", 0.001, wait=True)
    page.goto(looked_at.url)
    row = page.locator("tr", has_text="unwanted")
    row.get_by_role("button", name="More for unwanted").click()
    page.get_by_role("menuitem", name="Tags and note").click()
    page.get_by_role("combobox", name="Tags").fill("trial")
    page.keyboard.press("Enter")
    page.get_by_role("textbox", name="Note").fill("too short")
    page.get_by_role("button", name="Keep").click()
    expect(row.locator(".tag")).to_have_text("trial")
    expect(row).to_contain_text("too short")
    row.get_by_role("button", name="More for unwanted").click()
    page.get_by_role("menuitem", name="Pin").click()
    expect(page.locator("tbody tr").first).to_contain_text("unwanted")
    page.get_by_label("Filter runs").fill("trial completed")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert "q=trial" in page.url
    row.get_by_role("button", name="More for unwanted").click()
    page.get_by_role("menuitem", name="Delete").click()
    confirm = page.get_by_role("dialog").get_by_role("button", name=re.compile(r"^Delete [\d.]+ kB$"))
    confirm.click()
    expect(page.get_by_role("status").filter(has_text="freed")).to_be_visible()
    assert not (looked_at.runs / "unwanted").exists()


def test_compare_shows_what_differs(page: Any, looked_at: Server) -> None:
    page.goto(looked_at.url)
    for name in ("first", "second"):
        page.get_by_label(f"Choose {name} for comparing").check()
    page.get_by_role("button", name="Compare 2").click()
    expect(page.locator("[data-chart=loss] .legend span")).to_contain_text(["· training", "· validation"])
    expect(page.locator("[data-chart=loss-delta] .legend b")).to_have_text(re.compile(r"\d"))
    settings = page.get_by_role("region", name="Settings table")
    expect(settings.locator("tbody tr")).to_have_count(1)
    expect(settings.locator("tbody")).to_contain_text("fake steps")
    page.get_by_label("All settings").check(force=True)
    expect(settings.locator("tbody")).to_contain_text("seed")


def test_checkpoints_are_compared_opened_and_deleted(page: Any, looked_at: Server) -> None:
    page.goto(f"{looked_at.url}/runs/second/checkpoints")
    rows = page.locator("table").first.locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("best")
    for name in ("step-000020", "step-000080"):
        page.get_by_label(f"Choose {name} for comparing").check()
    expect(page.locator("table").nth(1)).to_contain_text("−4.076")  # the loss fell between them
    page.get_by_label("More for step-000020").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(rows).to_have_count(3)
    assert not (looked_at.runs / "second" / "checkpoints" / "step-000020").exists()
    rows.first.get_by_role("button", name="Playground").click()
    expect(page.get_by_label("Prompt")).to_be_visible()
    assert "step-000080" in page.url


def model_file() -> bytes:
    """A safetensors file of one small tensor: enough to be listed, and the fake worker reads none."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


def test_text_with_alternatives_and_a_branch(page: Any, looked_at: Server) -> None:
    (looked_at.runs / "first" / "model" / "model.safetensors").write_bytes(model_file())
    page.goto(f"{looked_at.url}/playground?model=run:first&seed=3")
    page.get_by_label("Prompt").fill("Once")
    page.get_by_role("button", name="Generate").click()
    tokens = page.locator(".token")
    expect(tokens.nth(1)).to_be_visible()
    expect(page.locator(".output-side [role=status]")).to_contain_text("seed 3")
    before = tokens.all_inner_texts()
    tokens.nth(1).click()
    other = page.locator(".alternatives button:enabled", has_text="branch").first
    chosen = other.locator("code").inner_text().replace("␣", " ")
    other.click()
    expect(tokens.nth(1)).to_have_text(chosen)
    after = tokens.all_inner_texts()
    assert after[0] == before[0]
    assert after[1] != before[1]
    expect(page.locator(".token.forced")).to_have_count(2)
    assert "prompt=Once" in page.url


def test_a_picture_is_captioned_with_beams(page: Any, looked_at: Server) -> None:
    from PIL import Image

    (looked_at.runs / "pictures" / "model" / "model.safetensors").write_bytes(model_file())
    page.goto(f"{looked_at.url}/playground?model=run:pictures")
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(picture, "PNG")
    expect(page.get_by_role("button", name="Choose a file")).to_be_visible()
    file = {"name": "red.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    page.set_input_files("input[type=file]", files=[file])
    expect(page.locator(".beams li")).to_have_count(3)
    expect(page.locator(".output-side [role=status]")).to_contain_text("64 × 48")
    words = page.locator(".beams .best .word")
    expect(words.first).to_have_text(re.compile(r"\d+ %"))
    scores = [float(text.replace("−", "-")) for text in page.locator(".beams .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)


def test_a_wrong_setting_is_named_at_its_field(page: Any, looked_at: Server) -> None:
    page.goto(f"{looked_at.url}/new?verb=pretrain")
    page.locator("[data-field=lr] input").fill("-1")
    expect(page.locator("[data-field=lr]")).to_contain_text("greater than 0")
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    page.locator("[data-field=lr]").get_by_role("button", name="Reset").click()
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
    page.locator("[data-field=lr] input").fill("1e-3")
    expect(page.locator("pre.command")).to_contain_text("--lr 0.001")
    expect(page.get_by_role("region", name="Learning rate")).to_contain_text("0.001")
    page.reload()  # the form is a link as well
    expect(page.locator("[data-field=lr] input")).to_have_value("0.001")
