"""Which tools can use our labels, and whose can we use? `write` and `read`; one module per file format, found by discovery."""

import importlib
import io
import pkgutil
import tempfile
import zipfile
from pathlib import Path

from workbench.errors import InputError, unknown
from workbench.formats._format import Export, Format
from workbench.heads import ModelCard
from workbench.labels import HeadLabels

__all__ = ["FORMATS", "Export", "Format", "as_bytes", "read", "write"]


def _discover() -> dict[str, Format]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {module.FORMAT.name: module.FORMAT for module in modules}


FORMATS: dict[str, Format] = _discover()
"""Every file format by name."""


def write(labels: HeadLabels, path: str | Path, format_name: str, export: Export | None = None) -> list[Path]:
    """Write labels as another tool's file (or folder of files) and return the paths written.

    An older file stays intact until the new one is complete. Raises `InputError` for an unknown format (listing all), for a
    choice in `export` that the format does not use, and for labels that it cannot express.
    """
    form, export = _form(format_name), export or Export()
    if unused := [name for name in export.given if name not in form.uses]:
        raise InputError(f"{form.name} has no use for {', '.join(unused)}; it takes {', '.join(form.uses) or 'no options'}")
    return form.writes(labels, Path(path), export)


def as_bytes(labels: HeadLabels, format_name: str, export: Export | None = None) -> tuple[str, bytes]:
    """The same as one file to hand over: its ending (`.zip` where the format is a folder of several files) and its bytes. Raises `InputError` as `write`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "heads"
        written = write(labels, root, format_name, export)
        if written == [root]:
            return _form(format_name).suffix, root.read_bytes()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in written:
                archive.write(path, path.relative_to(root))
        return ".zip", packed.getvalue()


def read(path: str | Path, format_name: str, card: ModelCard | None = None, name: str | None = None) -> HeadLabels:
    """Read another tool's file. `card` is the model that it belongs to, `name` what its scores or labels shall be called.

    Raises `InputError`, naming the file and the reason, for a file that is missing, damaged or for a model of another shape
    than `card`; for a missing card where the file alone does not tell the shape; for a `name` where the file has names itself.
    """
    form = _form(format_name)
    if name is not None and form.reads_as is None:
        raise InputError(f"{form.name} files have names themselves; {name!r} cannot be given")
    labels = form.reads(Path(path), card, name or form.reads_as or "")
    if card is not None:
        labels.check_model(card)
    return labels


def _form(name: str) -> Format:
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]
