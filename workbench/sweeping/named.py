"""Which models does a sweep name, and which files are theirs? A name with * or ? stands for all folders that it matches, such as the checkpoints of a run."""

from glob import glob
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.sources import CATALOGUE


def meant(name: str) -> list[str]:
    """The name itself, or the folders and .gguf files that it matches as a pattern, in the order of their names. Raises `InputError` if there are none."""
    path = Path(name).expanduser()
    if not {"*", "?"} & set(name) or path.exists():
        return [name]
    every = glob(str(path).replace("[", "[[]"))  # noqa: PTH207 pathlib's takes hidden folders too, and raises for **
    found = [one for one in sorted(every) if Path(one).is_dir() or one.endswith(".gguf")]
    if not found:
        raise InputError(f"no folder of a model matches {name}")
    return found


def identity(name: str) -> Any:
    """What tells the files of a model from those that lay there before: of a name of the catalogue the checksum, of local files their sizes and dates."""
    if name in CATALOGUE:
        return CATALOGUE[name].sha256
    path = Path(name).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
