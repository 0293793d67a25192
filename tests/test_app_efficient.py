"""Does the page on efficient attention count, choose and export as it says? Memory by hand, full heads by hand, and files that other tools would read."""

import io
import json

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[app]'")

import chosen
from dashboard import opened, words

from workbench import choosing, formats
from workbench.errors import InputError
from workbench.formats import FORMATS, Export
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels
from workbench.measured import SPEEDS, nearest, policies_table, speeds
from workbench.policies import FULL, HeadPolicy
from workbench.rules import RULES
from workbench.views import bytes_text, policy_figure, quality_panel, speed_figure

pytestmark = pytest.mark.usefixtures("nothing_is_remembered")
EFFICIENT = "app_pages/efficient.py"
CARD = ModelCard("mine", "memory", "", Shape(3, 8, 4, 16, 128))
SCORE_LH = np.random.default_rng(0).random((3, 8))
ROW = {"policy": "induction", "budget": 0.5, "seed": np.nan, "kv_share": 0.6, "recall": 0.7, "kept": 0.9, "kept_low": 0.8, "kept_high": 1.0, "tests": 9}
ROW |= {"perplexity": 12.5, "agreement": 0.875}
VERIFIED = pd.DataFrame([ROW | {"full_heads": 2, "kept": 0.5}, ROW | {"full_heads": 6}, {**ROW, "policy": "full", "full_heads": 12, "kv_share": 1.0}])


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A model of three layers of four KV heads, each read by two query heads of size 16; two of its heads are labelled."""
    labels = HeadLabels(CARD, {Head(0, 3): ("retrieval",), Head(2, 0): ("retrieval",)}, {"induction": SCORE_LH}, {"retrieval": RULES["retrieval"]})
    labels.save(tmp_path / "heads.json")
    monkeypatch.setenv("WORKBENCH_APP_LABELS", str(tmp_path / "heads.json"))
    return tmp_path


def rings(app):
    """The full heads of the map on the page: layer and KV head."""
    trace = json.loads(app.get("plotly_chart")[0].proto.spec)["data"][1]
    return set(zip(*(_numbers(trace[axis]) for axis in "xy"), strict=True))


def _numbers(values):
    if isinstance(values, dict):
        from base64 import b64decode

        return np.frombuffer(b64decode(values["bdata"]), values["dtype"]).tolist()
    return values


def test_labels_keep_the_kv_heads_of_their_query_heads(mine):
    app = opened(EFFICIENT)
    assert app.selectbox(key="by").value == "labels"
    assert app.multiselect(key="keep").value == ["retrieval"]
    assert rings(app) == {(0, 1), (2, 0)}
    assert "**2 of 12 KV heads stay full** (17%); the others see 64 first and 256 last tokens" in words(app)
    assert not app.error


def test_memory_is_what_one_counts_by_hand(mine):
    app = opened(EFFICIENT, tokens="10000", bits="8", batch="3", sinks="10", window="90")
    # keys and values, of one byte: 2 full heads keep 10,000 tokens of 16 numbers, 10 streaming heads 100, in three prompts
    policy, full = 3 * 2 * 16 * (2 * 10_000 + 10 * 100), 3 * 2 * 16 * 12 * 10_000
    assert f"**{policy / 2**20:.1f} MiB instead of {full / 2**20:.1f} MiB** ({policy / full:.0%})" in words(app)
    # 1 GiB: 12 × 96 bytes a token with every head full; with the policy 10 × 100 tokens of 96 bytes first, then 2 × 96 a token
    room = opened(EFFICIENT, tokens="10000", bits="8", batch="3", sinks="10", window="90", room="1")
    assert f"**{2**30 // (12 * 96):,} tokens** with every head full" in words(room)
    assert f"**{(2**30 - 96 * 1000) // (2 * 96):,} tokens** with this policy" in words(room)


def test_without_full_heads_any_context_fits(mine):
    app = opened(EFFICIENT, by="window")
    assert "**0 of 12 KV heads stay full**" in words(app)
    assert "**any number of tokens** with this policy" in words(app)


def test_a_budget_takes_the_best_kv_heads(mine):
    app = opened(EFFICIENT, by="budget", budget="0.25")
    best_LG = SCORE_LH.reshape(3, 4, 2).max(2)
    order = [divmod(int(place), 4) for place in np.argsort(-best_LG, axis=None)]
    assert app.multiselect(key="ranking").value == ["induction"]
    assert rings(app) == set(order[:3])
    assert rings(opened(EFFICIENT, by="quantile", sparsity="0.5")) == set(order[:6])
    # half of the bytes at 1,000 tokens: 12,000 × ½ = 6,000 = full × (1,000 − 100) + 12 × 100, so that 5 heads may be full
    app = opened(EFFICIENT, by="budget", budget="0.5", of="bytes", tokens="1000", sinks="10", window="90")
    assert rings(app) == set(order[:5])


def test_controls_are_drawn_by_the_seed(mine):
    drawn = [rings(opened(EFFICIENT, by="random", budget="0.5", seed=seed)) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {len(one) for one in drawn} == {6}


def test_what_cannot_be_chosen_is_a_sentence(mine):
    app = opened(EFFICIENT, by="budget", budget="0.05", of="bytes", tokens="1000")
    (error,) = app.error
    assert error.value.startswith("At 1,000 tokens, 64 sinks and a window of 256 take 32% of the full cache by themselves")
    app = opened(EFFICIENT)
    app.multiselect(key="keep").set_value([]).run()
    assert "Name at least one label" in words(app)
    assert not app.exception


def test_the_policy_of_the_file_can_be_taken(mine):
    assert "file" not in opened(EFFICIENT).selectbox(key="by").options
    labels = HeadLabels.load(mine / "heads.json")
    policy = choosing.by_budget(CARD, SCORE_LH.reshape(3, 4, 2).max(2), 0.5, sinks=3, window=7)
    policy.labelled(labels).save(mine / "heads.json")
    app = opened(EFFICIENT, by="file")
    assert rings(app) == {(int(layer), int(head)) for layer, head in np.argwhere(policy.full_LG)}
    assert "see 3 first and 7 last tokens" in words(app)


def test_other_rankings_that_lie_beside_can_be_chosen(mine):
    order_LH = np.arange(12.0).reshape(3, 4).repeat(2, axis=1)
    HeadLabels(CARD, {}, {"elimination": order_LH}).save(mine / "elimination.json")
    app = opened(EFFICIENT, by="budget", budget="0.5", ranking="elimination")
    assert app.multiselect(key="ranking").options == ["induction", "elimination"]
    assert rings(app) == {(1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)}


def test_quality_is_told_where_it_was_measured(mine):
    assert "There is no table of what policies cost" in words(opened(EFFICIENT, part="Quality"))
    VERIFIED.to_csv(mine / "policies.csv", index=False)
    app = opened(EFFICIENT, part="Quality", by="budget", budget="0.45")  # 5 heads, to which 6 are nearer than 2
    assert "Measured nearest to this policy, 6 heads full by induction: **90% of the needle recall** is kept (95% 80% to 100%)" in words(app)
    assert "perplexity 12.50" in words(app)
    assert "tells nothing about this very policy. It has: induction, full." in words(opened(EFFICIENT, part="Quality"))


def test_a_table_of_verify_can_be_uploaded(mine):
    app = opened(EFFICIENT, part="Quality", by="budget", budget="0.2")
    app.file_uploader(key="verified_table").upload("mine.csv", VERIFIED.to_csv(index=False).encode()).run()
    assert "2 heads full by induction: **50% of the needle recall**" in words(app)
    app.segmented_control(key="part").set_value("KV memory").run()
    assert not [one for one in app.get("file_uploader") if one.key == "verified_table"]
    app.segmented_control(key="part").set_value("Quality").run()
    assert "2 heads full by induction: **50% of the needle recall**" in words(app)
    assert "mine.csv was given before and is still shown." in words(app)
    app.button(key="verified_table-away").click().run()
    assert "There is no table of what policies cost" in words(app)
    app.file_uploader(key="verified_table").upload("bad.csv", b"a\n1\n").run()
    assert "bad.csv is no table of `workbench verify`: it has no column 'policy'" in words(app).replace("Bad.csv", "bad.csv")
    assert not app.exception


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_policy_can_be_downloaded_for_every_tool(mine, name):
    app = opened(EFFICIENT, part="Export", format=name)
    assert [button.label for button in app.download_button if button.label.startswith("Download")] == [f"Download {name}"]
    assert not app.error


def test_speeds_name_their_machine():
    app = opened(EFFICIENT, part="Speed")
    assert "Measured on NVIDIA H100 80GB HBM3, not on this machine" in words(app)
    assert app.selectbox(key="shape").value == "9/3 heads of 64"
    table = app.dataframe[0].value
    row = table[(table["tokens"] == 131072) & (table["variant"] == "ours")].sort_values("full").iloc[0]
    source = pd.read_csv(chosen.BUNDLED.parents[2] / "benchmarks" / "results" / "kernels_decode_h100_80gb_hbm3.csv")
    there = source[(source["heads"] == "9/3") & (source["tokens"] == 131072) & (source["variant"] == "ours") & (source["full"] == 1)].iloc[0]
    assert (row["full"], row["time"], row["times"]) == (pytest.approx(1 / 3), there["us"], there["×"])
    app = opened(EFFICIENT, part="Speed", speed="a whole model", what="a token")
    assert set(app.dataframe[0].value["unit"]) == {"ms"}


def test_without_benchmarks_there_are_no_speeds(tmp_path, monkeypatch):
    assert speeds(tmp_path) == []
    (tmp_path / "generation_x.csv").write_text("variant,tokens\n1,2\n", encoding="utf-8")  # no text, and not the columns
    with pytest.raises(InputError, match=r"generation_x\.csv cannot be shown"):
        speeds(tmp_path)


def test_speeds_of_an_unknown_machine_are_not_shown(tmp_path):
    folder = chosen.BUNDLED.parents[2] / "benchmarks" / "results"
    for ending in ("csv", "md"):
        text = (folder / f"generation_h100_80gb_hbm3.{ending}").read_text(encoding="utf-8")
        (tmp_path / f"generation_x.{ending}").write_text(text, encoding="utf-8")
    (one,) = speeds(tmp_path)
    assert list(one.table) == SPEEDS
    assert one.device == "NVIDIA H100 80GB HBM3"
    assert one.about.startswith("Random weights")
    assert one.table[(one.table["tokens"] == 131072) & (one.table["full"] == 0.5)]["times"].tolist() == pytest.approx([1.5095785, 1.2162736])
    assert len(speed_figure(one.table[one.table["what"] == "prefill"]).data) == 4
    (tmp_path / "generation_x.md").write_text("# no more\n\nnothing\n", encoding="utf-8")
    with pytest.raises(InputError, match="does not say on what it was measured"):
        speeds(tmp_path)


# ---------------------------------------------------------------- a policy as labels, its memory, tables of verify


def policy_of(full_LG, **how):
    return HeadPolicy(CARD, np.array(full_LG, bool), **how)


FEW = [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


def test_memory_as_a_table_has_both_ends():
    rows = policy_of(FEW, sinks=10, window=90).memory([1_000, 50_000], dtype_bytes=4, batch=2)
    vector = 2 * 2 * 16 * 4
    assert rows["full"].tolist() == [vector * 12 * 1_000, vector * 12 * 50_000]
    assert rows["streaming"].tolist() == [vector * 12 * 100] * 2
    assert rows["policy"].tolist() == [vector * (3 * length + 9 * 100) for length in (1_000, 50_000)]
    np.testing.assert_allclose(rows["share"], rows["policy"] / rows["full"])


@pytest.mark.parametrize("room", [0, 1_000, 150_000, 10**6, 123_456_789])
def test_the_longest_context_is_the_last_that_fits(room):
    policy = policy_of(FEW, sinks=10, window=90)
    most = policy.longest(room)
    assert most == 0 or policy.kv_bytes(most) <= room
    assert policy.kv_bytes(most + 1) > room


def test_a_policy_as_labels_is_read_back_by_other_tools(tmp_path):
    policy = policy_of(FEW, sinks=5, window=11)
    ready = policy.labelled(HeadLabels(CARD, {Head(0, 0): ("retrieval", FULL)}, {"induction": SCORE_LH}))
    assert ready.labels[Head(0, 0)] == ("retrieval",)  # an older policy's label is gone
    assert ready.heads(FULL) == (Head(0, 2), Head(0, 3), Head(2, 0), Head(2, 1), Head(2, 6), Head(2, 7))
    assert (choosing.policy_of(ready).full_LG == policy.full_LG).all()
    formats.write(ready, tmp_path / "razor.json", "razor", Export(label=FULL))
    assert json.loads((tmp_path / "razor.json").read_text()) == {"0": [1], "1": [], "2": [0, 3]}
    formats.write(ready, tmp_path / "duo", "duo", Export(probe=FULL, sink=5, recent=11))
    config = json.loads((tmp_path / "duo" / "config.json").read_text())
    assert (config["sink_size"], config["recent_size"]) == (5, 11)
    gates = np.loadtxt(tmp_path / "duo" / "full_attention_heads.tsv", delimiter="\t")
    assert (choosing.by_quantile(CARD, gates, 1 - policy.full_share).full_LG == policy.full_LG).all()  # DuoAttention's and kvpress's cut


def test_labels_of_another_model_take_no_policy():
    other = ModelCard("other", "memory", "", Shape(2, 8, 4, 16, 128))
    with pytest.raises(InputError, match="were made for mine"):
        policy_of(FEW).labelled(HeadLabels(other, {}, {}))


def test_the_nearest_row_is_of_the_same_ranking():
    rows = pd.concat([VERIFIED, pd.DataFrame([{**ROW, "policy": "ranks:b+a", "full_heads": 4}, {**ROW, "policy": "random", "full_heads": 5}])])
    assert nearest(rows, "induction", 4)["full_heads"] == 2  # the smaller one of two
    assert nearest(rows, "induction", 11)["full_heads"] == 6
    assert nearest(rows, "ranks:a+b", 1)["full_heads"] == 4
    assert nearest(rows, "a+b", 1) is None
    assert nearest(rows, "random", 5) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"\xff\xfe\x00", "x.csv is no table that can be read"),
        ("x.parquet", b"PAR1", "x.parquet is no table that can be read"),
        ("x.csv", VERIFIED.drop(columns="kept").to_csv(index=False).encode(), "it has no column 'kept'"),
        ("x.csv", VERIFIED.assign(recall="much").to_csv(index=False).encode(), "'recall' has something else than numbers"),
        ("x.csv", VERIFIED.head(0).to_csv(index=False).encode(), "has"),
    ],
)
def test_what_is_no_table_of_verify_is_refused(name, content, said):
    with pytest.raises(InputError, match=said):
        policies_table(content, name)


def test_a_table_of_verify_is_read_from_both_kinds_of_file():
    packed = io.BytesIO()
    VERIFIED.to_parquet(packed)
    pd.testing.assert_frame_equal(policies_table(packed.getvalue(), "x.parquet"), VERIFIED)
    assert policies_table(VERIFIED.to_csv(index=False).encode(), "x.csv")["full_heads"].tolist() == [2, 6, 12]


def test_figures_show_what_they_are_given():
    figure = policy_figure(policy_of(FEW, windows=(None, 32, None)), np.arange(12.0).reshape(3, 4), "induction")
    heat, ring = figure.data
    assert (np.array(heat.z) == np.arange(12.0).reshape(3, 4).T).all()
    assert set(zip(ring.x, ring.y, strict=True)) == {(0, 1), (2, 0), (2, 3)}
    told = np.array(heat.customdata)
    assert told[1, 0].tolist() == ["query heads 2–3", "full: sees the whole context"]
    assert told[0, 1, 1] == "the layer's own window of 32"
    assert told[1, 2, 1].startswith("streaming: sees 64 first and 256 last")
    panel = quality_panel(VERIFIED, "kept", {"kv_share": 0.6, "full_heads": 6})
    assert [trace.name for trace in panel.data] == ["by induction", "every head full"]
    assert panel.layout.shapes[0].x0 == 0.6


def test_bytes_are_told_in_units():
    assert [bytes_text(size) for size in (2**20, 1.5 * 2**30, 2**40)] == ["1.0 MiB", "1.50 GiB", "1,024.00 GiB"]
