"""Does each rule choose the heads that one chooses by hand, and does a labels file come back whole or not at all?"""

import contextlib
import copy
import json
import os
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import InputError
from workbench.files import write_text
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import SCHEMA, HeadLabels, label, schema
from workbench.rules import KINDS, RULES, Rule, rules_with
from workbench.scores import HeadScores, summarise

SHAPE = Shape(2, 4, 2, 8, 32)
CARD = ModelCard("toy", "memory", "abc", SHAPE, "main")
SCORE_LH = np.array([[0.5, 0.1, 0.9, 0.4], [0.4, 0.8, 0.2, 0.4]])
NO_NULL_LH = np.full((2, 4), np.nan)


def rule(**changes):
    return replace(Rule(label="retrieval", probe="retrieval", value=0.4, source="here", chance="none"), **changes)


def chosen(rule, score_LH=SCORE_LH, null_LH=NO_NULL_LH, shape=SHAPE):
    return [str(Head(*map(int, place))) for place in np.argwhere(rule.select(score_LH, null_LH, shape))]


def scores_of(null_LH=NO_NULL_LH, **score_LH):
    rows = [summarise(probe, CARD, np.asarray(score, float)[None], null_LH) for probe, score in score_LH.items()]
    return HeadScores(CARD, pd.concat(rows, ignore_index=True), {"retrieval": {"n": 7}}, {"seed": 3})


def labels_of(**changes):
    parts: dict[str, Any] = {
        "card": CARD,
        "labels": {Head(0, 2): ("retrieval", "sink"), Head(1, 1): ("retrieval",)},
        "scores": {"retrieval": SCORE_LH, "sink": -SCORE_LH},
        "rules": {"retrieval": rule(), "induction": rule(label="induction", probe="induction")},
        "evidence": {"retrieval": {"n": 7, "status": "ok"}},
        "provenance": {"seed": 3, "versions": {"torch": "2"}},
    }
    return HeadLabels(**{**parts, **changes})


# ---- rules


def test_at_least_takes_a_score_exactly_at_the_threshold():
    assert chosen(rule(value=0.4)) == ["L0H0", "L0H2", "L0H3", "L1H0", "L1H1", "L1H3"]
    assert chosen(rule(value=np.nextafter(0.4, 1))) == ["L0H0", "L0H2", "L1H1"]


def test_top_per_layer_takes_the_best_of_each_layer_and_ties_go_to_the_earlier_head():
    assert chosen(rule(kind="top_per_layer", value=2)) == ["L0H0", "L0H2", "L1H0", "L1H1"]
    assert chosen(rule(kind="top_per_layer", value=1)) == ["L0H2", "L1H1"]
    assert chosen(rule(kind="top_per_layer", value=0)) == []
    assert len(chosen(rule(kind="top_per_layer", value=9))) == 8


def test_top_share_takes_the_best_of_all_heads_and_ties_go_to_the_earlier_head():
    assert chosen(rule(kind="top_share", value=0.25)) == ["L0H2", "L1H1"]
    assert chosen(rule(kind="top_share", value=0.5)) == ["L0H0", "L0H2", "L0H3", "L1H1"]
    assert chosen(rule(kind="top_share", value=0)) == []
    assert len(chosen(rule(kind="top_share", value=1))) == 8


def test_a_share_is_rounded_to_whole_heads():
    assert len(chosen(rule(kind="top_share", value=0.3))) == 2
    assert len(chosen(rule(kind="top_share", value=0.32))) == 3


def test_a_share_of_kv_heads_labels_their_whole_groups():
    by_kv = rule(kind="top_share", value=0.25, per_kv_head=True)
    assert chosen(by_kv) == ["L0H2", "L0H3"]
    by_kv = rule(kind="top_share", value=0.5, per_kv_head=True)
    assert chosen(by_kv) == ["L0H2", "L0H3", "L1H0", "L1H1"]


def test_a_score_must_be_above_its_own_null():
    null_LH = np.zeros((2, 4))
    null_LH[0, 2], null_LH[1, 1] = 0.9, 0.79
    assert chosen(rule(value=0.8), null_LH=null_LH) == ["L1H1"]
    assert chosen(rule(kind="top_per_layer", value=1), null_LH=null_LH) == ["L1H1"]
    assert chosen(rule(kind="top_share", value=0.25), null_LH=null_LH) == ["L1H1"]
    assert chosen(rule(value=0.8)) == ["L0H2", "L1H1"]


def test_negative_scores_can_be_best_where_there_is_no_null():
    assert chosen(rule(kind="top_per_layer", value=1), -SCORE_LH) == ["L0H1", "L1H2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "best"}, "unknown kind of rule 'best'; there are: at_least, top_per_layer, top_share"),
        ({"value": float("nan")}, "the rule for retrieval needs a finite value, got nan"),
        ({"value": float("inf")}, "finite value, got inf"),
        ({"kind": "top_share", "value": 1.01}, "retrieval takes a share of the heads, 0 to 1, got 1.01"),
        ({"kind": "top_share", "value": -0.01}, "a share of the heads, 0 to 1, got -0.01"),
        ({"kind": "top_per_layer", "value": 2.5}, "retrieval takes a whole number of heads, got 2.5"),
        ({"kind": "top_per_layer", "value": -1}, "a whole number of heads, got -1"),
    ],
)
def test_impossible_rules_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        rule(**changes)


def test_every_rule_stands_under_its_label_with_source_and_chance():
    assert all(name == rule.label and rule.source and rule.chance and rule.kind in KINDS for name, rule in RULES.items())
    rules: Any = RULES
    with pytest.raises(TypeError):
        rules["new"] = rule()


@pytest.mark.parametrize(
    ("name", "probe", "value", "kind", "per_kv_head"),
    [
        ("retrieval", "retrieval", 0.1, "at_least", False),
        ("semantic_retrieval", "semantic_retrieval", 4, "top_per_layer", False),
        ("reasoning_retrieval", "reasoning_retrieval", 0.1, "at_least", False),
        ("query_focused_retrieval", "query_focused_retrieval", 0.02, "top_share", False),
        ("razor_echo", "razor_echo", 0.01, "top_share", True),
        ("razor_induction", "razor_induction", 0.14, "top_share", True),
        ("induction", "induction", 0.4, "at_least", False),
        ("attention_sink", "attention_sink", 0.3, "at_least", False),
        ("attention_sink_random", "attention_sink_random", 0.3, "at_least", False),
        ("attention_sink_repeated", "attention_sink_repeated", 0.3, "at_least", False),
        ("no_op", "no_op", 0.9, "at_least", False),
        ("user_attention", "user_attention", 0.6, "at_least", False),
        ("streaming", "streaming", 0.95, "at_least", False),
        ("diffuse", "entropy", 0.8, "at_least", False),
    ],
)
def test_the_thresholds_are_those_of_the_papers(name, probe, value, kind, per_kv_head):
    rule = RULES[name]
    assert (rule.probe, rule.value, rule.kind, rule.per_kv_head) == (probe, value, kind, per_kv_head)


def test_a_rule_can_be_changed_and_says_so():
    rules = rules_with(["retrieval=0.2", "semantic_retrieval=2"])
    assert rules["retrieval"].value == 0.2
    assert rules["retrieval"].source == "set by the user (default 0.1)"
    assert rules["retrieval"].chance == RULES["retrieval"].chance
    assert rules["semantic_retrieval"].value == 2
    assert rules["induction"] == RULES["induction"]
    assert RULES["retrieval"].value == 0.1
    assert rules_with([]) == dict(RULES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nonsense=1", "unknown rule 'nonsense'; there are: .*retrieval"),
        ("retrieval", "a rule is changed as in retrieval=0.2, not 'retrieval'"),
        ("retrieval=", "a rule is changed as in retrieval=0.2, not 'retrieval='"),
        ("retrieval=much", "not 'retrieval=much'"),
        ("retrieval=nan", "needs a finite value"),
        ("semantic_retrieval=2.5", "whole number of heads"),
    ],
)
def test_a_wrong_change_of_a_rule_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        rules_with([change])


# ---- labelling


def test_heads_get_the_labels_of_all_rules_in_their_order():
    rules = {"low": rule(label="low", probe="other", value=0.5), "retrieval": rule(value=0.8), "absent": rule(label="absent", probe="absent")}
    labels = label(scores_of(retrieval=SCORE_LH, other=1 - SCORE_LH), rules)
    assert labels.labels[Head(0, 0)] == ("low",)
    assert labels.labels[Head(0, 2)] == ("retrieval",)
    assert labels.labels[Head(1, 1)] == ("retrieval",)
    assert list(labels.labels) == list(SHAPE.heads())
    assert labels.counts() == {"low": 6, "retrieval": 2}
    assert set(labels.rules) == {"low", "retrieval"}
    assert labels.card == CARD
    assert dict(labels.evidence) == {"retrieval": {"n": 7}}
    assert dict(labels.provenance) == {"seed": 3}
    np.testing.assert_array_equal(labels.scores["other"], 1 - SCORE_LH)


def test_the_rules_of_the_project_are_the_default_and_the_null_counts():
    score_LH = np.array([[0.1, 0.09, 0.5, 0.0], [0.1, 0.1, 0.1, 0.1]])
    null_LH = np.array([[0.0, 0.0, 0.5, 0.0], [0.2, 0.05, 0.1, np.nan]])
    labels = label(scores_of(null_LH, retrieval=score_LH))
    assert [str(head) for head in labels.heads("retrieval")] == ["L0H0", "L1H1", "L1H3"]
    assert set(labels.rules) == {"retrieval"}


def test_a_rule_of_kv_heads_labels_the_groups_of_the_model():
    rules = {"razor": rule(label="razor", kind="top_share", value=0.25, per_kv_head=True)}
    assert [str(head) for head in label(scores_of(retrieval=SCORE_LH), rules).heads("razor")] == ["L0H2", "L0H3"]


def test_no_rules_are_no_labels():
    assert label(scores_of(retrieval=SCORE_LH), {}).counts() == {}


# ---- the value


def test_every_head_is_there_and_heads_are_found_by_label():
    labels = labels_of()
    assert len(labels.labels) == 8
    assert labels.labels[Head(0, 0)] == ()
    assert labels.heads("retrieval") == (Head(0, 2), Head(1, 1))
    assert labels.heads("sink") == (Head(0, 2),)
    assert labels.heads("induction") == ()
    assert labels.counts() == {"retrieval": 2, "induction": 0, "sink": 1}
    with pytest.raises(InputError, match="unknown label 'streaming'; there are: induction, retrieval, sink"):
        labels.heads("streaming")


def test_labels_are_values_nobody_can_write_into():
    score_LH = SCORE_LH.copy()
    labels = labels_of(scores={"retrieval": score_LH})
    score_LH[:] = 7
    np.testing.assert_array_equal(labels.scores["retrieval"], SCORE_LH)
    with pytest.raises(ValueError, match="read-only"):
        labels.scores["retrieval"][0, 0] = 1
    for name in ("labels", "scores", "rules", "evidence", "provenance"):
        with pytest.raises(TypeError):
            getattr(labels, name)["new"] = 1
    with pytest.raises(AttributeError):
        labels.card = CARD


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_never_exported(value):
    score_LH = SCORE_LH.copy()
    score_LH[1, 2] = value
    with pytest.raises(InputError, match=f"toy, L1H2: the retrieval score is {value}; such scores are never exported"):
        labels_of(scores={"retrieval": score_LH})


def test_whole_scores_become_floats():
    labels = labels_of(scores={"retrieval": np.arange(8).reshape(2, 4)})
    assert labels.scores["retrieval"].dtype == float
    assert labels.scores["retrieval"].ravel().tolist() == list(range(8))


def test_scores_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"retrieval: scores of shape \(2, 3\) for 2 layers × 4 query heads"):
        labels_of(scores={"retrieval": SCORE_LH[:, :3]})


def test_a_label_for_a_head_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="no head L2H0"):
        labels_of(labels={Head(2, 0): ("retrieval",)})


def test_labels_for_another_model_are_refused_with_both():
    labels = labels_of()
    labels.check_model(CARD)
    labels.check_model(ModelCard("the same under another name", "elsewhere", "abc", SHAPE))
    labels.check_model(ModelCard("not known", "elsewhere", "", SHAPE))
    labels_of(card=ModelCard("toy", "memory", "", SHAPE)).check_model(CARD)
    with pytest.raises(InputError, match=r"made for toy \(fingerprint abc, .*not for other \(fingerprint def, "):
        labels.check_model(ModelCard("other", "o", "def", SHAPE))
    with pytest.raises(InputError, match=r"n_heads=4.*not for other \(fingerprint unknown, .*n_heads=8"):
        labels.check_model(ModelCard("other", "o", "", Shape(2, 8, 2, 8, 32)))
    with pytest.raises(InputError, match=r"fingerprint unknown, .*not for other"):
        labels_of(card=ModelCard("toy", "memory", "", SHAPE)).check_model(ModelCard("other", "o", "abc", Shape(3, 4, 2, 8, 32)))


# ---- the file


def same(a, b):
    assert a.card == b.card
    assert list(a.labels.items()) == list(b.labels.items())
    assert list(a.scores) == list(b.scores)
    for probe in a.scores:
        np.testing.assert_array_equal(a.scores[probe], b.scores[probe])
    for name in ("rules", "evidence", "provenance"):
        assert dict(getattr(a, name)) == dict(getattr(b, name))
    return True


def test_the_file_holds_what_the_schema_says(tmp_path):
    path = labels_of().save(tmp_path / "heads.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data == labels_of().to_json()
    assert data["schema"] == SCHEMA == schema()["$id"] == "workbench.head-labels/1"
    assert data["model"] == {
        "name": "toy",
        "origin": "memory",
        "fingerprint": "abc",
        "shape": {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_model": 32},
        "revision": "main",
    }
    assert data["heads"][2] == {
        "head": "L0H2",
        "layer": 0,
        "index": 2,
        "kv_head": 1,
        "labels": ["retrieval", "sink"],
        "scores": {"retrieval": 0.9, "sink": -0.9},
    }
    assert [row["head"] for row in data["heads"]] == [str(head) for head in SHAPE.heads()]
    assert data["rules"]["retrieval"] == {
        "label": "retrieval",
        "probe": "retrieval",
        "value": 0.4,
        "source": "here",
        "chance": "none",
        "kind": "at_least",
        "per_kv_head": False,
    }
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert path.read_text(encoding="utf-8").startswith('{\n "schema"')


def test_saving_and_loading_is_the_identity(tmp_path):
    odd = labels_of(card=ModelCard("tøy ×", "memory", "", SHAPE), scores={"retrieval": SCORE_LH / 3, "tiny": SCORE_LH * 5e-324})
    for labels in (labels_of(), odd, labels_of(labels={}, scores={}, rules={}, evidence={}, provenance={})):
        assert same(HeadLabels.load(labels.save(tmp_path / "heads.json")), labels)
    assert "tøy ×" in odd.save(tmp_path / "heads.json").read_text(encoding="utf-8")


def test_a_model_of_one_head_comes_back():
    labels = HeadLabels(ModelCard("one", "o", "", Shape(1, 1, 1, 8, 8)), {Head(0, 0): ("a",)}, {"p": np.array([[0.5]])})
    assert same(HeadLabels.from_json(labels.to_json()), labels)


def test_what_json_cannot_hold_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        labels_of(provenance={"seconds": float("inf")}).save(tmp_path / "heads.json")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=8, max_size=8), st.lists(st.lists(st.text(min_size=1), unique=True), max_size=8))
def test_any_finite_scores_and_any_labels_come_back(scores, names):
    labels = HeadLabels(CARD, dict(zip(SHAPE.heads(), map(tuple, names), strict=False)), {"p": np.reshape(scores, (2, 4))})
    text = json.dumps(labels.to_json(), allow_nan=False)
    assert same(HeadLabels.from_json(json.loads(text)), labels)


def test_a_writer_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    path = labels_of().save(tmp_path / "heads.json")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        labels_of(scores={}).save(path)
    assert same(HeadLabels.load(path), labels_of())
    assert [file.name for file in tmp_path.iterdir()] == ["heads.json"]


def objects(node):
    """Every JSON Schema of an object's property, in any depth."""
    if isinstance(node, dict):
        for child in node.get("properties", {}).values():
            yield child
        for child in node.values():
            yield from objects(child)


def test_the_schema_is_valid_strict_and_described():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    described = list(objects(schema()))
    assert len(described) > 25
    assert all(part.get("description") for part in described)
    closed = [part for part in [schema(), *described, schema()["properties"]["heads"]["items"]] if "properties" in part]
    assert len(closed) == 5
    needed = [[name for name in part["properties"] if name != "policy"] for part in closed]  # labels may come without a policy
    assert all(part["additionalProperties"] is False and part["required"] == names for part, names in zip(closed, needed, strict=True))


def at(data, *place):
    for step in place:
        data = data[step]
    return data


BROKEN = [
    ((), "schema", "workbench.head-labels/2", r"at \$.schema"),
    ((), "extra", 1, "extra"),
    ((), "heads", [], r"at \$.heads"),
    (("model",), "extra", 1, r"at \$.model: .*extra"),
    (("model",), "name", 3, r"at \$.model.name: 3 is not of type 'string'"),
    (("model",), "revision", 3, r"at \$.model.revision"),
    (("model", "shape"), "n_layers", 0, r"at \$.model.shape.n_layers: 0 is less than the minimum of 1"),
    (("model", "shape"), "n_layers", 10**9, r"at \$.model.shape.n_layers"),
    (("model", "shape"), "n_heads", 2.5, r"at \$.model.shape.n_heads"),
    (("model", "shape"), "n_heads", True, r"at \$.model.shape.n_heads"),
    (("model", "shape"), "n_kv_heads", 3, "not the shape of an attention model"),
    (("model", "shape"), "n_layers", 3, "8 heads for 3 layers × 4 query heads"),
    (("model", "shape"), "n_kv_heads", 4, "L0H1: its layer, index, KV head or scores contradict"),
    (("model",), "origin", ["x" * 300], rf"at \$.model.origin: …{'x' * 74}'\] is not of type 'string'$"),
    ((), "provenance", [], r"at \$.provenance"),
    ((), "evidence", {"retrieval": 3}, r"at \$.evidence.retrieval"),
    (("rules", "retrieval"), "kind", "best", r"at \$.rules.retrieval.kind"),
    (("rules", "retrieval"), "value", 10**400, r"at \$.rules.retrieval.value"),
    (("rules", "retrieval"), "extra", 1, r"at \$.rules.retrieval: .*extra"),
    (("rules", "retrieval"), "per_kv_head", 1, r"at \$.rules.retrieval.per_kv_head"),
    (("heads", 2), "head", "10-7", r"at \$.heads\[2\].head"),
    (("heads", 2), "head", "L0H3", "L0H3: its layer, index, KV head or scores contradict the rest"),
    (("heads", 2), "layer", -1, r"at \$.heads\[2\].layer: -1 is less than the minimum of 0"),
    (("heads", 2), "kv_head", 0, "L0H2: its layer, index, KV head or scores contradict the rest"),
    (("heads", 2), "labels", ["a", "a"], r"at \$.heads\[2\].labels"),
    (("heads", 2), "labels", [""], r"at \$.heads\[2\].labels\[0\]"),
    (("heads", 2), "scores", {"retrieval": 1}, "L0H2: its layer, index, KV head or scores contradict the rest"),
    (("heads", 2, "scores"), "sink", "1", r"at \$.heads\[2\].scores.sink: '1' is not of type 'number'"),
    (("heads", 2, "scores"), "sink", 1e999, r"at \$.heads\[2\].scores.sink"),
    (("heads", 2, "scores"), "sink", -(10**400), r"at \$.heads\[2\].scores.sink"),
]


@pytest.mark.parametrize(("place", "key", "value", "message"), BROKEN)
def test_what_departs_from_the_schema_is_located(place, key, value, message):
    data = copy.deepcopy(labels_of().to_json())
    at(data, *place)[key] = value
    with pytest.raises(InputError, match=message):
        HeadLabels.from_json(data)


@pytest.mark.parametrize("place", [(), ("model",), ("model", "shape"), ("rules", "retrieval"), ("heads", 2)])
def test_every_field_is_needed(place):
    for key in at(labels_of().to_json(), *place):
        data = copy.deepcopy(labels_of().to_json())
        del at(data, *place)[key]
        with pytest.raises(InputError, match=f"not head labels .*'{key}' is a required property"):
            HeadLabels.from_json(data)


def test_a_head_that_comes_twice_is_refused():
    data = labels_of().to_json()
    data["heads"][3] = data["heads"][2]
    with pytest.raises(InputError, match=r"^head L0H2: its .* contradict"):
        HeadLabels.from_json(data)


def test_whole_numbers_may_be_written_with_a_point():
    data = labels_of().to_json()
    data["heads"][2] |= {"layer": 0.0, "index": 2.0}
    data["model"]["shape"] = {name: float(size) for name, size in data["model"]["shape"].items()}
    assert same(HeadLabels.from_json(data), labels_of())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('{"schema": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[NaN]", "NaN is not a number"),
        ("[]", "not head labels"),
        ("null", "not head labels"),
        (json.dumps([{"0": [0.5] * 99}]), r"at \$: ….*0\.5\]\}\] is not of type 'object'; `workbench convert` reads the files of other tools"),
    ],
)
def test_a_file_that_is_not_of_the_schema_is_named(tmp_path, text, message):
    path = write_text(tmp_path / "heads.json", text)
    with pytest.raises(InputError, match=message) as caught:
        HeadLabels.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.json: No such file"):
        HeadLabels.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot read"):
        HeadLabels.load(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not JSON"):
        HeadLabels.load(tmp_path / "bytes.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(data, place=()):
    yield place
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[key], (*place, key))


PLACES = [place for place in places(labels_of().to_json()) if place]


@settings(max_examples=60)
@given(st.sampled_from(PLACES), json_values)
def test_any_value_anywhere_is_valid_or_an_input_error(place, value):
    data = copy.deepcopy(labels_of().to_json())
    at(data, *place[:-1])[place[-1]] = value
    with contextlib.suppress(InputError):
        assert isinstance(HeadLabels.from_json(data), HeadLabels)


def test_ties_go_to_the_earlier_heads_however_many_there_are():
    shape = Shape(n_layers=5, n_heads=64, n_kv_heads=64, d_head=2, d_model=8)
    tied = np.tile([1.0, 0.5], (5, 32))
    chosen = Rule("l", "p", 0.25, "s", "c", kind="top_share").select(tied, np.zeros((5, 64)), shape)
    assert np.flatnonzero(chosen).tolist() == list(range(0, 160, 2))
