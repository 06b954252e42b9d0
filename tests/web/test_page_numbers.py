"""NaN, infinities and a loss of zero: the page lives, and shows them as what they are."""

from __future__ import annotations

from typing import Any

from browser import Server
from playwright.sync_api import expect


def test_values_that_are_not_finite(page: Any, server: Server) -> None:
    # Steps 50 to 53 have a loss of NaN, infinity, minus infinity and zero.
    server.train("odd", "--fake-steps", 80, "--fake-interval", 0.002, "--fake-nan-at", 50, wait=True)
    page.goto(f"{server.url}/runs/odd")
    chart = page.locator("[data-chart=loss]")
    chart.get_by_role("slider").focus()
    page.keyboard.press("End")
    said = {}
    for step in range(79, 48, -1):
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(
            "text => document.querySelector('[data-chart=loss] [role=slider]').ariaValueText.startsWith(text)",
            arg=f"step {step}:",
        )
        said[step] = chart.get_by_role("slider").get_attribute("aria-valuetext").split("training ")[1].split(",")[0]
    assert [said[50], said[51], said[52]] == ["NaN", "∞", "−∞"]
    assert all(float(said[step]) > 0 for step in (49, 54))

    chart.get_by_role("button", name="Loss as a table").click()
    cells = chart.locator("tbody").inner_text()
    rows = dict(line.split("\t")[:2] for line in cells.splitlines())
    assert (rows["50"], rows["51"], rows["52"], rows["53"]) == ("NaN", "∞", "−∞", "0")

    chart.get_by_role("button", name="Loss as a table").click()
    chart.get_by_role(
        "button", name="Loss: log scale"
    ).click()  # zero has no place on this axis, and breaks nothing
    expect(chart.get_by_role("slider")).to_be_visible()
    page.goto(server.url)
    row = page.locator("tr", has_text="odd")
    expect(row).to_contain_text("completed")


def test_a_whole_run_of_nan(page: Any, server: Server) -> None:
    from limner.runs import EventWriter, create_run

    run = create_run(server.runs, "only-nan", "pretrain", {})
    writer = EventWriter(run.events_path)
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=5)
    for step in range(1, 6):
        writer.write("metrics", step, loss=float("nan"), gradient_norm=float("inf"), tokens_per_second=float("nan"))
        writer.write("validation", step, eval_loss=float("-inf"))
    writer.write("complete", 5, reason="completed", metrics={"eval_loss": float("nan")}, interrupted=False)
    page.goto(f"{server.url}/runs/only-nan")
    legend = page.locator("[data-chart=loss] .legend b")
    expect(legend.nth(0)).to_have_text("NaN")
    expect(legend.nth(1)).to_have_text("−∞")
    expect(page.locator("[data-chart=gradient] .legend b").first).to_have_text("∞")
