"""Are results known by what is in them, are their numbers in short right, and does a caveat appear exactly where the data call for it?"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from results import CARD, COUNT, RULE, SHAPE, circuit, labels, needles, policies, recalls, scores
from scipy.stats import spearmanr

from workbench.circuits.statistics import share_interval
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.results import Caveat, collect, ordered
from workbench.results.of_circuits import caveats_of_circuit
from workbench.results.of_needles import needles_in_short
from workbench.results.of_runs import caveats_of_run, samples_of
from workbench.results.of_scores import caveats_of_labels, caveats_of_scores
from workbench.results.of_tables import caveats_of_table, presets_in_short
from workbench.results.standing import standing, standing_in_short
from workbench.runs import Part, Run, versions

POINTWISE = "Intervals are of one head at a time: of 6 heads about 0 lie outside of theirs by chance, for each probe."


@pytest.fixture
def folder(tmp_path):
    found = scores()
    labels(found).save(tmp_path / "any name.json")
    found.save(tmp_path / "table.parquet")
    circuit().save(tmp_path / "c.json")
    needles().to_csv(tmp_path / "n.csv", index=False)
    policies().to_parquet(tmp_path / "p.parquet", index=False)
    return tmp_path


def test_results_are_known_by_what_is_in_them(folder):
    (folder / "else.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (folder / "notes.md").write_text("# Notes", encoding="utf-8")
    for name in ("report.html", "report.md", "README.md", ".hidden.json"):
        (folder / name).write_text("x", encoding="utf-8")
    found = collect(folder)
    assert found.title == folder.name
    kinds = {result.name: result.kind for result in found.files}
    known = {"any name.json": "labels", "table.parquet": "scores", "c.json": "circuit", "n.csv": "needles", "p.parquet": "policies"}
    assert kinds == {**known, "else.csv": "table", "notes.md": "text"}
    assert not any(result.problem for result in found.files)
    assert all(result.size == (folder / result.name).stat().st_size for result in found.files)
    assert found.first("labels").to_json() == labels(scores()).to_json()
    pd.testing.assert_frame_equal(found.first("needles"), needles())
    assert found.first("ph3") is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", "{", "not JSON that can be read"),
        ("a.json", "[1]", "a JSON file that names no schema"),
        ("a.json", '{"schema": "other/1"}', "a JSON file of the schema 'other/1', which is none of the results"),
        ("a.json", '{"schema": "workbench.head-labels/1"}', "not head labels"),
        ("a.json", '{"schema": "workbench.circuit/1"}', "not a complete circuit"),
        ("a.parquet", "PAR1", "a.parquet is no table of scores"),
        ("a.csv", "", "not a table that can be read"),
        ("a.bin", "x", "a .bin, which is none of the results"),
        ("b", "x", "a file without an ending, which is none of the results"),
    ],
)
def test_what_cannot_be_shown_says_why(folder, name, content, reason):
    (folder / name).write_text(content, encoding="utf-8")
    found = {result.name: result for result in collect(folder).files}[name]
    assert found.kind == "unread"
    assert reason in found.problem
    assert str(folder) not in found.problem
    with pytest.raises(InputError, match="there is no result to show"):
        collect(folder / name)


def test_a_file_too_large_is_named_and_not_read(folder, monkeypatch):
    monkeypatch.setattr("workbench.results.reading.MOST_BYTES", 100_000)
    (folder / "big.csv").write_text("a\n" + "1\n" * 60_000, encoding="utf-8")
    assert "more than 0 MiB are not read" in {result.name: result for result in collect(folder).files}["big.csv"].problem


def test_labels_bring_the_scores_beside_them(tmp_path):
    labels().save(tmp_path / "heads.json")
    assert [result.kind for result in collect(tmp_path / "heads.json").files] == ["labels"]
    scores().save(tmp_path / "scores.parquet")
    assert [result.kind for result in collect(tmp_path / "heads.json").files] == ["labels", "scores"]
    assert [result.kind for result in collect(tmp_path / "scores.parquet").files] == ["scores"]


def test_a_run_and_a_job_are_found_by_their_names(tmp_path):
    run = saved_run(tmp_path)
    assert collect(run.fingerprint, tmp_path).first("run").fingerprint == run.fingerprint
    assert collect(run.fingerprint[:6], tmp_path).first("run").fingerprint == run.fingerprint
    assert collect(run.folder).title == run.fingerprint
    job = tmp_path / "jobs" / "abcd"
    labels().save(job / "heads.json")
    assert collect("abc", tmp_path).of("labels")
    (job / "job.json").write_text('{"title": "Labels", "time": 1, "arguments": ["label", "--out", "heads.json"]}', encoding="utf-8")
    (job / "log.txt").write_text("x", encoding="utf-8")
    (job / "end.json").write_text('{"code": 0, "at": 2}', encoding="utf-8")
    (job / "result.txt").write_text("said", encoding="utf-8")
    found = collect("abcd", tmp_path)
    assert [result.name for result in found.files] == ["heads.json", "result.txt"]
    assert found.remark == "Made by the job `workbench label --out heads.json`, which is finished."
    (tmp_path / "jobs" / "abce").mkdir()
    with pytest.raises(InputError, match="2 runs begin with it: abcd, abce"):
        collect("abc", tmp_path)


@pytest.mark.parametrize("name", ["nothing", "../nothing", "a/b", ""])
def test_what_is_nowhere_is_a_sentence(tmp_path, name):
    with pytest.raises(InputError, match=r"no run in|there is no file or folder|no result to show"):
        collect(name or tmp_path, tmp_path)


def saved_run(root, parts=2, **changes):
    question = {"model": "feedbeef", "probes": ["retrieval"], "prompts": ["1", "2"], "seed": 0, "versions": versions(), **changes}
    run = Run(root, question)
    for number in range(parts):
        score_NLH = np.full((10, 2, 3), float(number))
        score_NLH[:, 0, 0] = np.arange(10)
        score_NLH[0] = 0  # a test in which no head found anything does not count
        valid_N = np.arange(10) != 9
        run.save(f"part-{number:04d}", Part({"retrieval": score_NLH}, {"retrieval": valid_N}, ()))
    return run


def test_the_samples_of_a_run_are_those_that_count(tmp_path):
    (one,) = samples_of(saved_run(tmp_path))
    assert (one.probe, one.tests, one.counted) == ("retrieval", 20, 16)
    assert one.score_LH[0, 0] == np.arange(1, 9).mean()
    assert one.score_LH[1, 2] == 0.5
    assert one.low_LH[1, 2] < 0.5 < one.high_LH[1, 2]
    assert one.table.iloc[5].to_dict() == {
        "probe": "retrieval",
        "head": "L1H2",
        "score": 0.5,
        "ci_low": one.low_LH[1, 2],
        "ci_high": one.high_LH[1, 2],
        "n": 16,
    }


def test_a_run_says_what_it_lacks(tmp_path):
    def said(run):
        return [caveat.text for caveat in caveats_of_run(run, "run")]

    whole = said(saved_run(tmp_path / "a"))
    assert [text[:30] for text in whole] == ["A run holds samples, neither n", "Tests that do not count were l"]
    assert "retrieval (16 of 20)" in whole[1]
    half = said(saved_run(tmp_path / "b", parts=1))
    assert half[0] == "The run is not finished: 1 of 2 parts are done."
    assert "Fewer than 10 samples, so that intervals are wide or missing: retrieval (8)." in half
    assert "Made by other code or versions" in said(saved_run(tmp_path / "c", versions={}))[-1]
    assert said(saved_run(tmp_path / "d", probes=["copying", "retrieval"]))[0] == "No sample counts of copying."


MEANS = np.array([[0.5, 0.11, 0.09], [0.0, 0.2, 0.12]])


def test_standing_finds_the_heads_that_other_prompts_may_judge_otherwise():
    found = scores(MEANS, spread=0.1, null=0.05)
    stands = standing(labels(found), found)
    # the interval of ± 0.1 over 20 samples is about ± 0.05: 0.12, 0.11 and 0.09 reach 0.1
    assert dict(zip(stands["head"], stands["near"], strict=True)) == {"L0H0": False, "L1H1": False, "L0H1": True, "L1H2": True, "L0H2": True}
    assert stands.set_index("head")["labelled"].to_dict() == {"L0H0": True, "L1H1": True, "L0H1": True, "L1H2": True, "L0H2": False}
    assert (stands["threshold"] == 0.1).all()
    row = stands.set_index("head").loc["L0H1"]
    assert (row["low"], row["high"], row["null"]) == tuple(found.matrix("retrieval", name)[0, 1] for name in ("ci_low", "ci_high", "null"))
    (short,) = standing_in_short(stands).to_dict("records")
    assert (short["heads"], short["near the threshold"], short["others near"]) == (4, 2, 1)
    assert short["at their null"] == int((found.matrix("retrieval", "ci_low")[[0, 0, 1, 1], [0, 1, 1, 2]] <= 0.05).sum())


def test_standing_without_intervals_judges_nothing():
    for other in (None, scores(card=replace(CARD, fingerprint="other")), scores(MEANS + 1)):
        stands = standing(labels(scores(MEANS)), other)
        assert len(stands) == int((MEANS >= 0.1).sum())
        assert not stands["near"].any()
        assert not stands["at_null"].any()
        assert stands["low"].isna().all()


def said(found, table):
    return {caveat.text: caveat.level for caveat in caveats_of_labels(found, table, "heads.json")}


def test_sound_labels_call_for_one_remark_about_intervals():
    found = scores()
    assert said(labels(found), found) == {POINTWISE: "know"}
    assert {caveat.text for caveat in caveats_of_scores(found, "scores")} == {POINTWISE}


EACH = {
    "quick": ({"provenance": {"preset": "quick"}}, "know", "The quick preset"),
    "precision": ({"provenance": {"dtype": "bfloat16"}}, "know", "Computed in bfloat16"),
    "context": ({"provenance": {"warning": "9000 tokens are beyond the 8192"}}, "care", "9000 tokens are beyond the 8192."),
    "edits": ({"provenance": {"edits": [{"kind": "ablate"}]}}, "care", "The model was changed while it was measured"),
    "clamped": ({"provenance": {"clamped": ["Mass: 64 keys are all 32"]}}, "know", "Mass: 64 keys are all 32."),
    "failed": ({"evidence": {"tests": 30, "valid": 22, "dead": 2}}, "care", "Only 20 of 30 tests count for retrieval: the model failed 8, and in 2 of those"),
    "shared": ({"evidence": {"made_from": {"needle": ["a", "b"]}}}, "know", "Tests that share a needle are not independent"),
    "restricted": ({"evidence": {"restricted": "to 9 words"}}, "know", "Restricted, retrieval: to 9 words."),
    "rows": ({"evidence": {"rows": {"sampled": 8, "of": 64, "largest_standard_error": 0.02}}}, "care", "Only 8 of 64 rows were read for retrieval"),
    "calculated": ({"evidence": {"null": "uniform attention"}}, "know", "The null is a calculated bound"),
    "few nulls": ({"evidence": {"null_samples": 3}}, "know", "Nulls of fewer than 10 control samples: retrieval (3)."),
    "one null": ({"evidence": {"null_samples": 1}}, "know", "Nulls of one control sample: retrieval."),
    "no null": ({"null": np.nan}, "care", "No null: retrieval"),
    "few": ({"count": 8, "spread": 0.0}, "care", "Fewer than 10 samples, so that intervals are wide, at most so: retrieval 8 (±0.00)."),
    "near": ({"mean_LH": ((0.8, 0.11, 0.0), (0.0, 0.3, 0.0)), "spread": 0.08}, "care", "below the threshold: retrieval 1 of 3."),
    "nearly": ({"mean_LH": ((0.8, 0.09, 0.0), (0.0, 0.3, 0.0)), "spread": 0.08}, "know", "whose 95% interval reaches above the threshold: retrieval 1."),
    "at the null": ({"mean_LH": ((0.8, 0.5, 0.0), (0.0, 0.3, 0.0)), "spread": 0.01, "null": 0.299}, "care", "down to their own null: retrieval 1 of 3."),
}  # fmt: skip


@pytest.mark.parametrize("case", EACH)
def test_a_caveat_appears_where_the_scores_call_for_it_and_no_other_does(case):
    changes, level, words = EACH[case]
    found = scores(**changes)
    more = {text: how for text, how in said(labels(found), found).items() if text != POINTWISE}
    assert len(more) == 1, more
    (text,) = more
    assert words in text
    assert more[text] == level


def test_the_widest_interval_is_told():
    found = scores(count=4, spread=0.2)
    (text,) = [text for text in said(labels(found), found) if text.startswith("Fewer than")]
    widest = np.max(found.matrix("retrieval", "ci_high") - found.matrix("retrieval", "ci_low")) / 2
    assert f"retrieval 4 (±{widest:.2f})" in text


def test_one_sample_has_no_interval_and_says_so():
    found = scores(count=1, evidence={"made_from": {}})
    assert said(labels(found), found) == {"One sample has no interval: retrieval.": "know"}


def test_scores_of_another_model_or_run_are_not_used():
    mine = labels(scores())
    other = scores(card=replace(CARD, fingerprint="0000"))
    assert said(mine, other) == {
        "The file scores.parquet is of another model (fingerprint 0000, the labels are of feedbeef): its intervals and nulls are not used.": "stop"
    }
    (text,) = said(mine, scores(MEANS))
    assert "has other numbers than the labels for retrieval: it is of another run" in text
    (text,) = said(mine, None)
    assert "neither intervals nor nulls are known" in text


def test_evidence_that_does_not_suffice_is_the_first_thing_told():
    rows = scores().table
    facts = {"retrieval": scores().evidence["retrieval"], "reasoning": {"status": "insufficient evidence", "tests": 9, "valid": 2, "dead": 1, "counted": 1}}
    found = type(scores())(CARD, rows, {**facts, "chat": {"status": "not asked: the tokenizer has no chat template"}}, scores().provenance)
    told = said(labels(found), found)
    assert told.pop("No scores of chat: not asked: the tokenizer has no chat template.") == "know"
    assert told.pop(POINTWISE)
    ((text, level),) = told.items()
    assert (level, text.partition(";")[0]) == ("stop", "No scores of reasoning (insufficient evidence: the model passed 2 of 9 tests)")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (replace(RULE, kind="top_share", value=0.5), "label so many heads in any model, also in one without the behaviour: retrieval (best 50% of heads)."),
        (replace(RULE, source="house default, not from a paper"), "Thresholds that no paper gives: retrieval."),
        (replace(RULE, source="set by the user (default 0.2)"), "Thresholds set by the user: retrieval (score ≥ 0.1)."),
    ],
)
def test_rules_are_told_where_they_decide(rule, words):
    found = scores()
    more = [text for text in said(labels(found, rule), found) if text != POINTWISE]
    assert len(more) == 1
    assert more[0].endswith(words)
    high = replace(rule, value=0.0 if rule.kind == "top_share" else 9.0)  # it labels nobody
    told = [text for text in said(labels(found, high), found) if text != POINTWISE]
    assert len(told) == ("set by the user" in rule.source)


def test_a_model_that_is_not_known_says_so():
    given = HeadLabels(replace(CARD, fingerprint=""), {Head(0, 0): ("mine",)}, {})
    assert [caveat.text for caveat in caveats_of_labels(given, None, "mine.json")] == [
        "The fingerprint of toy is not known, so that nothing tells whether another model of this name has these heads."
    ]


def held(**changes):
    table = circuit().faithfulness
    return {"faithfulness": table.assign(**changes)}


def made(**changes):
    return {"provenance": {**circuit().provenance, **changes}}


CIRCUITS = {
    "not evaluated": ({"faithfulness": circuit().faithfulness.head(0)}, "stop", "It was not evaluated on held-out prompts"),
    "no better": (held(low=0.05, high=0.2), "stop", "Not clearly better than as many random heads under every ablation"),
    "partly": (held(random=[0.1, 0.95]), "care", "Not clearly better than as many random heads under 1 ablation of 2: mean 0.98 (from 0.90)"),
    "wide": (held(low=[0.7, 0.9]), "care", "Wide 95% intervals of faithfulness: resample 0.70 to 1.00."),
    "depends": (held(faithfulness=[0.96, 0.7]), "care", "Faithfulness depends on what stands in for the other heads: resample 0.96, mean 0.70."),
    "few": (held(n=12), "care", "Evaluated on 12 held-out prompts."),
    "weak": ({"effects": circuit().effects.assign(q=[0.2, 0.2, 0.2, 0.01, 0.01, 0.01])}, "care", "1 of 2 heads have no single effect that"),
    "idle": ({"minimality": circuit().minimality.assign(drop=[0.4, -0.1])}, "know", "Not minimal: without L1H2"),
    "chance": (made(accuracy={"held_out": 0.6, "chance": 0.5}), "stop", "The model itself does the task no better than chance: 60% of 40"),
    "not reached": (made(size="all heads that the method ranks: 0.8 is not reached (0.61)"), "care", "All heads that the method ranks: 0.8 is not"),
    "edges": (made(edges_missed={"sampled": 30, "not_measured": 70581, "high": 0.113}), "know", "Of 70,581 edges that were not measured up to 11% may matter"),
    "codes": (made(method="codes"), "care", "Found by codes"),
    "dropped": (made(prompts={"searched": 40, "held_out": 40, "dropped": {"too long": 3}}), "know", "3 prompts left out of the task: too long (3)."),
    "precision": (made(dtype="float16"), "know", "Computed in float16."),
}  # fmt: skip


@pytest.mark.parametrize("case", CIRCUITS)
def test_a_caveat_appears_where_a_circuit_calls_for_it_and_no_other_does(case):
    assert caveats_of_circuit(circuit(), "c.json") == []
    changes, level, words = CIRCUITS[case]
    (caveat,) = caveats_of_circuit(circuit(**changes), "c.json")
    assert caveat.text.startswith(words)
    assert (caveat.level, caveat.about) == (level, "c.json")


def search(e_helps=30.0):
    return pd.DataFrame({"head": ["L0H0", "L1H1"], "gain": [0.02, -0.01], "n": 90, "fixed": [9, 0], "broken": [1, 2], "e_helps": [e_helps, 0.5], "e_hurts": 0.5,
                         "stopped": "", "kept": [True, False]})  # fmt: skip


def held_out(low=0.01, random=0.0):
    common = {"count": 2, "task": "mean", "n": 300, "accuracy": 0.5, "p": 0.01}
    kept = {"heads": "kept", "seed": None, "difference": 0.03, "difference_low": low, "difference_high": 0.05}
    other = {"heads": "random", "seed": 0.0, "difference": random, "difference_low": -0.01, "difference_high": 0.01}
    return pd.DataFrame([{**common, **kept}, {**common, **other}])


def ph3(clean=0.95, count=200):
    rows = [("none", "context", 0.1, 1.0), ("pruned", "context", 0.8, clean)]
    return pd.DataFrame(
        [
            {"way": way, "steer": steer, "memory": 0.1, "context": share, "other": 0.1, "clean": known, "heads": 2, "n": count}
            for way, steer, share, known in rows
        ]
    )


def presets(same=True):
    rows = [{"probe": "copying", "head": f"L{number}H0", "quick": float(number), "paper": float(number if same else -number)} for number in range(30)]
    return pd.DataFrame(rows)


KNOWN = {
    "search": "What the kept heads are worth is told by held-out questions alone; 2 heads measured.",
    "ph3": "Shares of 200 held-out conflicts: one of 50% has a 95% interval of 43% to 57%.",
}
TABLES = {
    "few": ("needles", needles, {"tests": 10}, "care", "10 needle tests: recall is known to about ±0.31 at worst."),
    "no whole": ("needles", lambda: needles()[lambda rows: rows["kind"] != "none"], {}, "stop", "The whole model was not tested"),
    "failing": ("needles", needles, {"whole": 0.95}, "know", "With all heads the model's recall is 0.95"),
    "shared": ("needles", needles, {"distinct": 4}, "know", "4 needles for 40 tests"),
    "no better": ("needles", needles, {"strongest": 0.9}, "stop", "Zero: without the 2 strongest recall is 0.90, and some random heads cost as much (0.90)."),
    "no control": ("needles", needles, {"seeds": 0}, "care", "Zero: there are no random heads beside without the 2 strongest."),
    "few draws": ("needles", needles, {"seeds": 2}, "know", "Zero: 2 draws of random heads only."),
    "few, kept": ("recall", recalls, {"tests": 10}, "care", "10 needle tests: recall is known to about ±0.31 at worst."),
    "failing, kept": ("recall", recalls, {"full": 0.95}, "know", "With all heads the model's recall is 0.95"),
    "shared, kept": ("recall", recalls, {"distinct": 4}, "know", "4 needles for 40 tests"),
    "no better, kept": ("recall", recalls, {"without": 0.9}, "stop", "The chosen heads cost no more than as many others that these tests could tell"),
    "no control, kept": ("recall", recalls, {"draws": 0}, "care", "There are no random heads beside the chosen ones."),
    "few draws, kept": ("recall", recalls, {"draws": 2}, "know", "2 draws of random heads only."),
    "few tests": ("policies", policies, {"tests": 12}, "care", "12 needle tests only."),
    "alike": ("policies", policies, {"kept": (0.9, 0.85)}, "care", "These tests do not tell apart: at 25% first and second."),
    "no random": ("policies", policies, {"seeds": 0}, "stop", "No random heads were measured"),
    "one draw": ("policies", policies, {"seeds": 1}, "know", "1 draw of random heads only."),
    "random as good": ("policies", policies, {"random": 0.84}, "care", "No ranking is clearly better than every draw of random heads at 25%."),
    "above": ("policies", policies, {"kept": (1.2, 0.6)}, "know", "Recall above the full model's"),
    "luck": ("search", search, {"e_helps": 3.0}, "care", "1 of 1 heads are kept for a gain that chance gives as well (e-value below 20)"),
    "no effect": ("held_out", held_out, {"low": -0.01}, "stop", "On held-out questions calibrating the kept heads shows no effect that 300"),
    "as good": ("held_out", held_out, {"random": 0.03}, "care", "Some random heads do as well: +3.0% against +3.0%."),
    "costly": ("ph3", ph3, {"clean": 0.7}, "care", "Pruning costs more than a tenth of what the model knows closed-book (100%): steered to context 70%."),
    "other heads": ("presets", presets, {"same": False}, "care", "The quick preset finds other heads than the paper's sizes;"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_a_caveat_appears_where_a_table_calls_for_it_and_no_other_does(case):
    kind, table, changes, level, words = TABLES[case]
    usual = {"needles": needles, "recall": recalls, "policies": policies, "search": search, "held_out": held_out, "ph3": ph3, "presets": presets}[kind]
    assert [caveat.text for caveat in caveats_of_table(kind, usual(), "t.csv")] == [text for name, text in KNOWN.items() if name == kind]
    more = [caveat for caveat in caveats_of_table(kind, table(**changes), "t.csv") if caveat.text != KNOWN.get(kind)]
    assert len(more) == 1, more
    assert more[0].text.startswith(words)
    assert more[0].level == level


def test_few_conflicts_are_a_care():
    (caveat,) = caveats_of_table("ph3", ph3(count=31), "ph3.csv")
    low, high = share_interval(0.5, 31)
    assert (caveat.level, caveat.text) == ("care", f"Shares of 31 held-out conflicts: one of 50% has a 95% interval of {low:.0%} to {high:.0%}.")
    assert share_interval(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)  # Wilson's, by the formula


def test_needles_in_short_are_means_over_tests_of_means_over_draws():
    rng = np.random.default_rng(0)
    rows = needles()
    rows["recall"] = rng.random(len(rows))
    short = needles_in_short(rows).set_index(["kind", "condition"])
    whole = {row.test: row.recall for row in rows[rows["kind"] == "none"].itertuples()}
    random = [row for row in rows.itertuples() if "random" in row.condition]
    by_test = {test: np.mean([row.recall for row in random if row.test == test]) for test in range(40)}
    by_seed = [np.mean([row.recall for row in random if row.seed == seed]) for seed in range(5)]
    found = short.loc[("zero", "without 2 random others")]
    assert found["recall"] == pytest.approx(np.mean(list(by_test.values())))
    assert found["change"] == pytest.approx(np.mean([by_test[test] - whole[test] for test in range(40)]))
    assert (found["least"], found["most"]) == pytest.approx((min(by_seed), max(by_seed)))
    assert found["low"] < found["change"] < found["high"]
    assert (found["tests"], found["seeds"]) == (40, 5)
    assert short.loc[("none", "all heads"), "change"] == 0


def test_an_echo_of_the_question_is_not_nothing():
    real = needles().assign(needle="dolores")
    share = 9 / 22  # "The best thing to do in San Francisco is", of 22 words
    told = [caveat for caveat in caveats_of_table("needles", real, "n.csv") if "echoes" in caveat.text]
    assert [caveat.level for caveat in told] == ["care"]
    assert f"only echoes it has {share:.2f}," in told[0].text
    assert not [caveat for caveat in caveats_of_table("needles", needles(), "n.csv") if "echoes" in caveat.text]


def test_presets_in_short_are_spearmans_rho_and_the_overlap_of_ten():
    rng = np.random.default_rng(1)
    rows = presets().assign(paper=rng.random(30))
    (short,) = presets_in_short(rows).to_dict("records")
    assert short["spearman"] == pytest.approx(spearmanr(rows["quick"], rows["paper"]).statistic)
    best = {f"L{number}H0" for number in range(20, 30)}
    assert short["top10_overlap"] == len(best & set(rows.nlargest(10, "paper")["head"])) / 10
    assert short["largest difference"] == pytest.approx((rows["quick"] - rows["paper"]).abs().max())


def test_caveats_come_by_weight_and_once():
    one, two, three = Caveat("know", "a", "x"), Caveat("stop", "b", "y"), Caveat("care", "c", "z")
    assert ordered([one, two, one, three]) == [two, three, one]
    with pytest.raises(InputError, match="unknown level"):
        Caveat("bad", "a", "x")


def test_the_shape_of_the_toy_is_what_the_tests_take_it_for():
    assert (SHAPE.n_layers, SHAPE.n_heads, COUNT) == (2, 3, 20)
