"""Does a needle test survive a reload of the page, can another be cancelled, and are both found on the page of runs? A real browser and the default model."""

import re

import pytest
from browsing import IN_A_BROWSER, WIDTHS, fits, settled

pytestmark = IN_A_BROWSER
SMALL = "needle_test?ablate=10&lengths=120&depths=0.2,0.8&needles=1&draws=1"
PAGES = {
    "needle_report": ("needle_test", (".js-plotly-plot", "button:has-text('Start')")),
    "needle_done": (SMALL, (".js-plotly-plot",)),
    "runs_with_jobs": ("runs", ("[data-testid=stDataFrame]", "button:visible:has-text('Remove')")),
}
"""The address of a page, and what it shows when it is ready, after the tests before."""


def begin(page, server, address):
    page.goto(f"{server}/{address}")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("button", name="Cancel").wait_for()


def test_a_test_is_reloaded_in_the_middle_and_finishes(page, server, pictures):
    begin(page, server, SMALL)
    page.get_by_text(re.compile(r"all heads: \d of 6")).wait_for()
    page.screenshot(path=pictures / "needle_running.png")
    page.reload()
    page.get_by_text(re.compile(r": \d of 6; about")).wait_for()
    assert "job=" in page.url
    page.get_by_text(re.compile("Recall is .* without the 10 chosen ones")).wait_for(timeout=200_000)
    page.locator(".js-plotly-plot").nth(3).wait_for()
    assert page.locator(".js-plotly-plot").count() == 4
    recall = re.search(r"Recall is ([\d.]+) with all heads and ([\d.]+) without the 10 chosen ones", page.locator("body").inner_text())
    assert float(recall[2]) < float(recall[1])
    assert not page.get_by_role("button", name="Start").count()
    settled(page)
    page.goto(f"{server}/{SMALL}")  # the same question, asked by somebody else
    page.locator(".js-plotly-plot").nth(3).wait_for()


def test_another_is_cancelled_and_both_are_found_among_the_runs(page, server, pictures):
    begin(page, server, SMALL.replace("draws=1", "draws=9"))
    page.get_by_text(re.compile(r": \d+ of 22")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("This job was cancelled").wait_for()
    page.get_by_role("button", name="Start again").wait_for()
    page.get_by_role("link", name="Runs").click()
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    page.get_by_role("combobox", name="Job").click()
    assert page.get_by_role("option", name=re.compile("Needle test: smollm2-135m")).count() >= 2
    page.get_by_role("option", name=re.compile("Needle test: smollm2-135m")).nth(1).click()
    page.get_by_text("This job is finished.").wait_for()
    page.get_by_role("button", name="needle.csv").wait_for()
    page.screenshot(path=pictures / "runs_job.png")
    page.get_by_role("button", name="Open its page").click()
    page.get_by_role("heading", name="Needle test", exact=True).wait_for()
    page.get_by_text(re.compile("Recall is .* without the 10 chosen ones")).wait_for()
    assert re.search(r"needle_test\?.*lengths=120.*job=", page.url)
    assert page.get_by_label("Draws of as many other heads").input_value() == "1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_it_fits_every_width(chromium, server, pictures, name, width, scheme):
    fits(chromium, server, pictures, name, *PAGES[name], width, scheme)
