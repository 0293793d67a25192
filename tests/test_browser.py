"""Does the dashboard work as a person uses it? A real browser against a real server, the default model and the bundled labels."""

import json
import re

import pytest
from browsing import IN_A_BROWSER, PATIENCE, ROOT, WIDTHS, choose, fits, settled

from workbench.labels import HeadLabels

pytestmark = IN_A_BROWSER
BUNDLED = ROOT / "reports" / "smollm2-135m" / "heads.json"
PAGES = {
    "heads": ("", ("canvas.cells", ".js-plotly-plot")),
    "one_head": ("one_head?head=L18H6&ablate=true&row=22", (".token-map .token", ".js-plotly-plot")),
    "runs": ("runs", ("h1",)),
}
"""The address of a page, and what it shows when it is ready."""


def place_of(page, layer, head):
    box = page.locator("canvas.cells").bounding_box()
    return box["x"] + (head + 0.5) * box["width"] / 9, box["y"] + (layer + 0.5) * box["height"] / 30


def test_a_head_is_found_opened_and_switched_off(page, server, pictures):
    page.goto(server)
    page.locator("canvas.cells").wait_for()
    page.get_by_text("Retrieval score: the share of the needle's tokens that the head copies").wait_for()
    choose(page, "Probe", "induction")
    page.get_by_text("8 labelled induction", exact=True).wait_for()
    assert "probe=induction" in page.url
    page.mouse.move(*place_of(page, 18, 6))
    assert "L18H6" in page.locator(".head-map .tip").inner_text()
    assert "induction 0.902" in page.locator(".head-map .tip").inner_text()
    page.screenshot(path=pictures / "heads.png")

    page.mouse.click(*place_of(page, 18, 6))
    page.get_by_role("heading", name="One head").wait_for()
    assert "head=L18H6" in page.url
    page.get_by_text("L18H6 reads KV head 2 of layer 18 of smollm2-135m.").wait_for()
    page.locator(".token-map .token").last.click()
    page.get_by_text(re.compile(r"“ Bruno” \(22\) looks at: “ Qu” \(5\)")).wait_for()
    settled(page)
    assert "row=22" in page.url

    choose(page, "Switch off", "all 8 heads labelled induction")
    page.get_by_text("Switch off and predict again").click()
    page.locator(".js-plotly-plot").nth(1).wait_for()
    settled(page)
    whole, without = (probability(page, trace) for trace in (0, 1))
    assert without < whole / 4
    page.set_viewport_size({"width": 1000, "height": 2400})
    page.wait_for_timeout(1000)
    page.screenshot(path=pictures / "one_head.png")

    address = page.url
    page.goto("about:blank")
    page.goto(address)  # the address alone brings all of it back
    page.locator(".js-plotly-plot").nth(1).wait_for()
    page.get_by_text(re.compile(r"“ Bruno” \(22\) looks at")).wait_for()
    assert page.get_by_text("all 8 heads labelled induction").first.is_visible()


def probability(page, trace):
    """The likeliest next token's probability with all heads (trace 0) or without some (1), as the chart in the page has it."""
    return page.evaluate(f"() => Array.from(document.querySelectorAll('.js-plotly-plot')[0]._fullData[{trace}].x)[0]")


def test_two_users_do_not_disturb_each_other(chromium, server):
    pages = [chromium.new_page() for _ in range(2)]
    heads = ("L17H4", "L23H2")
    for page, head in zip(pages, heads, strict=True):
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server}/one_head?head={head}&ablate=true", wait_until="commit")
    for page, head in zip(pages, heads, strict=True):
        page.locator(".js-plotly-plot").nth(1).wait_for()
        page.locator(f".js-plotly-plot:has-text('without {head}')").first.wait_for()
    assert probability(pages[0], 0) == pytest.approx(probability(pages[1], 0), abs=1e-5)
    assert probability(pages[0], 1) != pytest.approx(probability(pages[1], 1), abs=1e-5)
    for page in pages:
        page.close()


def test_labels_go_out_and_come_in_again(page, server, tmp_path):
    page.goto(f"{server}/?view=Export")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download workbench").click()
    saved = tmp_path / "again.json"
    waiting.value.save_as(saved)
    assert waiting.value.suggested_filename == "smollm2-135m-workbench.json"
    assert HeadLabels.load(saved).to_json() == json.loads(BUNDLED.read_text(encoding="utf-8"))
    page.get_by_role("button", name="smollm2-135m: heads.json").click()
    page.locator("input[type=file]").set_input_files(saved)
    page.get_by_role("button", name="smollm2-135m: again.json").wait_for()
    settled(page)
    page.locator("canvas.cells").wait_for()


def test_an_upload_that_is_no_labels_file_is_a_sentence(page, server, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[]", encoding="utf-8")
    page.goto(server)
    page.get_by_role("button", name="smollm2-135m: heads.json").click()
    page.locator("input[type=file]").set_input_files(wrong)
    page.get_by_text("wrong.json: not head labels").wait_for()
    page.locator("canvas.cells").wait_for()


def test_the_map_is_used_by_keyboard(page, server):
    page.goto(f"{server}/?probe=induction")
    canvas = page.locator("canvas.cells")
    canvas.wait_for()
    settled(page)
    canvas.focus()
    page.keyboard.press("ArrowDown")  # begins at the first labelled head
    assert "L17H3: induction 0.767" in page.locator(".head-map .said").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert page.locator(".head-map .said").inner_text().startswith("L16H4")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="One head").wait_for()
    assert "head=L16H4" in page.url


def test_the_text_is_read_by_keyboard(page, server):
    page.goto(f"{server}/one_head?head=L17H4&text=abc%20abc")
    page.locator(".token-map .token").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("looks at:")).wait_for()
    settled(page)
    assert "row=" in page.url
    page.locator(".token-map .token.pinned").press("Escape")
    page.get_by_text(re.compile("Mean attention received")).wait_for()
    settled(page)
    assert "row=" not in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_it_fits_every_width(chromium, server, pictures, name, width, scheme):
    fits(chromium, server, pictures, name, *PAGES[name], width, scheme)
