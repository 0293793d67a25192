"""Do the pictures show the very scores, the labelled heads and the provenance, and do they need no network?"""

import re

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.rules import Rule
from workbench.views import evidence_text, head_map, panel, panels, save_html, text_map

SHAPE = Shape(2, 5, 1, 8, 40)
CARD = ModelCard("toy <1B>", "memory", "feedbeef", SHAPE)
SCORE_LH = np.array([[0.0, 0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8, 1.0]])


def rule(label, probe):
    return Rule(label, probe, 0.7, "here", "none")


@pytest.fixture
def labels():
    return HeadLabels(
        CARD,
        {Head(1, 2): ("strong",), Head(1, 3): ("strong", "other"), Head(0, 4): ("given",)},
        {"copying": SCORE_LH, "retrieval": SCORE_LH[:, ::-1]},
        {"strong": rule("strong", "copying"), "other": rule("other", "copying")},
        {
            "copying": {"status": "ok", "tests": 4, "valid": 4, "dead": 0, "counted": 4},
            "reasoning": {"status": "insufficient evidence", "tests": 9, "valid": 2, "dead": 1, "counted": 1},
        },
        {"seed": 7, "dtype": "float32", "device": "cpu", "versions": {"torch": "2.13.0"}},
    )


def titles(figure):
    return [figure.layout.title.text, *(button.args[1]["title.text"] for menu in figure.layout.updatemenus for button in menu.buttons)]


def test_the_figure_holds_the_scores_of_every_probe(labels):
    maps = {trace.name: trace for trace in head_map(labels).data if trace.type == "heatmap"}
    assert list(maps) == ["retrieval", "copying", "given"]
    for probe, score_LH in labels.scores.items():
        np.testing.assert_array_equal(maps[probe].z, score_LH)
    np.testing.assert_array_equal(np.argwhere(maps["given"].z), [[0, 4]])


def test_retrieval_is_shown_first_unless_another_is_asked_for(labels):
    for figure, first in ((head_map(labels), "retrieval"), (head_map(labels, "copying"), "copying"), (head_map(labels, label="other"), "copying")):
        assert [trace.name for trace in figure.data if trace.visible and trace.type == "heatmap"] == [first]
        assert first in figure.layout.title.text


def test_choosing_a_probe_shows_its_two_traces_and_its_title(labels):
    figure = head_map(labels)
    maps = [trace.name for trace in figure.data if trace.type == "heatmap"]
    for number, button in enumerate(figure.layout.updatemenus[0].buttons):
        visible, title = button.args[0]["visible"], button.args[1]["title.text"]
        assert np.flatnonzero(visible).tolist() == [2 * number, 2 * number + 1]
        assert button.label == maps[number]
        assert maps[number] in title


def test_the_labelled_heads_carry_a_dot(labels):
    figure = head_map(labels, "copying")
    assert sorted(zip(figure.data[1].y, figure.data[1].x, strict=True)) == [(1, 2), (1, 3)]
    alone = head_map(labels, label="other")
    assert list(zip(alone.data[1].y, alone.data[1].x, strict=True)) == [(1, 3)]
    assert "1 head labelled other" in alone.layout.title.text


def test_hovering_tells_head_score_and_labels(labels):
    trace = head_map(labels, "copying").data[0]
    assert "L%{y}H%{x}" in trace.hovertemplate
    assert trace.customdata[1][3] == "strong, other"
    assert trace.customdata[0][0] == "none"


def test_axes_and_title_are_named_and_markup_in_names_is_only_text(labels):
    figure = head_map(labels)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")
    assert all("toy &lt;1B&gt;" in title for title in titles(figure))


def test_a_constant_map_still_has_a_range():
    zero = HeadLabels(CARD, {}, {"copying": np.zeros((2, 5))})
    trace = head_map(zero).data[0]
    assert (trace.zmin, trace.zmax) == (0, 1)
    assert not head_map(zero).layout.updatemenus


def test_unknown_names_and_empty_labels_are_refused(labels):
    with pytest.raises(InputError, match="copying, retrieval"):
        panel(labels, probe="induction")
    with pytest.raises(InputError, match="given, other, strong"):
        panel(labels, label="induction")
    with pytest.raises(InputError, match="not both"):
        panel(labels, "copying", "strong")
    with pytest.raises(InputError, match="nothing to show"):
        panel(HeadLabels(CARD, {}, {}))
    assert panels(HeadLabels(CARD, {}, {})) == []


def test_the_page_needs_no_network_and_tells_the_provenance(labels, tmp_path):
    page = save_html(head_map(labels), tmp_path / "map.html").read_text(encoding="utf-8")
    assert not re.findall(r"""src\s*=\s*["'](?:https?:)?//""", page)
    assert not re.findall(r"<link|href|url\(", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert len(page) > 3_000_000  # plotly.js itself
    footer = page[page.index("<footer>") :]
    for fact in ("toy &lt;1B&gt;", "feedbeef", "seed", "7", "float32", "cpu", "2.13.0", "2 layers × 5 query heads, 1 KV heads"):
        assert fact in footer
    assert "insufficient evidence: the model passed 2 of 9 tests" in footer


def test_evidence_in_words():
    whole = {"status": "ok", "tests": 4, "valid": 4, "dead": 0, "counted": 4}
    assert evidence_text(whole) == "ok"
    assert evidence_text({**whole, "valid": 3, "counted": 3}) == "the model passed 3 of 4 tests"
    assert evidence_text({**whole, "dead": 1, "counted": 3}) == "the model passed 4 of 4 tests, and in 1 of these no head found anything"
    assert evidence_text({**whole, "status": "insufficient evidence", "valid": 0, "counted": 0}) == "insufficient evidence: the model passed 0 of 4 tests"
    assert evidence_text({}) == "ok"


def test_a_text_map_as_one_draws_it_by_hand():
    text = text_map(SCORE_LH, title="toy", marked=[Head(1, 4)], meaning="strong", width=26).plain
    assert text.splitlines() == [
        "toy",
        "head  0   1   2   3   4",
        "L0    ··· ··· ░░░ ░░░ ▒▒▒ ",
        "L1    ▒▒▒ ▓▓▓ ▓▓▓ ███ ███*",
        "· 0.00  ░ 0.20  ▒ 0.40  ▓ 0.60  █ 0.80  up to 1.00",
        "* 1 head: strong",
    ]


def test_a_wide_model_is_drawn_in_blocks_that_fit():
    score_LH = np.random.default_rng(0).random((3, 128))
    text = text_map(score_LH, width=80).plain
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.startswith("head") for line in text.splitlines()) == 4
    cells = "".join(line[6:] for line in text.splitlines() if line.startswith("L2 "))
    assert len(cells) == 2 * 128
    assert [int(cells[2 * head] == "█") for head in range(128)] == [int(step) for step in (score_LH[2] - score_LH.min()) >= 0.8 * np.ptp(score_LH)]


def test_the_numbers_above_the_cells_stand_where_their_heads_are():
    header = text_map(np.eye(32), width=80).plain.splitlines()[0]
    for match in re.finditer(r"\d+", header):
        assert match.start() == 6 + 2 * int(match[0])


def test_a_constant_text_map_is_all_lowest():
    text = text_map(np.full((1, 2), 0.25), width=80).plain
    assert text.splitlines()[1:] == ["L0    ··· ··· ", "·  up to 0.25"]
