"""Do the pictures of the page Circuits hold the very numbers?"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_dashboard_views import opened

from workbench.circuits import compared
from workbench.circuits.circuit import Circuit
from workbench.circuits.coded import Coded
from workbench.circuits.effects import Effects
from workbench.circuits.patch_question import Patched, PatchQuestion
from workbench.circuits.sides import Sides
from workbench.heads import Head, ModelCard, Shape
from workbench.views import canvas_picture, signed_canvas
from workbench.views.circuit import HARMS, HELPS, graph_figure
from workbench.views.circuit_tables import effects_canvas, faithfulness_figure, faithfulness_table
from workbench.views.conflicts import RIM, pruning_figure, sides_canvas, sides_figure
from workbench.views.methods import kept_figure, recovery_figure
from workbench.views.patching import coded_canvas, coded_figure, patched_canvas, patched_text

REPORTS = Path(__file__).resolve().parent.parent / "reports"
EFFECT_LH = np.array([[-2.0, 0.5, np.nan], [0.0, 1.0, 0.25]])


def card(*sizes):
    return ModelCard("mine", "memory", "", Shape(*sizes))


@pytest.fixture(scope="module")
def circuit():
    return Circuit.load(REPORTS / "smollm2-135m" / "circuit_ioi.json")


def traces(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_a_map_of_both_signs_is_centred_and_one_of_none_begins_at_0():
    header, values = opened(signed_canvas(EFFECT_LH, "effect", ["a"] * 6, [Head(1, 1)], "one head"))
    np.testing.assert_array_equal(values.reshape(2, 3), EFFECT_LH.astype(np.float32))
    assert header["range"] == [-2, 2]
    assert (header["marked"], header["mark"]) == ([[1, 1]], "one head")
    header, _ = opened(signed_canvas(np.abs(EFFECT_LH), "size", ["a"] * 6))
    assert header["range"] == [0, 2]
    assert header["shades"] == ["#f7f7f7", "#d97706"]
    assert opened(signed_canvas(np.full((1, 2), np.nan), "none", ["", ""]))[0]["range"] == [0, 1]


def test_the_graph_stands_by_layer_and_head_and_names_its_heads(circuit):
    figure = graph_figure(circuit)
    (nodes,) = [trace for trace in figure.data if trace.text]
    place = {
        name: (x, figure.layout.yaxis.ticktext[list(figure.layout.yaxis.tickvals).index(y)])
        for name, x, y in zip(nodes.customdata, nodes.x, nodes.y, strict=True)
    }
    assert place["L23H3"] == (3, "L23")
    assert place["logits"][1] == ""
    assert {name for name in place if "H" in name} == {str(head) for head in circuit.heads}
    colour = dict(zip(nodes.customdata, nodes.marker.color, strict=True))
    assert (colour["L23H3"], colour["L24H4"]) == (HELPS, HARMS)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == circuit.graph().number_of_edges() >= len(circuit.edges)  # those to a KV head go to each of its query heads


def test_effects_are_a_map_with_intervals(circuit):
    header, values = opened(effects_canvas(circuit))
    rows = circuit.effects.set_index("head")
    assert values.reshape(30, 9)[23, 3] == pytest.approx(rows.loc["L23H3", "effect"])
    assert header["labels"][23 * 9 + 3].startswith(f"95% interval {rows.loc['L23H3', 'low']:+.3f} to ")
    assert header["mark"] == f"{len(circuit.heads)} in the circuit"
    svg = canvas_picture(effects_canvas(circuit))
    assert svg.count("<circle") == len(circuit.heads) + 1  # a ring for each, and one in the legend
    effect = circuit.effects.set_index("head").loc[str(circuit.heads[0]), "effect"]
    assert f"<title>{circuit.heads[0]}: {effect:.3f}; " in svg
    assert f"{len(circuit.heads)} in the circuit<" in svg  # in full
    assert len(header["marked"]) == len(circuit.heads)


def test_faithfulness_is_shown_whatever_columns_it_has():
    table = pd.DataFrame(
        {"ablation": ["mean", "zero"], "faithfulness": [0.9, np.nan], "low": [0.8, np.nan], "high": [1.1, np.nan], "random": [0.1, 0.2], "new": [7, 8]}
    )
    turned = faithfulness_table(table)
    assert list(turned["measure"]) == ["faithfulness", "random", "new"]
    assert turned["mean"].tolist() == ["0.9 (0.8 to 1.1)", "0.1", "7"]
    assert turned["zero"].tolist() == ["–", "0.2", "8"]
    shown = traces(faithfulness_figure(table))
    assert set(shown) == {"circuit", "random circuits of the same layers"}  # this table has no complement
    assert shown["circuit"].x[0] == 0.9
    assert (shown["circuit"].error_x.array[0], shown["circuit"].error_x.arrayminus[0]) == pytest.approx((0.2, 0.1))
    bounded = table.assign(complement_faithfulness=[0.3, 0.4], complement_faithfulness_low=[0.1, 0.1], complement_faithfulness_high=[0.5, 0.5])
    assert traces(faithfulness_figure(bounded))["without the circuit"].error_x.array[0] == pytest.approx(0.2)


def test_a_map_without_numbers_below_0_is_drawn_without_them():
    svg = canvas_picture(signed_canvas(np.array([[0.0, 2.0], [np.nan, 1.0]]), "codes", ["a", "b", "c", "d"], [Head(0, 1)], "1 with p ≤ 0.05"))
    assert "<title>L0H1: 2.000; b</title>" in svg
    assert ">1 with p ≤ 0.05<" in svg
    assert ">0.00<" in svg
    assert ">2.00<" in svg
    assert ">-2.00<" in canvas_picture(signed_canvas(np.array([[-1.0, 2.0]]), "effect", ["a", "b"]))


def test_recovery_and_faithfulness_of_methods_are_drawn():
    path = REPORTS / "compiled_ioi" / "methods.csv"
    rows = compared.recovery(compared.parse(path.read_bytes(), path.name, ("what",)), "heads", 5.0, 0.0)
    figure = recovery_figure(rows, "heads")
    shown = traces(figure)
    assert set(shown) == {"AUROC", "average precision", "F1"}
    assert figure.layout.scattermode == "group"  # equal numbers lie side by side, and not one behind the other
    assert len({trace.offsetgroup for trace in shown.values()}) == 3
    assert dict(zip(shown["AUROC"].y, shown["AUROC"].x, strict=True))["path"] == pytest.approx(0.786, abs=5e-4)
    kept = pd.DataFrame(
        {"method": ["a", "a", "b"], "heads": [5, 10, 5], "faithfulness": [0.5, 0.7, 0.1], "lowest": [0.4, 0.6, 0.0], "highest": [0.9, 0.8, 0.3]}
    )
    shown = traces(kept_figure(kept, "mean", ["a"]))
    assert set(shown) == {"a"}
    assert list(shown["a"].y) == [0.5, 0.7]
    assert shown["a"].error_y.array[0] == pytest.approx(0.4)
    assert traces(kept_figure(kept, "mean", ["b"]))["b"].line.color != traces(kept_figure(kept, "mean", ["a", "b"]))["a"].line.color


@pytest.fixture
def patched():
    effect_NLH = np.stack([EFFECT_LH, EFFECT_LH + 0.1])
    facts = {"receiver": "L1H0.q", "metric": "logit_difference"}
    return Patched(
        PatchQuestion(receiver="L1H0.q"),
        card(2, 3, 3, 4, 12),
        Effects(effect_NLH, np.array([4.0, 6.0]), np.array([1.0, 1.0]), 1, facts),
        {"a reason": 2},
    )


def test_patching_is_a_map_and_a_text(patched):
    header, values = opened(patched_canvas(patched))
    np.testing.assert_allclose(values.reshape(2, 3), EFFECT_LH + 0.05, rtol=1e-6)
    assert header["labels"][2] == "no path to the receiver"
    assert "% of the whole difference" in header["labels"][0]
    assert header["mark"] == "5 largest in size"
    text = patched_text(patched)
    assert "each head's direct path to L1H0.q is replaced by what it is on the corrupted prompt, at all positions" in text
    assert "On clean prompts it is 5.000, on corrupted ones 1.000. Left out: 2 for a reason." in text


def test_effects_of_groups_name_the_group():
    effects = Effects(np.array([[[1.0, -1.0]]]), np.zeros(1), np.ones(1), 2, {"metric": "kl"})
    found = Patched(PatchQuestion("activation", component="k", direction="denoising", positions="last"), card(1, 4, 2, 4, 16), effects, {})
    header, values = opened(patched_canvas(found))
    assert values.tolist() == [1, 1, -1, -1]
    assert header["labels"][3].startswith("KV head L0G1; ")
    assert "The corrupted prompts run (denoising); k of each KV head is replaced by what it is on the clean prompt, at the last position" in patched_text(found)


def test_codes_are_a_map_and_stand_against_a_control():
    rows = {
        "head": ["L0H0", "L0H1"],
        "codes": [3.0, 1.0],
        "excess": [1.5, -0.5],
        "p": [0.04, 0.6],
        "q": [0.08, 0.6],
        "norm": [2.0, 9.0],
        "distinct": [4.0, 2.0],
    }
    found = Coded(card(1, 2, 2, 4, 8), "mine", 0, pd.DataFrame(rows), {}, 5, 0.1)
    header, values = opened(coded_canvas(found, "codes"))
    assert values.tolist() == [3, 1]
    assert (header["marked"], header["mark"]) == ([[0, 0]], "1 with p ≤ 0.05")
    assert header["labels"][0] == "codes 3, excess +1.50, p 0.040, distinct 4, norm 2.00"
    shown = traces(coded_figure(found, "norm"))
    (point,) = shown["p ≤ 0.05 under swapped labels"].customdata
    assert (point[0], point[1]) == ("L0H0", 3)
    assert list(shown["other heads"].x) == [9]
    assert abs(shown["other heads"].y[0] - 1) < 0.2


def test_both_sides_are_drawn_with_what_is_pruned():
    sides = Sides(np.array([[2.0, 0.1, 0.0]]), np.array([[0.0, 1.0, 0.0]]))
    header, values = opened(sides_canvas(sides, [Head(0, 0)], "1 pruned"))
    assert values.tolist() == [-2, pytest.approx(0.9), 0]
    assert header["marked"] == [[0, 0]]
    shown = traces(sides_figure(sides, [Head(0, 0)], "nats"))
    memory, context = shown["memory heads"], shown["context heads"]
    assert (list(memory.x), list(memory.y), list(memory.customdata)) == ([2], [0], ["L0H0"])
    assert (list(context.x), list(context.y)) == ([0.1], [1])
    assert (memory.marker.line.color, memory.marker.line.width[0], context.marker.line.width[0]) == (RIM, 3, 0)
    assert (list(memory.text), list(shown["neither"].text)) == (["L0H0"], [""])
    near = traces(sides_figure(Sides(np.zeros((1, 3)), np.array([[1.01, 0.01, 1.0]])), [], "nats"))["context heads"]
    assert list(zip(near.text, near.textposition, strict=True))[1:] == [("L0H2", "bottom right"), ("L0H0", "top right")]  # the lower one's name stands below


def test_a_pruning_curve_is_drawn_with_its_bands():
    curve = pd.DataFrame(
        {
            "heads": [0, 1],
            "memory": [1.0, 0.25],
            "memory_low": [0.8, 0.1],
            "memory_high": [1.0, 0.5],
            "context": [0.0, 0.75],
            "other": [0.0, 0.0],
            "clean": [1.0, 0.5],
        }
    )
    figure = pruning_figure(curve, "memory", 1)
    shown = traces(figure)
    assert list(shown["internal memory: what the model knows"].y) == [1, 0.25]
    assert list(shown["external context: what the text states"].y) == [0, 0.75]
    (band,) = [trace for trace in figure.data if trace.fill]
    assert list(band.y) == [1.0, 0.5, 0.1, 0.8]
    assert figure.layout.shapes[0].x0 == 1
    assert json.loads(figure.to_json())
