"""How long does the dashboard let one wait? A fresh server and a fresh browser each time, clicked as a person would; the model lies in the cache.

python benchmarks/dashboard_time.py --repeats 5 --out benchmarks/results/dashboard_time_cpu
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from playwright.sync_api import Browser, sync_playwright
from report import write_report

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
MAP, TOKENS, CHART = "canvas.cells", ".token-map .token", ".js-plotly-plot:has-text('with all heads')"
OTHERS = ("Long context", "Needle test", "Sinks and calibration", "Successor heads", "Circuits", "Efficient attention", "Runs")
QUIET = "[data-testid=stApp][data-test-script-state=notRunning]"


@contextmanager
def serving() -> Generator[str]:
    """A server of its own, and its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.headless", "true", "--server.port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def waited(act: Callable[[], object], page: Any, selector: str) -> float:
    """Seconds from an act until something is there to see."""
    begin = time.perf_counter()
    act()
    page.locator(selector).first.wait_for(timeout=120_000)
    return time.perf_counter() - begin


def once(browser: Browser) -> dict[str, float]:
    """Seconds of waiting, and what the browser's tab holds in the end."""
    begin = time.perf_counter()
    with serving() as address:
        found = {"server up, s": time.perf_counter() - begin}
        for visitor in ("first", "next"):
            context = browser.new_context(viewport={"width": 1200, "height": 1000})
            page = context.new_page()
            title = waited(lambda page=page: page.goto(address, wait_until="commit"), page, "h1")
            found |= {f"{visitor} visitor: title, s": title, f"{visitor} visitor: map, s": title + waited(lambda: None, page, MAP)}
            page.wait_for_timeout(12_000 if visitor == "first" else 3_000)  # the questions of the probes are read behind the map
            if visitor == "first":
                context.close()
        one, heads = (page.get_by_role("link", name=name).first for name in ("One head", "Heads"))
        found["to One head, the model not yet loaded, s"] = waited(one.click, page, TOKENS)
        page.wait_for_timeout(3_000)
        found["to Heads, s"] = waited(heads.click, page, MAP)
        page.wait_for_timeout(3_000)
        found["to One head, s"] = waited(one.click, page, TOKENS)
        page.wait_for_timeout(3_000)
        found["switching a head off, s"] = waited(page.get_by_text("Switch off and predict again").click, page, CHART)
        page.wait_for_timeout(2_000)
        found["JavaScript heap of the tab, MB"] = context.new_cdp_session(page).send("Runtime.getHeapUsage")["usedSize"] / 1e6
        for round_ in ("first time", "again"):
            for name in OTHERS:
                link = page.get_by_role("link", name=name, exact=True).first
                heading = waited(link.click, page, f"h1:has-text('{name}')")
                found[f"to {name}, {round_}: heading, s"] = heading
                found[f"to {name}, {round_}: all of it, s"] = heading + waited(lambda: None, page, QUIET)
                page.wait_for_timeout(1_500)
        context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        runs = pd.DataFrame([once(browser) for _ in range(given.repeats)])
        load = f"the machine's load was {before:.1f} before and {os.getloadavg()[0]:.1f} at the end"
        remark = f"Chromium {browser.version}, headless, with an empty cache for each visitor; {given.repeats} fresh servers; {load}."
        browser.close()
    table = pd.DataFrame([{"what": name, "median": runs[name].median(), "min": runs[name].min(), "max": runs[name].max()} for name in runs])
    write_report(given.out, "The dashboard: waiting", [remark], table, runs, digits=2)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
