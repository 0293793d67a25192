"""How do results reach the disk? Completely or not at all: written beside the target, flushed, then moved over it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from workbench.errors import InputError


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically; see `write_file`."""
    return write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_file(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside `path`, then put it in place of `path` in one step.

    Whatever goes wrong before that step (a kill, a full disk) leaves the older file as it was. Raises `InputError` naming
    the path and the reason where the file system refuses.
    """
    target = Path(path)
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; what was there before is intact") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
