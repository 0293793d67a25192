"""Two sets of labels beside each other: what is known of two that differ in one place, and of two shapes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench.comparing import common, compared
from workbench.errors import InputError
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.views import depth_figure, difference_canvas, versus_figure

SCORES = np.random.default_rng(0).random((3, 4))


HEADS = (Head(0, 1), Head(2, 3))


def labels(score=SCORES, heads=HEADS, name="one"):
    card = ModelCard(name, "memory", name, Shape(len(score), score.shape[1], 2, 8, 32))
    return HeadLabels(card, dict.fromkeys(heads, ("local",)), {"local": score, "induction": score})


def test_the_same_file_is_the_same():
    found = compared(labels(), labels(), "local")
    assert not found.difference_LH.any()
    assert found.agreement == {"spearman": pytest.approx(1), "top10_overlap": 1}
    assert found.labels.to_dict("records") == [{"label": "local", "first": 2, "second": 2, "both": 2, "jaccard": 1}]


def test_one_head_that_differs_is_found():
    other = SCORES.copy()
    other[1, 2] += 0.5
    first, second = labels(), labels(other, (Head(2, 3), Head(1, 2)), "two")
    found = compared(first, second, "local")
    assert np.argwhere(found.difference_LH).tolist() == [[1, 2]]
    assert found.difference_LH[1, 2] == pytest.approx(0.5)
    assert found.agreement["spearman"] == pytest.approx(stats.spearmanr(SCORES.ravel(), other.ravel()).statistic)
    assert found.labels.iloc[0].to_dict() == {"label": "local", "first": 2, "second": 2, "both": 1, "jaccard": pytest.approx(1 / 3)}
    drawn = versus_figure(first, second, found, ("a", "b"))
    differing = next(trace for trace in drawn.data if trace.name.startswith("other labels"))
    assert {row[0] for row in differing.customdata} == {"L0H1", "L1H2"}
    assert dict(differing.customdata)["L1H2"] == "no label → local"
    assert b'"marked": [[0, 1], [1, 2]]' in difference_canvas(first, second, found)


def test_a_label_that_only_one_has_counts_0_in_the_other():
    found = compared(labels(), labels(heads=(), name="two"), "local")
    assert found.labels.to_dict("records") == [{"label": "local", "first": 2, "second": 0, "both": 0, "jaccard": 0}]


def test_other_shapes_are_compared_by_depth_and_label_only():
    first, second = labels(), labels(np.eye(5, 4), (Head(4, 0),), "deep")
    found = compared(first, second, "local")
    assert found.difference_LH is None
    assert found.agreement == {}
    assert found.labels[["first", "second"]].to_numpy().tolist() == [[2, 1]]
    assert found.labels[["both", "jaccard"]].isna().all(axis=None)
    assert found.depth[found.depth["which"] == 1]["depth"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.depth[found.depth["which"] == 1]["mean"].tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25, 0])
    assert found.depth[found.depth["which"] == 0]["highest"].tolist() == pytest.approx(SCORES.max(1).tolist())
    assert len(depth_figure(found, ("a", "b")).data) == 4


def test_probes_that_are_not_there_are_named():
    only = replace(labels(), scores={"other": SCORES})
    with pytest.raises(InputError, match="no probe in common"):
        common(labels(), only)
    assert common(labels(), labels()) == ["local", "induction"]
    with pytest.raises(InputError, match="induction, local"):
        compared(labels(), labels(), "x")


def test_the_page_compares_a_file_that_a_job_made(tmp_path, monkeypatch):
    """What a job wrote is found in the address; another shape is compared by depth, a file that cannot be read is a sentence."""
    pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")
    from dashboard import opened, words

    from workbench import jobs

    labels().save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    assert "Give a second labels or scores file" in words(opened(view="Side by side"))

    class Done(jobs.Job):
        state = "done"

    folder = tmp_path / "runs" / "jobs" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"title": "Labels of two", "arguments": [], "time": 0}', encoding="utf-8")
    labels(SCORES[::-1].copy(), name="two").save(folder / "heads.json")
    monkeypatch.setattr("workbench.jobs.find", lambda root: [Done(folder)])
    made = "Labels of two: heads.json (0123456789abcdef)"
    app = opened(view="Side by side", second=made)
    assert f"Orange: higher in two ({made})" in words(app)
    assert f"spearman {stats.spearmanr(SCORES.ravel(), SCORES[::-1].ravel()).statistic:.2f}" in words(app)
    labels(np.eye(5, 4), (), "deep").save(folder / "heads.json")
    assert "other numbers of layers or heads" in words(opened(view="Side by side", second=made))
    (folder / "heads.json").write_text("[]", encoding="utf-8")
    app = opened(view="Side by side", second=made)
    assert "not head labels" in app.error[0].value
