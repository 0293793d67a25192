"""Circuits found on a model whose circuit is known, and kept as files."""

import json

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from test_patching import data, model_of

from workbench.circuits import attribution, edges, faithfulness, finding, patching, paths, positions, verify
from workbench.circuits.alternatives import alternatives, single
from workbench.circuits.anatomy import taken_apart
from workbench.circuits.circuit import Circuit
from workbench.circuits.compiled_ioi import BACKUP, DUPLICATE, INHIBITION, MOVERS, NEGATIVE, PREVIOUS, ROLES, ioi_model
from workbench.circuits.finding import METHODS, Search, find
from workbench.circuits.statistics import auroc
from workbench.circuits.sweep import sweep
from workbench.circuits.tasks import Item, Pairs, TaskSet
from workbench.compiled import INDUCTION, induction_model
from workbench.compiled import PREVIOUS as PREVIOUS_TOKEN
from workbench.errors import InputError
from workbench.heads import Head
from workbench.views.circuit import circuit_figure


@pytest.fixture(scope="module")
def model():
    return ioi_model(beta=5.0)


@pytest.fixture(scope="module")
def names():
    return prompts(64)


def prompts(count, seed=0):
    from workbench.circuits.name_prompts import name_pairs

    return name_pairs(count, seed)


def truth():
    return np.array([[Head(layer, index) in ROLES for index in range(6)] for layer in range(4)])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("codes", "path", "direct")])
def test_causal_methods_rank_the_seven_heads_first(model, names, method):
    effects = METHODS[method][1](model, names, None, 0)
    assert auroc(np.abs(effects.mean_LH), truth()) == 1.0
    assert effects.mean_LH[PREVIOUS.layer, PREVIOUS.index] == pytest.approx(0, abs=1e-5)


def test_direct_methods_find_those_that_write_the_answer(model, names):
    for method in ("path", "direct"):
        effects = METHODS[method][1](model, names, None, 0)
        assert set(effects.ranked()[:4]) == {*MOVERS, NEGATIVE, BACKUP}
        assert effects.mean_LH[MOVERS[0].layer, MOVERS[0].index] < -1
        assert effects.mean_LH[NEGATIVE.layer, NEGATIVE.index] > 1


def test_the_circuit_is_found_and_is_faithful(model, names):
    searched, held_out = names.split(0.5)
    circuit = find(model, searched, held_out, Search(size=7, edges=19))
    assert set(circuit.heads) == set(ROLES)
    table = circuit.faithfulness.set_index("ablation")
    assert table.loc["resample", "faithfulness"] == pytest.approx(1, abs=1e-4)
    assert table.loc["resample", "kl"] == pytest.approx(0, abs=1e-4)
    assert table.loc["resample", "complement_faithfulness"] == pytest.approx(0, abs=1e-4)
    assert table.loc["resample", "incompleteness"] == pytest.approx(0, abs=1e-3)
    assert table.loc["resample", "random"] < 0.7
    drops = circuit.minimality[circuit.minimality["ablation"] == "resample"].set_index("head")["drop"]
    assert drops[str(DUPLICATE)] > 0.9
    assert drops[str(NEGATIVE)] < -0.1
    assert (drops.abs() > 0.01).all()
    assert circuit.provenance["accuracy"]["held_out"] == 1.0
    best = circuit.edges.sort_values("exact", key=abs, ascending=False)["edge"].tolist()
    assert f"{MOVERS[0]}->logits" in best[:3]


def test_the_induction_circuit_of_the_compiled_model_is_found():
    """The sequence comes twice; in the corrupted prompt, what followed the present token differs in its first occurrence."""
    model, rng = induction_model(vocabulary=60, length=32), np.random.default_rng(0)
    clean, corrupted, right, wrong = [], [], [], []
    for _ in range(12):
        first = rng.permutation(np.arange(3, 60))[:8]
        other = first.copy()
        other[4] = next(token for token in range(3, 60) if token not in first)
        clean.append([1, *first, *first[:4]])
        corrupted.append([1, *other, *first[:4]])
        right.append((int(first[4]),))
        wrong.append((int(other[4]),))
    items = tuple(Item(f"{number}", f"{number}'", (" x",), (" y",)) for number in range(12))
    task = TaskSet("again", (Pairs("again", "logit_difference", items, np.array(clean), np.array(corrupted), tuple(right), tuple(wrong)),), {}, 0)
    effects = patching.activation_patching(model, task)
    assert effects.ranked()[0] == INDUCTION
    keys = paths.path_patching(model, task, [paths.Receiver(INDUCTION.layer, INDUCTION.index, "k")])
    sender = next(iter(keys.values()))
    assert sender.base_N.mean() > 5
    frozen = patching.activation_patching(model, task, ablation="zero")
    assert set(frozen.ranked()[:2]) == {PREVIOUS_TOKEN, INDUCTION}
    others = [head for head in model.shape.heads() if head not in (PREVIOUS_TOKEN, INDUCTION)]
    assert max(abs(frozen.mean_LH[head.layer, head.index]) for head in others) < 1e-3


def test_scores_do_not_depend_on_the_basis(names):
    turned, straight = (ioi_model(beta=5.0, rotate=rotate) for rotate in (True, False))
    for method in ("patching", "path", "ig-inputs"):
        ours, theirs = (METHODS[method][1](model, names, None, 0).effect_NLH for model in (turned, straight))
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    ours, theirs = (attribution.edge_attribution(model, names, "eap").score_NUW for model in (turned, straight))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_each_position_by_itself(model, names):
    found = positions.by_position(model, names)
    assert found.effect_NTLH.shape == (len(names), 12, 4, 6)
    alone = patching.activation_patching(model, names, positions=[8]).effect_NLH
    np.testing.assert_allclose(found.effect_NTLH[:, 8], alone)
    assert np.abs(found.mean_TLH[:, DUPLICATE.layer, DUPLICATE.index]).argmax() == 8
    assert np.abs(found.mean_TLH[:-1, MOVERS[0].layer, MOVERS[0].index]).max() < 1e-5
    assert found.tokens[-1] == "to"
    assert positions.of_length(names, 12).pairs == names.pairs
    with pytest.raises(InputError, match="no prompts of 5"):
        positions.of_length(names, 5)


def test_positions_before_the_sender_do_not_move(model, names):
    pairs = names.pairs[0]
    with taken_apart(model, 12) as anatomy, torch.no_grad():
        clean, corrupted = (anatomy.trace(torch.tensor(ids)) for ids in (pairs.clean_BT, pairs.corrupted_BT))
        other = alternatives(anatomy, clean, corrupted, "z", "resample", positions=[8])
        *_, (_, _, x) = sweep(anatomy, clean, other, single(model.shape, "z")[0])
        moved = (x - clean.x[-1]).abs().amax((0, 1, 3))
    assert moved[:8].max() < 1e-5
    assert moved[8:].max() > 1


def test_codes_have_the_p_values_of_swapped_labels(model, names):
    effects = METHODS["codes"][1](model, names, None, 0)
    table = effects.table()
    assert table["low"].isna().all()
    assert table["p"].between(1 / 201, 1).all()
    assert table["normalised"].isna().all()
    assert (table["effect"] <= 0).all()
    assert (effects.mean_LH == np.round(effects.mean_LH)).all()


def test_half_a_circuit_is_unfaithful_and_a_size_is_found(model, names):
    lone = faithfulness.evaluate(model, names, MOVERS, ablations=["resample"], sets=0).table.iloc[0]
    assert lone["faithfulness"] < 0.2
    circuit = find(model, names, names, Search(target=0.95, edges=0))
    assert {DUPLICATE, *INHIBITION, *MOVERS} <= set(circuit.heads)
    assert len(circuit.heads) <= 7


def test_saturation_hides_a_backup_from_single_patches_and_pairs_show_it():
    """β = 20: alone, the backup does nothing; with the movers gone too, everything hangs on it (spec: 1.0 and −2.0)."""
    hard, task = ioi_model(beta=20.0), prompts(32)
    effects = patching.activation_patching(hard, task)
    assert effects.mean_LH[BACKUP.layer, BACKUP.index] == pytest.approx(0, abs=1e-3)
    sets = np.stack([faithfulness.mask(hard.shape, heads) for heads in (MOVERS, (*MOVERS, BACKUP))])
    value, base, _ = patching.replace_sets(hard, task, sets)
    assert base.mean() == pytest.approx(5, abs=0.1)
    assert value.mean(1) == pytest.approx([1.0, -2.0], abs=0.15)
    single = paths.path_patching(hard, task, [paths.Receiver(2, MOVERS[0].index, "q")])
    for effects in single.values():
        assert np.nan_to_num(effects.mean_LH) == pytest.approx(0, abs=1e-2)


def test_first_order_edges_are_verified(model, names):
    scores = attribution.edge_attribution(model, names, "eap")
    found = verify.verify(model, names, scores, top=80, sample=40)
    top = found.table[found.table["chosen"] == "top"]
    graph = scores.graph
    expected = edges.exact_effects(model, names, [graph.number(edge) for edge in top["edge"]]).mean(0)
    np.testing.assert_allclose(top["exact"], expected, atol=1e-6)
    assert found.missed["rate"] == 0
    assert found.missed["low"] <= 1e-12
    assert found.missed["not_measured"] == graph.edges_UW.sum() - 120
    assert -1 <= found.agreement["top"]["spearman"] <= 1


def test_the_size_says_whether_the_target_was_reached(model, names):
    reached = find(model, names, names, Search(target=0.9, edges=0))
    assert reached.provenance["size"].startswith("reaches")
    assert reached.provenance["held_out"]["cpr"] > 0.5
    missed = find(model, names, names, Search(method="direct", target=1.0, edges=0))
    assert "agreement" in missed.provenance
    assert missed.provenance["agreement"]["exact patching"]["spearman"] < 1
    nobody = TaskSet(
        "same", (Pairs("same", "logit_difference", names.pairs[0].items, *(names.pairs[0].clean_BT,) * 2, names.pairs[0].right, names.pairs[0].wrong),), {}, 0
    )
    with pytest.raises(InputError, match="not defined"):
        find(model, nobody, nobody, Search(edges=0))


def test_items_of_the_search_are_known_again(model, names):
    searched, held_out = names.split(0.5)
    circuit = find(model, searched, held_out, Search(size=2, edges=0))
    assert finding.unseen(names, circuit).items == held_out.items
    with pytest.raises(InputError, match="searched on"):
        finding.unseen(searched, circuit)


def test_what_the_model_cannot_do_is_refused(names):
    pairs = names.pairs[0]
    swapped = TaskSet("wrong", (Pairs("wrong", "logit_difference", pairs.items, pairs.clean_BT, pairs.corrupted_BT, pairs.wrong, pairs.right),), {}, 0)
    with pytest.raises(InputError, match="no behaviour"):
        find(ioi_model(), swapped, swapped, Search(size=3, edges=0))
    assert len(find(ioi_model(), swapped, swapped, Search(size=3, edges=0, anyway=True)).heads) == 3


@pytest.mark.parametrize(("given", "named"), [({"method": "x"}, "method"), ({"size": 0}, "one head"), ({"target": 0.0}, "faithfulness")])
def test_bad_searches_are_refused(given, named):
    with pytest.raises(InputError, match=named):
        Search(**given)


def test_a_circuit_is_saved_loaded_drawn_and_exported(model, names, tmp_path):
    circuit = find(model, names, names, Search(size=7, edges=25))
    again = Circuit.load(circuit.save(tmp_path / "ioi.json"))
    assert again.heads == circuit.heads
    assert again.card == circuit.card
    pd.testing.assert_frame_equal(again.effects, circuit.effects, check_dtype=False)
    assert again.to_json() == circuit.to_json()
    graph = nx.read_graphml(circuit.to_graphml(tmp_path / "ioi.graphml"))
    assert {str(head) for head in ROLES} <= set(graph.nodes)
    assert graph.edges[str(MOVERS[0]), "logits"]["effect"] < -2
    figure = circuit_figure(again)
    assert {"logits", str(DUPLICATE)} <= {name for trace in figure.data for name in (trace.text or ())}
    labels = circuit.labels()
    assert set(labels.heads("circuit_names")) == set(ROLES)
    assert circuit.labels(labels).counts()["circuit_names"] == 7
    with pytest.raises(InputError, match="not for"):
        again.check_model(model_of("llama").card)
    (tmp_path / "broken.json").write_text(json.dumps({"schema": "workbench.circuit/1", "heads": []}))
    for name in ("broken.json", "missing.json"):
        with pytest.raises(InputError):
            Circuit.load(tmp_path / name)


def test_groups_of_keys_are_drawn_to_their_heads():
    model, task = model_of("llama"), data(batch=4)
    circuit = find(model, task, task, Search(size=10, edges=200, anyway=True))
    assert any(".k" in edge for edge in circuit.edges["edge"])
    for sender, receiver in circuit.graph().edges:
        assert sender in {"input", *map(str, circuit.heads)}
        assert receiver in {"logits", *map(str, circuit.heads)}


def test_residual_means_are_what_heads_write(model, names):
    write_NLHD, clean_N = finding.residual_means(model, names)
    assert write_NLHD.shape == (2 * len(names), 4, 6, 384)
    assert clean_N.sum() == len(names)
    ids = torch.tensor(names.pairs[0].clean_BT[:1])
    kept = []
    handle = model.weights.outputs[1].register_forward_hook(lambda _m, _i, out: kept.append(out))
    model.hf(ids)
    handle.remove()
    np.testing.assert_allclose(write_NLHD[0, 1].sum(0), kept[0][0].mean(0).numpy(), atol=1e-4)
