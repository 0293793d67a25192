"""Does a person get the files: a picture from the camera, a page, a table, and the drawing of the map?"""

import pandas as pd
import pytest
from browsing import IN_A_BROWSER, settled

from workbench.labels import HeadLabels
from workbench.scores import agreement

pytestmark = IN_A_BROWSER


def saved(page, path, click):
    with page.expect_download() as waiting:
        click()
    waiting.value.save_as(path / waiting.value.suggested_filename)
    return path / waiting.value.suggested_filename


def control(page, number):
    """Open the control below the map (0) or the figure (1)."""
    page.get_by_role("button", name="Save", exact=False).nth(number).click()
    page.wait_for_timeout(400)


def test_the_map_comes_as_a_drawing_and_as_a_page(page, server, tmp_path):
    page.goto(f"{server}/?probe=induction")
    page.locator("canvas.cells").wait_for()
    settled(page)
    control(page, 0)
    drawing = saved(page, tmp_path, page.get_by_role("button", name="smollm2-135m-induction.svg").click).read_text(encoding="utf-8")
    assert drawing.startswith("<svg")
    assert drawing.count("<title>") == 8
    whole = saved(page, tmp_path, page.get_by_role("button", name="smollm2-135m-induction.html").click).read_text(encoding="utf-8")
    assert "smollm2-135m: induction" in whole


@pytest.mark.parametrize(("kind", "begins"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
def test_the_camera_saves_the_figure_as_it_is_seen(page, server, tmp_path, pictures, kind, begins):
    page.goto(f"{server}/?probe=induction")
    page.locator(".js-plotly-plot").wait_for()
    settled(page)
    control(page, 1)
    page.get_by_role("radio", name=kind, exact=True).click()
    settled(page)
    page.screenshot(path=pictures / f"save_{kind}.png")
    page.keyboard.press("Escape")
    page.locator(".js-plotly-plot").hover()
    file = saved(page, tmp_path, page.locator(".modebar-btn[data-title*='Download']").first.click)
    assert file.name == f"induction-distribution.{kind.lower()}"
    assert file.read_bytes().startswith(begins)


def test_a_table_comes_whole(page, server, tmp_path, smollm2):
    page.goto(f"{server}/?view=Agreement")
    page.locator(".js-plotly-plot").wait_for()
    settled(page)
    control(page, 1)
    found = pd.read_parquet(saved(page, tmp_path, page.get_by_role("button", name="agreement.parquet").click))
    from chosen import BUNDLED

    pd.testing.assert_frame_equal(found, agreement(dict(HeadLabels.load(BUNDLED).scores)))


@pytest.mark.parametrize("width", [360, 1000])
def test_the_control_fits(chromium, server, pictures, width):
    context = chromium.new_context(viewport={"width": width, "height": 1200}, color_scheme="dark")
    page = context.new_page()
    page.goto(f"{server}/?view=Agreement")
    page.locator(".js-plotly-plot").wait_for(timeout=60_000)
    settled(page)
    control(page, 1)
    box = page.get_by_role("button", name="agreement.parquet").bounding_box()
    page.screenshot(path=pictures / f"save_{width}.png")
    context.close()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
