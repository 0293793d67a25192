"""Does the site show every notebook as it was committed: its words, its code, and all of its output?"""

import json
import re
from base64 import b64decode

import pytest
from docs_site import ROOT, WITH_MKDOCS

pytestmark = WITH_MKDOCS
NOTEBOOKS = sorted((ROOT / "reports" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def joined(source):
    return "".join(source)


def without_links(text):
    return re.sub(r"\]\([^)]*\)(?: \(`[^`]*`\))?", "", text).replace("[", "")


@each_notebook
def test_words_code_and_output_of_a_notebook_stand_on_its_page_in_their_order(texts, path):
    page = texts[f"notebooks/{path.stem}.md"]
    place, bare = 0, without_links(page)
    for cell in cells(path)[1:]:
        source = joined(cell["source"]).rstrip()
        if cell["cell_type"] == "code":
            place = page.index(f"```python\n{source}\n```", place)
            for output in cell["outputs"]:
                for told in (joined(output.get("text", "")), joined(output.get("data", {}).get("text/plain", "")) if len(output.get("data", {})) == 1 else ""):
                    assert told.rstrip() in page[place:]
        else:
            assert all(line in bare for line in without_links(source).splitlines()), source
    assert page.startswith(joined(cells(path)[0]["source"]).splitlines()[0])
    assert f"`reports/notebooks/{path.name}`" in page


@each_notebook
def test_every_picture_of_a_notebook_is_a_file_that_its_page_shows(hook, texts, path):
    page, pictures = texts[f"notebooks/{path.stem}.md"], hook.notebooks.pictures()
    there = [joined(output["data"]["image/png"]) for cell in cells(path) for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page)
    assert [pictures[f"notebooks/{name}"] for name in shown] == [b64decode(picture) for picture in there]


@each_notebook
def test_html_of_a_notebook_has_no_line_that_ends_or_indents_its_block(texts, path):
    page = texts[f"notebooks/{path.stem}.md"]
    tables = sum("text/html" in output.get("data", {}) for cell in cells(path) for output in cell.get("outputs", []))
    found = re.findall(r'<div class="output" markdown="0">\n(.*?)\n</div>\n\n', page + "\n\n", re.DOTALL)
    assert len(found) == tables
    assert not [line for block in found for line in block.splitlines() if not line or line.startswith(" ")]


def test_notebooks_lead_to_one_another_and_to_reports_within_the_site(texts):
    pages = {name: text for name, text in texts.items() if name.startswith("notebooks/")}
    assert set(pages) == {"notebooks/index.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)}
    assert not [target for text in pages.values() for target in re.findall(r"\]\(([^)]+)\)", text) if target.endswith(".ipynb")]
    assert "](../measured/reports/smollm2-135m/needle_ablation.md)" in pages["notebooks/02_retrieval_heads.md"]
    assert "](02_retrieval_heads.md)" in pages["notebooks/01_first_look.md"]
    assert "[`reports/smollm2-135m`](../measured/reports/smollm2-135m/README.md)" in pages["notebooks/01_first_look.md"]
    assert re.findall(r"^## \[[^\]]+\]\(([^)]+)\)", pages["notebooks/index.md"], re.MULTILINE) == [f"{path.stem}.md" for path in NOTEBOOKS]
