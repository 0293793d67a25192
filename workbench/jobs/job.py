"""What does a job's folder tell? Its state, how far it is, what it said; and how it is stopped and removed."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from workbench.errors import InputError
from workbench.files import write_text

STATES = {
    "queued": "waits for its turn",
    "running": "is being computed",
    "done": "is finished",
    "failed": "ended with an error",
    "cancelled": "was cancelled; started again, it goes on from the parts that are finished",
    "died": "is dead: its process was killed, or the machine was switched off; started again, it goes on from the parts that are finished",
}
"""The states of a job, and what is said of it."""

POLL = 0.1
"""Seconds between two looks at what another process does."""
_PATIENCE = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` parts (0 of 0 before it knows), `what` it did last; began and told at so many seconds of the epoch.

    `first` tells how many of these parts were done when it told of them first, and when: nothing before it, such as loading a model, is a part.
    """

    what: str
    done: int
    total: int
    began: float
    at: float
    first: Sequence[float] | None = None

    @property
    def left(self) -> float | None:
        """Seconds that it will still take if all parts take as long as those since the first; None before there is one."""
        done, at = self.first or (0, self.began)
        return (self.at - at) * (self.total - self.done) / (self.done - done) if self.done > done else None

    @property
    def share(self) -> float:
        """How much is done, 0–1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def words(self) -> str:
        """How far it is, in words."""
        if not self.total:
            return self.what
        left = "" if self.left is None or not self.left else f"; about {spent(self.left)} left"
        return f"{self.what}: {self.done:,} of {self.total:,}{left}"


def spent(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Job:
    """A command that runs, or ran, in the background; what it tells is read from its folder at that moment."""

    folder: Path

    @property
    def name(self) -> str:
        """The fingerprint of its question: 16 hexadecimal digits."""
        return self.folder.name

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked: `title`, `arguments` of `workbench`, hashes of `files`, `versions`, `time` (of the epoch), and where it is `shown`.

        Raises `InputError` if it is gone, or cannot be read.
        """
        try:
            asked = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
            return {"shown": {}} | asked | {"title": str(asked["title"]), "time": float(asked["time"]), "arguments": list(asked["arguments"])}
        except FileNotFoundError as error:
            raise InputError(f"job {self.name} is not there; it may have been removed") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"job {self.name} cannot be read: {error}") from error

    @property
    def time(self) -> float:
        """When it was asked, in seconds of the epoch; 0 if that cannot be read."""
        try:
            return self.asked["time"]
        except InputError:
            return 0.0

    @property
    def state(self) -> str:
        """One of `STATES`."""
        told = read(self.folder / "end.json")
        if not told:
            if self._alive():
                return "running" if (self.folder / "progress.json").exists() else "queued"
            told = read(self.folder / "end.json")  # it may just have ended
        if told.get("code") == 0:
            return "done"
        return "cancelled" if (self.folder / "cancelled").exists() else "failed" if told else "died"

    @property
    def progress(self) -> Progress | None:
        """How far it is, or was when it ended; None before its turn."""
        told = read(self.folder / "progress.json")
        return Progress(**told) if told else None

    @property
    def seconds(self) -> float | None:
        """How long it took; None before its end."""
        told, progress = read(self.folder / "end.json"), self.progress
        return told["at"] - progress.began if told and progress else None

    @property
    def command(self) -> str:
        """The command line, as a user would type it in the job's folder."""
        return shlex.join(["workbench", *map(str, self.asked["arguments"])])

    @property
    def results(self) -> list[Path]:
        """The files that the command wrote, and what it said on stdout, if that is anything."""
        own = {"job.json", "process.json", "progress.json", "end.json", "cancelled", "alive", "log.txt", *self.asked.get("files", ())}
        found = sorted(path for path in self.folder.iterdir() if path.is_file() and path.name not in own and not path.name.startswith("."))
        return [path for path in found if path.stat().st_size]

    def log(self, lines: int = 20) -> str:
        """The last lines that the command said on stderr."""
        try:
            with (self.folder / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 200 * lines))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def cancel(self) -> None:
        """Stop it, with all processes of its group. Does nothing to a job that has ended; raises `InputError` if it cannot be stopped."""
        if self.state not in ("queued", "running"):
            return
        write_text(self.folder / "cancelled", "")
        begin = time.monotonic()
        while self._alive():
            spent = time.monotonic() - begin
            if spent > 2 * _PATIENCE:
                raise InputError(f"job {self.name} cannot be stopped")
            self._kill(signal.SIGTERM if spent < _PATIENCE else signal.SIGKILL)
            time.sleep(POLL / 2)

    def remove(self) -> None:
        """Delete it with its results; it is cancelled first. What runs keep of finished parts stays."""
        self.cancel()
        with locked(self.folder, _PATIENCE) as lock:
            if lock is None:
                raise InputError(f"job {self.name} has been started again; cancel it first")
            shutil.rmtree(self.folder, ignore_errors=True)

    def _alive(self) -> bool:
        try:
            with (self.folder / "alive").open("rb") as file:
                return not lock(file, fcntl.LOCK_SH)
        except OSError:
            return False

    def _kill(self, how: signal.Signals) -> None:
        told = read(self.folder / "process.json")
        if not told:
            return  # it has not begun, and will see that it is cancelled
        with suppress(psutil.NoSuchProcess):
            if abs(psutil.Process(told["pid"]).create_time() - told["started"]) > 1:
                return
        with suppress(ProcessLookupError):
            os.killpg(told["pid"], how)


@contextmanager
def locked(folder: Path, patience: float = 3 * POLL) -> Generator[IO[bytes] | None]:
    """The open file `alive` of a job while it is locked; None if another process has held it for all of the time. Who only looks holds it for a moment."""
    end = time.monotonic() + patience
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "alive").open("ab")
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}") from error
        with file:
            free = lock(file, fcntl.LOCK_EX)
            if free and (folder / "alive").exists() and (folder / "alive").stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return
            if not free and time.monotonic() > end:
                yield None
                return
        time.sleep(POLL / 5)


def lock(file: IO[bytes], how: int) -> bool:
    """Lock an open file, if nobody has it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
