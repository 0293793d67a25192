"""Are results on disk found again by the same question, whole or not at all?"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench import runs
from workbench.errors import InputError
from workbench.runs import Part, Run, find, fingerprint_of, versions

QUESTION = {"model": "abc", "probes": ["retrieval"], "prompts": ["1", "2"], "seed": 0, "dtype": "float32"}


def part(seed=0, samples=3):
    """Results of two probes with different numbers of samples, as query-focused retrieval has them."""
    rng = np.random.default_rng(seed)
    scores = {"retrieval": rng.random((samples, 2, 4)), "query": rng.random((1, 2, 4))}
    return Part(scores, {"retrieval": np.arange(samples) != 1, "query": np.array([True])}, ({"needle": "dolores", "depth": 0.5}, {"needle": "comet"}))


def assert_same(found, expected):
    assert found.scores.keys() == expected.scores.keys()
    for name, score in expected.scores.items():
        np.testing.assert_array_equal(found.scores[name], score)
        np.testing.assert_array_equal(found.valid[name], expected.valid[name])
        assert found.valid[name].dtype == bool
    assert found.facts == expected.facts


def test_a_saved_part_comes_back_bit_for_bit(tmp_path):
    Run(tmp_path, QUESTION).save("part-0000", part())
    assert_same(Run(tmp_path, QUESTION).load("part-0000"), part())


def test_what_is_not_finite_comes_back_too(tmp_path):
    odd = Part({"p": np.array([[[np.nan, np.inf]], [[-np.inf, 0.0]]])}, {"p": np.array([False, True])}, ())
    Run(tmp_path, QUESTION).save("part-0000", odd)
    assert_same(Run(tmp_path, QUESTION).load("part-0000"), odd)


def test_single_precision_scores_are_kept_exactly(tmp_path):
    score = np.random.default_rng(0).random((2, 1, 3)).astype(np.float32)
    Run(tmp_path, QUESTION).save("part-0000", Part({"p": score}, {"p": np.ones(2, bool)}, ()))
    np.testing.assert_array_equal(Run(tmp_path, QUESTION).load("part-0000").scores["p"], score)


def test_parts_and_runs_do_not_mix(tmp_path):
    run, other = Run(tmp_path, QUESTION), Run(tmp_path, {**QUESTION, "seed": 1})
    run.save("part-0000", part(0))
    run.save("part-0001", part(1))
    assert_same(run.load("part-0001"), part(1))
    assert_same(run.load("part-0000"), part(0))
    assert run.load("part-0002") is None
    assert other.load("part-0000") is None
    assert run.folder != other.folder


@pytest.mark.parametrize(
    "change", [{"model": "abd"}, {"probes": ["retrieval", "local"]}, {"prompts": ["2", "1"]}, {"seed": 1}, {"dtype": "bfloat16"}, {"new": None}]
)
def test_any_change_of_the_question_changes_its_fingerprint(change):
    assert fingerprint_of({**QUESTION, **change}) != fingerprint_of(QUESTION)


def test_a_fingerprint_has_16_hexadecimal_digits_and_does_not_mind_the_order_of_keys():
    assert fingerprint_of(dict(reversed(QUESTION.items()))) == fingerprint_of(QUESTION) == Run(Path(), QUESTION).fingerprint
    assert len(fingerprint_of(QUESTION)) == 16
    assert set(fingerprint_of(QUESTION)) <= set("0123456789abcdef")


def test_the_question_lies_beside_the_results(tmp_path):
    run = Run(tmp_path, QUESTION)
    run.save("part-0000", part())
    assert sorted(path.name for path in run.folder.iterdir()) == ["part-0000.parquet", "question.json"]
    assert json.loads((run.folder / "question.json").read_text(encoding="utf-8")) == QUESTION
    assert run.folder == tmp_path / run.fingerprint


def test_every_run_is_found_oldest_first(tmp_path):
    questions = [{**QUESTION, "seed": seed} for seed in (3, 1, 2)]
    for age, question in enumerate(questions):
        run = Run(tmp_path, question)
        run.save("part-0000", part())
        os.utime(run.folder / "question.json", (1000 + age, 1000 + age))
    (tmp_path / "stray").mkdir()
    assert [dict(run.question) for run in find(tmp_path)] == questions
    assert_same(find(tmp_path)[0].load("part-0000"), part())


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert find(tmp_path) == []
    assert find(tmp_path / "none") == []


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_counts_as_not_finished(tmp_path, keep):
    run = Run(tmp_path, QUESTION)
    run.save("part-0000", part())
    path = run.folder / "part-0000.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    assert run.load("part-0000") is None
    run.save("part-0000", part())
    assert_same(run.load("part-0000"), part())


def test_any_wrong_byte_is_noticed_or_harmless(tmp_path):
    run = Run(tmp_path, QUESTION)
    run.save("part-0000", part())
    path = run.folder / "part-0000.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = run.load("part-0000")
        if found is not None:
            assert_same(replace(found, facts=part().facts), part())


def test_a_parquet_file_of_something_else_counts_as_not_finished(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = Run(tmp_path, QUESTION)
    run.folder.mkdir()
    for table in (pa.table({"x": [1]}), pa.table({"x": [1]}).replace_schema_metadata({"facts": "[]", "shapes": '{"p": [1, 1, 1]}'})):
        pq.write_table(table, run.folder / "part-0000.parquet")
        assert run.load("part-0000") is None


def test_a_kill_while_writing_leaves_the_old_part_and_no_rubbish(tmp_path, monkeypatch):
    run = Run(tmp_path, QUESTION)
    run.save("part-0000", part(0))

    def killed(file):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.files.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save("part-0000", part(1))
    monkeypatch.undo()
    assert_same(run.load("part-0000"), part(0))
    assert sorted(path.name for path in run.folder.iterdir()) == ["part-0000.parquet", "question.json"]


def test_a_full_disk_is_told_with_the_path(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    run = Run(tmp_path, QUESTION)
    run.save("part-0001", part())
    monkeypatch.setattr("workbench.files.os.fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*part-0000\.parquet: No space left on device"):
        run.save("part-0000", part())
    assert run.load("part-0000") is None


def test_versions_name_what_decides_a_result():
    import platform

    import torch

    assert set(versions()) == {"workbench", "torch", "transformers", "numpy", "python", "code"}
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions()["numpy"] == np.__version__
    assert versions()["python"] == platform.python_version()


def test_an_overview_tells_what_is_done_and_what_would_be_found_again(tmp_path):
    assert runs.overview(tmp_path / "none").empty
    Run(tmp_path, {**QUESTION, "versions": versions()}).save("part-0000", part())
    old = Run(tmp_path, {**QUESTION, "prompts": [], "probes": ["copying", "successor"], "versions": {"torch": "1"}})
    old.save("part-0000", part())
    os.utime(old.folder / "part-0000.parquet", (1e9, 1e9))
    os.utime(old.folder / "question.json", (1e9, 1e9))
    table = runs.overview(tmp_path)
    assert list(table["run"]) == [fingerprint_of({**QUESTION, "versions": versions()}), old.fingerprint]
    assert list(zip(table["parts"], table["of"], table["again"], strict=True)) == [(1, 2, True), (1, 1, False)]
    assert table.loc[1, "probes"] == "copying, successor"
    assert str(table.loc[1, "last"]) == "2001-09-09 01:46:40"
    assert table.loc[0, "question"]["model"] == table.loc[0, "model"] == "abc"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"probes": 3}'])
def test_an_overview_says_which_question_cannot_be_read(tmp_path, content):
    Run(tmp_path, QUESTION).save("part-0000", part())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "question.json").write_text(content, encoding="utf-8")
    table = runs.overview(tmp_path).set_index("run")
    assert table.loc["broken", "problem"].startswith("its question cannot be read")
    assert table.loc[fingerprint_of(QUESTION), "problem"] == ""


def test_what_is_removed_is_gone_and_the_rest_stays(tmp_path):
    kept, gone = Run(tmp_path, QUESTION), Run(tmp_path, {**QUESTION, "seed": 1})
    for run in (kept, gone):
        run.save("part-0000", part())
    runs.remove(tmp_path, gone.fingerprint)
    assert not gone.folder.exists()
    assert_same(kept.load("part-0000"), part())
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "question.json").write_text("{}", encoding="utf-8")
    for name in (gone.fingerprint, "jobs", "..", f"../{tmp_path.name}/{kept.fingerprint}"):
        with pytest.raises(InputError, match="there is no run"):
            runs.remove(tmp_path, name)
    assert (tmp_path / "jobs").is_dir()
    assert kept.folder.is_dir()
