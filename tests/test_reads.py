"""Does every read give what its definition says? Loops over prompts, heads, rows and keys on random patterns; then the same on models."""

import math
from dataclasses import FrozenInstanceError
from itertools import product

import numpy as np
import pytest
import torch
from eager import WINDOWED, eager, random_prompts, tiny, visible

from workbench.captures import capture
from workbench.errors import InputError
from workbench.given import from_patterns
from workbench.heads import ModelCard, Shape
from workbench.layer_view import LayerView
from workbench.prompts import Prompts
from workbench.reads import (
    READS,
    BlockMap,
    Distances,
    Entropy,
    FirstKeyCosine,
    HeadOutput,
    KeyNorm,
    LogSumExp,
    Mass,
    NextToken,
    Pattern,
    Peak,
    QueryKey,
    Received,
    TopMass,
    ValueNorm,
    Written,
)
from workbench.relations import RELATIONS
from workbench.rows import Rows

B, L, H, T = 2, 2, 3, 7
CARD = ModelCard("given", "test", "", Shape(L, H, H, 4, 12))
PROMPTS = Prompts(
    np.array([[5, 5, 5, 3, 5, 3, 3], [1, 2, 2, 1, 2, 2, 9]]),  # equal neighbours, in runs of two and three
    spans={"needle": np.array([[1, 4], [4, 5]]), "end": np.array([[6, 7], [0, 7]])},
    rows={"some": np.array([[6, 2, 0], [3, 6, 6]]), "one": np.array([[4], [1]])},
)
ROWS = (None, "some", "one")


def random_pattern(length: int = T, seed: int = 0, heads: int = H) -> np.ndarray:
    """Causal rows that sum to 1."""
    weight = np.tril(np.random.default_rng(seed).random((B, L, heads, length, length)) ** 3)
    return (weight / weight.sum(-1, keepdims=True)).astype(np.float32)


PATTERN = random_pattern()


def read_of(read, pattern=PATTERN, prompts=PROMPTS):
    return from_patterns(CARD, prompts, pattern, [read])[read]


def query_rows(rows, b):
    return range(T) if rows is None else PROMPTS.rows[rows][b].tolist()


def by_row(value, rows=None):
    """[B, L, H, R] of `value(probabilities, prompt, row)`."""
    heads = [[[[value(PATTERN[b, layer, h, q].tolist(), b, q) for q in query_rows(rows, b)] for h in range(H)] for layer in range(L)] for b in range(B)]
    return np.array(heads)


def related(relation, ids, q):
    """The keys of a relation, by its words."""
    earlier_equals = [k for k in range(q) if ids[k] == ids[q]]
    return {
        "previous": [q - 1] if q else [],
        "self": [q],
        "duplicate": earlier_equals,
        "induction": [k + 1 for k in earlier_equals if k + 1 < q],
    }[relation]


def chosen(read, b, q):
    """The keys of a `Mass`, as a set."""
    keys = set(range(read.first)) | set(range(q - read.last + 1, q + 1))
    if read.span:
        keys |= set(range(*PROMPTS.spans[read.span][b].tolist()))
    if read.at:
        keys |= set(related(read.at, PROMPTS.ids_BT[b].tolist(), q))
    return {k for k in keys if 0 <= k < T}


MASSES = [
    *(Mass(first=n) for n in (1, 2, T, T + 3)),
    *(Mass(last=n) for n in (1, 2, T, T + 3)),
    *(Mass(span=name) for name in PROMPTS.spans),
    *(Mass(at=relation) for relation in RELATIONS),
    *(Mass(first=1, last=2), Mass(first=2, span="needle"), Mass(last=1, at="previous"), Mass(span="end", at="induction")),
    Mass(first=1, last=1, span="needle", at="duplicate"),
]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("read", MASSES, ids=str)
def test_mass_is_the_sum_over_the_set(read, rows):
    read = Mass(read.first, read.last, read.span, read.at, rows)
    expected = by_row(lambda p, b, q: sum(p[k] for k in chosen(read, b, q)), rows)
    np.testing.assert_allclose(read_of(read), expected, atol=1e-6)


def test_the_relations_are_these():
    assert set(RELATIONS) == {"previous", "self", "duplicate", "induction"}


@pytest.mark.parametrize(
    ("relation", "keys"),
    [
        ("previous", [[], [0], [1], [2], [3], [4], [5]]),
        ("duplicate", [[], [0], [0, 1], [], [0, 1, 2], [3], [3, 5]]),
        ("induction", [[], [], [1], [], [1, 2, 3], [4], [4]]),
    ],
)
def test_repeated_neighbours_relate_as_counted_by_hand(relation, keys):
    assert [related(relation, [5, 5, 5, 3, 5, 3, 3], q) for q in range(7)] == keys
    ids = Prompts(np.array([[5, 5, 5, 3, 5, 3, 3]] * 2))
    got = read_of(Mass(at=relation), prompts=ids)
    np.testing.assert_allclose(got[1, 1, 2], [sum(PATTERN[1, 1, 2, q, k] for k in keys[q]) for q in range(7)], atol=1e-6)


def test_equal_tokens_are_found_by_the_match_ids():
    control = Prompts(np.arange(2 * T).reshape(2, T), match=PROMPTS.ids_BT)
    for relation in ("duplicate", "induction"):
        np.testing.assert_array_equal(read_of(Mass(at=relation), prompts=control), read_of(Mass(at=relation)))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("span", ["needle", "end"])
def test_top_mass_counts_the_keys_of_the_span_among_the_strongest(span, rows):
    def value(p, b, q):
        inside = range(*PROMPTS.spans[span][b].tolist())
        strongest = sorted(range(T), key=lambda k: -p[k])[: len(inside)]
        return sum(p[k] for k in strongest if k in inside)

    np.testing.assert_allclose(read_of(TopMass(span, rows)), by_row(value, rows), atol=1e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_distances_are_doubled_and_share_out_the_row(rows):
    """The number of a distance is how many binary digits it has."""

    def value(p, b, q):
        shares = [0.0] * ((T - 1).bit_length() + 1)
        for k in range(q + 1):
            shares[(q - k).bit_length()] += p[k]
        return shares

    got = read_of(Distances(rows))
    np.testing.assert_allclose(got, by_row(value, rows), atol=1e-6)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "edges"),
    [(1, [(0, 1)]), (2, [(0, 1), (1, 2)]), (3, [(0, 1), (1, 2), (2, 4)]), (4, [(0, 1), (1, 2), (2, 4)]), (5, [(0, 1), (1, 2), (2, 4), (4, 8)])],
)
def test_distances_reach_the_first_token_and_no_further(length, edges):
    assert Distances.edges(length) == edges


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("relative", [False, True])
def test_entropy_is_in_nats_or_relative_to_the_visible_keys(relative, rows):
    def value(p, b, q):
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        return (entropy / math.log(q + 1) if q else 0.0) if relative else entropy

    np.testing.assert_allclose(read_of(Entropy(rows, relative)), by_row(value, rows), atol=1e-6)


def test_a_uniform_row_has_relative_entropy_one_and_a_row_of_one_key_none():
    uniform = np.tril(np.ones((B, L, H, T, T))) / np.arange(1, T + 1)[:, None]
    np.testing.assert_allclose(read_of(Entropy(relative=True), uniform), np.broadcast_to([0] + [1] * (T - 1), (B, L, H, T)), atol=1e-6)
    np.testing.assert_allclose(read_of(Entropy(), uniform)[0, 0, 0], np.log(np.arange(1, T + 1)), atol=1e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_peak_is_the_strongest_key_and_its_probability(rows):
    np.testing.assert_array_equal(read_of(Peak(rows)).key, by_row(lambda p, b, q: p.index(max(p)), rows))
    np.testing.assert_allclose(read_of(Peak(rows)).prob, by_row(lambda p, b, q: max(p), rows), atol=1e-6)


def test_the_earlier_key_wins_a_tie():
    tied = np.zeros((B, L, H, T, T))
    tied[..., 0] = 1
    tied[..., 3:, 0] = 0
    tied[..., 3:, 1] = tied[..., 3:, 3] = 0.5
    np.testing.assert_array_equal(read_of(Peak(), tied).key[1, 0, 2], [0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("reducer", ["mean", "sum", "max"])
def test_received_is_over_the_rows_that_see_the_key(reducer, rows):
    got = read_of(Received(reducer, rows))
    assert got.shape == (B, L, H, T)
    for b, layer, h, k in product(range(B), range(L), range(H), range(T)):
        seen = [PATTERN[b, layer, h, q, k] for q in query_rows(rows, b) if k <= q]
        expected = {"mean": lambda seen: sum(seen) / len(seen), "sum": sum, "max": max}[reducer](seen) if seen else 0.0
        assert got[b, layer, h, k] == pytest.approx(expected, abs=1e-6)


def test_uniform_attention_gives_the_sink_scores_of_the_specification():
    """Section 9.1: α₁ … α₃ and α₆₄ of uniform causal attention over 64 tokens."""
    uniform = np.tril(np.ones((1, 1, 1, 64, 64))) / np.arange(1, 65)[:, None]
    got = from_patterns(CARD, random_prompts(1, 64), uniform, [Received()])[Received()][0, 0, 0]
    np.testing.assert_allclose(got[[0, 1, 2, 63]], [0.0741, 0.0594, 0.0523, 0.0156], atol=5e-5)


def test_a_pure_sink_and_the_identity_give_the_scores_of_the_specification():
    """Section 9.2."""
    sink, identity = np.zeros((B, L, H, T, T)), np.broadcast_to(np.eye(T), (B, L, H, T, T))
    sink[..., 0] = 1
    np.testing.assert_allclose(read_of(Received(), sink)[0, 1, 2], [1, 0, 0, 0, 0, 0, 0])
    assert read_of(Received(), identity)[1, 0, 0, 0] == pytest.approx(1 / T)
    assert not read_of(Mass(at="previous"), identity).any()
    assert not read_of(Mass(at="duplicate"), identity).any()


@pytest.mark.parametrize("block", [1, 2, 3, T, T + 1])
@pytest.mark.parametrize("reducer", ["max", "sum"])
def test_blocks_pool_the_map(block, reducer):
    got, count = read_of(BlockMap(block, reducer)), -(-T // block)
    assert got.shape == (B, L, H, count, count)
    for b, layer, h, u, v in product(range(B), range(L), range(H), range(count), range(count)):
        cells = PATTERN[b, layer, h, u * block : (u + 1) * block, v * block : (v + 1) * block]
        assert got[b, layer, h, u, v] == pytest.approx(getattr(cells, reducer)(), abs=1e-6)


def test_blocks_are_pooled_by_their_maximum_unless_told_otherwise():
    assert BlockMap(2) == BlockMap(2, "max")


@pytest.mark.parametrize("rows", ROWS)
def test_the_pattern_comes_back_at_the_rows(rows):
    expected = np.stack([PATTERN[b][:, :, list(query_rows(rows, b))] for b in range(B)])
    np.testing.assert_array_equal(read_of(Pattern(rows)), expected)


# ---------------------------------------------------------------------------------------------------------- reads are plain data


def test_reads_are_hashable_comparable_and_frozen():
    assert {Mass(first=4): 1}[Mass(first=4)] == 1
    assert Mass(first=4) != Mass(last=4)
    assert str(Mass(first=4, rows="answer")) == "Mass(first=4, last=0, span=None, at=None, rows='answer')"
    with pytest.raises(FrozenInstanceError):
        Mass(first=4).first = 5


def test_the_reads_that_give_one_number_per_row_say_so():
    assert {read for read in READS if read.per_row} == {Mass, TopMass, Entropy, Peak, LogSumExp, FirstKeyCosine}
    of_keys, of_vectors = {Received, BlockMap, ValueNorm, KeyNorm}, {Pattern, HeadOutput, QueryKey, Written}
    assert set(READS) == {Mass, Distances, TopMass, Entropy, Peak, LogSumExp, FirstKeyCosine, NextToken} | of_keys | of_vectors
    assert BlockMap.rows is ValueNorm.rows is None


@pytest.mark.parametrize("settings", [{}, {"rows": "some"}, {"first": -1}, {"last": -1}, {"first": 0, "last": 0}, {"first": -1, "span": "x"}, {"span": ""}])
def test_a_mass_without_keys_is_refused(settings):
    with pytest.raises(InputError, match=r"^Mass needs a set of keys: first=n, last=n, span=name or at=relation, n ≥ 0$"):
        Mass(**settings)


def test_an_unknown_relation_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match="unknown relation 'next'; there are: duplicate, induction, previous, self"):
        Mass(at="next")


def test_an_unknown_reducer_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match="unknown reducer 'min'; there are: max, mean, sum"):
        Received("min")
    with pytest.raises(InputError, match="unknown reducer 'mean'; there are: max, sum"):
        BlockMap(2, "mean")


@pytest.mark.parametrize("block", [0, -1])
def test_a_block_of_nothing_is_refused(block):
    with pytest.raises(InputError, match=f"a block has at least one token, got {block}"):
        BlockMap(block)


@pytest.mark.parametrize(("read", "what"), [(Mass(first=1, rows="nowhere"), "rows 'nowhere'; there are: one, some"), (TopMass("gone"), "span 'gone'; there")])
def test_an_unknown_place_is_refused_with_those_that_exist(read, what):
    with pytest.raises(InputError, match=f"unknown {what}"):
        read_of(read)


@pytest.mark.parametrize(("read", "what"), [(HeadOutput(), "head outputs"), (QueryKey(), "queries"), (ValueNorm(), "values"), (LogSumExp(), "scores")])
def test_patterns_alone_have_no_vectors(read, what):
    with pytest.raises(InputError, match=f"this capture was made from attention patterns alone; it has no {what}"):
        read_of(read)


def test_queries_without_keys_are_none_either():
    rows = Rows.of(PROMPTS, PROMPTS.row_positions(None), T, None, torch.device("cpu"))
    with pytest.raises(InputError, match=r"made from attention patterns alone; it has no keys$"):
        QueryKey().reference(LayerView(rows, torch.tensor(PATTERN[:, 0]), q_BHRE=torch.ones(B, H, T, 4)))


def test_the_keys_of_a_relation_are_marked():
    rows = Rows.of(PROMPTS, PROMPTS.row_positions("some"), T, None, torch.device("cpu"))
    got = LayerView(rows, torch.tensor(PATTERN[:, 0, :, :3])).related_BRK("previous")
    assert got.dtype == torch.bool
    assert torch.equal(got, torch.tensor([[[q - 1 == k for k in range(T)] for q in row_R] for row_R in ([0, 2, 6], [3, 6, 6])]))


@pytest.mark.parametrize("part", [{"queries": (1, 3)}, {"keys": (1, 3)}, {"queries": (1, 3), "keys": (0, 2)}])
def test_only_whole_maps_are_wanted_of_the_kernels(part):
    rows = Rows.of(PROMPTS, PROMPTS.row_positions(None), T, None, torch.device("cpu"))
    assert BlockMap(2, "sum").wanted(rows).maps == {(2, "sum")}
    assert not BlockMap(2, "sum", **part).wanted(rows)


# ------------------------------------------------------------------------------------------------------------------- on models

PLACES = {
    "spans": {"needle": np.array([[2, 6], [10, 11]])},
    "rows": {"some": np.array([[19, 3, 3], [0, 18, 7]])},
}
WITHOUT_VISIBILITY = [
    *(Mass(first=4), Mass(last=3, rows="some"), Mass(span="needle"), Mass(at="previous"), Mass(at="self"), Mass(at="duplicate"), Mass(at="induction")),
    *(TopMass("needle"), TopMass("needle", "some"), Entropy(), Received("sum"), Received("max", "some"), BlockMap(8), BlockMap(6, "sum"), Pattern("some")),
]
WITH_VISIBILITY = [Received(), Received(rows="some"), Entropy(relative=True), Entropy("some", relative=True)]


def repeated_prompts():
    """Few different tokens, so that there are duplicates."""
    return Prompts(np.random.default_rng(3).integers(3, 8, (2, 20)), **PLACES)


each_implementation = pytest.mark.parametrize("implementation", ["reference", "torch"])


@each_implementation
@pytest.mark.parametrize("architecture", ["gpt2", "llama", *WINDOWED])
def test_reads_of_a_model_are_those_of_its_eager_pattern(architecture, implementation):
    model, prompts = tiny(architecture), repeated_prompts()
    reads = WITHOUT_VISIBILITY + ([] if architecture in WINDOWED else WITH_VISIBILITY)
    seen, given = capture(model, prompts, reads, implementation=implementation), from_patterns(model.card, prompts, eager(model, prompts.ids_BT).pattern, reads)
    for read in reads:
        np.testing.assert_allclose(seen[read], given[read], atol=2e-5, err_msg=str(read))


@each_implementation
@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize("rows", [None, "some"])
def test_with_a_sliding_window_only_the_rows_that_see_a_key_count(architecture, rows, implementation):
    model, prompts = tiny(architecture), repeated_prompts()
    seen = capture(model, prompts, [Received(rows=rows), Entropy(rows, relative=True)], implementation=implementation)
    pattern = eager(model, prompts.ids_BT).pattern
    for (layer, window), b, h in product(enumerate(WINDOWED[architecture]), range(2), range(4)):
        places = prompts.row_positions(rows)[b].tolist()
        for k in range(20):
            probs = [pattern[b, layer, h, q, k] for q in places if visible(window, q, k)]
            assert seen[Received(rows=rows)][b, layer, h, k] == pytest.approx(sum(probs) / max(len(probs), 1), abs=2e-5)
        for r, q in enumerate(places):
            entropy = -sum(p * math.log(p) for p in pattern[b, layer, h, q].tolist() if p > 0)
            count = sum(visible(window, q, k) for k in range(20))
            assert seen[Entropy(rows, relative=True)][b, layer, h, r] == pytest.approx(entropy / math.log(count) if count > 1 else 0, abs=2e-5)


@each_implementation
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "qwen3"])
def test_queries_and_keys_make_the_pattern(architecture, implementation):
    model, prompts = tiny(architecture), repeated_prompts()
    seen, shape = capture(model, prompts, [QueryKey(), QueryKey("some"), Pattern()], implementation=implementation), model.shape
    query, key = (torch.tensor(value) for value in seen[QueryKey()])
    assert key.shape == (2, shape.n_layers, shape.n_kv_heads, 20, shape.d_head)
    scale, cap = (10**-0.5, 5.0) if architecture == "gemma2" else (shape.d_head**-0.5, None)
    for head in shape.heads():
        window = WINDOWED.get(architecture, (None, None))[head.layer]
        logits = query[:, head.layer, head.index] @ key[:, head.layer, shape.kv_head(head)].mT * scale
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        hidden = torch.tensor([[not visible(window, q, k) for k in range(20)] for q in range(20)])
        np.testing.assert_allclose(logits.masked_fill(hidden, -torch.inf).softmax(-1), seen[Pattern()][:, head.layer, head.index], atol=1e-5)
    np.testing.assert_array_equal(seen[QueryKey("some")].key, key)
    for b in range(2):
        np.testing.assert_array_equal(seen[QueryKey("some")].query[b], query[b][:, :, prompts.rows["some"][b].tolist()])


@pytest.mark.parametrize(("architecture", "projection"), [("gpt2", "c_attn"), ("llama", "v_proj"), ("qwen2", "v_proj")])
def test_value_norms_are_the_lengths_of_the_projected_values(architecture, projection):
    model, prompts, made = tiny(architecture), repeated_prompts(), []
    hooks = [getattr(module, projection).register_forward_hook(lambda module, args, out: made.append(out)) for module in model.weights.attentions]
    norms = capture(model, prompts, [ValueNorm()])[ValueNorm()]
    for hook in hooks:
        hook.remove()
    shape = model.shape
    assert norms.shape == (2, shape.n_layers, shape.n_kv_heads, 20)
    for layer, out in enumerate(made):
        values = out[..., -shape.n_kv_heads * shape.d_head :].unflatten(-1, (shape.n_kv_heads, shape.d_head))
        np.testing.assert_allclose(norms[:, layer], values.norm(dim=-1).transpose(1, 2), rtol=1e-5)


def test_head_outputs_at_rows_are_rows_of_all_head_outputs():
    prompts = repeated_prompts()
    seen = capture(tiny("llama"), prompts, [HeadOutput(), HeadOutput("some")])
    for b in range(2):
        np.testing.assert_array_equal(seen[HeadOutput("some")][b], seen[HeadOutput()][b][:, :, prompts.rows["some"][b]])
