"""Do all implementations read the same, with padding, in chunks, while decoding and under edits; and say clearly what they cannot do?"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from eager import eager, random_ids, random_prompts, tiny
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workbench import captures, implementations, layer_view, passes
from workbench.attention import Tap, tapped
from workbench.captures import capture, generate
from workbench.edits import PHASES, Ablate, Reference
from workbench.errors import InputError
from workbench.given import from_patterns, uniform
from workbench.heads import Head
from workbench.implementations import IMPLEMENTATIONS, choose
from workbench.models import HFModel
from workbench.ops import blocked
from workbench.ops.inputs import Attention, Wanted
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
from workbench.tiny import ARCHITECTURES, random_model

LENGTH, PADDING = 40, np.array([0, 16])
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
ALL = [
    *(Mass(first=4), Mass(last=7, first=2, span="needle", at="induction"), Mass(at="previous"), Mass(at="self"), Mass(at="duplicate", rows="some")),
    *(Mass(last=3, rows="some"), Mass(first=LENGTH + 1), Distances(), Distances("some"), TopMass("needle"), TopMass("needle", "some")),
    *(Entropy(), Entropy("some", relative=True), Peak(), Peak("some"), LogSumExp(), LogSumExp("some")),
    *(Received(), Received("sum", "some"), Received("max"), BlockMap(16), BlockMap(32, "sum"), Pattern(), Pattern("some"), HeadOutput(), HeadOutput("some")),
    *(QueryKey(), QueryKey("some"), ValueNorm(), KeyNorm(), FirstKeyCosine(), FirstKeyCosine("some"), Written(), NextToken(), NextToken("some")),
]
FEW = [
    *(Mass(last=7, first=2, span="needle", at="induction", rows="some"), Distances("some"), TopMass("needle", "some"), Entropy(), Peak(), LogSumExp()),
    *(Received(), Received("max"), BlockMap(32), Pattern("some"), HeadOutput(), QueryKey("some"), ValueNorm(), KeyNorm()),
    *(FirstKeyCosine(), Written(), NextToken()),
]
"""As few as there are kinds, for Triton's interpreter, which is slow."""
WAYS = {"torch": {"implementation": "torch"}, "chunked": {"implementation": "torch", "chunk": 19}, "triton": {"implementation": "triton"}}

each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@cache
def few_heads(architecture: str) -> HFModel:
    """As few and as small heads as the Triton kernels take: its interpreter is slow."""
    if architecture == "gpt2":
        return random_model(architecture, n_head=2, n_layer=1)
    size = {"head_dim": 16} if "head_dim" in ARCHITECTURES[architecture] else {"hidden_size": 32}
    layers = 2 if architecture in ("gemma2", "gemma3_text") else 1  # with a window and without
    one_kv_head = {"num_key_value_heads": 1} if architecture != "gpt_neox" else {}
    return random_model(architecture, num_attention_heads=2, num_hidden_layers=layers, **size, **one_kv_head)


def model_for(way: str, architecture: str) -> HFModel:
    if way != "triton":
        return tiny(architecture)
    pytest.importorskip("triton")
    return few_heads(architecture)


def prompts_of(padding=None, length: int = LENGTH) -> Prompts:
    """Every token comes twice; rows in no order, repeated, on both sides of a chunk's border, and behind the padding."""
    ids = np.stack([np.tile(np.random.default_rng(seed).integers(3, 60, length // 2), 2) for seed in (3, 4)])
    rows = np.array([[31, 3, 3, 18, 19], [20, 38, 20, 37, 39]])
    return Prompts(ids, {"needle": np.array([[5, 9], [20, 30]])}, {"some": rows}, padding=padding)


def fields(value):
    return value if isinstance(value, tuple) else (value,)


def assert_same(got, want, reads):
    for read in reads:
        for one, other in zip(fields(got[read]), fields(want[read]), strict=True):
            assert (one.shape, one.dtype.kind) == (other.shape, other.dtype.kind), read
            np.testing.assert_allclose(one, other, **TOLERANCE, err_msg=str(read))


def test_every_read_is_compared():
    assert {type(read) for read in ALL} == {type(read) for read in FEW} == set(READS)


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", ["torch", "chunked"])
def test_every_read_is_that_of_the_reference(way, architecture, padding):
    model, prompts, reads = tiny(architecture), prompts_of(padding), [*ALL, BlockMap(7), BlockMap(7, "sum")]
    got, want = capture(model, prompts, reads, **WAYS[way]), capture(model, prompts, reads, implementation="reference")
    assert_same(got, want, reads)
    assert got.provenance["implementation"] == WAYS[way]["implementation"]
    assert got.provenance.get("chunk") == WAYS[way].get("chunk")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_read_with_triton_is_that_of_the_reference(architecture):
    """The first of the two prompts is not padded."""
    model, prompts = model_for("triton", architecture), prompts_of(PADDING)
    assert_same(*(capture(model, prompts, FEW, implementation=name) for name in ("triton", "reference")), FEW)


def test_every_read_with_triton_without_padding_is_that_of_the_reference():
    model, prompts = model_for("triton", "llama"), prompts_of()
    assert_same(*(capture(model, prompts, FEW, implementation=name) for name in ("triton", "reference")), FEW)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", ["reference", "torch"])
def test_outputs_patterns_and_logits_are_those_of_eager_attention(way, architecture):
    model, prompts = tiny(architecture), random_prompts()
    seen, truth = capture(model, prompts, [Pattern(), HeadOutput(), NextToken()], implementation=way), eager(model, prompts.ids_BT)
    np.testing.assert_allclose(seen[Pattern()], truth.pattern, atol=2e-5)
    size = np.abs(truth.z_BLQHE).max()
    np.testing.assert_allclose(seen[HeadOutput()].transpose(0, 1, 3, 2, 4) / size, truth.z_BLQHE / size, atol=2e-5)
    np.testing.assert_array_equal(seen[NextToken()].choice, truth.logits.argmax(-1))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "gemma2"])
@pytest.mark.parametrize("way", ["reference", "torch"])
def test_the_log_sum_exp_is_that_of_the_scores_of_eager_attention(monkeypatch, way, architecture):
    model, prompts, lse, softmax = tiny(architecture), random_prompts(), [], torch.nn.functional.softmax
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", lambda scores, **more: lse.append(scores.float().logsumexp(-1)) or softmax(scores, **more))
        eager(model, prompts.ids_BT)
    assert len(lse) == 2
    np.testing.assert_allclose(capture(model, prompts, [LogSumExp()], implementation=way)[LogSumExp()], torch.stack(lse, 1), **TOLERANCE)


@pytest.mark.parametrize("chunk", [8, 39, 40, 100])
def test_chunks_of_any_size_read_the_same(chunk):
    model, prompts = tiny("gemma2"), prompts_of(PADDING)
    reads = [*ALL, BlockMap(7)]
    assert_same(capture(model, prompts, reads, chunk=chunk), capture(model, prompts, reads), reads)


def test_chunks_of_one_token_read_the_same():
    prompts = Prompts(random_ids(2, 9) % 5 + 3, padding=np.array([0, 3]))
    reads = [read for read in ALL if read.rows is None and getattr(read, "span", None) is None]
    assert_same(capture(tiny("gemma2"), prompts, reads, chunk=1), capture(tiny("gemma2"), prompts, reads), reads)


UNIONS = [Mass(*keys) for keys in product((0, 3), (0, 4), (None, "needle", "middle"), (None, *RELATIONS)) if any(keys)]
"""Of everything that a mass may be of; the sets of keys overlap and touch at some rows."""


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("way", ["torch", "chunked"])
def test_a_key_in_several_sets_counts_once(way, padding):
    prompts = replace(prompts_of(padding), spans={"needle": np.array([[0, 5], [17, 30]]), "middle": np.array([[2, 21], [0, 40]])})
    model = tiny("mistral")
    assert_same(
        *(capture(model, prompts, UNIONS, implementation=name, chunk=chunk) for name, chunk in (("torch", WAYS[way].get("chunk")), ("reference", None))), UNIONS
    )


PARTS = [
    *(BlockMap(4, reducer, queries=(3, 17), keys=(2, 31)) for reducer in ("max", "sum")),
    *(BlockMap(5, queries=(3, 17)), BlockMap(5, keys=(2, 31)), BlockMap(1, "sum", queries=(30, 31), keys=(30, 31)), BlockMap(64, queries=(0, 40))),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 9, 17, 18])
def test_a_part_of_a_map_is_that_of_the_reference(chunk, dtype):
    """Chunks begin and end within its blocks, behind its last row, and before its first."""
    model, prompts = random_model("llama", dtype=dtype), prompts_of()
    reads = [*PARTS, Pattern()]
    got, want = capture(model, prompts, reads, implementation="torch", chunk=chunk), capture(model, prompts, reads, implementation="reference")
    if dtype == torch.float32:
        assert_same(got, want, reads)
    for read in PARTS:
        rows, columns = read.queries or (0, LENGTH), read.keys or (0, LENGTH)
        pattern = got[Pattern()][..., rows[0] : rows[1], columns[0] : columns[1]]
        blocks = [
            [getattr(pattern[..., u : u + read.block, v : v + read.block], read.reducer)((-2, -1)) for v in range(0, pattern.shape[-1], read.block)]
            for u in range(0, pattern.shape[-2], read.block)
        ]
        np.testing.assert_allclose(got[read], np.moveaxis(blocks, (0, 1), (-2, -1)), atol=1e-5, err_msg=str(read))


@pytest.mark.parametrize("strip", [1, 2 * 4 * LENGTH * 7])
def test_probabilities_in_strips_of_few_rows_are_the_same(monkeypatch, strip):
    model, prompts, reads = tiny("mistral"), prompts_of(PADDING), [Pattern(), Pattern("some"), TopMass("needle"), TopMass("needle", "some"), *PARTS]
    shown, views = [], layer_view.Seen.views
    monkeypatch.setattr(layer_view, "STRIP", strip)
    monkeypatch.setattr(layer_view.Seen, "views", lambda self, *rows: (shown.append(view) or view for view in views(self, *rows)))
    assert_same(*(capture(model, prompts, reads, implementation=name) for name in ("torch", "reference")), reads)
    assert max(view.pattern_BHRK.shape[2] for view in shown) == max(1, strip // (2 * 4 * LENGTH))
    assert {(view.rows.prompts is prompts, view.rows.keys, view.rows.window) for view in shown} == {(True, LENGTH, 8)}


@pytest.mark.parametrize("edited", [False, True], ids=["clean", "edited"])
@pytest.mark.parametrize("way", ["reference", "torch", "chunked"])
def test_everything_is_made_where_the_model_is(monkeypatch, way, edited):
    """The device that tensors are made on unless told otherwise is another one here, on which nothing can be computed."""
    model, prompts, whole = tiny("gemma2"), prompts_of(PADDING), Tap.__call__
    z = capture(model, random_prompts(3, 6, seed=5), [HeadOutput()])[HeadOutput()]
    edits = [Ablate((Head(0, 1),), "uniform", "prefill"), Ablate((Head(0, 2),)), Ablate((Head(1, 3),), "resample", reference=Reference(z))]
    reads, more = [*ALL, *PARTS], {"edits": edits if edited else [], **WAYS.get(way, {"implementation": way})}
    want = capture(model, prompts, reads, **more)

    def elsewhere(*args):
        with torch.device("meta"):
            return whole(*args)

    monkeypatch.setattr(Tap, "__call__", elsewhere)
    assert_same(capture(model, prompts, reads, **more), want, reads)


@pytest.mark.parametrize("chunk", [None, 19])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_what_a_model_is_given_and_gives_lies_where_it_is(monkeypatch, padding, chunk):
    """As above, for what happens around the model. It keeps its keys for the next chunk alone."""
    model, prompts, given = tiny("gemma2"), prompts_of(padding), []
    reads = [read for read in (*ALL, *PARTS) if not isinstance(read, QueryKey)]  # joining its chunks makes nothing, but calls `torch.as_tensor`
    want = capture(model, prompts, reads, chunk=chunk)

    @contextmanager
    def at_home(*args):
        with tapped(*args) as hf:

            def forward(ids_BT, **more):
                given.append((ids_BT.shape[1], more))
                with torch.device("cpu"):
                    return hf(ids_BT, **more)

            yield forward

    def elsewhere(*args, **more):
        with torch.device("meta"):
            return run(*args, **more)

    run = passes.run
    monkeypatch.setattr(passes, "tapped", at_home)
    monkeypatch.setattr(captures, "run", elsewhere)
    assert_same(capture(model, prompts, reads, chunk=chunk), want, reads)
    assert [size for size, _ in given] == ([LENGTH] if chunk is None else [19, 19, 2] * 2)
    assert all((more["use_cache"], "past_key_values" in more) == (chunk is not None,) * 2 for _, more in given)


def test_one_row_of_logits_is_made_where_nobody_asks_for_more(monkeypatch):
    rows = []
    monkeypatch.setattr(passes, "tapped", lambda *args: nullcontext(lambda ids_BT, **more: rows.append(more["logits_to_keep"]) or 1 / 0))
    for reads, kept in (([], [19]), ([NextToken()], [*range(20)]), ([NextToken("some")], [3, 7, 18])):
        with pytest.raises(ZeroDivisionError):
            capture(tiny("llama"), random_prompts(rows={"some": np.array([[7, 3], [18, 7]])}), reads)
        assert rows.pop() == kept


@pytest.mark.parametrize(("device", "waited"), [("cpu", []), ("cuda:1", [torch.device("cuda:1")])])
def test_values_are_waited_for(monkeypatch, device, waited):
    """They leave a GPU while it runs on."""
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", seen.append)
    monkeypatch.setattr(HFModel, "device", torch.device(device))
    assert passes.joined(tiny("llama"), random_prompts(), [], [(Tap(random_prompts(), []), [])]) == {}
    assert seen == waited


@pytest.mark.parametrize("reads", [[NextToken("some"), Received(rows="some"), Received("max", "some"), Entropy("some")], [Received(rows="some")]])
@pytest.mark.parametrize("chunk", [1, 9])
def test_of_rows_in_one_chunk_the_others_know_nothing(chunk, reads):
    prompts = random_prompts(rows={"some": np.array([[9], [9]])})  # the first of its chunk
    assert_same(*(capture(tiny("mistral"), prompts, reads, implementation=name, chunk=size) for name, size in (("torch", chunk), ("reference", None))), reads)


def test_maps_of_triton_in_chunks_begin_at_whole_tiles():
    model, prompts = model_for("triton", "llama"), prompts_of()
    assert_same(*(capture(model, prompts, [BlockMap(16)], implementation="triton", chunk=chunk) for chunk in (16, None)), [BlockMap(16)])
    with pytest.raises(InputError, match="multiples of 16 tokens with the Triton kernels, not at 19; take such a --chunk"):
        capture(model, prompts, [BlockMap(16)], implementation="triton", chunk=19)


# ------------------------------------------------------------------------------------------------------------------------ padding

ALONE = [
    *(Mass(first=4), Mass(last=7, first=2, at="induction"), Mass(at="previous"), Mass(span="needle"), Mass(at="duplicate", rows="some"), TopMass("needle")),
    *(
        Entropy(),
        Entropy(relative=True),
        Peak(),
        LogSumExp(),
        Received(),
        Received("max", "some"),
        BlockMap(16),
        Pattern(),
        HeadOutput(),
        QueryKey(),
        ValueNorm(),
    ),
    NextToken("some"),
]
"""Reads that are compared with those of the prompt without its padding."""


def cut(read, value, start):
    """What remains of a value [B, L, ...] of a padded prompt without the padding: of its rows, keys, blocks, and positions."""
    match read:
        case Peak():
            return value._replace(prob=value.prob[..., start:], key=value.key[..., start:] - start)
        case QueryKey():
            return value._replace(query=value.query[..., start:, :], key=value.key[..., start:, :])
        case Pattern() | BlockMap():
            first = start // getattr(read, "block", 1)
            return value[..., first:, first:]
        case HeadOutput():
            return value[..., start:, :]
        case _ if read.rows is None or isinstance(read, Received):
            return value[..., start:]
    return value


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "gemma2"])
@pytest.mark.parametrize("way", ["reference", "torch", "chunked"])
def test_a_padded_prompt_reads_as_it_does_alone(way, architecture):
    """Positions are learned (gpt2) or rotated, with and without a window; the prompt alone has neither padding nor mask."""
    model, prompts = model_for(way, architecture), prompts_of(PADDING)
    together = capture(model, prompts, ALONE, **WAYS.get(way, {"implementation": way}))
    for b, start in enumerate(PADDING.tolist()):
        ids, span, rows = prompts.ids_BT[b : b + 1, start:], prompts.spans["needle"][b : b + 1] - start, prompts.rows["some"][b : b + 1] - start
        alone = capture(model, Prompts(ids, {"needle": span}, {"some": rows}), ALONE, implementation="reference")
        for read in ALONE:
            value = together[read]
            value = type(value)(*(part[b : b + 1] for part in value)) if isinstance(value, tuple) else value[b : b + 1]
            for one, other in zip(fields(cut(read, value, start)), fields(alone[read]), strict=True):
                np.testing.assert_allclose(one, other, **TOLERANCE, err_msg=f"{read} of prompt {b}")


@pytest.mark.parametrize("way", ["reference", *WAYS])
def test_rows_of_padding_give_no_number(way):
    model = model_for(way, "llama")
    prompts = replace(prompts_of(PADDING), rows={"edge": np.array([[0, 15, 16], [15, 16, 0]])})
    reads = [Mass(first=2), TopMass("needle"), Entropy(), LogSumExp(), Mass(last=2, rows="edge"), Peak(), Peak("edge")]
    seen = capture(model, prompts, reads, **WAYS.get(way, {"implementation": way}))
    hidden = {None: np.arange(LENGTH) < PADDING[:, None], "edge": prompts.rows["edge"] < PADDING[:, None]}
    for read in reads:
        expected = np.broadcast_to(hidden[read.rows][:, None, None], seen[read].prob.shape if isinstance(read, Peak) else seen[read].shape)
        np.testing.assert_array_equal(np.isnan(fields(seen[read])[0]), expected, err_msg=str(read))
        if isinstance(read, Peak):
            np.testing.assert_array_equal(seen[read].key == -1, expected)


def test_texts_of_different_lengths_read_as_they_do_one_by_one():
    model, texts, reads = tiny("gpt2"), ["a river", "the river rose", "so"], [Entropy(), Mass(first=1), NextToken()]
    together = capture(model, texts, reads)
    np.testing.assert_array_equal(together.prompts.padding, [7, 0, 12])
    assert [fact["text"] for fact in together.prompts.facts] == texts
    for b, text in enumerate(texts):
        alone, start = capture(model, text, reads), int(together.prompts.padding[b])
        np.testing.assert_allclose(together[Entropy()][b, ..., start:], alone[Entropy()][0], **TOLERANCE)
        np.testing.assert_allclose(together[Mass(first=1)][b, ..., start:], alone[Mass(first=1)][0], **TOLERANCE)
        np.testing.assert_array_equal(together[NextToken()].choice[b, start:], alone[NextToken()].choice[0])
        np.testing.assert_allclose(together[NextToken()].logprob[b, start:], alone[NextToken()].logprob[0], atol=1e-4)


# --------------------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("way", "chunk"), [("reference", None), ("torch", None), ("torch", 7), ("torch", 19)])
def test_rows_may_be_asked_in_any_order_and_repeatedly(way, chunk):
    rows = np.array([[LENGTH - 1, 18, 19, 0, 7, 19, 6, 38, 19], [20, 0, 37, 19, 7, 6, 18, 0, 13]])  # as many in each chunk
    prompts = replace(prompts_of(), rows={"asked": rows})
    wanted = [Mass(at="induction"), Entropy(), Peak(), LogSumExp(), Distances(), Pattern(), HeadOutput(), NextToken()]
    asked = [replace(read, rows="asked") for read in wanted]
    seen, whole = (
        capture(tiny("mistral"), prompts, asked, implementation=way, chunk=chunk),
        capture(tiny("mistral"), prompts, wanted, implementation="reference"),
    )
    for read, all_rows in zip(asked, wanted, strict=True):
        for one, other in zip(fields(seen[read]), fields(whole[all_rows]), strict=True):
            for b in range(2):
                picked = other[b][rows[b]] if isinstance(read, NextToken) else other[b][:, :, rows[b]]
                np.testing.assert_allclose(one[b], picked, atol=1e-4 if isinstance(read, NextToken) else 2e-5, rtol=2e-5, err_msg=str(read))


def test_the_queries_of_rows_and_all_keys_come_back():
    prompts = prompts_of()
    seen, whole = (capture(tiny("llama"), prompts, [read], chunk=7)[read] for read in (QueryKey("some"), QueryKey()))
    np.testing.assert_array_equal(seen.key, whole.key)
    for b in range(2):
        np.testing.assert_array_equal(seen.query[b], whole.query[b][:, :, prompts.rows["some"][b]])


# ----------------------------------------------------------------------------------------------------------------- decoding, edits

ANSWER = [
    *(Mass(first=2, rows="answer"), Mass(last=3, rows="answer"), Mass(span="needle", rows="answer"), Mass(at="induction", rows="answer")),
    *(
        Mass(at="previous", rows="answer"),
        TopMass("needle", "answer"),
        Entropy("answer"),
        Entropy("answer", relative=True),
        Peak("answer"),
        LogSumExp("answer"),
    ),
]


@pytest.mark.parametrize(("way", "architecture"), [("torch", "llama"), ("torch", "gemma2"), ("triton", "llama")])
def test_a_generation_reads_the_same(way, architecture):
    model = HFModel("x", "x", model_for(way, architecture).hf)  # without a tokenizer nothing ends it early
    prompts = Prompts(random_ids(1, 20) % 9 + 3, {"needle": np.array([[3, 7]])})
    got, want = (generate(model, prompts, ANSWER, max_new_tokens=3, implementation=name) for name in (way, "reference"))
    assert got.provenance["implementation"] == way
    np.testing.assert_array_equal(got.prompts.ids_BT, want.prompts.ids_BT)
    assert_same(got, want, ANSWER)


EDITED = [Mass(first=2), Entropy(), Peak(), Received(), Pattern(), HeadOutput(), QueryKey(), LogSumExp(), NextToken()]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "uniform"])
@pytest.mark.parametrize("way", ["torch", "chunked"])
def test_an_ablated_head_reads_and_writes_the_same(way, kind, phase):
    model, prompts = tiny("gemma2"), random_prompts(2, 24, prefilled=15)
    z = capture(model, random_prompts(3, 6, seed=5), [HeadOutput()])[HeadOutput()]
    edit = Ablate((Head(0, 1), Head(1, 2)), kind, phase, Reference(z) if kind in ("mean", "resample") else None)
    want = capture(model, prompts, EDITED, [edit], implementation="reference")
    if way == "torch" or kind != "resample":  # in chunks the prompts go through one by one, each of them the first to be dealt a donor
        assert_same(capture(model, prompts, EDITED, [edit], **WAYS[way]), want, EDITED)
    clean = capture(model, prompts, EDITED, implementation="reference")
    assert (want[NextToken()].logprob != clean[NextToken()].logprob)[:, -2].all()


@pytest.mark.parametrize("kind", ["zero", "uniform"])
def test_an_ablated_head_reads_the_same_with_triton(kind):
    model, prompts = model_for("triton", "llama"), prompts_of(PADDING)
    edits = [Ablate((Head(0, 1),), kind)]
    got, want = (capture(model, prompts, EDITED, edits, implementation=name) for name in ("triton", "reference"))
    assert_same(got, want, [read for read in EDITED if kind == "zero" or not isinstance(read, Peak)])
    if kind == "uniform":  # all keys are equally strong; any visible one may be the peak
        np.testing.assert_allclose(got[Peak()].prob, want[Peak()].prob, **TOLERANCE)
        assert (got[Peak()].key <= np.arange(LENGTH)).all()


# -------------------------------------------------------------------------------------------------------- what is registered


@pytest.mark.parametrize(("name", "implementation"), [("workbench_reference", "reference"), ("workbench_streaming", "torch")])
def test_what_was_read_travels_in_the_place_of_the_attention_weights(name, implementation):
    model, prompts, reads = tiny("llama"), random_prompts(), [Entropy(), Peak(), ValueNorm()]
    with torch.inference_mode(), tapped(model, Tap(prompts, reads, implementation=implementation, layers=(0, 1))) as hf:
        assert model.config._attn_implementation == name
        travelled = hf(torch.tensor(prompts.ids_BT), output_attentions=True, use_cache=False).attentions
    seen = capture(model, prompts, reads, implementation=implementation)
    for layer, observed in enumerate(travelled):
        values = observed.values("m", layer)
        assert set(values) == set(reads)
        for read in reads:
            for one, other in zip(fields(values[read]), fields(seen[read]), strict=True):
                np.testing.assert_array_equal(one, other[:, layer])


def test_the_registered_function_gives_outputs_and_values():
    q, k, v = (torch.randn(1, heads, 5, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 3))
    module = torch.nn.Module()
    module.workbench_tap = (0, Tap(random_prompts(1, 5), [Pattern(), Entropy()], implementation="torch", layers=(0,)))
    z, observed = ALL_ATTENTION_FUNCTIONS["workbench_streaming"](module, q, k, v[:, :2], None, scaling=0.5)
    scores = (q @ k.repeat_interleave(2, 1).mT * 0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(z, (scores.softmax(-1) @ v[:, :2].repeat_interleave(2, 1)).transpose(1, 2), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(observed.values("m", 0)[Pattern()], scores.softmax(-1), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(observed.values("m", 0)[Entropy()], torch.special.entr(scores.softmax(-1)).sum(-1), atol=2e-6, rtol=1e-5)


@each_implementation
@pytest.mark.parametrize(("layer", "kv_head"), [(0, 1), (1, 0)])
def test_an_output_that_is_not_finite_is_named(implementation, layer, kv_head):
    if implementation == "triton":
        pytest.importorskip("triton")
    model = random_model("llama", num_attention_heads=4, hidden_size=64)  # two KV heads
    model.weights.attentions[layer].v_proj.weight.data[kv_head * 16 : (kv_head + 1) * 16] = torch.nan
    with pytest.raises(InputError, match=f"^tiny-llama, L{layer}H{2 * kv_head}: its output is not finite; try --dtype float32"):
        capture(model, random_prompts(), [Entropy()], implementation=implementation)


# ---------------------------------------------------------------------------------------------------------------------- the choice


def test_an_implementation_is_chosen_by_name():
    cpu = torch.device("cpu")
    assert [choose("auto", cpu, length) for length in (1, 2**20)] == ["torch", "torch"]
    assert [choose(name, cpu, 1) for name in ("reference", "torch")] == ["reference", "torch"]
    with pytest.raises(InputError, match="unknown implementation 'flash'; there are: auto, reference, torch, triton"):
        choose("flash", cpu, 1)
    with pytest.raises(InputError, match="unknown implementation 'flash'; there are: auto, reference, torch, triton"):
        capture(tiny("llama"), random_prompts(), [], implementation="flash")


def test_triton_is_taken_on_cuda_from_a_length_on(monkeypatch):
    monkeypatch.setattr("workbench.implementations.missing_for", lambda device: None)
    assert [choose("auto", torch.device("cuda"), length) for length in (1448, 1449)] == ["torch", "triton"]
    monkeypatch.setattr("workbench.implementations.missing_for", lambda device: "too old")
    assert choose("auto", torch.device("cuda"), 10**6) == "torch"


def test_triton_without_cuda_is_refused_with_what_works(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(InputError, match="--implementation triton: it needs CUDA, and the model is on cpu; torch and reference run on any device"):
        capture(tiny("llama"), random_prompts(), [], implementation="triton")


@pytest.mark.parametrize(("settings", "why"), [({"chunk": 0}, "at least one token"), ({"chunk": 4, "implementation": "reference"}, "use torch or triton")])
def test_chunks_of_nothing_or_of_the_reference_are_refused(settings, why):
    with pytest.raises(InputError, match=why):
        capture(tiny("llama"), random_prompts(), [], **settings)


@pytest.mark.parametrize(("read", "why"), [(Entropy(), "heads of size 8 are not supported by the Triton kernels"), (BlockMap(24), "multiples of 16, not 24")])
def test_what_triton_cannot_do_is_refused_with_what_can(read, why):
    model = model_for("triton", "llama") if isinstance(read, BlockMap) else tiny("llama")
    with pytest.raises(InputError, match=f"{why}.*; use --implementation torch"):
        capture(model, random_prompts(), [read], implementation="triton")


@pytest.mark.parametrize(("chunk", "tokens", "advice"), [(None, "2 × 4096", "--chunk 1024,"), (512, "1 × 512", "--chunk 128,")])
def test_running_out_of_memory_names_a_smaller_chunk(monkeypatch, chunk, tokens, advice):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has")

    monkeypatch.setattr(Tap, "__call__", fail)
    with pytest.raises(
        InputError, match=rf"^out of memory \(asked for 3\.00 gib\): {tokens} tokens take about .* for one layer's activations.*{advice} or --dtype"
    ):
        capture(tiny("llama"), random_prompts(2, 4096), [], chunk=chunk)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.1 GiB. 2.5 GiB is free."),
            " (asked for 3.00 gib)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12 (Cannot allocate memory)"),
            " (asked for 64 bytes)",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 bytes."), " (asked for 64 bytes)"),
        (torch.OutOfMemoryError("out of memory"), ""),
        (MemoryError(), ""),
    ],
    ids=["cuda", "cpu", "short", "silent", "numpy"],
)
@pytest.mark.parametrize(
    ("architecture", "settings", "more", "said"),
    [
        ("llama", {"intermediate_size": 1000}, {}, "2 × 100000 tokens take about 2.52 GiB"),  # 4 bytes × 2 × 100000 × (3 × 1000 + 8 × 48)
        ("llama", {"dtype": torch.bfloat16}, {}, "2 × 100000 tokens take about 0.36 GiB"),  # 2 bytes × 2 × 100000 × (3 × 4 × 48 + 8 × 48)
        ("gpt2", {"n_positions": 100000}, {"chunk": 50000}, "1 × 50000 tokens take about 0.12 GiB"),  # 4 bytes × 50000 × (3 × 4 × 32 + 8 × 32)
        ("gpt2", {"n_positions": 100000}, {"chunk": 3}, "1 × 3 tokens take about 0.00 GiB"),
    ],
)
def test_running_out_of_memory_says_what_was_asked_for_and_what_it_takes(monkeypatch, architecture, settings, more, said, error, asked):
    def fail(*args):
        raise error

    monkeypatch.setattr(Tap, "__call__", fail)
    with pytest.raises(InputError) as caught:
        capture(random_model(architecture, **settings), random_prompts(2, 100000), [], implementation="torch", **more)
    chunk = {None: 25000, 50000: 12500, 3: 1}[more.get("chunk")]
    assert str(caught.value) == f"out of memory{asked}: {said} for one layer's activations, beside the weights; use --chunk {chunk}, or --dtype bfloat16"
    assert caught.value.__cause__ is error


def test_the_reference_out_of_memory_counts_the_probabilities(monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(Tap, "__call__", fail)
    with pytest.raises(InputError) as caught:
        capture(tiny("llama"), random_prompts(3, 4096), [], implementation="reference")
    assert str(caught.value) == (
        "out of memory: 3 × 4096 tokens take about 1.69 GiB for the probabilities of one KV head, beside the weights; "  # 4 bytes × 3 × 3 heads × 4096² × 3
        "use --implementation torch or triton, which hold no probabilities, or shorter prompts (--lengths)"
    )


@pytest.mark.parametrize("layers", [(), (0, 0), (0, 2, 0), (3,), (0, -1)])
def test_layers_that_the_model_lacks_or_named_twice_are_refused(layers):
    with pytest.raises(InputError) as caught:
        capture(random_model("llama", num_hidden_layers=3), random_prompts(), [Entropy()], layers=layers)
    assert str(caught.value) == f"layers are some of 0 to 2, each once; got {list(layers)}"


@pytest.mark.parametrize("chunk", [None, 9])
@pytest.mark.parametrize("layers", [(0, 1, 2), (2, 0), (1,)])
def test_layers_are_read_in_the_asked_order(layers, chunk):
    model, reads = random_model("llama", num_hidden_layers=3), [Mass(last=3), Peak(), Received(), NextToken()]
    seen, whole = capture(model, random_prompts(), reads, layers=layers, chunk=chunk), capture(model, random_prompts(), reads, chunk=chunk)
    for read in reads:
        for one, other in zip(fields(seen[read]), fields(whole[read]), strict=True):
            np.testing.assert_allclose(one, other if isinstance(read, NextToken) else other[:, list(layers)], **TOLERANCE)
    assert seen.provenance["layers"] == list(layers)
    assert "layers" not in whole.provenance


# ------------------------------------------------------------------------------------------------------------------ the provenance


def test_ranges_longer_than_the_prompt_are_noted():
    reads = [Mass(first=20), Mass(last=21), Mass(first=300, last=2, rows="some")]
    seen = capture(tiny("llama"), random_prompts(rows={"some": np.array([[1], [2]])}), reads)
    assert seen.provenance["clamped"] == [f"{reads[1]}: 21 keys are all 20", f"{reads[2]}: 300 keys are all 20"]
    assert "clamped" not in capture(tiny("llama"), random_prompts(), reads[:1]).provenance


@pytest.mark.parametrize("run", [capture, lambda model, prompts, reads: generate(model, prompts, reads, max_new_tokens=1)])
def test_prompts_beyond_the_trained_context_run_with_a_warning(run):
    model = random_model("llama", max_position_embeddings=12)
    assert "warning" not in run(model, random_prompts(1, 11), []).provenance
    assert "warning" not in capture(model, random_prompts(1, 12), []).provenance
    total = run(model, random_prompts(1, 13), []).prompts.length
    assert run(model, random_prompts(1, 13), []).provenance["warning"] == f"{total} tokens are beyond the 12 that tiny-llama was trained for"


@pytest.mark.parametrize("chunk", [None, 16])
def test_blocks_of_nothing_but_padding_show_nothing(monkeypatch, chunk):
    monkeypatch.setitem(blocked.ELEMENTS, "cpu", 2**10)
    prompts = random_prompts(2, 200, padding=np.array([0, 150]))
    seen, alone = capture(tiny("llama"), prompts, [Entropy()], chunk=chunk), capture(tiny("llama"), random_ids_of(prompts, 1), [Entropy()])
    assert np.isnan(seen[Entropy()][1, ..., :150]).all()
    np.testing.assert_allclose(seen[Entropy()][1, ..., 150:], alone[Entropy()][0], atol=2e-5)


def random_ids_of(prompts: Prompts, b: int) -> Prompts:
    """One prompt of a batch without its padding."""
    return Prompts(prompts.ids_BT[b : b + 1, prompts.start_B[b] :])


def test_padding_is_no_earlier_occurrence():
    ids, read = np.array([[0, 0, 0, 5, 0, 7, 0, 9], [3, 0, 4, 5, 0, 7, 0, 9]]), Mass(at="induction")
    seen = capture(tiny("llama"), Prompts(ids, padding=np.array([3, 0])), [read])[read]
    alone = capture(tiny("llama"), Prompts(ids[:1, 3:]), [read])[read]
    np.testing.assert_allclose(seen[0, ..., 3:], alone[0], atol=2e-5)


def test_a_uniform_head_is_seen_without_its_pattern():
    prompts = random_prompts(1, 150)
    pattern_QK = np.tril(np.ones((150, 150))) / np.arange(1, 151)[:, None]
    reads = [Mass(first=4), Mass(last=20), Mass(at="induction"), Mass(at="previous"), Entropy(relative=True), Received(), Received("max")]
    seen, given = uniform(tiny("llama").card, prompts, reads), from_patterns(tiny("llama").card, prompts, pattern_QK[None, None, None], reads)
    for read in reads:
        np.testing.assert_allclose(seen[read], given[read], atol=1e-5, err_msg=str(read))


def test_a_uniform_head_sees_no_padding_and_is_read_at_rows_in_their_order():
    prompts, card = prompts_of(PADDING), tiny("llama").card
    rows, start_B = np.arange(LENGTH), PADDING[:, None, None]
    seen_BQK = (rows[:, None] >= rows) & (rows >= start_B)
    pattern_BQK = seen_BQK / np.maximum(seen_BQK.sum(-1, keepdims=True), 1)
    reads = [
        Mass(first=2, last=3, span="needle", rows="some"),
        Mass(last=5),
        Entropy("some"),
        Pattern("some"),
        *(Received(), Received("sum", "some")),
        Peak("some"),
        Distances("some"),
    ]
    seen, given = uniform(card, prompts, reads), from_patterns(card, prompts, pattern_BQK[:, None, None], reads)
    assert_same(seen, given, reads)
    assert (seen.card, seen.prompts, given.card, given.prompts) == (card, prompts, card, prompts)
    assert dict(seen.provenance) == {"implementation": "torch", "attention": "uniform"}
    assert dict(given.provenance) == {"implementation": "given patterns"}


def test_answers_are_the_same_when_the_prompt_is_read_in_chunks():
    reads = [Peak("answer"), Entropy("answer")]
    whole, pieces = (generate(tiny("llama"), random_prompts(1, 23), reads, max_new_tokens=4, chunk=chunk) for chunk in (None, 7))
    np.testing.assert_array_equal(whole.prompts.ids_BT, pieces.prompts.ids_BT)
    np.testing.assert_allclose(whole[reads[1]], pieces[reads[1]], atol=2e-5)


def test_predictions_of_padding_are_none():
    seen = capture(tiny("llama"), random_prompts(2, 20, padding=np.array([0, 5])), [NextToken()])[NextToken()]
    assert np.isnan(seen.logprob[1, :5]).all()
    assert (seen.choice[1, :5] == -1).all()
    assert (seen.choice[:, 5:] >= 0).all()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 7), (2, 2), (2, 7), (5, 7), (7, 7)])
def test_plain_outputs_are_those_of_the_formula(queries, keys, kv_heads):
    """Where nothing else is wanted, and no window, cap or padding is in the way: as many queries as keys, one, or the last few."""
    noise = torch.Generator().manual_seed(keys)
    q, k, v = (torch.randn(2, heads, size, 8, generator=noise) for heads, size in ((4, queries), (kv_heads, keys), (kv_heads, keys)))
    pos_BR = torch.arange(keys - queries, keys).expand(2, -1)
    z, statistics = implementations.Streaming(blocked).outputs(Attention(q, k, v, pos_BR, torch.zeros(2, dtype=torch.int32), 0.9), Wanted())
    k, v = (tensor.repeat_interleave(4 // kv_heads, 1) for tensor in (k, v))
    hidden = torch.arange(keys) > pos_BR[0][:, None]
    torch.testing.assert_close(z, (0.9 * q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1) @ v, atol=1e-5, rtol=1e-5)
    assert statistics is None


def test_capped_scores_in_bfloat16_give_what_float32_gives_nearly():
    prompts, reads = random_prompts(), [HeadOutput(), Entropy()]
    seen, exact = (capture(random_model("gemma2", dtype=dtype), prompts, reads, implementation="reference") for dtype in (torch.bfloat16, torch.float32))
    for read in reads:
        np.testing.assert_allclose(seen[read][:, 0], exact[read][:, 0], atol=0.05 * np.abs(exact[read][:, 0]).max(), err_msg=str(read))


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_what_is_missing_is_asked_of_the_models_own_device(monkeypatch, name):
    asked = []
    monkeypatch.setattr(implementations, "missing_for", asked.append)
    assert implementations.choose(name, torch.device("cuda:1"), 5000) == "triton"
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(("size", "chosen"), [(8, "torch"), (16, "triton"), (256, "triton"), (257, "torch")])
def test_auto_knows_which_heads_the_kernels_do(monkeypatch, size, chosen):
    monkeypatch.setattr(implementations, "missing_for", lambda device: None)
    assert implementations.choose("auto", torch.device("cuda"), 5000, size) == chosen
