"""What does a command do that runs as a job? It waits for its turn, tells how far it is, and leaves behind how it ended."""

import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from workbench.files import write_text
from workbench.jobs.asking import FOLDER, find
from workbench.jobs.job import POLL, Job, lock

_WRITE = 0.2
"""Seconds between two reports of the same kind that are written down."""
_OWN: dict[str, Any] = {}
"""The folder of the job that this process works on, if it works on one, and what it last reported."""


def report(what: str, done: int, total: int) -> None:
    """Write down how far the job is that this process works on; nothing happens if it works on none."""
    now, told = time.time(), _OWN.get("told")
    if not _OWN or (told and told["what"] == what and now - told["at"] < _WRITE and done < total):
        return
    same = told and told["total"] == total and told["done"] <= done
    first = (told["first"] if same else (done, now)) if total else None
    _OWN["told"] = {"what": what, "done": done, "total": total, "began": told["began"] if told else now, "at": now, "first": first}
    write_text(_OWN["folder"] / "progress.json", json.dumps(_OWN["told"]))


@contextmanager
def running() -> Generator[None]:
    """What a command goes through if it is a job: it waits for its turn, and leaves behind how it ended. `WORKBENCH_JOBS_AT_ONCE` (1) have it at once."""
    folder = os.environ.pop(FOLDER, "")
    if not folder:
        yield
        return
    job, code = Job(Path(folder)), 1
    os.nice(5)  # the dashboard goes first
    write_text(job.folder / "process.json", json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()}))
    try:
        with _turn(job):
            _OWN["folder"] = job.folder
            report("starting", 0, 0)
            yield
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    finally:
        _OWN.clear()
        write_text(job.folder / "end.json", json.dumps({"code": code, "at": time.time()}))


@contextmanager
def _turn(job: Job) -> Generator[None]:
    """Wait until no older job waits and fewer than so many have their turn."""
    jobs, count = job.folder.parent, int(os.environ.get("WORKBENCH_JOBS_AT_ONCE") or 1)
    while not (job.folder / "cancelled").exists():
        if not any(other.state == "queued" and other.time < job.time for other in find(jobs.parent)):
            for number in range(count):
                with (jobs / f"turn-{number}").open("ab") as turn:
                    if lock(turn, fcntl.LOCK_EX):
                        yield
                        return
        time.sleep(POLL)
    raise SystemExit(1)
