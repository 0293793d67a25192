"""Edges, exactly and to first order: identities that hold on any model."""

import numpy as np
import pytest
import torch
from test_patching import LENGTH, close, data, metric, model_of

from workbench.circuits import attribution, edges, patching, paths
from workbench.circuits.anatomy import taken_apart
from workbench.circuits.graph import Graph, all_writes, pruned
from workbench.circuits.paths import LOGITS, Receiver
from workbench.circuits.tasks import Pairs, TaskSet
from workbench.errors import InputError
from workbench.heads import Shape
from workbench.tiny import ARCHITECTURES


def traces(anatomy, pairs):
    return (anatomy.trace(torch.tensor(ids)) for ids in (pairs.clean_BT, pairs.corrupted_BT))


def graph_of(model):
    return Graph(model.shape, bool(getattr(model.config, "use_parallel_residual", False)))


def test_the_edges_of_a_small_graph():
    graph = Graph(Shape(2, 2, 1, 4, 8))
    assert graph.sender_names == ("input", "L0H0", "L0H1", "L0MLP", "L1H0", "L1H1", "L1MLP")
    assert graph.receiver_names == ("L0H0.q", "L0H1.q", "L0G0.k", "L0G0.v", "L0MLP", "L1H0.q", "L1H1.q", "L1G0.k", "L1G0.v", "L1MLP", "logits")
    assert graph.edges_UW.sum() == 4 * 1 + 3 + 4 * 4 + 6 + 7
    assert graph.name(*graph.number("L0H1->L1G0.k")) == "L0H1->L1G0.k"
    assert [graph.of_receiver(number) for number in (1, 2, 3, 4, 10)] == [(0, "q", 1), (0, "k", 0), (0, "v", 0), (0, "mlp", 0), (2, "logits", 0)]
    assert Graph(Shape(2, 2, 1, 4, 8), parallel=True).edges_UW.sum() == graph.edges_UW.sum() - 2 * 2
    for wrong in ("L0H1", "L1H0->L0H0.q", "x->logits", "L1H0->L1H1.q"):
        with pytest.raises(InputError):
            graph.number(wrong)


def test_gpt2_small_has_as_many_edges_as_published():
    """Counted by the libraries of ACDC and EAP-IG for heads, MLPs, and q, k and v apart."""
    assert Graph(Shape(12, 12, 12, 64, 768)).edges_UW.sum() == 32_491


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_writes_add_up_to_the_residual_stream(architecture):
    model, pairs = model_of(architecture), data().pairs[0]
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        clean, _ = traces(anatomy, pairs)
        bias = sum(model.weights.output_bias(layer) for layer in range(3)) if model.weights.attention_post_norm(0) is None else 0
        close(all_writes(anatomy, clean).sum(0) + bias, clean.x[-1].numpy())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cutting_everything_gives_the_other_pass_and_nothing_the_base(architecture):
    model, pairs = model_of(architecture), data().pairs[0]
    graph = graph_of(model)
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        clean, corrupted = traces(anatomy, pairs)
        none, every = torch.zeros(graph.senders, graph.receivers), torch.ones(graph.senders, graph.receivers)
        close(edges.through(anatomy, clean, corrupted, none), clean.logits_BV.numpy())
        close(edges.through(anatomy, clean, corrupted, every), corrupted.logits_BV.numpy())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_exact_effects_are_those_of_a_graph_with_one_edge_cut(architecture):
    model, task = model_of(architecture), data()
    graph, pairs = graph_of(model), task.pairs[0]
    names = ["input->L0H1.q", "L0H1->L2G0.k", "L0MLP->L1G1.v", "L1H0->L2MLP", "L1MLP->logits", "input->L2MLP", "L2H3->logits"]
    if graph.parallel is False:
        names.append("L1H2->L1MLP")
    chosen = [graph.number(name) for name in names]
    effects_NE = edges.exact_effects(model, task, chosen)
    with taken_apart(model, LENGTH) as anatomy, torch.no_grad():
        clean, corrupted = traces(anatomy, pairs)
        for place, edge in enumerate(chosen):
            cut = torch.zeros(graph.senders, graph.receivers)
            cut[edge] = 1
            expected = metric(pairs, edges.through(anatomy, clean, corrupted, cut)) - metric(pairs, clean.logits_BV)
            assert np.abs(expected).max() > 1e-4
            close(effects_NE[:, place], expected, 2e-5)


def test_edges_of_heads_are_paths_with_frozen_mlps():
    model, task = model_of("qwen3"), data()
    graph = graph_of(model)
    receivers = [LOGITS, Receiver(2, 1, "q"), Receiver(2, 1, "v")]
    found = paths.path_patching(model, task, receivers, frozen_mlps=True)
    for receiver in receivers:
        effects_NE = edges.exact_effects(model, task, [graph.number(f"L1H{index}->{receiver}") for index in range(model.shape.n_heads)])
        close(effects_NE, found[receiver].effect_NLH[:, 1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eap_is_the_gradient_of_the_graph_at_no_edge_cut(architecture):
    model, task = model_of(architecture, 2), data()
    graph, pairs = graph_of(model), task.pairs[0]
    scores = attribution.edge_attribution(model, task, "eap")
    with taken_apart(model, LENGTH) as anatomy:
        with torch.no_grad():
            clean, corrupted = traces(anatomy, pairs)
        cut = torch.zeros(graph.senders, graph.receivers, requires_grad=True)
        (slope_UW,) = torch.autograd.grad(pairs.measure(edges.through(anatomy, clean, corrupted, cut)).sum(), cut)
    expected = np.where(graph.edges_UW, slope_UW.numpy(), 0)
    assert (np.abs(expected) > 1e-3).mean() > 0.2
    close(scores.score_NUW.sum(0), expected, 2e-5)


def test_integrals_add_up_along_their_paths():
    """All edges out of the input, integrated over the input's way, come to the change of the metric when the input changes; so do a last layer's heads."""
    model, task = model_of("llama"), data()
    off = {}
    for steps in (40, 160):
        scores = attribution.edge_attribution(model, task, "eap-ig-inputs", steps=steps)
        off[steps] = np.abs(scores.score_NUW[:, 0].sum(-1) - (scores.other_N - scores.base_N)).max()
    assert off[160] < 0.4 * off[40]
    nodes, last = attribution.node_attribution(model, task, "eap-ig-activations", steps=100), model.shape.n_layers - 1
    np.testing.assert_allclose(nodes.effect_NLH[:, last].sum(-1), _all_of(model, task, last), atol=0.01)


def _all_of(model, task, layer):
    sets = np.zeros((1, model.shape.n_layers, model.shape.n_heads), bool)
    sets[0, layer] = True
    value, base, _ = patching.replace_sets(model, task, sets)
    return value[0] - base


@pytest.mark.parametrize("method", attribution.METHODS)
def test_a_heads_edges_make_up_its_node(method):
    """The gradient at an output is the sum of those at all who read it."""
    model, task = model_of("gemma3_text" if method == "eap" else "llama", 2), data()
    graph = graph_of(model)
    nodes, scores = attribution.node_attribution(model, task, method), attribution.edge_attribution(model, task, method)
    if model.weights.attention_post_norm(0) is None:
        for head in model.shape.heads():
            close(scores.score_NUW[:, graph.head(head.layer, head.index)].sum(-1), nodes.effect_NLH[:, head.layer, head.index], 2e-5)
    assert np.abs(nodes.effect_NLH).max() > 0.01


def test_scores_of_equal_prompts_are_zero():
    model, task = model_of("llama"), data()
    pairs = task.pairs[0]
    same = TaskSet("same", (Pairs("same", "logit_difference", pairs.items, pairs.clean_BT, pairs.clean_BT, pairs.right, pairs.wrong),), {}, 0)
    for method in attribution.METHODS:
        assert np.abs(attribution.edge_attribution(model, same, method, steps=2).score_NUW).max() < 1e-5


def test_ranking_holds_all_edges_once_and_the_largest_first():
    model, task = model_of("phi3", 2), data()
    scores = attribution.edge_attribution(model, task, "eap")
    ranked = scores.ranked()
    sizes = np.array([abs(scores.mean_UW[edge]) for edge in ranked])
    assert len(set(ranked)) == scores.graph.edges_UW.sum()
    assert (np.diff(sizes) <= 0).all()


def test_dead_edges_are_pruned():
    graph = Graph(Shape(2, 1, 1, 4, 4))
    kept = np.zeros_like(graph.edges_UW)
    alive = [graph.number(name) for name in ("input->L0G0.v", "L0H0->L1H0.q", "L1H0->logits")]
    dead = [graph.number(name) for name in ("L0MLP->L1MLP", "input->L0MLP", "L1MLP->logits")][:2]
    for edge in [*alive, *dead]:
        kept[edge] = True
    found = pruned(graph, kept)
    assert {tuple(edge) for edge in np.argwhere(found).tolist()} == set(alive)


def test_gradients_that_are_not_finite_are_refused():
    model, task = model_of("llama"), data()
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        attribution.edge_attribution(model, task, "eap")
    with pytest.raises(InputError, match="no slope"):
        attribution.edge_attribution(model, task, "eap", metric="kl")
    for function in (attribution.edge_attribution, attribution.node_attribution):
        with pytest.raises(InputError, match="no slope"):
            function(model, task, "eap", metric="kl")
        with pytest.raises(InputError, match="1 step"):
            function(model, task, "eap-ig-inputs", steps=0)
    with pytest.raises(InputError, match="method"):
        attribution.node_attribution(model, task, "x")
