"""How is a job started? Asked once or many times, by one or many, the same question has one job."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from workbench.errors import InputError
from workbench.files import write_file, write_text
from workbench.jobs.job import Job, locked, read

PROGRAM = (sys.executable, "-m", "workbench.cli")
FOLDER = "WORKBENCH_JOB"
"""The variable that tells a process that it is a job, and where."""
_AGAIN = ("process.json", "progress.json", "end.json", "cancelled", "result.txt", "log.txt")


def ask(root: Path, arguments: Sequence[str], *, title: str, files: Mapping[str, bytes] | None = None) -> Job:
    """The job that runs `workbench` with these arguments: the one that was asked before, if it runs or is done, else it is started (again).

    `files` are put into its folder, where the command runs, so that arguments name them, and what it shall write, without a path. Runs are kept under `root`.
    Raises `InputError` where nothing can be written.
    """
    from workbench.runs import fingerprint_of, versions

    if str(root) == "-":
        raise InputError("a job needs a runs folder, and WORKBENCH_RUNS is -, which keeps nothing")
    given = files or {}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in given.items()}
    question = {"arguments": list(arguments), "files": hashes, "versions": versions()}
    job = Job(root.absolute() / "jobs" / fingerprint_of(question))
    with locked(job.folder) as lock:
        if lock is None or read(job.folder / "end.json").get("code") == 0:
            return job
        for name in _AGAIN:
            (job.folder / name).unlink(missing_ok=True)
        for name, content in given.items():
            write_file(job.folder / name, lambda path, content=content: path.write_bytes(content))
        write_text(job.folder / "job.json", json.dumps({"title": title, "time": time.time(), **question}, indent=1) + "\n")
        _start(job, root.absolute(), lock)
    return job


def find(root: Path) -> list[Job]:
    """Every job under a runs folder, the one asked last first; those that cannot be read last."""
    found = [Job(path.parent) for path in root.glob("jobs/*/job.json")]
    return sorted(found, key=lambda job: job.time, reverse=True)


def named(root: Path, name: str) -> Job:
    """A job by its name. Raises `InputError` if there is none."""
    job = Job(root.absolute() / "jobs" / name)
    if not re.fullmatch(r"[0-9a-f]{16}", name) or not (job.folder / "job.json").is_file():
        raise InputError(f"there is no job {name}; it may have been removed")
    return job


def _start(job: Job, root: Path, lock: IO[bytes]) -> None:
    """Let a process of its own session work on the job; it takes the lock over."""
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {FOLDER: str(job.folder), "WORKBENCH_RUNS": str(root), "PYTHONPATH": path}
    with (job.folder / "result.txt").open("wb") as result, (job.folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, *job.asked["arguments"]],
            cwd=job.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=result,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or a dead one would stay in the list of processes
