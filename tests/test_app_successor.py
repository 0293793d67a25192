"""Does the page on successor heads show what the weights say? Compiled heads that increment and copy, compiled residues, and the default model's verdict."""

import json
from base64 import b64decode

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

from dashboard import opened, words
from incrementing import COPY, INCREMENT, incrementing_model, residue_model

from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.rules import RULES
from workbench.sequences import CLASSES
from workbench.successor import autoencoder, compared, every_head, linear_probe, mod_ten, modal, represent
from workbench.successor.features import Dictionary
from workbench.successor.mod_ten import KINDS, activity
from workbench.views import standing
from workbench.weights import Weights

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
SUCCESSOR = "app_pages/successor.py"
BY_CLASS, MODULO = "Class by class", "Numbers modulo ten"


def shown(model, tmp_path, monkeypatch, scores=None, labels=None, rules=None):
    """A dashboard of a model that is in memory."""
    HeadLabels(model.card, labels or {}, scores or {}, rules or {}).save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    monkeypatch.setenv("WORKBENCH_APP_MODEL", "compiled")
    monkeypatch.setattr("workbench.models.load", lambda name: {"compiled": model}[name])
    return model


def matrix(app):
    """The matrix of the page's first figure as text on both axes, and for each row the column with the darkest blue."""
    (heat,) = json.loads(app.get("plotly_chart")[0].proto.spec)["data"]
    z = heat["z"]
    shade_TC = np.frombuffer(b64decode(z["bdata"]), z["dtype"]).reshape([int(size) for size in z["shape"].split(",")])
    return [heat["x"][column] for column in shade_TC.argmax(1)], heat["y"]


def test_a_head_that_increments_is_found_by_weights_alone(tmp_path, monkeypatch):
    shown(incrementing_model(), tmp_path, monkeypatch)
    app = opened(SUCCESSOR, **{"class": "days"})
    assert app.selectbox(key="head").value == str(INCREMENT)
    # without nulls, the head that suppresses what it looks at passes too: all other words are equal, and ties count
    assert "2 heads of compiled-incrementing are successor heads** by the rule (score ≥ 0.5): L1H0, L1H3; the strongest is L1H0 with 1.000" in words(app)
    assert "comes from the weights just now" in words(app)
    assert "compiled-incrementing-successor.svg" in [button.label for button in app.download_button]
    assert "whose successor W_U·OV·MLP0(W_E) puts first in its class" in words(app)  # what the map shows
    assert f"{INCREMENT} scores **1.000**, rank **1** of 12" in words(app)
    written, looked = matrix(app)
    days = [f" {day}" for day in CLASSES["days"].members]
    assert looked == days
    assert written == days[1:] + days[:1]
    assert set(app.dataframe[0].value["the successor"]) == {"yes"}


def test_head_and_class_are_an_address(tmp_path, monkeypatch):
    shown(incrementing_model(), tmp_path, monkeypatch)
    app = opened(SUCCESSOR, head=str(COPY), **{"class": "number words"})
    assert app.selectbox(key="class").value == "number words"
    written, looked = matrix(app)
    assert written == looked
    table = app.dataframe[0].value
    assert list(table["writes most"]) == list(table["looks at"])
    assert set(table["the successor"]) == {"no", "it has none"}
    assert f"{COPY} scores **0.000**" in words(app)


def test_class_by_class_the_controls_stand_beside(tmp_path, monkeypatch):
    shown(incrementing_model(scrambled=True), tmp_path, monkeypatch)
    table = opened(SUCCESSOR, part=BY_CLASS).dataframe[0].value.set_index("class")
    assert table.loc["all but *", "score"] == 1
    assert table.loc["all but *", "itself"] == 0
    assert table.loc["all but *", "without_mlp0"] < 0.5  # the embeddings lie at wrong dimensions, which the first MLP puts right
    assert list(table.index)[-1] == "roman numerals"


def test_a_class_without_tokens_says_so(tmp_path, monkeypatch):
    shown(incrementing_model(), tmp_path, monkeypatch)
    app = opened(SUCCESSOR, **{"class": "ordinals"})
    assert "No word of ordinals is one token" in words(app)
    assert not app.get("plotly_chart")


def test_a_model_without_words_is_told(tmp_path, monkeypatch):
    from incrementing import word_tokenizer

    model = incrementing_model()
    model.tokenizer = word_tokenizer(["red", "green"])
    shown(model, tmp_path, monkeypatch)
    (error,) = opened(SUCCESSOR).error
    assert error.value.startswith("No class of words has two successive words")


def test_the_score_of_the_labels_goes_before_the_weights(tmp_path, monkeypatch):
    score_LH = np.zeros((2, 6))
    score_LH[0, 3], score_LH[1, 1] = 0.4, 0.2
    rules = {"successor": RULES["successor"]}
    shown(incrementing_model(), tmp_path, monkeypatch, {"successor": score_LH}, rules=rules)
    app = opened(SUCCESSOR, head="L1H1")
    assert "**No head of compiled-incrementing is a successor head** by the rule (score ≥ 0.5, above its null); the strongest is L0H3 with 0.400." in words(app)
    assert "L1H1 scores **0.200**, rank **2** of 12" in words(app)


def test_the_default_model_has_no_successor_head(monkeypatch):
    monkeypatch.setattr("workbench.models.load", lambda name: pytest.fail("a model was loaded before the verdict"))
    from chosen import BUNDLED

    labels = HeadLabels.load(BUNDLED)
    assert labels.heads("successor") == ()
    stands = standing(labels, labels.scores["successor"])
    assert stands.strongest == Head(23, 3)
    assert stands.verdict.startswith(
        "**No head of smollm2-135m is a successor head** by the rule (score ≥ 0.5, above its null); the strongest is L23H3 with 0.149"
    )
    assert stands.rank(Head(23, 3)) == 1
    assert stands.rank(Head(27, 4)) == 2


def test_equal_scores_share_a_rank():
    labels = HeadLabels(incrementing_model().card, {}, {})
    stands = standing(labels, np.array([[1.0] * 3 + [0.5] * 3, [0.0] * 6]))
    assert [stands.rank(Head(0, 2)), stands.rank(Head(0, 3)), stands.rank(Head(1, 0))] == [1, 4, 7]
    assert "3 heads of compiled-incrementing are" not in stands.verdict
    assert "6 heads of compiled-incrementing are successor heads** by the rule (score ≥ 0.5): L0H0, L0H1" in stands.verdict


def test_the_page_tells_what_the_dictionary_found(tmp_path, monkeypatch):
    model = shown(residue_model(), tmp_path, monkeypatch)
    made = mod_ten(Weights(model.weights, model.shape, None, model.tokenizer), "NMF")
    row = made.row
    app = opened(SUCCESSOR, part=MODULO)
    bars, _ = json.loads(app.get("plotly_chart")[2].proto.spec)["data"]
    assert bars["y"] == [f"{name} ({tokens})" for name, tokens in zip(made.transfer["class"], made.transfer["tokens"], strict=True)]
    assert app.segmented_control(key="dictionary").value == "NMF"
    assert f"**{row['modal coverage']:.1%} of the tokens**" in words(app)
    assert len(app.get("plotly_chart")) == 3
    assert not app.error


def test_features_that_are_residues_have_a_diagonal():
    model = residue_model()
    found = represent(Weights(model.weights, model.shape, None, model.tokenizer))
    active_NF = np.eye(10)[found.residue]
    made = Dictionary("by hand", active_NF, np.eye(10, found.x_ND.shape[1]), {"seed": 0, "explained": 1.0})
    modes = modal(made, found)
    assert compared(made, modes, linear_probe(found))["modal coverage"] == 1
    assert modes.feature.tolist() == list(range(10))
    # one token in ten: the mean is 0.1, the spread 0.3
    np.testing.assert_allclose(activity(made, modes, found), np.where(np.eye(10), 0.9 / 0.3, -0.1 / 0.3), rtol=1e-6)


def test_the_comparison_is_that_of_its_parts():
    model = residue_model()
    found = represent(Weights(model.weights, model.shape, None, model.tokenizer))
    made = autoencoder(found)
    modes = modal(made, found)
    row = compared(made, modes, linear_probe(found))
    assert row["modal coverage"] == modes.coverage
    assert row["features"] == 512
    active_RF = activity(made, modes, found)
    three = found.number % 10 == 3
    feature_N = made.active_NF[:, modes.feature[3]]
    assert active_RF[3, 3] == pytest.approx((feature_N[three].mean() - feature_N.mean()) / feature_N.std(), rel=1e-4)


def test_other_dictionaries_are_unknown():
    from workbench.errors import InputError

    model = residue_model()
    with pytest.raises(InputError, match="unknown kind of dictionary 'PCA'"):
        mod_ten(Weights(model.weights, model.shape, None, model.tokenizer), "PCA")
    assert set(KINDS) == {"NMF", "sparse autoencoder"}


def test_every_head_has_its_score():
    model = incrementing_model()
    score_LH = every_head(Weights(model.weights, model.shape, None, model.tokenizer))
    assert score_LH[1, 0] == 1
    assert score_LH[1, 1] == score_LH[0].max() == 0
