"""Is the kept map of a long prompt the head's own attention, pooled and exact, and is never more of it sent than a browser can show?"""

import json

import numpy as np
import pytest
from eager import eager, tiny
from typer.testing import CliRunner

from workbench import long_maps
from workbench.captures import capture
from workbench.cli import app
from workbench.errors import InputError
from workbench.heads import Head
from workbench.kept_maps import Asked, KeptMap, found, strongest, text_name, text_of, view_of
from workbench.long_maps import beforehand, long_map, needle_share, prompt_of
from workbench.mapping import attention_map
from workbench.reads import Mass, Received
from workbench.sink_rules import SINK_RULES
from workbench.views import block_canvas

TEXT = "Attention maps of long prompts are pooled. " * 3
LENGTH = 100
HEAD = Head(1, 3)


def asked(model, head=HEAD, **more):
    return Asked(model.card.fingerprint, head, **{"length": LENGTH, "text": text_name(TEXT), **more})


def made(architecture="llama", head=HEAD):
    return long_map(tiny(architecture), asked(tiny(architecture), head), TEXT)


def pattern(architecture, head=HEAD):
    model = tiny(architecture)
    return eager(model, prompt_of(model, asked(model), TEXT).ids_BT).pattern[0, head.layer, head.index]


def pooled(pattern_QK, block, queries, keys):
    """Block by block, as a loop; the last ones partial."""
    (top, bottom), (left, right) = queries, keys
    return np.array(
        [[pattern_QK[q : min(q + block, bottom), k : min(k + block, right)].max() for k in range(left, right, block)] for q in range(top, bottom, block)]
    )


def opened(message):
    length = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + length]), np.frombuffer(message[4 + length :], "<f4")


@pytest.fixture
def needle():
    """A needle test of some 900 bytes."""
    model = tiny("llama")
    question = Asked(model.card.fingerprint, HEAD, 900, 0.5, 3)
    return model, question, long_map(model, question)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma2", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("chunk", [None, 37])
def test_exact_cells_are_the_attention_of_the_model(architecture, chunk, monkeypatch):
    """Windows, caps and scalings of the layers are kept with the queries and keys."""
    if chunk:
        monkeypatch.setattr(long_maps, "CHUNK", chunk)
    for head in (Head(0, 1), Head(1, 2)):
        kept, expected_QK = made(architecture, head), pattern(architecture, head)
        assert kept.length == LENGTH
        np.testing.assert_allclose(kept.part().value_UV, expected_QK, atol=2e-5)
        shown = kept.part((20, 61), (5, 33))
        assert (shown.exact, shown.queries, shown.keys) == (True, (20, 61), (5, 33))
        np.testing.assert_allclose(shown.value_UV, expected_QK[20:61, 5:33], atol=2e-5)


@pytest.mark.parametrize("strip", [None, 300])
@pytest.mark.parametrize(("queries", "keys"), [((0, 100), (0, 100)), ((20, 61), (5, 33)), ((3, 9), (0, 100)), ((10, 20), (60, 99))])
@pytest.mark.parametrize("cells", [7, 16, 40])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_pooled_tiles_are_the_largest_of_their_cells(architecture, queries, keys, cells, strip, monkeypatch):
    if strip:
        monkeypatch.setattr("workbench.kept_maps.STRIP", strip)
    shown = made(architecture).part(queries, keys, cells)
    block = -(-max(queries[1] - queries[0], keys[1] - keys[0]) // cells)
    assert shown.block == block
    assert max(shown.value_UV.shape) <= cells
    np.testing.assert_allclose(shown.value_UV, pooled(pattern(architecture), block, queries, keys), atol=2e-5)


@pytest.mark.parametrize("cells", [10, 33])
def test_the_whole_map_that_is_kept_is_pooled_from_the_same(cells, monkeypatch):
    monkeypatch.setattr(long_maps, "CELLS", cells)
    kept = made()
    assert kept.block == -(-LENGTH // cells)
    np.testing.assert_allclose(kept.value_UV, pooled(pattern("llama"), kept.block, (0, LENGTH), (0, LENGTH)), atol=2e-5)
    np.testing.assert_allclose(kept.part(cells=cells).value_UV, kept.value_UV, atol=2e-5)


def test_another_way_to_the_same_map():
    model = tiny("llama")
    shown = attention_map(model, prompt_of(model, asked(model), TEXT), HEAD, queries=(30, 90), keys=(10, 70), cells=20)
    np.testing.assert_allclose(made().part((30, 90), (10, 70), 20).value_UV, shown.value_UV, atol=2e-5)


def test_a_pass_ends_at_the_layer_of_the_head_and_leaves_the_model_as_it_was(monkeypatch):
    model, shares = tiny("llama"), []
    monkeypatch.setattr(model.hf.model.layers[1].mlp, "forward", lambda *_: pytest.fail("the pass went on"))
    monkeypatch.setattr(long_maps, "CHUNK", 50)
    long_map(model, asked(model), TEXT, shares.append)
    assert shares == [0, 0.25, 0.5, 0.75]  # two chunks, two layers

    def enough(share):
        if share > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        long_map(model, asked(model), TEXT, enough)
    assert model.config._attn_implementation not in ("workbench_reference", "workbench_streaming")
    assert not [module for module in model.weights.attentions if hasattr(module, "workbench_tap")]


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_sinks_are_those_of_the_rules(architecture):
    model, kept = tiny(architecture), made(architecture)
    seen = capture(model, prompt_of(model, asked(model), TEXT), [Received()], layers=[HEAD.layer])
    received_BLHK = seen[Received()][:, :, HEAD.index : HEAD.index + 1]
    np.testing.assert_allclose(kept.received_K, received_BLHK[0, 0, 0], atol=2e-6)
    for rule in SINK_RULES.values():
        later = np.flatnonzero(rule.later(received_BLHK, np.zeros(1, int))[0, 0, 0]).tolist()
        assert kept.sinks(rule) == ([0] if received_BLHK[0, 0, 0, 0] > 0.3 else []) + later


def test_a_needle_test_marks_the_needle_and_the_rows_of_the_answer(needle):
    model, question, kept = needle
    prompts = prompt_of(model, question)
    ((begin, end),) = kept.marks["needle"]
    assert "".join(kept.tokens[begin:end]) == kept.facts["answer"]
    ((first, last),) = kept.marks["answer"]
    assert "".join(kept.tokens[first + 1 : last + 1]) == " " + kept.facts["answer"]
    read = Mass(span="needle", rows="answer")
    seen = capture(model, prompts, [read], layers=[HEAD.layer])[read][0, 0, HEAD.index]
    assert kept.facts["needle_share"] == pytest.approx(seen.mean(), abs=2e-5)
    assert needle_share(made()) is None
    assert prompt_of(model, Asked(question.model, HEAD, 900, 0.5, 4)).facts[0]["needle"] != kept.facts["needle"]


def test_a_map_is_kept_and_found_again(tmp_path, needle):
    _, question, kept = needle
    path = kept.save(tmp_path / "map.npz")
    again = found(question, [tmp_path / "none.npz", path])
    assert again is not None
    assert (again.head, again.block, again.tokens, again.marks, again.facts, again.window, again.softcap, again.scaling) == (
        *(kept.head, kept.block, kept.tokens, kept.marks, kept.facts, kept.window, kept.softcap, kept.scaling),
    )
    np.testing.assert_array_equal(again.part((700, 800), (300, 400)).value_UV, kept.part((700, 800), (300, 400)).value_UV)
    assert found(Asked(question.model, HEAD, 900, 0.5, 4), [path]) is None
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04 no", whole[:-400], whole[:3000] + bytes(2000) + whole[5000:]):
        (tmp_path / "broken.npz").write_bytes(content)
        assert KeptMap.load(tmp_path / "broken.npz") is None


def test_a_bare_map_has_the_whole_alone(tmp_path, needle):
    _, question, kept = needle
    bare = found(question, [kept.bare(100).save(tmp_path / "bare.npz")])
    assert bare is not None
    by = -(-kept.length // 100)
    assert (bare.zooms, bare.block) == (False, by)
    np.testing.assert_allclose(bare.part().value_UV, pooled(kept.part().value_UV, by, (0, kept.length), (0, kept.length)), rtol=1e-3, atol=1e-7)
    part = bare.part((15, 31), (0, 9))
    assert (part.queries, part.keys, part.exact) == ((15 // by * by, -(-31 // by) * by), (0, -(-9 // by) * by), False)
    np.testing.assert_array_equal(part.value_UV, bare.value_UV[15 // by : -(-31 // by), : -(-9 // by)])
    with pytest.raises(InputError, match="without queries and keys"):
        bare.probabilities((0, 1), (0, 1))
    assert (tmp_path / "bare.npz").stat().st_size < kept.save(tmp_path / "whole.npz").stat().st_size / 3


def test_a_message_holds_the_part_in_view_and_what_is_marked(needle):
    _, _, kept = needle
    view = (700, 760), (380, 440)
    header, values = opened(block_canvas(kept, kept.part(*view), sinks=[0, 5, 6, 7, 30], rule="mine"))
    np.testing.assert_array_equal(values, kept.part(*view).value_UV.ravel())
    assert (header["block"], header["cells"], header["rect"], header["zooms"]) == (1, [60, 60], [[700, 760], [380, 440]], True)
    assert header["text"][0] == list(kept.tokens[700:760])
    marks = {mark["kind"]: mark for mark in header["marks"]}
    assert marks["sinks"]["ranges"] == [[0, 1], [5, 8], [30, 31]]
    assert marks["sinks"]["text"] == "5 sinks (mine)"
    assert (marks["needle"]["axis"], marks["answer"]["axis"]) == (1, 0)
    assert header["needle"] == [list(kept.marks["answer"][0]), list(kept.marks["needle"][0])]
    assert [mark["kind"] for mark in opened(block_canvas(kept, kept.part(), marked=["answer"]))[0]["marks"]] == ["answer"]
    pooled_header, _ = opened(block_canvas(kept, kept.part(cells=30)))
    assert pooled_header["text"][1][0] == "".join(kept.tokens[:24])[:24]


def test_no_message_has_more_than_a_million_cells():
    """Of a prompt of 32k tokens, at every zoom; the numbers do not matter here."""
    length, rng = 32_768, np.random.default_rng(0)
    query_TE, key_TE = rng.standard_normal((2, length, 2), dtype=np.float32)
    tokens = tuple(f" token{place}" for place in range(length))
    whole_UV = np.zeros((1024, 1024), np.float32)
    kept = KeptMap(HEAD, whole_UV, 32, np.zeros(length, np.float32), tokens, {}, {}, None, None, 1.0, query_TE, key_TE, np.full(length, 9, np.float32))
    for view in (None, ((0, 1025), (0, 4)), ((9, 2057), (5, 4101)), ((31_000, 32_024), (0, 1024)), ((32_760, 32_768), (0, 8))):
        shown = kept.part(*(view or ()))
        message = block_canvas(kept, shown, view)
        assert max(shown.value_UV.shape) <= 1024
        assert len(message) <= 4 * 1024**2 + 100_000
        assert shown.exact == (view is not None and max(end - begin for begin, end in view) <= 1024)
    with pytest.raises(InputError, match="2056 × 1028 cells are too many for a browser; at most 1024 × 1024"):
        block_canvas(kept, kept.part((0, 2056), (0, 1028), cells=4000))


def test_the_strongest_cells_are_told(needle):
    _, _, kept = needle
    shown = kept.part((700, 760), (380, 440))
    rows = strongest(kept, shown, 3)
    order = np.sort(shown.value_UV.ravel())[::-1][:3]
    np.testing.assert_allclose(rows["attention"], order)
    row, key = (int(place) for place in np.unravel_index(shown.value_UV.argmax(), shown.value_UV.shape))
    assert (rows["row"][0], rows["key"][0]) == (f"{700 + row} “{kept.tokens[700 + row]}”", f"{380 + key} “{kept.tokens[380 + key]}”")
    assert len(strongest(kept, kept.part((0, 2), (0, 2)))) == 4
    assert strongest(kept, kept.part(cells=30))["row"].str.match(r"(?s)\d+–\d+ “.*…”").all()


@pytest.mark.parametrize(("text", "view"), [("4:5,0:9", ((4, 5), (0, 9))), ("0:10,0:10", ((0, 10), (0, 10)))])
def test_a_view_is_read(text, view):
    assert view_of(text, 10) == view


@pytest.mark.parametrize(
    "text", ["", "4:5", "5:4,0:9", "4:4,0:9", "0:11,0:9", "0:9,0:11", "-1:5,0:9", "a:b,c:d", "²:5,0:9", "0:5,0:9,1:2", "9" * 40 + ":5,0:9"]
)
def test_what_is_no_view_is_none(text):
    assert view_of(text, 10) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 0}, "at least one token"),
        ({"text": "", "depth": 1.5}, "its depth lies in 0–1"),
        ({"text": "", "seed": -1}, "its seed is no less than 0"),
        ({"head": Head(2, 0)}, "no head L2H0"),
        ({"text": "0123456789abcdef"}, "the text is not the one of this address"),
        ({"text": "", "length": 50}, "a test of 50 cannot hold it"),
        ({"model": "another"}, "the map is asked of the model another"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(change, said):
    model = tiny("llama")
    with pytest.raises(InputError, match=said):
        long_map(model, Asked(**{"model": model.card.fingerprint, "head": HEAD, "length": LENGTH, "text": text_name(TEXT), **change}), TEXT)


def test_a_prompt_longer_than_the_context_is_told_before_and_after():
    """A model with rotated positions reads on, and is not cut; one that has learned them cannot."""
    text = "abcdefgh" * 600
    llama, gpt2 = (Asked(tiny(name).card.fingerprint, Head(0, 0), 4500, text=text_name(text)) for name in ("llama", "gpt2"))
    said = "4500 tokens are beyond the 4096 that tiny-llama was trained for"
    assert beforehand(tiny("llama"), llama, text) == (4500, said)
    kept = long_map(tiny("llama"), llama, text)
    assert (kept.length, kept.facts["warning"], kept.facts["text_tokens"]) == (4500, said, 4801)
    for refuse in (beforehand, long_map):
        with pytest.raises(InputError, match="4500 tokens do not fit tiny-gpt2, which has 4096 learned positions"):
            refuse(tiny("gpt2"), gpt2, text)
    assert beforehand(tiny("llama"), asked(tiny("llama")), TEXT) == (LENGTH, "")


def test_texts_are_read_alike_everywhere():
    assert text_of("a\r\nb".encode("utf-8-sig"), "x") == "a\nb"
    with pytest.raises(InputError, match=r"x\.txt is no text in UTF-8"):
        text_of(b"\xff\xfe", "x.txt")
    with pytest.raises(InputError, match=r"x\.txt is blank"):
        text_of(b" \n", "x.txt")


def test_the_command_writes_the_map(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.models.load", lambda name, **_: tiny("llama"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    common = ["long-map", "--head", "L1H3", "--length", str(LENGTH), "--out", str(tmp_path / "map.npz")]
    result = CliRunner().invoke(app, [*common, "--text", str(tmp_path / "text.txt"), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {name: told[name] for name in ("tokens", "device", "asked")} == {"tokens": LENGTH, "device": "cpu", "asked": asked(tiny("llama")).question}
    kept = found(asked(tiny("llama")), [tmp_path / "map.npz"])
    assert kept is not None
    np.testing.assert_array_equal(kept.part((20, 61), (5, 33)).value_UV, made().part((20, 61), (5, 33)).value_UV)
    result = CliRunner().invoke(app, ["long-map", "--head", "L1H3", "--length", "900", "--bare", "--out", str(tmp_path / "bare.npz")])
    assert result.exit_code == 0, result.output
    assert "blocks of 2 × 2; the rows that give the answer put" in result.stdout
    for wrong, why in ((["--text", str(tmp_path / "no.txt")], "cannot read the text"), (["--depth", "2"], "its depth lies in 0–1")):
        result = CliRunner().invoke(app, [*common, *wrong])
        assert result.exit_code == 2
        assert why in result.output
