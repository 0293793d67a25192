"""Is the estimate what one works out by hand, and does it count the passes that are really made?"""

import pytest

from workbench import batches, groups, measure, plan
from workbench.errors import InputError
from workbench.heads import Shape
from workbench.needles import NeedleTests
from workbench.plan import BLOCK_SCORES, FORWARD_OVERHEAD, RUNTIME_BYTES, SPEED, Pass, Size, estimate, passes_of, size_of, sketch
from workbench.recipes import NaturalText, RepeatedTokens
from workbench.sources import Source
from workbench.tiny import VOCABULARY, random_model

SIZE = Size(Shape(2, 4, 2, 8, 32), parameters=1000, embedding=200, vocabulary=50)


def test_time_by_hand():
    cost = estimate(SIZE, [Pass(10), Pass(10, batch=3)], threads=3)
    dense = 2 * 800 * 10
    attention = 1.5 * (4 * 2 * 4 * 8 * 10**2)
    assert cost.seconds == pytest.approx(4 * (dense + attention) / (3 * SPEED["cpu"]) + 2 * FORWARD_OVERHEAD["cpu"])
    assert (cost.forwards, cost.tokens) == (2, 40)


def test_a_generated_answer_adds_a_forward_for_each_token():
    cost = estimate(SIZE, [Pass(10, steps=5)])
    assert (cost.forwards, cost.tokens) == (6, 15)


def test_memory_is_that_of_the_largest_pass():
    cost = estimate(SIZE, [Pass(10), Pass(20, batch=2), Pass(5)], dtype_bytes=2)
    scores = 2 * 4 * BLOCK_SCORES
    activations = 2 * 20 * 14 * 32
    logits = 2 * 4 * 50
    assert cost.bytes == RUNTIME_BYTES + 1000 * 2 + scores + 2 * (activations + logits)


def test_memory_does_not_grow_with_the_square_of_the_length():
    one, two, four = (estimate(SIZE, [Pass(length)]).bytes for length in (10_000, 20_000, 40_000))
    assert four - two == 2 * (two - one)


def test_no_passes_cost_the_weights_alone():
    cost = estimate(SIZE, [])
    assert (cost.seconds, cost.bytes, cost.forwards, cost.tokens) == (0, RUNTIME_BYTES + 4000, 0, 0)


@pytest.mark.parametrize(("device", "dtype_bytes", "told"), [("cpu", 2, True), ("cpu", 4, False), ("cuda", 2, False)])
def test_16_bits_on_a_cpu_are_an_assumption(device, dtype_bytes, told):
    assumptions = estimate(SIZE, [Pass(10)], device=device, dtype_bytes=dtype_bytes).assumptions
    assert any("16-bit" in line for line in assumptions) == told


def test_the_assumptions_are_told():
    told = " ".join(estimate(SIZE, [Pass(10)], device="cuda", dtype_bytes=2).assumptions)
    assert "CUDA" in told
    assert f"{SPEED['cuda'] / 1e9:,.0f} GFLOP/s" in told
    assert "factor of about two" in told


def test_the_passes_counted_are_those_that_measure_makes(tiny_llama, monkeypatch):
    made = []
    real = batches.capture
    monkeypatch.setattr(
        batches, "capture", lambda model, prompts, *rest, **way: made.append((prompts.length, prompts.count)) or real(model, prompts, *rest, **way)
    )
    few = [groups.Group(group.probes, RepeatedTokens(length=10, count=5, batch=2)) for group in groups.plan(["induction"])]
    monkeypatch.setattr(batches, "plan", lambda *_: few)
    measure.score(tiny_llama, ["induction"])
    assert [(one.length, one.batch) for one in passes_of(tiny_llama, few)] == made


def test_answers_are_generated_in_the_paper_preset_only(tiny_llama, monkeypatch):
    monkeypatch.setattr(type(tiny_llama), "max_length", 8000)
    paper = passes_of(tiny_llama, groups.plan(["retrieval"], "paper"))
    assert {one.steps for one in paper if one.length == 1000} == {plan.ANSWER_TOKENS, 0}
    assert {one.steps for one in passes_of(tiny_llama, groups.plan(["retrieval"], "quick"))} == {0}


def test_weights_take_no_pass_and_a_null_of_uniform_attention_none(tiny_llama):
    assert passes_of(tiny_llama, groups.plan(["copying"])) == []
    assert len(passes_of(tiny_llama, [groups.Group((), NaturalText(length=64, count=32, batch=16))])) == 2


def test_tests_beyond_the_learned_positions_are_refused(tiny_llama):
    long = [groups.Group((), NeedleTests(lengths_=(9000,)))]
    with pytest.raises(InputError, match="9000 tokens do not fit tiny-gpt2, which has 4096 learned positions; give shorter --lengths"):
        passes_of(random_model("gpt2"), long)
    assert {one.length for one in passes_of(tiny_llama, long)} == {9000}


def test_sizes_are_counted_on_the_model(tiny_llama):
    size = size_of(tiny_llama)
    assert size.parameters == sum(weight.numel() for weight in tiny_llama.hf.parameters())
    assert (size.embedding, size.vocabulary) == (VOCABULARY * 48, VOCABULARY)


def test_a_folder_without_a_readable_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"')
    with pytest.raises(InputError, match="cannot read the configuration of here"):
        sketch(Source("x", "here", str(tmp_path)))
