"""How do labels get to others? A folder with a page that explains them and the files of every tool, for the Hugging Face hub or a disk; and back again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import InputError
from workbench.files import write_file, write_text
from workbench.formats import FORMATS, as_bytes
from workbench.labels import HeadLabels
from workbench.results import collect
from workbench.scores import HeadScores
from workbench.sources import CATALOGUE
from workbench.views import report as reports

PACKAGE = "attention-head-workbench"
LABELS, SCORES = "heads.json", "scores.parquet"
"""The names of the labels and of the scores behind them in a published folder; reading takes the first."""

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Published:
    """What was made: the folder, its files by their names in it, and for each format that cannot hold these labels, why. `address` once it is on the hub."""

    folder: Path
    files: tuple[str, ...]
    left_out: dict[str, str]
    address: str = ""


def folder_of(source: Path, to: str, folder: Path) -> Published:
    """Write the folder that would be published as `to`, `owner/name`: README.md, the labels, the scores beside them if they are the same, every other format.

    Raises `InputError` for a name of another form, labels that cannot be read, and a folder that has other files in it.
    """
    check_name(to)
    labels = HeadLabels.load(source)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a new folder")
    files, left_out = [labels.save(folder / LABELS)], {}
    for name in FORMATS:
        if name == "workbench":
            continue
        try:
            suffix, content = as_bytes(labels, name)
        except InputError as error:
            left_out[name] = str(error)
            continue
        files.append(write_file(folder / f"{name}{suffix}", lambda path, content=content: path.write_bytes(content)))
    if (scores := _backing(source, labels)) is not None:
        files.append(scores.save(folder / SCORES))
    report = reports.report_of(collect(folder / LABELS))
    files.append(write_text(folder / "report.html", reports.report_page(report)))
    front = yaml.safe_dump(_facts(labels), sort_keys=False, allow_unicode=True)
    page = "\n\n".join([f"---\n{front}---", _introduction(labels, to), _formats(folder, left_out), reports.markdown(report)])
    files.append(write_text(folder / "README.md", page))
    return Published(folder, tuple(sorted(path.name for path in files)), left_out)


def push(made: Published, to: str, *, private: bool = False) -> Published:
    """Put a folder on the Hugging Face hub as the model repository `owner/name`, which is made if it is not there; returns it with its address.

    Raises `InputError` where the hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(to, private=private, exist_ok=True)
        hub.upload_folder(repo_id=to, folder_path=made.folder, commit_message=f"Head labels by attention-head-workbench {version(PACKAGE)}")
    except Exception as error:  # the hub's client raises what its many parts raise
        raise InputError(f"{to} could not be published: {_reason(error)}; the folder {made.folder} is complete and can be pushed later") from error
    return Published(made.folder, made.files, made.left_out, f"{hub.endpoint}/{to}")


def fetch(name: str, revision: str | None = None) -> HeadLabels:
    """The labels of a published folder: of `owner/name` on the hub, or of a folder on this disk.

    Raises `InputError` for a name of another form, where the hub cannot be reached, and for labels that cannot be read.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise InputError(f"{name} is a folder on this disk, which has no revision {revision}")
        return HeadLabels.load(Path(name) / LABELS)
    check_name(name)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, LABELS, revision=revision)
    except Exception as error:  # the hub's client raises what its many parts raise
        raise InputError(f"the labels of {name} could not be fetched: {_reason(error)}") from error
    return HeadLabels.load(Path(path))


def check_name(name: str) -> None:
    """Raise `InputError` unless this may be the name of a repository on the hub, `owner/name`."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name on the hub; it is owner/name")


def _backing(source: Path, labels: HeadLabels) -> HeadScores | None:
    beside = source.with_name(SCORES)
    scores = HeadScores.load(beside) if beside.is_file() else None
    return scores if scores is not None and labels.backed_by(scores) else None


def _facts(labels: HeadLabels) -> dict[str, Any]:
    """What the hub reads from the page: tags, and the model if it is one of the hub's."""
    base = {"base_model": labels.card.origin} if NAME.fullmatch(labels.card.origin) else {}
    return {**base, "library_name": PACKAGE, "tags": ["attention-heads", "interpretability", "head-labels"]}


def _introduction(labels: HeadLabels, to: str) -> str:
    card, counts = labels.card, ", ".join(f"{count} {name}" for name, count in labels.counts().items())
    revision = f", revision {card.revision}" if card.revision else ""
    return f"""# Attention-head labels of {card.name}

Which of the {card.shape.n_layers} × {card.shape.n_heads} query heads ({card.shape.n_kv_heads} KV heads a layer) do what: {counts or "no head has a label"}.
The labels are of this very model (origin {card.origin}{revision}, fingerprint {card.fingerprint or "unknown"}): `workbench validate` refuses others.

```sh
workbench label --from {to} --out heads.json
workbench validate heads.json --model {card.name if card.name in CATALOGUE else card.origin}
workbench policy heads.json --budget 0.5          # which KV heads keep their whole context
```"""


def _formats(folder: Path, left_out: Mapping[str, str]) -> str:
    rows = ["| file | for | what gets lost |", "|---|---|---|", f"| {LABELS} | {', '.join(FORMATS['workbench'].tools)} | {FORMATS['workbench'].loss} |"]
    made = [(path.name, form) for name, form in FORMATS.items() for path in sorted(folder.glob(f"{name}.*"))]
    rows += [f"| {name} | {', '.join(form.tools)} | {form.loss} |" for name, form in made]
    return "\n".join(["## Files", "", *rows, *(f"\nNot written: {name}, as {why}." for name, why in left_out.items())])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
