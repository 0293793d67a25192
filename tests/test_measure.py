"""Does a measurement share its passes, keep its results, count its evidence and tell its nulls?"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench import batches, groups, runs
from workbench.captures import Capture, capture
from workbench.conversations import Conversations
from workbench.documents import DocumentSearch
from workbench.edits import Ablate
from workbench.errors import InputError
from workbench.given import from_patterns
from workbench.groups import Group, Way, plan
from workbench.heads import Head
from workbench.labels import label
from workbench.measure import score
from workbench.needles import NeedleTests
from workbench.options import Options
from workbench.probes import PROBES, Probe
from workbench.prompts import Prompts
from workbench.reads import Mass, NextToken, NextTokenValue, Peak, Received
from workbench.recipes import NaturalText, RepeatedTokens
from workbench.scores import bootstrap_interval
from workbench.tiny import random_model

SENTENCES = [f"In year {year} the river rose by {year * 7 % 91} feet." for year in range(150)]


@pytest.fixture(scope="module")
def hay(tmp_path_factory):
    path = tmp_path_factory.mktemp("hay") / "hay.txt"
    path.write_text(" ".join(SENTENCES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@dataclass(frozen=True)
class Small:
    """Batches of random tokens with no tokenizer, no control, and rows `answer`."""

    count: int = 4
    batch: int = 1
    controlled: bool = False

    def build(self, model, seed):
        rng = np.random.default_rng(seed)
        rows = np.tile(np.arange(8, 11), (self.batch, 1))
        batches = [rng.integers(3, 200, (self.batch, 12)) for _ in range(self.count // self.batch)]
        return [Prompts(ids, {}, {"answer": rows}, facts=({"number": number},) * self.batch) for number, ids in enumerate(batches)]

    def control(self):
        return Small(2, 1) if self.controlled else None

    def lengths(self, model):
        return [12] * self.count


READ = Mass(at="previous")


def previous(evidence):
    """Attention one back."""
    return evidence[READ][..., 1:].mean(-1)


def last(evidence):
    """Attention one back in the last row."""
    return evidence[READ][..., -1]


def no_ideal():
    """No head."""


FIRST = Probe("first", previous, no_ideal, "none", "uniform", (READ,), {"quick": Small()})
SECOND = replace(FIRST, name="second", score=last)


@pytest.fixture
def known(monkeypatch):
    """Let `measure` know just these probes."""

    def use(*probes):
        table = {member.name: member for member in probes}
        monkeypatch.setattr(groups, "PROBES", table)
        monkeypatch.setattr(groups, "probe", table.__getitem__)
        return list(table)

    return use


class Calls:
    """Counts the passes."""

    def __init__(self, monkeypatch):
        self.seen: list[Any] = []
        real = {name: getattr(batches, name) for name in ("capture", "generate")}
        for name, function in real.items():
            monkeypatch.setattr(batches, name, self._counting(name, function))

    def _counting(self, name, function):
        def run(model, prompts, *args, **kwargs):
            self.seen.append((name, prompts.fingerprint))
            return function(model, prompts, *args, **kwargs)

        return run


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def same(a, b):
    pd.testing.assert_frame_equal(a.table, b.table, check_exact=True)
    assert dict(a.evidence) == dict(b.evidence)


# ---------------------------------------------------------------- groups and options


def test_probes_with_the_same_prompts_form_a_group():
    groups = plan()
    assert sorted(member.name for group in groups for member in group.probes) == sorted(PROBES)
    names = {tuple(sorted(member.name for member in group.probes)) for group in groups}
    sinks = ("attention_sink", "later_sink_absolute", "later_sink_alpha_n", "later_sink_uniform", "no_op", "no_op_mass", "no_op_update", "sink_anywhere")
    assert sinks in names
    assert ("entropy", "local", "previous_token", "streaming") in names
    assert ("duplicate_token", "induction") in names
    assert ("razor_echo", "razor_induction") in names
    assert ("retrieval", "semantic_retrieval") in names
    assert len(groups) == 11
    assert ("copy_suppression", "copying", "name_mover", "successor") in names
    assert [group.recipe for group in groups if PROBES["copying"] in group.probes] == [None]


def test_a_group_reads_each_read_once_and_has_its_probes_names():
    (group,) = plan(["retrieval", "semantic_retrieval", "retrieval"])
    assert group.name == "retrieval, semantic_retrieval"
    assert group.reads == (Peak(rows="answer"), NextToken(rows="answer"), Mass(span="needle", rows="answer"))


def test_the_preset_chooses_the_prompts():
    quick, paper = (PROBES["attention_sink"].recipe(preset) for preset in ("quick", "paper"))
    assert quick != paper
    assert plan(["attention_sink"])[0].recipe == plan(["attention_sink"], "quick")[0].recipe == quick
    assert plan(["attention_sink"], "paper")[0].recipe == paper


def test_unknown_probes_and_presets_list_those_that_exist(model):
    with pytest.raises(InputError, match="unknown probe 'sink'; there are: attention_sink, attention_sink_random, "):
        score(model, ["induction", "sink"])
    with pytest.raises(InputError, match="unknown preset 'fast'; there are: paper, quick"):
        score(model, ["induction"], preset="fast")


def test_options_change_the_recipes_that_they_concern(hay, tmp_path):
    options = Options(lengths=(500,), depths=(0.1, 0.9), needles=tmp_path, haystack=hay, template="none")
    recipe = NeedleTests(per_cell=3, teacher_forced=False)
    expected = NeedleTests(tmp_path, (500,), (0.1, 0.9), 3, hay, "none", teacher_forced=False)
    assert options.apply(recipe) == expected
    assert Options().apply(recipe) == recipe
    assert options.apply(DocumentSearch(documents=2)) == DocumentSearch(tmp_path, documents=2, haystack=hay)
    assert options.apply(NaturalText(length=7)) == NaturalText(length=7, text=hay)
    assert options.apply(RepeatedTokens(length=7)) == RepeatedTokens(length=7)
    assert Options(lengths=(500,), needles=tmp_path).apply(NaturalText()) == NaturalText()


def test_reasoning_needles_stay_as_they_need_a_distractor_each(hay, tmp_path):
    options = Options(needles=tmp_path, haystack=hay)
    assert options.apply(NeedleTests("reasoning")) == NeedleTests("reasoning", haystack=hay)
    assert options.apply(NeedleTests("needles")) == NeedleTests(tmp_path, haystack=hay)


def test_options_reach_the_plan():
    assert plan(["retrieval"], options=Options(lengths=(500,)))[0].recipe == replace(PROBES["retrieval"].recipe("quick"), lengths_=(500,))


# ---------------------------------------------------------------- passes


def test_probes_of_a_group_share_one_pass_per_batch(model, known, calls):
    result = score(model, known(FIRST, SECOND))
    assert len(calls.seen) == 4
    assert len(set(calls.seen)) == 4
    assert result.probes == ("first", "second")


def test_scores_are_those_of_the_probe_on_each_batch(model, known):
    result = score(model, known(replace(FIRST, recipes={"quick": Small(4, 2)}), SECOND), seed=3)
    batches = Small(4, 2).build(model, 3)
    sample_NLH = np.concatenate([previous(capture(model, prompts, [READ])) for prompts in batches])
    np.testing.assert_allclose(result.matrix("first"), sample_NLH.mean(0), atol=1e-7)
    np.testing.assert_allclose(result.matrix("first", "std"), sample_NLH.std(0, ddof=1), atol=1e-7)
    low, high = bootstrap_interval(sample_NLH, seed=3)
    np.testing.assert_allclose(result.matrix("first", "ci_low"), low, atol=1e-7)
    np.testing.assert_allclose(result.matrix("first", "ci_high"), high, atol=1e-7)
    assert (result.table["n"] == 4).all()


def test_the_seed_chooses_the_prompts(model, known):
    names = known(FIRST)
    same(score(model, names, seed=1), score(model, names, seed=1))
    assert (score(model, names, seed=1).matrix("first") != score(model, names, seed=2).matrix("first")).all()


def test_edits_are_made_and_recorded(model, known):
    edit = Ablate((Head(0, 2),), "uniform")
    plain, edited = score(model, known(FIRST)), score(model, ["first"], edits=[edit])
    uniform = np.mean([1 / (row + 1) for row in range(1, 12)])
    assert edited.matrix("first")[0, 2] == pytest.approx(uniform, abs=1e-6)
    assert abs(plain.matrix("first")[0, 2] - uniform) > 1e-3
    assert edited.provenance["edits"] == [edit.describe()]


def test_provenance_tells_what_made_the_scores(model, known):
    result = score(model, known(FIRST), seed=5)
    assert dict(result.provenance) == {
        "preset": "quick", "seed": 5, "dtype": "float32", "device": "cpu", "implementation": "torch", "edits": [], "versions": runs.versions(),
    }  # fmt: skip
    assert result.evidence["first"]["prompts"] == str(Small())
    assert result.card == model.card


def test_progress_hears_of_every_batch_and_of_the_null(model, known):
    heard = []
    score(model, known(replace(FIRST, recipes={"quick": Small(3, 1, controlled=True)})), progress=lambda *news: heard.append(news))
    assert heard == [("first", 1, 5), ("first", 2, 5), ("first", 3, 5), ("first (null)", 4, 5), ("first (null)", 5, 5)]


def test_progress_counts_the_batches_of_all_probes(model):
    heard = []
    score(model, ["induction", "copying"], progress=lambda *news: heard.append(news))
    names = [what for what, _, _ in heard]
    assert set(names) == {"induction", "induction (null)", "copying"}
    assert [(done, total) for _, done, total in heard] == [(number + 1, len(heard)) for number in range(len(heard))]


def test_all_probes_on_a_tiny_model(model, hay, monkeypatch):
    def shrunk(recipe):
        if isinstance(recipe, NeedleTests):
            return replace(recipe, lengths_=(450,), depths=(0.5,), per_cell=1, haystack=hay)
        if isinstance(recipe, DocumentSearch):
            return replace(recipe, count=1, documents=2, haystack=hay)
        if isinstance(recipe, Conversations):
            return recipe
        sizes = {"length": min(recipe.length, 80)} | ({"text": hay} if isinstance(recipe, NaturalText) else {"length": 10})
        return replace(recipe, count=2, batch=2, **sizes)

    small = {name: replace(member, recipes={key: shrunk(recipe) for key, recipe in member.recipes.items()}) for name, member in PROBES.items()}
    monkeypatch.setattr(groups, "probe", small.__getitem__)
    result = score(model)
    unheard = {"retrieval", "semantic_retrieval", "reasoning_retrieval", "name_mover"}  # bytes are no names
    unheard |= {"user_attention"}  # without a chat template
    assert set(result.probes) == set(PROBES) - unheard
    assert {name for name, facts in result.evidence.items() if facts["status"] != "ok"} == unheard
    for name in result.probes:
        assert result.matrix(name).shape == (2, 6)
        assert np.isfinite(result.matrix(name, "null")).all()


# ---------------------------------------------------------------- results that are kept


def test_the_same_question_is_not_measured_twice(model, known, calls, tmp_path):
    names = known(replace(FIRST, recipes={"quick": Small(4, 1, controlled=True)}), SECOND)
    first = score(model, names, runs=tmp_path)
    done = len(calls.seen)
    same(score(model, names, runs=tmp_path), first)
    assert len(calls.seen) == done
    same(score(model, names), first)
    assert len(calls.seen) > done


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_killed_run_goes_on_where_it_stopped(model, known, calls, tmp_path, stop):
    names = known(FIRST)
    whole = score(model, names)

    def kill(what, done, total):
        if done == stop:
            raise KeyboardInterrupt

    del calls.seen[:]
    with pytest.raises(KeyboardInterrupt):
        score(model, names, runs=tmp_path, progress=kill)
    assert len(calls.seen) == stop
    same(score(model, names, runs=tmp_path), whole)
    assert len(calls.seen) == len(set(calls.seen)) == 4  # none twice


def test_a_spoilt_part_is_made_again_and_only_that(model, known, calls, tmp_path):
    names = known(FIRST)
    first = score(model, names, runs=tmp_path)
    (path,) = tmp_path.glob("*/part-0002.parquet")
    path.write_bytes(b"PAR1 rubbish")
    fourth = calls.seen[2]
    del calls.seen[:]
    same(score(model, names, runs=tmp_path), first)
    assert calls.seen == [fourth]


def test_nothing_is_written_without_a_folder(model, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    score(model, known(FIRST))
    assert list(tmp_path.iterdir()) == []


def folders(path):
    return {run.folder.name for run in runs.find(path)}


@pytest.mark.parametrize("change", ["seed", "edits", "model", "dtype", "versions", "probes", "recipe"])
def test_another_question_gets_another_run(model, known, tmp_path, monkeypatch, change):
    names = known(FIRST, replace(SECOND, recipes={"quick": Small()}))[:1]
    score(model, names, runs=tmp_path)
    before = folders(tmp_path)
    assert len(before) == 1
    settings: dict[str, Any] = {}
    if change == "seed":
        settings["seed"] = 1
    elif change == "edits":
        settings["edits"] = [Ablate((Head(0, 0),))]
    elif change == "model":
        model = random_model("llama", seed=1)
    elif change == "dtype":
        import torch

        model = random_model("llama", dtype=torch.bfloat16)
    elif change == "versions":
        monkeypatch.setattr(batches, "versions", lambda: {**runs.versions(), "torch": "0"})
    elif change == "probes":
        names = ["first", "second"]
    else:
        names = known(replace(FIRST, recipes={"quick": Small(3)}))
    score(model, names, runs=tmp_path, **settings)
    assert len(folders(tmp_path)) == 2
    assert before < folders(tmp_path)


def test_needle_options_make_another_run(model, hay, tmp_path, monkeypatch):
    patient = replace(PROBES["semantic_retrieval"], valid=None, recipes={"quick": NeedleTests(lengths_=(450,), depths=(0.5,), per_cell=1, haystack=hay)})
    monkeypatch.setattr(groups, "probe", lambda name: patient)
    score(model, ["semantic_retrieval"], runs=tmp_path)
    first = folders(tmp_path)
    assert len(first) == 2  # the tests and their control
    score(model, ["semantic_retrieval"], runs=tmp_path, options=Options(depths=(0.5,)))
    assert folders(tmp_path) == first
    score(model, ["semantic_retrieval"], runs=tmp_path, options=Options(depths=(0.9,)))
    assert len(folders(tmp_path)) == 4


# ---------------------------------------------------------------- what counts


def valid_where(*flags):
    """Which of the four samples count."""
    return lambda evidence: np.array([flags[evidence.prompts.facts[0]["number"]]])


def test_samples_that_do_not_count_are_left_out(model, known):
    result = score(model, known(replace(FIRST, valid=valid_where(True, False, True, True))))
    sample_NLH = np.concatenate([previous(capture(model, prompts, [READ])) for prompts in Small().build(model, 0)])
    np.testing.assert_allclose(result.matrix("first"), sample_NLH[[0, 2, 3]].mean(0), atol=1e-7)
    assert (result.table["n"] == 3).all()
    facts = result.evidence["first"]
    assert {key: facts[key] for key in ("status", "tests", "valid", "dead", "counted")} == {"status": "ok", "tests": 4, "valid": 3, "dead": 0, "counted": 3}


def test_fewer_than_three_valid_samples_are_insufficient_and_other_probes_still_score(model, known):
    names = known(replace(FIRST, valid=valid_where(True, False, True, False)), SECOND)
    result = score(model, names)
    assert result.probes == ("second",)
    facts = result.evidence["first"]
    assert (facts["status"], facts["tests"], facts["valid"]) == ("insufficient evidence", 4, 2)
    with pytest.raises(InputError, match="first: insufficient evidence"):
        result.matrix("first")


def test_without_any_evidence_the_counts_are_told(model, known):
    names = known(replace(FIRST, valid=valid_where(True, False, False, False)), replace(SECOND, valid=valid_where(False, False, False, False)))
    result = score(model, names)
    assert result.probes == ()
    assert [(facts["status"], facts["valid"], facts["tests"]) for facts in result.evidence.values()] == [
        ("insufficient evidence", 1, 4),
        ("insufficient evidence", 0, 4),
    ]


def test_a_probe_whose_samples_always_count_needs_but_one(model, known):
    result = score(model, known(replace(FIRST, recipes={"quick": Small(1)})))
    assert (result.table["n"] == 1).all()
    assert result.evidence["first"]["status"] == "ok"


def some_dead(evidence):
    """Nothing in the second sample, and in the third in one head only."""
    number = evidence.prompts.facts[0]["number"]
    score_NLH = np.zeros((1, 2, 6))
    score_NLH[0, 1, 3] = {0: 0.5, 1: 0, 2: 1, 3: 0.25}[number]
    return score_NLH


@pytest.mark.parametrize(("drop", "expected", "n"), [(True, 1.75 / 3, 3), (False, 1.75 / 4, 4)])
def test_samples_in_which_no_head_scores_are_dropped_and_counted(model, known, drop, expected, n):
    dead = replace(FIRST, score=some_dead, valid=valid_where(True, True, True, True), drop_dead=drop)
    result = score(model, known(dead))
    assert result.matrix("first")[1, 3] == pytest.approx(expected)
    facts = result.evidence["first"]
    assert (facts["valid"], facts["dead"], facts["counted"]) == (4, 4 - n, n)


def test_a_dead_sample_that_is_not_valid_is_not_counted_twice(model, known):
    dead = replace(FIRST, score=some_dead, valid=valid_where(True, False, True, True), drop_dead=True)
    facts = score(model, known(dead)).evidence["first"]
    assert (facts["tests"], facts["valid"], facts["dead"], facts["counted"]) == (4, 3, 0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_names_model_layer_and_head(model, known, bad):
    def spoilt(evidence):
        """Bad in one place."""
        score_NLH = np.zeros((1, 2, 6))
        if evidence.prompts.facts and evidence.prompts.facts[0]["number"] == 2:
            score_NLH[0, 1, 4] = bad
        return score_NLH

    with pytest.raises(InputError, match=rf"tiny-llama, L1H4: the first score is {bad}; try --dtype float32"):
        score(model, known(replace(FIRST, score=spoilt)))


def test_a_random_model_fails_the_needle_and_the_control_is_not_to_blame(model, hay):
    options = Options(lengths=(450,), depths=(0.2, 0.8), haystack=hay)
    result = score(model, ["retrieval", "copying"], options=options)
    assert result.probes == ("copying",)
    facts = result.evidence["retrieval"]
    assert (facts["status"], facts["tests"], facts["valid"], facts["counted"]) == ("insufficient evidence", 4, 0, 0)
    assert str(hay) in facts["prompts"]


# ---------------------------------------------------------------- generation


def test_tests_that_are_not_teacher_forced_are_generated_and_the_control_is_not(model, hay, monkeypatch, calls):
    recipe = NeedleTests(lengths_=(400,), depths=(0.5,), per_cell=1, haystack=hay, teacher_forced=False)
    seen = {}

    def keep(what, function):
        def run(*args, **kwargs):
            seen[what] = (args, kwargs)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(batches, "generate", keep("generate", batches.generate))
    member = replace(PROBES["semantic_retrieval"], recipes={"paper": recipe, "quick": recipe}, valid=None)
    monkeypatch.setattr(groups, "probe", lambda name: member)
    result = score(model, ["semantic_retrieval"], preset="paper")
    assert [name for name, _ in calls.seen] == ["generate", *["capture"] * 4]
    assert result.provenance["preset"] == "paper"
    args, settings = seen["generate"]
    assert [type(read) for read in args[2]] == [Mass]
    assert settings["stop"]("an answer\n") is False
    assert settings["stop"]("\nan answer") is False
    assert settings["stop"]("an answer\nand more") is True


# ---------------------------------------------------------------- nulls


def test_without_a_control_the_null_is_uniform_attention(model, known):
    result = score(model, known(FIRST))
    np.testing.assert_allclose(result.matrix("first", "null"), np.mean([1 / (row + 1) for row in range(1, 12)]), atol=1e-6)


def test_the_control_is_measured_with_the_next_seed(model, known):
    result = score(model, known(replace(FIRST, recipes={"quick": Small(2, 1, controlled=True)})), seed=7)
    sample_NLH = np.concatenate([previous(capture(model, prompts, [READ])) for prompts in Small(2, 1).build(model, 8)])
    np.testing.assert_allclose(result.matrix("first", "null"), sample_NLH.mean(0), atol=1e-7)


def test_the_control_is_edited_as_the_samples_are(model, known):
    edit = Ablate((Head(0, 2),), "uniform")
    result = score(model, known(replace(FIRST, recipes={"quick": Small(2, 1, controlled=True)})), edits=[edit])
    assert result.matrix("first", "null")[0, 2] == pytest.approx(np.mean([1 / (row + 1) for row in range(1, 12)]), abs=1e-6)


def test_a_fixed_null_is_itself(model, known):
    result = score(model, known(replace(FIRST, null_score=0.0), SECOND, replace(FIRST, name="third", null_score=0.25)))
    assert (result.matrix("first", "null") == 0).all()
    assert (result.matrix("third", "null") == 0.25).all()
    np.testing.assert_allclose(result.matrix("second", "null"), 1 / 12, atol=1e-6)


def test_the_null_of_weights_is_their_shuffle(model):
    from workbench.weights import Weights

    result = score(model, ["copying"], seed=4)
    np.testing.assert_allclose(result.matrix("copying"), PROBES["copying"].score(Weights(model.weights, model.shape))[0])
    np.testing.assert_allclose(result.matrix("copying", "null"), PROBES["copying"].score(Weights(model.weights, model.shape, 5))[0])
    assert result.evidence["copying"]["tests"] == 1
    assert (result.table["n"] == 1).all()


def test_uniform_nulls_need_no_model_reads(model, known):
    """A probe whose validity asks for the model's own choice has no such choice under uniform attention."""
    prompts = Small().build(model, 0)[0]
    group = Group((FIRST,), Small())
    part = batches._uniform(model, group, prompts)
    assert part.scores["first"].shape == (1, 1, 1)
    pattern_QK = np.tril(np.ones((12, 12))) / np.arange(1, 13)[:, None]
    expected = previous(from_patterns(model.card, prompts, pattern_QK[None, None, None], [READ]))
    np.testing.assert_array_equal(part.scores["first"], expected)


def test_uniform_attention_on_the_builtin_probes_is_the_known_number(model, hay, monkeypatch):
    sink = replace(PROBES["attention_sink"], recipes={"quick": NaturalText(length=64, count=2, text=hay)})
    monkeypatch.setattr(groups, "probe", lambda name: sink)
    np.testing.assert_allclose(score(model, ["attention_sink"]).matrix("attention_sink", "null"), 0.0741, atol=5e-5)


def test_a_valid_flag_per_sample_survives_the_disk(model, known, tmp_path):
    names = known(replace(FIRST, valid=valid_where(True, False, True, True)))
    first = score(model, names, runs=tmp_path)
    same(score(model, names, runs=tmp_path), first)
    assert first.evidence["first"]["valid"] == 3


def test_two_samples_of_different_validity_in_a_batch(model, known):
    half = replace(FIRST, recipes={"quick": Small(6, 2)}, valid=lambda evidence: np.array([True, False]))
    result = score(model, known(half))
    sample_NLH = np.concatenate([previous(capture(model, prompts, [READ]))[:1] for prompts in Small(6, 2).build(model, 0)])
    np.testing.assert_allclose(result.matrix("first"), sample_NLH.mean(0), atol=1e-7)


def test_teacher_forced_validity_is_the_models_own_choice(model, hay):
    """A model that chooses the gold tokens passes: its own greedy answer is made the gold one."""
    whole = NeedleTests(lengths_=(400,), depths=(0.5,), per_cell=1, haystack=hay).build(model, 0)[0]
    row = whole.rows["answer"][0, :5]
    prompts = Prompts(whole.ids_BT[:, : row[-1] + 2], whole.spans, {"answer": row[None]}, prefilled=whole.prefilled, facts=whole.facts)
    read, ids = NextToken(rows="answer"), prompts.ids_BT.copy()
    for place in row:
        choice = capture(model, Prompts(ids[:, : place + 1], rows={"answer": np.array([[place]])}), [read])[read].choice
        ids[0, place + 1] = choice[0, 0]
    own = Prompts(ids, prompts.spans, prompts.rows, prefilled=prompts.prefilled, facts=prompts.facts)
    assert PROBES["retrieval"].valid(capture(model, own, [read])).tolist() == [True]
    assert PROBES["retrieval"].valid(capture(model, prompts, [read])).tolist() == [False]


def test_a_capture_of_the_group_serves_every_member(model, known):
    """Each member sees one and the same capture."""
    seen = []

    def remember(evidence):
        """One number."""
        seen.append(evidence)
        return np.zeros((evidence.prompts.count, 2, 6))

    members = [replace(FIRST, name=name, score=remember, null_score=0.0, reads=reads) for name, reads in {"a": (READ,), "b": (Received(),)}.items()]
    score(model, known(*members))
    captures = [evidence for evidence in seen if "uniform" not in str(evidence.provenance)]
    assert len(captures) == 8
    assert all(a is b for a, b in zip(captures[::2], captures[1::2], strict=True))
    assert all(set(evidence.values) == {READ, Received()} for evidence in captures)


def test_choices_of_the_model_are_among_the_evidence(model, known):
    read = NextToken(rows="answer")
    seen = []

    def chosen(evidence: Capture):
        seen.append(evidence[read])
        return np.ones(evidence.prompts.count, bool)

    controlled = replace(FIRST, reads=(READ, read), valid=chosen, recipes={"quick": Small(4, 1, controlled=True)})
    score(model, known(controlled))
    assert len(seen) == 6
    assert all(isinstance(value, NextTokenValue) and value.choice.shape == (1, 3) for value in seen)


# ---------------------------------------------------------------- length, ways, and what is said of them


def test_length_changes_every_recipe_but_the_document_search():
    tests, text, repeated = PROBES["retrieval"].recipe("quick"), NaturalText(length=64, count=16), RepeatedTokens(length=50, count=8)
    assert set(Options(length=256).apply(tests).lengths(random_model("llama"))) == {256}
    assert Options(length=256).apply(text) == text.at_length(256)
    assert Options(length=256).apply(repeated) == repeated.at_length(256)
    assert Options(length=256).apply(DocumentSearch()) == DocumentSearch()
    for name in ("attention_sink", "induction", "retrieval"):
        assert plan([name], options=Options(length=256))[0].recipe == PROBES[name].recipe("quick").at_length(256)
    with pytest.raises(InputError, match="--length concerns none of the chosen probes: copying"):
        plan(["copying"], options=Options(length=256))
    with pytest.raises(InputError, match="--length concerns none of the chosen probes: query_focused_retrieval"):
        plan(["query_focused_retrieval"], options=Options(length=256))
    assert plan(["copying", "induction"], options=Options(length=256))


@pytest.mark.parametrize("settings", [{"length": 127}, {"length": 0}, {"length": 256, "lengths": (300,)}])
def test_a_length_too_short_or_beside_lengths_is_refused(settings):
    with pytest.raises(InputError, match=r"--length is at least 128 tokens.*--lengths are those of the needle tests alone. Give one of them"):
        Options(**settings)


@pytest.mark.parametrize("way", [Way("reference"), Way("torch"), Way(chunk=5), Way(sample=4)], ids=str)
def test_a_way_reaches_every_pass(model, known, monkeypatch, way):
    seen = []
    monkeypatch.setattr(batches, "capture", lambda *args, **how: seen.append(how) or capture(*args, **how))
    result = score(model, known(FIRST), way=way)
    assert seen == [{"implementation": way.implementation, "chunk": way.chunk, "sample": way.sample}] * 4
    assert result.provenance["implementation"] == ("reference" if way.implementation == "reference" else "torch")
    assert result.provenance.get("sampled_rows") == way.sample
    if way.sample is None:
        np.testing.assert_allclose(result.matrix("first"), score(model, ["first"]).matrix("first"), atol=2e-5)
        assert "rows" not in result.evidence["first"]


def test_sampled_rows_are_in_the_evidence_with_their_standard_error(model, known):
    def mean(evidence):
        """Attention one back, in the rows that were read."""
        return evidence.over_rows(READ, 1)

    result = score(model, known(replace(FIRST, score=mean, skip=1)), way=Way(sample=4))
    captures = [capture(model, prompts, [READ], sample=4) for prompts in Small().build(model, 0)]
    worst = max(seen.standard_error(READ, 1).max() for seen in captures)
    assert result.evidence["first"]["rows"] == {"sampled": 4, "of": 12, "largest_standard_error": pytest.approx(worst)}
    np.testing.assert_allclose(result.matrix("first"), np.concatenate([seen.over_rows(READ, 1) for seen in captures]).mean(0), atol=1e-6)


@pytest.mark.parametrize("change", [{"implementation": "reference"}, {"sample": 4}, {"sample": 5}])
def test_another_way_is_another_question(model, known, tmp_path, change):
    names = known(FIRST)
    score(model, names, runs=tmp_path, way=Way(sample=6))
    score(model, names, runs=tmp_path, way=replace(Way(sample=6), **change))
    assert len(folders(tmp_path)) == 2


def test_prompts_beyond_the_trained_context_are_scored_with_a_warning(known):
    short, names = random_model("llama", max_position_embeddings=11), known(FIRST)
    scores = score(short, names)
    assert scores.provenance["warning"] == "12 tokens are beyond the 11 that tiny-llama was trained for"
    assert scores.matrix("first").shape == (2, 6)
    assert "warning" not in score(random_model("llama", max_position_embeddings=12), names).provenance


def test_labels_keep_the_warning(monkeypatch):
    member = replace(PROBES["induction"], recipes={"quick": RepeatedTokens(count=2, total=21)})
    monkeypatch.setattr(groups, "probe", lambda name: member)
    labels = label(score(random_model("llama", max_position_embeddings=16), ["induction"]))
    assert "21 tokens are beyond the 16 that tiny-llama was trained for" in str(labels.provenance)
