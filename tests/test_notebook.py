"""Do results show themselves in a notebook, small and without scripts, and are the maps there the dashboard's own?"""

import subprocess
import sys

import numpy as np
import pytest
from results import CARD, circuit, labels, scores

import workbench as wb
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.looking import look
from workbench.prompts import Prompts
from workbench.reads import Mass, Peak, Received
from workbench.tiny import random_model
from workbench.views.canvas import head_canvas, token_canvas
from workbench.views.heads import panel
from workbench.views.inline import inline
from workbench.views.widgets import NO_ANYWIDGET, head_widget, module, token_widget

MEANS = ((0.8, 0.5, 0.0), (0.0, 0.3, 0.09))


@pytest.fixture(scope="module")
def seen():
    prompts = Prompts(np.random.default_rng(0).integers(3, 250, (2, 20)))
    return wb.capture(random_model("llama"), prompts, [Mass(first=4), Peak(), Received()])


@pytest.fixture
def shown(seen):
    return {"labels": labels(scores(MEANS)), "scores": scores(MEANS), "circuit": circuit(), "capture": seen}


@pytest.mark.parametrize("kind", ["labels", "scores", "circuit", "capture"])
def test_a_result_shows_itself_small_and_without_scripts(shown, kind):
    page = shown[kind]._repr_html_()
    assert shown[kind].card.name in page
    assert len(page) < 30_000
    assert "<script" not in page
    assert "src=" not in page
    assert page.count("<div") == page.count("</div")
    assert page.count("<td") == page.count("</td")


def test_labels_show_their_heads_strongest_first(shown):
    page = shown["labels"]._repr_html_()
    assert "score ≥ 0.1" in page
    assert "L0H0, L0H1, L1H1" in page
    assert page.count("<title>L") == 3
    many = HeadLabels(CARD, dict.fromkeys(CARD.shape.heads(), ("all",)), {})
    assert "L0H0, L0H1, L0H2, L1H0, L1H1 and 1 more" in many._repr_html_()


def test_labels_show_the_scores_that_they_were_made_from_and_a_file_of_them_says_that_it_has_none(shown, tmp_path):
    given = shown["labels"]
    row = given.measured.top(1, "retrieval").iloc[0]
    page = given._repr_html_()
    assert ">0.800</td>" in page
    assert f"{row.ci_low:.3f} – {row.ci_high:.3f}" in page
    assert "no table of scores" not in page
    read = HeadLabels.load(given.save(tmp_path / "heads.json"))
    assert read.measured is None
    assert "no table of scores" in read._repr_html_()
    assert "95% interval" not in read._repr_html_().replace("95% intervals", "")
    others = HeadLabels(CARD, given.labels, {"retrieval": np.eye(2, 3)}, given.rules, measured=given.measured)
    assert "has other numbers than the labels for retrieval" in others._repr_html_()
    assert f"{row.ci_low:.3f}" not in others._repr_html_()


def test_scores_show_the_best_head_with_interval_and_null(shown):
    page, best = shown["scores"]._repr_html_(), shown["scores"].top(1, "retrieval").iloc[0]
    assert f"{best.ci_low:.3f} – {best.ci_high:.3f}" in page
    assert ">0.800<" in page
    assert "1 caveat<" in page
    lacking = scores()
    lacking = type(lacking)(CARD, lacking.table.head(0), {"retrieval": {"status": "insufficient evidence", "tests": 5, "valid": 1}}, {})
    assert "insufficient evidence" in lacking._repr_html_()


def test_a_circuit_shows_its_faithfulness_and_heads(shown):
    page = shown["circuit"]._repr_html_()
    assert "Circuit for ioi" in page
    assert ">0.960<" in page
    assert "<title>L0H1: -1.000</title>" in page


def test_a_capture_shows_what_was_read_in_which_shape(seen):
    page = seen._repr_html_()
    assert "2 prompts of 20 tokens" in page
    assert "2 × 2 × 6 × 20" in page
    low, mean, high = (f"{float(value):.3f}" for value in (seen[Mass(first=4)].min(), seen[Mass(first=4)].mean(), seen[Mass(first=4)].max()))
    assert all(f">{number}<" in page for number in (low, mean, high))
    assert "Peak(rows=None).prob" in page


def test_what_a_file_says_is_never_markup():
    wrong = HeadLabels(CARD, {Head(0, 0): ("<img src=x>",)}, {"<b>": np.eye(2, 3)}, {}, {}, {"preset": "<i>"})
    page = wrong._repr_html_()
    assert "<img" not in page
    assert "<i>" not in page


def test_results_load_no_view_before_a_notebook_asks():
    code = "import sys; from workbench import labels, scores; print(sorted({'plotly', 'workbench.views'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_the_widget_has_the_message_and_the_script_of_the_dashboard():
    pytest.importorskip("anywidget")
    found = labels(scores(MEANS))
    made = head_widget(found, "retrieval", Head(1, 1))
    assert made.data == head_canvas(found, panel(found, "retrieval"), Head(1, 1))
    assert made.head == ""
    assert made.trait_metadata("head", "sync")
    assert made.trait_metadata("data", "sync")
    assert str(made._esm) == module("head_map")
    text = module("head_map")
    assert text.count("export default") == 1
    assert text.startswith(inline("head_map"))
    with pytest.raises(InputError, match="unknown probe"):
        head_widget(found, "nothing")


def test_a_text_is_a_widget_too():
    pytest.importorskip("anywidget")
    found = look(random_model("llama"), "abcabc", Head(1, 4))
    made = token_widget(found, pinned=2)
    assert made.data == token_canvas(found.head, found.tokens, found.pattern_QK, found.received_K, 2)
    assert made.row == 2
    assert token_widget(found).row == -1


def test_without_anywidget_it_says_what_to_do(monkeypatch):
    from workbench.views import widgets

    monkeypatch.setattr(widgets, "find_spec", lambda name: None)
    widgets._widget.cache_clear()
    with pytest.raises(InputError, match="pip install"):
        head_widget(labels())
    widgets._widget.cache_clear()
    assert "anywidget" in NO_ANYWIDGET
