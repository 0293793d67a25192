"""Does the page Circuits work as a person uses it? A real browser, the default model, its circuit and its memory and context heads."""

import json
import re

import pytest
from browsing import IN_A_BROWSER, ROOT, WIDTHS, fits, settled

from workbench.circuits.circuit import Circuit

pytestmark = IN_A_BROWSER
REPORTS = ROOT / "reports" / "smollm2-135m"
ALL = len(Circuit.load(REPORTS / "circuit_ioi.json").heads)
PATCHED = "circuits?panel=Patching&prompts=2&receiver=L23H3.q&positions=last"
CODED = "circuits?panel=Codes&prompts=5"
PRUNED = "circuits?panel=Memory%20or%20context&items=4"
BUTTONS = {PATCHED: "Patch", CODED: "Train and score", PRUNED: "Ask the model"}
PAGES = {
    "circuit": ("circuits", (".js-plotly-plot", "canvas.cells", "[data-testid=stDataFrame]")),
    "patching": (PATCHED, ("canvas.cells", "[data-testid=stDataFrame]")),
    "codes": (CODED, ("canvas.cells", ".js-plotly-plot")),
    "methods": ("circuits?panel=Methods", (".js-plotly-plot", "[data-testid=stDataFrame]")),
    "memory": (PRUNED, ("canvas.cells", ".js-plotly-plot", ".js-plotly-plot:has-text('pruned')")),
}
"""The address of a view, and what it shows when it is ready."""


@pytest.fixture(scope="module")
def computed(chromium, server):
    """Every view whose job is done, started by its button."""
    for address, button in BUTTONS.items():
        page = chromium.new_page()
        page.goto(f"{server}/{address}")
        page.get_by_text("Nothing is computed yet").wait_for()
        settled(page)
        page.get_by_role("button", name=button, exact=True).click()
        page.get_by_text("Nothing is computed yet").wait_for(state="hidden")
        page.get_by_role("button", name="Cancel").wait_for()
        page.get_by_role("button", name="Cancel").wait_for(state="hidden", timeout=180_000)
        settled(page)
        assert "job=" in page.url
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.usefixtures("computed")
def test_it_fits_every_width(chromium, server, pictures, name, width, scheme):
    fits(chromium, server, pictures, name, *PAGES[name], width, scheme)


def node(page, name):
    """Where a node of the graph is in the window."""
    return page.evaluate(
        """(name) => {
            const plot = document.querySelector('.js-plotly-plot'), trace = plot._fullData.find((one) => one.customdata);
            const number = Array.from(trace.customdata).indexOf(name), box = plot.querySelector('.nsewdrag').getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            return [box.x + xaxis.l2p(trace.x[number]), box.y + yaxis.l2p(trace.y[number])];
        }""",
        name,
    )


def test_a_head_of_the_graph_is_opened(page, server):
    page.goto(f"{server}/circuits")
    page.locator(".js-plotly-plot").nth(1).wait_for()
    page.get_by_text(f"{ALL} heads for ioi in smollm2-135m, found by patching").wait_for()
    settled(page)
    page.mouse.click(*node(page, "L23H3"))
    page.get_by_role("heading", name="One head").wait_for()
    assert "head=L23H3" in page.url
    page.get_by_text("L23H3 reads KV head 1 of layer 23 of smollm2-135m.").wait_for()


def test_a_circuit_goes_out_and_comes_in_again(page, server, tmp_path):
    page.goto(f"{server}/circuits")
    page.locator("canvas.cells").wait_for()
    settled(page)
    page.get_by_role("button", name="Save").last.click()
    for name in ("circuit-ioi.json", "circuit-ioi.graphml"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name, exact=True).click()
        waiting.value.save_as(tmp_path / name)
    data = json.loads((tmp_path / "circuit-ioi.json").read_text(encoding="utf-8"))
    assert data == json.loads((REPORTS / "circuit_ioi.json").read_text(encoding="utf-8"))
    assert b"graphml" in (tmp_path / "circuit-ioi.graphml").read_bytes()
    (tmp_path / "few.json").write_text(json.dumps(data | {"heads": data["heads"][:3]}), encoding="utf-8")
    (tmp_path / "bad.json").write_text("[]", encoding="utf-8")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Open a circuit").click()
    page.locator("input[type=file]").last.set_input_files(tmp_path / "few.json")
    page.get_by_text("3 heads for ioi").wait_for()
    page.locator("input[type=file]").last.set_input_files(tmp_path / "bad.json")
    page.get_by_text("bad.json is no circuit").wait_for()
    page.get_by_text(f"{ALL} heads for ioi").wait_for()


@pytest.mark.usefixtures("computed")
def test_paths_to_a_name_mover_are_found_again_and_a_sender_is_opened(page, server):
    page.goto(f"{server}/{PATCHED}")
    canvas = page.locator("canvas.cells")
    canvas.wait_for()
    settled(page)
    page.get_by_text(re.compile(r"each head's direct path to L23H3\.q is replaced by what it is on the corrupted prompt, at the last position")).wait_for()
    canvas.focus()
    page.keyboard.press("ArrowDown")  # begins at the head with the largest effect
    said = page.locator(".head-map .said").inner_text()
    assert re.match(r"L20H0: effect -0\.\d+; 95% interval", said)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="One head").wait_for()
    assert "head=L20H0" in page.url


@pytest.mark.usefixtures("computed")
def test_the_slider_prunes_and_the_answer_turns(page, server):
    page.goto(f"{server}/{PRUNED}")
    page.get_by_text("With all heads: London (memory). Without 5 memory heads: Madrid (context).").wait_for()
    settled(page)
    slider = page.get_by_role("slider", name="Heads pruned")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.get_by_text("Without 0 memory heads: London (memory).").wait_for()
    settled(page)
    assert "k_memory=0" in page.url
    page.get_by_text("conflicts, kept out of the search").wait_for()
