"""Is a capture one faithful, reduced, unchangeable record of a pass, and a generation the same as a teacher-forced pass over its answer?"""

import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import torch
from eager import WINDOWED, eager, random_ids, random_prompts, tiny
from torch import nn

from workbench import attention, captures, implementations, passes
from workbench.attention import Tap
from workbench.captures import Capture, capture, generate
from workbench.edits import PHASES, Ablate, Reference
from workbench.errors import InputError
from workbench.given import from_patterns
from workbench.heads import Head
from workbench.models import HFModel
from workbench.prompts import Prompts
from workbench.reads import BlockMap, Entropy, HeadOutput, Mass, NextToken, Pattern, Peak, QueryKey, Received, TopMass, ValueNorm
from workbench.tiny import ARCHITECTURES, random_model

PLACES = {
    "spans": {"needle": np.array([[2, 6], [10, 11], [0, 20]])},
    "rows": {"some": np.array([[19, 3, 3], [0, 18, 7], [5, 6, 7]])},
    "match": random_ids(3, 20, seed=4) % 5,
}
ALL = [
    *(Mass(first=2), Mass(last=3, rows="some"), Mass(span="needle"), Mass(at="duplicate"), Mass(at="induction", rows="some"), TopMass("needle")),
    *(Entropy(), Peak("some"), Received(), Received("sum", "some"), BlockMap(6), Pattern(), Pattern("some"), HeadOutput("some"), QueryKey(), ValueNorm()),
    *(NextToken(), NextToken("some")),
]


def fields(value):
    return value if isinstance(value, tuple) else (value,)


# ---------------------------------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_batch_gives_what_its_prompts_give_alone(architecture):
    model, prompts = tiny(architecture), random_prompts(3, **PLACES)
    edits = [Ablate((Head(0, 1),), "uniform"), Ablate((Head(1, 2),))]
    together = capture(model, prompts, ALL, edits)
    for b in range(3):
        alone = capture(model, prompts.only(b), ALL, edits)
        for read in ALL:
            for whole, part in zip(fields(together[read]), fields(alone[read]), strict=True):
                np.testing.assert_allclose(part, whole[b : b + 1], atol=3e-5, err_msg=str(read))


def test_reads_together_give_what_each_gives_alone():
    model, prompts = tiny("llama"), random_prompts(3, **PLACES)
    together = capture(model, prompts, ALL)
    for read in ALL:
        for whole, alone in zip(fields(together[read]), fields(capture(model, prompts, [read])[read]), strict=True):
            np.testing.assert_allclose(alone, whole, atol=3e-5, err_msg=str(read))


def test_shapes_have_prompt_layer_and_head_in_front():
    seen = capture(tiny("llama"), random_prompts(3, **PLACES), ALL)
    expected = {
        **dict.fromkeys((Mass(first=2), Entropy(), Mass(span="needle"), TopMass("needle"), Received(), Received("sum", "some")), (3, 2, 6, 20)),
        Mass(last=3, rows="some"): (3, 2, 6, 3),
        BlockMap(6): (3, 2, 6, 4, 4),
        Pattern(): (3, 2, 6, 20, 20),
        Pattern("some"): (3, 2, 6, 3, 20),
        HeadOutput("some"): (3, 2, 6, 3, 8),
        ValueNorm(): (3, 2, 2, 20),
    }
    assert {read: seen[read].shape for read in expected} == expected
    assert [part.shape for part in seen[QueryKey()]] == [(3, 2, 6, 20, 8), (3, 2, 2, 20, 8)]
    assert [part.shape for part in seen[Peak("some")]] == [(3, 2, 6, 3)] * 2
    assert [part.shape for part in seen[NextToken("some")]] == [(3, 3)] * 2
    assert seen[Peak("some")]._fields == ("prob", "key")
    assert [part.dtype.kind for part in (*seen[Peak("some")], *seen[NextToken()], seen[Entropy()])] == ["f", "i", "i", "f", "f"]


def test_a_capture_cannot_be_changed():
    seen = capture(tiny("llama"), random_prompts(3, **PLACES), [Entropy(), Peak(), NextToken()])
    for array in (seen[Entropy()], *seen[Peak()], *seen[NextToken()]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError):
        seen.values[Entropy()] = 0
    with pytest.raises(TypeError):
        seen.provenance["dtype"] = "float8"
    with pytest.raises(FrozenInstanceError):
        seen.card = None


def test_a_capture_is_not_changed_from_outside():
    values, provenance = {Entropy(): np.zeros(3)}, {"dtype": "float32"}
    seen = Capture(tiny("llama").card, random_prompts(), values, provenance)
    values.clear()
    provenance.clear()
    assert (seen[Entropy()].tolist(), dict(seen.provenance)) == ([0, 0, 0], {"dtype": "float32"})


def test_a_read_that_was_not_made_is_refused_with_those_that_were():
    seen = capture(tiny("llama"), random_prompts(), [Mass(first=4), Entropy()])
    with pytest.raises(
        InputError, match=r"^Peak\(rows=None\) was not read in this capture; it has: Mass\(first=4, .*\), Entropy\(rows=None, relative=False\)$"
    ):
        seen[Peak()]
    with pytest.raises(InputError, match=r"it has: nothing$"):
        capture(tiny("llama"), random_prompts(), [])[Peak()]


def test_provenance_says_how_it_was_made():
    edit = Ablate((Head(0, 1),), "uniform", "decode")
    seen = capture(tiny("llama"), random_prompts(), [], [edit])
    assert dict(seen.provenance) == {"implementation": "torch", "dtype": "float32", "device": "cpu", "edits": [edit.describe()]}
    for name in ("reference", "torch"):
        assert capture(tiny("llama"), random_prompts(), [], implementation=name).provenance["implementation"] == name
    assert seen.card == tiny("llama").card
    assert capture(random_model("llama", dtype=torch.bfloat16), random_prompts(), []).provenance["dtype"] == "bfloat16"


def test_texts_are_tokenised():
    model = tiny("llama")
    seen = capture(model, ["abc", "xyz"], [NextToken()])
    np.testing.assert_array_equal(seen.prompts.ids_BT, [model.tokenizer(text)["input_ids"] for text in ("abc", "xyz")])
    np.testing.assert_array_equal(seen[NextToken()].choice, eager(model, seen.prompts.ids_BT).logits.argmax(-1))
    assert capture(model, "abc", [Entropy()])[Entropy()].shape == (1, 2, 6, 4)


def test_reads_follow_the_prompts_rows_in_the_next_token_too():
    """Rows in any order, with repetition, and at both ends."""
    prompts = random_prompts(2, 9, rows={"ends": np.array([[8, 0], [0, 0]]), "last": np.array([[8], [8]])})
    seen = capture(tiny("llama"), prompts, [NextToken("ends"), NextToken("last")])
    choice = eager(tiny("llama"), prompts.ids_BT).logits.argmax(-1)
    np.testing.assert_array_equal(seen[NextToken("ends")].choice, [[choice[0, 8], choice[0, 0]], [choice[1, 0], choice[1, 0]]])
    np.testing.assert_array_equal(np.isnan(seen[NextToken("ends")].logprob), [[True, False], [False, False]])
    np.testing.assert_array_equal(seen[NextToken("last")].choice, choice[:, 8:])
    log_BTV = eager(tiny("llama"), prompts.ids_BT).logits.log_softmax(-1)
    expected = [[log_BTV[b, row, prompts.ids_BT[b, row + 1]] for row in range(8)] for b in range(2)]
    np.testing.assert_allclose(capture(tiny("llama"), prompts, [NextToken()])[NextToken()].logprob[:, :8], expected, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- what is held, and how often


@dataclass(frozen=True)
class Watch(Entropy):
    """A read that remembers which patterns it was shown; `Watch.shown` is emptied by the tests."""

    def reference(self, view):
        Watch.shown.append((tuple(view.pattern_BHRK.shape), weakref.ref(view.pattern_BHRK)))
        return super().reference(view)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(Watch, "shown", [], raising=False)
    return Watch.shown


@pytest.mark.parametrize(("architecture", "group", "kv_heads"), [("llama", 3, 2), ("gpt2", 1, 4), ("qwen2", 4, 1)])
def test_reads_are_shown_one_kv_head_at_a_time_and_their_rows_only(architecture, group, kv_heads, watched):
    prompts = random_prompts(2, rows={"some": np.array([[3, 9, 4], [0, 1, 2]])})
    capture(tiny(architecture), prompts, [Watch(), Watch("some")], implementation="reference")
    assert Counter(shape for shape, _ in watched) == {(2, group, 20, 20): 2 * kv_heads, (2, group, 3, 20): 2 * kv_heads}


@pytest.mark.parametrize("edits", [[], [Ablate((Head(0, 0), Head(1, 5)), "uniform")]])
def test_no_two_patterns_are_ever_held(monkeypatch, watched, edits):
    alive, whole = [], implementations.Reference._pattern

    def pattern(*args):
        alive.append(sum(held() is not None for _, held in watched))
        made, lse = whole(*args)
        watched.append((tuple(made.shape), weakref.ref(made)))
        return made, lse

    monkeypatch.setattr(implementations.Reference, "_pattern", staticmethod(pattern))
    capture(tiny("llama"), random_prompts(2), [Entropy(), Received()], edits, implementation="reference")
    assert len(alive) >= 4
    assert not any(alive)


def test_every_layer_is_visited_once(monkeypatch):
    taps = []
    monkeypatch.setattr(passes, "Tap", lambda *args, **more: taps.append(Tap(*args, **more)) or taps[-1])
    for architecture in ("llama", "gpt2"):
        capture(tiny(architecture), random_prompts(), ALL[:1])
    capture(random_model("llama", num_hidden_layers=3), random_prompts(), [])
    assert [tap.calls for tap in taps] == [2, 2, 3]


def test_the_same_question_gives_the_same_bits():
    prompts = random_prompts(3, **PLACES)
    for one, two in zip(*(capture(tiny("llama"), prompts, ALL).values.values() for _ in range(2)), strict=True):
        for a, b in zip(fields(one), fields(two), strict=True):
            np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("length", "fits"), [(12, True), (13, False)])
def test_prompts_longer_than_the_learned_positions_are_refused(length, fits):
    model = random_model("gpt2", n_positions=12)
    if fits:
        assert capture(model, random_prompts(1, length), [Entropy()])[Entropy()].shape[-1] == length
    else:
        with pytest.raises(InputError, match=r"^13 tokens do not fit tiny-gpt2, which has 12 learned positions$"):
            capture(model, random_prompts(1, length), [])


@pytest.mark.parametrize("bad", [260, -1])
def test_ids_that_the_model_does_not_know_are_refused(bad):
    with pytest.raises(InputError, match=f"token id {bad} .* 260"):
        capture(tiny("llama"), Prompts(np.array([[5, bad, 7]])), [])


@pytest.mark.parametrize(("room", "fits"), [(0, True), (1, False)])
def test_a_whole_pattern_that_is_too_large_is_refused_before_it_is_made(monkeypatch, room, fits):
    size = 4 * 2 * 2 * 6 * 20 * 20  # float32, two prompts, two layers, six heads, twenty tokens
    monkeypatch.setattr(passes, "LARGEST_PATTERN", size - room)
    if fits:
        assert capture(tiny("llama"), random_prompts(), [Pattern()])[Pattern()].nbytes == size
    else:
        with pytest.raises(InputError, match=r"^Pattern\(\) of 20 tokens takes 0\.0 GiB; name the rows, Pattern\(rows=\.\.\.\)"):
            capture(tiny("llama"), random_prompts(), [Entropy(), Pattern()])
        capture(tiny("llama"), random_prompts(), [Entropy()])


def test_the_largest_pattern_is_four_gibibytes():
    model = tiny("llama")
    with pytest.raises(InputError, match=r"Pattern\(\) of 4096 tokens takes 4\.5 GiB"):
        capture(model, random_prompts(6, 4096), [Pattern()])  # 4 × 6 × 2 × 6 × 4096² bytes
    assert passes.LARGEST_PATTERN == 4 * 2**30


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: Can't allocate memory: you tried to allocate 1 byte"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("run", [capture, generate])
def test_running_out_of_memory_says_what_lowers_it(monkeypatch, run, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(Tap, "__call__", fail)
    message = r"^out of memory.*: 1 × 4096 tokens take about 0\.56 GiB for the probabilities of one KV head.*--implementation torch or triton.*--lengths"
    model = HFModel("x", "x", random_model("llama", max_position_embeddings=5000).hf)
    with pytest.raises(InputError, match=message) as caught:  # 4 × 3 heads × 4096² × 3 bytes
        run(model, random_prompts(1, 4096), [], implementation="reference")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("something else"), ValueError("can't allocate memory")])
def test_other_errors_pass_through(monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(Tap, "__call__", fail)
    with pytest.raises(type(error)) as caught:
        capture(tiny("llama"), random_prompts(), [])
    assert caught.value is error


def test_the_reference_without_a_mask_is_an_error_and_no_silence():
    """An attention name without a mask function gets none, without a word; the other implementations need none."""
    x, module = torch.ones(1, 1, 1, 1), nn.Module()
    module.workbench_tap = (0, Tap(random_prompts(1, 1), [], implementation="reference"))
    with pytest.raises(RuntimeError, match=r"^the model gave its attention no mask: the workbench's mask function was not used$"):
        attention._attention(module, x, x, x, None, 1.0)
    module.workbench_tap = (0, Tap(random_prompts(1, 1), [], implementation="torch"))
    assert torch.equal(attention._attention(module, x, x, x, None, 1.0)[0], x)


@pytest.mark.parametrize("scaling", [None, 0.0, -0.5])
def test_an_attention_that_scales_in_an_unknown_way_is_an_error(scaling):
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(RuntimeError, match=f"the model scales its attention scores by {scaling}, which the workbench does not know"):
        attention._attention(nn.Module(), x, x, x, x.bool(), scaling)


def test_outputs_whose_sum_half_precision_cannot_hold_are_finite():
    x, module = torch.full((1, 1, 100, 8), 200.0, dtype=torch.float16), nn.Module()  # they sum to 160,000; the largest float16 is 65,504
    module.workbench_tap = (0, Tap(random_prompts(1, 100), [], implementation="torch"))
    assert attention._attention(module, x, x, x, None, 1.0)[1].values("m", 0) == {}


def test_learned_sinks_are_refused():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(InputError, match=r"^attention with learned sink logits is not supported: its rows do not sum to 1$"):
        attention._attention(nn.Module(), x, x, x, x.bool(), 1.0, s_aux=x)


@pytest.mark.parametrize("shape", [(2, 1, 1, 20), (1, 1, 1, 20, 20), (2, 1, 1, 19, 20), (2, 1, 1, 20, 19), (2, 1, 1, 21, 21)])
def test_patterns_that_do_not_fit_the_prompts_are_refused(shape):
    with pytest.raises(InputError, match=r"patterns of shape .* for 2 prompts of 20 tokens") as caught:
        from_patterns(tiny("llama").card, random_prompts(), np.zeros(shape), [])
    assert str(shape) in str(caught.value)


def test_given_patterns_are_marked_as_such():
    seen = from_patterns(tiny("llama").card, random_prompts(), np.zeros((2, 1, 5, 20, 20)), [Entropy()])
    assert dict(seen.provenance) == {"implementation": "given patterns"}
    assert seen[Entropy()].shape == (2, 1, 5, 20)
    assert seen[Entropy()].dtype == np.float32


# -------------------------------------------------------------------------------------------------------------------- generation

ANSWER = [
    *(Mass(first=2, rows="answer"), Mass(last=3, rows="answer"), Mass(span="needle", rows="answer"), Mass(at="previous", rows="answer")),
    *(Mass(at="duplicate", rows="answer"), Mass(at="induction", rows="answer"), TopMass("needle", "answer")),
    *(Entropy("answer"), Entropy("answer", relative=True), Peak("answer")),
]


def question(seed: int = 1, length: int = 20) -> Prompts:
    return random_prompts(1, length, seed=seed, spans={"needle": np.array([[3, 7]])}, facts=({"depth": 0.5},))


def without_end(architecture: str) -> HFModel:
    """A model whose generation only `stop` and `max_new_tokens` end."""
    return HFModel("x", "x", tiny(architecture).hf)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_huggingface_greedy_decoding(architecture):
    model, prompts = tiny(architecture), question()
    with model.attention("eager") as hf, torch.no_grad():
        ids = torch.tensor(prompts.ids_BT)
        expected = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    np.testing.assert_array_equal(generate(model, prompts, [], max_new_tokens=12).prompts.ids_BT, expected)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", *WINDOWED])
def test_a_generation_reads_what_a_teacher_forced_pass_reads_at_the_answer(architecture):
    model = without_end(architecture)
    seen = generate(model, question(), ANSWER, max_new_tokens=6)
    forced = capture(model, seen.prompts, ANSWER)
    for read in ANSWER:
        for one, other in zip(fields(seen[read]), fields(forced[read]), strict=True):
            assert one.shape == (1, 2, model.shape.n_heads, 6)
            np.testing.assert_allclose(one, other, atol=1e-4, err_msg=str(read))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "uniform"])
def test_an_edited_generation_is_the_edited_teacher_forced_pass(kind, phase):
    model = without_end("gemma2")
    z = capture(model, random_prompts(3, 6, seed=5), [HeadOutput()])[HeadOutput()]
    edit = Ablate((Head(0, 1), Head(1, 2)), kind, phase, Reference(z) if kind in ("mean", "resample") else None)
    seen = generate(model, question(), ANSWER, max_new_tokens=5, edits=[edit])
    forced = capture(model, seen.prompts, [*ANSWER, NextToken("answer")], [edit])
    assert seen.provenance["edits"] == [edit.describe()]
    np.testing.assert_array_equal(forced[NextToken("answer")].choice[0], seen.prompts.ids_BT[0, 20:])
    for read in ANSWER:
        for one, other in zip(fields(seen[read]), fields(forced[read]), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4, err_msg=str(read))


def test_equal_tokens_of_an_answer_are_found_by_the_match_ids():
    """The control's ids for the prompt; the answer's tokens go by their own."""
    model = without_end("llama")
    prompts = Prompts(question().ids_BT, match=random_ids(1, 20, seed=8) % 3)
    seen = generate(model, prompts, [Mass(at="duplicate", rows="answer")], max_new_tokens=4)
    np.testing.assert_array_equal(seen.prompts.match_BT, np.concatenate([prompts.match_BT, seen.prompts.ids_BT[:, 20:]], 1))
    forced = capture(model, seen.prompts, [Mass(at="duplicate", rows="answer")])
    np.testing.assert_allclose(*(made[Mass(at="duplicate", rows="answer")] for made in (seen, forced)), atol=1e-4)


def test_the_answer_lies_behind_the_prompt():
    seen = generate(without_end("llama"), question(), [], max_new_tokens=3).prompts
    np.testing.assert_array_equal(seen.ids_BT[:, :20], question().ids_BT)
    np.testing.assert_array_equal(seen.rows["answer"], [[19, 20, 21]])
    np.testing.assert_array_equal(seen.spans["needle"], [[3, 7]])
    assert (seen.length, seen.prefilled) == (23, 19)
    assert seen.facts == ({"depth": 0.5, "response": ""},)


def test_a_response_is_the_decoded_answer():
    model = tiny("llama")
    seen = generate(model, random_prompts(1, 5), [], max_new_tokens=4).prompts
    assert seen.facts == ({"response": model.tokenizer.decode(seen.ids_BT[0, 5:], skip_special_tokens=True)},)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_generation_ends_after_the_given_number_of_tokens(tokens):
    assert generate(without_end("llama"), question(), [], max_new_tokens=tokens).prompts.length == 20 + tokens


def test_fifty_tokens_are_made_unless_told_otherwise():
    assert generate(without_end("gpt2"), random_prompts(1, 2), []).prompts.length == 52


class Choosing(nn.Module):
    """A tokenizer's end-of-sequence id put where the model's third choice is."""

    def __init__(self, model, end):
        super().__init__()
        self.eos_token_id, self.decode = end, model.tokenizer.decode


@pytest.mark.parametrize("place", [0, 2])
def test_generation_ends_at_the_end_of_sequence(place):
    free = generate(without_end("llama"), question(), [], max_new_tokens=6).prompts.ids_BT[0, 20:].tolist()
    end = free[place]
    model = HFModel("x", "x", tiny("llama").hf, Choosing(tiny("llama"), end))
    assert generate(model, question(), [], max_new_tokens=6).prompts.ids_BT[0, 20:].tolist() == free[: free.index(end) + 1]


def test_generation_ends_when_the_text_so_far_says_so():
    heard = []
    model = tiny("llama")
    seen = generate(model, question(), [Entropy("answer")], max_new_tokens=9, stop=lambda text: heard.append(text) or len(heard) == 3)
    assert seen[Entropy("answer")].shape[-1] == 3
    assert heard == [model.tokenizer.decode(seen.prompts.ids_BT[0, 20:][: n + 1]) for n in range(3)]


def test_a_generation_is_prefilled_but_for_the_last_token(monkeypatch):
    """What is fed: T − 1 tokens at once, then one at a time; each pass sees all keys so far, whatever the window."""
    fed, whole = [], Tap.__call__
    monkeypatch.setattr(Tap, "__call__", lambda self, layer, q, k, *rest: fed.append((layer, q.shape[2], k.shape[2])) or whole(self, layer, q, k, *rest))
    generate(without_end("mistral"), question(), [Entropy("answer")], max_new_tokens=3)
    assert fed == [(layer, *size) for size in ((19, 19), (1, 20), (1, 21), (1, 22)) for layer in (0, 1)]


def test_a_generation_feeds_what_lies_where_the_model_is_and_asks_for_one_row_of_logits(monkeypatch):
    """The device that tensors are made on unless told otherwise is another one, on which nothing can be computed; but for the model itself."""
    model, asked, reads = without_end("llama"), [], [Entropy("answer"), Peak("answer")]
    want = generate(model, question(), reads, max_new_tokens=3, chunk=8)

    @contextmanager
    def at_home(*args):
        with attention.tapped(*args) as hf:

            def forward(ids_BT, **more):
                asked.append((ids_BT.shape[1], more["logits_to_keep"], more["use_cache"]))
                with torch.device("cpu"):
                    return hf(ids_BT, **more)

            yield forward

    monkeypatch.setattr(captures, "tapped", at_home)
    with torch.device("meta"):
        seen = generate(model, question(), reads, max_new_tokens=3, chunk=8)
    np.testing.assert_array_equal(seen.prompts.ids_BT, want.prompts.ids_BT)
    np.testing.assert_array_equal(seen[reads[0]], want[reads[0]])
    assert asked == [(size, 1, True) for size in (8, 8, 3, 1, 1, 1)]


@pytest.mark.parametrize("chunk", [1, 7, 18, 19, 100])
@pytest.mark.parametrize("phase", PHASES)
def test_a_prompt_that_is_prefilled_in_chunks_gets_the_same_answer(phase, chunk):
    """With a window, and heads of which the edits change queries and outputs."""
    model, edits = without_end("gemma2"), [Ablate((Head(0, 1),), "uniform", phase), Ablate((Head(1, 0),), "zero", phase)]
    whole, pieces = (generate(model, question(), ANSWER, max_new_tokens=3, edits=edits, chunk=size) for size in (None, chunk))
    np.testing.assert_array_equal(pieces.prompts.ids_BT, whole.prompts.ids_BT)
    for read in ANSWER:
        for one, other in zip(fields(pieces[read]), fields(whole[read]), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5, err_msg=str(read))


@pytest.mark.parametrize("settings", [{"chunk": 0}, {"chunk": -1, "implementation": "torch"}, {"chunk": 4, "implementation": "reference"}])
def test_a_generation_refuses_chunks_of_nothing_and_of_the_reference(settings):
    with pytest.raises(InputError) as caught:
        generate(tiny("llama"), question(), [], **settings)
    assert str(caught.value) == "a chunk has at least one token, and the reference implementation makes none; use torch or triton"


@pytest.mark.parametrize("run", [capture, generate])
def test_an_implementation_is_chosen_for_the_device_the_length_and_the_size_of_heads(monkeypatch, run):
    asked = []
    monkeypatch.setattr(captures, "choose", lambda *all_of_it: asked.append(all_of_it) or "torch")
    seen = run(tiny("qwen3"), random_prompts(1, 9), [])
    assert asked == [("auto", torch.device("cpu"), 9, 12)]
    assert dict(seen.provenance) == {"implementation": "torch", "dtype": "float32", "device": "cpu", "edits": []}
    assert seen.card == tiny("qwen3").card


def test_a_generation_out_of_memory_names_a_smaller_chunk(monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(Tap, "__call__", fail)
    with pytest.raises(
        InputError, match=r"^out of memory: 1 × 8 tokens take about 0\.00 GiB for one layer's activations, beside the weights; use --chunk 2, or --"
    ):
        generate(tiny("llama"), question(), [], chunk=8)


class Saying(nn.Module):
    """A tokenizer that says how it was asked."""

    def decode(self, ids, skip_special_tokens=False):
        return f"{len(ids)} tokens, {'without' if skip_special_tokens else 'with'} special ones"


def test_a_response_leaves_special_tokens_out():
    heard, model = [], HFModel("x", "x", tiny("llama").hf, Saying())
    seen = generate(model, question(), [], max_new_tokens=2, stop=lambda text: bool(heard.append(text)))
    assert seen.prompts.facts == ({"depth": 0.5, "response": "2 tokens, without special ones"},)
    assert heard == ["1 tokens, with special ones", "2 tokens, with special ones"]


def test_decoding_edits_do_not_reach_the_prefilled_rows():
    """Keys and values of the prompt are those of the unedited model, so the first answer row differs from its own edits only."""
    model, read = without_end("llama"), Peak("answer")
    clean, edited = (generate(model, question(), [read], max_new_tokens=1, edits=edits)[read] for edits in ([], [Ablate((Head(0, 2),), "zero", "decode")]))
    np.testing.assert_array_equal(edited.prob[:, 0], clean.prob[:, 0])
    prefill = generate(model, question(), [read], max_new_tokens=1, edits=[Ablate((Head(0, 2),), "zero", "prefill")])[read]
    assert not np.allclose(prefill.prob[:, 1], clean.prob[:, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [(random_prompts(2), 5), (random_prompts(1, 1), 5), (random_prompts(1, 2), 0), (random_prompts(1, 4, padding=np.array([1])), 5)],
)
def test_generation_takes_one_prompt_of_two_tokens_and_makes_one(prompts, tokens):
    with pytest.raises(InputError, match=r"^generation takes one prompt of at least two tokens at a time, without padding, and makes at least one token$"):
        generate(tiny("llama"), prompts, [], max_new_tokens=tokens)


@pytest.mark.parametrize("read", [Entropy(), Mass(first=1, rows="some"), Received(rows="answer"), Pattern("answer"), HeadOutput("answer"), BlockMap(4)])
def test_reads_that_do_not_fit_a_generation_are_refused(read):
    with pytest.raises(InputError, match="while generating, only reads that give a number per row, at the rows 'answer', can be made; not ") as caught:
        generate(tiny("llama"), question(), [Entropy("answer"), read])
    assert str(caught.value).endswith(str(read))


@pytest.mark.parametrize(("tokens", "fits"), [(4, True), (5, False)])
def test_an_answer_beyond_the_learned_positions_is_refused(tokens, fits):
    model = HFModel("name", "x", random_model("gpt2", n_positions=24).hf)
    if fits:
        assert generate(model, question(), [], max_new_tokens=tokens).prompts.length == 24
    else:
        with pytest.raises(InputError, match=r"^25 tokens do not fit name, which has 24 learned positions$"):
            generate(model, question(), [], max_new_tokens=tokens)


def test_a_head_that_the_model_lacks_is_refused_while_generating():
    with pytest.raises(InputError, match="no head L7H0 in a model"):
        generate(tiny("llama"), question(), [], edits=[Ablate((Head(7, 0),))])


def test_a_generation_leaves_no_trace():
    model = random_model("llama")
    before = model.hf(torch.tensor(question().ids_BT)).logits
    generate(model, question(), ANSWER, max_new_tokens=3, edits=[Ablate((Head(0, 0),), "uniform")])
    assert torch.equal(model.hf(torch.tensor(question().ids_BT)).logits, before)
    assert model.config._attn_implementation == "sdpa"
    assert not any(hasattr(module, "workbench_tap") for module in model.hf.modules())


def test_a_capture_of_given_patterns_says_whose_they_are():
    card = tiny("llama").card
    assert from_patterns(card, random_prompts(), np.zeros((2, 1, 5, 20, 20)), [Entropy()]).card is card


def test_a_mean_over_rows_takes_one_number_per_row_and_more_than_one_sampled_row():
    seen = capture(tiny("llama"), random_prompts(2, 20), [Peak(), Entropy()], sample=2)
    with pytest.raises(InputError, match=r"gives several numbers per row: prob, key$"):
        seen.over_rows(Peak())
    with pytest.raises(InputError, match=r"^only one sampled row is left from the 10th token on; sample more rows$"):
        seen.standard_error(Entropy(), 10)
