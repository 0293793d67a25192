"""Do the dashboard's pictures and messages hold the very numbers?"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.errors import InputError
from workbench.formats import FORMATS, Export, as_bytes, read
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.looking import without
from workbench.rules import Rule
from workbench.scores import HeadScores, agreement, rank_agreement, summarise
from workbench.tiny import random_model
from workbench.views import (
    agreement_figure,
    distribution_figure,
    following_figure,
    head_canvas,
    head_table,
    lost_figure,
    pair_figure,
    panel,
    script,
    token_canvas,
)

SCORE_LH = np.array([[0.0, 0.1, 0.2, 0.3], [0.5, 0.6, 0.9, 0.8]])


@pytest.fixture
def labels():
    return HeadLabels(
        ModelCard("toy", "memory", "feedbeef", Shape(2, 4, 2, 8, 32)),
        {Head(1, 2): ("retrieval", "induction"), Head(1, 3): ("retrieval",), Head(0, 0): ("copying",)},
        {"retrieval": SCORE_LH, "induction": SCORE_LH**2, "copying": 1 - SCORE_LH, "local": SCORE_LH[::-1]},
        {name: Rule(name, name, 0.7, "here", "chance") for name in ("retrieval", "induction", "copying")},
        {"retrieval": {"status": "ok"}},
    )


def opened(message):
    length = int.from_bytes(message[:4], "little")
    assert length % 4 == 0
    return json.loads(message[4 : 4 + length]), np.frombuffer(message[4 + length :], "<f4")


def test_a_head_map_carries_scores_labels_and_marks(labels):
    header, values = opened(head_canvas(labels, panel(labels, "retrieval"), Head(1, 1)))
    np.testing.assert_allclose(values.reshape(2, 4), SCORE_LH, rtol=1e-6)
    assert (header["layers"], header["heads"], header["title"], header["chosen"]) == (2, 4, "retrieval", [1, 1])
    assert header["marked"] == [[1, 2], [1, 3]]
    assert header["labels"] == ["copying", "", "", "", "", "", "retrieval, induction", "retrieval"]
    assert header["shades"][0] == "#00224e"
    assert opened(head_canvas(labels, panel(labels)))[0]["chosen"] is None


def test_a_token_map_carries_the_pattern_and_what_is_received():
    pattern = np.tril(np.ones((3, 3)))
    header, values = opened(token_canvas(Head(0, 1), ("a", " ü", "\n"), pattern, np.array([0.5, 0.25, 0.125]), 2))
    assert header == {"tokens": ["a", " ü", "\n"], "head": "L0H1", "pinned": 2}
    np.testing.assert_array_equal(values[:9].reshape(3, 3), pattern)
    np.testing.assert_array_equal(values[9:], [0.5, 0.25, 0.125])


@pytest.mark.parametrize("name", ["head_map", "token_map"])
def test_scripts_are_modules_that_fetch_nothing(name):
    code, style = script(name)
    assert "export default function" in code
    assert not [word for word in ("http", "import ", "fetch(", "url(", "innerHTML") if word in code + style]


def test_a_distribution_has_every_head_once_and_the_threshold(labels):
    figure = distribution_figure(labels, "retrieval")
    shown = {trace.name: sorted(trace.x) for trace in figure.data}
    assert shown == {"others": [0.0, 0.1, 0.2, 0.3, 0.5, 0.6], "labelled retrieval": [0.8, 0.9]}
    assert [line.x0 for line in figure.layout.shapes] == [0.7]
    assert not distribution_figure(labels, "local").layout.shapes
    with pytest.raises(InputError, match="unknown probe"):
        distribution_figure(labels, "retrieving")


def test_nulls_are_an_outline_and_intervals_stand_in_the_table(labels):
    rows = pd.concat([summarise(probe, labels.card, np.stack([score_LH] * 2), score_LH / 2) for probe, score_LH in labels.scores.items()])
    scores = HeadScores(labels.card, rows, {}, {})
    figure = distribution_figure(labels, "retrieval", scores.matrix("retrieval", "null"))
    np.testing.assert_array_equal(figure.data[-1].x, SCORE_LH.ravel() / 2)
    row = head_table(labels, Head(1, 2), scores).iloc[0]
    assert (row["probe"], row["interval"], row["null"]) == ("retrieval", "0.900 – 0.900", 0.45)
    assert "null" not in head_table(labels, Head(1, 2))
    assert labels.backed_by(scores)
    assert not labels.backed_by(HeadScores(labels.card, rows.assign(score=0.5), {}, {}))
    assert not labels.backed_by(HeadScores(labels.card, rows[rows["probe"] == "local"], {}, {}))
    assert not labels.backed_by(HeadScores(replace(labels.card, fingerprint="beef"), rows, {}, {}))


def test_two_probes_show_every_head_once(labels):
    figure = pair_figure(labels, "retrieval", "induction")
    heads = {trace.name: [row[0] for row in trace.customdata] for trace in figure.data}
    assert heads["labelled by both"] == ["L1H2"]
    assert heads["labelled by retrieval"] == ["L1H3"]
    assert sum(map(len, heads.values())) == 8
    for trace in figure.data:
        for (name, _), x, y in zip(trace.customdata, trace.x, trace.y, strict=True):
            head = Head.parse(name)
            assert (x, y) == (SCORE_LH[head.layer, head.index], SCORE_LH[head.layer, head.index] ** 2)
    with pytest.raises(InputError, match="unknown probe 'other'"):
        pair_figure(labels, "retrieval", "other")


def test_agreement_is_a_symmetric_matrix(labels):
    table = agreement(labels.scores, 3)
    figure = agreement_figure(table)
    rho = np.array(figure.data[0].z)
    np.testing.assert_array_equal(rho, rho.T)
    assert list(figure.data[0].x) == list(labels.scores)
    assert rho[0, 1] == pytest.approx(1)
    assert rho[0, 2] == pytest.approx(-1)
    assert rho[0, 3] == pytest.approx(rank_agreement(SCORE_LH, SCORE_LH[::-1])["spearman"])
    assert np.array(figure.data[0].customdata)[0, 1] == 1


def test_the_table_of_labels_has_a_row_per_head(labels):
    table = labels.table
    assert list(table["head"]) == [str(head) for head in labels.card.shape.heads()]
    assert list(table["kv_head"]) == [0, 0, 1, 1] * 2
    assert table.loc[6, "labels"] == "retrieval, induction"
    np.testing.assert_array_equal(table["induction"], (SCORE_LH**2).ravel())


def test_the_table_of_a_head_says_why(labels):
    table = head_table(labels, Head(1, 2))
    assert list(table["probe"][:2]) == ["retrieval", "induction"]
    assert table.loc[0].to_dict() == {
        "probe": "retrieval", "score": 0.9, "rank": 1, "label": "retrieval", "rule": "score ≥ 0.7", "source": "here", "chance": "chance", "evidence": "ok",
    }  # fmt: skip
    copying = table[table["probe"] == "copying"].iloc[0]
    assert (copying["label"], copying["rank"], copying["evidence"]) == ("", 8, "not in the file")


def test_the_figures_of_an_ablation_hold_its_numbers():
    result = without(random_model("llama"), "abcabc", [Head(1, 0)])
    figure = following_figure(result.following, "L1H0")
    assert [trace.name for trace in figure.data] == ["with all heads", "without L1H0", "without others of the same layers"]
    np.testing.assert_array_equal(figure.data[1].x, result.following["without"])
    assert list(figure.layout.yaxis.ticktext) == [repr(token) for token in result.following["token"]]
    np.testing.assert_array_equal(lost_figure(result.lost, "L1H0").data[0].y, result.lost["whole"] - result.lost["without"])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_export_is_what_is_written(name, tmp_path):
    shape = Shape(3, 4, 2, 8, 32)
    scores = {"retrieval": np.random.default_rng(0).random((3, 4))}
    kinds = ("retrieval", "razor_echo", "razor_induction", "query_focused_retrieval")
    labels = HeadLabels(ModelCard("toy", "memory", "", shape), {Head(1, 2): kinds}, scores)
    export = Export(probe="retrieval") if "probe" in FORMATS[name].uses else Export()
    suffix, content = as_bytes(labels, name, export)
    target = tmp_path / f"heads{suffix}"
    target.write_bytes(content)
    if suffix == ".zip":
        import zipfile

        target = tmp_path / "folder"
        with zipfile.ZipFile(tmp_path / "heads.zip") as archive:
            archive.extractall(target)
    assert read(target, name, labels.card).card.shape == shape


def test_labels_are_parsed_from_bytes(labels, tmp_path):
    content = labels.save(tmp_path / "heads.json").read_bytes()
    assert HeadLabels.parse(content, "mine").to_json() == labels.to_json()
    as_parquet = as_bytes(labels, "parquet", Export())[1]
    with pytest.raises(InputError, match="does not tell its 'model'; labels as Parquet are read by `workbench convert`"):
        HeadScores.parse(as_parquet, "mine")
    for wrong, words in (
        (b"\xff\xfe", "mine is not JSON"),
        (b"[]", "mine: not head labels"),
        (b'{"a": NaN}', "mine is not JSON"),
        (b"[" * 100_000, "mine is not JSON"),
    ):
        with pytest.raises(InputError, match=words):
            HeadLabels.parse(wrong, "mine")
