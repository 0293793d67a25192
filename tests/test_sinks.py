"""Are sinks found where they are? Rules with known answers, loops as oracles, planted sinks and no-op heads, and the command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from eager import tiny

from workbench.captures import capture
from workbench.cli.sinks import SHOWN
from workbench.errors import InputError
from workbench.given import from_patterns, uniform
from workbench.heads import ModelCard, Shape
from workbench.probes import PROBES, no_op
from workbench.prompts import Prompts
from workbench.reads import Activations, Received, Written
from workbench.recipes import DELIMITERS, NaturalText, RandomTokens
from workbench.sink_rules import KINDS, SINK_RULES, SinkRule, counted, says_little, sink_rules_with, uniform_received
from workbench.sinks import find_sinks
from workbench.tiny import byte_tokenizer, random_model

CARD = ModelCard("toy", "memory", "", Shape(2, 3, 1, 4, 12))


def random_patterns(count=2, length=40, layers=2, heads=3, seed=0):
    """Causal rows that sum to 1; some keys get more than others."""
    rng = np.random.default_rng(seed)
    liked = 4 * (rng.random((count, layers, heads, 1, length)) > 0.8)
    weight = np.tril(np.exp(2 * rng.standard_normal((count, layers, heads, length, length)) + liked))
    return (weight / weight.sum(-1, keepdims=True)).astype(np.float32)


def later(rule, pattern_QK, tail=0.0):
    """Positions that a rule finds in one pattern."""
    prompts = Prompts(np.zeros((1, len(pattern_QK)), np.int64))
    received = from_patterns(CARD, prompts, np.asarray(pattern_QK)[None, None, None], [Received()])[Received()]
    return np.flatnonzero(SINK_RULES[rule].later(received, prompts.start_B, tail)).tolist()


# ---------------------------------------------------------------- rules with known answers


def test_a_uniform_head_receives_what_the_harmonic_numbers_say():
    np.testing.assert_allclose(uniform_received(64)[[0, 1, 2, 63]], [0.0741, 0.0594, 0.0523, 0.0156], atol=5e-5)
    for length in (1, 2, 7):
        harmonic = [sum(1 / n for n in range(1, k + 1)) for k in range(length + 1)]
        np.testing.assert_allclose(uniform_received(length), [(harmonic[length] - harmonic[k]) / (length - k) for k in range(length)])
        seen = uniform(CARD, Prompts(np.zeros((1, length), np.int64)), [Received()])[Received()]
        np.testing.assert_allclose(seen[0, 0, 0], uniform_received(length), rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "last_clean", "position"),
    [("alpha_n=5", 220, 1), ("alpha_n=5", 362, 2), ("alpha_n=3", 26, 1), ("alpha_n=3", 43, 2), ("alpha_n=7", 1666, 1), ("alpha_n=7", 2744, 2)],
)
def test_the_rule_of_act_flags_a_uniform_head_from_a_length_on(rule, last_clean, position):
    chosen = sink_rules_with([rule])["alpha_n"]
    for length, flagged in ((last_clean, False), (last_clean + 1, True)):
        found = chosen.later(uniform_received(length)[None, None, None], np.zeros(1, int), 0.0)
        assert found[0, 0, 0, position] == flagged


@pytest.mark.parametrize(("value", "first_clean"), [(0.1, 32), (0.15, 18)])
def test_the_absolute_rule_flags_a_uniform_head_below_a_length(value, first_clean):
    rule = sink_rules_with([f"absolute={value}"])["absolute"]
    for length, flagged in ((first_clean - 1, True), (first_clean, False)):
        assert rule.later(uniform_received(length)[None, None, None], np.zeros(1, int), 0.0)[0, 0, 0, 1] == flagged


@pytest.mark.parametrize("length", [2, 17, 64, 1000, 4096])
def test_the_uniform_rule_never_flags_a_uniform_head(length):
    assert not SINK_RULES["uniform"].later(uniform_received(length)[None, None, None], np.zeros(1, int), 0.0).any()


def test_a_pure_first_token_sink_is_no_later_sink():
    pattern_QK = np.zeros((64, 64))
    pattern_QK[:, 0] = 1
    assert [later(rule, pattern_QK) for rule in SINK_RULES] == [[], [], []]


@pytest.mark.parametrize("rule", SINK_RULES)
def test_a_planted_later_sink_is_found_and_the_tail_left_out(rule):
    pattern_QK = np.tril(np.ones((64, 64)))
    pattern_QK[9:] = 0
    pattern_QK[9:, 9] = 1
    pattern_QK /= pattern_QK.sum(1, keepdims=True)
    assert 9 in later(rule, pattern_QK, 0.25)
    for key, found in ((47, [47]), (48, [])):
        late_QK = np.zeros((64, 64))
        late_QK[:, 0] = 1
        late_QK[key:, [0, key]] = 0, 1
        assert later(rule, late_QK, 0.25) == found
        assert later(rule, late_QK, 0.0) == [key]


@pytest.mark.parametrize("padding", [None, np.array([0, 11])], ids=["full", "padded"])
@pytest.mark.parametrize("tail", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("name", SINK_RULES)
def test_later_sinks_are_those_of_loops(name, tail, padding):
    rule, prompts = SINK_RULES[name], Prompts(np.zeros((2, 40), np.int64), padding=padding)
    received = from_patterns(CARD, prompts, random_patterns(), [Received()])[Received()]
    found = rule.later(received, prompts.start_B, tail)
    assert found.any()
    for b, layer, head, key in np.ndindex(found.shape):
        start = int(prompts.start_B[b])
        length, place = 40 - start, key - start
        expected = False
        if 0 < place < int(length * (1 - tail)):
            fair = sum(1 / n for n in range(place + 1, length + 1)) / (length - place)
            bar = {"alpha_n": 5 / length, "absolute": 0.1, "uniform": 5 * fair}[name]
            expected = received[b, layer, head, key] > bar
        assert found[b, layer, head, key] == expected


@pytest.mark.parametrize(("change", "message"), [("alpha=3", "unknown sink rule 'alpha'"), ("uniform=much", "as in uniform=3, not"), ("absolute=0", "above 0")])
def test_wrong_sink_rules_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        sink_rules_with([change])


def test_rules_say_where_they_come_from():
    assert {rule.kind for rule in SINK_RULES.values()} == set(KINDS)
    assert all(rule.source for rule in SINK_RULES.values())
    assert sink_rules_with(["alpha_n=3"])["alpha_n"].source == "set by the user (default 5)"
    with pytest.raises(InputError, match="unknown kind of sink rule"):
        SinkRule("new", "relative", 1, "")
    with pytest.raises(InputError, match="from 0 up to 1"):
        counted(10, 1.0)


def test_delimiters_are_punctuation_line_breaks_and_special_tokens():
    tokenizer = byte_tokenizer()
    ids = np.array([tokenizer("a. \n,(b")["input_ids"]])
    assert says_little(tokenizer, ids).tolist() == [[True, False, True, False, True, True, True, False]]


# ---------------------------------------------------------------- prompts and probes


def test_random_tokens_are_drawn_and_one_is_repeated():
    model = random_model("llama")
    for bos in (False, True):
        drawn, same = (RandomTokens(count=5, batch=2, repeated=repeated, bos=bos).build(model, 3) for repeated in (False, True))
        assert [prompts.ids_BT.shape for prompts in drawn] == [(2, 64), (2, 64), (1, 64)]
        assert all((prompts.ids_BT[:, 0] == 1).all() == bos for prompts in (*drawn, *same))
        assert all(len(np.unique(row[bos:])) == 1 for prompts in same for row in prompts.ids_BT)
        assert len({int(row[-1]) for prompts in same for row in prompts.ids_BT}) > 1
        assert len(np.unique(np.concatenate([prompts.ids_BT for prompts in drawn])[:, bos:])) > 50
        assert drawn[0].facts[0] == {"bos": bos, "repeated": False}
    assert RandomTokens().at_length(512) == RandomTokens(length=512, count=2, batch=2)


def test_repeated_tokens_have_no_sink_where_positions_are_rotated():
    prompts = RandomTokens(count=4, repeated=True).build(tiny("llama"), 0)[0]
    hidden = capture(tiny("llama"), prompts, [Activations()])[Activations()].norm
    np.testing.assert_allclose(hidden, np.broadcast_to(hidden[..., :1], hidden.shape), rtol=1e-3)


@pytest.mark.parametrize("name", ["attention_sink", "attention_sink_random", "attention_sink_repeated"])
def test_the_sink_rate_is_decided_in_each_sample_and_above_epsilon(name):
    score_NLH = np.array([0.31, 0.3, 0.9, 0.1]).reshape(2, 1, 2)
    assert PROBES[name].summary(score_NLH) == {"sink_rate": 0.5}


def test_the_text_says_where_its_delimiters_are(tmp_path):
    (path := tmp_path / "text.txt").write_text("One, two. " * 60, encoding="utf-8")
    prompts = NaturalText(length=32, count=2, text=path).build(tiny("llama"), 0)[0]
    for row, facts in zip(prompts.ids_BT, prompts.facts, strict=True):
        text = tiny("llama").tokenizer.decode(row[1:])
        assert facts[DELIMITERS] == (0, *(place + 1 for place, letter in enumerate(text) if letter in ",."))


def test_a_head_on_valueless_tokens_is_a_no_op_and_one_of_three_ways_off_is_none():
    prompts = Prompts(np.zeros((1, 20), np.int64), facts=({DELIMITERS: (5, 11)},))
    quiet, loud = np.ones((1, 1, 1, 20, 4)), np.ones((1, 1, 1, 20, 4))
    quiet[..., [0, 5, 11], :] = 0
    to_quiet, to_self = np.zeros((20, 20)), np.eye(20)
    for row in range(20):
        to_quiet[row, max(key for key in (0, 5, 11) if key <= row)] = 1

    def numbers(pattern_QK, values):
        seen = from_patterns(CARD, prompts, pattern_QK[None, None, None], [Received(), Written()], values)
        return [float(part[0, 0, 0]) for part in (no_op.mass(seen), no_op.update(seen), PROBES["no_op"].score(seen))]

    np.testing.assert_allclose(numbers(to_quiet, quiet), [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(numbers(to_quiet, loud), [1, 1, 0], atol=1e-6)  # delimiters that carry information
    np.testing.assert_allclose(numbers(to_self, quiet), [0.15, 1, 0], atol=1e-6)
    np.testing.assert_allclose(numbers(to_quiet, 0 * quiet), [1, 0, 1], atol=1e-6)  # a head without values


def test_no_op_numbers_are_those_of_loops():
    rng, pattern_BLHQK = np.random.default_rng(1), random_patterns()
    prompts = Prompts(np.zeros((2, 40), np.int64), facts=({DELIMITERS: (3, 17)}, {DELIMITERS: ()}))
    value_BLGKE = rng.standard_normal((2, 2, 1, 40, 4))
    seen = from_patterns(CARD, prompts, pattern_BLHQK, [Received(), Written()], value_BLGKE)
    for b, layer, head in np.ndindex(2, 2, 3):
        p, v, quiet = pattern_BLHQK[b, layer, head], value_BLGKE[b, layer, 0], {0, *prompts.facts[b][DELIMITERS]}
        mass = np.mean([sum(p[i, j] for j in quiet) for i in range(40)])
        update = np.mean([np.linalg.norm(sum(p[i, j] * v[j] for j in range(40))) for i in range(40)]) / np.mean([np.linalg.norm(one) for one in v])
        assert no_op.mass(seen)[b, layer, head] == pytest.approx(mass, abs=1e-5)
        assert no_op.update(seen)[b, layer, head] == pytest.approx(update, rel=1e-4)
        assert PROBES["no_op"].score(seen)[b, layer, head] == pytest.approx(min(mass, max(0, 1 - update)), abs=1e-4)


# ---------------------------------------------------------------- one text


def planted():
    """A model whose head L1H0 sees nothing but the first token, of which its KV head makes no value, and whose embeddings carry a massive entry."""
    model = random_model("llama", seed=4)
    with torch.no_grad():
        model.hf.model.embed_tokens.weight[1, 17] = 60_000.0  # the BOS token
        attention, norm = model.hf.model.layers[1].self_attn, model.hf.model.layers[1].input_layernorm
        norm.weight[17] = norm.weight[3] = 1.0
        model.hf.model.embed_tokens.weight[:, 3] = 50.0  # what all tokens have in common, which the head's queries read
        size = model.shape.d_head
        attention.v_proj.weight[:size, 17] = 0
        attention.q_proj.weight[:size] = attention.k_proj.weight[:size] = 0
        attention.q_proj.weight[size // 2 - 1, 3] = attention.k_proj.weight[size // 2 - 1, 17] = 3  # the pair that rotates least
    return model


def test_a_planted_massive_activation_is_the_one_dimension_that_is_found():
    found = find_sinks(planted(), Prompts(np.array([[1, *range(10, 60)]])))
    dimensions = found.dimensions()
    assert dimensions[["dim", "position", "token", "layers"]].to_numpy().tolist() == [[17, 0, "<s>", "0–1"]]
    assert dimensions["value"][0] == pytest.approx(60_000, rel=0.01)
    assert found.layers["massive"].tolist() == [1, 1]
    assert (found.layers["norm_first"] > 100 * found.layers["norm_rest"]).all()
    strict = find_sinks(planted(), Prompts(np.array([[1, *range(10, 60)]])), criterion=(1e6, 10.0))
    assert strict.dimensions().empty
    assert len(strict.massive) == 6


def test_a_planted_no_op_head_is_found():
    heads = find_sinks(planted(), Prompts(np.array([[1, *range(10, 60)]]))).heads.set_index(["layer", "head"])
    head = heads.loc[1, 0]
    assert head["no_op"]
    assert head["first"] > 0.99
    assert head["mass"] > 0.99
    assert head["update"] < 0.1
    assert head["value_first"] < 0.1 * head["value_rest"]
    assert not heads.loc[0]["no_op"].any()


@pytest.mark.parametrize("way", [{}, {"implementation": "reference"}, {"chunk": 7}], ids=["whole", "reference", "chunks"])
def test_a_text_gives_the_numbers_of_its_captures(way):
    model, prompts = tiny("llama"), Prompts(np.array([[1, *np.random.default_rng(0).integers(3, 250, 49)]]))
    found = find_sinks(model, prompts, tail=0.0, top=2, **way)
    received = capture(model, prompts, [Received()])[Received()][0]
    np.testing.assert_allclose(found.received_LHK, received, atol=1e-5)
    for name, part in found.sinks.groupby("rule"):
        mask = np.zeros(received.shape, bool)
        mask[part["layer"], part["head"], part["position"]] = True
        expected = np.zeros(received.shape, bool)
        expected[..., 0] = received[..., 0] > 0.3
        np.testing.assert_array_equal(mask, expected if name == "first" else SINK_RULES[name].later(received[None], np.zeros(1, int), 0.0)[0])
        assert (part["received"] > part["threshold"]).all()
    assert found.positions()["heads"].sum() == len(found.sinks)
    assert len(found.heads) == 12
    assert len(found.massive) == 4
    assert found.provenance["rules"]["uniform"]["value"] == 5
    assert found.tokens[0] == "<s>"


def test_padding_changes_nothing():
    ids = np.random.default_rng(0).integers(3, 250, 30)
    alone = find_sinks(tiny("llama"), Prompts(ids[None]))
    behind = find_sinks(tiny("llama"), Prompts(np.concatenate([[0] * 6, ids])[None], padding=np.array([6])))
    for name in ("heads", "layers"):
        pd.testing.assert_frame_equal(getattr(alone, name), getattr(behind, name), check_exact=False, rtol=2e-3, atol=1e-4)
    assert (behind.sinks["position"] - 6).tolist() == alone.sinks["position"].tolist()
    assert (behind.massive["position"] - 6).tolist() == alone.massive["position"].tolist()


def test_one_text_of_two_tokens_at_least():
    for ids in (np.zeros((2, 5), np.int64), np.zeros((1, 1), np.int64)):
        with pytest.raises(InputError, match="one prompt of at least two tokens"):
            find_sinks(tiny("llama"), Prompts(ids))


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = random_model("llama")
    model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return str(path)


def run(*arguments):
    from typer.testing import CliRunner

    from workbench.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_shows_what_the_json_has(folder, tmp_path):
    (text := tmp_path / "text.txt").write_text("One, two.\nThree. " * 20, encoding="utf-8")
    result = run("sinks", "-m", folder, "--text", text, "--tokens", 40, "--sink-rule", "alpha_n=2", "--json")
    data = json.loads(result.stdout)
    assert len(data["received"]) == data["tokens"] == 40
    assert len(data["heads"]) == 12
    assert len(data["layers"]) == 2
    assert data["rules"]["alpha_n"]["value"] == 2
    assert {row["rule"] for row in data["positions"]} <= {"first", *SINK_RULES}
    page = run("sinks", "-m", folder, "--text", text, "--tokens", 40).stdout
    for words in ("40 tokens, 12 heads", "sinks by the rule uniform", "massive activations", "no-op heads", "by layer"):
        assert words in page
    assert SHOWN > 1


def test_the_command_scores_a_conversation(folder, tmp_path):
    (path := tmp_path / "talk.json").write_text(json.dumps([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]), encoding="utf-8")
    data = json.loads(run("sinks", "-m", folder, "--conversation", path, "--json").stdout)
    assert [(row["turn"], row["layer"]) for row in data["turns"]] == [(0, 0), (0, 1)]
    assert "turn 0: 0." in run("sinks", "-m", folder, "--conversation", path).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", "1"), "--tokens takes 2 to"),
        (("--sink-rule", "none=1"), "unknown sink rule 'none'"),
        (("--tail", "1"), "from 0 up to 1"),
        (("--conversation", "missing.json"), "cannot read a conversation from missing.json"),
        (("--conversation", "missing.json", "--sink-rule", "alpha_n=3"), "--conversation takes neither --text nor --sink-rule"),
    ],
)
def test_what_the_command_cannot_use_it_says(folder, options, message):
    result = run("sinks", "-m", folder, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
