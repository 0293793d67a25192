"""What does one more user of the dashboard cost? Several browsers at one server, each of which goes from page to page; the server's memory and processor time.

    PYTHONPATH=. python benchmarks/dashboard_users.py --users 1 4 8

The users click in turn, one page change after the other, so that the processor time of a change can be told from that of the browsers, which share the machine.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import psutil
from dashboard_time import FLAGS, MAP, QUIET, serving
from playwright.sync_api import sync_playwright
from report import write_report

PAGES = ("Long context", "Sinks and calibration", "Runs", "Heads")


def server() -> psutil.Process:
    """The server's process."""
    mine = psutil.Process().children(recursive=True)
    return next(process for process in mine if "streamlit" in " ".join(process.cmdline()) and "main.py" in " ".join(process.cmdline()))


def spent(process: psutil.Process) -> float:
    """Processor seconds of a process, all threads."""
    times = process.cpu_times()
    return times.user + times.system


def measured(users: int, rounds: int) -> dict[str, float]:
    """A fresh server, so many users: its memory when all have seen all pages, and what a page change takes after that."""
    with serving() as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        pages = []
        for _ in range(users):
            page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
            page.goto(address, wait_until="commit")
            page.locator(MAP).first.wait_for(timeout=120_000)
            pages.append(page)
        process, seconds, changes = server(), [], 0
        for round_ in range(rounds + 1):
            before = spent(process)
            for name in PAGES:
                for page in pages:
                    begin = time.perf_counter()
                    page.get_by_role("link", name=name, exact=True).first.click()
                    page.get_by_role("heading", name=name, exact=True).first.wait_for(timeout=60_000)
                    page.locator(QUIET).wait_for(timeout=60_000)
                    if round_:
                        seconds.append(time.perf_counter() - begin)
            if round_:
                changes += spent(process) - before
        found = {"users": users, "server MB": process.memory_info().rss / 1e6, "change s": float(pd.Series(seconds).median())}
        browser.close()
    return found | {"slowest change s": max(seconds), "server CPU s per change": changes / len(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dashboard_users_cpu")
    given = parser.parse_args()
    rows = []
    for users in given.users:
        rows.append(measured(users, given.rounds))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    remark = (
        f"Page changes among {', '.join(PAGES)}, {given.rounds} rounds after one that fills the caches; users click in turn; the browsers share the machine."
    )
    write_report(given.out, "The dashboard: users", [remark], table)


if __name__ == "__main__":
    main()
