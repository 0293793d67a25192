"""Is a circuit that comes in the one that went out, and is what is none refused in words?"""

import io
import json
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from workbench.circuits.circuit import Circuit
from workbench.circuits.leaving import KINDS
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels

BUNDLED = Path(__file__).resolve().parent.parent / "reports" / "smollm2-135m" / "circuit_ioi.json"


@pytest.fixture(scope="module")
def circuit():
    return Circuit.load(BUNDLED)


def changed(**parts):
    data = json.loads(BUNDLED.read_text(encoding="utf-8"))
    for name, change in parts.items():
        data[name] = change(data[name])
    return json.dumps(data).encode()


def test_json_goes_out_and_comes_in_again(circuit):
    again = Circuit.parse(KINDS[".json"].made(circuit, None), "again.json")
    assert again.to_json() == json.loads(BUNDLED.read_text(encoding="utf-8"))


def test_the_graph_has_the_strongest_edge(circuit):
    graph = nx.read_graphml(io.BytesIO(KINDS[".graphml"].made(circuit, None)))
    strongest = max(graph.edges(data=True), key=lambda edge: edge[2]["strength"])
    row = circuit.edges.loc[circuit.edges["exact"].abs().idxmax()]
    assert f"{strongest[0]}->{strongest[1]}" == row["edge"]
    assert strongest[2]["effect"] == pytest.approx(row["exact"])


def test_labels_keep_those_that_were_given(circuit):
    given = HeadLabels(circuit.card, {Head(0, 1): ("mine",)}, {"mine": np.zeros((30, 9))})
    for kept in (None, given):
        labels = HeadLabels.parse(KINDS[".labels.json"].made(circuit, kept), "labels.json")
        assert set(labels.heads("circuit_ioi")) == set(circuit.heads)
        assert ("mine" in labels.labels[Head(0, 1)]) == (kept is not None)


def test_the_table_joins_effects_and_minimality(circuit):
    table = pd.read_csv(io.BytesIO(KINDS[".csv"].made(circuit, None))).set_index("head")
    assert list(table.index) == [str(head) for head in circuit.heads]
    for head in ("L23H3", str(circuit.heads[-1])):
        assert table.loc[head, "effect"] == circuit.effects.set_index("head").loc[head, "effect"]
        for row in circuit.minimality[circuit.minimality["head"] == head].to_dict("records"):
            assert table.loc[head, f"{row['ablation']}_drop"] == pytest.approx(row["drop"])


def test_empty_tables_can_be_read(circuit):
    empty = Circuit.parse(changed(effects=lambda _: [], edges=lambda _: [], faithfulness=lambda _: [], minimality=lambda _: []), "empty.json")
    assert len(empty.table) == len(circuit.heads)
    assert set(empty.graph()) == {str(head) for head in circuit.heads}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff", "cannot read"),
        (b"[" * 100_000, "cannot read"),
        (b"[]", "no circuit"),
        (changed(heads=lambda heads: [*heads, "L99H0"]), "no head L99H0"),
        (changed(heads=lambda heads: [*heads, heads[0]]), "twice"),
        (changed(effects=lambda rows: [{**row, "effect": "much"} for row in rows]), "effects.json: not a complete circuit"),
        (changed(effects=lambda rows: [{"head": row["head"]} for row in rows]), "a table without effect"),
        (changed(effects=lambda rows: [*rows, {**rows[0], "head": "L30H0"}]), "no head L30H0"),
        (changed(effects=lambda rows: [*rows, rows[0]]), "twice"),
        (changed(edges=lambda rows: [{**rows[0], "edge": "L40H1->logits"}]), "no head L40H1"),
        (changed(edges=lambda rows: [{**rows[0], "edge": "somewhere->logits"}]), "not a complete circuit"),
        (changed(edges=lambda rows: [{**rows[0], "edge": 7}]), "edge is no text"),
        (changed(edges=lambda rows: 7), "not a complete circuit"),
        (changed(minimality=lambda rows: [*rows, rows[0]]), "twice"),
        (changed(model=lambda model: {**model, "shape": {**model["shape"], "n_layers": 10**9}}), "1000000000 × 9 heads"),
        (changed(model=lambda model: {**model, "shape": 3}), "not a complete circuit"),
        (changed(provenance=lambda _: "mine"), "not a complete circuit"),
    ],
)
def test_what_is_no_circuit_is_refused_in_words(content, named):
    with pytest.raises(InputError, match=named):
        Circuit.parse(content, "effects.json")
