"""Are the statistics that are computed without the pattern those of the pattern? Both implementations against float64."""

import os
from dataclasses import replace
from functools import reduce
from operator import or_

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import between, local, misses, previous, probabilities, sees_something, sink

from workbench.errors import InputError
from workbench.ops import blocked, singles
from workbench.ops.inputs import Attention, Pairs, Wanted

DEVICE = "cuda" if torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] != "1" else "cpu"
BF16, FP32 = torch.bfloat16, torch.float32
EDGES = (1, 4, 63, 64, 65)


def poisoned(*size, **how):
    return torch.empty(*size, **how).fill_(torch.nan)


def mend_bfloat16(monkeypatch):
    """Triton's interpreter keeps bfloat16 as bits: tl.dot multiplies these as integers, and rounding cuts them off. Here both are as on a GPU."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def mended_dot(self, a, b, *rest):
        return dot(self, *(mended_cast(self, x, tl.float32) for x in (a, b)), *rest)

    def mended_cast(self, src, dst_type):
        match src.dtype.scalar, dst_type.scalar:
            case tl.float32, tl.bfloat16:
                return TensorHandle(torch.from_numpy(src.data).bfloat16().view(torch.uint16).numpy(), tl.bfloat16)
            case tl.bfloat16, tl.float32:
                return TensorHandle(torch.from_numpy(src.data).view(torch.bfloat16).float().numpy(), tl.float32)
        return cast(self, src, dst_type)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", mended_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", mended_cast)


@pytest.fixture
def streaming(monkeypatch):
    pytest.importorskip("triton")
    from workbench.ops import streaming

    monkeypatch.setattr(streaming, "empty", poisoned)
    if DEVICE == "cpu":
        mend_bfloat16(monkeypatch)
    with np.errstate(divide="ignore", invalid="ignore"):  # the interpreter's, where a row sees nothing
        yield streaming


@pytest.fixture(params=["torch", "triton"])
def kernels(request):
    return blocked if request.param == "torch" else request.getfixturevalue("streaming")


def attention(length, *, rows=None, pos=None, start=None, heads=(1, 1), size=64, batch=1, dtype=FP32, seed=0, **more):
    """Random vectors, laid out as models do it, with NaN in the memory around them. `rows` counts the last ones; `heads` are KV heads and their group."""
    noise = torch.Generator().manual_seed(seed)

    def vectors(count, number):
        around = torch.full((batch, number + 1, count, size + 16), torch.nan, dtype=dtype)
        around[:, :number, :, :size] = torch.randn(batch, number, count, size, generator=noise)
        return around.to(DEVICE)[:, :number, :, :size].transpose(1, 2)

    pos_BR = torch.arange(length - (rows or length), length).expand(batch, -1) if pos is None else torch.tensor(pos)
    start_B = torch.tensor(start or [0] * batch, device=DEVICE, dtype=torch.int32)
    q, k, v = vectors(heads[0] * heads[1], pos_BR.shape[1]), vectors(heads[0], length), vectors(heads[0], length)
    return Attention(q, k, v, pos_BR.int().to(DEVICE), start_B, 2 * size**-0.5, padded=start is not None, **more)


def everything(a, edge=4, maps=((32, "max"),)):
    """All statistics, with ranges that end at the edge of a tile and that begin within one. A map needs all rows."""
    ranges = {"sink": sink(a, edge), "local": local(a, edge), "middle": between(a, a.keys // 3, a.keys // 2 + 1)}
    whole = all(row == list(range(a.keys)) for row in a.pos_BR.tolist())  # not any as many rows
    return Wanted(True, True, True, True, frozenset({"sum", "max"}), frozenset(maps) if whole else frozenset(), ranges, {"previous": previous(a)})


SCATTERED = [[0, 1, 1, 62, 63, 64, 64, 65, 150, 199], [3, 63, 64, 127, 128, 129, 160, 161, 198, 198]]
CASES = {
    "1": {"length": 1, "batch": 3},
    "1 bf16": {"length": 1, "size": 256, "dtype": BF16, "window": 1},
    "2": {"length": 2, "heads": (1, 8), "size": 96, "start": [1]},
    "63": {"length": 63, "heads": (1, 7), "size": 80, "window": 63, "maps": ()},
    "64": {"length": 64, "heads": (2, 2), "size": 128, "window": 1, "edge": 64},
    "64 bf16": {"length": 64, "heads": (1, 4), "size": 128, "dtype": BF16, "softcap": 2.0, "edge": 63, "maps": ((64, "sum"),)},
    "65": {"length": 65, "size": 256, "window": 64, "batch": 3, "start": [0, 64, 33], "edge": 65},
    "65 bf16": {"length": 65, "heads": (1, 3), "size": 80, "dtype": BF16, "window": 32},
    "127": {"length": 127, "heads": (2, 1), "window": 65, "start": [3], "edge": 63},
    "127 bf16": {"length": 127, "size": 96, "dtype": BF16, "window": 63, "start": [100], "maps": ((64, "max"),)},
    "129": {"length": 129, "size": 80, "softcap": 3.0, "edge": 1, "maps": ((96, "sum"),)},
    "129 bf16": {"length": 129, "dtype": BF16, "window": 128, "edge": 65, "maps": ()},
    "1000 bf16": {"length": 1000, "dtype": BF16, "window": 65, "edge": 64, "maps": ()},
    "last 42 of 1000": {"length": 1000, "rows": 42, "size": 96, "edge": 63},
    "last 1 of 129": {"length": 129, "rows": 1, "heads": (1, 2), "batch": 3, "start": [0, 63, 128], "softcap": 5.0},
    "last 70 of 129 bf16": {"length": 129, "rows": 70, "heads": (1, 2), "dtype": BF16, "edge": 64},
    "scattered": {"length": 200, "pos": SCATTERED, "batch": 2},
    "scattered bf16": {"length": 200, "pos": SCATTERED, "batch": 2, "dtype": BF16, "size": 256, "start": [2, 64], "window": 65, "edge": 63},
}


@pytest.mark.parametrize("name", CASES)
def test_every_statistic_is_that_of_the_pattern(kernels, name):
    arguments = dict(CASES[name])
    asked = {part: arguments.pop(part) for part in ("edge", "maps") if part in arguments}
    a = attention(**arguments)
    wanted = everything(a, **asked)
    wrong = misses(kernels.statistics(a, wanted), a, wanted)
    assert not wrong


ALONE = {
    "lse": Wanted(lse=True),
    "output": Wanted(output=True),
    "entropy": Wanted(entropy=True),
    "peak": Wanted(peak=True),
    "received sum": Wanted(received=frozenset({"sum"})),
    "received max": Wanted(received=frozenset({"max"})),
    "maps": Wanted(maps=frozenset({(32, "sum")})),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_statistic_does_not_need_the_others(kernels, name):
    a = attention(70, size=80, start=[5], window=10)
    wrong = misses(kernels.statistics(a, ALONE[name]), a, ALONE[name])
    assert not wrong


@pytest.mark.parametrize("more", [{"dtype": BF16, "start": [7]}, {"window": 65, "size": 96}], ids=["padded bf16", "window"])
def test_masses_of_ranges_around_the_edges_of_tiles(kernels, more):
    a = attention(129, **more)
    ranges = {f"sink {size}": sink(a, size) for size in EDGES} | {f"local {size}": local(a, size) for size in EDGES}
    ranges |= {"all": between(a, 0, a.keys), "none": between(a, 0, 0), "across": between(a, 60, 70), "own": between(a, a.pos_BR, a.pos_BR + 1)}
    wanted = Wanted(ranges=ranges)
    wrong = misses(kernels.statistics(a, wanted), a, wanted)
    assert not wrong


MAPS = {
    "64": ({"length": 64, "batch": 2}, [(16, "max"), (32, "sum"), (64, "max"), (128, "sum")]),
    "100 padded": ({"length": 100, "start": [70]}, [(48, "sum"), (48, "max")]),
    "129 bf16": ({"length": 129, "window": 65, "dtype": BF16}, [(64, "max"), (64, "sum"), (80, "max")]),
    "rows 32 to 79 of 100": ({"length": 100, "pos": [[*range(32, 80)]] * 2, "batch": 2, "start": [0, 40]}, [(16, "sum"), (32, "max")]),
    "rows 64 to 64 of 65": ({"length": 65, "pos": [[64]]}, [(32, "max"), (64, "sum")]),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_blocks_that_divide_the_length_and_that_do_not(kernels, name):
    arguments, maps = MAPS[name]
    a = attention(**arguments)
    if kernels is blocked:
        maps = [*maps, (7, "max"), (10, "sum")]
    wanted = Wanted(maps=frozenset(maps), received=frozenset({"sum"}))
    wrong = misses(kernels.statistics(a, wanted), a, wanted)
    assert not wrong


@pytest.mark.parametrize("elements", [1, 2**11, 2**20])
@pytest.mark.parametrize("name", ["65", "127 bf16", "scattered bf16"])
def test_blocks_of_any_size_add_up(monkeypatch, name, elements):
    monkeypatch.setitem(blocked.ELEMENTS, DEVICE, elements)
    test_every_statistic_is_that_of_the_pattern(blocked, name)


@st.composite
def attentions(draw):
    """Any shape, any rows; half of them with fewer rows than keys."""
    length, batch = draw(st.integers(1, 90)), draw(st.integers(1, 3))
    count = draw(st.integers(1, 12))
    rows = st.lists(st.integers(0, length - 1), min_size=count, max_size=count).map(sorted)
    return attention(
        length,
        pos=draw(st.none() | st.lists(rows, min_size=batch, max_size=batch)),
        start=draw(st.none() | st.lists(st.integers(0, length - 1), min_size=batch, max_size=batch)),
        heads=(draw(st.integers(1, 3)), draw(st.integers(1, 4))),
        size=draw(st.integers(1, 20)),
        batch=batch,
        dtype=draw(st.sampled_from([FP32, BF16])),
        window=draw(st.none() | st.integers(1, 100)),
        softcap=draw(st.none() | st.floats(0.5, 10)),
    )


@given(a=attentions(), edge=st.integers(1, 100), block=st.integers(4, 100))
@settings(max_examples=25)
def test_any_attention_in_plain_torch(a, edge, block):
    wanted = everything(a, edge, [(block, "max"), (block, "sum")])
    wrong = misses(blocked.statistics(a, wanted), a, wanted)
    assert not wrong


def some_pairs(a, count):
    """Random rows and keys that they see, in any order, some of them twice."""
    noise = torch.Generator().manual_seed(count)
    place_P = sees_something(a).cpu().flatten().nonzero()[:, 0]
    place_P = place_P[torch.randint(len(place_P), (count,), generator=noise)].to(DEVICE)
    batch_P, row_P = place_P // a.pos_BR.shape[1], place_P % a.pos_BR.shape[1]
    low_P, high_P = (edge[batch_P, row_P] for edge in between(a, 0, a.keys))
    key_P = low_P + (torch.rand(count, generator=noise).to(DEVICE) * (high_P - low_P)).long().clamp(max=high_P - low_P - 1)
    return Pairs(batch_P, row_P, key_P)


@pytest.mark.parametrize("more", [{"size": 80, "window": 33, "softcap": 4.0}, {"dtype": BF16, "start": [0, 60, 3], "batch": 3}], ids=["window", "padded bf16"])
def test_masses_of_single_keys(monkeypatch, kernels, more):
    monkeypatch.setattr(singles, "AT_ONCE", 160)  # four pieces
    a = attention(66, heads=(1, 2), **more)
    wanted = Wanted(singles={count: some_pairs(a, count) for count in (75, 0, 1)} | {"previous": previous(a)})
    wrong = misses(kernels.statistics(a, wanted), a, wanted)
    assert not wrong


def test_probabilities_of_single_keys_in_pieces():
    a = attention(66, heads=(2, 3))
    chosen, lse_BHR = some_pairs(a, 75), oracle.log_sum_exp(a).float()
    close(blocked.probabilities(a, lse_BHR, chosen, elements=6 * 64 * 10), blocked.probabilities(a, lse_BHR, chosen))


@pytest.mark.parametrize(("elements", "sizes"), [(6 * 64 * 10, [10] * 7 + [5]), (1, [1] * 75), (2**23, [75])])
def test_probabilities_of_single_keys_hold_no_more_elements_than_told(monkeypatch, elements, sizes):
    made, capped = [], blocked._capped
    monkeypatch.setattr(blocked, "_capped", lambda score, softcap: made.append(len(score)) or capped(score, softcap))
    a = attention(66, heads=(2, 3))
    blocked.probabilities(a, oracle.log_sum_exp(a).float(), some_pairs(a, 75), elements=elements)
    assert made == sizes


@pytest.mark.parametrize(("elements", "step"), [(1, 1), (3 * 128 * 30 + 1, 30), (2**30, 100)])
def test_blocks_are_as_many_rows_as_their_scores_may_be_many(monkeypatch, elements, step):
    monkeypatch.setitem(blocked.ELEMENTS, DEVICE, elements)
    made = list(blocked._Blocks(attention(100, heads=(1, 3)), Wanted(lse=True)).edges())  # 100 keys are padded to 128
    assert made == [(start, min(start + step, 100)) for start in range(0, 100, step)]


def test_blocks_on_another_device_hold_four_million_scores():
    a = attention(3000)
    elsewhere = replace(a, **{name: getattr(a, name).to("meta") for name in ("q_BHRE", "k_BGKE", "v_BGKE", "pos_BR", "start_B")}, memo={})
    assert list(blocked._Blocks(elsewhere, Wanted(lse=True)).edges()) == [(0, 1394), (1394, 2788), (2788, 3000)]  # 2^22 / 3008


def test_what_nobody_wants_is_not_computed():
    have = blocked.statistics(attention(70), Wanted(lse=True))
    assert (have.z_BHRE, have.entropy_BHR, have.peak_key_BHR, have.peak_prob_BHR) == (None,) * 4
    assert (dict(have.received), dict(have.maps), dict(have.masses)) == ({}, {}, {})


def test_the_blocks_of_a_batch_in_the_padding_of_all_its_prompts(monkeypatch):
    monkeypatch.setitem(blocked.ELEMENTS, DEVICE, 2**11)
    a = attention(200, batch=2, start=[100, 150])
    for wanted in (everything(a), everything(a, maps=())):  # a map takes all keys from the first on
        wrong = misses(blocked.statistics(a, wanted), a, wanted)
        assert not wrong


def test_the_pattern_of_a_few_rows():
    a = attention(66, heads=(2, 3), batch=2, start=[0, 30], window=20, softcap=3.0)
    torch.testing.assert_close(blocked.pattern(a, slice(20, 40)).double(), probabilities(a)[:, :, 20:40], atol=oracle.TOLERANCE, rtol=0)


RIGHT = attention(40, window=16, start=[3], softcap=5.0)
FAULTS = {
    "window + 1": {"window": 17},
    "window - 1": {"window": 15},
    "no window": {"window": None},
    "padding + 1": {"start_B": RIGHT.start_B + 1},
    "padding - 1": {"start_B": RIGHT.start_B - 1},
    "position - 1": {"pos_BR": (RIGHT.pos_BR - 1).clamp(min=0)},
    "no cap": {"softcap": None},
}


def unnoticed(kernels, right, wrong):
    """The statistics of something else that pass for the right ones."""
    wanted = everything(right, maps=((16, "sum"),))
    missed = misses(kernels.statistics(wrong, everything(wrong, maps=((16, "sum"),))), right, wanted)
    return oracle.expected(right, wanted).keys() - missed.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(kernels, fault):
    assert not unnoticed(kernels, RIGHT, replace(RIGHT, **FAULTS[fault], memo={}))


@pytest.mark.parametrize("kv_heads", [[0, 1, 1, 1], [0, 1, 0, 1]], ids=["shifted", "in turns"])
def test_the_comparison_catches_a_wrong_kv_head(kernels, kv_heads):
    a = attention(20, heads=(2, 2))
    assert not unnoticed(kernels, a, replace(a, k_BGKE=a.k_BGKE[:, kv_heads], v_BGKE=a.v_BGKE[:, kv_heads], memo={}))


@pytest.mark.parametrize("name", ["sink", "local"])
@pytest.mark.parametrize("off", [-1, 1])
def test_the_comparison_catches_a_range_that_is_off_by_one(kernels, name, off):
    ranges = {"sink": sink, "local": local}[name]
    computed = kernels.statistics(replace(RIGHT, memo={}), Wanted(ranges={"range": ranges(RIGHT, 4 + off)}))
    assert misses(computed, RIGHT, Wanted(ranges={"range": ranges(RIGHT, 4)})).keys() == {"mass range"}


@pytest.mark.parametrize("more", [{"window": 40}, {"dtype": BF16, "softcap": 2.0}], ids=["window", "bf16"])
def test_what_must_add_up(kernels, more):
    a = attention(70, start=[20], **more)
    thirds = {(n, "third"): between(a, *edges) for n, edges in enumerate([(0, 31), (31, 64), (64, 70)])}
    octaves = {(n, "octave"): between(a, a.pos_BR - 2 ** (n + 1) + 2, a.pos_BR - 2**n + 2) for n in range(7)}
    have = kernels.statistics(a, Wanted(peak=True, entropy=True, received=frozenset({"sum", "max"}), ranges=thirds | octaves))
    seen_BHR = sees_something(a)[:, None].float()
    for kind in ("third", "octave"):
        close(sum(mass for (_, name), mass in have.masses.items() if name == kind), seen_BHR)
    close(have.received["sum"].sum(-1), seen_BHR.sum(-1))
    close(have.received["max"].amax(-1), have.peak_prob_BHR.amax(-1))
    assert (-have.peak_prob_BHR.log() <= have.entropy_BHR + oracle.TOLERANCE)[seen_BHR.bool()].all()


def close(have, want):
    torch.testing.assert_close(have, want, atol=oracle.TOLERANCE, rtol=oracle.TOLERANCE)


@pytest.mark.parametrize("sign", [-1, 0, 1])
@pytest.mark.parametrize("more", [{}, {"window": 50}, {"start": [20]}], ids=["all", "window", "padded"])
def test_of_equal_scores_one_that_is_seen_is_the_strongest(kernels, more, sign):
    a = attention(80, **more)
    a.q_BHRE.fill_(sign)
    a.k_BGKE.fill_(0.25)
    have = kernels.statistics(a, Wanted(peak=True, entropy=True))
    first_BR, end_BR = between(a, 0, a.keys)
    seen_BR = sees_something(a)
    close(have.entropy_BHR[:, 0][seen_BR], (end_BR - first_BR)[seen_BR].log())
    key_BR = have.peak_key_BHR[:, 0]
    if kernels is blocked:
        assert key_BR[seen_BR].tolist() == first_BR[seen_BR].tolist()
    assert ((key_BR >= first_BR) & (key_BR < end_BR))[seen_BR].all()


def test_other_layouts_and_long_integers(kernels):
    a = attention(40, heads=(1, 2), start=[3], window=30)
    other = replace(a, **{name: getattr(a, name).mT.contiguous().mT for name in ("q_BHRE", "k_BGKE", "v_BGKE")})
    other = replace(other, pos_BR=a.pos_BR.long(), start_B=a.start_B.long())
    wanted = everything(other)
    wrong = misses(kernels.statistics(other, wanted), a, wanted)
    assert not wrong


@pytest.mark.parametrize("size", [8, 300])
def test_heads_too_small_or_too_large_for_triton(streaming, size):
    a = attention(5, size=size)
    with pytest.raises(InputError, match=f"heads of size {size} .*16 to 256.*--implementation torch"):
        streaming.statistics(a, Wanted(lse=True))
    assert not misses(blocked.statistics(a, Wanted(lse=True)), a, Wanted(lse=True))


@pytest.mark.parametrize("size", [16, 17])
def test_the_smallest_heads_of_triton(streaming, size):
    a = attention(33, size=size)
    wrong = misses(streaming.statistics(a, everything(a)), a, everything(a))
    assert not wrong


@pytest.mark.parametrize("block", [1, 8, 17, 40])
def test_maps_too_fine_for_triton(streaming, block):
    with pytest.raises(InputError, match=f"multiples of 16, not {block}; use --implementation torch"):
        streaming.statistics(attention(40), Wanted(maps=frozenset({(16, "max"), (block, "max")})))


def test_chunks_of_a_map_begin_at_tiles_in_triton(streaming):
    with pytest.raises(InputError, match="multiples of 16 tokens with the Triton kernels, not at 25; take such a --chunk"):
        streaming.statistics(attention(40, pos=[[*range(25, 40)]]), Wanted(maps=frozenset({(16, "max")})))


def test_wanted_joins_and_says_whether_there_is_anything():
    assert not Wanted()
    assert not Wanted(output=True)
    a = attention(3)
    parts = [*ALONE.values(), Wanted(maps=frozenset({(32, "max")}))]
    parts += [Wanted(ranges={name: sink(a, 1)}) for name in "ab"] + [Wanted(singles={name: previous(a)}) for name in "cd"]
    assert all(part or part.output for part in parts)
    joined = reduce(or_, parts)
    assert (joined.output, joined.lse, joined.entropy, joined.peak) == (True, True, True, True)
    assert joined.received == {"sum", "max"}
    assert joined.maps == {(32, "sum"), (32, "max")}
    assert (list(joined.ranges), list(joined.singles)) == (["a", "b"], ["c", "d"])
    assert joined.singles["d"] is parts[-1].singles["d"]


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    """As if a graphics card were there; nothing is known about it."""
    triton = pytest.importorskip("triton")
    from workbench.ops import tuning

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    tuning._known.cache_clear()
    yield tuning
    tuning._known.cache_clear()


def timed(monkeypatch, tuning, *milliseconds):
    """Candidates that take so long, and the list of those that were measured."""
    tiles, measured = [tuning.Tile(16 << n, 64, 4, 2) for n in range(len(milliseconds))], []

    def time(tile, run):
        measured.append(tile)
        return milliseconds[tiles.index(tile)]

    monkeypatch.setattr(tuning, "_time", time)
    return tiles, measured


def test_the_fastest_tile_is_chosen_once_and_kept_on_disk(monkeypatch, tuning):
    tiles, measured = timed(monkeypatch, tuning, 3.0, 1.0, float("inf"), 2.0)
    for _ in range(2):
        assert tuning.choose(("rows", 64), tiles, tuning.WORTH, print) == tiles[1]
        assert measured == tiles
    tuning._known.cache_clear()  # another run of the program
    assert tuning.choose(("rows", 64), tiles, tuning.WORTH, print) == tiles[1]
    assert measured == tiles
    tuning.choose(("rows", 128), tiles, tuning.WORTH, print)
    assert measured == tiles * 2
    tuning._known.cache_clear()
    assert tuning.choose(("rows", 64), tiles, tuning.WORTH, print) == tiles[1]


def test_if_no_tile_fits_the_card_says_so(tuning):
    from triton.runtime.errors import OutOfResources

    def run(tile):
        raise OutOfResources(1000, 100, "shared memory")

    with pytest.raises(OutOfResources):
        tuning.choose(("rows",), [tuning.Tile(64, 64, 4, 2), tuning.Tile(32, 32, 4, 2)], tuning.WORTH, run)
    assert not tuning._known()


def test_nothing_is_measured_for_little_work_or_in_the_interpreter(monkeypatch, tuning):
    tiles, measured = timed(monkeypatch, tuning, 3.0, 1.0)
    assert tuning.choose(("rows",), tiles, tuning.WORTH - 1, print) == tiles[0]
    monkeypatch.setattr(tuning.triton.knobs.runtime, "interpret", True)
    assert tuning.choose(("rows",), tiles, tuning.WORTH, print) == tiles[0]
    assert not measured


def test_the_interpreter_is_given_no_launch_options(monkeypatch, tuning):
    assert tuning.Tile(64, 32, 4, 3).launch() == {"enable_fp_fusion": True, "num_warps": 4, "num_stages": 3}
    assert tuning.Tile(64, 32, 4, 3, 128).launch() == {"enable_fp_fusion": True, "num_warps": 4, "num_stages": 3, "maxnreg": 128}
    monkeypatch.setattr(tuning.triton.knobs.runtime, "interpret", True)
    assert tuning.Tile(64, 32, 4, 3).launch() == {}
