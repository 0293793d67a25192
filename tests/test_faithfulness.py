"""Is faithfulness what its definition says, with intervals that hold, on a model whose circuit is known?"""

from dataclasses import replace

import numpy as np
import pytest

from workbench.circuits import attribution, faithfulness, patching
from workbench.circuits.compiled_ioi import MOVERS, ROLES, ioi_model
from workbench.circuits.name_prompts import name_pairs


@pytest.fixture(scope="module")
def model():
    return ioi_model(beta=5.0)


@pytest.fixture(scope="module")
def names():
    return name_pairs(64, 0)


def test_curves_begin_at_nothing_and_end_at_everything(model, names):
    ranking = patching.activation_patching(model, names).ranked()
    heads = faithfulness.head_curve(model, names, ranking, budgets=(0.0, 7 / 24, 1.0))
    assert heads["faithfulness"].tolist() == pytest.approx([0, 1, 1], abs=1e-3)
    scores = attribution.edge_attribution(model, names, "eap-ig-inputs")
    curve = faithfulness.edge_curve(model, names, scores, budgets=(0.0, 0.5, 1.0))
    assert curve["faithfulness"].iloc[[0, 2]].tolist() == pytest.approx([0, 1], abs=1e-3)
    assert faithfulness.areas([0, 0.5, 1], [0, 1, 1]) == {"cpr": 0.75, "cmd": 0.25}


def test_faithfulness_is_a_ratio_of_means_and_refused_without_a_difference():
    full, empty = np.array([4.0, 2.0, 3.0]), np.zeros(3)
    assert faithfulness.faithfulness(np.array([2.0, 2.0, 2.0]), empty, full)[0] == pytest.approx(6 / 9)
    assert faithfulness.recovered(np.array([2.0, 2.0, 2.0]), empty, full)[0] == pytest.approx((0.5 + 1 + 2 / 3) / 3)
    assert np.isnan(faithfulness.faithfulness(empty, empty, np.array([5.0, -5.0, 0.1]))[0])
    assert np.isnan(faithfulness.recovered(empty, empty, np.array([5.0, -5.0, 0.1]))).all()


def test_the_interval_of_a_ratio_of_means_is_that_of_its_linearisation():
    rng = np.random.default_rng(0)
    whole = rng.normal(4, 1, 2000)
    part = 0.7 * whole + rng.normal(0, 1, 2000)
    share, low, high = faithfulness.share(part, whole)
    error = (part - share * whole).std(ddof=1) / 2000**0.5 / whole.mean()
    assert (low - share) / error == pytest.approx(-1.96, abs=0.15)
    assert (high - share) / error == pytest.approx(1.96, abs=0.15)


def test_the_worst_of_several_sets_is_the_one_farthest_from_0():
    apart = np.array([[1.0, 1.0, 1.0], [-2.0, -4.0, -3.0]])
    worst, low, high = faithfulness._farthest(apart, 0)
    assert worst == 3
    assert 2 <= low < 3 < high <= 4
    assert faithfulness._farthest(apart[:0], 0) == (0, 0, 0)


def test_every_number_lies_in_its_interval(model, names):
    """The circuit without a mover and a part of inhibition: neither whole nor nothing."""
    found = faithfulness.evaluate(model, names, [head for head in ROLES if head != MOVERS[0]], ablations=("resample", "mean"), sets=4)
    row = found.table.set_index("ablation").loc["resample"]
    for name in ("faithfulness", "complement_faithfulness", "recovered", "kl", "incompleteness"):
        prefix = "" if name == "faithfulness" else f"{name}_"
        assert row[f"{prefix}low"] <= row[name] <= row[f"{prefix}high"], name
    assert 0 < row["kl_low"] < row["kl_high"]
    assert (found.minimality["low"] <= found.minimality["drop"]).all()
    assert (found.minimality["drop"] <= found.minimality["high"]).all()
    assert found.table.set_index("ablation").loc["mean", "mean_over"] == np.unique(names.pairs[0].templates, return_counts=True)[1].min()


def test_the_mean_is_over_few_prompts_where_templates_are_many(model, names):
    (pairs,) = names.pairs
    items = tuple(replace(item, template=f"{min(number, 2)}") for number, item in enumerate(pairs.items))
    several = replace(names, pairs=(replace(pairs, items=items),))
    found = faithfulness.evaluate(model, several, list(ROLES), ablations=("mean", "zero"), sets=0)
    assert found.table["mean_over"].tolist() == pytest.approx([1, np.nan], nan_ok=True)
