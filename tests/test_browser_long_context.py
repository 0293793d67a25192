"""Does the page Long context zoom as a person would, down to single cells? A real browser, the default model, the example and a short prompt."""

import re

import pytest
from browsing import IN_A_BROWSER, WIDTHS, fits, settled

pytestmark = IN_A_BROWSER
MAP = ".block-map canvas"
LEVEL = ".block-map .level"
SHORT = "long_context?length=512"
LEFT, TOP, RIGHT, BOTTOM = 72, 24, 8, 68
"""The room around the plot, which `block_map.js` leaves for what is written there."""


def level(page):
    return page.locator(LEVEL).inner_text()


def spot(page, row, key):
    """Where a share (0–1) of the rows and keys in view is on the screen."""
    box = page.locator(MAP).bounding_box()
    width, height = box["width"] - LEFT - RIGHT, box["height"] - TOP - BOTTOM
    return box["x"] + LEFT + key * width, box["y"] + TOP + row * height


def drag(page, begin, end):
    page.mouse.move(*spot(page, *begin))
    page.mouse.down()
    page.mouse.move(*spot(page, *end), steps=4)
    page.mouse.up()


def zoom(page):
    """Rows and keys as the address has them."""
    found = re.search(r"zoom=(\d+)%3A(\d+)%2C(\d+)%3A(\d+)", page.url)
    assert found, page.url
    return tuple(map(int, found.groups()))


@pytest.fixture(scope="module")
def short(chromium, server):
    """The map of a short prompt, computed once by clicking."""
    page = chromium.new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{server}/{SHORT}")
    page.locator(f"{MAP}, button:has-text('Compute the map')").first.wait_for()
    if page.get_by_role("button", name="Compute the map").is_visible():
        page.get_by_role("button", name="Compute the map").click()
        page.get_by_role("button", name="Cancel").wait_for()
    page.locator(MAP).wait_for()
    page.close()
    return f"{server}/{SHORT}"


def test_the_example_opens_at_once_and_says_that_it_is_pooled(page, server, pictures):
    page.goto(f"{server}/long_context")
    page.locator(MAP).wait_for()
    assert level(page) == "Pooled: each cell is the max of 16 × 16 cells."
    page.get_by_text("keys of the needle").wait_for()
    page.mouse.move(*spot(page, 0.9, 0.1))
    tip = page.locator(".block-map .tip").inner_text()
    assert re.fullmatch(r"max [\d.e-]+\nrow 7\d\d\d–7\d\d\d “.*…”\nkey 8\d\d–8\d\d “.*…”", tip), tip
    page.screenshot(path=pictures / "long_context.png")
    drag(page, (0.9, 0.4), (1, 0.6))
    page.get_by_text("The example that comes with the workbench has no smaller cells").wait_for()
    settled(page)
    assert level(page) == "Pooled: each cell is the max of 16 × 16 cells."
    page.get_by_role("button", name="Compute the map").wait_for()


def test_it_zooms_into_exact_cells_that_the_address_keeps(page, short, pictures):
    page.goto(short)
    page.locator(MAP).wait_for()
    settled(page)
    drag(page, (0.5, 0.25), (0.75, 0.5))
    page.wait_for_url(re.compile("zoom="))
    settled(page)
    top, bottom, left, right = zoom(page)
    assert level(page) == "Exact: each cell is one row and one key."
    assert (top, bottom) == (pytest.approx(254, abs=4), pytest.approx(381, abs=4))
    assert (left, right) == (pytest.approx(127, abs=4), pytest.approx(254, abs=4))
    page.mouse.move(*spot(page, 0.5, 0.5))
    tip = page.locator(".block-map .tip").inner_text()
    assert re.fullmatch(r"[\d.e-]+\nrow 31\d “.*”\nkey 1[89]\d “.*”", tip), tip

    page.get_by_role("button", name="Show the answer's rows and the needle's keys").click()
    page.wait_for_url(re.compile(r"zoom=4\d\d"))
    settled(page)
    page.get_by_text("1 sink (absolute)").wait_for()
    page.get_by_text("The strongest cells in view").scroll_into_view_if_needed()
    page.screenshot(path=pictures / "long_context_needle.png", full_page=True)
    there = zoom(page)
    page.goto("about:blank")
    page.goto(f"{short}&zoom={there[0]}:{there[1]},{there[2]}:{there[3]}")
    page.locator(MAP).wait_for()
    settled(page)
    assert level(page) == "Exact: each cell is one row and one key."
    page.get_by_role("button", name="Show the whole map").click()
    page.wait_for_url(re.compile(r"zoom=0"))


def test_it_is_used_by_keyboard_and_wheel(page, short):
    page.goto(short)
    canvas = page.locator(MAP)
    canvas.wait_for()
    settled(page)
    canvas.focus()
    page.keyboard.press("ArrowUp")
    said = page.locator(".block-map .said")
    first = re.match(r"row (\d+) “.*”, key (\d+) “.*”: [\d.e-]+", said.inner_text(), re.DOTALL)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    second = re.match(r"row (\d+) “.*”, key (\d+) “.*”: ", said.inner_text(), re.DOTALL)
    assert (int(second[1]), int(second[2])) == (int(first[1]) - 1, int(first[2]) + 1)
    page.keyboard.press("+")
    page.wait_for_url(re.compile("zoom="))
    settled(page)
    top, bottom, left, right = zoom(page)
    assert bottom - top == pytest.approx(254, abs=2)
    assert right - left == pytest.approx(254, abs=2)
    canvas.focus()
    page.keyboard.press("Shift+ArrowDown")
    page.wait_for_timeout(1000)
    settled(page)
    assert zoom(page)[0] == pytest.approx(top + 127, abs=3)
    page.mouse.move(*spot(page, 0.5, 0.5))
    page.mouse.wheel(0, -100)
    page.wait_for_timeout(1000)
    settled(page)
    assert zoom(page)[1] - zoom(page)[0] < 200
    canvas.focus()
    page.keyboard.press("0")
    page.wait_for_url(re.compile(r"zoom=0"))


def test_a_wheel_over_a_map_that_has_not_the_focus_scrolls_the_page(page, server):
    page.goto(f"{server}/long_context")
    page.locator(MAP).wait_for()
    settled(page)
    page.set_viewport_size({"width": 1000, "height": 900})
    before = page.locator(MAP).bounding_box()["y"]
    page.mouse.move(*spot(page, 0.05, 0.05))
    page.mouse.wheel(0, 200)
    page.wait_for_timeout(800)
    assert "zoom=" not in page.url
    assert page.locator(MAP).bounding_box()["y"] < before - 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["whole", "needle", "cost"])
def test_it_fits_every_width(chromium, server, short, pictures, name, width, scheme):
    address, selector = {
        "whole": ("long_context", MAP),
        "needle": (f"{SHORT}&zoom=455:507,235:287", MAP),
        "cost": ("long_context?length=4096&head=L20H6", "button:has-text('Compute the map')"),
    }[name]
    fits(chromium, server, pictures, f"long_context_{name}", address, (selector,), width, scheme)
