"""Does the hand-written IOI model do what its text tells, with the numbers of the specification, and only by the heads of its circuit?"""

import numpy as np
import pytest
import torch

from workbench.captures import capture
from workbench.circuits.compiled_ioi import (
    BACKUP,
    DUPLICATE,
    EDGES,
    HEADS,
    INHIBITION,
    LAYERS,
    MOVERS,
    NEGATIVE,
    PREVIOUS,
    ROLES,
    SIZE,
    all_edges,
    ioi_model,
)
from workbench.circuits.name_prompts import END, FIRST, NAMES, SECOND, SUBJECT, WORDS, name_prompts, word_tokenizer
from workbench.errors import InputError
from workbench.heads import Head
from workbench.prompts import Prompts
from workbench.reads import NextToken, Pattern

ALL = [Head(layer, index) for layer in range(LAYERS) for index in range(HEADS)]
PROMPTS = name_prompts(256)

TABLE = {
    3: (1.05, {DUPLICATE: -1.75, INHIBITION: -1.07, NEGATIVE: 0.43, (MOVERS[0],): -0.33, (MOVERS[1],): -0.33, BACKUP: 0.19}),
    5: (4.52, {DUPLICATE: -4.77, INHIBITION: -1.60, NEGATIVE: 1.82, (MOVERS[0],): -1.35, (MOVERS[1],): -1.42, BACKUP: 0.10}),
    20: (5.00, {DUPLICATE: -3.67, INHIBITION: -2.85, NEGATIVE: 2.0, (MOVERS[0],): -1.05, (MOVERS[1],): -2.64, BACKUP: 0.0}),
}
"""The logit difference, and what is left of it less that when one head writes as on the corrupted prompt: by β, measured elsewhere on other prompts."""


def end_logits(model, ids_BT, taken=(), z_LBTD=None):
    """Logits at the end [B, V] and what went into each output projection [L, B, T, D], with the outputs of some heads put in from elsewhere."""
    seen, handles = [], []
    for layer, block in enumerate(model.hf.transformer.h):

        def hook(_, inputs, layer=layer):
            z_BTD = inputs[0].clone()
            for head in taken:
                if head.layer == layer:
                    part = slice(head.index * SIZE, (head.index + 1) * SIZE)
                    z_BTD[..., part] = z_LBTD[layer][..., part]
            seen.append(z_BTD)
            return (z_BTD,)

        handles.append(block.attn.c_proj.register_forward_pre_hook(hook))
    try:
        return model.hf(torch.tensor(ids_BT), use_cache=False).logits[:, END], seen
    finally:
        for handle in handles:
            handle.remove()


def difference(model, ids_BT=PROMPTS.ids_BT, taken=(), z_LBTD=None):
    logit_BV = end_logits(model, ids_BT, taken, z_LBTD)[0].numpy()
    rows = np.arange(len(logit_BV))
    return float(np.mean(logit_BV[rows, PROMPTS.answer_B] - logit_BV[rows, PROMPTS.wrong_B]))


def corrupted(model):
    return end_logits(model, PROMPTS.corrupted_BT)[1]


def effects(model):
    """The change of the logit difference when each head alone writes as on the corrupted prompt."""
    z_LBTD, clean = corrupted(model), difference(model)
    return {head: difference(model, taken=(head,), z_LBTD=z_LBTD) - clean for head in ALL}


@pytest.mark.parametrize("beta", TABLE)
def test_the_table_of_the_specification_is_reproduced(beta):
    model = ioi_model(beta)
    clean, expected = TABLE[beta]
    assert difference(model) == pytest.approx(clean, abs=0.02)
    assert difference(model, PROMPTS.corrupted_BT) == pytest.approx(0, abs=1e-5)
    found = effects(model)
    for heads, effect in expected.items():
        for head in heads if isinstance(heads, tuple) else (heads,):
            assert found[head] == pytest.approx(effect, abs=0.02), head
    assert max(abs(found[head]) for head in ALL if head not in ROLES) < 1e-5


@pytest.mark.parametrize("beta", TABLE)
def test_the_indirect_object_is_named_every_time(beta):
    choice_B = end_logits(ioi_model(beta), PROMPTS.ids_BT)[0].argmax(-1).numpy()
    np.testing.assert_array_equal(choice_B, PROMPTS.answer_B)


def test_where_attention_is_hard_the_backup_stands_in_for_the_movers():
    model = ioi_model(20)
    z_LBTD = corrupted(model)
    assert difference(model, taken=MOVERS, z_LBTD=z_LBTD) == pytest.approx(1, abs=0.01)
    assert difference(model, taken=(*MOVERS, BACKUP), z_LBTD=z_LBTD) == pytest.approx(-2, abs=0.01)
    assert difference(model, taken=(BACKUP,), z_LBTD=z_LBTD) == pytest.approx(5, abs=0.01)


def test_the_heads_attend_as_the_text_tells():
    pattern_BLHQK = capture(ioi_model(20), Prompts(PROMPTS.ids_BT), [Pattern()])[Pattern()]
    rows = np.arange(len(PROMPTS.ids_BT))
    first_B = np.where(np.array(PROMPTS.template) == "ABBA", SECOND, FIRST)
    assert pattern_BLHQK[rows, 0, DUPLICATE.index, SUBJECT, first_B].min() > 0.99
    assert min(pattern_BLHQK[:, 0, PREVIOUS.index, row, row - 1].min() for row in range(1, END)) > 0.99
    assert min(pattern_BLHQK[:, 1, head.index, END, SUBJECT].min() for head in INHIBITION) > 0.99
    object_B = FIRST + SECOND - first_B
    assert min(pattern_BLHQK[rows, 2, head.index, END, object_B].min() for head in (*MOVERS, NEGATIVE)) > 0.99
    assert pattern_BLHQK[rows, 3, BACKUP.index, END, object_B].max() < 0.01


@pytest.mark.parametrize("leak", [0.0, 0.001])
def test_a_rotation_of_the_residual_stream_changes_nothing(leak):
    turned, plain = ioi_model(5, leak, seed=3), ioi_model(5, leak, seed=3, rotate=False)
    torch.testing.assert_close(end_logits(turned, PROMPTS.ids_BT)[0], end_logits(plain, PROMPTS.ids_BT)[0], atol=1e-4, rtol=0)
    assert turned.fingerprint != plain.fingerprint
    used = (plain.hf.transformer.wte.weight != 0).any(0)
    assert used.sum() == len(WORDS)
    assert (turned.hf.transformer.wte.weight != 0).float().mean() > 0.99


def test_without_leak_the_seed_changes_nothing_that_can_be_seen_from_outside():
    first, second = (end_logits(ioi_model(5, seed=seed), PROMPTS.ids_BT)[0] for seed in (0, 1))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_with_a_leak_idle_heads_have_an_effect_and_the_model_is_still_right():
    model = ioi_model(5, 0.001)
    assert 4.1 < difference(model) < 4.6
    np.testing.assert_array_equal(end_logits(model, PROMPTS.ids_BT)[0].argmax(-1).numpy(), PROMPTS.answer_B)
    found = effects(model)
    assert 1e-3 < max(abs(found[head]) for head in ALL if head not in (*ROLES, PREVIOUS)) < 0.5


def test_the_same_seed_gives_the_same_model_and_other_settings_another():
    one = ioi_model(5, 0.001, seed=2)
    assert one.fingerprint == ioi_model(5, 0.001, seed=2).fingerprint
    others = (ioi_model(6, 0.001, seed=2), ioi_model(5, 0.0003, seed=2), ioi_model(5, 0.001, seed=4), ioi_model(5, rotate=False), ioi_model(6, rotate=False))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_norms_leave_vectors_alone_and_their_linear_part_is_exact_on_what_the_model_uses():
    model = ioi_model()
    x_D = model.hf.transformer.wte.weight[12]
    torch.testing.assert_close(model.hf.transformer.ln_f(x_D), x_D, atol=0, rtol=0)
    torch.testing.assert_close(x_D @ model.weights.final_norm(), x_D, atol=1e-6, rtol=0)
    torch.testing.assert_close(x_D @ model.weights.input_norm(2), x_D, atol=1e-6, rtol=0)


def test_eager_attention_gives_the_same():
    model = ioi_model(5, 0.001)
    expected_BV = end_logits(model, PROMPTS.ids_BT)[0]
    with model.attention("eager"):
        torch.testing.assert_close(end_logits(model, PROMPTS.ids_BT)[0], expected_BV, atol=1e-4, rtol=0)


def test_the_truth_is_seven_heads_and_nineteen_edges_of_672():
    assert len(ROLES) == 7
    assert len(all_edges()) == len(set(all_edges())) == 672
    assert len(EDGES) == 19
    assert set(all_edges()) >= EDGES
    assert (DUPLICATE, INHIBITION[0], "k") in EDGES
    assert (BACKUP, None, "logits") in EDGES
    assert PREVIOUS not in {head for edge in EDGES for head in edge[:2]}


def test_prompts_are_names_where_they_should_be_and_the_corrupted_ones_have_three_others():
    ids_BT, other_BT = PROMPTS.ids_BT, PROMPTS.corrupted_BT
    names = [FIRST, SECOND, SUBJECT]
    assert ids_BT.shape == other_BT.shape == (256, 12)
    np.testing.assert_array_equal(np.delete(ids_BT, names, axis=1), np.delete(other_BT, names, axis=1))
    for ids_T, other_T, answer, wrong, template in zip(ids_BT, other_BT, PROMPTS.answer_B, PROMPTS.wrong_B, PROMPTS.template, strict=True):
        assert ids_T[SUBJECT] == wrong == ids_T[SECOND if template == "ABBA" else FIRST]
        assert answer == ids_T[FIRST if template == "ABBA" else SECOND]
        assert len({answer, wrong, *other_T[names]}) == 5
        assert ((ids_T >= NAMES.start) == np.isin(np.arange(12), names)).all()
    assert 0.3 < np.mean(np.array(PROMPTS.template) == "ABBA") < 0.7


def test_prompts_can_be_read_and_written():
    few, tokenizer = name_prompts(3, seed=5), word_tokenizer()
    assert tokenizer(few.text())["input_ids"] == few.ids_BT.tolist()
    assert tokenizer(few.text(corrupted=True))["input_ids"] == few.corrupted_BT.tolist()
    choice_BT = capture(ioi_model(), few.text()[0], [NextToken()])[NextToken()].choice
    assert choice_BT[0, -1] == few.answer_B[0]
    with pytest.raises(Exception, match="Missing"):
        tokenizer("Zoe")


def test_settings_that_make_no_such_model_are_refused():
    for settings in ({"beta": 0.0}, {"beta": 51.0}, {"leak": -1.0}):
        with pytest.raises(InputError, match="0 < beta ≤ 50"):
            ioi_model(**settings)
    with pytest.raises(InputError, match="at least one prompt"):
        name_prompts(0)
