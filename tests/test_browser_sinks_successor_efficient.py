"""Do the pages on sinks, successor heads and efficient attention work as a person uses them? A real browser, the default model and the bundled labels."""

import json
import re
import zipfile

import pytest
from browsing import IN_A_BROWSER, WIDTHS, choose, fits, settled

from workbench.labels import HeadLabels

pytestmark = IN_A_BROWSER
MAP, CHART, TOKEN, TABLE = "canvas.cells", ".js-plotly-plot", ".token-map .token", "[data-testid=stDataFrame]"
PAGES = {
    "sinks": ("sinks", (MAP, CHART, TABLE)),
    "calibration": ("sinks?part=Calibration+on+and+off", (CHART, TOKEN)),
    "calibrated_heads": ("sinks?part=Calibrated+heads", (MAP, CHART)),
    "successor": ("successor", (MAP, CHART)),
    "successor_modulo": ("successor?part=Numbers+modulo+ten", (CHART,)),
    "efficient": ("efficient?by=budget", (CHART,)),
    "efficient_quality": ("efficient?by=budget&part=Quality", (CHART,)),
    "efficient_speed": ("efficient?part=Speed", (CHART,)),
}
"""The address of a page, and what it shows when it is ready."""


def cell(page, layer, head, number=0):
    """The middle of a cell of a layer × head map of the default model."""
    box = page.locator(MAP).nth(number).bounding_box()
    return box["x"] + (head + 0.5) * box["width"] / 9, box["y"] + (layer + 0.5) * box["height"] / 30


def click(page, layer, head, number=0):
    """Click a cell, which may lie below the window."""
    page.locator(MAP).nth(number).scroll_into_view_if_needed()
    page.mouse.click(*cell(page, layer, head, number))


def bars(page, trace):
    """The probabilities of the page's first chart by token, of one of its traces."""
    script = f"""() => {{ const plot = document.querySelectorAll('{CHART}')[0];
        return [plot._fullLayout.yaxis.ticktext, Array.from(plot._fullData[{trace}].x)] }}"""
    return dict(zip(*page.evaluate(script), strict=True))


def view(page, name):
    """Choose a view of a page."""
    page.get_by_role("radio", name=name, exact=True).or_(page.get_by_role("button", name=name, exact=True)).first.click()
    settled(page)


def test_sinks_are_found_calibrated_and_looked_at(page, server):
    page.goto(f"{server}/sinks")
    page.get_by_text("101 of 270 heads have a sink by this rule").wait_for()
    page.get_by_role("textbox", name="Text").fill("One two three.\nOne two three.")
    page.keyboard.press("Control+Enter")
    page.get_by_text(re.compile(r"\d+ of 270 heads have a sink by this rule, on \d+ of 9 tokens")).wait_for()
    assert "text=One" in page.url

    view(page, "Calibration on and off")
    page.locator(TOKEN).first.wait_for()
    settled(page)
    assert page.locator("[data-testid=stCode]").nth(0).inner_text().strip().startswith("city.")
    assert page.locator("[data-testid=stCode]").nth(1).inner_text().strip().startswith("country.")
    plain, calibrated = bars(page, 0), bars(page, 1)
    assert calibrated["' country'"] > 1.5 * plain["' country'"]
    assert plain["' city'"] > 1.5 * calibrated["' city'"]

    click(page, 16, 4)
    page.get_by_text("L16H4 calibrated").wait_for()
    settled(page)
    assert "look=L16H4" in page.url
    page.locator(TOKEN).nth(5).click()
    page.get_by_text(re.compile(r"\(5\) looks at:")).nth(1).wait_for()  # pinned in both texts
    settled(page)
    assert "row=5" in page.url
    address = page.url
    page.goto("about:blank")
    page.goto(address)  # the address alone brings all of it back
    page.get_by_text("L16H4 calibrated").wait_for()
    page.get_by_text(re.compile(r"\(5\) looks at:")).nth(1).wait_for()


def test_calibrated_heads_lead_to_one_head(page, server):
    page.goto(f"{server}/sinks?part=Calibrated+heads")
    page.get_by_text("23 of 270 heads are kept").wait_for()
    page.get_by_text("shows no effect that they could tell").wait_for()
    settled(page)
    page.mouse.move(*cell(page, 10, 5))
    assert "5 answers turned right, 0 wrong, of 300" in page.locator(".head-map .tip").inner_text()
    click(page, 10, 5)
    page.get_by_role("heading", name="One head").wait_for()
    assert "head=L10H5" in page.url


def test_a_file_that_is_no_calibration_is_a_sentence(page, server, tmp_path):
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    page.goto(f"{server}/sinks?part=Calibrated+heads")
    page.get_by_role("button", name="Calibration files").click()
    page.locator("input[type=file]").last.set_input_files(tmp_path / "wrong.csv")
    page.get_by_text(re.compile("wrong.csv is no table of a calibration", re.IGNORECASE)).wait_for()
    page.get_by_text("23 of 270 heads are kept").wait_for()


def test_a_head_is_chosen_on_the_map_and_read_class_by_class(page, server):
    page.goto(f"{server}/successor")
    page.get_by_text("No head of smollm2-135m is a successor head").wait_for()
    page.get_by_text("L23H3 scores 0.149, rank 1 of 270.").wait_for()
    page.locator(CHART).wait_for()
    settled(page)
    click(page, 27, 4)
    page.get_by_text("L27H4 scores 0.135, rank 2 of 270.").wait_for()
    settled(page)
    assert "head=L27H4" in page.url
    choose(page, "Class of words", "days")
    assert "class=days" in page.url
    axis = page.evaluate(f"() => document.querySelector('{CHART}')._fullLayout.yaxis._categories.map((one) => one.trim().toLowerCase())")
    days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
    assert list(dict.fromkeys(axis)) == days
    view(page, "Class by class")
    page.locator(TABLE).wait_for()
    assert "part=Class" in page.url


def test_a_policy_is_chosen_counted_and_goes_out_and_in_again(page, server, tmp_path):
    page.goto(f"{server}/efficient?by=budget&budget=0.5&sinks=16&window=128&tokens=131072")
    page.get_by_text("45 of 90 KV heads stay full").wait_for()
    # half of 90 heads keep 131,072 tokens of 64 numbers, the others 144: keys and values, 16 bits
    policy, full = (2 * 2 * 64 * kept / 2**20 for kept in (45 * 131072 + 45 * 144, 90 * 131072))
    page.get_by_text(re.compile(f"{policy / 1024:.2f} GiB instead of {full / 1024:.2f} GiB")).wait_for()
    view(page, "Quality")
    page.get_by_text("Measured nearest to this policy, 45 heads full by razor_echo+razor_induction: 117% of the needle recall").wait_for()
    view(page, "Speed")
    page.get_by_text("Measured on NVIDIA H100 80GB HBM3, not on this machine").wait_for()
    view(page, "Export")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download workbench").click()
    saved = tmp_path / "policy.json"
    waiting.value.save_as(saved)
    ready = HeadLabels.load(saved)
    assert len(ready.heads("full")) == 3 * 45
    assert sum(len(heads) for heads in ready.policy["full"]) == 45

    choose(page, "Format", "duo")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download duo").click()
    waiting.value.save_as(tmp_path / "duo.zip")
    with zipfile.ZipFile(tmp_path / "duo.zip") as archive:
        config = json.loads(archive.read("config.json"))
    assert (config["sink_size"], config["recent_size"]) == (16, 128)

    page.get_by_role("button", name="smollm2-135m: heads.json").click()
    page.locator("input[type=file]").first.set_input_files(saved)
    page.get_by_role("button", name="smollm2-135m: policy.json").wait_for()
    page.keyboard.press("Escape")
    settled(page)
    choose(page, "Full heads are chosen by", "file")
    page.get_by_text("45 of 90 KV heads stay full").wait_for()
    page.get_by_text("the others see 16 first and 128 last tokens").wait_for()


def test_sliders_and_numbers_are_in_the_address(page, server):
    page.goto(f"{server}/efficient?by=budget")
    page.get_by_text("29 of 90 KV heads stay full").wait_for()
    settled(page)
    page.get_by_role("slider").first.focus()
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    page.get_by_text("36 of 90 KV heads stay full").wait_for()
    settled(page)
    assert "budget=0.4" in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_it_fits_every_width(chromium, server, pictures, name, width, scheme):
    fits(chromium, server, pictures, name, *PAGES[name], width, scheme)
