"""Can a user score a probe of her own, without adding a file? As it is, held to a model whose answer is known; what could mislead is refused."""

from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from workbench.compiled import induction_model
from workbench.given import from_patterns
from workbench.groups import plan
from workbench.probes import PROBES
from workbench.reads import Mass
from workbench.recipes import RandomTokens

READ = Mass(at="self")


def to_itself(capture):
    """Attention to the row's own token, on random tokens: the mean over all rows but the first. 0–1."""
    return capture.over_rows(READ, skip=1)


OWN = wb.Probe(
    name="to_itself",
    score=to_itself,
    ideal=lambda prompts, b: np.eye(prompts.length),
    citation="a test",
    null="uniform attention",
    reads=(READ,),
    recipes={"quick": RandomTokens(length=32, count=4)},
)


@pytest.fixture(scope="module")
def model():
    return induction_model()


@pytest.fixture(scope="module")
def scores(model):
    return wb.score(model, ["induction", OWN])


def test_a_probe_of_ones_own_finds_the_heads_that_are_known(scores):
    score_LH = scores.matrix(OWN.name)
    known = [(0, 3), (1, 1), (1, 3)]  # the idle heads that attend to themselves; those that attend uniformly have 1/(row + 1)
    assert scores.probes == ("induction", "to_itself")
    assert min(score_LH[head] for head in known) > 0.99
    assert sorted(map(tuple, np.argwhere(score_LH > 0.5).tolist())) == known
    assert score_LH[0, 0] == pytest.approx(np.mean([1 / row for row in range(2, 33)]), abs=1e-5)
    np.testing.assert_allclose(scores.matrix(OWN.name, "null"), score_LH[0, 0], atol=1e-5)


def test_its_ideal_head_scores_one(model):
    (prompts,) = OWN.recipe("quick").build(model, 0)
    pattern = np.stack([OWN.ideal(prompts, b) for b in range(prompts.count)])[:, None, None]
    np.testing.assert_allclose(OWN.score(from_patterns(model.card, prompts, pattern, OWN.reads)), 1, atol=1e-6)


def test_a_rule_of_ones_own_labels_by_it(scores, tmp_path):
    rule = wb.Rule("to_itself", "to_itself", 0.9, "a test", "0.1: uniform attention")
    labels = wb.label(scores, {**wb.RULES, rule.label: rule})
    assert [str(head) for head in labels.heads("to_itself")] == ["L0H3", "L1H1", "L1H3"]
    assert [str(head) for head in labels.heads("induction")] == ["L1H2"]
    read = wb.HeadLabels.load(labels.save(tmp_path / "heads.json"))
    assert read.heads("to_itself") == labels.heads("to_itself")


def test_it_shares_the_pass_of_a_probe_with_the_same_prompts():
    one = replace(OWN, recipes=PROBES["attention_sink_random"].recipes)
    (group,) = plan(["attention_sink_random", one, one])
    assert [member.name for member in group.probes] == ["attention_sink_random", "to_itself"]
    assert set(group.reads) == {*PROBES["attention_sink_random"].reads, READ}


@pytest.mark.parametrize("asked", [[replace(OWN, name="induction")], [OWN, replace(OWN)], ["induction", replace(OWN, name="induction")]])
def test_two_probes_of_one_name_are_refused(asked):
    with pytest.raises(wb.InputError, match=r"another probe that is called (induction|to_itself); give yours"):
        plan(asked)


def test_a_listed_probe_may_be_given_as_it_is():
    assert plan([PROBES["induction"]]) == plan(["induction"])


def test_its_results_are_not_kept_as_they_would_not_tell_that_its_code_changed(model, tmp_path):
    with pytest.raises(wb.InputError, match="results of to_itself cannot be kept"):
        wb.score(model, ["induction", OWN], runs=tmp_path)
    assert not list(tmp_path.iterdir())
