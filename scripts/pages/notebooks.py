"""How do the notebooks stand in the site? As pages with their code, and with the output that they were committed with."""

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages.from_root import relinked, shown
from pages.markdown import ROOT

Outputs = Iterator[tuple[str, dict[str, Any]]]


def names() -> list[str]:
    """The notebooks in their order, by their path in the repository."""
    return [name for name in shown() if name.endswith(".ipynb")]


def cells(name: str) -> list[dict[str, Any]]:
    """The cells of a notebook, as its file has them."""
    return json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]


def page(name: str) -> str:
    """A notebook as a page of the site, its links as the site has them, and below the title where it comes from."""
    at = shown()[name]
    first, *rest = (_cell(cell, number, Path(at).stem) for number, cell in enumerate(cells(name)))
    heading, _, words = first.partition("\n\n")
    origin = f"*`{name}`, with the output of its last run.*"
    return relinked("\n\n".join([heading, origin, words, *rest]), name, at, shown()) + "\n"


def title(name: str) -> str:
    """The heading of a notebook."""
    return _text(cells(name)[0]["source"]).splitlines()[0].removeprefix("# ")


def pictures() -> dict[str, bytes]:
    """Every picture that a notebook puts out, by its path in the site."""
    made = {}
    for name in names():
        for number, cell in enumerate(cells(name)):
            for file, data in _pictures(cell, number, Path(name).stem):
                made[str(Path(shown()[name]).with_name(file))] = b64decode(_text(data["image/png"]))
    return made


def index() -> str:
    """The list of notebooks, each with the sentences that it begins with."""
    parts = ["# Notebooks", "The story on the default model, end to end; the tests run every one of them. `make notebooks` renews their output."]
    for name in names():
        at = shown()[name]
        words = _text(cells(name)[0]["source"]).split("\n\n")[1]
        parts.append(f"## [{title(name)}]({Path(at).name})\n\n{relinked(words, name, at, shown())}")
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any], number: int, stem: str) -> str:
    source = _text(cell["source"]).rstrip()
    if cell["cell_type"] != "code":
        return source
    shown_as = dict(_pictures(cell, number, stem))
    drawn = [f"![What the code above draws]({file}){{ .output width={data['width']} }}" for file, data in shown_as.items()]
    return "\n\n".join([f"```python\n{source}\n```", *(words for output in cell["outputs"] if (words := _output(output))), *drawn])


def _output(output: dict[str, Any]) -> str:
    """What one output says, but for pictures: its richest form of HTML, Markdown and text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return ""
    if "text/html" in data:
        lines = (line.strip() for line in _text(data["text/html"]).splitlines())  # an empty or indented line would end the block
        return '<div class="output" markdown="0">\n' + "\n".join(filter(None, lines)) + "\n</div>"
    if "text/markdown" in data:
        return _text(data["text/markdown"])
    return f"```text\n{_text(data['text/plain']).rstrip()}\n```"


def _pictures(cell: dict[str, Any], number: int, stem: str) -> Outputs:
    """The pictures of a cell: the name of each file, with its data and how many pixels wide it is shown."""
    for place, output in enumerate(cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            wide = output.get("metadata", {}).get("image/png", {}).get("width", "")
            yield f"{stem}_{number}_{place}.png", {**output["data"], "width": wide}


def _text(source: str | list[str]) -> str:
    """A text, which a notebook may keep as lines."""
    return source if isinstance(source, str) else "".join(source)
