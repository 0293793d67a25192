"""Do long computations outlive who asked for them, are they found again, and can they be stopped? Real processes, of a program and of the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from workbench import jobs
from workbench.errors import InputError
from workbench.jobs import asking, job
from workbench.scores import HeadScores

PATIENCE = 60
PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from workbench import jobs
with jobs.running():
    with Path("../started").open("a") as started:
        started.write(sys.argv[1] + " ")
    jobs.report("first", 1, 4)
    time.sleep(0.05)
    jobs.report("second", 2, 4)
    helper = subprocess.Popen(["sleep", "600"])
    Path("helper").write_text(str(helper.pid))
    while not Path("../go").exists():
        time.sleep(0.02)
    helper.kill()
    jobs.report("last", 4, 4)
    print("the result")
    print("workbench: said at the end", file=sys.stderr)
    sys.exit(2 if sys.argv[1] == "wrong" else 0)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A runs folder whose jobs are a small program that goes on as soon as there is a file `jobs/go`; none of them is left behind."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(asking, "PROGRAM", (sys.executable, str(program)))
    folder = tmp_path / "runs"
    yield folder
    for left in jobs.find(folder):
        left.cancel()


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def asked(root, *arguments, **files):
    return jobs.ask(root, arguments or ("one",), title="a test", files=files)


def started(one):
    """The job once its program is in the middle, and its helper there."""
    until(lambda: one.state == "running" and (one.folder / "helper").exists() and (one.folder / "helper").read_text())
    return one


def go(root):
    (root / "jobs" / "go").touch()


def helper(one):
    return int((one.folder / "helper").read_text())


def living(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def starts(root):
    return (root / "jobs" / "started").read_text().split()


def test_a_job_tells_how_far_it_is_and_how_it_ended(root):
    one = started(asked(root, given=b"content"))
    assert (one.progress.what, one.progress.done, one.progress.total) == ("second", 2, 4)
    done, at = one.progress.first
    assert (done, one.progress.at - at) == (1, pytest.approx(one.progress.left / 2))  # one part since the first, and two are left
    assert 0.05 <= one.progress.left / 2 < one.progress.at - one.progress.began  # what was before the first is no part
    assert one.seconds is None
    assert (one.folder / "given").read_bytes() == b"content"
    go(root)
    until(lambda: one.state == "done")
    assert (one.progress.what, one.progress.done, one.progress.left) == ("last", 4, 0)
    assert (one.folder / "result.txt").read_text() == "the result\n"
    assert one.log() == "workbench: said at the end"
    assert one.asked["arguments"] == ["one"]
    assert one.asked["title"] == "a test"
    assert 0 < one.seconds < PATIENCE
    one.cancel()
    assert one.state == "done"


def test_the_same_question_has_one_job_and_is_computed_once(root):
    one = started(asked(root, given=b"content"))
    assert asked(root, given=b"content") == one
    go(root)
    until(lambda: one.state == "done")
    assert asked(root, given=b"content") == one
    other = asked(root, given=b"other content")
    until(lambda: other.state == "done")
    assert other != one
    assert jobs.find(root) == [other, one]
    assert starts(root) == ["one", "one"]


def test_an_error_is_told_and_the_question_can_be_asked_again(root):
    (root / "jobs").mkdir(parents=True)
    go(root)
    one = asked(root, "wrong")
    until(lambda: one.state == "failed")
    assert "said at the end" in one.log()
    again = asked(root, "wrong")
    until(lambda: again.state == "failed")
    assert starts(root) == ["wrong", "wrong"]


def test_a_job_is_asked_again_with_the_files_it_was_given(root):
    (root / "jobs").mkdir(parents=True)
    go(root)
    one = jobs.ask(root, ["wrong"], title="mine", files={"given.json": b"mine"}, shown={"page": "here"})
    until(lambda: one.state == "failed")
    asked_before = one.asked
    again = jobs.again(root, one)
    until(lambda: again.state == "failed")
    assert again == one
    assert {**again.asked, "time": 0} == {**asked_before, "time": 0}
    assert starts(root) == ["wrong", "wrong"]
    (one.folder / "given.json").unlink()
    with pytest.raises(InputError, match="a file that was given"):
        jobs.again(root, one)


def test_who_starts_afresh_finds_it(root):
    one = started(asked(root))
    code = "import sys; from pathlib import Path; from workbench import jobs; print([(j.name, j.state, j.progress.done) for j in jobs.find(Path(sys.argv[1]))])"
    fresh = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == str([(one.name, "running", 2)])


def test_it_outlives_who_asked_for_it(root, tmp_path):
    code = (
        "import sys; from pathlib import Path; from workbench import jobs; from workbench.jobs import asking; "
        "asking.PROGRAM = (sys.executable, sys.argv[2]); jobs.ask(Path(sys.argv[1]), ['one'], title='a test')"
    )
    subprocess.run([sys.executable, "-c", code, str(root), str(tmp_path / "program.py")], check=True)
    (one,) = jobs.find(root)
    started(one)
    assert asked(root) == one
    go(root)
    until(lambda: one.state == "done")
    assert starts(root) == ["one"]


def test_cancelling_stops_all_of_its_processes_and_no_others(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_JOBS_AT_ONCE", "2")
    one, other = started(asked(root)), started(asked(root, "other"))
    one.cancel()
    assert one.state == "cancelled"
    until(lambda: not living(helper(one)))
    assert living(helper(other))
    assert other.state == "running"
    go(root)
    assert asked(root) == one
    until(lambda: one.state == other.state == "done")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_was_killed_has_died_and_can_be_asked_again(root, how):
    one = started(asked(root))
    os.kill(json.loads((one.folder / "process.json").read_text())["pid"], how)
    until(lambda: one.state == "died")
    os.kill(helper(one), signal.SIGKILL)
    go(root)
    asked(root)
    until(lambda: one.state == "done")
    assert starts(root) == ["one", "one"]


def test_the_second_waits_for_the_first(root):
    one = started(asked(root))
    second, third = asked(root, "second"), asked(root, "third")
    until(lambda: (second.folder / "process.json").exists() and (third.folder / "process.json").exists())
    time.sleep(1)
    assert [found.state for found in (one, second, third)] == ["running", "queued", "queued"]
    second.cancel()
    assert second.state == "cancelled"
    one.cancel()
    started(third)
    assert starts(root) == ["one", "third"]


def test_the_older_one_comes_first(root):
    one = started(asked(root))
    names = ["e", "d", "c", "b"]
    for name in names:
        asked(root, name)
    until(lambda: len(list(root.glob("jobs/*/process.json"))) == 5)
    go(root)
    until(lambda: all(found.state == "done" for found in jobs.find(root)))
    assert starts(root) == ["one", *names]
    assert jobs.find(root)[-1] == one


def test_a_number_of_a_process_that_is_used_again_is_not_killed(root, monkeypatch):
    monkeypatch.setattr(job, "_PATIENCE", 0.3)
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    one = jobs.Job(root / "jobs" / "0123456789abcdef")
    one.folder.mkdir(parents=True)
    (one.folder / "process.json").write_text(json.dumps({"pid": bystander.pid, "started": time.time() - 1000}))
    try:
        one.cancel()  # dead: nothing is done
        with job.locked(one.folder), pytest.raises(InputError, match="cannot be stopped"):
            one.cancel()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_is_removed_is_gone_and_says_so(root):
    one = started(asked(root))
    pid = helper(one)
    assert jobs.named(root, one.name) == one
    one.remove()
    until(lambda: not living(pid))
    assert not one.folder.exists()
    assert jobs.find(root) == []
    with pytest.raises(InputError, match="may have been removed"):
        _ = one.asked
    assert one.log() == ""
    assert one.progress is None
    started(asked(root))


@pytest.mark.parametrize("name", ["0123456789abcdef", "../jobs", "..", "", "x" * 16])
def test_a_job_that_is_not_there_is_a_sentence(root, name):
    (root / "jobs").mkdir(parents=True)
    with pytest.raises(InputError, match="there is no job"):
        jobs.named(root, name)


def test_one_that_cannot_be_read_says_why_and_comes_last(root):
    one = asked(root)
    broken = root / "jobs" / ("f" * 16)
    broken.mkdir()
    for content in ("{", "[]", '{"title": "x", "time": "soon", "arguments": []}'):
        (broken / "job.json").write_text(content)
        assert [found.folder for found in jobs.find(root)] == [one.folder, broken]
        with pytest.raises(InputError, match="cannot be read"):
            _ = jobs.find(root)[1].asked
    assert jobs.find(root)[1].state == "died"


def test_there_must_be_a_place_for_it(tmp_path):
    with pytest.raises(InputError, match="needs a runs folder"):
        jobs.ask(Path("-"), ["probes"], title="x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        jobs.ask(tmp_path / "file", ["probes"], title="x")


def test_an_overview_tells_what_is_done(root):
    assert jobs.overview(root).empty
    assert jobs.same(root, ["one"]) is None
    one = started(asked(root))
    second = asked(root, "second")
    until(lambda: one.progress.done == 2)
    (root / "jobs" / ("f" * 16)).mkdir()
    (root / "jobs" / ("f" * 16) / "job.json").write_text("{")
    table = jobs.overview(root)
    assert list(table["job"]) == [second.name, one.name, "f" * 16]
    assert list(table["state"]) == ["queued", "running", "died"]
    assert list(table["share"]) == [0, 0.5, 0]
    assert list(table["title"]) == ["a test", "a test", ""]
    assert table["asked"][1].timestamp() == pytest.approx(one.time, abs=1)
    assert table["seconds"].isna().all()
    assert [bool(problem) for problem in table["problem"]] == [False, False, True]
    assert jobs.same(root, ["one"]) == one
    assert jobs.same(root, ["one"], {"given": b"content"}) is None
    go(root)
    until(lambda: second.state == "done")
    assert list(jobs.overview(root)["share"]) == [1, 1, 0]


def test_a_job_tells_its_command_and_its_files(root):
    (root / "jobs").mkdir(parents=True)
    go(root)
    one = asked(root, "two words", given=b"content")
    until(lambda: one.state == "done")
    (one.folder / "out.csv").write_text("a,b")
    assert one.command == "workbench 'two words'"
    assert [path.name for path in one.results] == ["helper", "out.csv", "result.txt"]


@pytest.mark.parametrize(
    ("done", "total", "at", "words", "share"),
    [
        (0, 0, 5, "part", 0),
        (0, 4, 5, "part: 0 of 4", 0),
        (1, 4, 10, "part: 1 of 4; about 30 s left", 0.25),
        (1, 1001, 60, "part: 1 of 1,001; about 16.7 h left", 1 / 1001),
        (2, 4, 300, "part: 2 of 4; about 5 min left", 0.5),
        (4, 4, 10, "part: 4 of 4", 1),
    ],
)
def test_progress_in_words(done, total, at, words, share):
    told = jobs.Progress("part", done, total, 0.0, float(at))
    assert told.words == words
    assert told.share == share


def test_no_time_is_told_before_a_part_was_seen_from_its_beginning_to_its_end():
    assert jobs.Progress("part", 3, 4, 0.0, 90.0, (3, 90.0)).words == "part: 3 of 4"
    assert jobs.Progress("part", 3, 4, 0.0, 90.0, (2, 80.0)).words == "part: 3 of 4; about 10 s left"


def test_who_is_no_job_reports_nothing(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    before = sorted(root.parent.rglob("*"))
    with jobs.running():
        jobs.report("part", 1, 2)
    assert sorted(root.parent.rglob("*")) == before


def test_the_command_line_runs_as_a_job(tmp_path):
    from workbench.tiny import random_model

    folder, model = tmp_path / "tiny", random_model("llama")
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    command = ["score", "--model", str(folder), "--probe", "duplicate_token", "--out", "scores.parquet"]
    one = jobs.ask(tmp_path / "runs", command, title="scores of a tiny model")
    until(lambda: one.state not in ("queued", "running"))
    assert one.state == "done", one.log()
    assert HeadScores.load(one.folder / "scores.parquet").matrix("duplicate_token").shape == (2, 6)
    assert one.progress.done == one.progress.total > 0
    assert len(list((tmp_path / "runs").glob("*/question.json"))) == 2  # the scores, and their null
    refused = jobs.ask(tmp_path / "runs", ["score", "--model", str(tmp_path / "none"), "--out", "scores.parquet"], title="no model")
    until(lambda: refused.state == "failed")
    assert str(tmp_path / "none") in refused.log()
