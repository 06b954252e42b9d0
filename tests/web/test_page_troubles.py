"""Runs that failed, crashed, diverged or are gone: the page fits the window, says why, and hides nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from browser import Server, tab
from playwright.sync_api import expect

from limner.runs import EventWriter, create_run

LINES = 120
"""Lines in the log of the run that crashed, some of them wider than any window."""


@pytest.fixture(scope="module")
def troubled(server: Server) -> Iterator[Server]:
    """Runs that crashed, failed before the first step, diverged and gave a warning, and two that are well."""
    server.train("well", "--fake-steps", 60, "--fake-interval", 0.002, wait=True)
    server.train("longer", "--fake-steps", 90, "--fake-interval", 0.002, wait=True)
    server.train("broken", "--fake-steps", 60, "--fake-interval", 0.002, "--fake-crash-at", 45, wait=True)
    lines = [f"line {number} {'wide ' * 80 * (number % 7 == 0)}" for number in range(1, LINES + 1)]
    (server.runs / "broken" / "log.txt").write_text("\n".join(lines) + "\n")

    writer = EventWriter(create_run(server.runs, "refused", "pretrain", {}).events_path)
    writer.write("progress", 0, phase="starting", done=0, total=1, unit="")
    names = ", ".join(f"corpus-{number}" for number in range(20))
    writer.write("error", 0, message=f"There is no corpus 'nope'; choose one of {names}.", traceback="")

    writer = EventWriter(create_run(server.runs, "diverged", "pretrain", {}).events_path)
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=40)
    for step in range(1, 41):
        writer.write("metrics", step, loss=5.0 if step < 20 else float("nan"), tokens=16 * step, epoch=step / 100)
    writer.write("complete", 40, reason="completed", metrics={}, interrupted=False)

    writer = EventWriter(create_run(server.runs, "warned", "pretrain", {}).events_path)
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=5)
    writer.write("metrics", 1, loss=1.0)
    writer.write("warning", 1, kind="nonfinite", message="Step 2 gave a loss of nan; it was not applied.")
    writer.write("complete", 5, reason="completed", metrics={}, interrupted=False)
    yield server


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("run", ["broken", "refused"])
def test_a_broken_run_fits_the_window(chromium: Any, troubled: Server, run: str, width: int) -> None:
    with tab(chromium, troubled) as page:
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{troubled.url}/runs/{run}")
        expect(page.get_by_role("alert")).to_be_visible()
        if run == "broken":
            expect(page.locator(".tail")).to_contain_text(f"line {LINES}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for button in page.locator(".actions button").all():
            box = button.bounding_box()
            assert box["x"] + box["width"] <= width


def test_the_log_s_last_lines_are_the_last(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/broken")
    expect(page.locator(".tail")).to_contain_text(f"line {LINES}")
    page.wait_for_function(
        "() => { const {scrollTop, scrollHeight, clientHeight} = document.querySelector('.tail');"
        " return scrollTop > 0 && scrollTop + clientHeight >= scrollHeight - 2; }",
        timeout=5_000,
    )


def test_the_log_is_followed_as_it_stands(page: Any, troubled: Server) -> None:
    log = troubled.runs / "longer" / "log.txt"
    log.write_bytes(b"begin\n 10 %\r 20 %\npart one")
    page.goto(f"{troubled.url}/runs/longer/log")
    shown = "text => document.querySelector('pre.output')?.textContent === text"
    page.wait_for_function(shown, arg="begin\n 20 %\npart one")
    with open(log, "ab") as more:
        more.write(b" part two\n1 of 2\r2 of 2")
    page.wait_for_function(shown, arg="begin\n 20 %\npart one part two\n2 of 2")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with open(log, "ab") as more:
        more.write(b"\ncaf\xc3")  # half a letter
    page.wait_for_function(shown, arg="begin\n 20 %\npart one part two\n2 of 2\ncaf")
    asked.clear()
    page.wait_for_timeout(2_000)
    assert len([url for url in asked if "/log?" in url]) <= 3, "once a second"
    with open(log, "ab") as more:
        more.write(b"\xa9")
    page.wait_for_function(shown, arg="begin\n 20 %\npart one part two\n2 of 2\ncaf\xe9")


def test_a_failed_run_is_over(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/refused")
    expect(page.get_by_text("It ended before its first step.")).to_be_visible(timeout=5_000)
    expect(page.get_by_text("0 of 1")).to_have_count(0)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("corpus-19. There is no checkpoint")
    again = page.get_by_role("button", name="Try again")
    expect(again).to_have_attribute("data-variant", "default")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)


def focused(page: Any) -> str:
    """The name of what has the focus."""
    return page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.innerText.trim()")


def test_steering_keeps_the_focus(page: Any, troubled: Server) -> None:
    troubled.train("held", "--fake-steps", 100_000, "--fake-interval", 0.05)
    page.goto(f"{troubled.url}/runs/held")
    pill = page.locator(".run-header .pill")
    for name, status in (("Pause", "paused"), ("Resume", "running"), ("Stop and save", "stopped")):
        page.get_by_role("button", name=name, exact=True).focus()
        page.keyboard.press("Enter")
        expect(pill).to_have_text(status)
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()
        assert focused(page) == name
    page.get_by_role("button", name="Resume", exact=True).focus()
    page.keyboard.press("Enter")
    expect(pill).to_have_text("running")
    page.get_by_role("button", name="Kill", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Kill").focus()
    page.keyboard.press("Enter")
    expect(pill).to_have_text("crashed")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert focused(page) == "Kill"


def test_t_turns_a_chart_into_a_table_and_back(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/well")
    page.locator("[data-chart=loss] [role=slider]").focus()
    page.keyboard.press("t")
    expect(page.locator("[data-chart=loss] .chart-table")).to_be_focused(timeout=5_000)
    page.keyboard.press("t")
    expect(page.locator("[data-chart=loss] [role=slider]")).to_be_focused(timeout=5_000)


def test_a_deleted_row_hands_the_focus_to_its_neighbour(page: Any, troubled: Server) -> None:
    for name in ("spare-1", "spare-2"):
        troubled.train(name, "--fake-steps", 4, "--fake-interval", 0.001, wait=True)
    page.goto(f"{troubled.url}/?q=spare")
    rows = page.locator("a.name")
    expect(rows).to_have_count(2)
    doomed, kept = rows.all_inner_texts()
    for answer in ("Keep it", re.compile("^Delete")):
        page.get_by_role("button", name=f"More for {doomed}").focus()
        page.keyboard.press("Enter")
        page.get_by_role("menuitem", name="Delete").press("Enter")
        page.get_by_role("dialog").get_by_role("button", name=answer).press("Enter")
        expect(page.get_by_role("dialog")).to_have_count(0)
        if answer == "Keep it":
            expect(page.get_by_role("button", name=f"More for {doomed}")).to_be_focused(timeout=5_000)
    expect(rows).to_have_count(1)
    assert focused(page) == kept


def test_the_list_fits_a_telephone(chromium: Any, troubled: Server) -> None:
    with tab(chromium, troubled) as page:
        page.set_viewport_size({"width": 375, "height": 812})
        page.goto(f"{troubled.url}/?q=pretrain")
        row = page.locator("tr", has_text="refused")
        more = page.get_by_role("button", name="More for refused")
        card = page.locator(".runs-card").bounding_box()
        box = more.bounding_box()
        assert box["x"] + box["width"] <= card["x"] + card["width"] <= 375
        assert page.evaluate("document.querySelector('.runs-card').scrollWidth <= 375")
        assert row.locator(".detail").evaluate("element => element.scrollWidth <= element.clientWidth")
        expect(page.locator("tr", has_text="well").get_by_text(re.compile(r"^loss \d"))).to_be_visible(
            timeout=5_000
        )
        expect(page.locator("tr", has_text="diverged").get_by_text("loss NaN")).to_be_visible()
        more.click()
        expect(page.get_by_role("menuitem", name="Tags and note")).to_be_visible()


def test_a_deleted_run_is_left_out_of_a_comparison(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/?choose=well,gone")
    expect(page.get_by_label("Choose well for comparing")).to_be_checked()
    expect(page.get_by_role("button", name="Compare")).to_be_disabled(timeout=5_000)
    page.goto(f"{troubled.url}/compare?runs=well,gone,longer")
    expect(page.locator(".compared li")).to_contain_text(["well", "longer", "gone is not shown"], timeout=5_000)
    expect(page.locator("[data-chart=loss-delta]")).to_be_visible()
    page.get_by_role("button", name="Leave out gone").click()
    expect(page.locator(".compared li")).to_have_count(2)
    assert "gone" not in page.url

    page.get_by_role("button", name="Make longer the baseline").click()
    expect(page.locator("[data-chart=loss-delta] h3")).to_contain_text("difference from longer")


def test_more_runs_than_colours_are_told(page: Any, troubled: Server) -> None:
    names = ["well", "longer", "diverged", "broken", "refused", "gone-1", "gone-2", "gone-3", "gone-4"]
    page.goto(f"{troubled.url}/compare?runs={','.join(names)}")
    expect(page.get_by_text("8 of 9 runs are shown")).to_contain_text("gone-4", timeout=5_000)


def test_a_server_that_goes_takes_no_curves_along(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/compare?runs=well,longer")
    expect(page.locator("[data-chart=loss]")).to_be_visible()
    page.route("**/api/runs/**", lambda route: route.abort())
    page.wait_for_timeout(1_100)  # what came is no longer fresh
    page.evaluate("dispatchEvent(new Event('visibilitychange'))")  # looked at again: everything is asked anew
    expect(page.locator(".compared .missing").first).to_contain_text("may be out of date", timeout=20_000)
    expect(page.locator("[data-chart=loss]")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_comparison_fits_a_telephone(chromium: Any, troubled: Server) -> None:
    with tab(chromium, troubled) as page:
        page.set_viewport_size({"width": 375, "height": 812})
        page.goto(f"{troubled.url}/compare?runs=well,diverged,gone,longer")
        expect(page.locator("[data-chart=loss-delta] .legend b").first).to_have_text(re.compile("NaN"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        card = page.locator("[data-chart=loss-delta]").bounding_box()
        tool = page.get_by_role("button", name="from well as a file").bounding_box()
        assert tool["x"] + tool["width"] <= card["x"] + card["width"]


def test_a_difference_from_a_diverged_run_is_no_number(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/compare?runs=well,diverged")
    values = page.locator("[data-chart=loss-delta] .legend b")
    expect(values).to_have_text("NaN at 40", timeout=5_000)
    page.goto(f"{troubled.url}/compare?runs=longer,well")
    expect(page.locator("[data-chart=loss] .legend")).to_contain_text(
        re.compile(r"well · training\s+\d\.\d+ at 60")
    )


def test_a_run_that_learns_by_reward_has_no_training_loss_in_nats(page: Any, troubled: Server) -> None:
    for name, settings in (("likely", {}), ("rewarded", {"objective": "cider"})):
        writer = EventWriter(create_run(troubled.runs, name, "train", settings).events_path)
        writer.write("start", 0, kind="caption", unit="captions", total_steps=4)
        for step in range(1, 5):
            writer.write("metrics", step, loss=0.5 - step)
            writer.write("validation", step, eval_loss=2.0 + step / 8)
        writer.write("complete", 4, reason="completed", metrics={}, interrupted=False)
    page.goto(f"{troubled.url}/runs/rewarded?smooth=0")
    expect(page.locator("[data-chart=objective] .legend b")).to_have_text("−3.5")
    expect(page.locator("[data-chart=loss] .legend span:not(.status)")).to_have_text([re.compile("^validation")])
    expect(page.locator("[data-chart=perplexity] .legend span:not(.status)")).to_have_count(1)
    page.goto(f"{troubled.url}/compare?runs=likely,rewarded&smooth=0")
    expect(page.locator("[data-chart=loss] .legend span:not(.status)")).to_have_text(
        [re.compile("^likely · training"), re.compile("^likely · validation"), re.compile("^rewarded · validation")]
    )
    expect(page.locator("[data-chart=objective] .legend span:not(.status)")).to_have_text([re.compile("^rewarded")])
    expect(page.locator("[data-chart=loss-delta] .legend b")).to_have_text("0")


def test_one_smoothing_for_all_views(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/well")
    expect(page.locator("[data-chart=loss] header")).to_contain_text("smoothed", timeout=5_000)
    value = page.locator("[data-chart=loss] .legend b").first
    page.get_by_role("slider", name="Smoothing").focus()
    page.keyboard.press("End")
    expect(page).to_have_url(re.compile("smooth=0.99"))
    page.wait_for_timeout(500)
    shown = value.inner_text()
    page.goto(f"{troubled.url}/compare?runs=well")
    expect(page.get_by_role("slider", name="Smoothing")).to_have_attribute("aria-valuenow", "0.99")
    expect(value).to_have_text(shown)
    page.get_by_role("slider", name="Smoothing").focus()
    page.keyboard.press("Home")
    expect(page.locator("[data-chart=loss] header")).not_to_contain_text("smoothed")


def test_a_run_that_is_not_there_yet_may_come(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/late")
    expect(page.get_by_role("heading", name="There is no run late")).to_be_visible()
    troubled.train("late", "--fake-steps", 10, "--fake-interval", 0.002, wait=True)
    expect(page.locator("[data-chart=loss]")).to_be_visible(timeout=10_000)


def test_a_run_with_a_plus_in_its_name_opens(page: Any, troubled: Server) -> None:
    troubled.train("lr+2", "--fake-steps", 30, "--fake-interval", 0.002, wait=True)
    page.goto(f"{troubled.url}/?q=lr%2B2&choose=well,lr%2B2")
    page.get_by_role("link", name="lr+2").click()
    expect(page.get_by_role("heading", name="lr+2")).to_be_visible(timeout=10_000)
    page.get_by_role("link", name="Samples", exact=True).click()
    expect(page.locator("th.chosen")).to_have_text("20")
    page.goto(f"{troubled.url}/?choose=well,lr%2B2")
    page.get_by_role("button", name="Compare 2").click()
    page.locator(".compared").get_by_role("link", name="lr+2").click()
    expect(page.get_by_role("heading", name="lr+2")).to_be_visible(timeout=10_000)


@pytest.mark.parametrize("away", [0.0, 5.0], ids=["at once", "after a while"])
def test_a_run_begun_again_under_its_name_is_a_new_run(page: Any, troubled: Server, away: float) -> None:
    name = f"redone-{away:g}"
    troubled.train(name, "--fake-steps", 30, "--fake-interval", 0.002, wait=True)
    page.goto(f"{troubled.url}/runs/{name}")
    expect(page.locator(".run-header")).to_contain_text("30 of 30")
    expect(page.locator("[data-chart=loss] .legend b").first).to_have_text(re.compile(r"\d"))
    shutil.rmtree(troubled.runs / name)
    if away:
        expect(page.get_by_text("this run is gone")).to_be_visible()
        page.wait_for_timeout(away * 1000)
    troubled.train(name, "--fake-steps", 50, "--fake-interval", 0.002, wait=True)
    expect(page.locator(".run-header")).to_contain_text("50 of 50", timeout=20_000)
    expect(page.get_by_text("this run is gone")).to_have_count(0)
    page.get_by_role("button", name="Loss as a table").click()
    rows = page.locator("[data-chart=loss] tbody tr")
    expect(rows).to_have_count(50)  # one run's, each step once


def test_a_checkpoint_that_was_asked_for_is_told(page: Any, troubled: Server) -> None:
    troubled.train("at-it", "--fake-steps", 100_000, "--fake-interval", 0.05)
    page.goto(f"{troubled.url}/runs/at-it")
    page.get_by_role("button", name="Checkpoint", exact=True).click()
    told = re.compile(r"Checkpoint of step \d+ saved\.|Step \d+: saved already\.")  # every 20th is saved unasked
    expect(page.locator(".toast", has_text="saved")).to_have_text(told)
    troubled.ask("POST", "/api/runs/at-it/kill")


def test_a_warning_names_its_step_once(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/warned")
    expect(page.locator(".notice")).to_have_text("A warning: Step 2 gave a loss of nan; it was not applied.")


@pytest.mark.parametrize("run", ["well", "warned"])
def test_nothing_shifts_while_a_run_is_read(page: Any, troubled: Server, run: str) -> None:
    page.add_init_script(
        "window.shifted = 0; new PerformanceObserver(list => {"
        " for (const entry of list.getEntries()) window.shifted += entry.value;"
        "}).observe({type: 'layout-shift', buffered: true})"
    )
    page.goto(f"{troubled.url}/runs/{run}")
    expect(page.locator("[data-chart=loss] .legend b").first).to_have_text(re.compile(r"\d"))
    page.wait_for_timeout(1_000)
    assert page.evaluate("window.shifted") < 0.02


def test_a_server_that_is_gone_is_told_soon(page: Any, troubled: Server) -> None:
    page.goto(troubled.url)
    expect(page.get_by_role("link", name="well")).to_be_visible()
    page.route("**/api/**", lambda route: route.abort())
    expect(page.get_by_text("no server")).to_be_visible(timeout=10_000)
    expect(page.get_by_role("link", name="well")).to_be_visible()
    page.unroute("**/api/**")
    expect(page.get_by_text("no server")).to_have_count(0, timeout=10_000)


def test_a_chart_is_saved_as_points_and_as_a_picture(page: Any, troubled: Server) -> None:
    page.goto(f"{troubled.url}/runs/diverged")
    expect(page.locator("[data-chart=loss] .legend b").first).to_have_text("NaN")

    def saved(item: str) -> Any:
        page.get_by_role("button", name="Loss as a file").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=item).click()
        return download.value

    points = saved("Points (CSV)")
    assert points.suggested_filename == "diverged-loss.csv"
    rows = points.path().read_text().splitlines()
    assert rows[:2] == ["step,training,training (smoothed)", "1,5,5"]
    assert [row.split(",")[1] for row in rows[1:]] == ["5"] * 19 + ["NaN"] * 21
    picture = saved("Picture (PNG)")
    assert picture.suggested_filename == "diverged-loss.png"
    assert picture.path().read_bytes().startswith(b"\x89PNG")


def test_a_data_set_listed_twice_breaks_no_form(page: Any, troubled: Server) -> None:
    entry = {"name": "scenes", "description": "", "bytes": None, "available": True}
    page.route("**/api/datasets", lambda route: route.fulfill(json={"datasets": [entry, entry]}))
    page.goto(f"{troubled.url}/new?verb=train")
    page.get_by_role("combobox", name="Dataset", exact=True).click()
    expect(page.get_by_role("option", name="scenes")).to_have_count(1)


def test_a_view_that_breaks_says_so(chromium: Any, troubled: Server) -> None:
    broken = tab(chromium, troubled)
    with broken as page:
        page.route("**/api/schemas", lambda route: route.fulfill(json={"pretrain": {"properties": {"lr": None}}}))
        page.goto(f"{troubled.url}/new?verb=pretrain")
        expect(page.get_by_role("alert")).to_contain_text("This view broke.")
        page.unroute("**/api/schemas")
        page.get_by_role("button", name="Reload").click()
        expect(page.get_by_role("heading", name="New run")).to_be_visible()
        broken.problems.clear()  # the browser has told of it as well


@pytest.fixture(scope="module")
def long(troubled: Server) -> Server:
    """A run of so many steps that a chart of it has buckets, with a spike that begins none."""
    writer = EventWriter(create_run(troubled.runs, "long", "pretrain", {}).events_path)
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=5_000)
    for step in range(1, 5_001):
        writer.write("metrics", step, loss=99.5 if step == 1_234 else step / 1000)
    writer.write("complete", 5_000, reason="completed", metrics={}, interrupted=False)
    return troubled


def saved_rows(page: Any) -> list[list[str]]:
    page.get_by_role("button", name="Loss as a file").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Points (CSV)").click()
    return [row.split(",") for row in download.value.path().read_text().splitlines()]


def test_the_points_of_a_long_run_are_what_was_measured(page: Any, long: Server) -> None:
    expected = {str(step): 99.5 if step == 1_234 else step / 1000 for step in range(1, 5_001)}
    for view in ("runs/long", "compare?runs=long"):
        page.goto(f"{long.url}/{view}")
        expect(page.locator("[data-chart=loss] .status")).to_contain_text("of 5,000 points, extremes kept")
        rows = saved_rows(page)
        assert {step: float(loss) for step, loss, _ in rows[1:]} == expected
        page.get_by_role("button", name="Loss as a table").click()
        cells = page.locator("[data-chart=loss] tbody").inner_text().splitlines()
        told = [line.split("\t") for line in cells]
        assert len(told) > 100
        for step, loss in told:
            assert float(loss) == expected[step.replace(",", "")]


def test_a_zoomed_comparison_asks_for_more_points(page: Any, long: Server) -> None:
    page.goto(f"{long.url}/compare?runs=long,well")
    status = page.locator("[data-chart=loss] .status")
    expect(status).to_contain_text("of 5,000 points")
    page.locator("[data-chart=loss] [role=slider]").focus()
    for _ in range(4):
        page.keyboard.press("+")
    expect(status).to_have_text("")  # every point of a sixteenth of it
    late: list[Any] = []
    page.route("**/runs/long/series?*x=step*", lambda route: late.append(route))
    page.keyboard.press("+")
    while not late:
        page.wait_for_timeout(100)
    page.wait_for_timeout(500)
    expect(status).to_have_text("", timeout=100)  # the curve of before, not the coarse one, until the next is there
    for route in late:
        route.continue_()
    page.keyboard.press("0")
    expect(status).to_contain_text("of 5,000 points")


def test_a_comparison_follows_a_run_that_had_not_begun(page: Any, troubled: Server) -> None:
    writer = EventWriter(create_run(troubled.runs, "waiting", "pretrain", {}).events_path)
    page.goto(f"{troubled.url}/compare?runs=well,waiting")
    pill = page.locator(".compared li", has_text="waiting").locator(".pill")
    expect(pill).to_have_text("queued")
    writer.write("start", 0, kind="pretrain", unit="tokens", total_steps=1)
    writer.write("metrics", 1, loss=1.0)
    writer.write("complete", 1, reason="completed", metrics={}, interrupted=False)
    expect(pill).to_have_text("completed", timeout=15_000)
