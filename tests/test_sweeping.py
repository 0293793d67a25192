"""Is a sweep what its file says, does it find again what is finished, and is its table that of the scores?"""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import measure, storage
from workbench.batches import Work
from workbench.cli import app
from workbench.edits import Ablate, Calibrate, SinkRule, Stream
from workbench.errors import InputError
from workbench.executors import Wanted, executor
from workbench.groups import Way
from workbench.heads import Head
from workbench.models import load
from workbench.options import Options
from workbench.scores import COLUMNS
from workbench.sweeping import Dataset, Sweep, compare, planned, run, running, score_on
from workbench.sweeping.dataset import COLUMNS as DATASET_COLUMNS
from workbench.tiny import random_model

PROBES = ("previous_token", "copying")


def swept(sweep, root, **how):
    with closing(executor(**how)) as chosen:
        return run(sweep, Dataset(root), chosen)


def test_a_file_says_what_is_swept(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        """
models: [smollm2-135m, {name: other, revision: main, dtype: bfloat16}]
probes: [induction, previous_token]
preset: quick
seeds: [0, 3]
prompts: [{name: plain}, {length: 512}, {name: mine, length: 256, haystack: text.txt}]
edits:
  - none
  - {name: without, ablate: [L0H1, 1-2]}
  - {ablate: {heads: [L0H0], kind: uniform, phase: decode}, stream: {sinks: 2, window: 9}}
  - {name: calibrated, calibrate: {beta: 0.5, rule: {kind: absolute, threshold: 0.2}, heads: [L1H0]}}
way: {implementation: torch, chunk: 128}
"""
    )
    sweep = Sweep.load(tmp_path / "sweep.yaml")
    assert sweep.models == (Wanted("smollm2-135m"), Wanted("other", "main", dtype="bfloat16"))
    assert sweep.probes == ("induction", "previous_token")
    assert dict(sweep.prompts) == {"plain": None, "length 512": Options(length=512), "mine": Options(length=256, haystack=Path("text.txt"))}
    assert sweep.edits["none"] == ()
    assert sweep.edits["without"] == (Ablate((Head(0, 1), Head(1, 2))),)
    third = list(sweep.edits.values())[2]
    assert third == (Ablate((Head(0, 0),), "uniform", "decode"), Stream(2, 9))
    assert sweep.edits["calibrated"] == (Calibrate((Head(1, 0),), 0.5, SinkRule("absolute", 0.2)),)
    assert sweep.way == Way("torch", 128)
    cells = list(sweep.cells())
    assert len(cells) == 2 * 3 * 4 * 2
    assert len({cell.fingerprint for cell in cells}) == len(cells)
    assert cells[0].what == "smollm2-135m, plain, seed 0"
    assert Sweep.parse({"models": [{"name": "other", "revision": 1000}]}).models == (Wanted("other", "1000"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles: [a]", "unknown key of a sweep 'modles'.*models"),
        ("models: [{name: a, dtpye: float32}]", "unknown key of a model 'dtpye'.*dtype"),
        ("prompts: [{lenght: 300}]", "unknown key of prompts 'lenght'.*length"),
        ("edits: [{ablat: [L0H0]}]", "unknown key of edits 'ablat'.*ablate"),
        ("edits: [{calibrate: {rule: {knd: share}}}]", "unknown key of rule 'knd'.*kind"),
        ("way: {chunks: 3}", "unknown key of way 'chunks'.*chunk"),
        ("way: {implementation: fast}", "unknown implementation .fast.; there are: .*torch"),
        ("probes: [inductoin]", "unknown probe 'inductoin'"),
        ("probes: induction", "probes is a list, got 'induction'"),
        ("models: []", "a sweep needs one or more models"),
        ("probes: []", "a sweep needs one or more probes"),
        ("models: [{name: [a]}]\nprompts: [{lengths: 300}]", "lengths is a list, got 300"),
        ("prompts: [{length: long}]", "lengths are whole numbers, got 'long'"),
        ("prompts: [{lengths: [300.5]}]", "lengths are whole numbers, got 300.5"),
        ("models: [a, a]", "a sweep has each of its models once"),
        ("seeds: [one]", "seeds are whole numbers, got 'one'"),
        ("seeds: [true]", "seeds are whole numbers, got True"),
        ("edits: [{name: x}]", "the edits x change nothing"),
        ("edits: [{name: x, ablate: [L0H0]}, {name: x, ablate: [L0H1]}]", "two edits are called x"),
        ("edits: [{ablate: [nonsense]}]", "ablate: .*nonsense"),
        ("prompts: [{length: 5}]", "--length is at least 128"),
        ("[a, b]", "a sweep is a mapping with models"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_a_file_cannot_mean_is_named(tmp_path, text, said):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"s\.yaml:? .*{said}|s\.yaml {said}"):
        Sweep.load(tmp_path / "s.yaml")
    with pytest.raises(InputError, match="cannot read"):
        Sweep.load(tmp_path / "none.yaml")


def test_the_scores_of_a_cell_are_those_of_score(folders, tmp_path):
    sweep = Sweep((Wanted(folders[0]), Wanted(folders[1])), PROBES, seeds=(0, 1), edits={"none": (), "less": (Ablate((Head(0, 0),)),)})
    done = swept(sweep, tmp_path)
    assert (done.found, done.made, done.failed) == (0, 8, {})
    table = pd.read_parquet(tmp_path / "scores")
    assert list(table.columns) == list(DATASET_COLUMNS)
    assert len(table) == 8 * 2 * 12
    pd.testing.assert_frame_equal(table.sort_values(["cell", "probe", "layer", "head"], ignore_index=True), sorted_table(Dataset(tmp_path)))
    expected = measure.score(load(folders[1]), PROBES, seed=1, edits=[Ablate((Head(0, 0),))])
    cell = next(cell for cell in sweep.cells() if (cell.wanted.name, cell.asked.seed, cell.edits) == (folders[1], 1, "less"))
    mine = table[table["cell"] == cell.fingerprint]
    pd.testing.assert_frame_equal(mine[list(COLUMNS)].reset_index(drop=True), expected.table, check_dtype=False)
    kept = Dataset(tmp_path).scores(cell.fingerprint)
    assert kept.evidence["copying"]["status"] == "ok"
    assert kept.provenance["edits"] == [Ablate((Head(0, 0),)).describe()]
    with pytest.raises(InputError, match="unknown cell of this sweep"):
        Dataset(tmp_path).scores("x")


def sorted_table(dataset):
    return dataset.table().sort_values(["cell", "probe", "layer", "head"], ignore_index=True)


def test_duckdb_opens_all_cells_as_one_table(folders, tmp_path):
    swept(Sweep((Wanted(folders[0]),), PROBES), tmp_path)
    rows = duckdb.sql(f"select count(*), min(score) from read_parquet('{tmp_path}/scores/*.parquet')").fetchall()[0]
    assert rows == (24, pytest.approx(pd.read_parquet(tmp_path / "scores")["score"].min()))


def test_what_is_finished_is_found_again(folders, tmp_path, monkeypatch):
    sweep = Sweep((Wanted(folders[0]),), PROBES, seeds=(0, 1))
    swept(sweep, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    more = replace(sweep, seeds=(0, 1, 2))
    done = swept(more, tmp_path)
    assert (done.found, done.made) == (2, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr("workbench.executors.task.load", lambda *_, **__: pytest.fail("nothing is left to do"))
    assert swept(more, tmp_path).found == 3


def test_a_pattern_of_models_stands_for_the_folders_that_it_matches(tmp_path, monkeypatch):
    for name in ("step-08", "step-16", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-32").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    sweep = Sweep.parse({"models": ["smollm2-135m", {"name": "step-*", "dtype": "bfloat16"}, "othe?"]})
    assert sweep.models == (Wanted("smollm2-135m"), Wanted("step-08", dtype="bfloat16"), Wanted("step-16", dtype="bfloat16"), Wanted("other"))
    with pytest.raises(InputError, match=r"no folder of a model matches step-3\*"):
        Sweep.parse({"models": ["step-3*"]})
    with pytest.raises(InputError, match="each of its models once"):
        Sweep.parse({"models": ["step-*", "step-08"]})
    (tmp_path / "run[1]" / "step-64").mkdir(parents=True)
    assert Sweep.parse({"models": ["run[1]/step**"]}).models == (Wanted("run[1]/step-64"),)


@pytest.mark.parametrize("every", [0.0, 600.0])
def test_how_far_a_cell_has_come_is_told_while_it_runs(folders, tmp_path, monkeypatch, every):
    monkeypatch.setattr(running, "TELL", every)
    told, name = [], f"{folders[0]}, seed 0"
    with closing(executor()) as chosen:
        run(Sweep((Wanted(folders[0]),), ("previous_token",)), Dataset(tmp_path), chosen, lambda *said: told.append(said))
    batches = [(f"{name}: {done} of 2 batches", 0, 1) for done in (0, 1, 2)]
    assert told == [*(batches if every == 0 else batches[:1]), (name, 1, 1)]


def test_an_interrupted_cell_goes_on_from_its_batches(folders, tmp_path, monkeypatch):
    from workbench import batches

    sweep, made, real = Sweep((Wanted(folders[0]),), ("previous_token",)), [], batches._scored

    def interrupted(group, seen):
        made.append(group.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(group, seen)

    monkeypatch.setattr(batches, "_scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swept(sweep, tmp_path)
    assert len(list((tmp_path / "parts").rglob("part-*.parquet"))) == 1
    assert not (tmp_path / "scores").exists()
    done = swept(sweep, tmp_path)
    whole = measure.score(load(folders[0]), ["previous_token"])
    count = len(made)
    assert done.made == 1
    pd.testing.assert_frame_equal(Dataset(tmp_path).table()[list(COLUMNS)], whole.table, check_dtype=False)
    swept(sweep, tmp_path / "other")
    assert count == (len(made) - count) * 2 + 1  # the batches of the sweep and of `score`, and the interrupted one; not the one that was finished


def test_a_model_that_fails_stops_nothing_else_and_is_tried_again(folders, tmp_path):
    sweep = Sweep((Wanted(str(tmp_path / "none")), Wanted(folders[0])), PROBES)
    done = swept(sweep, tmp_path / "out")
    assert (done.found, done.made) == (0, 1)
    (error,) = done.failed.values()
    assert str(tmp_path / "none") in error
    overview = Dataset(tmp_path / "out").overview().set_index("state")
    assert overview.loc["failed", "error"] == error
    assert overview.loc["done", "batches"] > 1
    load(folders[1]).hf.save_pretrained(tmp_path / "none")
    load(folders[1]).tokenizer.save_pretrained(tmp_path / "none")
    again = swept(sweep, tmp_path / "out")
    assert (again.found, again.made, again.failed) == (1, 1, {})


def test_the_batches_of_a_cell_that_has_failed_are_not_tried(folders, tmp_path, monkeypatch):
    tried, real = [], Work._measured

    def measured(self, *batch):
        tried.append(batch)
        if len(tried) == 2:
            raise InputError("out of memory")
        return real(self, *batch)

    monkeypatch.setattr(Work, "_measured", measured)
    done = swept(Sweep((Wanted(folders[0]),), ("previous_token", "induction"), seeds=(0, 1)), tmp_path)
    assert (done.made, list(done.failed.values())) == (1, ["out of memory"])
    count = Dataset(tmp_path).overview().set_index("state")["batches"]
    assert len(tried) == 2 + count["done"]
    assert count["failed"] == count["done"] > 2


def test_a_full_storage_is_told_and_what_is_finished_stays(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.sweeping.tasks.PATIENCE", 0.0)
    monkeypatch.setattr("workbench.sweeping.running.PATIENCE", 0.0)
    sweep, real, written = Sweep((Wanted(folders[0]),), PROBES, seeds=(0, 1)), storage._written, []

    def full(path, content):
        if len(written) > 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, content)

    monkeypatch.setattr(storage, "_written", full)
    with pytest.raises(InputError, match="No space left on device; what was finished before is intact"):
        swept(sweep, tmp_path)
    assert all(path.exists() for path in written)
    monkeypatch.undo()
    assert swept(sweep, tmp_path).failed == {}
    assert len(Dataset(tmp_path).finished()) == 2


def test_results_lie_in_any_storage(folders, tmp_path):
    sweep = Sweep((Wanted(folders[0]),), PROBES)
    swept(sweep, tmp_path)
    root = storage.place(f"memory://{tmp_path.name}/sweep")
    swept(sweep, root)
    pd.testing.assert_frame_equal(Dataset(root).table(), Dataset(tmp_path).table())
    here = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    there = {str(path).split("/sweep/")[1]: path.read_bytes() for path in root.rglob("*.parquet")}
    assert there == here
    assert swept(sweep, root).found == 1


def test_one_question_by_an_executor_is_that_of_score(folders, tmp_path):
    from workbench.batches import Asked

    with closing(executor(cpus=1)) as chosen:
        found = score_on(chosen, Wanted(folders[0]), Asked(PROBES), str(tmp_path))
        pd.testing.assert_frame_equal(found.table, measure.score(load(folders[0]), PROBES).table)
        with pytest.raises(InputError, match="none-such"):
            score_on(chosen, Wanted("none-such"), Asked(PROBES), str(tmp_path))


def test_a_plan_counts_what_is_not_finished(folders, tmp_path):
    sweep = Sweep((Wanted(folders[0]), Wanted(folders[1], dtype="bfloat16")), PROBES, seeds=(0, 1))
    costs = planned(sweep, set()).set_index("model")
    assert list(costs["cells"]) == [2, 2]
    batches = len(list(swept_parts(replace(sweep, models=sweep.models[:1], seeds=(0,)), tmp_path)))
    assert (costs["tasks"] == 2 * (batches + 2)).all()
    assert costs.iloc[0]["gib"] > costs.iloc[1]["gib"]
    rest = planned(sweep, Dataset(tmp_path).finished()).set_index("model")
    assert list(rest["cells"]) == [1, 2]
    assert rest.iloc[0]["hours"] == pytest.approx(costs.iloc[0]["hours"] / 2)


def test_a_plan_leaves_out_what_will_fail_and_the_sweep_goes_on(folders, tmp_path):
    missing, said = str(tmp_path / "none"), []
    sweep = Sweep((Wanted(missing), Wanted(folders[0])), ("previous_token",), prompts={"short": Options(length=128), "long": Options(length=8192)})
    gpt2 = random_model("gpt2", n_positions=256)
    gpt2.hf.save_pretrained(tmp_path / "gpt2")
    gpt2.tokenizer.save_pretrained(tmp_path / "gpt2")
    both = replace(sweep, models=(*sweep.models, Wanted(str(tmp_path / "gpt2"))))
    assert list(planned(both, set(), say=said.append)["cells"]) == [2, 1]
    assert said[0].startswith(f"the plan leaves out {missing}: unknown model")
    assert said[1].startswith(f"the plan leaves out {tmp_path / 'gpt2'}, long: 8192 tokens do not fit")
    alone = replace(sweep, models=sweep.models[:1])
    with pytest.raises(InputError, match="unknown model"):
        planned(alone, set())
    assert planned(alone, {next(alone.cells()).fingerprint}).empty


def swept_parts(sweep, root):
    swept(sweep, root)
    return (root / "parts").rglob("part-*.parquet")


def frame(version, scores, low, high, **more):
    rows = [{"layer": layer, "head": head, "score": scores[layer, head]} for layer, head in np.ndindex(scores.shape)]
    named = {"prompts": "p", "seed": 0, "edits": "none", "probe": "x", "version": version, **more}
    return pd.DataFrame(rows).assign(ci_low=scores.ravel() - low, ci_high=scores.ravel() + high, **named)


def test_versions_are_compared_head_by_head():
    base = np.array([[0.1, 0.2], [0.3, 0.9]])
    other = base + np.array([[0.0, 0.05], [0.3, -0.5]])
    heads, pairs = compare(pd.concat([frame("base", base, 0.1, 0.1), frame("int4", other, 0.1, 0.1), frame("int4", other, 0.1, 0.1, prompts="q")]), "x", "base")
    assert heads.set_index(["layer", "head"])["difference"].to_dict() == pytest.approx({(0, 0): 0, (0, 1): 0.05, (1, 0): 0.3, (1, 1): -0.5})
    assert heads["apart"].tolist() == [False, False, True, True]
    (row,) = pairs.to_dict("records")
    assert (row["version"], row["apart"], row["largest"]) == ("int4", 2, pytest.approx(0.5))
    assert row["spearman"] == pytest.approx(0.8)  # ranks 1 2 3 4 against 1 2 4 3


def test_what_cannot_be_compared_is_told():
    base = np.array([[0.1, 0.2]])
    both = pd.concat([frame("base", base, 0, 0), frame("other", np.array([[0.1, 0.2, 0.3]]), 0, 0)])
    for table, probe, version, said in (
        (both, "x", "base", "other cannot be compared with base head by head: it has other layers or heads"),
        (both, "y", None, "unknown probe of this sweep 'y'"),
        (both, "x", "none", "unknown version in this sweep 'none'"),
        (frame("base", base, 0, 0), "x", None, "scores of x for base only"),
        (pd.concat([frame("base", base, 0, 0), frame("other", base, 0, 0, seed=1)]), "x", "base", "no other version was asked on the same prompts"),
    ):
        with pytest.raises(InputError, match=said):
            compare(table, probe, version)


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_sweeps_plans_and_compares(folders, tmp_path):
    asked = ["sweep", "--model", folders[0], "--model", folders[1], "--probe", "previous_token", "--probe", "copying", "--out", tmp_path / "s"]
    planned_first = command(*asked, "--plan", "--json")
    assert [row["cells"] for row in json.loads(planned_first.stdout)["plan"]] == [1, 1]
    assert not (tmp_path / "s").exists()
    said = json.loads(command(*asked, "--json").stdout)
    assert (said["found"], said["made"], said["failed"]) == (0, 2, {})
    assert "2 found, 0 made, 0 failed" in command(*asked).stdout
    compared = command("compare", tmp_path / "s", "--probe", "previous_token", "--base", folders[0], "--out", tmp_path / "v.csv")
    assert compared.exit_code == 0, compared.output
    assert len(pd.read_csv(tmp_path / "v.csv")) == 12
    assert command("compare", tmp_path / "s", "--probe", "retrieval").exit_code == 2
    assert command("compare", tmp_path / "nothing", "--probe", "copying").exit_code == 2


def test_the_command_tells_what_failed_with_its_own_code(folders, tmp_path):
    (tmp_path / "s.yaml").write_text(f"models: [{folders[0]}]\nprobes: [copying]\nseeds: [0]\n")
    good = command("sweep", tmp_path / "s.yaml", "--seed", 7, "--out", tmp_path / "s")
    assert good.exit_code == 0, good.output
    assert set(Dataset(tmp_path / "s").table()["seed"]) == {7}
    refused = command("sweep", tmp_path / "s.yaml", "--ablate", "L0H0", "--out", tmp_path / "t")
    assert refused.exit_code == 2
    assert "edits concern none of the chosen probes: they look at weights" in refused.stderr
    bad = command("sweep", tmp_path / "s.yaml", "--probe", "previous_token", "--ablate", "L9H0", "--out", tmp_path / "t")
    assert bad.exit_code == 3
    assert "1 made, 1 failed" in bad.stdout
    assert str(tmp_path / "t" / "scores") in bad.stdout
    worse = command("sweep", "--model", tmp_path / "none", "--probe", "previous_token", "--out", tmp_path / "u")
    assert worse.exit_code == 2  # the plan looks at every model
    assert "L9H0" in bad.stdout
