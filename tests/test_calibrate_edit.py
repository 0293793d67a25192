"""Does `Calibrate` do what ACT says, and nothing else? Held to loops over single probabilities inside the model, in every implementation."""

from functools import cache

import numpy as np
import pytest
import torch
from eager import random_ids, random_prompts, tiny
from hypothesis import given
from hypothesis import strategies as st
from test_implementations import ALL, FEW, assert_same, model_for, prompts_of
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from workbench.attention import Tap, tapped
from workbench.captures import capture, generate
from workbench.edits import Ablate, Calibrate, SinkRule
from workbench.edits import _calibrating as calibrating
from workbench.edits._calibrating import calibrated
from workbench.errors import InputError
from workbench.heads import Head
from workbench.ops import blocked, changed
from workbench.ops.inputs import Attention, Wanted
from workbench.prompts import Prompts
from workbench.reads import Entropy, HeadOutput, NextToken, Pattern, Received
from workbench.tiny import ARCHITECTURES, random_model

T, PREFILLED = 16, 11


def heads(*names: str) -> tuple[Head, ...]:
    return tuple(map(Head.parse, names))


LOOSE = SinkRule("share", 1.5)
"""So low that random models of few tokens have sinks in most heads."""
READS = [Pattern(), HeadOutput(), NextToken()]


# ------------------------------------------------------------------------------------------------------------ the loops to compare with


def limit(rule: SinkRule, n: int, k: int, window: int | None) -> tuple[float, int]:
    """The mean that a key at place k must exceed among n rows, and how many of these see it."""
    seen = [i for i in range(k, n) if window is None or i - k < window]
    uniform = sum(1 / min(i + 1, window or i + 1) for i in seen) / len(seen)
    return {"share": rule.threshold / n, "absolute": rule.threshold, "uniform": rule.threshold * uniform}[rule.kind], len(seen)


def sinks_of(edit: Calibrate, a_QK: np.ndarray, n: int, window: int | None, ids: list[int]) -> list[int]:
    """Key places that are sinks by the first n rows of one head; places and rows count from the first real token."""
    if edit.tokens is not None:
        return [k for k in range(1, n) if ids[k] in edit.tokens]
    found = []
    for k in range(1, n):
        least, seen = limit(edit.rule, n, k, window)
        if sum(a_QK[i, k] for i in range(k, n)) / seen > least:
            found.append(k)
    return found


def by_loops(edit: Calibrate, a_QK: np.ndarray, prefilled: int, window: int | None, ids: list[int]) -> np.ndarray:
    """The calibrated attention of one head, cell by cell."""
    out = a_QK.copy()
    for i in range(len(a_QK)):
        n = i + 1 if edit.find == "running" or i >= prefilled else prefilled
        sinks = sinks_of(edit, a_QK, n, window, ids)
        moved = (1 - edit.beta) * sum(a_QK[i, s] for s in sinks)
        rest = sum(a_QK[i, k] for k in range(i + 1) if k not in sinks)
        if rest > 0:
            for k in range(i + 1):
                out[i, k] = edit.beta * a_QK[i, k] if k in sinks else a_QK[i, k] * (1 + moved / rest)
    return out


def looped_logits(model, prompts: Prompts, edits: list[Calibrate]):
    """The model's logits, and the attention of every layer, with the loops in place of its attention."""
    patterns = []

    def attention(module, query, key, value, mask, scaling=None, softcap=None, sliding_window=None, **_):
        group = query.shape[1] // key.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (key, value))
        score = query @ k.mT * scaling
        score = score if softcap is None else softcap * (score / softcap).tanh()
        a = score.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0).double().numpy()
        for edit in edits:
            chosen = range(a.shape[1]) if edit.heads is None else [head.index for head in edit.heads if head.layer == len(patterns)]
            for b, start in enumerate(prompts.start_B):
                ids = prompts.ids_BT[b, start:].tolist()
                for h in chosen:
                    a[b, h, start:, start:] = by_loops(edit, a[b, h, start:, start:], prompts.decode_from - start, sliding_window, ids)
        patterns.append(torch.tensor(a))
        return (torch.tensor(a).to(v) @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register("loops", attention)
    AttentionMaskInterface.register("loops", lambda *a, **k: sdpa_mask(*a, **{**k, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}))
    place = torch.arange(prompts.length) - torch.tensor(prompts.start_B)[:, None]
    with model.attention("loops") as hf, torch.no_grad():
        logits = hf(torch.tensor(prompts.ids_BT), attention_mask=(place >= 0).long(), position_ids=place.clamp(min=0), use_cache=False).logits
    return logits, torch.stack(patterns, 1).numpy()


EDITS = {
    "share": [Calibrate(rule=LOOSE)],
    "absolute": [Calibrate(beta=0.2, rule=SinkRule("absolute", 0.12))],
    "uniform": [Calibrate(rule=SinkRule("uniform", 1.2))],
    "running": [Calibrate(rule=LOOSE, find="running")],
    "tokens": [Calibrate(tokens=tuple(range(3, 130)))],
    "heads": [Calibrate(heads("L0H1", "L1H0", "L1H3"), rule=LOOSE)],
    "two": [Calibrate(rule=SinkRule("uniform", 1.5)), Calibrate(heads("L0H0", "L1H2"), 0.1, LOOSE, find="running")],
}


def assert_by_loops(model, prompts, edits, implementation):
    seen = capture(model, prompts, READS, edits, implementation=implementation)
    logits, pattern = looped_logits(model, prompts, edits)
    np.testing.assert_allclose(seen[Pattern()], pattern, atol=3e-5)
    real = np.arange(prompts.length) >= prompts.start_B[:, None]
    logprob = logits.log_softmax(-1)[:, :-1].gather(-1, torch.tensor(prompts.ids_BT)[:, 1:, None])[..., 0].numpy()
    np.testing.assert_allclose(seen[NextToken()].logprob[:, :-1][real[:, :-1]], logprob[real[:, :-1]], atol=2e-3)
    return seen


@cache
def padded_prompts() -> Prompts:
    return random_prompts(2, T, prefilled=PREFILLED, padding=np.array([0, 3]))


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_it_is_what_loops_make(implementation, kind):
    assert_by_loops(tiny("llama"), padded_prompts(), EDITS[kind], implementation)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_it_is_what_loops_make_in_every_architecture(implementation, architecture):
    assert_by_loops(tiny(architecture), padded_prompts(), [Calibrate(heads("L0H1", "L1H0", "L1H3"), rule=LOOSE)], implementation)
    seen = assert_by_loops(tiny(architecture), random_prompts(1, T), [Calibrate(rule=LOOSE)], implementation)
    assert seen.found[0].sum() > 3


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_it_is_what_loops_make_with_triton(architecture):
    model = model_for("triton", architecture)
    assert_by_loops(model, random_prompts(2, T, padding=np.array([0, 3])), [Calibrate(rule=LOOSE)], "triton")


# --------------------------------------------------------------------------------------------------------------------------- invariants


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_rows_sum_to_one_sinks_keep_beta_and_the_rest_its_ratios(seed, beta):
    rng = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 12, (1,), generator=rng))
    a = torch.randn(1, 2, n, n, generator=rng).masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    sink = torch.rand(1, 2, 1, n, generator=rng) < 0.4
    sink[..., 0] = False
    out = calibrated(a, sink, beta)
    torch.testing.assert_close(out.sum(-1), torch.ones(1, 2, n), atol=1e-6, rtol=0)
    torch.testing.assert_close((out * sink).sum(-1), beta * (a * sink).sum(-1), atol=1e-6, rtol=1e-5)
    rest, before = out * ~sink, a * ~sink
    torch.testing.assert_close(rest / rest.sum(-1, keepdim=True), before / before.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert torch.equal(calibrated(a, sink, 1.0), a)
    assert torch.equal(calibrated(a, torch.zeros_like(sink), beta), a)
    assert (out[..., 0, 0] == 1).all()


def test_a_row_that_has_nothing_beside_its_sinks_stays():
    a, sink = torch.tensor([[[[0.0, 1.0, 0.0]]]]), torch.tensor([[[[False, True, False]]]])
    assert torch.equal(calibrated(a, sink, 0.4), a)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("edit", [Calibrate(beta=1.0, rule=LOOSE), Calibrate(rule=SinkRule("absolute", 1.1)), Calibrate(()), Calibrate(tokens=(1,))])
def test_beta_one_no_sinks_and_no_heads_change_nothing(implementation, edit):
    model, prompts = tiny("gemma2"), padded_prompts()
    clean, seen = (capture(model, prompts, READS, edits, implementation=implementation) for edits in ([], [edit]))
    assert_same(seen, clean, READS)


def test_where_no_sink_is_found_the_provenance_says_so():
    seen = capture(tiny("llama"), padded_prompts(), [], [Calibrate(rule=SinkRule("absolute", 1.1)), Ablate(())])
    assert seen.provenance["edits"][0]["remark"] == "no sink found in the prompts [0, 1], which are unchanged"
    assert seen.provenance["edits"][0]["sinks"] == [[0, 0], [0, 0]]
    assert seen.provenance["edits"][1] == Ablate(()).describe()


def test_what_was_found_is_counted():
    edit, prompts = Calibrate(heads("L0H1", "L1H3"), rule=LOOSE), random_prompts(2, T)
    clean = capture(tiny("llama"), prompts, [Pattern()], implementation="reference")[Pattern()]
    for implementation in ("reference", "torch"):
        seen = capture(tiny("llama"), prompts, [], [edit], implementation=implementation)
        assert seen.found[0].shape == (2, 2, 6)
        for b in range(2):
            assert seen.found[0][b, 0, 1] == len(sinks_of(edit, clean[b, 0, 1].astype(float), T, None, []))
        assert seen.found[0].sum() == seen.found[0][:, [0, 1], [1, 3]].sum() > 0
        assert seen.provenance["edits"][0] == {
            **edit.describe(),
            "sinks": seen.found[0].sum(-1).tolist(),
            "heads with sinks": int((seen.found[0].sum(0) > 0).sum()),
        }


# ------------------------------------------------------------------------------------------------------------------------------- rules


def flagged(rule: SinkRule, n: int) -> list[int]:
    """Which keys of a uniform causal head of n tokens are sinks."""
    received = (1 / torch.arange(1, n + 1, dtype=torch.float64)).flip(0).cumsum(0).flip(0).float()
    return rule.find(received[None, None, None], torch.tensor([[n]]), torch.tensor([0]))[0, 0, 0].nonzero()[:, 0].tolist()


def test_uniform_attention_shows_which_rules_depend_on_length():
    """The spec's numbers: from, or up to, which length a position of a uniform head is flagged."""
    assert flagged(SinkRule("absolute"), 20) == [0, 1, 2, 3]
    assert flagged(SinkRule("absolute", 0.136), 20) == [0, 1]  # .180 and .137
    assert flagged(SinkRule("absolute", 0.138), 20) == [0]
    for threshold, n in ((0.1, 32), (0.15, 18)):
        assert 1 in flagged(SinkRule("absolute", threshold), n - 1)
        assert 1 not in flagged(SinkRule("absolute", threshold), n)
    for alpha, place, n in ((5, 1, 221), (5, 2, 363), (3, 1, 27), (3, 2, 44), (7, 1, 1667), (7, 2, 2745)):
        assert place in flagged(SinkRule("share", alpha), n)
        assert place not in flagged(SinkRule("share", alpha), n - 1)
    for n in (2, 20, 500, 3000):
        assert flagged(SinkRule("uniform", 1.01), n) == []
        assert flagged(SinkRule("uniform", 0.99), n) == [*range(n)]


def test_a_window_of_uniform_attention_is_uniform_too():
    """Rows see at most four keys; a key is seen by at most four rows."""
    n, window = 12, 4
    a = torch.ones(n, n).tril().triu(1 - window)
    received = (a / a.sum(-1, keepdim=True)).sum(0)
    for threshold, found in ((1.01, 0), (0.99, n)):
        rule = SinkRule("uniform", threshold)
        assert int(rule.find(received[None, None, None], torch.tensor([[n]]), torch.tensor([0]), window).sum()) == found


# ------------------------------------------------------------------------------------------------------- caches, chunks, padding, reads


@pytest.mark.parametrize("implementation", ["reference", "torch", "triton"])
@pytest.mark.parametrize("kind", ["share", "running", "tokens", "two"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_decoding_with_a_cache_is_decoding_without(architecture, kind, implementation):
    model = model_for(implementation, architecture)
    some = heads("L0H0") if implementation == "triton" else heads("L0H1", "L1H2")
    edits = [Calibrate(some, edit.beta, edit.rule, edit.tokens, edit.find) if edit.heads else edit for edit in EDITS[kind]]
    reads = [Entropy("answer")]
    made = generate(model, Prompts(random_ids(1, 12)), reads, max_new_tokens=4, edits=edits, implementation=implementation)
    whole = capture(model, made.prompts, [*reads, NextToken("answer")], edits, implementation="reference")
    np.testing.assert_allclose(made[reads[0]], whole[reads[0]], atol=3e-5)
    np.testing.assert_array_equal(whole[NextToken("answer")].choice[0], made.prompts.ids_BT[0, 12:])
    assert made.prompts.decode_from == 11
    fed = capture(model, Prompts(made.prompts.ids_BT[:, :-1], prefilled=11), [], edits, implementation="reference")  # the last token was only chosen
    assert [one.tolist() for one in made.found] == [one.tolist() for one in fed.found]
    assert max(one.sum() for one in made.found) > 0


def test_after_each_token_the_cache_gives_what_the_text_so_far_gives():
    """Each step's output and choice are those of a pass over all tokens before it, without a cache."""
    model, edits = tiny("llama"), EDITS["share"]
    made = generate(model, Prompts(random_ids(1, 9)), [Entropy("answer")], max_new_tokens=5, edits=edits)
    for step in range(5):
        prompts = Prompts(made.prompts.ids_BT[:, : 9 + step], rows={"last": np.array([[8 + step]])}, prefilled=8)
        seen = capture(model, prompts, [Entropy("last"), NextToken("last")], edits)
        np.testing.assert_allclose(seen[Entropy("last")][..., 0], made[Entropy("answer")][..., step], atol=3e-5)
        assert step == 4 or seen[NextToken("last")].choice[0, 0] == made.prompts.ids_BT[0, 9 + step]


@pytest.mark.parametrize("kind", ["running", "tokens"])
@pytest.mark.parametrize("chunk", [2, 5, 15])
def test_chunks_are_the_whole(kind, chunk):
    prompts = padded_prompts()
    got, want = (capture(tiny("gemma2"), prompts, READS, EDITS[kind], implementation="torch", chunk=size) for size in (chunk, None))
    assert_same(got, want, READS)
    np.testing.assert_array_equal(got.found[0], want.found[0])


def test_a_prompt_in_one_chunk_and_its_answer_in_others_is_the_whole():
    model, prompts = tiny("llama"), random_prompts(2, T, prefilled=8)
    assert_same(*(capture(model, prompts, READS, EDITS["share"], implementation="torch", chunk=size) for size in (8, None)), READS)


@pytest.mark.parametrize("kind", ["share", "uniform", "running"])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_a_padded_prompt_is_calibrated_as_alone(architecture, implementation, kind):
    model, together = tiny(architecture), capture(tiny(architecture), padded_prompts(), READS, EDITS[kind], implementation=implementation)
    alone = capture(model, Prompts(padded_prompts().ids_BT[1:, 3:], prefilled=PREFILLED - 3), READS, EDITS[kind], implementation="reference")
    np.testing.assert_allclose(together[Pattern()][1, ..., 3:, 3:], alone[Pattern()][0], atol=3e-5)
    np.testing.assert_allclose(together[HeadOutput()][1, ..., 3:, :], alone[HeadOutput()][0], atol=2e-4)
    np.testing.assert_array_equal(together.found[0][1], alone.found[0][0])


@pytest.mark.parametrize("kind", ["share", "running", "heads", "two"])
def test_every_read_sees_the_calibrated_attention(kind):
    model, prompts = tiny("gemma2"), prompts_of(np.array([0, 16]))
    edits = [Calibrate(heads("L0H1", "L1H3"), rule=LOOSE)] if kind == "heads" else EDITS[kind]
    got, want = (capture(model, prompts, ALL, edits, implementation=name) for name in ("torch", "reference"))
    assert_same(got, want, ALL)


def test_every_read_sees_the_calibrated_attention_with_triton():
    model, prompts = model_for("triton", "llama"), prompts_of()
    assert_same(*(capture(model, prompts, FEW, EDITS["share"], implementation=name) for name in ("triton", "reference")), FEW)


# ------------------------------------------------------------------------------------------------------------------------ composition


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_ablations_act_before_and_behind(implementation):
    model, prompts = tiny("llama"), random_prompts(2, T)
    zero, uniform, edit = Ablate((Head(0, 1),)), Ablate((Head(0, 2),), "uniform"), Calibrate(heads("L0H1", "L0H2", "L0H3"), rule=SinkRule("absolute", 0.12))
    for edits in ([zero, uniform, edit], [edit, uniform, zero]):
        seen = capture(model, prompts, READS, edits, implementation=implementation)
        assert not seen[HeadOutput()][:, 0, 1].any()
        even = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
        np.testing.assert_allclose(seen[Pattern()][0, 0, 2], by_loops(edit, even, T, None, []), atol=1e-6)
        assert_same(seen, capture(model, prompts, READS, [zero, uniform, edit], implementation="reference"), READS)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_other_heads_of_the_layer_stay_as_they_are(implementation):
    model, prompts = tiny("llama"), random_prompts(2, T)
    clean, seen = (capture(model, prompts, READS, edits, implementation=implementation) for edits in ([], [Calibrate(heads("L0H1"), rule=LOOSE)]))
    others = [0, 2, 3, 4, 5]
    for read in (Pattern(), HeadOutput()):
        np.testing.assert_array_equal(seen[read][:, 0, others], clean[read][:, 0, others])
        assert np.abs(seen[read][:, 0, 1] - clean[read][:, 0, 1]).max() > 1e-3


def hooks_of(model) -> list[int]:
    return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.hf.modules()]


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_nothing_remains(implementation):
    model, ids = random_model("llama"), torch.tensor(random_ids(2, T))
    capture(model, random_prompts(2, T), READS, implementation=implementation)  # transformers installs hooks of its own when attention is asked for
    before, hooks = model.hf(ids).logits, hooks_of(model)
    edit = Calibrate(rule=LOOSE)
    first = capture(model, random_prompts(2, T), READS, [edit], implementation=implementation)
    assert torch.equal(model.hf(ids).logits, before)
    assert not any(hasattr(module, "workbench_tap") for module in model.hf.modules())
    assert hooks_of(model) == hooks
    again = capture(model, random_prompts(2, T), READS, [edit], implementation=implementation)
    for read in READS[:2]:
        np.testing.assert_array_equal(first[read], again[read])
    assert edit == Calibrate(rule=LOOSE)


# -------------------------------------------------------------------------------------------------------------------- the short way


def drawn(rows: int, sharp: float, dtype=torch.float32, window=None) -> Attention:
    rng = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, rows, 16, generator=rng, dtype=torch.float32).to(dtype) for heads in (4, 2, 2))
    k[:, :, [5, 40]] *= sharp
    pos = torch.arange(rows, dtype=torch.int32).expand(2, -1)
    return Attention(q, k, v, pos, torch.tensor([0, 9], dtype=torch.int32), 0.3, None, window, padded=True)


@pytest.mark.parametrize(("sharp", "dtype", "tolerance"), [(1.5, torch.float32, 1e-5), (12, torch.float32, 1e-4), (4, torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("window", [None, 23])
def test_corrected_outputs_are_those_of_the_probabilities(monkeypatch, sharp, dtype, tolerance, window):
    """Also where nearly all of a row's attention lies on sinks, so that a difference would lose its digits."""
    attention, model, prompts = drawn(150, sharp, dtype, window), tiny("llama"), Prompts(random_ids(2, 150), padding=np.array([0, 9]))

    def step():
        return Calibrate(beta=0.3, tokens=tuple(prompts.ids_BT[0, [5, 40]].tolist())).opened(
            calibrating.Scene(0, (0, 1, 2, 3), attention, prompts, model, None, {})
        )

    short = step().outputs(attention, blocked)
    exact = changed.reduced(attention, changed.strips(attention, [step()]), Wanted(output=True)).z_BHRE
    torch.testing.assert_close(short, exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("sharp", [1.5, 6, 12, 30])
def test_heads_with_many_rows_on_sinks_are_as_exact(monkeypatch, sharp):
    """Rows with nothing left beside their sinks among them, which stay as they are."""
    rng, prompts = torch.Generator().manual_seed(1), Prompts(np.arange(800).reshape(2, 400) % 400)
    q, k, v = (torch.randn(2, heads, 400, 16, generator=rng) for heads in (4, 2, 2))
    k[:, :, [5, 40]] *= sharp
    attention = Attention(q, k, v, torch.arange(400, dtype=torch.int32).expand(2, -1), torch.zeros(2, dtype=torch.int32), 0.3)
    hidden = []
    monkeypatch.setattr(calibrating, "_rest", lambda *args, rest=calibrating._rest: hidden.append(0) or rest(*args))

    def step():
        return Calibrate(beta=0.3, tokens=(5, 40)).opened(calibrating.Scene(0, (0, 1, 2, 3), attention, prompts, tiny("llama"), None, {}))

    exact = changed.reduced(attention, changed.strips(attention, [step()]), Wanted(output=True)).z_BHRE
    torch.testing.assert_close(step().outputs(attention, blocked), exact, atol=2e-4, rtol=2e-4)
    assert bool(hidden) == (sharp > 2)


def test_the_short_way_makes_no_strips(monkeypatch):
    monkeypatch.setattr(changed, "strips", lambda *args: 1 / 0)
    monkeypatch.setattr(calibrating, "THIN", {torch.float32: 0.0})
    seen = capture(tiny("llama"), random_prompts(1, 200), [], [Calibrate()], implementation="torch")
    assert seen.found[0].sum() > 0


# ------------------------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Calibrate(beta=1.2), "beta is the share that sinks keep, 0 to 1; got 1.2"),
        (lambda: Calibrate(beta=-0.1), "0 to 1; got -0.1"),
        (lambda: Calibrate(beta=float("nan")), "0 to 1; got nan"),
        (lambda: Calibrate(find="later"), "later"),
        (lambda: SinkRule("often"), "often"),
        (lambda: SinkRule("share", 0), "positive, got 0"),
        (lambda: Calibrate(rule=SinkRule(), tokens=(1,)), "not both"),
        (lambda: capture(tiny("llama"), random_prompts(), [], [Calibrate(heads("L9H0"))]), "L9H0"),
        (lambda: capture(tiny("llama"), random_prompts(), [], [Calibrate()], implementation="torch", chunk=5), "find='running', or without chunks"),
        (lambda: generate(tiny("llama"), random_prompts(1), [], edits=[Calibrate()], implementation="torch", chunk=5), "find='running'"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_part_of_a_prompt_is_refused_by_the_pass_itself():
    prompts = random_prompts()
    with pytest.raises(InputError, match="this pass has a part of them"), torch.inference_mode(), tapped(tiny("llama"), Tap(prompts, (), [Calibrate()])) as hf:
        hf(torch.tensor(prompts.ids_BT[:, :9]), use_cache=False)


def test_it_describes_itself():
    assert Calibrate((Head(1, 2), Head(0, 3))).describe() == {
        "edit": "calibrate",
        "heads": ["L0H3", "L1H2"],
        "beta": 0.4,
        "rule": "share",
        "threshold": 5.0,
        "find": "prompt",
    }
    assert Calibrate(tokens=(9, 3, 9)).describe() == {"edit": "calibrate", "heads": "all", "beta": 0.4, "tokens": [3, 9]}


def test_received_attention_of_sinks_is_beta_times_what_it_was():
    """In the first layer, whose input is the same, and the sums of which the sinks were found."""
    model, prompts, edit = tiny("llama"), random_prompts(1, T), Calibrate(beta=0.25, rule=LOOSE)
    for implementation in ("reference", "torch"):
        clean, seen = (capture(model, prompts, [Received("sum"), Pattern()], edits, implementation=implementation) for edits in ([], [edit]))
        for h in range(6):
            sinks = sinks_of(edit, clean[Pattern()][0, 0, h].astype(float), T, None, [])
            np.testing.assert_allclose(seen[Received("sum")][0, 0, h, sinks], 0.25 * clean[Received("sum")][0, 0, h, sinks], rtol=1e-5)
