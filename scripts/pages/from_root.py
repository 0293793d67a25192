"""Which documents of the repository does the site show? Those of its root, its reports and its benchmarks, with links that lead within the site."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from posixpath import normpath, relpath

from pages.markdown import ROOT

DOCUMENTS = {
    "DESIGN.md": "explanation/design.md",
    "CONTRIBUTING.md": "how-to/contribute.md",
    "CHANGELOG.md": "changelog.md",
}
"""Documents of the root, and which pages they are."""

MEASURED = ("reports", "benchmarks/results")
"""Folders whose texts and pictures the site shows as they are."""

NOTEBOOKS = "reports/notebooks"
"""The folder of notebooks, which are pages too."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")
README = re.compile(r"^<!-- readme: (.+) -->$", re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) (.+)$")


def shown() -> dict[str, str]:
    """Every document, notebook and picture that the site shows, by its path in the repository, with its path in the site; and folders that have a page."""
    measured = [path for folder in MEASURED for ending in ("*.md", "*.png") for path in sorted((ROOT / folder).rglob(ending))]
    pages = DOCUMENTS | {name: f"measured/{name}" for name in (path.relative_to(ROOT).as_posix() for path in measured)}
    pages |= {f"{NOTEBOOKS}/{path.name}": f"notebooks/{path.stem}.md" for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb"))}
    folders = {name.removesuffix("/README.md"): page for name, page in pages.items() if name.endswith("/README.md")}
    return pages | folders | {NOTEBOOKS: "notebooks/index.md"}


def relinked(text: str, origin: str, page: str, pages: Mapping[str, str]) -> str:
    """A text with links relative to `origin`, a file of the repository, made relative to `page` of the site; pages of `docs/` are those of the site.

    What the site does not show is named as a path; a link that leads nowhere stays, so that a strict build fails.
    """

    def leading(found: re.Match[str]) -> str:
        picture, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target:
            return found[0]
        path = normpath(f"{Path(origin).parent.as_posix()}/{target}")
        if path in pages or path.startswith("docs/"):
            return f"{picture}[{words}]({relpath(pages.get(path, path.removeprefix('docs/')), Path(page).parent.as_posix())}{anchor})"
        if not (ROOT / path).exists():
            return found[0]
        return words if words.strip("`") == path else f"{words} (`{path}`)"

    return LINK.sub(leading, text)


def page(name: str) -> str:
    """A document of the repository as a page of the site."""
    pages = shown()
    return relinked((ROOT / name).read_text(encoding="utf-8"), name, pages[name], pages)


def section(heading: str, at: str) -> str:
    """What stands under a heading of the README, to be shown on the page `at`. Raises `ValueError` without such a heading."""
    level, lines = 0, []
    fenced = False
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        found = None if fenced else HEADING.match(line)
        if level and found and len(found[1]) <= level:
            break
        if level:
            lines.append(line)
        elif found and found[2] == heading:
            level = len(found[1])
    if not level:
        raise ValueError(f"the README has no heading {heading!r}")
    return relinked("\n".join(lines).strip(), "README.md", at, shown())


def measured() -> str:
    """The index of what was measured: the reports on models, then the benchmarks."""
    parts = ["# What was measured", "Each page ends with the command that made it, the device, the seed and the versions."]
    for folder in dict.fromkeys(Path(name).parent.as_posix() for name in shown() if name.startswith(MEASURED) and name.endswith(".md")):
        texts = [name for name in shown() if Path(name).parent.as_posix() == folder and name.endswith(".md")]
        parts.append(f"## `{folder}`")
        parts.append("\n".join(f"- [{title(name)}]({name})" for name in texts))
    return "\n\n".join(parts)


def title(name: str) -> str:
    """The first heading of a document; with its file's name, where another one has the same heading."""
    own = _heading(name)
    alike = [other for other in shown() if other.endswith(".md") and _heading(other) == own]
    return own if len(alike) == 1 else f"{own} ({Path(name).stem})"


@cache
def _heading(name: str) -> str:
    return next(line.removeprefix("# ") for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.startswith("# "))
