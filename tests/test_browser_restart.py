"""Is a job found again when the server was killed and started afresh, while it ran, and when it was done? A real browser, a tiny model."""

import os
import subprocess
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from browsing import IN_A_BROWSER, ROOT, alive, free_port, settled

from workbench import jobs
from workbench.labels import HeadLabels
from workbench.models import load
from workbench.recall import Recall
from workbench.tiny import random_model

pytestmark = IN_A_BROWSER
QUERY = "ablate=L1H1&lengths=450&depths=0.1,0.5,0.9&needles=20&draws=1"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that starts a dashboard of a tiny model at a port; whatever was left running is stopped in the end."""
    model, folder, runs = random_model("llama"), tmp_path / "tiny", tmp_path / "runs"
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    HeadLabels(load(str(folder)).card, {}, {"retrieval": np.eye(2, 6)}).save(tmp_path / "heads.json")
    told = {"WORKBENCH_RUNS": str(runs), "WORKBENCH_APP_LABELS": str(tmp_path / "heads.json"), "WORKBENCH_APP_MODEL": str(folder)}
    running = []

    def start(port):
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.headless", "true", "--server.port", str(port)]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        end = time.monotonic() + 90
        while not alive(f"http://127.0.0.1:{port}"):
            assert running[-1].poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        return running[-1]

    yield start, runs
    for process in running:
        process.kill()
        process.wait()
    for left in jobs.find(runs):
        left.cancel()


def test_a_job_outlives_two_servers(serve, page):
    start, runs = serve
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = start(port)
    page.goto(f"{address}/needle_test?{QUERY}")
    page.get_by_text("Nothing has been computed").wait_for()
    settled(page)
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("button", name="Cancel").wait_for()
    (job,) = jobs.find(runs)
    end = time.monotonic() + 120
    while not (job.progress and job.progress.done):
        assert time.monotonic() < end, job.log()
        time.sleep(0.05)
    server.kill()
    server.wait()
    assert job.state == "running"
    done = job.progress.done
    server = start(port)
    page.goto(f"{address}/needle_test?{QUERY}")
    page.get_by_role("button", name="Cancel").wait_for()
    assert page.get_by_role("button", name="Start", exact=True).count() == 0
    assert job.state == "running"
    assert job.progress.done >= done
    page.goto(f"{address}/runs")
    page.get_by_role("button", name="Cancel").wait_for()
    page.get_by_role("button", name="Cancel").wait_for(state="hidden", timeout=240_000)
    assert job.state == "done", job.log()
    server.kill()
    server.wait()
    start(port)
    page.goto(f"{address}/runs")
    page.get_by_text("This job is finished.").wait_for()
    settled(page)
    page.get_by_role("button", name="Open its page").click()
    page.get_by_role("heading", name="Needle test", exact=True).wait_for()
    page.get_by_text(Recall.load(job.folder / "needle.csv").verdict()[:40]).wait_for()
    assert f"job={job.name}" in urlsplit(page.url).query
    assert [one.name for one in jobs.find(runs)] == [job.name]
