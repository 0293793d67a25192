"""Does the dashboard open a sweep, cell by cell, and one cell beside another?"""

import pytest
from dashboard import opened, words

from workbench import measure
from workbench.batches import Asked
from workbench.executors import Wanted
from workbench.heads import Head
from workbench.scores import rank_agreement
from workbench.sweeping import Cell, Dataset
from workbench.tiny import random_model

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A sweep of two models that differ in one head's score; the scores of the second."""
    dataset, made = Dataset(tmp_path / "sweep"), {}
    for seed, name in enumerate(("base", "changed")):
        cell = Cell(Wanted(name), Asked(("previous_token",)), "plain", "none", None)
        made[name] = measure.score(random_model("llama", seed=seed), ["previous_token"])
        dataset.save(cell, made[name])
        dataset.tell(cell, {"state": "done"})
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "sweep"))
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return made


def strongest(scores):
    top = scores.top(1, "previous_token").iloc[0]
    return str(Head(int(top["layer"]), int(top["head"]))), top["score"]


def test_cells_are_chosen_and_their_scores_shown(swept):
    app = opened(view="Table")
    box = app.selectbox(key="cell")
    assert box.options == ["base, plain, seed 0", "changed, plain, seed 0"]
    assert box.value == "base, plain, seed 0"
    first = app.dataframe[0].value
    box.select("changed, plain, seed 0").run()
    assert not app.exception
    second = app.dataframe[0].value
    for table, name in ((first, "base"), (second, "changed")):
        head, score = strongest(swept[name])
        row = table[table["head"] == head].iloc[0]
        assert row["previous_token"] == pytest.approx(score)


def test_an_address_opens_its_cell_beside_another(swept):
    app = opened(cell="changed, plain, seed 0", view="Side by side", second="of the sweep: base, plain, seed 0")
    assert app.selectbox(key="cell").value == "changed, plain, seed 0"
    assert app.selectbox(key="second").options == ["none", "of the sweep: base, plain, seed 0", "of the sweep: changed, plain, seed 0"]
    mine, base = (swept[name].matrix("previous_token") for name in ("changed", "base"))
    rank = rank_agreement(mine, base, 10)["spearman"]
    assert f"{rank:.2f}" in " ".join([words(app), *(f"{metric.value}" for metric in app.metric)])


def test_a_folder_without_finished_cells_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path))
    assert "has no finished cell of a sweep" in words(opened())
