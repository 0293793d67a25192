"""Do rows see the keys they should, relate to the right ones, and stand for all where they are sampled?"""

import numpy as np
import pytest
import torch
from eager import random_ids, random_prompts, tiny, visible
from hypothesis import given
from hypothesis import strategies as st

from workbench.captures import SAMPLES, capture
from workbench.errors import InputError
from workbench.prompts import SAMPLED, Prompts
from workbench.reads import BlockMap, Distances, Entropy, HeadOutput, LogSumExp, Mass, NextToken, Pattern, Peak, QueryKey, Received, TopMass, ValueNorm
from workbench.relations import RELATIONS
from workbench.rows import Rows, between

few_tokens = st.lists(st.integers(0, 3), min_size=1, max_size=14)


def related(relation, ids, q):
    """The keys of a relation, by its words."""
    equal = [k for k in range(q) if ids[k] == ids[q]]
    return {"previous": [q - 1] if q else [], "self": [q], "duplicate": equal, "induction": [k + 1 for k in equal if k + 1 < q]}[relation]


@st.composite
def rows_of(draw):
    """Of two prompts of few tokens: ids, asked rows, padding, which one of them has, and a window."""
    length, count = draw(st.integers(2, 14)), draw(st.integers(1, 6))
    ids = np.array([draw(st.lists(st.integers(0, 2), min_size=length, max_size=length)) for _ in range(2)])
    asked = np.array([draw(st.lists(st.integers(0, length - 1), min_size=count, max_size=count)) for _ in range(2)])
    padding = np.array([0, draw(st.integers(0, length - 1))])
    return ids, asked, padding, draw(st.none() | st.integers(1, length))


def made_of(ids, asked, padding, window) -> Rows:
    return Rows.of(Prompts(ids, padding=padding), asked, ids.shape[1], window, torch.device("cpu"))


def without_padding(rows, b):
    """The ids, those in the padding equal to no other."""
    return [-1 - k if k < rows.prompts.start_B[b] else one for k, one in enumerate(rows.prompts.ids_BT[b].tolist())]


def sees(rows, b, q, k):
    return rows.prompts.start_B[b] <= k and visible(rows.window, q, k)


@pytest.mark.parametrize("relation", RELATIONS)
@given(ids=few_tokens, data=st.data())
def test_relations_are_those_of_a_loop(relation, ids, data):
    rows = sorted(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=6)))
    row_P, key_P = RELATIONS[relation](torch.tensor(ids), torch.tensor(rows, dtype=torch.int64))
    assert sorted(row_P.tolist()) == row_P.tolist()
    assert sorted(zip(row_P.tolist(), key_P.tolist(), strict=True)) == [(r, k) for r, q in enumerate(rows) for k in related(relation, ids, q)]


@given(rows_of())
def test_rows_are_sorted_and_keys_are_counted_as_in_a_loop(drawn):
    rows = made_of(*drawn)
    np.testing.assert_array_equal(rows.pos_BR, np.sort(drawn[1], axis=1))
    assert (rows.keys, rows.window) == (drawn[0].shape[1], drawn[3])
    for b in range(2):
        for r, q in enumerate(rows.pos_BR[b].tolist()):
            seen = [k for k in range(rows.keys) if sees(rows, b, q, k)]
            assert rows.visible_BR[b, r] == len(seen)
            assert not seen or rows.low_BR[b, r] == seen[0]
        counts = [sum(sees(rows, b, q, k) for q in rows.pos_BR[b].tolist()) for k in range(rows.keys)]
        assert rows.seen_BK[b].tolist() == counts


def test_rows_lie_on_the_device_that_was_asked_for():
    for name in ("cpu", "meta"):
        assert Rows.of(random_prompts(), np.array([[3, 1], [0, 2]]), 20, None, torch.device(name)).pos_BR.device.type == name


@pytest.mark.parametrize("relation", RELATIONS)
@given(rows_of())
def test_related_keys_are_visible_and_outside_of_the_ranges_left_out(relation, drawn):
    rows = made_of(*drawn)
    without = (rows.first(1), rows.last(2))
    for left_out in ((), without):
        pairs = rows.related(relation, left_out)
        expected = {
            (b, r, k)
            for b in range(2)
            for r, q in enumerate(rows.pos_BR[b].tolist())
            for k in related(relation, without_padding(rows, b), q)
            if sees(rows, b, q, k) and not (left_out and (k == rows.prompts.start_B[b] or q - k < 2))
        }
        found = list(zip(pairs.batch_P.tolist(), pairs.row_P.tolist(), pairs.key_P.tolist(), strict=True))
        assert set(found) == expected
        assert len(found) == len(expected)


@given(rows_of(), st.integers(0, 16), st.integers(0, 16))
def test_ranges_hold_visible_keys_only(drawn, few, more):
    rows = made_of(*drawn)
    wanted = {
        rows.first(few): lambda b, q, k: k < rows.prompts.start_B[b] + few,
        rows.last(few): lambda b, q, k: q - k < few,
        rows.between(few, few + more): lambda b, q, k: few <= q - k < few + more,
    }
    for keys, inside in wanted.items():
        mask_BRK = rows.mask(keys)
        for b in range(2):
            for r, q in enumerate(rows.pos_BR[b].tolist()):
                assert mask_BRK[b, r].tolist() == [sees(rows, b, q, k) and bool(inside(b, q, k)) for k in range(rows.keys)]


def test_positions_in_a_chunk_must_be_equally_many():
    np.testing.assert_array_equal(between(np.array([[9, 1, 4], [3, 8, 0]]), 3, 6), [[4], [3]])
    with pytest.raises(InputError, match="unequally many of the rows among the tokens 3 to 6"):
        between(np.array([[9, 1, 4], [3, 4, 0]]), 3, 6)
    uneven = random_prompts(rows={"some": np.array([[1, 2], [1, 12]])})  # in chunks prompts go one by one, so that these may be
    seen, whole = (capture(tiny("llama"), uneven, [Entropy("some")], chunk=chunk)[Entropy("some")] for chunk in (10, None))
    np.testing.assert_allclose(seen, whole, atol=2e-5)


# ------------------------------------------------------------------------------------------------------------------------- samples

READS = [
    *(Mass(last=2), Mass(at="duplicate"), TopMass("needle"), Entropy(), Entropy(relative=True), Peak(), LogSumExp(), Distances()),
    *(
        Received(),
        Received("max"),
        Mass(first=1, rows="some"),
        Entropy("some"),
        BlockMap(8),
        HeadOutput(),
        QueryKey(),
        ValueNorm(),
        NextToken(),
        Pattern("some"),
    ),
]


def prompts_of(padding=None, length: int = 40) -> Prompts:
    places = {"needle": np.array([[20, 25], [30, 31]])}, {"some": np.array([[39, 22], [25, 25]])}
    return Prompts(random_ids(2, length) % 7 + 3, *places, padding=padding)


@given(st.integers(2, 60), st.integers(0, 40), st.data())
def test_sampled_rows_are_the_middles_of_equal_stretches(length, start, data):
    start = min(start, length - 2)
    count = data.draw(st.integers(2, length - start))
    prompts = Prompts(np.ones((2, length), np.int64), rows={"some": np.array([[0], [1]])}, padding=np.array([0, start]))
    sampled = prompts.with_sampled_rows(count)
    for row_R, first in zip(sampled.rows[SAMPLED], (0, start), strict=True):
        assert len(row_R) == count
        assert row_R.tolist() == [first + (2 * place + 1) * (length - first) // (2 * count) for place in range(count)]
        assert first <= row_R[0]
        assert row_R[-1] < length
        steps = np.diff(row_R)
        assert set(steps) <= {(length - first) // count, -(-(length - first) // count)}
        assert steps.min() >= 1
    assert set(sampled.rows) == {"some", SAMPLED}
    assert set(prompts.rows) == {"some"}


@pytest.mark.parametrize("count", [-1, 0, 1, 21])
def test_fewer_than_two_or_more_than_all_rows_cannot_be_sampled(count):
    with pytest.raises(InputError, match=f"^{count} rows cannot be sampled from 20; take 2 or more, up to all"):
        random_prompts(1, 25, padding=np.array([5])).with_sampled_rows(count)


@pytest.mark.parametrize("count", [-1, 0, 1])
def test_a_capture_refuses_such_samples_too(count):
    with pytest.raises(InputError, match=f"^{count} rows cannot be sampled from 20"):
        capture(tiny("llama"), random_prompts(), [Entropy()], sample=count)


@pytest.mark.parametrize("padding", [None, np.array([0, 16])], ids=["whole", "padded"])
@pytest.mark.parametrize("way", [{"implementation": "reference"}, {}, {"chunk": 11}], ids=["reference", "torch", "chunked"])
def test_a_sample_gives_the_rows_of_the_whole(way, padding):
    prompts = prompts_of(padding)
    seen, whole = capture(tiny("gemma2"), prompts, READS, sample=7, **way), capture(tiny("gemma2"), prompts, READS, **way)
    row_BR = seen.prompts.rows[SAMPLED]
    assert dict(seen.provenance)["rows"] == {"sampled": 7, "of": 40}
    assert "rows" not in whole.provenance
    assert seen.sampled == {read for read in READS if isinstance(read, SAMPLES) and read.rows is None}
    for read in READS:
        for one, other in zip(*((made[read] if isinstance(made[read], tuple) else (made[read],)) for made in (seen, whole)), strict=True):
            picked = np.stack([other[b][:, :, row_BR[b]] for b in range(2)]) if isinstance(read, SAMPLES) and read.rows is None else other
            np.testing.assert_allclose(one, picked, atol=2e-5, err_msg=str(read))


@pytest.mark.parametrize("count", [40, 41, 10**6])
def test_a_sample_of_all_rows_is_no_sample(count):
    seen, whole = capture(tiny("llama"), prompts_of(), [Entropy()], sample=count), capture(tiny("llama"), prompts_of(), [Entropy()])
    np.testing.assert_array_equal(seen[Entropy()], whole[Entropy()])
    assert not seen.sampled
    assert dict(seen.provenance) == dict(whole.provenance)
    assert not seen.standard_error(Entropy()).any()


@pytest.mark.parametrize(("count", "fewer"), [(23, True), (24, False), (25, False), (60, False)])
def test_of_padded_prompts_the_padding_is_not_sampled(count, fewer):
    seen = capture(tiny("llama"), prompts_of(np.array([16, 16])), [Entropy()], sample=count)
    assert seen.sampled == ({Entropy()} if fewer else set())
    assert seen[Entropy()].shape[-1] == (23 if fewer else 40)


@pytest.mark.parametrize("skip", [0, 1, 9])
def test_means_and_standard_errors_by_hand(skip):
    prompts = prompts_of()
    whole = capture(tiny("llama"), prompts, [Entropy(), Mass(first=1, rows="some")])
    np.testing.assert_allclose(whole.over_rows(Entropy(), skip), whole[Entropy()][..., skip:].mean(-1), atol=1e-6)
    assert not whole.standard_error(Entropy(), skip).any()
    seen = capture(tiny("llama"), prompts, [Entropy(), Mass(first=1, rows="some")], sample=8)
    kept = [place for place, row in enumerate(seen.prompts.rows[SAMPLED][0]) if row >= skip]
    value = seen[Entropy()][..., kept].astype(float)
    n, N = len(kept), 40 - skip
    spread = np.sqrt(((value - value.mean(-1, keepdims=True)) ** 2).sum(-1) / (n - 1))
    np.testing.assert_allclose(seen.over_rows(Entropy(), skip), value.mean(-1), atol=1e-6)
    np.testing.assert_allclose(seen.standard_error(Entropy(), skip), spread / n**0.5 * (1 - n / N) ** 0.5, atol=1e-9)
    named = Mass(first=1, rows="some")  # all its rows were read, in the sample too
    np.testing.assert_allclose(seen.over_rows(named), whole[named].mean(-1), atol=1e-6)
    assert not seen.standard_error(named).any()


def test_standard_errors_of_padded_prompts_count_their_own_rows():
    """Of 24 rows each: 12 are read, 10 of them behind the fourth."""
    seen = capture(tiny("llama"), prompts_of(np.array([16, 16])), [Entropy()], sample=12)
    value = seen[Entropy()].astype(float)
    np.testing.assert_allclose(seen.standard_error(Entropy()), value.std(-1, ddof=1) / 12**0.5 * (1 - 12 / 24) ** 0.5, atol=1e-9)
    np.testing.assert_allclose(seen.standard_error(Entropy(), 4), value[..., 2:].std(-1, ddof=1) / 10**0.5 * (1 - 10 / 20) ** 0.5, atol=1e-9)
    whole = capture(tiny("llama"), prompts_of(np.array([16, 16])), [Entropy()])
    np.testing.assert_array_equal(whole.standard_error(Entropy()), np.zeros((2, 2, 6)))


def test_the_mean_of_all_rows_lies_within_four_standard_errors():
    prompts, reads = random_prompts(4, 200), [Mass(last=64), Entropy(), Entropy(relative=True), LogSumExp()]  # spread over all rows; not rare spikes
    seen, whole = capture(tiny("llama"), prompts, reads, sample=40), capture(tiny("llama"), prompts, reads)
    for read in reads:
        error = seen.standard_error(read, 1)
        assert (error > 0).all()
        assert (np.abs(seen.over_rows(read, 1) - whole.over_rows(read, 1)) <= 4 * error).all()


def test_means_do_not_count_the_padding():
    padded, reads = prompts_of(np.array([16, 16])), [Entropy(), Mass(last=2)]
    seen = capture(tiny("gpt2"), padded, reads)
    alone = capture(tiny("gpt2"), Prompts(padded.ids_BT[:, 16:]), reads)
    for read in reads:
        np.testing.assert_allclose(seen.over_rows(read, 3), alone.over_rows(read, 3), atol=2e-5)


@pytest.mark.parametrize("read", [Distances(), Received(), Pattern(), HeadOutput()])
def test_only_reads_with_a_number_per_row_have_a_mean(read):
    with pytest.raises(InputError, match="gives no number per row") as caught:
        capture(tiny("llama"), random_prompts(), [read]).over_rows(read)
    assert str(read) in str(caught.value)


def test_prompts_without_rows_or_with_unequally_many_have_no_mean():
    with pytest.raises(InputError, match=r"the prompts have \[0\] rows from the 20th token on"):
        capture(tiny("llama"), random_prompts(), [Entropy()]).over_rows(Entropy(), 20)
    with pytest.raises(InputError, match=r"the prompts have \[24, 40\] rows from the 0th token on; take prompts of one length"):
        capture(tiny("llama"), prompts_of(np.array([0, 16])), [Entropy()]).over_rows(Entropy())
