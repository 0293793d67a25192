"""Do the notebooks run, and is their committed output whole, small and free of what belongs to one machine?"""

import base64
import importlib.util
import io
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browsing import CHROMIUM
from nbclient.exceptions import CellExecutionError
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "reports" / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
MOST, MOST_TOGETHER = 400_000, 2_000_000
"""Bytes of a notebook with its output, and of all of them."""

KINDS = {"image/png", "text/html", "text/markdown", "text/plain"}
"""What GitHub shows of an output."""

LINES = 24
"""Of a cell: ten of code, imports and asserts aside, and what is left of a function or a table."""

drawn = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to draw pictures with; on Debian: apt install chromium")
each_notebook = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])


@pytest.fixture(scope="module")
def script():
    """`scripts/notebooks` as a module."""
    loader = SourceFileLoader("notebooks_script", str(ROOT / "scripts" / "notebooks"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def written(*cells):
    """A notebook of code cells in a file of its own."""
    return nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]))


# ---------------------------------------------------------------- what is committed


def test_the_story_is_whole():
    assert [path.name[:3] for path in FILES] == [f"{number:02d}_" for number in range(1, 9)]


@each_notebook
def test_a_committed_notebook_was_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs(notebook) if output.output_type == "stream"} <= {"stdout"}
    assert {kind for output in outputs(notebook) for kind in output.get("data", {})} <= KINDS
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook)), "nothing to see"


@each_notebook
def test_a_committed_notebook_tells_nothing_of_the_machine(path):
    notebook = nbformat.read(path, as_version=4)
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"/(?:work|tmp|root|home|Users|usr|var)/\S*|[A-Z]:\\\\\S*|0x[0-9a-f]{6,}", text)
    assert notebook.metadata == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    assert not any(cell.metadata for cell in notebook.cells)


@each_notebook
def test_a_committed_notebook_is_small(path):
    assert path.stat().st_size <= MOST
    assert max(cell.source.count("\n") + 1 for cell in code(nbformat.read(path, as_version=4))) <= LINES


def test_all_of_them_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= MOST_TOGETHER


@each_notebook
def test_a_notebook_asserts_what_it_says(path):
    assert sum(cell.source.count("assert ") for cell in code(nbformat.read(path, as_version=4))) >= 4


@each_notebook
def test_every_link_leads_somewhere(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    linked = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert linked
    assert not [target for target in linked if not (FOLDER / target).exists()]


# ---------------------------------------------------------------- how they are run and cleaned


@drawn
@pytest.mark.slow
def test_figures_become_pictures_and_a_notebook_runs_beside_the_reports(script, tmp_path):
    path = tmp_path / "one.ipynb"
    path.write_text(
        written(
            "from pathlib import Path\nPath('left.txt').write_text('x')\nsorted(found.name for found in Path('..').iterdir())",
            "import plotly.graph_objects as go\ngo.Figure(go.Bar(x=['a', 'b'], y=[1, 2]), layout={'height': 300})",
        ),
        encoding="utf-8",
    )
    before = path.read_bytes()
    notebook = script.cleaned(script.executed(path))
    listed, picture = (cell.outputs[0] for cell in notebook.cells)
    assert listed.data["text/plain"] == str(
        sorted(["pictures.py", "notebooks", *(found.name for found in script.REPORTS.iterdir() if found.name != "notebooks")])
    )
    assert list(picture.data) == ["image/png"]
    assert picture.metadata == {"image/png": {"width": script.WIDTH}}
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).size == (2 * script.WIDTH, 600)
    assert [cell.id for cell in notebook.cells] == ["cell-00", "cell-01"]
    assert path.read_bytes() == before
    assert not list(FOLDER.glob("left.txt"))


@pytest.mark.slow
def test_a_claim_that_does_not_hold_is_an_error_and_a_warning_is_refused(script, tmp_path):
    path = tmp_path / "one.ipynb"
    path.write_text(written("loss = 0.1", "assert loss > 0.5"), encoding="utf-8")
    with pytest.raises(CellExecutionError, match=r"assert loss > 0\.5"):
        script.executed(path)
    noisy = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", name="stderr", text="deprecated")])])
    with pytest.raises(ValueError, match="cell 0 wrote to stderr: deprecated"):
        script.cleaned(noisy)


def test_the_richest_form_of_an_output_is_kept(script):
    data = {"text/plain": "table", "text/html": "<table></table>"}
    plain = nbformat.v4.new_output("execute_result", data={"text/plain": "7"}, metadata={"x": 1}, execution_count=1)
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=data), plain], metadata={"execution": {"iopub": "now"}})]
    )
    (cell,) = script.cleaned(notebook).cells
    assert [dict(output.data) for output in cell.outputs] == [{"text/html": "<table></table>"}, {"text/plain": "7"}]
    assert not cell.metadata
    assert not any(output.metadata for output in cell.outputs)


def test_packed_colours_are_those_of_the_picture(script):
    shade = np.linspace(0, 255, 1000).astype(np.uint8)
    picture = np.stack([shade, shade[::-1], np.full_like(shade, 90)], axis=-1)[None].repeat(40, 0)
    plain = io.BytesIO()
    Image.fromarray(picture).save(plain, "PNG")
    packed, width = script._packed(base64.b64encode(plain.getvalue()).decode())
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))).convert("RGB")).astype(int)
    assert width == 500
    assert np.abs(again - picture).max() <= 6


# ---------------------------------------------------------------- the notebooks themselves


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
@drawn
@each_notebook
def test_a_notebook_runs_and_its_claims_hold(script, path):
    """Every claim is an assertion in the notebook; a cell that fails raises here."""
    notebook = script.executed(path)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    committed = code(nbformat.read(path, as_version=4))
    assert [shown(cell) for cell in code(notebook)] == [shown(cell) for cell in committed], "run scripts/notebooks"


def shown(cell):
    """What a cell shows, form by form; warnings are those of a machine."""
    found = [output.get("name") or ("picture" if "image/png" in output.data else "text") for output in cell.outputs]
    return [name for name in found if name != "stderr"]
