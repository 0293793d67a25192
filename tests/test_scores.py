"""Are means, intervals, rankings and agreements the numbers that one gets by hand, and does nothing bad get in?"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.errors import InputError
from workbench.heads import ModelCard, Shape
from workbench.scores import COLUMNS, HeadScores, bootstrap_interval, rank_agreement, summarise

CARD = ModelCard("toy", "memory", "abc", Shape(2, 4, 2, 8, 32))
NULL_LH = np.full((2, 4), 0.125)


def samples(*score_LH):
    return np.array(score_LH, float).reshape(len(score_LH), 2, 4)


def scores_of(**score_LH):
    rows = [summarise(probe, CARD, samples(score), NULL_LH) for probe, score in score_LH.items()]
    evidence = {probe: {"status": "ok"} for probe in score_LH}
    return HeadScores(CARD, pd.concat(rows, ignore_index=True), evidence, {"seed": 0})


FIRST = [0.1, 0.9, 0.3, 0.9, 0.0, 0.2, 0.8, 0.4]


def test_a_summary_has_the_mean_the_deviation_and_who_it_is():
    table = summarise("retrieval", CARD, samples(range(8), range(2, 10)), np.arange(8.0).reshape(2, 4))
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 8
    row = table.iloc[6]
    assert (row.model, row.layer, row["head"], row.kv_head, row.probe, row.n) == ("toy", 1, 2, 1, "retrieval", 2)
    assert row.score == 7.0
    assert row["std"] == pytest.approx(np.sqrt(2))
    assert row.null == 6.0
    assert table["kv_head"].tolist() == [0, 0, 1, 1] * 2
    assert table["layer"].tolist() == [0] * 4 + [1] * 4
    assert table["head"].tolist() == [0, 1, 2, 3] * 2


def test_constant_samples_have_no_spread_and_an_interval_of_one_point():
    table = summarise("p", CARD, np.full((5, 2, 4), 0.25), NULL_LH)
    assert (table["std"] == 0).all()
    np.testing.assert_allclose(table[["score", "ci_low", "ci_high"]], 0.25)


@pytest.mark.filterwarnings("error")
def test_one_sample_has_a_score_but_no_spread_and_no_interval():
    table = summarise("p", CARD, samples(FIRST), NULL_LH)
    assert table["score"].tolist() == FIRST
    assert (table["n"] == 1).all()
    assert table[["std", "ci_low", "ci_high"]].isna().all(axis=None)
    assert (table[["std", "ci_low", "ci_high"]].dtypes == np.float64).all()


def test_two_samples_have_an_interval():
    mean = np.arange(8.0)
    table = summarise("p", CARD, samples([0.0] * 8, 2 * mean), NULL_LH)
    stretch = 2**0.5 * 12.7062 / 1.95996  # Student's quantile at one degree of freedom over the normal one; the percentiles are 0 and 2 × mean
    np.testing.assert_allclose(table["ci_low"], mean - mean * stretch, rtol=1e-4)
    np.testing.assert_allclose(table["ci_high"], mean + mean * stretch, rtol=1e-4)


def test_the_interval_of_coin_flips_is_that_of_the_binomial():
    n = 100
    flips_NLH = np.zeros((n, 1, 2))
    flips_NLH[:30, 0, 0] = 1
    flips_NLH[:, 0, 1] = np.arange(n) % 2
    low, high = bootstrap_interval(flips_NLH, draws=4000)
    for head, p in enumerate((0.3, 0.5)):
        margin = 1.96 * np.sqrt(p * (1 - p) / n)
        assert low[0, head] == pytest.approx(p - margin, abs=0.015)
        assert high[0, head] == pytest.approx(p + margin, abs=0.015)


def test_a_lower_level_is_a_narrower_interval_and_a_seed_repeats_it():
    score_NLH = np.random.default_rng(1).random((20, 2, 4))
    low, high = bootstrap_interval(score_NLH, seed=3)
    again = bootstrap_interval(score_NLH, seed=3)
    np.testing.assert_array_equal((low, high), again)
    assert not np.array_equal(low, bootstrap_interval(score_NLH, seed=4)[0])
    low_half, high_half = bootstrap_interval(score_NLH, level=0.5, seed=3)
    assert (low < low_half).all()
    assert (high > high_half).all()
    assert (low_half < score_NLH.mean(axis=0)).all()
    assert (score_NLH.mean(axis=0) < high_half).all()


def test_the_seed_of_a_summary_is_used_and_zero_unless_given():
    score_NLH = np.random.default_rng(1).random((20, 2, 4))
    default = summarise("p", CARD, score_NLH, NULL_LH)
    np.testing.assert_array_equal(default["ci_low"], bootstrap_interval(score_NLH, level=0.95, draws=1000, seed=0)[0].ravel())
    np.testing.assert_array_equal(bootstrap_interval(score_NLH), bootstrap_interval(score_NLH, level=0.95, draws=1000, seed=0))
    table = summarise("p", CARD, score_NLH, NULL_LH, seed=5)
    np.testing.assert_array_equal(table["ci_low"], bootstrap_interval(score_NLH, seed=5)[0].ravel())
    np.testing.assert_array_equal(table["ci_high"], bootstrap_interval(score_NLH, seed=5)[1].ravel())


def test_a_matrix_is_layers_by_heads_whatever_the_order_of_the_rows():
    scores = scores_of(a=FIRST, b=FIRST[::-1])
    shuffled = HeadScores(CARD, scores.table.sample(frac=1, random_state=0), {}, {})
    for these in (scores, shuffled):
        np.testing.assert_array_equal(these.matrix("a"), np.reshape(FIRST, (2, 4)))
        np.testing.assert_array_equal(these.matrix("b"), np.reshape(FIRST[::-1], (2, 4)))
        np.testing.assert_array_equal(these.matrix("a", "null"), NULL_LH)
    assert np.isnan(scores.matrix("a", "std")).all()
    assert scores.probes == ("a", "b")


def test_unknown_probes_and_columns_are_refused_with_those_that_exist():
    scores = scores_of(b=FIRST, a=FIRST)
    with pytest.raises(InputError, match="unknown probe 'c'; there are: a, b"):
        scores.matrix("c")
    with pytest.raises(InputError, match="unknown column 'layer'; there are: ci_high, ci_low, n, null, score, std"):
        scores.matrix("a", "layer")


def test_a_probe_without_evidence_says_so():
    scores = HeadScores(CARD, scores_of(a=FIRST).table, {"b": {"status": "insufficient evidence"}}, {})
    with pytest.raises(InputError, match="b: insufficient evidence"):
        scores.top(1, "b")


def test_the_top_is_sorted_named_and_ties_go_to_the_earlier_head():
    top = scores_of(retrieval=FIRST, other=FIRST[::-1]).top(4)
    assert top["name"].tolist() == ["L0H1", "L0H3", "L1H2", "L1H3"]
    assert top["score"].tolist() == [0.9, 0.9, 0.8, 0.4]
    assert top.index.tolist() == [0, 1, 2, 3]
    assert len(scores_of(retrieval=FIRST).top(99)) == 8
    assert len(scores_of(retrieval=FIRST).top()) == 8
    assert scores_of(other=FIRST[::-1]).top(1, "other")["name"].tolist() == ["L1H0"]


def test_the_top_is_ten_unless_asked():
    card = ModelCard("wide", "memory", "", Shape(1, 12, 12, 8, 96))
    tables = [summarise(probe, card, np.arange(12.0).reshape(1, 1, 12), np.zeros((1, 12))) for probe in ("retrieval", "other")]
    scores = HeadScores(card, pd.concat(tables, ignore_index=True), {}, {})
    assert scores.top()["head"].tolist() == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert list(scores.agreement().columns) == ["probe", "other", "spearman", "top10_overlap"]
    assert set(rank_agreement(np.arange(12.0), np.arange(12.0))) == {"spearman", "top10_overlap"}


def test_ties_of_the_top_go_to_the_earlier_layer_then_to_the_earlier_head():
    top = HeadScores(CARD, scores_of(retrieval=[0, 1, 0, 1, 1, 0, 1, 0]).table.iloc[::-1], {}, {}).top(5)
    assert top["name"].tolist() == ["L0H1", "L0H3", "L1H0", "L1H2", "L0H0"]
    assert tuple(top.columns) == (*COLUMNS, "name")


def test_of_many_ties_the_earlier_heads_are_the_top():
    tied = np.tile([1.0, 0.5], 32)
    first = (np.arange(64) < 20) * tied
    assert rank_agreement(tied, first)["top10_overlap"] == 1.0
    assert rank_agreement(tied, np.arange(64.0)[::-1])["top10_overlap"] == 0.5


def test_agreement_of_two_rankings_by_hand():
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    result = rank_agreement(a, b, 2)
    assert result["spearman"] == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert result["top2_overlap"] == 0.5
    assert set(result) == {"spearman", "top2_overlap"}
    assert rank_agreement(a, -a, 2) == {"spearman": pytest.approx(-1), "top2_overlap": 0.0}
    assert rank_agreement(a.reshape(1, 5), 10 * a**3, 2) == {"spearman": pytest.approx(1), "top2_overlap": 1.0}


def test_ties_share_their_mean_rank():
    result = rank_agreement(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), 1)
    assert result["spearman"] == pytest.approx(np.sqrt(3) / 2)


def test_two_different_values_are_enough_for_a_rank_correlation():
    assert rank_agreement(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 5.0, 5.0]))["spearman"] == pytest.approx(1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("constant", ["first", "second"])
def test_a_constant_score_has_no_rank_correlation(constant):
    one, other = np.ones(4), np.arange(4.0)
    result = rank_agreement(one, other) if constant == "first" else rank_agreement(other, one)
    assert np.isnan(result["spearman"])


def test_more_top_heads_than_heads_are_all_heads():
    assert rank_agreement(np.arange(3.0), np.arange(3.0)[::-1])["top3_overlap"] == 1


def test_agreement_compares_each_two_probes_once():
    table = scores_of(a=FIRST, b=FIRST, c=[-score for score in FIRST]).agreement(3)
    assert list(zip(table["probe"], table["other"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    np.testing.assert_allclose(table["spearman"], [1, -1, -1])
    assert table["top3_overlap"].tolist() == [1, 0, 0]
    assert "top8_overlap" in scores_of(a=FIRST, b=FIRST).agreement().columns


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused_with_model_probe_layer_and_head(value):
    table = scores_of(induction=FIRST).table
    table.loc[6, "score"] = value
    with pytest.raises(InputError, match=f"toy, L1H2: the induction score is {value}"):
        HeadScores(CARD, table, {}, {})


def test_scores_may_be_numbers_of_any_type():
    table = scores_of(a=FIRST).table.astype({"score": object})
    assert HeadScores(CARD, table, {}, {}).matrix("a").ravel().tolist() == FIRST


def test_a_table_needs_its_columns():
    table = scores_of(a=FIRST).table.drop(columns=["null", "n"])
    with pytest.raises(InputError, match=r"a score table needs the columns model, layer, head, .*, null; missing: n, null"):
        HeadScores(CARD, table, {}, {})


def test_scores_are_values_nobody_can_write_into():
    table = scores_of(a=FIRST).table
    evidence, provenance = {"a": {"n": 1}}, {"seed": 0}
    scores: Any = HeadScores(CARD, table, evidence, provenance)
    for given_out in (table, scores.table, scores.top(3, "a")):
        given_out.loc[:, "score"] = 7.0
    scores.matrix("a")[:] = 9.0
    evidence["b"] = {}
    provenance["seed"] = 1
    assert scores.matrix("a").ravel().tolist() == FIRST
    assert dict(scores.evidence) == {"a": {"n": 1}}
    assert scores.provenance["seed"] == 0
    for mapping in (scores.evidence, scores.provenance):
        with pytest.raises(TypeError):
            mapping["new"] = {}
    with pytest.raises(AttributeError):
        scores.rows = table


def test_a_saved_table_is_read_back_with_all_that_made_it(tmp_path):
    scores = scores_of(a=FIRST, b=FIRST[::-1])
    scores = HeadScores(scores.card, scores.rows, {"a": {"status": "ok", "tests": 1}}, {"seed": 3})
    again = HeadScores.load(scores.save(tmp_path / "scores.parquet"))
    assert (again.card, again.evidence["a"], again.provenance["seed"]) == (scores.card, {"status": "ok", "tests": 1}, 3)
    pd.testing.assert_frame_equal(again.table, scores.table, check_dtype=False)


def test_what_is_no_table_of_scores_is_refused_by_name(tmp_path):
    scores = scores_of(a=FIRST)
    with pytest.raises(InputError, match="cannot read"):
        HeadScores.load(tmp_path / "none.parquet")
    for content in (b"", b"PAR1", b"{}"):
        with pytest.raises(InputError, match="mine is no table of scores"):
            HeadScores.parse(content, "mine")
    scores.table.to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(InputError, match=r"bare\.parquet is no table of scores"):
        HeadScores.load(tmp_path / "bare.parquet")
    for rows in (scores.table.iloc[1:], scores.table.assign(head=0), scores.table.assign(layer=9)):
        path = HeadScores(scores.card, rows, {}, {}).save(tmp_path / "some.parquet")
        with pytest.raises(InputError, match="a has not one row for each head"):
            HeadScores.load(path)
    path = HeadScores(scores.card, scores.table, {}, {}).save(tmp_path / "some.parquet")
    pd.read_parquet(path).drop(columns="null").to_parquet(path)
    with pytest.raises(InputError, match="needs the columns"):
        HeadScores.load(path)
