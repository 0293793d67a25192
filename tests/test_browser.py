"""Does the dashboard work as a person uses it? A real browser against a real server, the default model and the bundled labels."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from workbench.labels import HeadLabels

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive; on Debian: apt install chromium"),
]

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "reports" / "smollm2-135m" / "heads.json"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
WIDTHS = (360, 1000, 1800)
SHOWN = {"heads": ("canvas.cells", ".js-plotly-plot"), "one_head": (".token-map .token", ".js-plotly-plot"), "runs": ("h1", "[data-testid=stAlert]")}
"""What a page shows when it is ready; there are no runs."""
PATIENCE = 60_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(address):
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """The address of a running dashboard; the model lies in the cache already."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKBENCH_APP_")} | {"WORKBENCH_RUNS": "none"}
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.headless", "true", "--server.port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=written, stderr=written)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while not alive(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, "the server did not start in a minute"
            time.sleep(0.2)
        yield address
        assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page of 1,000 px that must not complain, nor ask anybody but this machine."""
    made = chromium.new_page(viewport={"width": 1000, "height": 1400})
    made.set_default_timeout(PATIENCE)
    wrong = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("request", lambda request: None if re.match(r"(data|blob):|\w+://127\.0\.0\.1", request.url) else wrong.append(request.url))
    yield made
    made.close()
    assert not wrong


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where screenshots go: the folder that WORKBENCH_SCREENSHOTS names, else one of pytest."""
    folder = Path(os.environ.get("WORKBENCH_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def settled(page):
    """Wait until Streamlit has nothing left to do."""
    page.wait_for_timeout(300)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(300)


def place_of(page, layer, head):
    box = page.locator("canvas.cells").bounding_box()
    return box["x"] + (head + 0.5) * box["width"] / 9, box["y"] + (layer + 0.5) * box["height"] / 30


def choose(page, label, option):
    page.get_by_role("combobox", name=label).first.click()
    page.keyboard.type(option)  # of a long list only the part in view is there
    page.get_by_role("option", name=option, exact=True).click()
    settled(page)


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
def test_it_fits_every_width(chromium, server, pictures, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 1500}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    try:
        for name, address in (("heads", ""), ("one_head", "one_head?head=L18H6&ablate=true&row=22"), ("runs", "runs")):
            page.goto(f"{server}/{address}")
            for selector in SHOWN[name]:
                page.locator(selector).first.wait_for()
            settled(page)
            page.screenshot(path=pictures / f"{name}_{width}_{scheme}.png")
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width
            assert all(page.locator(selector).first.bounding_box()["width"] <= width for selector in SHOWN[name])
    finally:
        context.close()
