"""Does an ablation change what it says, and nothing else? Compared with hooks on the output projections of eager models."""

import hashlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from eager import WINDOWED, eager, random_prompts, tiny, visible

from workbench.attention import Tap, tapped
from workbench.captures import capture
from workbench.edits import KINDS, PHASES, Ablate, Reference
from workbench.errors import InputError
from workbench.heads import Head
from workbench.reads import Entropy, HeadOutput, NextToken, Pattern
from workbench.tiny import random_model

T, PREFILLED = 20, 13
HEADS = (Head(0, 1), Head(0, 4), Head(1, 2))
SHORT = 6  # tokens of the reference prompts: fewer than the prompt, so that resampling starts over


def prompts_of(count: int = 2):
    return random_prompts(count, T, prefilled=PREFILLED, rows={"before": np.full((count, 1), PREFILLED - 1), "first": np.full((count, 1), PREFILLED)})


def heads_of(model):
    return tuple(replace(head, index=head.index % model.shape.n_heads) for head in HEADS)


@cache
def reference_of(model, count: int = 4) -> Reference:
    return Reference(capture(model, random_prompts(count, SHORT, seed=9), [HeadOutput()])[HeadOutput()])


def ablate(model, kind: str, phase: str = "both", **more) -> Ablate:
    return Ablate(heads_of(model), kind, phase, reference_of(model) if kind in ("mean", "resample") else None, **more)


def edited_row(phase: str, q: int) -> bool:
    return {"prefill": q < PREFILLED, "decode": q >= PREFILLED, "both": True}[phase]


def donors(edit: Ablate, z_BLHQE: np.ndarray) -> list[int]:
    """Which reference prompt did each prompt's ablated heads write? Exactly one may fit, for every head and edited row."""
    places = [q for q in range(T) if edited_row(edit.phase, q)]
    found = []
    for z_LHQE in z_BLHQE:
        fits = [
            n
            for n, source in enumerate(edit.reference.z_BLHQE)
            if all(np.array_equal(z_LHQE[h.layer, h.index, q], source[h.layer, h.index, q % SHORT]) for h in edit.heads for q in places)
        ]
        assert len(fits) == 1
        found += fits
    return found


def by_hook(model, edit: Ablate, donor=None):
    """The change that an edit stands for, made at the input of the output projections, position by position."""

    def change(layer, z_BQHE):
        for head in (head for head in edit.heads if head.layer == layer):
            for b, q in ((b, q) for b in range(len(z_BQHE)) for q in range(T) if edited_row(edit.phase, q)):
                if edit.kind == "zero":
                    z_BQHE[b, q, head.index] = 0
                if edit.kind == "mean":
                    z_BQHE[b, q, head.index] = torch.tensor(edit.reference.z_BLHQE[:, layer, head.index].mean((0, 1)))
                if edit.kind == "resample":
                    z_BQHE[b, q, head.index] = torch.tensor(edit.reference.z_BLHQE[donor[b], layer, head.index, q % SHORT])
        return z_BQHE

    return change


def assert_predicts(seen, logits, prompts):
    """The next tokens of a capture are those of these logits."""
    logprob = logits.log_softmax(-1)
    expected = logprob[:, :-1].gather(-1, torch.tensor(prompts.ids_BT)[:, 1:, None])[..., 0]
    np.testing.assert_allclose(seen[NextToken()].logprob[:, :-1], expected, atol=5e-4)
    np.testing.assert_array_equal(seen[NextToken()].choice, logprob.argmax(-1))


phases = pytest.mark.parametrize("phase", PHASES)
each_written = pytest.mark.parametrize("kind", ["zero", "mean", "resample"])


each_implementation = pytest.mark.parametrize("implementation", ["reference", "torch"])


@phases
@each_written
@each_implementation
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_written_outputs_have_the_effect_of_a_hook_on_the_projection(architecture, implementation, kind, phase):
    model, prompts = tiny(architecture), prompts_of()
    edit = ablate(model, kind, phase)
    seen = capture(model, prompts, [NextToken(), HeadOutput()], [edit], implementation=implementation)
    truth = eager(model, prompts.ids_BT, by_hook(model, edit, donors(edit, seen[HeadOutput()]) if kind == "resample" else None))
    assert_predicts(seen, truth.logits, prompts)
    size = np.abs(truth.z_BLQHE).max()
    np.testing.assert_allclose(seen[HeadOutput()].transpose(0, 1, 3, 2, 4) / size, truth.z_BLQHE / size, atol=2e-5)


@phases
@each_implementation
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3_text"])
def test_uniform_attention_writes_the_mean_of_the_visible_values(architecture, implementation, phase):
    model, prompts, values = tiny(architecture), prompts_of(), {}
    edit, shape = ablate(model, "uniform", phase), model.shape

    def change(layer, z_BQHE):
        for head in (head for head in edit.heads if head.layer == layer):
            window = WINDOWED.get(architecture, (None, None))[layer]
            for q in (q for q in range(T) if edited_row(phase, q)):
                keys = [k for k in range(T) if visible(window, q, k)]
                z_BQHE[:, q, head.index] = values[layer].unflatten(-1, (-1, shape.d_head))[:, keys, shape.kv_head(head)].mean(1)
        return z_BQHE

    hooks = [
        module.v_proj.register_forward_hook(lambda module, args, out, layer=layer: values.update({layer: out}))
        for layer, module in enumerate(model.weights.attentions)
    ]
    truth = eager(model, prompts.ids_BT, change)
    for hook in hooks:
        hook.remove()
    seen = capture(model, prompts, [NextToken(), HeadOutput(), Pattern()], [edit], implementation=implementation)
    assert_predicts(seen, truth.logits, prompts)
    np.testing.assert_allclose(seen[HeadOutput()].transpose(0, 1, 3, 2, 4), truth.z_BLQHE, atol=5e-5)
    for head in edit.heads:
        window = WINDOWED.get(architecture, (None, None))[head.layer]
        for q in (q for q in range(T) if edited_row(phase, q)):
            keys = [visible(window, q, k) for k in range(T)]
            np.testing.assert_allclose(seen[Pattern()][:, head.layer, head.index, q], np.tile(np.array(keys) / sum(keys), (2, 1)), atol=1e-7)


def logits_of(model, prompts, edits):
    with torch.inference_mode(), tapped(model, Tap(prompts, (), edits)) as hf:
        return hf(torch.tensor(prompts.ids_BT), use_cache=False).logits


def test_zero_ablation_gives_exactly_the_logits_of_zeroed_projections():
    """Rows of W_O that are zero instead of outputs that are zero: the same sums, bit by bit."""
    model, other, prompts = tiny("llama"), random_model("llama"), prompts_of()
    for head in HEADS:
        other.weights.outputs[head.layer].weight.data[:, head.index * 8 : (head.index + 1) * 8] = 0
    assert torch.equal(logits_of(model, prompts, [Ablate(HEADS)]), logits_of(other, prompts, []))


@phases
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_same_layer_other_heads_and_rows_stay_as_they_are(kind, phase):
    model, prompts = tiny("llama"), prompts_of()
    edit = ablate(model, kind, phase)
    clean, seen = (capture(model, prompts, [HeadOutput(), Pattern()], edits) for edits in ([], [edit]))
    for index in range(6):
        kept = [q for q in range(T) if index not in (1, 4) or not edited_row(phase, q)]
        np.testing.assert_array_equal(seen[HeadOutput()][:, 0, index, kept], clean[HeadOutput()][:, 0, index, kept])
        np.testing.assert_array_equal(seen[Pattern()][:, 0, index, kept], clean[Pattern()][:, 0, index, kept])
        changed = [q for q in range(1, T) if q not in kept]
        assert (np.abs(seen[HeadOutput()][:, 0, index, changed] - clean[HeadOutput()][:, 0, index, changed]).max(-1) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_edits_leave_the_rows_of_the_prompt_alone(kind):
    model, prompts = tiny("llama"), prompts_of()
    clean, edited = logits_of(model, prompts, []), logits_of(model, prompts, [ablate(model, kind, "decode")])
    torch.testing.assert_close(edited[:, :PREFILLED], clean[:, :PREFILLED], atol=0, rtol=0)
    assert ((edited - clean)[:, PREFILLED:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize(("phase", "before", "first"), [("prefill", True, False), ("decode", False, True), ("both", True, True)])
def test_the_phases_meet_at_the_first_row_behind_the_prefilled(phase, before, first):
    model, prompts = tiny("llama"), prompts_of()
    seen = capture(model, prompts, [HeadOutput("before"), HeadOutput("first")], [Ablate((Head(0, 1),), "zero", phase)])
    assert (seen[HeadOutput("before")][:, 0, 1] == 0).all() == before
    assert (seen[HeadOutput("first")][:, 0, 1] == 0).all() == first


@pytest.mark.parametrize(("phase", "rows"), [("prefill", T), ("decode", 0), ("both", T)])
def test_without_prefilled_every_row_belongs_to_the_prompt(phase, rows):
    seen = capture(tiny("llama"), random_prompts(), [HeadOutput()], [Ablate((Head(1, 5),), "zero", phase)])[HeadOutput()]
    assert (~seen[:, 1, 5].any(-1)).sum() == 2 * rows


# -------------------------------------------------------------------------------------------------------------- nothing remains


@dataclass(frozen=True)
class Broken(Entropy):
    """A read that fails in the middle of a pass."""

    def reference(self, view):
        raise ZeroDivisionError

    def streamed(self, seen):
        raise ZeroDivisionError


@each_implementation
@pytest.mark.parametrize("broken", [False, True])
def test_edits_leave_no_trace(broken, implementation):
    model, prompts = random_model("llama"), prompts_of()
    before, former = model.hf(torch.tensor(prompts.ids_BT)).logits, model.config._attn_implementation
    with pytest.raises(ZeroDivisionError) if broken else model.lock:
        reads, edits = [Broken()] if broken else [Entropy()], [ablate(model, "zero"), ablate(model, "uniform")]
        capture(model, prompts, reads, edits, implementation=implementation)
    assert torch.equal(model.hf(torch.tensor(prompts.ids_BT)).logits, before)
    assert model.config._attn_implementation == former == "sdpa"
    assert not any(hasattr(module, "workbench_tap") for module in model.hf.modules())


def test_a_reference_is_not_changed():
    model = tiny("llama")
    edit = ablate(model, "resample")
    before = edit.reference.z_BLHQE.copy()
    capture(model, prompts_of(), [HeadOutput()], [edit, Ablate(HEADS)])
    np.testing.assert_array_equal(edit.reference.z_BLHQE, before)


def test_means_are_written_where_the_model_is():
    """The reference lies in main memory, the outputs need not."""
    z_BHQE, row_BQ = torch.empty(2, 6, 3, 8, device="meta"), torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert ablate(tiny("llama"), "mean").on_output(z_BHQE, 0, row_BQ, row_BQ.long()).device.type == "meta"


# ------------------------------------------------------------------------------------------------------------------ composition


def test_edits_of_different_heads_compose():
    model, prompts = tiny("llama"), prompts_of()
    zero, mean = Ablate((Head(0, 1), Head(1, 0)), "zero", "decode"), Ablate((Head(0, 2), Head(1, 0)), "mean", "prefill", reference_of(model))

    def both(layer, z_BQHE):
        return by_hook(model, mean)(layer, by_hook(model, zero)(layer, z_BQHE))

    assert_predicts(capture(model, prompts, [NextToken()], [zero, mean]), eager(model, prompts.ids_BT, both).logits, prompts)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_edits_of_one_head_the_later_has_the_last_word(order):
    model, head = tiny("llama"), (Head(0, 3),)
    zero, mean = Ablate(head), Ablate(head, "mean", reference=reference_of(model))
    z = capture(model, prompts_of(), [HeadOutput()], [zero, mean][::order])[HeadOutput()][0, 0, 3, 5]
    np.testing.assert_allclose(z, mean.reference.z_BLHQE[:, 0, 3].mean((0, 1)) if order == 1 else 0, atol=1e-6)


def test_a_head_made_uniform_and_zeroed_writes_nothing_and_attends_uniformly():
    model, head = tiny("llama"), (Head(0, 3),)
    seen = capture(model, prompts_of(), [HeadOutput(), Pattern()], [Ablate(head), Ablate(head, "uniform")])
    assert not seen[HeadOutput()][:, 0, 3].any()
    np.testing.assert_allclose(seen[Pattern()][0, 0, 3, 4, :6], [0.2] * 5 + [0])


def test_no_heads_change_nothing():
    model, prompts = tiny("llama"), prompts_of()
    assert torch.equal(logits_of(model, prompts, [Ablate((), kind) for kind in ("zero", "uniform")]), logits_of(model, prompts, []))


# ------------------------------------------------------------------------------------------------------------------- resampling


def resampled(seed: int, count: int = 12) -> list[int]:
    model = tiny("llama")
    edit = ablate(model, "resample", seed=seed)
    return donors(edit, capture(model, prompts_of(count), [HeadOutput()], [edit])[HeadOutput()])


def test_a_seed_always_deals_the_same_prompts_and_another_seed_others():
    assert resampled(0) == resampled(0)
    assert resampled(0) != resampled(1)


def test_every_reference_prompt_can_be_dealt():
    assert set(resampled(0)) | set(resampled(1)) | set(resampled(2)) == {0, 1, 2, 3}


def test_resampling_from_the_prompt_itself_changes_nothing():
    model, prompts = tiny("llama"), prompts_of(1)
    clean = capture(model, prompts, [HeadOutput(), NextToken()])
    edited = capture(model, prompts, [HeadOutput(), NextToken()], [Ablate(HEADS, "resample", reference=Reference(clean[HeadOutput()]))])
    np.testing.assert_array_equal(edited[HeadOutput()], clean[HeadOutput()])
    np.testing.assert_array_equal(edited[NextToken()].logprob, clean[NextToken()].logprob)


# ------------------------------------------------------------------------------------------------------------- edits as plain data


def test_the_kinds_and_phases_are_these():
    assert list(KINDS) == ["zero", "mean", "resample", "uniform"]
    assert list(PHASES) == ["prefill", "decode", "both"]


def test_an_edit_describes_itself():
    assert Ablate((Head(1, 2), Head(0, 3), Head(1, 2))).describe() == {"edit": "ablate", "heads": ["L0H3", "L1H2"], "kind": "zero", "phase": "both"}
    reference = Reference(np.ones((1, 2, 6, 3, 8), np.float32))
    assert Ablate((Head(0, 0),), "resample", "decode", reference, 7).describe() == {
        "edit": "ablate",
        "heads": ["L0H0"],
        "kind": "resample",
        "phase": "decode",
        "reference": hashlib.sha256(reference.z_BLHQE.tobytes()).hexdigest()[:16],
        "seed": 7,
    }


def test_heads_are_sorted_and_taken_once():
    assert Ablate((Head(1, 2), Head(0, 3), Head(1, 2))).heads == (Head(0, 3), Head(1, 2))
    assert Ablate((Head(0, 3), Head(1, 2), Head(1, 0))).of_layer(1) == [0, 2]
    assert Ablate((Head(0, 3),)).of_layer(1) == []


def test_references_are_told_apart_by_their_values():
    values = np.random.default_rng(0).random((2, 2, 6, 3, 8)).astype(np.float32)
    other = values.copy()
    other[1, 1, 5, 2, 7] += 1
    assert Reference(values).fingerprint == Reference(values.copy()).fingerprint == Reference(np.asfortranarray(values)).fingerprint
    assert Reference(values).fingerprint != Reference(other).fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "kill"}, "unknown kind of ablation 'kill'; there are: mean, resample, uniform, zero"),
        ({"phase": "always"}, "unknown phase 'always'; there are: both, decode, prefill"),
        ({"kind": "mean"}, "mean ablation needs a reference"),
        ({"kind": "resample"}, "resample ablation needs a reference"),
        ({"kind": "zero", "reference": Reference(np.ones((1, 2, 6, 3, 8)))}, "zero ablation takes no reference"),
        ({"kind": "uniform", "reference": Reference(np.ones((1, 2, 6, 3, 8)))}, "uniform ablation takes no reference"),
    ],
)
def test_what_makes_no_edit_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Ablate(HEADS, **settings)


@pytest.mark.parametrize("size", [(1, 1, 6, 3, 8), (1, 2, 5, 3, 8), (1, 2, 6, 3, 7), (0, 2, 6, 3, 8), (1, 2, 6, 0, 8)])
@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_a_reference_of_another_model_or_of_nothing_is_refused(kind, size):
    with pytest.raises(InputError, match=r"reference of shape .* does not fit a model of 2 layers × 6 heads of 8"):
        capture(tiny("llama"), prompts_of(), [Entropy()], [Ablate(HEADS, kind, reference=Reference(np.ones(size, np.float32)))])


@pytest.mark.parametrize("head", [Head(2, 0), Head(0, 6)])
def test_a_head_that_the_model_lacks_is_refused(head):
    with pytest.raises(InputError, match=f"no head {head} in a model of 2 layers × 6 query heads"):
        capture(tiny("llama"), random_prompts(), [], [Ablate((Head(0, 0), head))])
