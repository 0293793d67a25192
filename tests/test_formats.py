"""Is every file exactly what its tool reads, does it come back, and is what is damaged or cannot be said refused?

The example has two layers of four query heads on two KV heads, so that every file can be worked out by hand.
"""

import contextlib
import copy
import importlib
import json
import pickle
import pkgutil
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import formats
from workbench.errors import InputError
from workbench.formats import FORMATS, Export, read, write
from workbench.formats._reading import matrix
from workbench.formats.duo import ranks
from workbench.formats.headvis import metric, probe
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels, Rule

SHAPE = Shape(2, 4, 2, 8, 32)
CARD = ModelCard("owner/toy-1B", "memory", "abc", SHAPE, "main")
RETRIEVAL_LH = np.array([[0.5, 0.0, 0.25, 0.0], [0.0, 1.0, 0.0, 0.125]])
SEMANTIC_LH = np.array([[1.0, 3.0, 3.0, 2.0], [0.0, -1.0, 0.5, 0.0]])
FOLDERS = ("duo", "headvis")


def rule(name, probe):
    return Rule(name, probe, 0.25, "here", "none")


LABELS = HeadLabels(
    CARD,
    {
        Head(0, 0): ("retrieval", "query_focused_retrieval"),
        Head(0, 2): ("retrieval", "razor_echo"),
        Head(0, 3): ("razor_induction",),
        Head(1, 1): ("retrieval", "query_focused_retrieval"),
    },
    {
        "retrieval": RETRIEVAL_LH,
        "semantic_retrieval": SEMANTIC_LH,
        "induction": RETRIEVAL_LH / 2,
        "previous_token": RETRIEVAL_LH / 4,
        "entropy": SEMANTIC_LH / 3,
    },
    {name: rule(name, probe) for name, probe in [("retrieval", "retrieval"), ("diffuse", "entropy"), ("no_head", "retrieval")]},
    {"retrieval": {"n": 7}},
    {"seed": 3},
)


def target(folder, name):
    return folder / {"duo": "pattern", "headvis": "tree", "qrhead": "config.yaml", "parquet": "heads.parquet"}.get(name, "file.json")


def written(folder, name, labels=LABELS, **choices):
    path = target(folder, name)
    assert write(labels, path, name, Export(**choices))
    return path


def names(heads):
    return [str(head) for head in heads]


def same(a, b):
    assert a.card == b.card
    assert list(a.labels.items()) == list(b.labels.items())
    assert list(a.scores) == list(b.scores)
    for name in a.scores:
        np.testing.assert_array_equal(a.scores[name], b.scores[name])
    for name in ("rules", "evidence", "provenance"):
        assert dict(getattr(a, name)) == dict(getattr(b, name))
    return True


# ---- what holds for every format


def test_every_module_is_a_format_and_says_what_it_is():
    modules = [module.name for module in pkgutil.iter_modules(formats.__path__) if not module.name.startswith("_")]
    assert list(FORMATS) == sorted(modules)
    assert formats._discover() == FORMATS
    assert set(FORMATS) == {"workbench", "retrieval_head", "duo", "minference", "razor", "compresskv", "qrhead", "headvis", "parquet"}
    for name, form in FORMATS.items():
        assert importlib.import_module(f"workbench.formats.{name}").FORMAT is form
        assert form.name == name
        assert form.title
        assert form.tools
        assert form.loss.endswith(".")
        assert form.granularity == ("kv" if name in {"duo", "razor"} else "query")
        assert set(form.uses) <= {"probe", "reduction", "label", "sink", "recent"}


def test_an_unknown_format_is_refused_with_all_formats(tmp_path):
    for use in (lambda: write(LABELS, tmp_path / "x", "csv"), lambda: read(tmp_path / "x", "csv")):
        with pytest.raises(
            InputError, match="unknown format 'csv'; there are: compresskv, duo, headvis, minference, parquet, qrhead, razor, retrieval_head, workbench"
        ):
            use()
    assert list(tmp_path.iterdir()) == []


CHOICES: dict[str, Any] = {"probe": "semantic_retrieval", "reduction": "mean", "label": "retrieval", "sink": 4, "recent": 8}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_used_or_refused(tmp_path, name, choice):
    export = Export(**{choice: CHOICES[choice]})
    if choice in FORMATS[name].uses:
        if (name, choice) != ("retrieval_head", "probe"):  # these scores are negative somewhere
            before = [path.read_bytes() for path in write(LABELS, tmp_path / "before", name)]
            assert [path.read_bytes() for path in write(LABELS, tmp_path / "after", name, export)] != before or (name, choice) in {
                ("compresskv", "probe"),
                ("minference", "label"),
            }
    else:
        with pytest.raises(InputError, match=f"{name} has no use for {choice}; it takes "):
            write(LABELS, tmp_path / "file", name, export)
        assert list(tmp_path.iterdir()) == []


def test_all_choices_that_are_not_used_are_named(tmp_path):
    with pytest.raises(InputError, match="razor has no use for probe, sink; it takes label"):
        write(LABELS, tmp_path / "x", "razor", Export(probe="retrieval", label="retrieval", sink=0))
    with pytest.raises(InputError, match=r"duo has no use for label; it takes probe, reduction, sink, recent$"):
        write(LABELS, tmp_path / "x", "duo", Export(label="retrieval"))
    with pytest.raises(InputError, match="parquet has no use for label; it takes no options"):
        write(LABELS, tmp_path / "x", "parquet", Export(label="retrieval"))


def test_choices_are_sensible():
    assert Export().given == ()
    assert Export(sink=0, reduction="max").given == ("reduction", "sink")
    with pytest.raises(InputError, match="sink is a number of tokens, 0 or more; got -1"):
        Export(sink=-1)
    with pytest.raises(InputError, match="recent is a number of tokens, 0 or more; got -1"):
        Export(recent=-1)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_tells_the_shape_or_the_model_is_asked_for(tmp_path, name):
    path = written(tmp_path, name)
    if FORMATS[name].knows_shape:
        assert read(path, name).card == CARD
    else:
        with pytest.raises(InputError, match="does not tell the model's shape; say which model it belongs to with --model") as caught:
            read(path, name)
        assert str(caught.value).startswith(f"{path} does not")
    assert read(str(path), name, CARD).card == CARD


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [Shape(3, 4, 2, 8, 32), Shape(2, 2, 1, 8, 32), Shape(1, 4, 2, 8, 32)])
def test_a_model_of_another_shape_is_refused_with_both(tmp_path, name, shape):
    path = written(tmp_path, name, **({"label": "retrieval"} if name == "qrhead" else {}))
    if name in {"razor", "qrhead"} and shape.n_layers == 3:
        assert read(path, name, ModelCard("bigger", "o", "", shape)).card.shape == shape  # a set of heads fits in a bigger model
        return
    with pytest.raises(InputError, match="other") as caught:
        read(path, name, ModelCard("other", "o", "", shape))
    assert "toy" in str(caught.value) or str(path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.knows_shape])
def test_a_file_made_for_other_weights_is_refused(tmp_path, name):
    path = written(tmp_path, name)
    with pytest.raises(InputError, match=r"made for owner/toy-1B \(fingerprint abc, .*not for toy \(fingerprint def"):
        read(path, name, ModelCard("toy", "o", "def", SHAPE))


@pytest.mark.parametrize("name", FORMATS)
def test_a_name_is_used_or_refused(tmp_path, name):
    path = written(tmp_path, name)
    if FORMATS[name].reads_as is None:
        with pytest.raises(InputError, match=f"{name} files have names themselves; 'mine' cannot be given"):
            read(path, name, CARD, name="mine")
        return
    for given_name, expected in [(None, FORMATS[name].reads_as), ("mine", "mine")]:
        labels = read(path, name, CARD, name=given_name)
        assert expected in {*labels.scores, *(label for labels_ in labels.labels.values() for label in labels_)}
        assert labels.provenance["format"] == name
        assert labels.provenance["file"] == path.name


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_is_named(tmp_path, name):
    message = "none is not a Parquet file that can be read" if name == "parquet" else "^cannot read [^:]*none[^:]*: No such file or directory$"
    with pytest.raises(InputError, match=message):
        read(tmp_path / "none", name, CARD)


@pytest.mark.parametrize("name", FORMATS)
def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path, name):
    before = {path.relative_to(tmp_path): path.read_bytes() for path in write(LABELS, target(tmp_path, name), name)}
    again = {path.relative_to(tmp_path): path.read_bytes() for path in write(LABELS, target(tmp_path, name), name)}
    there = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(again) == set(before) == there
    assert again == before


# ---- each file, by hand


def test_workbench_and_parquet_lose_nothing(tmp_path):
    bare = HeadLabels(CARD, LABELS.labels, {})
    for name in ("workbench", "parquet"):
        for labels in (LABELS, bare):
            path = written(tmp_path, name, labels)
            assert same(read(path, name), labels)
            assert same(read(path, name, CARD), labels)


@pytest.mark.parametrize("name", ["workbench", "parquet", "headvis"])
def test_a_file_holds_no_nan_that_is_no_json(tmp_path, name):
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(tmp_path, name, HeadLabels(CARD, {}, {"p": RETRIEVAL_LH}, provenance={"seconds": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_retrieval_head_is_one_line_layer_by_layer(tmp_path):
    path = written(tmp_path, "retrieval_head")
    assert path.read_text(encoding="utf-8") == (
        '{"0-0": [0.5], "0-1": [0.0], "0-2": [0.25], "0-3": [0.0], "1-0": [0.0], "1-1": [1.0], "1-2": [0.0], "1-3": [0.125]}\n'
    )
    labels = read(path, "retrieval_head", CARD)
    np.testing.assert_array_equal(labels.scores["retrieval"], RETRIEVAL_LH)
    assert labels.counts() == {}
    assert dict(labels.provenance) == {"format": "retrieval_head", "file": "file.json", "samples": 1}
    assert json.loads(written(tmp_path, "retrieval_head", probe="induction").read_text(encoding="utf-8"))["1-1"] == [0.5]


def test_retrieval_head_is_loaded_by_its_tools_way(tmp_path):
    line = written(tmp_path, "retrieval_head").read_text(encoding="utf-8").splitlines()[0]
    loaded = np.array([np.mean(samples) for samples in json.loads(line).values()]).reshape(2, 4)
    np.testing.assert_array_equal(loaded, RETRIEVAL_LH)


def test_retrieval_head_scores_are_the_mean_of_their_samples_in_any_order(tmp_path):
    lists = {f"{head.layer}-{head.index}": [0, head.layer, 3.5 * head.index, 0.0] for head in reversed(list(SHAPE.heads()))}
    (tmp_path / "file.json").write_text(json.dumps(lists), encoding="utf-8")
    labels = read(tmp_path / "file.json", "retrieval_head", CARD)
    np.testing.assert_array_equal(labels.scores["retrieval"], [[0, 0.875, 1.75, 2.625], [0.25, 1.125, 2, 2.875]])
    assert labels.provenance["samples"] == 4


def test_retrieval_head_holds_no_negative_scores_but_zero(tmp_path):
    with pytest.raises(InputError, match=r"retrieval_head holds no negative scores; semantic_retrieval has -1.0 at L1H1"):
        written(tmp_path, "retrieval_head", probe="semantic_retrieval")
    assert list(tmp_path.iterdir()) == []


ROWS = "7.500000000000000000e-01\t5.000000000000000000e-01\n1.000000000000000000e+00\t2.500000000000000000e-01\n"


def test_duo_is_the_rank_of_each_kv_head_and_a_config(tmp_path):
    path = written(tmp_path, "duo")
    assert (path / "full_attention_heads.tsv").read_bytes() == ROWS.encode()
    config = {
        "model_name": "owner/toy-1B",
        "sink_size": 128,
        "recent_size": 256,
        "scores": "ranks in (0, 1] of the max over each group of the probe retrieval",
        "model": LABELS.to_json()["model"],
    }
    assert (path / "config.json").read_text(encoding="utf-8") == json.dumps(config, indent=2) + "\n"
    labels = read(path, "duo")
    np.testing.assert_array_equal(labels.scores["duo_gate"], [[0.75, 0.75, 0.5, 0.5], [1, 1, 0.25, 0.25]])
    assert dict(labels.provenance) == {"format": "duo", "file": "pattern", "sink": 128, "recent": 256}


def test_duo_takes_another_reduction_probe_and_sizes(tmp_path):
    path = written(tmp_path, "duo", probe="semantic_retrieval", reduction="min", sink=0, recent=7)
    np.testing.assert_array_equal(np.loadtxt(path / "full_attention_heads.tsv", delimiter="\t"), [[0.75, 1], [0.25, 0.5]])
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert (config["sink_size"], config["recent_size"]) == (0, 7)
    assert config["scores"] == "ranks in (0, 1] of the min over each group of the probe semantic_retrieval"
    with pytest.raises(InputError, match="unknown reduction 'sum'"):
        written(tmp_path, "duo", reduction="sum")


def duo_loader(folder):
    """What DuoAttention and kvpress do with the folder."""
    gate_LG = np.clip(np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t"), 0, 1)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return gate_LG, config["sink_size"], config["recent_size"]


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=32, max_size=32))
def test_duo_loads_in_the_tools_and_their_quantile_takes_exactly_half_even_of_tied_scores(tmp_path_factory, scores):
    tmp_path = tmp_path_factory.mktemp("duo")
    card = ModelCard("m", "o", "", Shape(4, 8, 4, 8, 64))
    labels = HeadLabels(card, {}, {"retrieval": np.reshape(scores, (4, 8))})
    gate_LG, sink, recent = duo_loader(written(tmp_path, "duo", labels))
    shutil.rmtree(tmp_path)
    assert (gate_LG.shape, sink, recent) == ((4, 4), 128, 256)
    assert gate_LG.min() == 1 / 16
    assert gate_LG.max() == 1
    noisy = gate_LG + np.random.default_rng(0).uniform(0, 1e-6, gate_LG.shape)
    full = noisy >= np.quantile(noisy, 0.5)
    assert full.sum() == 8
    streaming = np.zeros(16, bool)
    streaming[np.argsort(gate_LG, axis=None)[: round(16 * 0.5)]] = True
    np.testing.assert_array_equal(full.ravel(), ~streaming)
    score_LG = card.shape.to_kv(labels.scores["retrieval"])
    assert score_LG[full].min() >= score_LG[~full].max()


def test_ranks_keep_the_order_and_of_equal_scores_the_earlier_is_higher():
    np.testing.assert_array_equal(ranks(np.array([[0.0, 5.0], [0.0, -1.0]])), [[0.75, 1.0], [0.5, 0.25]])
    np.testing.assert_array_equal(ranks(np.zeros(4)), [1, 0.75, 0.5, 0.25])


def test_duo_gates_of_others_are_clipped_and_repeated(tmp_path):
    (tmp_path / "config.json").write_text('{"sink_size": 64, "recent_size": 32.0, "lr": 0.02, "sparsity": null}', encoding="utf-8")
    (tmp_path / "full_attention_heads.tsv").write_text("-0.5\t1\n1.25\t0.125\n", encoding="utf-8")
    labels = read(tmp_path, "duo", CARD)
    np.testing.assert_array_equal(labels.scores["duo_gate"], [[0, 0, 1, 1], [1, 1, 0.125, 0.125]])
    assert (labels.provenance["sink"], labels.provenance["recent"]) == (64, 32)


@pytest.mark.parametrize("shape", [Shape(1, 4, 2, 8, 32), Shape(2, 4, 1, 8, 32)])
def test_duo_cannot_hold_one_row_or_one_column(tmp_path, shape):
    labels = HeadLabels(ModelCard("small", "o", "", shape), {}, {"retrieval": np.ones((shape.n_layers, 4))})
    with pytest.raises(InputError, match=r"duo needs two layers and two KV heads or more.*small is Shape\("):
        written(tmp_path, "duo", labels)


VERTICAL, STREAM = ["vertical_and_slash", 1000, 6096], ["stream_llm", 100, 800]


def test_minference_has_a_pattern_per_head(tmp_path):
    path = written(tmp_path, "minference")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"0": [*VERTICAL, 0.5], "1": [*STREAM, 0.0], "2": [*VERTICAL, 0.25], "3": [*STREAM, 0.0]},
        {"0": [*STREAM, 0.0], "1": [*VERTICAL, 1.0], "2": [*STREAM, 0.0], "3": [*STREAM, 0.125]},
    ]
    labels = read(path, "minference", CARD)
    np.testing.assert_array_equal(labels.scores["minference"], RETRIEVAL_LH)
    assert labels.heads("vertical_and_slash") == LABELS.heads("retrieval")
    assert len(labels.heads("stream_llm")) == 5
    assert labels.provenance["heads_by_default"] == 0


def test_minference_takes_the_labels_own_probe_another_one_and_sizes(tmp_path):
    diffuse = json.loads(written(tmp_path, "minference", label="diffuse").read_text(encoding="utf-8"))
    assert diffuse[0]["1"] == [*STREAM, 1.0]
    other = json.loads(written(tmp_path, "minference", probe="induction", sink=4, recent=64).read_text(encoding="utf-8"))
    assert other[1]["1"] == [*VERTICAL, 0.5]
    assert other[1]["0"] == ["stream_llm", 4, 64, 0.0]
    with pytest.raises(InputError, match="unknown probe 'razor_echo'; there are: entropy, induction"):
        written(tmp_path, "minference", label="razor_echo")
    bare = HeadLabels(CARD, LABELS.labels, {})
    assert json.loads(written(tmp_path, "minference", bare).read_text(encoding="utf-8"))[0]["0"] == [*VERTICAL, 1.0]
    with pytest.raises(InputError, match="unknown probe 'retrieval'"):
        written(tmp_path, "minference", bare, probe="retrieval")


def test_minference_heads_that_are_missing_have_its_default(tmp_path):
    (tmp_path / "f.json").write_text('[{"1": ["stream_llm", 1, 2, 0.5]}, {"3": ["block_sparse", 100, 1, 336]}]', encoding="utf-8")
    labels = read(tmp_path / "f.json", "minference", CARD)
    np.testing.assert_array_equal(labels.scores["minference"], [[1, 0.5, 1, 1], [1, 1, 1, 336]])
    assert labels.heads("stream_llm") == (Head(0, 1),)
    assert labels.heads("block_sparse") == (Head(1, 3),)
    assert len(labels.heads("vertical_and_slash")) == 6
    assert labels.provenance["heads_by_default"] == 6


def test_razor_is_the_union_of_its_two_sets_per_kv_head(tmp_path):
    path = written(tmp_path, "razor")
    assert path.read_text(encoding="utf-8") == '{"0": [1], "1": []}\n'
    labels = read(path, "razor", CARD)
    assert names(labels.heads("razor")) == ["L0H2", "L0H3"]
    assert dict(labels.scores) == {}
    path = written(tmp_path, "razor", label="retrieval")
    assert json.loads(path.read_text(encoding="utf-8")) == {"0": [0, 1], "1": [0]}
    assert names(read(path, "razor", CARD).heads("razor")) == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0", "L1H1"]
    again = written(tmp_path, "razor", read(path, "razor", CARD), label="razor")
    assert json.loads(again.read_text(encoding="utf-8")) == {"0": [0, 1], "1": [0]}


def test_razor_reads_a_layer_that_is_missing_as_one_without_heads(tmp_path):
    (tmp_path / "f.json").write_text('{"1": [1]}', encoding="utf-8")
    assert names(read(tmp_path / "f.json", "razor", CARD).heads("razor")) == ["L1H2", "L1H3"]


def test_razor_reads_a_layer_without_heads_of_a_model_with_one_kv_head(tmp_path):
    (tmp_path / "f.json").write_text('{"0": [], "1": [0]}', encoding="utf-8")
    labels = read(tmp_path / "f.json", "razor", ModelCard("one", "o", "", Shape(2, 2, 1, 8, 32)))
    assert names(labels.heads("razor")) == ["L1H0", "L1H1"]


@pytest.mark.parametrize("suffix", [".pt", ".PT", ".pth", ".pkl", ".bin"])
def test_razor_pickles_are_neither_read_nor_written(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(pickle.dumps({"prefix_matching": {0: [1]}}))
    for use in (lambda: read(path, "razor", CARD), lambda: write(LABELS, path, "razor")):
        with pytest.raises(InputError, match="would be a pickle, which can run any code when read"):
            use()


def test_compresskv_is_the_order_of_each_layer(tmp_path):
    path = written(tmp_path, "compresskv")
    assert path.read_text(encoding="utf-8") == ('{\n  "0": [\n    1,\n    2,\n    3,\n    0\n  ],\n  "1": [\n    2,\n    0,\n    3,\n    1\n  ]\n}\n')
    labels = read(path, "compresskv", CARD)
    np.testing.assert_array_equal(labels.scores["semantic_retrieval"], [[0.25, 1, 0.75, 0.5], [0.75, 0.25, 1, 0.5]])
    scores = "ranks within the layer: 1 is the strongest head, 1/H the weakest"
    assert dict(labels.provenance) == {"format": "compresskv", "file": "file.json", "scores": scores}
    again = written(tmp_path, "compresskv", labels)
    np.testing.assert_array_equal(read(again, "compresskv", CARD).scores["semantic_retrieval"], labels.scores["semantic_retrieval"])
    path = written(tmp_path, "compresskv", probe="retrieval")
    assert json.loads(path.read_text(encoding="utf-8")) == {"0": [0, 2, 1, 3], "1": [1, 3, 0, 2]}


def test_compresskv_and_duo_give_equal_scores_to_the_earlier_head_however_many_there_are(tmp_path):
    scores = {name: np.tile([0.5, 1.0], (2, 32)) for name in ("semantic_retrieval", "retrieval")}
    labels = HeadLabels(ModelCard("wide", "o", "", Shape(2, 64, 64, 8, 512)), {}, scores)
    order = [*range(1, 64, 2), *range(0, 64, 2)]
    assert json.loads(written(tmp_path, "compresskv", labels).read_text(encoding="utf-8")) == {"0": order, "1": order}
    gate_LG = np.loadtxt(written(tmp_path, "duo", labels) / "full_attention_heads.tsv", delimiter="\t")
    assert np.argsort(-gate_LG, axis=None).tolist() == [*range(1, 128, 2), *range(0, 128, 2)]


def test_qrhead_is_a_configuration(tmp_path):
    path = written(tmp_path, "qrhead")
    assert path.read_text(encoding="utf-8") == ('attn_head_set: "0-0,1-1"\nmodel_base_class: "toy-1B"\nmodel_name_or_path: "owner/toy-1B"\n')
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["attn_head_set"] == "0-0,1-1"
    labels = read(path, "qrhead", CARD)
    assert labels.heads("query_focused_retrieval") == LABELS.heads("query_focused_retrieval")
    assert labels.counts() == {"query_focused_retrieval": 2}
    assert labels.provenance["model_name_or_path"] == "owner/toy-1B"
    assert 'attn_head_set: "0-0,0-2,1-1"\n' in written(tmp_path, "qrhead", label="retrieval").read_text(encoding="utf-8")


def test_qrhead_reads_the_files_of_others(tmp_path):
    (tmp_path / "a.yaml").write_text('# QRHead\nattn_head_set: "1-3, 0-1" # top 2\n', encoding="utf-8")
    labels = read(tmp_path / "a.yaml", "qrhead", CARD)
    assert names(labels.heads("query_focused_retrieval")) == ["L0H1", "L1H3"]
    assert labels.provenance["model_name_or_path"] is None
    (tmp_path / "b.yaml").write_text("attn_head_set: full_heads\nmodel_base_class: x\n", encoding="utf-8")
    assert len(read(tmp_path / "b.yaml", "qrhead", CARD).heads("query_focused_retrieval")) == 8


@pytest.mark.parametrize("name", ["toy", "owner/toy", "models/owner/toy"])
def test_qrhead_takes_the_class_of_a_model_from_the_last_part_of_its_name(tmp_path, name):
    labels = HeadLabels(ModelCard(name, "o", "", SHAPE), LABELS.labels, {})
    assert yaml.safe_load(written(tmp_path, "qrhead", labels).read_text(encoding="utf-8")) == {
        "attn_head_set": "0-0,1-1",
        "model_base_class": "toy",
        "model_name_or_path": name,
    }


def test_qrhead_needs_a_head(tmp_path):
    with pytest.raises(InputError, match="qrhead needs one head or more, and no head of owner/toy-1B is labelled no_head"):
        written(tmp_path, "qrhead", label="no_head")


@pytest.mark.parametrize("name", ["qrhead", "razor", "minference"])
def test_a_label_that_does_not_exist_is_refused_with_those_that_do(tmp_path, name):
    with pytest.raises(InputError, match=r"unknown label 'x'; there are: .*retrieval"):
        written(tmp_path, name, label="x")
    bare = HeadLabels(CARD, {}, {"p": RETRIEVAL_LH})
    with pytest.raises(
        InputError, match=f"unknown label '{'razor_echo' if name == 'razor' else FORMATS['qrhead'].reads_as if name == 'qrhead' else 'retrieval'}'"
    ):
        written(tmp_path, name, bare)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["retrieval_head", "duo", "compresskv"])
def test_a_probe_that_was_not_scored_is_refused_with_those_that_were(tmp_path, name):
    with pytest.raises(InputError, match="unknown probe 'x'; there are: entropy, induction, previous_token, retrieval, semantic_retrieval"):
        written(tmp_path, name, probe="x")
    with pytest.raises(InputError, match=r"unknown probe '(semantic_)?retrieval'; there are: p"):
        written(tmp_path, name, HeadLabels(CARD, {}, {"p": RETRIEVAL_LH}))
    assert list(tmp_path.iterdir()) == []


def test_headvis_is_a_tree(tmp_path):
    path = written(tmp_path, "headvis")
    scatter = json.loads((path / "scatter_data.json").read_text(encoding="utf-8"))
    row = {"retrieval_score": 1.0, "semantic_retrieval_score": -1.0, "induction_score": 0.5, "prev_token_score": 0.25, "entropy_score": -1 / 3}
    assert scatter[5] == {"layer": 1, "head": 1, **row}
    assert [(row["layer"], row["head"]) for row in scatter] == [(head.layer, head.index) for head in SHAPE.heads()]
    assert json.loads((path / "heads" / "L1H1.json").read_text(encoding="utf-8")) == {
        "sequences": [],
        "histogram": {},
        "statistics": row,
        "layer": 1,
        "head": 1,
        "labels": ["retrieval", "query_focused_retrieval"],
    }
    assert sorted(file.name for file in (path / "heads").iterdir()) == sorted(f"{head}.json" for head in SHAPE.heads())
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert (path / "config.json").read_text(encoding="utf-8") == json.dumps(config, indent=1)
    assert config["model_name"] == "owner/toy-1B"
    assert config["heads"] == [[head.layer, head.index] for head in SHAPE.heads()]
    assert (config["n_layers"], config["n_heads"], config["has_umap"]) == (2, 4, False)
    assert config["metrics"] == list(row)
    assert config["metric_descriptions"]["prev_token_score"] == "probe previous_token of the attention-head workbench"
    assert config["head_data_pattern"] == "L{layer}H{head}.json"
    assert config["pipeline_config"] == {part: LABELS.to_json()[part] for part in ("model", "rules", "provenance")}


def test_headvis_scores_come_back_exactly(tmp_path):
    labels = read(written(tmp_path, "headvis"), "headvis")
    assert list(labels.scores) == list(LABELS.scores)
    for name, score_LH in LABELS.scores.items():
        np.testing.assert_array_equal(labels.scores[name], score_LH)


def test_headvis_metrics_that_are_not_ours_keep_their_names(tmp_path):
    rows = [
        {"layer": head.layer, "head": head.index, "self_attention_score": 0.5, "pattern_entropy": 4.5, "previous_token_score": 0.25, "qk_distance": None}
        for head in SHAPE.heads()
    ]
    (tmp_path / "scatter_data.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_name": "x", "pipeline_config": {"n_sequences": 16}}', encoding="utf-8")
    labels = read(tmp_path, "headvis", CARD)
    assert list(labels.scores) == ["self_attention_score", "pattern_entropy", "previous_token"]
    assert dict(labels.provenance) == {"format": "headvis", "file": tmp_path.name}
    assert (labels.scores["pattern_entropy"] == 4.5).all()
    for name in (*labels.scores, "qk_distance", "induction", "x", "x_score"):
        assert probe(metric(name)) == name


@pytest.mark.parametrize("name", ["self_attention_score", "pattern_entropy", "qk_distance", "logit_std"])
def test_a_metric_of_headvis_is_written_and_read_under_its_own_name(tmp_path, name):
    path = written(tmp_path, "headvis", HeadLabels(CARD, {}, {name: RETRIEVAL_LH}))
    assert json.loads((path / "scatter_data.json").read_text(encoding="utf-8"))[2] == {"layer": 0, "head": 2, name: 0.25}
    assert list(read(path, "headvis").scores) == [name]


def test_headvis_needs_scores_and_a_metric_for_each(tmp_path):
    with pytest.raises(InputError, match=r"^headvis shows scores, and these labels have none$"):
        written(tmp_path, "headvis", HeadLabels(CARD, {}, {}))
    with pytest.raises(InputError, match="one metric for two of these probes: previous_token, prev_token"):
        written(tmp_path, "headvis", HeadLabels(CARD, {}, {"previous_token": RETRIEVAL_LH, "prev_token": RETRIEVAL_LH}))


def test_parquet_is_a_tidy_table(tmp_path):
    path = written(tmp_path, "parquet")
    table = pd.read_parquet(path)
    assert list(table.columns) == ["model", "fingerprint", "layer", "head", "kv_head", "probe", "score", "labels"]
    assert len(table) == 8 * 5
    row = table[(table["layer"] == 1) & (table["head"] == 3) & (table["probe"] == "retrieval")].iloc[0]
    assert (row["model"], row["fingerprint"], row["kv_head"], row["score"]) == ("owner/toy-1B", "abc", 1, 0.125)
    assert list(table["labels"][0]) == ["retrieval", "query_focused_retrieval"]
    facts = json.loads(pq.read_schema(path).metadata[b"workbench.head-labels/1"])
    assert facts == {key: value for key, value in LABELS.to_json().items() if key != "heads"}


# ---- what is damaged


HEADS = {f"{head.layer}-{head.index}": [0.5, 1] for head in SHAPE.heads()}
PATTERNS = [{str(head): ["stream_llm", 1, 2, 0.5] for head in range(4)} for _ in range(2)]
SCATTER = [{"layer": head.layer, "head": head.index, "a_score": 0.5} for head in SHAPE.heads()]
DAMAGED = [
    ("retrieval_head", {}, r"at \$: "),
    ("retrieval_head", [], "is not of type 'object'"),
    ("retrieval_head", {**HEADS, "0-1": [0.5]}, "every head needs the same number of scores, there are lists of 1 to 2"),
    ("retrieval_head", {**HEADS, "0-1": []}, "should be non-empty"),
    ("retrieval_head", {**HEADS, "0-1": [0.5, -0.1]}, "-0.1 is less than the minimum of 0"),
    ("retrieval_head", {**HEADS, "0-1": [0.5, 1e999]}, "Infinity is not a finite number"),
    ("retrieval_head", {**HEADS, "0-1": [0.5, float("nan")]}, "NaN is not a finite number"),
    ("retrieval_head", {**HEADS, "0-1": [0.5, 1e301]}, "is greater than the maximum"),
    ("retrieval_head", {**HEADS, "0-1": [0.5, "1"]}, "'1' is not of type 'number'"),
    ("retrieval_head", {**HEADS, "0-1": [0.5, True]}, "True is not of type 'number'"),
    ("retrieval_head", {**HEADS, "L0H1": [1, 1]}, "'L0H1' does not match"),
    ("retrieval_head", {**HEADS, "0-01": [1, 1]}, "'0-01' does not match"),
    ("retrieval_head", {**HEADS, "0-4": [1, 1]}, "has 9 heads in 2 layers × 5; owner/toy-1B has 8 in 2 layers × 4 query heads"),
    ("retrieval_head", {**HEADS, "2-0": [1, 1]}, "has 9 heads in 3 layers × 4"),
    ("retrieval_head", {key: value for key, value in HEADS.items() if key != "0-1"}, "has 7 heads in 2 layers × 4; "),
    ("minference", [], "should be non-empty"),
    ("minference", PATTERNS[:1], "has 1 layers, owner/toy-1B has 2"),
    ("minference", [{**PATTERNS[0], "4": PATTERNS[0]["0"]}, PATTERNS[1]], "has 9 heads in 2 layers × 5"),
    ("minference", [{"0": ["dense", 1, 2, 3]}, {}], "'dense' is not one of"),
    ("minference", [{"0": ["stream_llm", -1, 2, 3]}, {}], "-1 is less than the minimum of 0"),
    ("minference", [{"0": ["stream_llm", 1, 0.5, 3]}, {}], "0.5 is not of type 'integer'"),
    ("minference", [{"0": ["stream_llm", 1, 2]}, {}], "is too short"),
    ("minference", [{"0": ["stream_llm", 1, 2, 3, 4]}, {}], "is too long|expected at most 4"),
    ("minference", [{"0": ["stream_llm", 1, 2, None]}, {}], "None is not of type 'number'"),
    ("minference", [{"h": ["stream_llm", 1, 2, 3]}, {}], "'h' does not match"),
    ("minference", [3, {}], "3 is not of type 'object'"),
    ("razor", {}, r"at \$"),
    ("razor", {"0": 1}, "1 is not of type 'array'"),
    ("razor", {"0": "x" * 300}, f": '{'x' * 199}$"),
    ("razor", {"0": [1, 1]}, "non-unique"),
    ("razor", {"0": [-1]}, "-1 is less than the minimum of 0"),
    ("razor", {"x": [1]}, "'x' does not match"),
    ("razor", {"0": [2]}, r"has KV heads \{0: \[2\]\}; owner/toy-1B has 2 layers × 2 KV heads"),
    ("razor", {"1": [1], "2": []}, r"has KV heads \{2: \[\]\}"),
    ("compresskv", {}, r"at \$"),
    ("compresskv", {"0": [0, 1, 2, 3]}, "has 1 layers, owner/toy-1B has 2"),
    ("compresskv", {"0": [0, 1, 2, 3], "1": [0, 1, 2]}, "ranks 3 heads in layer 1; owner/toy-1B has 4 query heads"),
    ("compresskv", {"0": [0, 1, 2, 3], "1": [0, 1, 2, 2]}, "non-unique"),
    ("compresskv", {"0": [0, 1, 2, 3], "1": [0, 1, 2, 4]}, "has 8 heads in 2 layers × 5"),
    ("compresskv", {"0": [0, 1, 2, 3], "2": [0, 1, 2, 3]}, "has 8 heads in 3 layers × 4"),
    ("compresskv", {"0": [0, 1, 2, 3], "1": [0, 1, 2, 0.5]}, "0.5 is not of type 'integer'"),
    ("compresskv", {"0": [0, 1, 2, 3], "x": [0, 1, 2, 3]}, "'x' does not match"),
    ("compresskv", {"0": [0, 1, 2, 3], "1": []}, "should be non-empty"),
]


@pytest.mark.parametrize(("name", "data", "message"), DAMAGED)
def test_json_that_is_not_the_tools_is_refused_with_file_and_reason(tmp_path, name, data, message):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read(path, name, CARD)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON that can be read: Expecting value"),
        ('{"0": [1]', "is not JSON that can be read"),
        ('{"0": [1], "0": [0]}', r"is not JSON that can be read: an object has the same key twice$"),
        ("[" * 100_000, "is not JSON that can be read"),
    ],
)
def test_what_is_no_json_is_refused_with_file_and_reason(tmp_path, text, message):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    for name in ("razor", "retrieval_head", "compresskv", "minference"):
        with pytest.raises(InputError, match=message) as caught:
            read(path, name, CARD)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in FOLDERS])
def test_bytes_and_folders_are_refused(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(b"\x00\xff\xfe")
    for place in (path, tmp_path):
        with pytest.raises(InputError) as caught:
            read(place, name, CARD)
        assert str(place) in str(caught.value)


def test_text_that_is_no_utf8_says_where(tmp_path):
    (tmp_path / "file").write_bytes(b"{\xff")
    with pytest.raises(InputError, match="is no text file: invalid start byte at byte 1"):
        read(tmp_path / "file", "razor", CARD)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("0\t1\n", "has 1 layers, owner/toy-1B has 2"),
        ("", "has 0 layers"),
        ("0\t1\n1\n", "has 3 heads in 2 layers × 2; owner/toy-1B has 4 in 2 layers × 2 KV heads"),
        ("0\t1\t1\n1\t0\t1\n", "has 6 heads in 2 layers × 3"),
        ("0\t1\n1\tx\n", "'x' is not a finite number"),
        ("0\t1\n1\tnan\n", "'nan' is not a finite number"),
        ("0\t1\n1\t-inf\n", "'-inf' is not a finite number"),
        ("0 1\n1 0\n", "'0 1' is not a finite number"),
        ("0\t1\n1\t\n", "'' is not a finite number"),
        ("0\t1\n1\t" + "x" * 50, f": '{'x' * 40}' is not a finite number"),
    ],
)
def test_a_duo_table_that_is_not_one_is_refused(tmp_path, table, message):
    path = written(tmp_path, "duo")
    (path / "full_attention_heads.tsv").write_text(table, encoding="utf-8")
    for card in (CARD, None):
        with pytest.raises(InputError, match=message) as caught:
            read(path, "duo", card)
        assert str(path / "full_attention_heads.tsv") in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sink_size": 1}, "'recent_size' is a required property"),
        ({"recent_size": 1}, "'sink_size' is a required property"),
        ({"sink_size": -1, "recent_size": 1}, "-1 is less than the minimum of 0"),
        ({"sink_size": 1, "recent_size": 1.5}, "1.5 is not of type 'integer'"),
        ({"sink_size": 1, "recent_size": 10**10}, "is greater than the maximum"),
        ({"sink_size": 1, "recent_size": 1, "model": {}}, "'name' is a required property"),
        ([], "is not of type 'object'"),
    ],
)
def test_a_duo_config_that_is_not_one_is_refused(tmp_path, config, message):
    path = written(tmp_path, "duo")
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read(path, "duo", CARD)
    assert str(path / "config.json") in str(caught.value)


@pytest.mark.parametrize(("name", "config"), [("duo", {"sink_size": 1, "recent_size": 1}), ("headvis", {})])
def test_a_folder_of_others_does_not_tell_the_model(tmp_path, name, config):
    path = written(tmp_path, name)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="does not tell the model's shape") as caught:
        read(path, name)
    assert str(caught.value).startswith(f"{path} does not")
    assert read(path, name, CARD).card == CARD


def test_a_matrix_is_of_floats_and_needs_every_head(tmp_path):
    assert matrix(tmp_path, CARD, [(head.layer, head.index, 1) for head in SHAPE.heads()]).dtype == float
    with pytest.raises(InputError, match="has 0 heads in 0 layers × 0; owner/toy-1B has 8 in 2 layers × 4 query heads"):
        matrix(tmp_path, CARD, [])


def test_duo_and_headvis_need_all_their_files(tmp_path):
    for name, file in [("duo", "config.json"), ("duo", "full_attention_heads.tsv"), ("headvis", "config.json"), ("headvis", "scatter_data.json")]:
        path = written(tmp_path, name)
        (path / file).unlink()
        with pytest.raises(InputError, match=f"cannot read .*{file}: No such file"):
            read(path, name, CARD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "None is not of type 'object'"),
        ("- a", "is not of type 'object'"),
        ("attn_head_set:", r"at \$.attn_head_set: '' "),
        ("attn_head_set: [1-2]", r"at \$.attn_head_set: \['1-2'\] is not of type 'string'"),
        ("model_base_class: x", "'attn_head_set' is a required property"),
        ("attn_head_set: 0-1\nmodel_name_or_path: [a]", r"at \$.model_name_or_path"),
        ('attn_head_set: "0-1', "is not YAML that can be read"),
        ("a: b: c", "is not YAML that can be read"),
        ("attn_head_set: !!python/object/apply:os.system [ls]", r"at \$.attn_head_set: \['ls'\]"),
        ("[" * 1100, "is not YAML that can be read"),
        ("attn_head_set: all", "'all' in attn_head_set names no head; it is 'full_heads' or a list such as 13-18,13-21"),
        ("attn_head_set: 0-1,,1-1", "'' in attn_head_set names no head"),
        ("attn_head_set: 0-1,L1H1", "'L1H1' in attn_head_set"),
        ("attn_head_set: 0-1,0-4", "has L0H4; owner/toy-1B has 2 layers × 4 query heads"),
        ("attn_head_set: 2-0", "has L2H0; owner/toy-1B"),
    ],
)
def test_yaml_that_is_no_qrhead_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read(path, "qrhead", CARD)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "should be non-empty"),
        ([{"layer": 0}], "'head' is a required property"),
        ([{"layer": 0, "head": -1}], "-1 is less than the minimum of 0"),
        ([{"layer": 0, "head": 0, "a_score": "x"}], "'x' is not of type 'number', 'null'"),
        ([{"layer": 0, "head": 0, "a_score": float("nan")}], "NaN is not a finite number"),
        (SCATTER[:7], "has 7 heads in 2 layers × 4; owner/toy-1B has 8"),
        ([*SCATTER[:7], {"layer": 1, "head": 3, "a_score": None}], "L1H3 has no a_score, other heads have"),
        ([*SCATTER[:7], {"layer": 1, "head": 3}], "L1H3 has no a_score, other heads have"),
        ([{**row, "a": 1} for row in SCATTER], "has two metrics for one probe: a_score, a"),
        ([{"layer": row["layer"], "head": row["head"]} for row in SCATTER], "has no metric"),
    ],
)
def test_a_headvis_tree_that_is_not_one_is_refused(tmp_path, rows, message):
    path = written(tmp_path, "headvis")
    (path / "scatter_data.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read(path, "headvis", CARD)
    assert str(path / "scatter_data.json") in str(caught.value)


def test_a_headvis_config_that_is_not_one_is_refused(tmp_path):
    path = written(tmp_path, "headvis")
    for config, message in [([], "'object'"), ({"pipeline_config": 1}, r"at \$.pipeline_config"), ({"pipeline_config": {"model": {}}}, "'name' is a required")]:
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(InputError, match=message) as caught:
            read(path, "headvis", CARD)
        assert str(path / "config.json") in str(caught.value)


def changed(table, column, values):
    place = table.column_names.index(column)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


PARQUET = [
    (lambda table: table.drop_columns("score"), "needs the columns model, fingerprint, .*it has model, fingerprint, layer, head, kv_head, probe, labels"),
    (lambda table: table.replace_schema_metadata(None), "lacks the metadata workbench.head-labels/1; it was not written by the workbench"),
    (lambda table: table.replace_schema_metadata({"workbench.head-labels/1": "{"}), "not a Parquet file that can be read: Expecting"),
    (lambda table: table.replace_schema_metadata({"workbench.head-labels/1": "{}"}), "'schema' is a required property"),
    (lambda table: table.replace_schema_metadata({"workbench.head-labels/1": "[]"}), "is not of type 'object'"),
    (lambda table: table.slice(1), "contradict the rest of the file"),
    (lambda table: table.slice(5), "7 heads for 2 layers × 4 query heads"),
    (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "two rows for L0H0 and retrieval contradict each other"),
    (lambda table: changed(table, "score", [None] * len(table)), "None is not of type 'number'"),
    (lambda table: changed(table, "score", [float("nan")] * len(table)), "the retrieval score is nan"),
    (lambda table: changed(table, "score", [float("inf")] * len(table)), "inf is greater than the maximum"),
    (lambda table: changed(table, "kv_head", [0] * len(table)), "L0H2: its layer, index, KV head"),
    (lambda table: changed(table, "kv_head", range(len(table))), "two rows for L0H0 and semantic_retrieval contradict"),
    (lambda table: changed(table, "labels", [[str(row)] for row in range(len(table))]), "two rows for L0H0 and semantic_retrieval contradict"),
    (lambda table: changed(table, "layer", [-1] * len(table)), "two rows for L-1H0|does not match|minimum"),
    (lambda table: table.slice(0, 0), "should be non-empty"),
]


@pytest.mark.parametrize(("change", "message"), PARQUET)
def test_a_parquet_table_that_is_not_ours_is_refused(tmp_path, change, message):
    path = written(tmp_path, "parquet")
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError, match=message) as caught:
        read(path, "parquet", CARD)
    assert str(caught.value).count(str(path)) == 1


# ---- fuzz: only ever a value or an InputError that names the file


def files_of(folder, name):
    """The files that a reader opens."""
    return [path for path in write(LABELS, target(folder, name), name) if path.parent.name != "heads"]


def survives(path, name, file, content):
    """Either outcome is right: labels whose scores are numbers, or a refusal that names the file."""
    file.write_bytes(content)
    labels, said = None, ""
    try:
        labels = read(path, name, CARD)
    except InputError as error:
        said = str(error)
    if labels is None:
        assert str(path) in said or "made for" in said
    else:
        assert all(np.isfinite(score_LH).all() for score_LH in labels.scores.values())


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder per format with its valid file, and the contents to start from."""
    places = {}
    for name in FORMATS:
        folder = tmp_path_factory.mktemp(name)
        places[name] = (target(folder, name), {file: file.read_bytes() for file in files_of(folder, name)})
    return places


@contextlib.contextmanager
def restored(contents):
    try:
        yield
    finally:
        for file, content in contents.items():
            file.write_bytes(content)


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused(ground, name):
    path, contents = ground[name]
    for file, content in contents.items():
        with restored(contents):
            for end in {0, 1, len(content) // 3, len(content) // 2, len(content) - 4}:
                file.write_bytes(content[:end])
                with pytest.raises(InputError) as caught:
                    read(path, name, CARD)
                assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(data=st.data())
def test_random_and_damaged_bytes_never_crash_a_reader(ground, name, data):
    path, contents = ground[name]
    file = data.draw(st.sampled_from(sorted(contents)))
    damaged = bytearray(contents[file])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with restored(contents):
        survives(path, name, file, data.draw(st.sampled_from([bytes(damaged), data.draw(st.binary(max_size=50))])))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["0", "0-0", "L0H0", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "1", "0-0", "layer", "head", "x"]), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "parquet"])
@settings(max_examples=25)
@given(data=st.data())
def test_random_json_never_crashes_a_reader(ground, name, data):
    path, contents = ground[name]
    file = data.draw(st.sampled_from(sorted(contents)))
    content = data.draw(json_values)
    if data.draw(st.booleans()) and file.suffix == ".json":
        spoilt = place = copy.deepcopy(json.loads(contents[file]))
        while isinstance(place, (dict, list)) and place:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if data.draw(st.booleans()) or not isinstance(place[key], (dict, list)):
                place[key] = content
                break
            place = place[key]
        content = spoilt
    with restored(contents):
        survives(path, name, file, json.dumps(content).encode())
