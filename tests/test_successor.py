"""Are successor heads found, their features, their cases? Heads written by hand, the modules themselves, and loops."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from eager import random_prompts, tiny
from incrementing import COPY, DECREMENT, IDLE, INCREMENT, RANDOM, SUPPRESS, incrementing_model, residue_model, two_class_model, word_tokenizer
from typer.testing import CliRunner

from workbench import measure
from workbench.captures import capture
from workbench.cli import app
from workbench.edits import Ablate
from workbench.errors import InputError
from workbench.heads import Head
from workbench.models import HFModel
from workbench.probes import PROBES, copy_suppression, name_mover, successor
from workbench.prompts import Prompts
from workbench.reads import NextToken
from workbench.sequences import CLASSES, names, numbers, single_token, tokens_of
from workbench.successor import (
    AutoencoderSettings,
    Kinds,
    Representations,
    agreement,
    at_random,
    autoencoder,
    direct_effects,
    greater_than,
    head_table,
    held_out_pairs,
    in_class,
    kinds_by_head,
    left_out,
    linear_probe,
    modal,
    nmf,
    numbered_listings,
    of_features,
    of_means,
    of_probe,
    put_together,
    represent,
    steer,
    strongest,
    success_table,
    transfer,
    winning_cases,
)
from workbench.tiny import ARCHITECTURES, byte_tokenizer, random_model
from workbench.token_circuits import RAW, Norms, circuits, of_head, on, readout, sources
from workbench.views import class_figure, evidence_text
from workbench.weights import Weights

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def weights_of(model, shuffle=None):
    return Weights(model.weights, model.shape, shuffle, model.tokenizer)


@pytest.fixture(scope="module")
def plain():
    return incrementing_model()


@pytest.fixture(scope="module")
def scrambled():
    return incrementing_model(scrambled=True)


def at(score_NLH, head):
    return score_NLH[:, head.layer, head.index].mean()


# ---------------------------------------------------------------- classes of words


def test_a_class_has_the_variants_that_are_one_token_and_every_token_once():
    found = tokens_of(incrementing_model().tokenizer, "months")
    assert [found.texts[place] for place in np.flatnonzero(found.item == 2)] == ["MARCH", " March"]
    assert found.restricted == "months restricted to January, February, …, December (11): the tokenizer splits the other 1"
    follows = found.follows
    assert follows[4] == -1  # May is followed by June, which has no token
    assert follows[11] == 0
    assert found.counted.sum() == len(found.ids) - 1


def test_only_days_and_months_are_cyclic_and_roman_numerals_alone_are_held_out():
    assert {name for name, words in CLASSES.items() if words.cyclic} == {"days", "day abbreviations", "months", "month abbreviations"}
    assert {name for name, words in CLASSES.items() if words.held_out} == {"roman numerals"}
    assert all(len(set(words.members)) == len(words.members) for words in CLASSES.values())
    assert CLASSES["numbers"].members == tuple(str(number) for number in range(1, 201))
    assert [len(CLASSES[name].members) for name in ("number words", "ordinals", "days", "months", "letters", "roman numerals")] == [20, 10, 7, 12, 26, 20]
    assert CLASSES["roman numerals"].members[16] == "XVII"


def test_a_tokenizer_that_splits_digits_restricts_the_numbers_and_the_evidence_says_so():
    model = random_model("llama")
    found = tokens_of(model.tokenizer, "numbers")
    assert found.texts == tuple("123456789")
    assert tokens_of(model.tokenizer, "days").restricted == "days have no single tokens"
    facts = measure.score(model, ["successor", "copying"]).evidence["successor"]
    assert "numbers restricted to 1, 2, …, 9 (9): the tokenizer splits the other 191" in facts["restricted"]
    assert facts["classes"] == {**dict.fromkeys(facts["classes"], 0), "numbers": 8, "letters": 50}
    assert facts["norms"] == "mlp on, head on, final on"
    assert evidence_text(facts).startswith("ok; numbers restricted to")


def test_without_a_tokenizer_or_with_an_unknown_class_words_cannot_be_found(plain):
    with pytest.raises(InputError, match="takes a tokenizer; this model has none"):
        tokens_of(None, "days")
    with pytest.raises(InputError, match="takes a tokenizer; this model has none"):
        names(None)
    with pytest.raises(InputError, match="unknown class of words 'weeks'"):
        tokens_of(plain.tokenizer, "weeks")
    assert single_token(plain.tokenizer, "weeks") is None
    assert single_token(plain.tokenizer, " Monday") is not None


# ---------------------------------------------------------------- the score


@pytest.mark.parametrize("scramble", [False, True])
def test_the_head_that_increments_gets_1_the_others_0_or_chance(plain, scrambled, scramble):
    score_NLH = PROBES["successor"].score(weights_of(scrambled if scramble else plain))
    assert score_NLH.shape == (38 + 19 + 7 + 11, 2, 6)
    assert at(score_NLH, INCREMENT) == 1
    assert [at(score_NLH, head) for head in (COPY, DECREMENT, IDLE)] == [0, 0, 0]
    assert at(score_NLH, RANDOM) < 0.2
    assert not score_NLH[:, 0].any()


def test_the_head_that_copies_gets_1_on_copying_and_the_one_that_increments_none(plain):
    score_NLH = PROBES["copying"].score(weights_of(plain))
    assert at(score_NLH, COPY) == pytest.approx(1, abs=1e-3)
    assert at(score_NLH, SUPPRESS) == pytest.approx(-1, abs=1e-3)
    assert abs(at(score_NLH, INCREMENT)) < 0.1


def test_random_heads_are_right_by_chance():
    model = random_model("llama", num_hidden_layers=8)
    mean = PROBES["successor"].score(weights_of(model)).mean()
    classes = [tokens_of(model.tokenizer, name) for name in ("numbers", "letters")]
    chance = np.average([1 / 9, 2 / 52 / 2], weights=[8, 50])
    assert sum(one.counted.sum() for one in classes) == 58
    assert mean == pytest.approx(chance, abs=0.03)


def test_shuffled_successors_are_right_by_chance(plain):
    score_NLH = PROBES["successor"].score(weights_of(plain, 4))
    assert at(score_NLH, INCREMENT) < 0.2
    assert ((score_NLH >= 0) & (score_NLH <= 1)).all()
    follows = successor.shuffled(tokens_of(plain.tokenizer, "days"), 0)
    assert all(sorted(row) == list(range(7)) and (row != np.arange(7)).all() for row in follows)


def test_without_the_first_mlp_the_scrambled_model_increments_nothing(scrambled):
    weights = weights_of(scrambled)
    bare = successor.successes(weights, successor.scored(weights), source="embedding")
    assert at(bare, INCREMENT) < 0.2
    assert PROBES["successor"].told(weights)["best_without_mlp0"] == round(float(bare.mean(0).max()), 4)


def test_ties_count_except_a_tie_of_the_whole_class(plain):
    words = tokens_of(plain.tokenizer, "days")
    logits = torch.full((1, 7, 7), 1.0)
    logits[0, 0, :3] = 2.0
    hits = successor.by_item(logits, words, words.follows)[:, 0]
    assert hits.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_any_variant_of_the_successor_is_right(plain):
    words = tokens_of(plain.tokenizer, "months")
    for text in ("MARCH", " March"):
        logits = torch.zeros(1, len(words.ids), len(words.ids))
        logits[0, :, words.texts.index(text)] = 1
        hit = successor.by_item(logits, words, words.follows)[:, 0]
        assert {words.texts[place] for place in np.flatnonzero(hit)} == {" February"}


def test_the_ideal_pairs():
    value, output = PROBES["successor"].ideal(7)
    assert (value @ output).argmax(1).tolist() == [1, 2, 3, 4, 5, 6, 0]
    value, output = PROBES["copy_suppression"].ideal(40)
    assert (copy_suppression.low_share(value @ output) <= 0.05).all()
    value, output = PROBES["name_mover"].ideal(40)
    assert name_mover._top((value @ output)[None], torch.eye(40), torch.arange(40)).all()


# ---------------------------------------------------------------- circuits against the modules


def by_modules(model, ids, source, norms):
    """Each head's logits [L, H, T, V] by the model's own modules, called one by one; lengths of norms behind the first MLP are divided by nothing."""
    hf, kind, shape = model.hf, model.config.model_type, model.shape
    gpt2, neox = kind == "gpt2", kind == "gpt_neox"
    body = hf.transformer if gpt2 else hf.gpt_neox if neox else hf.model
    blocks = body.h if gpt2 else body.layers
    embed, final = (body.wte, body.ln_f) if gpt2 else (body.embed_in, body.final_layer_norm) if neox else (body.embed_tokens, body.norm)
    gemma = kind.startswith("gemma")
    first = blocks[0]
    norm = first.ln_2 if gpt2 else first.pre_feedforward_layernorm if gemma else first.post_attention_layernorm
    x = embed(ids)
    through = first.mlp(norm(x) if norms.mlp else x)
    through = first.post_feedforward_layernorm(through) if gemma else through
    x = {"mlp0": through, "embedding": x, "effective": x + through}[source]

    def linear(module, rows):
        centred = rows - rows.mean(-1, keepdim=True) if gpt2 or neox else rows
        return centred * (module.weight + (1 if gemma else 0))

    unembedding = hf.get_output_embeddings().weight
    for block in blocks:
        attention = block.attn if gpt2 else block.attention if neox else block.self_attn
        read = linear(block.ln_1 if gpt2 else block.input_layernorm, x) if norms.head else x
        zero = torch.zeros_like(read)
        if gpt2:
            value = (attention.c_attn(read) - attention.c_attn(zero)).chunk(3, -1)[2].unflatten(-1, (shape.n_heads, -1))
        elif neox:
            packed = attention.query_key_value(read) - attention.query_key_value(zero)
            value = packed.unflatten(-1, (shape.n_heads, 3, -1))[..., 2, :]
        elif kind == "phi3":
            value = attention.qkv_proj(read)[..., -shape.n_kv_heads * shape.d_head :].unflatten(-1, (shape.n_kv_heads, -1))
        else:
            value = (attention.v_proj(read) - attention.v_proj(zero)).unflatten(-1, (shape.n_kv_heads, -1))
        project = attention.c_proj if gpt2 else attention.dense if neox else attention.o_proj
        for index in range(shape.n_heads):
            z = torch.zeros(len(ids), shape.n_heads, shape.d_head)
            z[:, index] = value[:, index * value.shape[1] // shape.n_heads]
            written = project(z.flatten(-2)) - project(torch.zeros_like(z.flatten(-2)))
            written = linear(block.post_attention_layernorm, written) if gemma else written
            logits = (linear(final, written) if norms.final else written) @ unembedding.T
            yield logits - logits.mean(-1, keepdim=True)


@architectures
@pytest.mark.parametrize(("source", "norms"), [("mlp0", Norms()), ("mlp0", RAW), ("effective", Norms()), ("embedding", Norms(final=False))])
def test_circuits_are_what_the_modules_compute(architecture, source, norms):
    model, ids = tiny(architecture), torch.tensor([5, 70, 200])
    weights = weights_of(model)
    expected = torch.stack(list(by_modules(model, ids, source, norms))).unflatten(0, (model.shape.n_layers, -1))
    x_TD, columns_DV = sources(model.weights, ids, source, norms), readout(model.weights, None, norms)
    got = torch.stack(list(circuits(weights, x_TD, columns_DV, norms)))
    scale = expected.abs().max()
    torch.testing.assert_close(got / scale, expected / scale, atol=1e-5, rtol=1e-4)
    one = of_head(weights, Head(1, 2), x_TD, columns_DV, norms)
    torch.testing.assert_close(one / scale, expected[1, 2] / scale, atol=1e-5, rtol=1e-4)


def test_the_gated_mlp_by_hand():
    model, ids = tiny("llama"), torch.tensor([7, 9])
    state = {name: weight.double() for name, weight in model.hf.state_dict().items()}
    x = state["model.embed_tokens.weight"][ids]
    x = x / (x.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * state["model.layers.0.post_attention_layernorm.weight"]
    gate, up, down = (state[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(model.weights.mlp0(model.weights.embedded(ids)).double(), expected, atol=1e-4, rtol=1e-4)


def test_an_unknown_source_is_refused(plain):
    with pytest.raises(InputError, match="unknown source 'mlp1'; there are: effective, embedding, mlp0"):
        sources(plain.weights, on(weights_of(plain), [1]), "mlp1")


@architectures
def test_the_bias_of_values_is_what_the_projection_gives_for_nothing(architecture):
    model = tiny(architecture)
    attention, head = model.weights.attentions[1], Head(1, 2)
    nothing = torch.zeros(1, model.shape.d_model)
    kind, size = model.config.model_type, model.shape.d_head
    if kind == "gpt2":
        expected = attention.c_attn(nothing)[0, 2 * model.shape.d_model :].unflatten(0, (-1, size))[2]
    elif kind == "gpt_neox":
        expected = attention.query_key_value(nothing)[0].unflatten(0, (-1, 3, size))[2, 2]
    else:
        expected = torch.zeros(size) if kind == "phi3" else attention.v_proj(nothing)[0].unflatten(0, (-1, size))[model.shape.kv_head(head)]
    torch.testing.assert_close(model.weights.v_bias(head), expected)


# ---------------------------------------------------------------- class by class


def test_a_head_class_by_class(scrambled):
    weights = weights_of(scrambled)
    table = head_table(weights, INCREMENT).set_index("class")
    assert list(table.index) == ["numbers", "number words", "days", "months", "all but *", "roman numerals"]
    assert table["tokens"].tolist() == [38, 19, 7, 11, 75, 2]
    assert (table["score"] == 1).all()
    assert (table["whole_vocabulary"] == 1).all()
    assert (table["itself"] == 0).all()
    assert (table["without_mlp0"] < 0.5).all()
    assert table["held_out"].tolist() == [False] * 5 + [True]
    assert table.loc["days", "chance"] == pytest.approx(1 / 7)
    assert table.loc["months", "chance"] == pytest.approx((9 / 12 + 2 * 2 / 12 * 1) / 11, abs=0.02)
    assert (head_table(weights, COPY)["itself"] == 1).all()
    assert (head_table(weights, DECREMENT).set_index("class").loc["days", ["score", "predecessor"]] == [0, 1]).all()
    assert strongest(weights) == INCREMENT


def test_the_whole_vocabulary_takes_a_token_outside_the_class(plain):
    model = incrementing_model()
    model.hf.lm_head.weight.data[0] = 3 * model.hf.lm_head.weight.data[1:].sum(0)
    table = head_table(weights_of(model), INCREMENT)
    assert (table["score"] == 1).all()
    assert (table["whole_vocabulary"] == 0).all()


def test_the_matrix_of_a_class_has_its_line_above_the_diagonal(plain):
    seen = in_class(weights_of(plain), INCREMENT, "number words")
    assert seen.texts[:3] == (" one", " two", " three")
    assert seen.best[:3] == (" two", " three", " four")
    assert seen.right == (True,) * 19 + (None,)
    assert (seen.logits_TC[:-1].argmax(1) == np.arange(1, 20)).all()
    figure = class_figure(seen.logits_TC, seen.texts, "x")
    assert figure.data[0].z.shape == (20, 20)
    assert figure.data[0].z[0].argmax() == 1


def test_a_model_without_words_has_no_table_and_no_strongest():
    model = tiny("llama")
    weights = Weights(model.weights, model.shape, None, word_tokenizer(["red", "green"]))
    assert PROBES["successor"].score(weights).shape == (0, 2, 6)
    assert PROBES["successor"].told(weights)["best_without_mlp0"] is None
    for ask in (lambda: strongest(weights), lambda: head_table(weights, Head(0, 0))):
        with pytest.raises(InputError, match="no class of words has two successive words that are one token each"):
            ask()


# ---------------------------------------------------------------- copy suppression and name movers


def test_copy_suppression_finds_the_head_that_takes_away(scrambled):
    weights = weights_of(incrementing_model())
    score_NLH = PROBES["copy_suppression"].score(weights)
    assert at(score_NLH, SUPPRESS) == 1
    assert [at(score_NLH, head) for head in (COPY, IDLE)] == [0, 0]
    assert at(score_NLH, RANDOM) < 0.15
    assert at(PROBES["copy_suppression"].score(weights_of(incrementing_model(), 3)), SUPPRESS) < 0.15
    assert copy_suppression.bottom_ten(weights, SUPPRESS) == 1
    assert copy_suppression.bottom_ten(weights, COPY) == 0


def test_copy_suppression_by_a_loop():
    model = tiny("llama")
    score_NLH = PROBES["copy_suppression"].score(weights_of(model))
    tried_T, column_C = copy_suppression.sample(weights_of(model))
    assert len(tried_T) == len(column_C) == 257  # without the three special tokens
    logits = list(by_modules(model, torch.tensor(tried_T), "effective", Norms()))[8]
    own = logits[torch.arange(257), torch.tensor(tried_T)]
    expected = (logits[:, torch.tensor(column_C)] <= own[:, None]).float().mean(1) <= 0.05
    assert (score_NLH[:, 1, 2] == expected.numpy()).mean() > 0.99


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_the_query_of_a_prediction_against_the_keys_by_a_loop(architecture):
    model, head = tiny(architecture), Head(1, 2)
    ids = torch.tensor(copy_suppression.sample(weights_of(model), 30)[0])
    weights, attention = model.weights, model.weights.attentions[1]
    k_TD = sources(weights, ids, "effective")
    q_TD = weights.unembedding()[:, ids].T
    hits = 0
    for row in range(30):

        def side(x_D, w_DE, name):
            y_E = x_D / x_D.norm() * model.shape.d_model**0.5 @ weights.input_norm(1) @ w_DE
            return getattr(attention, name)(y_E) if hasattr(attention, name) else y_E

        query = side(q_TD[row], weights.q(head), "q_norm")
        hits += int(np.argmax([float(query @ side(k_TD[key], weights.k(head), "k_norm")) for key in range(30)])) == row
    assert copy_suppression.qk_match(weights_of(model), head, tokens=30) == pytest.approx(hits / 30)
    with pytest.raises(InputError, match="queries are unembedding or effective, not 'key'"):
        copy_suppression.qk_match(weights_of(model), head, "key")


def test_name_movers_write_the_name_and_negative_ones_lower_it(plain):
    weights = weights_of(plain)
    score_NLH = PROBES["name_mover"].score(weights)
    assert score_NLH.shape == (3, 2, 6)
    assert [at(score_NLH, head) for head in (COPY, SUPPRESS, IDLE, INCREMENT)] == [1, 0, 0, 0]
    assert at(name_mover.written_first(weights, -1), SUPPRESS) == 1
    assert at(PROBES["name_mover"].score(weights_of(plain, 1)), COPY) < 1


def test_screening_names_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    written, columns, ids = torch.randn(3, 9, 12, generator=generator), torch.randn(12, 900, generator=generator), torch.arange(9)
    written[0] += 4 * columns[:, :9].T
    logits = written @ columns
    own = logits[:, torch.arange(9), torch.arange(9)]
    expected = (logits >= own[..., None]).sum(-1) <= 5
    assert 0 < expected.sum() < 27
    assert torch.equal(name_mover._top(written, columns, ids), expected)


def test_a_tokenizer_without_names_gives_insufficient_evidence():
    result = measure.score(random_model("llama"), ["name_mover", "copying"])
    assert result.probes == ("copying",)
    assert result.evidence["name_mover"]["status"] == "insufficient evidence"
    assert "no first name as one token" in evidence_text(result.evidence["name_mover"])


# ---------------------------------------------------------------- features


@pytest.fixture(scope="module")
def synthetic():
    """Two classes whose vectors are a last digit, a decade and a class, each a direction of its own, and a little noise."""
    rng = np.random.default_rng(0)
    digit, decade, kind = (rng.standard_normal((count, 40)) / 40**0.5 for count in (10, 10, 2))
    number = np.concatenate([np.arange(100), np.arange(1, 21)])
    name = ("numbers",) * 100 + ("words",) * 20
    x_ND = 2 * digit[number % 10] + decade[number // 10] + kind[(np.array(name) == "words").astype(int)] + 0.02 * rng.standard_normal((120, 40))
    return Representations(x_ND.astype(np.float32), number, name, tuple(map(str, number)))


@pytest.fixture(scope="module")
def coded(synthetic):
    return autoencoder(synthetic, AutoencoderSettings(latents=40, active=6, steps=500, rate=1e-2))


def test_the_autoencoder_explains_is_sparse_and_says_how_it_was_made(coded, synthetic):
    record = coded.record
    assert record["explained"] > 0.9
    assert 2 < record["active_per_token"] < 15
    assert (record["latents"], record["seed"], record["steps"]) == (40, 0, 500)
    np.testing.assert_allclose(np.linalg.norm(coded.direction_FD, axis=1), 1, atol=1e-5)
    again = autoencoder(synthetic, AutoencoderSettings(latents=40, active=6, steps=20, seed=1))
    np.testing.assert_array_equal(again.active_NF, autoencoder(synthetic, AutoencoderSettings(latents=40, active=6, steps=20, seed=1)).active_NF)


def test_features_and_probe_find_the_last_digit_and_agree(coded, synthetic):
    probe = linear_probe(synthetic)
    assert probe.accuracy(synthetic) == 1
    for dictionary, least in ((coded, 0.8), (nmf(synthetic, features=25, steps=400), 0.4)):
        found = modal(dictionary, synthetic)
        assert found.coverage > max(least, 2 * found.chance)
        assert agreement(probe, dictionary, found) > 0.3


def test_a_probe_of_one_class_tells_another_only_where_they_share_directions(synthetic):
    table = transfer(synthetic).set_index("class")
    assert table["accuracy"].min() > 0.9
    assert table["tokens"].tolist() == [10, 20]
    rng = np.random.default_rng(1)
    strange = np.where(synthetic.of(["words"])[:, None], rng.standard_normal(synthetic.x_ND.shape), synthetic.x_ND).astype(np.float32)
    apart = Representations(strange, synthetic.number, synthetic.name, synthetic.texts)
    assert transfer(apart).set_index("class").loc["words", "accuracy"] < 0.5
    assert left_out(synthetic)["class"].tolist() == ["numbers", "words"]
    with pytest.raises(InputError, match="no token of the classes to be trained on: days"):
        transfer(synthetic, ["days"])
    with pytest.raises(InputError, match="no token is chosen"):
        modal(nmf(synthetic, steps=1), synthetic, np.zeros(120, bool))


def test_nmf_is_not_negative_and_comes_nearer(synthetic):
    few, many = (nmf(synthetic, features=20, steps=steps) for steps in (3, 200))
    assert (many.active_NF >= 0).all()
    assert many.record["explained"] > few.record["explained"]
    again_ND = many.active_NF @ many.direction_FD
    centred_ND = synthetic.x_ND - synthetic.x_ND.mean(0)
    unit = np.linalg.norm(centred_ND, axis=1).mean()
    assert 1 - np.square(centred_ND / unit - again_ND).sum() / np.square(centred_ND / unit).sum() == pytest.approx(many.record["explained"], abs=1e-4)


def test_representations_are_those_of_the_first_mlp_and_carry_numbers():
    model = residue_model()
    found = represent(weights_of(model))
    assert found.name == ("numbers",) * 100
    assert "the tokenizer splits the other 401" in found.restricted
    assert found.number.tolist() == list(range(100))
    assert found.residue[37] == 7
    model = incrementing_model()
    found = represent(weights_of(model), ["days", "numbers"])
    assert found.number[:7].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found.number[7:].tolist() == list(range(1, 40))
    with pytest.raises(InputError, match="none of these words is one token"):
        represent(weights_of(model), ["ordinals"])


# ---------------------------------------------------------------- steering


@pytest.fixture(scope="module")
def digits():
    model = residue_model()
    weights = weights_of(model)
    return weights, represent(weights)


def test_moving_the_digit_moves_what_the_head_writes(digits):
    weights, found = digits
    made = steer(weights, INCREMENT, numbers(0, 99), of_means(found))
    right = made[made["target"] % 10 != 9]
    assert len(made) == 100 * 9 - 9  # 99 has no successor
    assert right["success"].all()
    assert (right["written"] == right["target"] + 1).all()
    assert not made[made["target"] % 10 == 9]["success"].any()  # the head has no carry
    assert (made["target"] // 10 == made["number"] // 10).all()


def test_features_and_probe_steer_as_well_and_random_directions_do_not(digits):
    weights, found = digits
    means = of_means(found)
    coded = autoencoder(found, AutoencoderSettings(latents=30, active=3, steps=800, rate=1e-2))
    directions = {"features": of_features(coded, modal(coded, found), means), "probe": of_probe(linear_probe(found), means), "random": at_random(means)}
    table = success_table(weights, INCREMENT, [numbers(0, 99)], directions, scales=(1.5,)).set_index("direction")
    assert table.loc["probe", "success"] > 0.85
    assert table.loc["features", "success"] > 0.7
    assert table.loc["random", "success"] < 0.2
    assert table.loc["probe", "moves"] == 891


def test_no_direction_moves_nothing(digits):
    weights, found = digits
    made = steer(weights, INCREMENT, numbers(0, 99), of_means(found), scale=0.0)
    assert not made["success"].any()
    assert len(steer(weights, INCREMENT, numbers(0, 99), np.zeros((10, 24), np.float32))) == 0


def test_the_greater_than_bias_by_a_loop():
    model = random_model("llama")
    words = tokens_of(model.tokenizer, "numbers")
    value_LH = greater_than(weights_of(model), words)
    (logits,) = list(successor.class_logits(weights_of(model), [words]))[1]
    logits = logits[3].numpy()
    expected = [(row[i + 1 :].mean() - row[:i].mean()) / row.std(ddof=1) for i, row in enumerate(logits) if 0 < i < 8]
    assert value_LH[1, 3] == pytest.approx(np.mean(expected), abs=1e-4)
    with pytest.raises(InputError, match="earlier and later words take three words with tokens; days have 0"):
        greater_than(weights_of(model), tokens_of(model.tokenizer, "days"))


def test_a_pair_of_place_and_class_is_put_together_from_others_and_the_head_reads_it():
    weights = weights_of(two_class_model())
    found = represent(weights, ["numbers", "number words"])
    held = np.zeros(24, bool)
    held[4] = True
    np.testing.assert_allclose(put_together(found, held), found.x_ND, atol=1e-3)
    table = held_out_pairs(weights, INCREMENT, found)
    assert table["class"].tolist() == ["numbers", "number words"]
    assert table["pairs"].tolist() == [11, 11]
    np.testing.assert_allclose(table[["cosine", "real", "rebuilt"]], 1, atol=1e-4)
    assert (held_out_pairs(weights, Head(1, 3), found)["rebuilt"] < 0.2).all()
    alone = represent(weights, ["numbers"])
    assert len(held_out_pairs(weights, INCREMENT, alone)) == 0


# ---------------------------------------------------------------- direct effects


def frozen_logits(model, prompts, head):
    """Logits [B, T, V] with and without what a head writes, the final norm's length frozen: by hand from the residual stream."""
    seen, z = [], []
    norm, output = model.weights.final_norm_module, model.weights.outputs[head.layer]
    hooks = [
        norm.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        output.register_forward_pre_hook(lambda module, args: z.append(args[0])),
    ]
    model.hf(torch.tensor(np.array(prompts.ids_BT)))
    for hook in hooks:
        hook.remove()
    x, centred = seen[0], model.config.model_type in ("gpt2", "gpt_neox")
    part = torch.zeros_like(z[0]).unflatten(-1, (model.shape.n_heads, -1))
    part[..., head.index, :] = z[0].unflatten(-1, (model.shape.n_heads, -1))[..., head.index, :]
    written = output(part.flatten(-2)) - output(torch.zeros_like(z[0]))
    if (post := model.weights.attention_post_norm_module(head.layer)) is not None:
        whole = output(z[0])
        written = written / (whole.pow(2).mean(-1, keepdim=True) + post.eps).sqrt() * (1 + post.weight)
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0)
    size = (x - (x.mean(-1, keepdim=True) if centred else 0)).pow(2).mean(-1, keepdim=True).add(eps).sqrt()

    def logits(rows):
        rows = (rows - (rows.mean(-1, keepdim=True) if centred else 0)) / size
        gain = norm.weight + (1 if model.config.model_type.startswith("gemma") else 0)
        return (rows * gain + (norm.bias if centred else 0)) @ model.hf.get_output_embeddings().weight.T

    return logits(x), logits(x - written)


@architectures
def test_a_direct_effect_is_the_difference_of_logits(architecture):
    model, prompts, head = tiny(architecture), random_prompts(2, 12), Head(0, 1)
    found = direct_effects(model, prompts, ablation="zero")
    whole, without = frozen_logits(model, prompts, head)
    answer = torch.tensor(np.array(prompts.ids_BT[:, 1:]))[..., None]

    def right(logits):
        logits = logits - logits.mean(-1, keepdim=True)
        return logits[:, :-1].gather(2, answer)[..., 0]

    np.testing.assert_allclose(found.effect_BLHR[:, 0, 1], right(whole - without).numpy(), atol=2e-3, rtol=1e-3)
    np.testing.assert_array_equal(found.answer_BR, prompts.ids_BT[:, 1:])
    assert found.effect_BLHR.shape == (2, 2, model.shape.n_heads, 11)


def test_a_direct_effect_of_the_last_layer_is_what_ablation_changes():
    """Without the last MLP, what a head of the last layer writes goes straight to the final norm."""
    model = random_model("llama", seed=5)
    model.hf.model.layers[1].mlp.down_proj.weight.data.zero_()
    norm = model.hf.model.norm
    prompts, head, size = random_prompts(1, 9), Head(1, 4), []
    hook = norm.register_forward_pre_hook(lambda module, args: size.append(args[0].pow(2).mean(-1, keepdim=True).sqrt()))
    before = model.hf(torch.tensor(np.array(prompts.ids_BT))).logits * size[0]
    hook.remove()
    unfrozen = []
    hooks = [norm.register_forward_pre_hook(lambda module, args: unfrozen.append(args[0]))]
    capture(model, prompts, [NextToken()], [Ablate((head,), "zero")])
    hooks[0].remove()
    after = unfrozen[0] * norm.weight @ model.hf.lm_head.weight.T
    change = (before - after) / size[0]
    change = (change - change.mean(-1, keepdim=True))[0, torch.arange(8), torch.tensor(prompts.ids_BT[0, 1:].copy())]
    np.testing.assert_allclose(direct_effects(model, prompts, ablation="zero").effect_BLHR[0, 1, 4], change.numpy(), atol=1e-3, rtol=1e-3)


def test_mean_ablation_takes_the_mean_of_the_rows_away():
    model, prompts = tiny("llama"), random_prompts(2, 10)
    mean, zero = (direct_effects(model, prompts, ablation=kind) for kind in ("mean", "zero"))
    assert not np.allclose(mean.effect_BLHR, zero.effect_BLHR, atol=1e-3)
    one = Prompts(np.tile(prompts.ids_BT[:1, :1], (2, 10)))  # equal tokens: without positions in the values, every row writes the same
    assert np.abs(direct_effects(model, one).effect_BLHR[:, 0]).max() < 1e-3


def test_rows_without_a_next_token_padding_and_unknown_ablations_are_refused():
    model = tiny("llama")
    with pytest.raises(InputError, match="unknown ablation 'resample'; there are: mean, zero"):
        direct_effects(model, random_prompts(1, 5), ablation="resample")
    with pytest.raises(InputError, match="the last token is followed by none"):
        direct_effects(model, random_prompts(1, 5, rows={"last": np.array([[4]])}), "last")
    with pytest.raises(InputError, match="padded prompts need named rows"):
        direct_effects(model, random_prompts(2, 5, padding=np.array([0, 2])))


def test_the_model_is_as_it_was_afterwards():
    model, prompts = tiny("llama"), random_prompts(1, 8)
    before = model.hf(torch.tensor(np.array(prompts.ids_BT))).logits
    direct_effects(model, prompts)
    assert not model.weights.final_norm_module._forward_hooks
    assert torch.equal(model.hf(torch.tensor(np.array(prompts.ids_BT))).logits, before)


# ---------------------------------------------------------------- cases


def test_each_head_wins_the_cases_that_it_was_made_for(plain):
    token = {text: plain.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (" Monday", " Tuesday", "7", "8", " Mary")}
    pairs = [(" Monday", " Tuesday"), ("7", "8"), (" Mary", " Mary"), (" Tuesday", " Monday")]
    prompts = Prompts(np.array([[token[before], token[after]] for before, after in pairs]))
    cases = winning_cases(plain, [prompts], ablation="zero")
    assert cases["head"].tolist() == [str(head) for head in (INCREMENT, INCREMENT, COPY, DECREMENT)]
    assert cases["kind"].tolist() == ["successor", "successor", "copying", "other"]
    assert cases[["token", "answer"]].to_numpy().tolist() == [list(pair) for pair in pairs]
    assert winning_cases(plain, [prompts], INCREMENT, ablation="zero")["prompt"].tolist() == [0, 1]
    table = kinds_by_head(cases).set_index("head")
    assert table.loc[str(INCREMENT), ["wins", "successor", "copying"]].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("text", "key", "kind"),
    [
        ("xab", 0, "successor"),
        ("xax", 0, "copying"),
        ("xad", 0, "greater_than"),
        ("a  b", 0, "successor"),  # of the strongest key
        ("a  b", 2, "other"),
        ("15", 0, "greater_than"),
        ("51", 0, "other"),
        ("xda", 0, "other"),
        ("Old Post Office (OPO", 0, "acronym"),
        ("Old Post Office (OPX", 0, "greater_than"),
        ("old post office (OPO", 0, "other"),
    ],
)
def test_the_kind_of_a_case(text, key, kind):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert Kinds(tokenizer).of(ids, len(ids) - 2, key) == kind


def test_numbered_listings_end_in_the_next_number(tiny_llama):
    prompts = numbered_listings(tiny_llama, 20, seed=1)
    for ids, start in zip(prompts.ids_BT, prompts.start_B, strict=True):
        text = tiny_llama.tokenizer.decode(ids[start:], skip_special_tokens=True)
        lines = text.splitlines()
        assert [int(line.split(".")[0]) for line in lines] == list(range(1, len(lines) + 1))
        assert 4 <= len(lines) <= 9
        assert lines[-1] == str(len(lines))
    assert (prompts.rows["before"] == prompts.length - 2).all()
    cases = winning_cases(tiny_llama, [prompts], rows="before", ablation="zero")
    assert set(cases["answer"]) <= set("456789")


def test_a_digit_that_is_no_token_makes_no_listing(plain):
    model = HFModel("few", "", plain.hf, word_tokenizer(["red", "green"]))
    with pytest.raises(InputError, match="is no token of few"):
        numbered_listings(model, 1)


# ---------------------------------------------------------------- the command, and the default model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    model = random_model("llama")
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return str(path)


def run(*arguments):
    return CliRunner().invoke(app, ["successor", *map(str, arguments)])


def test_the_command_shows_a_head_by_class_as_text_and_as_data(folder, tmp_path):
    result = run("-m", folder, "--head", "L1H2", "--class", "letters", "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "tiny-bytes L1H2, norms: mlp on, head on, final on" in result.stdout
    assert "has no successor" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100 + len(str(tmp_path))
    assert (tmp_path / "page.html").is_file()
    data = json.loads(run("-m", folder, "--raw", "--class", "numbers", "--json").stdout)
    weights = weights_of(random_model("llama"))
    best = strongest(weights, RAW)
    assert data["head"] == str(best)
    assert data["norms"] == "mlp off, head off, final off"
    np.testing.assert_allclose(pd.DataFrame(data["classes"])["score"], head_table(weights, best, RAW)["score"])
    assert [row["token"] for row in data["tokens"]] == list("123456789")
    assert data["tokens"][-1]["successor"] is None


def test_the_command_refuses_a_page_without_a_class_and_unknown_heads_and_classes(folder, tmp_path):
    for arguments, said in (
        (("--out", tmp_path / "x.html"), "--out draws the matrix of a class"),
        (("--head", "L9H0"), "no head L9H0"),
        (("--class", "weeks"), "unknown class of words 'weeks'"),
    ):
        result = run("-m", folder, *arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr


@pytest.mark.model
def test_all_heads_of_the_default_model_within_ten_seconds(smollm2):
    import time

    begin = time.perf_counter()
    score_NLH = PROBES["successor"].score(weights_of(smollm2))
    assert time.perf_counter() - begin < 10
    assert score_NLH.shape == (288, 30, 9)
    facts = PROBES["successor"].told(weights_of(smollm2))
    assert "numbers restricted to 1, 2, …, 9 (9)" in facts["restricted"]
    assert score_NLH.mean(0).max() < 0.4  # it has no successor head
