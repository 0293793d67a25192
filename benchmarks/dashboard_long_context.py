"""What does the map of a long prompt cost the browser? Memory of its tab, bytes sent, and seconds of waiting, at the whole map and at zooms into it.

A random model of two layers reads the prompt, of bytes: the browser does not care whose numbers it shows, but seconds of computing are not a real model's.

python benchmarks/dashboard_long_context.py --tokens 32768 --out benchmarks/results/dashboard_long_context_cpu
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from dashboard_time import FLAGS, serving
from playwright.sync_api import Browser, Page, sync_playwright
from report import write_report

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.models import load
from workbench.tiny import random_model

MAP, LEVEL = ".block-map canvas", ".block-map .level"
PLOT = 72, 24, 8, 68
"""Pixels beside the plot: left, above, right, below."""
LIMIT = 500
"""Megabytes that the tab may take."""


def made(folder: Path, tokens: int) -> None:
    """A model in a folder, labels of it, and the settings of a dashboard that shows both."""
    model = random_model("llama", max_position_embeddings=tokens)
    model.hf.save_pretrained(folder / "tiny")
    model.tokenizer.save_pretrained(folder / "tiny")
    card = load(str(folder / "tiny"), device="cpu").card
    HeadLabels(card, {Head(1, 3): ("local",)}, {"local": np.ones((card.shape.n_layers, card.shape.n_heads))}).save(folder / "heads.json")
    os.environ |= {"WORKBENCH_APP_LABELS": str(folder / "heads.json"), "WORKBENCH_APP_MODEL": str(folder / "tiny"), "WORKBENCH_RUNS": str(folder / "runs")}


class Tab:
    """A page of the browser, whose memory and messages are counted."""

    def __init__(self, page: Page) -> None:
        self.page, self.largest = page, 0
        self._session = page.context.new_cdp_session(page)
        page.on("websocket", lambda socket: socket.on("framereceived", self._heard))

    def _heard(self, payload: str | bytes) -> None:
        self.largest = max(self.largest, len(payload))

    def measured(self, act: Callable[[], object], settled: Callable[[], object]) -> dict[str, float]:
        """Do something, wait until it is there, and say what it took."""
        self.largest, begin = 0, time.perf_counter()
        act()
        settled()
        waited = time.perf_counter() - begin
        self.page.wait_for_timeout(1500)
        heap = self._session.send("Runtime.getHeapUsage")
        process = self._process()
        self._session.send("HeapProfiler.collectGarbage")
        needed = self._session.send("Runtime.getHeapUsage")
        sizes = {
            "heap, MB": heap["usedSize"] + heap["backingStorageSize"],
            "heap needed, MB": needed["usedSize"] + needed["backingStorageSize"],
            "process of the tab, MB": process,
        }
        return {"wait, s": waited, **{name: size / 1e6 for name, size in sizes.items()}, "largest message, MB": self.largest / 1e6}

    @staticmethod
    def _process() -> int:
        """What the largest renderer holds for itself, in bytes."""
        renderers = [child for child in psutil.Process().children(recursive=True) if "--type=renderer" in " ".join(child.cmdline())]
        return max(child.memory_full_info().uss for child in renderers)


def drag(page: Page, begin: float, end: float) -> None:
    """Drag over the same share of the rows and of the keys in view."""
    box: Any = page.locator(MAP).bounding_box()
    left, above, right, below = PLOT
    points = [(box["x"] + left + part * (box["width"] - left - right), box["y"] + above + part * (box["height"] - above - below)) for part in (begin, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=3)
    page.mouse.up()


def settled(page: Page) -> None:
    """Wait until the map is there, of the part in view, and Streamlit has nothing left to do."""
    page.locator(MAP).wait_for()
    page.wait_for_timeout(350)  # the map asks for a part when nothing has moved for 250 ms
    page.locator(LEVEL).filter(has_not_text="being computed").wait_for()
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


def once(browser: Browser, tokens: int) -> list[dict[str, Any]]:
    """One visit: the whole map, zooms down to exact cells, and many zooms after another."""
    rows: list[dict[str, Any]] = []
    with serving() as address:
        page = browser.new_context(viewport={"width": 1400, "height": 1500}).new_page()
        page.set_default_timeout(600_000)
        tab, compute = Tab(page), page.get_by_role("button", name="Compute the map")

        def note(view: str, act: Callable[[], object], there: Callable[[], object] = lambda: settled(page)) -> None:
            found = tab.measured(act, there)
            rows.append({"view": view, "what is seen": page.locator(LEVEL).inner_text() if page.locator(LEVEL).count() else "no map", **found})

        def ten_ways() -> None:
            for _ in range(10):
                page.get_by_role("button", name="Show the whole map").click()
                settled(page)
                drag(page, 0.6, 0.6 + 600 / tokens)
                settled(page)

        note("before", lambda: page.goto(f"{address}/long_context?length={tokens}&head=L1H3"), compute.wait_for)
        note("whole, computing included", compute.click)
        note("whole, opened again", page.reload)
        note("a quarter of rows and keys", lambda: drag(page, 0.5, 0.75))
        note("600 rows and keys", lambda: drag(page, 0.4, 0.4 + 600 / (tokens / 4)))
        note("600 rows and keys, ten times from the whole", ten_ways)
        page.context.close()
    assert [row["what is seen"].startswith("Exact") for row in rows] == [False, False, False, False, True, True], rows
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    runs = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for repeat in range(given.repeats):
            with tempfile.TemporaryDirectory() as folder:
                made(Path(folder), given.tokens)
                runs += [{"repeat": repeat, **row} for row in once(browser, given.tokens)]
        version = browser.version
        browser.close()
    table = pd.DataFrame(runs)
    how = {"what is seen": "last", "wait, s": "min"}
    worst = table.groupby("view", sort=False).agg({name: how.get(name, "max") for name in table if name not in ("repeat", "view")})
    most = worst["process of the tab, MB"].max()
    whose = "A random model of two layers reads it: the browser does not care whose numbers it shows; seconds of computing are not those of a real model."
    what = (
        f"The most of {given.repeats} visits, each to a fresh server; of waits the least, as other work on the machine only adds to them. Heap: "
        "JavaScript's with its array buffers, as it is and after a collection of garbage; process: what the tab's renderer holds for itself, "
        f"Streamlit's page included, before that collection: at most {most:.0f} MB, {LIMIT} were allowed."
    )
    where = f"Chromium {version}, headless, window of 1400 × 1500; the machine's load was {before:.1f} before and {os.getloadavg()[0]:.1f} at the end."
    remarks = [f"A prompt of {given.tokens:,} tokens. {whose}", what, where]
    write_report(given.out, "The map of a long prompt in the browser", remarks, worst.reset_index(), table, digits=2)
    print(worst.to_string())
    if most > LIMIT:
        raise SystemExit(f"the tab takes {most:.0f} MB, more than {LIMIT}")


if __name__ == "__main__":
    main()
