"""When do heads appear: is a model with sigmoid attention what it says, is it never scored as a softmax, and are onsets found where they are?"""

import importlib.util
import json
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench import score
from workbench.emergence.onset import checked, onsets, strongest
from workbench.emergence.reading import COLUMNS, SINK, pattern_scores, scored, shares, swept
from workbench.emergence.sigmoid import opened, sigmoid_attention
from workbench.emergence.training import BYTES, Growth, _text, batches, grow, losses, milestones
from workbench.errors import InputError
from workbench.executors import executor
from workbench.heads import Head
from workbench.models import HFModel, load
from workbench.options import Options
from workbench.prompts import Prompts
from workbench.sweeping import Dataset, Sweep, run
from workbench.tiny import random_model
from workbench.views import emergence_figure

TINY = {"layers": 1, "heads": 2, "size": 8, "width": 16, "context": 128, "batch": 4, "steps": 2}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A tiny model of each attention after two steps, its checkpoints by attention."""
    folders = tmp_path_factory.mktemp("grown")
    return {kind: grow(Growth(**TINY, attention=kind), folders / kind, device="cpu") for kind in ("softmax", "sigmoid")}


# ---------------------------------------------------------------- sigmoid attention


def test_sigmoid_attention_is_a_loop_over_rows_and_keys():
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 3, generator=noise) for heads in (4, 2, 2))
    see = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5).clone()
    see[1, :, :, 0] = False
    out_BQHE, weight_BHQK = sigmoid_attention(None, q, k, v, see, scaling=0.7)
    for b, h, row in np.ndindex(2, 4, 5):
        z = np.zeros(3)
        for key in range(5):
            weight = 1 / (1 + np.exp(-0.7 * float(q[b, h, row] @ k[b, h // 2, key]))) if see[b, 0, row, key] else 0.0
            assert float(weight_BHQK[b, h, row, key]) == pytest.approx(weight, abs=1e-6)
            z += weight * v[b, h // 2, key].numpy()
        np.testing.assert_allclose(out_BQHE[b, row, h].numpy(), z, atol=1e-5)


def test_a_model_with_sigmoid_attention_uses_its_own_and_is_causal(grown):
    model = opened(grown["sigmoid"][-1][1], "cpu")
    ids = np.random.default_rng(0).integers(*BYTES, (1, 20))
    weight_BLHQK = model.patterns(Prompts(ids))
    assert weight_BLHQK.shape == (1, 1, 2, 20, 20)
    assert (weight_BLHQK[0, 0, 0].triu(1) == 0).all()
    assert (weight_BLHQK.sum(-1)[..., -1] > 5).all(), "rows of a model that has hardly been trained sum to half of what they see"
    changed = ids.copy()
    changed[0, -1] += 1
    logits = [model.hf(torch.tensor(array)).logits[0, :-1] for array in (ids, changed)]
    torch.testing.assert_close(*logits)


def test_nothing_takes_sigmoid_attention_for_softmax(grown):
    folder = grown["sigmoid"][-1][1]
    with pytest.raises(InputError, match="llama_sigmoid"):
        load(str(folder), device="cpu")
    with pytest.raises(ValueError, match="llama_sigmoid"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match="rows do not sum to 1"):
        score(opened(folder, "cpu"), ["attention_sink"])
    with pytest.raises(InputError, match=r"softmax attention; workbench\.load opens it"):
        opened(grown["softmax"][-1][1], "cpu")


def test_a_model_with_sigmoid_attention_is_another_than_the_llama_with_its_weights(grown):
    model = opened(grown["sigmoid"][-1][1], "cpu")
    llama = random_model("llama").hf.__class__(model.config)
    llama.load_state_dict(model.hf.state_dict())
    twin = HFModel("twin", "made here", llama, model.tokenizer)
    assert model.weights.q(Head(0, 1)).equal(twin.weights.q(Head(0, 1)))
    assert model.fingerprint != twin.fingerprint
    assert model.shape == twin.shape


def test_shares_are_rows_divided_by_their_sum():
    weight = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.6, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(shares(weight), torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]))


# ---------------------------------------------------------------- scores from patterns


def test_scores_from_a_models_own_patterns_are_those_of_score():
    model = random_model("llama")
    probes, options = ["previous_token", "induction", "attention_sink", SINK], Options(length=128)

    def patterns(prompts):
        with torch.inference_mode(), model.attention("eager") as hf:
            return torch.stack(hf(torch.tensor(prompts.ids_BT), output_attentions=True).attentions, dim=1)

    ours = pattern_scores(model, patterns, probes, options=options).sort_values(["probe", "layer", "head"])
    theirs = score(model, probes, options=options).table.sort_values(["probe", "layer", "head"])
    assert list(ours["probe"]) == list(theirs["probe"])
    for column in ("score", "std", "ci_low", "ci_high", "null", "n"):
        np.testing.assert_allclose(ours[column], theirs[column], atol=2e-6)


def test_a_probe_of_weights_has_no_patterns():
    with pytest.raises(InputError, match="copying: not a probe of patterns alone"):
        pattern_scores(random_model("llama"), lambda prompts: None, ["copying"])


def test_weights_and_shares_of_known_sigmoid_attention(grown):
    """Queries of 0 give every key that a row sees the weight ½, so that the shares are those of uniform attention, the null."""
    model = opened(grown["sigmoid"][0][1], "cpu")
    model.hf.model.layers[0].self_attn.q_proj.weight.zero_()
    table = scored(model).set_index(["reading", "probe"])
    for probe in ("previous_token", "attention_sink", "attention_sink_bos"):
        for column in ("score", "null"):
            assert table.loc[("weights", probe), column].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
        assert table.loc[("shares", probe), "score"].tolist() == pytest.approx(table.loc[("shares", probe), "null"].tolist(), abs=1e-6)


# ---------------------------------------------------------------- training


def test_milestones():
    assert milestones(8) == [0, 8]
    assert milestones(128) == [0, 8, 16, 32, 64, 76, 91, 108, 128]
    assert milestones(100)[-2:] == [91, 100]
    assert max(np.diff(np.log2(milestones(4096)[4:]))) < 0.26


def test_half_of_a_batch_is_text_that_is_not_held_out_and_half_repeats():
    growth = Growth(context=64, batch=8)
    model = growth.model()
    (train_T, held_T), text = _text(model), model.tokenizer
    ids_BT = next(batches(growth, train_T, [1]))
    assert ids_BT.shape == (8, 64)
    assert (ids_BT[:, 0] == 1).all()
    whole = text.decode(train_T)
    assert all(text.decode(row[1:]) in whole for row in ids_BT[:4])
    for row in ids_BT[4:, 1:]:
        periods = [size for size in range(4, 33) if (row[size:] == row[:-size]).all()]
        assert periods
        assert text.decode(row) not in whole
    assert len(held_T) == pytest.approx(len(train_T) / 9, abs=1)
    np.testing.assert_array_equal(ids_BT, next(batches(growth, train_T, [1])))


def test_losses_of_a_model_that_knows_nothing_and_of_one_that_repeats(grown):
    growth = Growth(**TINY)
    model = growth.model()
    model.hf.lm_head.weight.zero_()
    assert losses(model, growth) == pytest.approx([np.log(260)] * 3)

    def repeats(ids_BT, **_):
        """Says what stood 63 tokens before the next, half of the 127 behind BOS."""
        before_BT = torch.nn.functional.pad(ids_BT[:, :-62], (62, 0))
        return SimpleNamespace(logits=20.0 * torch.nn.functional.one_hot(before_BT, 260).float())

    model.hf.forward = repeats
    found = losses(model, growth)
    assert found.second < 1e-4
    assert found.first > 10


@pytest.mark.slow
def test_a_model_learns_to_copy_a_short_segment():
    """One layer can learn what stands at a fixed distance; the loss on segments of four tokens falls far below chance."""
    growth = Growth(layers=1, heads=2, size=16, width=32, context=32, batch=16, repeats=1.0, steps=1, rate=1e-2)
    model = growth.model()
    hf = model.hf.train().requires_grad_(True)
    optimizer, noise = torch.optim.AdamW(hf.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    lost = []
    for _ in range(200):
        ids_BT = torch.randint(3, 11, (16, 4), generator=noise).repeat(1, 5)
        loss = torch.nn.functional.cross_entropy(hf(ids_BT[:, 7:-1]).logits.transpose(1, 2), ids_BT[:, 8:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lost.append(float(loss.detach()))
    assert lost[0] == pytest.approx(np.log(260), abs=0.2)
    assert lost[-1] < 1.0 < np.log(8)


def test_checkpoints_are_model_folders_and_the_same_seed_gives_the_same(grown, tmp_path):
    again = grow(Growth(**TINY), tmp_path, device="cpu")
    assert [step for step, _ in again] == [0, 2]
    first, second = ([load(str(folder), device="cpu") for _, folder in kept] for kept in (grown["softmax"], again))
    assert [model.fingerprint for model in first] == [model.fingerprint for model in second]
    assert first[0].fingerprint != first[1].fingerprint
    assert first[0].tokenizer("a")["input_ids"] == [1, first[0].tokenizer.convert_tokens_to_ids("a")]
    facts = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert facts["steps"] == len(facts["loss"]) == 2
    assert {"text", "versions", "device", "threads", "seconds", "seed"} <= set(facts)


def test_checkpoints_can_be_swept_and_their_scores_are_those_of_the_emergence(grown, tmp_path):
    folder = grown["softmax"][0][1].parent
    parts = [
        Sweep.parse({"models": [f"{folder}/step-*"], "probes": ["induction", "attention_sink"]}),
        Sweep.parse({"models": [f"{folder}/step-*"], "probes": ["previous_token"], "prompts": [{"length": TINY["context"]}]}),
    ]
    with closing(executor()) as alone:
        for part in parts:
            assert run(part, Dataset(tmp_path), alone).failed == {}
    table = Dataset(tmp_path).table()
    table["step"] = table["version"].str.extract(r"step-(\d+)", expand=False).astype(int)
    keys = ["step", "probe", "layer", "head"]
    there = swept(grown["softmax"], Growth(**TINY), device="cpu").query("probe != @SINK.name").set_index(keys).sort_index()
    columns = ["score", "ci_low", "ci_high", "null"]
    pd.testing.assert_frame_equal(table.set_index(keys)[columns].sort_index(), there[columns], check_exact=False, atol=1e-7)
    assert len(there) == 2 * 3 * 2


def test_weight_decay_makes_weights_smaller(tmp_path):
    norms = []
    for decay in (0.0, 50.0):
        kept = grow(Growth(**TINY, weight_decay=decay), tmp_path / str(decay), device="cpu")
        norms.append([float(load(str(folder), device="cpu").hf.lm_head.weight.norm()) for _, folder in kept])
    assert norms[0][0] == norms[1][0]
    assert norms[1][1] < norms[0][1]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"size": 7}, {"context": 8}, {"rate": 0.0}, {"weight_decay": -1.0}, {"repeats": 1.5}, {"attention": "linear"}])
def test_what_cannot_be_grown_is_refused(wrong):
    with pytest.raises(InputError, match=str(wrong.get("attention", "grown"))):
        Growth(**wrong)


# ---------------------------------------------------------------- onsets


def hand_made():
    """Two heads, four checkpoints: L0H0 looks back from step 20 on, L0H1 is never an induction head but for its null, and a sink only at the first."""
    rows = []
    known = {"previous_token": [(0.1, 0.2), (0.49, 0.3), (0.5, 0.2), (0.9, 0.6)], "induction": [(0, 0), (0.1, 0.2), (0.2, 0.3), (0.3, 0.39)]}
    known["attention_sink"] = [(0.4, 0.1), (0.2, 0.1), (0.1, 0.1), (0.31, 0.32)]
    for probe, by_step in known.items():
        for step, heads in zip((0, 10, 20, 40), by_step, strict=True):
            rows += [
                {"step": step, "reading": "probabilities", "probe": probe, "layer": 0, "head": head, "score": value, "null": 0.05}
                for head, value in enumerate(heads)
            ]
    return pd.DataFrame(rows)


def test_onsets_of_a_hand_made_table():
    found = onsets(hand_made()).set_index("probe")
    assert found.loc["previous_token", ["before", "step", "highest", "last", "heads"]].tolist() == [10, 20, 0.9, 0.9, 2]
    assert found.loc["attention_sink", ["before", "step", "highest", "last", "heads"]].tolist() == [-1, 0, 0.4, 0.32, 2]
    assert np.isnan(found.loc["induction", ["before", "step"]].astype(float)).all()
    assert found.loc["induction", ["highest", "last", "heads"]].tolist() == [0.39, 0.39, 0]


def test_a_head_must_be_above_its_null():
    table = hand_made().assign(null=0.6)
    found = onsets(table).set_index("probe")
    assert found.loc["previous_token", "step"] == 40
    assert np.isnan(found.loc["attention_sink", "step"])


def test_weights_that_are_not_normalised_label_nobody():
    table = hand_made().assign(reading="weights")
    assert onsets(table).empty
    assert strongest(table)["heads"].sum() == 0
    assert strongest(table.assign(reading="shares"))["heads"].sum() > 0


def test_onsets_of_several_runs_are_apart():
    late = hand_made().assign(run="late", step=lambda table: table["step"] * 2)
    both = onsets(pd.concat([hand_made().assign(run="base"), late]), ["run"]).set_index(["run", "probe"])
    assert both["step"].xs("previous_token", level="probe").to_dict() == {"base": 20, "late": 40}
    best = strongest(hand_made())
    assert best[best["probe"] == "previous_token"][["layer", "head"]].values.tolist() == [[0, 1], [0, 0], [0, 0], [0, 0]]


def test_a_table_that_mixes_runs_is_refused():
    with pytest.raises(InputError, match="24 are there again"):
        checked(pd.concat([hand_made(), hand_made()]))
    with pytest.raises(InputError, match="missing: null"):
        onsets(hand_made().drop(columns="null"))


# ---------------------------------------------------------------- table, figure, script


def test_a_sweep_has_every_head_of_every_checkpoint(grown):
    for kind, readings in (("softmax", 1), ("sigmoid", 2)):
        table = swept(grown[kind], Growth(**TINY, attention=kind), device="cpu")
        assert list(table.columns) == COLUMNS
        assert len(table) == 2 * 4 * 2 * readings
        assert table["score"].between(0, 1).all()
        assert table.groupby("step")[["text", "first", "second"]].nunique().eq(1).all(axis=None)
        assert table["text"].between(5, 6).all()


def test_the_figure_shows_what_is_in_the_table():
    table = hand_made().assign(run="base", seed=0, text=2.0, first=5.5, second=lambda table: 5 - table["step"] / 10)
    table = pd.concat([table, table.assign(run="other", reading="weights")])
    figure = emergence_figure(table)
    (score_line,) = [trace for trace in figure.data if trace.name == "previous token" and trace.yaxis == "y3"]
    assert list(score_line.x) == [5, 10, 20, 40]
    assert list(score_line.y) == [0.2, 0.49, 0.5, 0.9]
    assert [tuple(data) for data in score_line.customdata] == [(0, "L0H1"), (10, "L0H0"), (20, "L0H0"), (40, "L0H0")]
    (second,) = [trace for trace in figure.data if trace.name == "loss on their repetition" and trace.xaxis == "x"]
    assert list(second.y) == [5, 4, 3, 1]
    assert {trace.line.dash for trace in figure.data if trace.name == "induction, weights not normalised"} == {"dot"}
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert len(names) == len(set(names)) == 9
    assert figure.layout.xaxis.type == "log"


def test_the_script_does_not_train_what_is_there(tmp_path, monkeypatch, capsys):
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("emergence_script", folder / "emergence.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "save_figure", lambda figure, path: path.write_bytes(b""))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    command = ["emergence.py", "--out", str(tmp_path / "out"), "--folder", str(tmp_path / "runs"), "--device", "cpu", "--seeds", "0"]
    command += [word for name, value in {**TINY, "steps": 1}.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "sigmoid"])
    script.main()
    tables = [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.csv"))]
    assert len(tables) == 3
    assert "sigmoid-0: Growth" in capsys.readouterr().out
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in readme
    assert "| sigmoid | 0 | shares | attention_sink |" in readme
    script.main()
    assert "Growth" not in capsys.readouterr().out
    assert tables == [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.csv"))]
