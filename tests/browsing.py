"""What do the tests in a real browser share? A running dashboard of the default model, and headless Chromium to open it with."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
WIDTHS = (360, 1000, 1800)
PATIENCE = 60_000
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.skipif(find_spec("streamlit") is None, reason="streamlit is not installed: pip install -e '.[app]'"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed: pip install -e '.[dev]'"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive; on Debian: apt install chromium"),
]
"""The marks of every file whose tests need a browser."""


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


@pytest.fixture(scope="session")
def server(smollm2, tmp_path_factory):
    """The address of a running dashboard; the model lies in the cache already."""
    port = free_port()
    runs = {"WORKBENCH_RUNS": str(tmp_path_factory.mktemp("runs"))}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKBENCH_APP_")} | runs
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


@pytest.fixture(scope="session")
def chromium():
    """A browser, started once."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
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


@pytest.fixture(scope="session")
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


def choose(page, label, option):
    """Choose an option of a select box by typing it: of a long list only the part in view is there."""
    page.get_by_role("combobox", name=label).first.click()
    page.keyboard.type(option)
    page.get_by_role("option", name=option, exact=True).click()
    settled(page)


def fits(chromium, server, pictures, name, address, shown, width, scheme):
    """Open a page at one width, light or dark, wait for what it `shown`s (selectors), keep a picture, and see that nothing is wider than the window."""
    context = chromium.new_context(viewport={"width": width, "height": 1500}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(f"{server}/{address}")
        for selector in shown:
            page.locator(selector).first.wait_for()
        settled(page)
        page.screenshot(path=pictures / f"{name}_{width}_{scheme}.png")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert all(page.locator(selector).first.bounding_box()["width"] <= width for selector in shown)
    finally:
        context.close()
