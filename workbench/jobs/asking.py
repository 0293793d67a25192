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
from typing import IO, TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.files import write_file, write_text
from workbench.jobs.job import Job, locked, read

if TYPE_CHECKING:
    import pandas as pd

PROGRAM = (sys.executable, "-m", "workbench.cli")
FOLDER = "WORKBENCH_JOB"
"""The variable that tells a process that it is a job, and where."""
_AGAIN = ("process.json", "progress.json", "end.json", "cancelled", "result.txt", "log.txt")


def same(root: Path, arguments: Sequence[str], files: Mapping[str, bytes] | None = None) -> Job | None:
    """The job of this question, if it was asked before and is still there, whatever became of it; see `ask`."""
    job, _ = _of(root, arguments, files or {})
    return job if (job.folder / "job.json").is_file() else None


def ask(root: Path, arguments: Sequence[str], *, title: str, files: Mapping[str, bytes] | None = None, shown: Mapping[str, Any] | None = None) -> Job:
    """The job that runs `workbench` with these arguments: the one that was asked before, if it runs or is done, else it is started (again).

    `files` are put into its folder, where the command runs, so that arguments name them, and what it shall write, without a path. Runs are kept under `root`.
    `shown` is plain data that says where a dashboard shows it. Raises `InputError` where nothing can be written.
    """
    if str(root) == "-":
        raise InputError("a job needs a runs folder, and WORKBENCH_RUNS is -, which keeps nothing")
    given = files or {}
    job, question = _of(root, arguments, given)
    with locked(job.folder) as lock:
        if lock is None or read(job.folder / "end.json").get("code") == 0:
            return job
        for name in _AGAIN:
            (job.folder / name).unlink(missing_ok=True)
        for name, content in given.items():
            write_file(job.folder / name, lambda path, content=content: path.write_bytes(content))
        told = {"title": title, "time": time.time(), "shown": dict(shown or {}), **question}
        write_text(job.folder / "job.json", json.dumps(told, indent=1) + "\n")
        _start(job, root.absolute(), lock)
    return job


def again(root: Path, job: Job) -> Job:
    """The same question asked once more, with the files that lie in the job's folder: it goes on from the parts that are finished.

    With other versions it is another job. Raises `InputError` if the job, or a file of it, is gone.
    """
    asked = job.asked
    try:
        files = {name: (job.folder / name).read_bytes() for name in asked.get("files", {})}
    except OSError as error:
        raise InputError(f"a file that was given with job {job.name} cannot be read: {error.strerror}") from error
    return ask(root, asked["arguments"], title=asked["title"], files=files, shown=asked["shown"])


def find(root: Path) -> list[Job]:
    """Every job under a runs folder, the one asked last first; those that cannot be read last."""
    found = [Job(path.parent) for path in root.glob("jobs/*/job.json")]
    return sorted(found, key=lambda job: job.time, reverse=True)


def overview(root: Path) -> "pd.DataFrame":
    """One row per job as `find` gives them: `job` (its name), `title`, `state`, when it was `asked` (UTC), the `share` that is done (0–1), `seconds` it took.

    `problem` says why a job cannot be read, and is empty elsewhere.
    """
    import pandas as pd

    rows = [_row(job) for job in find(root)]
    table = pd.DataFrame(rows, columns=["job", "title", "state", "asked", "share", "seconds", "problem"])
    return table.assign(asked=pd.to_datetime(table["asked"], unit="s"))


def _row(job: Job) -> dict[str, Any]:
    state, progress = job.state, job.progress
    done = {"share": 1.0 if state == "done" else progress.share if progress else 0.0, "seconds": job.seconds}
    try:
        told = {"title": job.asked["title"], "asked": job.asked["time"], "problem": ""}
    except InputError as error:
        told = {"title": "", "asked": None, "problem": str(error)}
    return {"job": job.name, "state": state, **told, **done}


def named(root: Path, name: str) -> Job:
    """A job by its name. Raises `InputError` if there is none."""
    job = Job(root.absolute() / "jobs" / name)
    if not re.fullmatch(r"[0-9a-f]{16}", name) or not (job.folder / "job.json").is_file():
        raise InputError(f"there is no job {name}; it may have been removed")
    return job


def _of(root: Path, arguments: Sequence[str], files: Mapping[str, bytes]) -> tuple[Job, dict[str, Any]]:
    """The job of a question, which may not be there, and the question as plain data."""
    from workbench.runs import fingerprint_of, versions

    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    question = {"arguments": list(arguments), "files": hashes, "versions": versions()}
    return Job(root.absolute() / "jobs" / fingerprint_of(question)), question


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
