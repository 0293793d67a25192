"""Does the search find the heads whose sinks hurt? Beside plain passes with the edit, on a model whose answer is known, and in the statistics."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, rankdata
from typer.testing import CliRunner

from workbench import tiny
from workbench.attention import Tap, tapped
from workbench.calibration import SCORE, Asked, Setting, Tally, answers, calibrate, e_value, evaluate, mcnemar, search
from workbench.calibration.taps import calibrated, prepare, screen
from workbench.cli import app
from workbench.edits import Calibrate, SinkRule
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.questions import Question, batches, encode, feed

EDIT = Calibrate(beta=0.2, rule=SinkRule("uniform", 1.5))


def made(architecture="llama", seed=3):
    longer = {"n_layer": 4} if architecture == "gpt2" else {"num_hidden_layers": 4, "layer_types": None}
    return tiny.random_model(architecture, seed=seed, **longer)


def questions(count, seed=0, lengths=(9, 30), options=("A", "B", "C", "D")):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        text = "".join(chr(97 + letter) for letter in rng.integers(0, 26, rng.integers(*lengths)))
        found.append(Question(f"{text} (", options, int(rng.integers(len(options))), "letters"))
    return found


def batch_of(model, count=5, **how):
    (batch,) = batches([encode(model, question) for question in questions(count, **how)], range(count), 10**6)
    return batch


def plainly(model, batch, edits):
    ids, how = feed(model, batch.prompts)
    with torch.inference_mode(), tapped(model, Tap(batch.prompts, (), edits, "torch")) as hf:
        return hf(ids, use_cache=False, logits_to_keep=1, **how).logits[:, -1]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_exact_effect_is_a_plain_pass_with_that_head_calibrated(architecture):
    model = made(architecture)
    batch = batch_of(model)
    assert batch.prompts.padding is not None
    ready = prepare(model, batch, EDIT, (0, 1, 3))
    assert torch.allclose(ready.logits_BV, plainly(model, batch, ()), atol=1e-4)
    changed = 0.0
    for layer in (0, 1, 3):
        place, head = [4, 0, 2, 2], [1, 2, 0, 1]
        rows, logits = calibrated(model, ready, layer, place, head)
        for row, (number, index) in enumerate(zip(place, head, strict=True)):
            expected = plainly(model, batch, (replace(EDIT, heads=(Head(layer, index),)),))[number]
            assert torch.allclose(logits[row], expected, atol=1e-4)
            changed = max(changed, float((expected - ready.logits_BV[number]).abs().max()))
        assert rows.numbers == tuple(batch.numbers[number] for number in place)
    assert changed > 1e-2
    assert torch.allclose(plainly(model, batch, ()), ready.logits_BV, atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_first_order_effect_is_the_slope_of_the_loss(architecture):
    model = made(architecture)
    batch = batch_of(model)
    nearly_one = replace(EDIT, beta=0.99)
    seen = screen(model, batch, nearly_one, (1, 2))
    assert np.isfinite(seen.first_BLH).all()
    assert not seen.first_BLH[:, [0, 3]].any()
    assert (seen.first_BLH[seen.sinks_BLH == 0] == 0).all()
    base = batch.loss(plainly(model, batch, ()))
    assert np.allclose(seen.loss_B, base, atol=1e-4)
    for head in (Head(1, 0), Head(2, 1)):
        exact = (batch.loss(plainly(model, batch, (replace(nearly_one, heads=(head,)),))) - base).numpy()
        assert np.allclose(seen.first_BLH[:, head.layer, head.index], exact, atol=2e-3 + 0.1 * np.abs(exact).max())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


class Planted:
    """A random model in which one head, by what it reads from its sinks, decides all answers: with them calibrated, the right one wins."""

    LAYER, HEAD, IDLE = 2, 1, 4

    def __init__(self):
        self.model = made("llama", seed=11)
        model = self.model
        with torch.no_grad():
            for layer in range(4):
                model.weights.outputs[layer].weight *= 0.2
            size = model.shape.d_head
            output = model.weights.outputs[self.LAYER].weight
            output[:, self.IDLE * size : (self.IDLE + 1) * size] = 0
            output[:, self.HEAD * size : (self.HEAD + 1) * size] *= 40


def right_with(model, encoded, heads):
    return answers(model, encoded, (replace(EDIT, heads=heads),) if heads else ())[0]


@pytest.fixture(scope="module")
def planted():
    """The model, and questions whose right option is what the model says with the planted head calibrated."""
    plant = Planted()
    model, head = plant.model, Head(plant.LAYER, plant.HEAD)
    found = []
    for question in questions(60, seed=5):
        batch = batches([encode(model, question)], [0], 999)[0]
        said = int(batch.options(plainly(model, batch, (replace(EDIT, heads=(head,)),))).argmax())
        found.append(replace(question, answer=said))
    return model, [encode(model, question) for question in found], head, Head(plant.LAYER, plant.IDLE)


def test_the_planted_head_is_found_and_the_idle_one_is_not(planted):
    model, encoded, head, idle = planted
    before, after = right_with(model, encoded, ()), right_with(model, encoded, (head,))
    assert after.all()
    assert (~before).sum() >= 8
    found = search(model, {"letters": encoded}, Setting(EDIT, screen=1.0, layers=(1, 2), block=10))
    table = found.table.set_index("head")
    assert len(table) == 12
    assert head in found.kept
    assert table.loc[str(head), "stopped"] == "helps"
    assert table.loc[str(head), "n"] < 60
    assert table.loc[str(head), "broken"] == 0
    for name in (str(idle),):
        assert name not in {str(kept) for kept in found.kept}
        assert table.loc[name, ["fixed", "broken", "gain"]].eq(0).all()
        assert table.loc[name, "exact"] == pytest.approx(0, abs=1e-5)
    assert table["exact"].idxmin() == str(head)
    assert table["kept"].sum() == len(found.kept)
    for row in found.table[found.table["stopped"] == ""].itertuples():
        difference = right_with(model, encoded, (Head.parse(row.head),)).mean() - before.mean()
        assert row.gain == pytest.approx(difference)
        assert row.n == 60


def test_held_out_questions_tell_what_the_kept_heads_do(planted):
    model, encoded, head, idle = planted
    table = evaluate(model, {"x": encoded[:20], "y": encoded[20:]}, EDIT, (head,), (head, idle), seeds=(0, 1, 2, 3))
    means = table[table["task"] == "mean"].set_index(["heads", "seed"])
    assert set(table["heads"]) == {"none", "kept", "all", "random"}
    plain = right_with(model, encoded, ())
    assert means.loc[("none", np.nan), "accuracy"] == pytest.approx((plain[:20].mean() + plain[20:].mean()) / 2)
    kept = table[(table["heads"] == "kept")].set_index("task")
    assert kept["accuracy"].eq(1).all()
    assert kept.loc["y", "difference"] == pytest.approx(1 - plain[20:].mean())
    assert kept.loc["mean", "difference"] == pytest.approx(1 - means.loc[("none", np.nan), "accuracy"])
    assert kept.loc["mean", "fixed"] == (~plain).sum() == kept.loc["x", "fixed"] + kept.loc["y", "fixed"]
    assert kept.loc["mean", "p"] == pytest.approx(0.5 ** ((~plain).sum() - 1))
    assert (kept["difference_low"] <= kept["difference"]).all()
    assert kept["sinks"].gt(0).all()
    random = table[(table["heads"] == "random") & (table["task"] == "mean")]
    assert set(random["accuracy"]) <= {1.0, means.loc[("none", np.nan), "accuracy"]}  # the planted head or the idle one
    assert len(set(random["accuracy"])) == 2
    assert set(evaluate(model, {"x": encoded[:5]}, EDIT, (), (head,))["heads"]) == {"none", "all"}


def test_screening_measures_the_best_share_and_a_sample(planted):
    model, encoded, _, _ = planted
    setting = Setting(EDIT, screen=0.25, sample=3, layers=(1, 2), block=20)
    found = search(model, {"letters": encoded[:40]}, setting)
    assert found.table["chosen"].value_counts().to_dict() == {"screening": 3, "sample": 3}
    rank = found.evidence.over_tasks(found.evidence.first_NLH)[1:3]
    best = {str(Head(1 + place // 6, place % 6)) for place in np.argsort(rank.ravel())[:3].tolist()}
    assert set(found.table.loc[found.table["chosen"] == "screening", "head"]) == best
    seen = found.table
    assert found.agreement["measured"]["heads"] == 6
    a, b = rankdata(seen["predicted_seen"]), rankdata(seen["exact"])
    assert found.agreement["measured"]["spearman"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert 0 < found.cost["full_seconds"] < found.cost["naive_seconds"]
    assert found.cost["passes"] <= 6 * 40
    again = search(model, {"letters": encoded[:40]}, setting)
    assert again.table.equals(found.table)


def test_without_sinks_nothing_changes_and_it_says_so(planted, tmp_path):
    model, encoded, _, _ = planted
    path = tmp_path / "letters.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": one.question.prompt, "options": one.question.options, "answer": 0}) for one in encoded[:20]))
    found = calibrate(model, Asked((str(path),), 10, 10), Setting(Calibrate(rule=SinkRule("absolute", 1e6))))
    assert found.search.kept == ()
    assert found.search.table.empty
    assert "no sink found in any candidate: calibration changes nothing" in found.remarks
    assert found.held_out["difference"].eq(0).all()
    assert set(found.held_out["heads"]) == {"none", "all"}
    assert found.labels().heads("calibrate") == ()


# ---- the sequential test


def test_e_values_are_the_mean_of_likelihood_ratios():
    q = np.linspace(0.5, 1, 200_001)
    for fixed, broken in [(0, 0), (3, 0), (5, 2), (2, 9), (40, 20)]:
        expected = np.trapezoid(2 * (2 * q) ** fixed * (2 - 2 * q) ** broken, q)
        assert e_value(fixed, broken) == pytest.approx(expected, rel=1e-6)
    assert e_value(0, 4000) >= 0
    assert e_value(7, 0) > 20 > e_value(6, 0)


def test_fair_coins_seldom_reach_twenty_however_often_one_looks():
    rng = np.random.default_rng(0)
    reached = helped = 0
    for _ in range(400):
        fair, good = (np.cumsum(rng.random(150) < chance) for chance in (0.5, 0.8))
        reached += any(e_value(int(f), n + 1 - int(f)) >= 20 for n, f in enumerate(fair))
        helped += any(e_value(int(f), n + 1 - int(f)) >= 20 for n, f in enumerate(good))
    assert reached <= 0.05 * 400
    assert helped > 0.95 * 400


def test_a_head_is_left_when_enough_is_known():
    def tally(fixable=10, total=40):
        return Tally.fresh(np.array([total]), np.array([fixable]))

    sure = tally()
    for _ in range(7):
        sure.add(0, before=False, after=True, sink=True)
    assert sure.judge() == "helps"
    assert sure.kept
    assert sure.gain == 1
    bad = tally(fixable=30)
    for _ in range(7):
        bad.add(0, before=True, after=False, sink=True)
    assert bad.judge() == "hurts"
    assert not bad.kept
    late = tally(fixable=2)
    late.add(0, before=True, after=False, sink=True)
    assert late.judge() == ""
    assert late.best == pytest.approx(1 / 40)
    late.add(0, before=False, after=False, sink=True)
    assert late.judge() == "futile"  # one broken, one left that can be fixed
    assert not late.kept
    two = Tally.fresh(np.array([10, 40]), np.array([3, 3]))
    two.add(0, before=True, after=False, sink=True)
    two.add(1, before=False, after=True, sink=True)
    assert two.gain == 0
    assert two.best == pytest.approx(((3 - 1) / 10 + (2 + 1) / 40) / 2)


@pytest.mark.parametrize("split", [(0, 0), (1, 0), (5, 5), (9, 2), (30, 14)])
def test_mcnemar(split):
    fixed, broken = split
    p = mcnemar(fixed, broken)
    assert p == mcnemar(broken, fixed)
    rng = np.random.default_rng(1)
    draws = rng.binomial(fixed + broken, 0.5, 200_000)
    extreme = np.abs(2 * draws - fixed - broken) >= abs(fixed - broken)
    assert p == pytest.approx(extreme.mean(), abs=0.01)
    if fixed + broken > 40:  # the test's usual approximation
        assert p == pytest.approx(chi2.sf((abs(fixed - broken) - 1) ** 2 / (fixed + broken), 1), abs=0.01)


# ---- what cannot be used, labels, the command


def test_settings_that_do_not_fit(planted):
    model = planted[0]
    assert Setting().candidates(model.shape) == tuple(Head(2, index) for index in range(6))
    with pytest.raises(InputError, match="by default all layers but the first two and the last"):
        Setting().candidates(tiny.random_model("llama").shape)
    for wrong, said in [({"layers": (1, 4)}, "4 layers, from 0"), ({"screen": 0.0}, "above 0"), ({"edit": replace(EDIT, heads=(Head(0, 0),))}, "without them")]:
        with pytest.raises(InputError, match=said):
            Setting(**wrong).candidates(model.shape)
    with pytest.raises(InputError, match="beta is the share that sinks keep"):
        Calibrate(beta=1.5)


@pytest.fixture
def command(planted, tmp_path, monkeypatch):
    """Runs the command on the planted model and a file of its questions."""
    model, encoded, _, _ = planted
    monkeypatch.setattr("workbench.models.load", lambda *_, **__: model)
    path = tmp_path / "letters.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": q.prompt, "options": q.options, "answer": q.answer}) for q in (one.question for one in encoded)))

    def run(*more):
        options = ["--examples", 30, "--held-out", 30, "--beta", 0.2, "--rule", "uniform", "--threshold", 1.5, "--layers", "1,2", "--out", tmp_path / "c.json"]
        return CliRunner().invoke(app, ["calibrate", "--task", str(path), *map(str, [*options, *more])])

    return run, tmp_path


def test_the_command_writes_labels_that_the_edit_reads(command, planted):
    run, folder = command
    model, _, head, idle = planted
    given = HeadLabels(model.card, {idle: ("calibrate", "mine"), head: ("mine",)}, {"retrieval": np.zeros((4, 6))}).save(folder / "heads.json")
    result = run("--screen", 0.5, "--labels", given, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    labels = HeadLabels.load(folder / "c.json")
    assert str(head) in said["kept"]
    assert head in labels.heads("calibrate")
    assert idle not in labels.heads("calibrate")
    assert labels.heads("mine") == (head, idle)
    assert labels.scores[SCORE][head.layer, head.index] > 0
    assert labels.scores[SCORE][0, 0] == 0
    assert labels.evidence[SCORE]["heads_candidates"] == 12
    assert labels.provenance["calibrate"]["edit"] == {"edit": "calibrate", "beta": 0.2, "rule": "uniform", "threshold": 1.5, "find": "prompt"}
    edit = Calibrate(heads=labels.heads("calibrate"), beta=0.2, rule=SinkRule("uniform", 1.5))
    assert head in edit.heads
    assert {"heads", "held_out", "labels"} <= set(said["files"])
    seen = CliRunner().invoke(app, ["show", str(folder / "c.json"), "--probe", "calibration_gain"])
    assert seen.exit_code == 0, seen.output
    shown = run("--screen", 0.5)
    assert "kept" in shown.stdout
    assert str(head) in shown.stdout
    assert "full search" in shown.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--beta", 1.5], "0 to 1"),
        (["--rule", "most"], "unknown rule"),
        (["--task", "sums"], "category, follows, recall"),
        (["--layers", "one"], "--layers takes numbers"),
        (["--examples", 0], "at least one question"),
        (["--out", "x.csv"], ".json"),
    ],
)
def test_what_the_command_refuses(command, options, said):
    result = command[0](*options)
    assert result.exit_code == 2
    assert said in result.stderr
