"""Where do results lie? In a folder, or in any storage that fsspec knows by an address; what is written there appears whole or not at all.

A storage that is full or cannot be reached for a while can be waited for.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from upath import UPath

from workbench.errors import InputError
from workbench.files import write_file

Place: TypeAlias = Path | UPath
"""A folder or file of this machine, or one behind an address such as s3://bucket/runs."""

WHOLE = ("abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a")
"""Protocols whose objects appear at once, when all of it was written."""

_PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between two attempts; the last again and again."""

SAID = 2
"""After so many further attempts it is said, once, that a storage is waited for."""

_Value = TypeVar("_Value")


def place(text: str | Path | UPath) -> Place:
    """The folder or file that a text names. Raises `InputError` for an address whose protocol has no driver here."""
    if not isinstance(text, str) or "://" not in text:
        return text if isinstance(text, UPath) else Path(text)
    protocol, _, rest = text.partition("://")
    if protocol in ("file", "local"):
        return Path(rest)
    try:
        found = UPath(text)
        _ = found.fs
    except (ImportError, ValueError) as error:
        raise InputError(f"{text} cannot be used as a storage: {error}") from error
    return found


def lasting(text: str) -> str:
    """The address, if what lies there outlasts this process and is seen by others. Raises `InputError` for one that lives in a process's memory."""
    if text.startswith("memory://"):
        raise InputError(f"{text} is the memory of one process, and gone with it; give a folder or another address")
    return text


def write(path: Place, content: bytes, patience: float = 0) -> None:
    """Write a file, whole or not at all. Raises `InputError` if the storage refuses for all of the `patience`, in seconds; what it had is intact."""
    _patiently(lambda: _written(path, content), "write", path, patience)


def read(path: Place, patience: float = 0) -> bytes | None:
    """The content of a file; None if it is not there. Raises `InputError` if the storage cannot be reached for all of the `patience`, in seconds."""
    return _patiently(lambda: _content(path), "read", path, patience)


def names(folder: Place, ending: str, patience: float = 0) -> set[str]:
    """The names of the files in a folder with an ending, without it; none where there is no folder. Raises as `read` does."""
    return _patiently(lambda: _listed(folder, ending), "list", folder, patience)


def _content(path: Place) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _listed(folder: Place, ending: str) -> set[str]:
    if isinstance(folder, Path):
        try:
            found = [entry.name for entry in os.scandir(folder)]
        except (FileNotFoundError, NotADirectoryError):
            return set()
    else:
        folder.fs.invalidate_cache()
        found = [Path(name).name for name in folder.fs.ls(folder.path, detail=False)] if folder.exists() else []
    return {name.removesuffix(ending) for name in found if name.endswith(ending) and not name.startswith(".")}


def _written(path: Place, content: bytes) -> None:
    if isinstance(path, Path):
        write_file(path, lambda part: part.write_bytes(content))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.protocol in WHOLE:
        path.write_bytes(content)
        return
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    part.write_bytes(content)
    path.fs.mv(part.path, path.path)


def _patiently(act: Callable[[], _Value], verb: str, path: Place, patience: float) -> _Value:
    """Do it, again and again while the storage refuses, until the patience is over, and say so; a refusal that no waiting mends is passed on at once."""
    refusals = (OSError, InputError) if isinstance(path, Path) else Exception  # drivers of other storages raise what they like
    end, attempt = time.monotonic() + patience, 0
    while True:
        try:
            return act()
        except refusals as error:
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            cause = error.__cause__ if isinstance(error, InputError) and error.__cause__ else error
            reason = getattr(cause, "strerror", None) or str(cause).strip().partition("\n")[0] or type(cause).__name__
            final = isinstance(cause, (PermissionError, IsADirectoryError, NotADirectoryError)) or getattr(cause, "errno", None) == errno.EROFS
            if final or time.monotonic() + pause > end:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"cannot {verb} {path}: {reason}; what was finished before is intact") from error
            if attempt == SAID:
                logging.getLogger(__name__).warning("cannot %s %s: %s; trying again for %.0f s", verb, path, reason, end - time.monotonic())
            time.sleep(pause)
            attempt += 1
