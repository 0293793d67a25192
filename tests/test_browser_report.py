"""Does a report open in a browser from a folder, without a server and a network, at every width, light and dark, and on paper?"""

import base64
import re

import pytest
from browsing import IN_A_BROWSER, ROOT, WIDTHS
from results import labels, scores

from workbench.results import collect
from workbench.views.canvas import head_canvas, script
from workbench.views.heads import panel
from workbench.views.report import report_of, share
from workbench.views.widgets import module

pytestmark = IN_A_BROWSER
SOURCE = ROOT / "reports" / "smollm2-135m"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The results of the default model as a folder to hand on, with real pictures."""
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install -e '.[dev]'")
    results = collect(SOURCE)
    return share(report_of(results), results, tmp_path_factory.mktemp("share") / "out")


@pytest.fixture
def opened(chromium):
    """Opens a file and asserts that nothing complained and nothing but files was asked for."""
    contexts, wrong = [], []

    def open_(path, **settings):
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


def test_the_folder_is_small_enough_and_whole(shared):
    assert sum(path.stat().st_size for path in shared.folder.rglob("*") if path.is_file()) == shared.size <= 10_000_000
    endings = {path.suffix for path in shared.folder.rglob("*") if path.is_file()}
    assert not shared.left_out
    assert endings >= {".html", ".svg", ".png", ".csv", ".parquet", ".json", ".md"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_every_width(shared, opened, pictures, width, scheme):
    page = opened(shared.folder / "index.html", viewport={"width": width, "height": 1200}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".card").count() > 20
    for number, place in enumerate((0, 0.15, 0.9)):
        page.evaluate(f"window.scrollTo(0, {place} * document.documentElement.scrollHeight)")
        page.screenshot(path=pictures / f"report_{width}_{scheme}_{number}.png")
    assert page.locator("svg").first.bounding_box()["width"] <= width


def test_text_stands_out_from_its_paper(shared, opened):
    luminance = """(colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    for scheme in ("light", "dark"):
        page = opened(shared.folder / "index.html", color_scheme=scheme)
        paper = page.evaluate(f"({luminance})(getComputedStyle(document.body).backgroundColor)")
        for selector in ("body", "figcaption", "a", ".care summary", ".know summary", "dt"):
            ink = page.evaluate(f"({luminance})(getComputedStyle(document.querySelector('{selector}')).color)")
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, (scheme, selector)


def test_caveats_and_tables_are_reached_by_keyboard(shared, opened):
    page = opened(shared.folder / "index.html", viewport={"width": 360, "height": 800})
    known = page.locator(".know")
    assert known.get_attribute("open") is None
    known.locator("summary").focus()
    page.keyboard.press("Enter")
    assert known.locator("li").first.is_visible()
    wide = page.locator(".wide").first
    wide.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert wide.evaluate("(box) => box.scrollLeft") > 0
    page.locator(".short a").first.click()
    assert page.url.endswith("#heads-heads-json")


def test_paper_shows_the_caveats_that_the_screen_folds_away(shared, opened, pictures):
    page = opened(shared.folder / "index.html", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    assert page.locator(".know li").first.bounding_box()["height"] > 0
    assert page.locator("nav").is_hidden()
    assert page.pdf(path=pictures / "report.pdf")[:4] == b"%PDF"


def test_a_map_of_the_folder_tells_its_heads(shared, opened):
    page = opened(shared.folder / "figures" / "map_retrieval.html", viewport={"width": 500, "height": 900})
    canvas = page.locator("canvas.cells")
    canvas.focus()
    page.keyboard.press("ArrowDown")
    told = page.locator(".head-map .said").inner_text()
    table = collect(SOURCE).first("scores").top(300, "retrieval").set_index("name")
    name, score = re.match(r"(L\d+H\d+): retrieval ([\d.]+)", told).groups()
    assert float(score) == pytest.approx(table.loc[name, "score"], abs=5e-4)


def test_every_file_of_the_folder_opens(shared, opened):
    for path in sorted((shared.folder / "figures").glob("*.html"))[::9]:
        assert opened(path).locator("h1").inner_text()


def test_the_widget_draws_and_tells_what_was_clicked(opened, tmp_path):
    found = labels(scores(((0.8, 0.5, 0.0), (0.0, 0.3, 0.0))))
    packed = base64.b64encode(head_canvas(found, panel(found, "retrieval"))).decode()
    page = tmp_path / "widget.html"
    page.write_text(
        f"""<meta charset="utf-8"><style>{script("head_map")[1]}</style><div id="cell" style="width:400px"></div><script type="module">
const source = {module("head_map")!r};
const widget = (await import("data:text/javascript;base64," + btoa(unescape(encodeURIComponent(source))))).default;
const bytes = Uint8Array.from(atob("{packed}"), (letter) => letter.charCodeAt(0));
const state = {{ data: new DataView(bytes.buffer), head: "" }}, heard = {{}};
const model = {{
  get: (name) => state[name], set: (name, value) => (state[name] = value), save_changes: () => (window.saved = {{ ...state }}),
  on: (name, call) => (heard[name] = call), off: (name) => delete heard[name],
}};
window.stop = widget.render({{ model, el: document.getElementById("cell") }});
window.heard = heard;
</script>""",
        encoding="utf-8",
    )
    opened_page = opened(page)
    box = opened_page.locator("canvas.cells").bounding_box()
    opened_page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.75)  # the middle of three heads, the second of two layers
    assert opened_page.evaluate("window.saved.head") == "L1H1"
    opened_page.evaluate("window.heard['change:data']()")
    assert opened_page.locator("canvas.cells").count() == 1
    opened_page.evaluate("window.stop()")
    assert opened_page.evaluate("Object.keys(window.heard).length") == 0
