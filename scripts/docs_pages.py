"""Which pages of the docs site are made, and when? A hook of mkdocs: generated pages join those of `docs/`, and markers in these are replaced.

A marker is a line of its own: `<!-- probe: NAME -->`, `<!-- about: DOTTED.NAME -->`, `<!-- meanings: DOTTED.NAME -->`, `<!-- readme: HEADING -->` or
`<!-- table: NAME -->`, a table of `scripts/docs`. What it names must be there, or the build fails. Everything is made from the code as it is.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pages import commands, from_root, modules, notebooks, probes, registries, schemas
from pages.markdown import ROOT, code, found, link, readme, table

from workbench.probes import PROBES

DOCS = ROOT / "docs"
MARKER = re.compile(r"^<!-- (probe|about|meanings|readme|table): (.+) -->$", re.MULTILINE)

GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": commands.reference,
    "reference/probes.md": probes.reference,
    "reference/rules.md": registries.rules,
    "reference/formats.md": registries.formats,
    "reference/reads.md": registries.reads,
    "reference/edits.md": registries.edits,
    "reference/tasks.md": registries.tasks,
    "reference/labels_file.md": schemas.labels,
    "reference/scores_file.md": schemas.scores,
    "reference/given_files.md": schemas.given,
    f"{modules.FOLDER}/index.md": modules.index,
    "notebooks/index.md": notebooks.index,
    "measured/index.md": from_root.measured,
}
"""The pages that registries and files make, by their path in the site."""


def about(path: str, level: int) -> str:
    """A section with all that the docstring of a class or function says."""
    one = found(path)
    return f"{'#' * level} {code(one.__name__)} {{ #about-{one.__name__.lower()} }}\n\n{inspect.getdoc(one)}\n\n{link(one, path)}"


def meanings(path: str) -> str:
    """A table of names and what they mean, from a mapping of the package to texts, or to tuples that hold one."""
    texts = {name: words if isinstance(words, str) else next(part for part in words if isinstance(part, str)) for name, words in found(path).items()}
    return table(("", ""), [(code(name), text) for name, text in texts.items()])


def expanded(text: str, page: str) -> str:
    """A text with its markers replaced, for a page of the site. Raises `ValueError` where one names what is not there."""
    make: Mapping[str, Callable[[str, int], str]] = {
        "probe": lambda name, level: probes.section(PROBES[name], level),
        "about": about,
        "meanings": lambda path, _: meanings(path),
        "readme": lambda heading, _: from_root.section(heading, page),
        "table": lambda name, _: readme().TABLES[name](),
    }
    return MARKER.sub(lambda marker: make[marker[1]](marker[2], 3 if "\n## " in text[: marker.start()] else 2), text)


def left_over() -> list[str]:
    """The probes that no page of `docs/` explains."""
    return probes.left_over(path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md")))


def made() -> dict[str, str]:
    """Every page that is made, by its path in the site."""
    texts = {path: make() for path, make in GENERATED.items()}
    texts |= {f"{modules.FOLDER}/{part}.md": modules.page(part) for part in modules.parts()}
    texts |= {page: from_root.page(name) for name, page in from_root.shown().items() if name.endswith(".md")}
    texts |= {from_root.shown()[name]: notebooks.page(name) for name in notebooks.names()}
    return texts | ({probes.OTHERS: probes.others(names)} if (names := left_over()) else {})


def on_config(config: MkDocsConfig) -> None:
    """Complete the navigation: notebooks, the Python reference, what was measured, and the scores of no family."""
    sections: dict[str, list[Any]] = {
        name: pages for entry in config.nav or [] if isinstance(entry, dict) for name, pages in entry.items() if isinstance(pages, list)
    }
    sections["Reference"].append({"Python": modules.navigation()})
    if left_over():
        sections["Explanation"].append({"Other scores": probes.OTHERS})
    sections["Notebooks"] += [{notebooks.title(name): from_root.shown()[name]} for name in notebooks.names()]
    for name, page in from_root.shown().items():
        if name.endswith(".md") and page.startswith("measured/"):
            sections["Measured"].append({from_root.title(name): page})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made, and the pictures of the notebooks and reports."""
    try:
        for path, text in made().items():
            files.append(File.generated(config, path, content=text))
    except ValueError as error:
        raise PluginError(str(error)) from error
    for path, picture in notebooks.pictures().items():
        files.append(File.generated(config, path, content=picture))
    for name, path in from_root.shown().items():
        if not path.endswith(".md"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the markers of a page of `docs/`, and lead its links into the repository within the site."""
    if page.file.generated_by is not None:
        return markdown
    try:
        at = page.file.src_uri
        return expanded(from_root.relinked(markdown, f"docs/{at}", at, from_root.shown()), at)
    except (ValueError, KeyError) as error:
        raise PluginError(f"{Path(page.file.src_uri)}: {error}") from error
