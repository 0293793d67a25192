"""Does `Redistribute` move attention from sinks to spans as VAR does? On synthetic spans, and sinks made by hand, compared with loops."""

import numpy as np
import pytest
import torch
from eager import random_ids, tiny
from hypothesis import given
from hypothesis import strategies as st
from test_implementations import ALL, fields, prompts_of

from workbench.captures import capture, generate
from workbench.edits import Ablate, Calibrate, Redistribute, SinkRule
from workbench.edits.redistribute import DIMENSIONS, phi, redistributed, sink_dimensions, sink_tokens
from workbench.errors import InputError
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.reads import Entropy, HeadOutput, NextToken, Pattern
from workbench.tiny import random_model

T, TAU = 20, 2.0
READS = [Pattern(), HeadOutput(), NextToken()]
EDIT = Redistribute(("image",), (3, 11), p=0.4, rho=0.3, tau=TAU, least=0.1)
"""Random hidden states of tiny models have no φ of 20."""


def model_of(architecture: str = "llama"):
    return random_model(architecture, num_hidden_layers=5) if architecture != "gpt2" else random_model(architecture, n_layer=5)


def prompts(count: int = 2, **more) -> Prompts:
    return Prompts(random_ids(count, T), {"image": np.tile([[4, 9]], (count, 1)), "other": np.tile([[11, 13]], (count, 1))}, **more)


def assert_near(got, want, reads):
    """Five layers of large random weights add up the last digits."""
    for read in reads:
        for one, other in zip(fields(got[read]), fields(want[read]), strict=True):
            np.testing.assert_allclose(one, other, atol=3e-4, rtol=3e-4, err_msg=str(read))


def inputs_of(model, some: Prompts) -> list[torch.Tensor]:
    """Each block's input in a clean pass."""
    seen = []
    family = model.hf.get_submodule("model.layers" if hasattr(model.hf, "model") else "transformer.h")
    hooks = [
        block.register_forward_pre_hook(lambda _m, args, given: seen.append(args[0] if args else given["hidden_states"]), with_kwargs=True) for block in family
    ]
    with torch.no_grad():
        model.hf(torch.tensor(some.ids_BT), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def by_loops(a_K: np.ndarray, sinks: list[int], span: list[int], edit: Redistribute) -> np.ndarray:
    """One row behind the span, cell by cell."""
    kept = [k for k in span if k not in sinks]
    on_span, on_kept = sum(a_K[k] for k in span), sum(a_K[k] for k in kept)
    if not set(span) & set(sinks) or on_span < edit.least or on_kept < edit.rho * on_span or on_kept == 0:
        return a_K
    moved = edit.p * sum(a_K[k] for k in sinks)
    return np.array([a * (1 - edit.p) if k in sinks else a * (1 + moved / on_kept) if k in kept else a for k, a in enumerate(a_K)])


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_first_layer_that_is_changed_is_what_loops_make(architecture, implementation):
    model, some = model_of(architecture), prompts()
    x = inputs_of(model, some)[2].double().numpy()
    edit = Redistribute(("image",), (3, 11), p=0.4, rho=0.3, tau=1.5, least=0.1)
    clean, seen = (capture(model, some, READS, edits, implementation=implementation) for edits in ([], [edit]))
    changed = 0
    for b in range(2):
        sinks = [t for t in range(T) if max(abs(x[b, t, [3, 11]])) / np.sqrt((x[b, t] ** 2).mean() + 1e-6) > 1.5]
        for h in range(model.shape.n_heads):
            for row in range(T):
                before = clean[Pattern()][b, 2, h, row].astype(float)
                want = by_loops(before, sinks, [*range(4, 9)], edit) if row >= 9 else before
                changed += np.abs(want - before).max() > 1e-3
                np.testing.assert_allclose(seen[Pattern()][b, 2, h, row], want, atol=1e-5)
    assert changed > 10
    np.testing.assert_allclose(seen[Pattern()].sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(seen[Pattern()][:, :2], clean[Pattern()][:, :2], atol=1e-6)


def test_layers_zero_one_and_the_last_are_skipped():
    model = model_of()
    assert [EDIT.looking(layer, model.shape) for layer in range(5)] == [(), (), tuple(range(6)), tuple(range(6)), ()]
    with_heads = Redistribute(("image",), (3,), heads=(Head(2, 1), Head(4, 0)))
    assert [with_heads.looking(layer, model.shape) for layer in range(5)] == [(), (), (1,), (), ()]


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rows_sum_to_one_and_only_chosen_rows_change(seed, p, rho, least):
    rng = torch.Generator().manual_seed(seed)
    a = torch.rand(1, 2, 3, 8, generator=rng)
    a = a / a.sum(-1, keepdim=True)
    sink, span = torch.rand(1, 8, generator=rng) < 0.3, torch.rand(1, 8, generator=rng) < 0.5
    row = torch.tensor([[False, True, True]])
    out = redistributed(a, sink, span, row, p, rho, least)
    torch.testing.assert_close(out.sum(-1), torch.ones(1, 2, 3), atol=1e-6, rtol=0)
    edit = Redistribute(("image",), (0,), p, rho, least=least)
    sinks, spans = sink[0].nonzero()[:, 0].tolist(), span[0].nonzero()[:, 0].tolist()
    for h in range(2):
        assert torch.equal(out[0, h, 0], a[0, h, 0])
        for r in (1, 2):
            if set(sinks) & set(spans):  # without a sink in the span the step itself leaves the rows out
                np.testing.assert_allclose(out[0, h, r], by_loops(a[0, h, r].double().numpy(), sinks, spans, edit), atol=1e-6)
    assert torch.equal(redistributed(a, torch.zeros_like(sink), span, row, p, rho, least), a)
    assert torch.equal(redistributed(a, sink, span, row, 0.0, rho, least), a)


def test_phi_of_known_vectors():
    """One-hot at a sink dimension: √d; Gaussian: about 1 for one dimension; so τ = 20 takes more than 400 dimensions."""
    for size in (400, 4096):
        one_hot = torch.zeros(1, 1, size)
        one_hot[..., 7] = 100.0
        assert float(phi(one_hot, (7,))) == pytest.approx(size**0.5, rel=1e-5)
        assert float(phi(one_hot, (8,))) == 0
        assert bool(sink_tokens(one_hot, (7, 8))) == (size > 401)
    noise = torch.randn(1, 500, 4096, generator=torch.Generator().manual_seed(0))
    assert float(phi(noise, (7,)).square().mean().sqrt()) == pytest.approx(1, abs=0.1)
    assert not sink_tokens(noise, (7, 8)).any()


def test_known_dimensions_make_edits():
    for dims in DIMENSIONS.values():
        assert Redistribute(("image",), dims).dims == dims


def test_dimensions_are_found_at_the_first_real_token():
    x = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
    x[0, 0, [9, 30]], x[1, 2, [9, 30]] = 40.0, -50.0
    x[1, 0, 4] = 1000.0  # padding
    assert sink_dimensions(x, torch.tensor([0, 2])) == (9, 30)


# ---------------------------------------------------------------------------------------- implementations, caches, padding, composition


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_every_read_in_every_way_is_that_of_the_reference(architecture, chunk):
    model, some = model_of(architecture), prompts_of(np.array([0, 3]))
    edit = Redistribute(("needle",), (3, 11), rho=0.2, tau=1.0, least=0.05)
    got, want = (capture(model, some, ALL, [edit], **how) for how in ({"implementation": "torch", "chunk": chunk}, {"implementation": "reference"}))
    assert_near(got, want, ALL)
    np.testing.assert_array_equal(got.found[0], want.found[0])
    assert want.found[0].any()


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_decoding_with_a_cache_is_decoding_without(implementation):
    model, reads = model_of(), [Entropy("answer")]
    edits = [Redistribute(("image", "other"), (3, 11), rho=0.2, tau=1.2, least=0.05)]
    made = generate(model, prompts(1), reads, max_new_tokens=4, edits=edits, implementation=implementation)
    whole = capture(model, made.prompts, [*reads, NextToken("answer")], edits)
    clean = capture(model, made.prompts, reads)
    np.testing.assert_allclose(made[reads[0]], whole[reads[0]], atol=3e-5)
    np.testing.assert_array_equal(whole[NextToken("answer")].choice[0], made.prompts.ids_BT[0, T:])
    assert np.abs(clean[reads[0]] - whole[reads[0]]).max() > 1e-3


def test_a_padded_prompt_is_changed_as_alone():
    model = model_of()
    together = capture(model, prompts(padding=np.array([0, 3])), READS, [EDIT])
    cut = Prompts(random_ids(2, T)[1:, 3:], {"image": np.array([[1, 6]])})
    np.testing.assert_allclose(together[Pattern()][1, ..., 3:, 3:], capture(model, cut, READS, [EDIT])[Pattern()][0], atol=3e-5)


def test_it_composes():
    model, some = model_of(), prompts()
    edits = [EDIT, Calibrate(rule=SinkRule("share", 2.0)), Ablate((Head(2, 1),))]
    seen = [capture(model, some, READS, edits, implementation=name) for name in ("reference", "torch")]
    assert_near(*seen, READS)
    assert not seen[0][HeadOutput()][:, 2, 1].any()
    np.testing.assert_allclose(seen[1][Pattern()].sum(-1), 1, atol=1e-6)


def test_nothing_remains():
    model, some = model_of(), prompts()
    capture(model, some, READS)
    ids, hooks = torch.tensor(some.ids_BT), [len(module._forward_pre_hooks) for module in model.hf.modules()]
    before = model.hf(ids).logits
    capture(model, some, READS, [EDIT])
    assert torch.equal(model.hf(ids).logits, before)
    assert [len(module._forward_pre_hooks) for module in model.hf.modules()] == hooks


def test_without_sinks_nothing_changes_and_it_is_said():
    model, some = model_of(), prompts()
    clean, seen = (capture(model, some, READS, edits) for edits in ([], [Redistribute(("image",), (3, 11))]))  # τ = 20 of 48 dimensions
    assert_near(seen, clean, READS)
    assert seen.provenance["edits"][0]["remark"] == "no sink found in the prompts [0, 1], which are unchanged"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Redistribute(("image",), (3,), p=1.5), "p is a share, 0 to 1; got 1.5"),
        (lambda: Redistribute(("image",), (3,), rho=-1), "rho is a share"),
        (lambda: Redistribute((), (3,)), "names of one span or more"),
        (lambda: Redistribute(("image",), ()), "one hidden dimension"),
        (lambda: capture(tiny("llama"), prompts(), [], [Redistribute(("image",), (48,))]), "dimension 48 is none of the 48"),
        (lambda: capture(tiny("llama"), prompts(), [], [Redistribute(("picture",), (3,))]), "picture"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_it_describes_itself():
    assert Redistribute(("image",), (3,)).describe() == {
        "edit": "redistribute",
        "spans": ["image"],
        "dims": [3],
        "p": 0.4,
        "rho": 0.5,
        "tau": 20.0,
        "least": 0.2,
        "heads": "all",
    }
