"""Do the benchmarks on the known circuit measure what they report, and do their numbers lie where the specification has them?"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.circuits.compiled_ioi import EDGES, all_edges, ioi_model
from workbench.circuits.graph import graph_of
from workbench.circuits.name_prompts import name_pairs

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import circuit_truth_edges as of_edges
import circuit_truth_heads as of_heads
from circuit_truth_picture import sensitivity_figure, sensitivity_rows

CAUSAL = ("patching", "attribution", "ig-inputs", "ig-activations")
WATCHING = ("codes", "codes in pairs", "distinct codes", "norm")


@pytest.fixture(scope="module")
def prompts():
    return name_pairs(12)


@pytest.fixture(scope="module")
def heads(prompts):
    return pd.DataFrame(of_heads.head_rows(5.0, 0.0, 0, prompts))


@pytest.fixture(scope="module")
def edges(prompts):
    methods = ("exact", "EAP", "EAP-IG-inputs, 5")
    return pd.DataFrame([row for seed in (0, 1) for row in of_edges.edge_rows(5.0, 0.0003, seed, prompts, methods)])


def test_causal_methods_find_all_heads_and_what_only_watches_does_not(heads):
    area = heads.set_index("method")["auroc"]
    assert (area[[*CAUSAL]] == 1).all()
    assert (area[[*WATCHING]] < 0.6).all()
    assert set(of_heads.CONTROLS) <= set(area.index)
    assert (heads["f1_released"] >= 0).all()
    table = of_heads.head_table(heads)
    assert table.loc[table["method"] == "patching", "β = 5, leak 0"].item() == "1.00 / 1.00 / 1.00"


def test_at_hard_attention_single_patches_miss_the_backup_and_pairs_find_it(prompts):
    model = ioi_model(20.0)
    backup = of_heads.Head(3, 0)
    pairs, beside = of_heads.co_ablation(model, prompts).values()
    assert of_heads.writers_of(model, prompts) == of_heads.MOVERS
    assert np.abs(of_heads.activation_patching(model, prompts).mean_LH[backup.layer, backup.index]) < 1e-3
    assert beside[backup.layer, backup.index] == pytest.approx(3, abs=0.05)
    for score_LH in (pairs, beside):
        assert of_heads.recovery(score_LH.astype(float).round(of_heads.DIGITS), of_heads.TRUTH_LH).auroc == 1
    spots = of_heads.blind_spots(prompts).set_index("replaced")["change"]
    assert spots["the backup"] == pytest.approx(0, abs=1e-3)
    assert spots["both movers"] == pytest.approx(-4, abs=0.05)
    assert spots["both movers and the backup"] == pytest.approx(-7, abs=0.05)
    assert spots.filter(like="→").abs().max() < 1e-2
    assert spots["both at once"] < -5


def test_edges_are_those_of_the_design_and_scores_theirs():
    graph = graph_of(ioi_model())
    named = [graph.name(*place) for place in of_edges.places(graph)]
    assert len(set(named)) == 672
    assert named[0] == "L0H0->L1H0.q"
    assert sum(of_edges.TRUTH_E) == len(EDGES) == 19
    assert {named[place] for place in np.flatnonzero(of_edges.TRUTH_E)} >= {"L0H0->L1G2.k", "L3H0->logits", "L1H4->L2H3.q"}
    assert len(all_edges()) == len(named)


@pytest.mark.slow
def test_average_precision_of_edges_lies_within_the_specifications_spread(edges):
    """Means of two seeds, against the mean of ten ± 2.5 of their standard deviations; exact effects and integrated ones beat the plain gradient."""
    precision = edges.groupby("method")["average_precision"].mean()
    for method, found in precision.items():
        mean, spread, _ = of_edges.SPECIFICATION[5, 0.0003][method]
        assert abs(found - mean) <= 2.5 * spread, method
    assert precision["exact"] > precision["EAP"]
    assert precision["EAP-IG-inputs, 5"] > precision["EAP"]
    exact = edges[edges["method"] == "exact"]
    assert (exact["pearson"] > 0.999).all()
    assert (edges["accuracy"] == 1).all()
    assert exact["largest_other"].between(0.005, 0.06).all()


@pytest.mark.slow
def test_tables_tell_what_was_measured_and_what_departs(edges):
    table = of_edges.edge_table(edges)
    assert table["seeds"].tolist() == [2]
    assert table["exact"].item().endswith("*0.965±0.036 (0.995)*")
    far = edges.assign(average_precision=0.1)
    assert len(of_edges.departures(far)) == 3
    assert "below 0.965 by 24.0" in of_edges.departures(far)[0]
    assert of_edges.pearson_table(edges)["EAP"].item() != "nan"


def test_the_picture_has_a_point_per_seed(prompts, monkeypatch):
    monkeypatch.setattr("circuit_truth_picture.EXAMPLES", (5,))
    monkeypatch.setattr("circuit_truth_picture.LATENTS", (20,))
    monkeypatch.setattr("circuit_truth_picture.USUAL", {"examples": 5, "latents": 20})
    rows = sensitivity_rows(prompts, of_heads.TRUTH_LH, range(2))
    assert len(rows) == 2 * 2 * 2
    assert set(rows["pairs"]) == {10, 12}
    figure = sensitivity_figure(rows, 1.0)
    assert len(figure.data[0].x) == 2
    assert rows["auroc"].between(0, 1).all()
