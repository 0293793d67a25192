"""Does each command give clean results on stdout, remarks on stderr, the right exit code, and errors that say what would work?"""

import json
import re
import shutil
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench import batches, captures, measure
from workbench.cli import app, show
from workbench.formats import FORMATS
from workbench.labels import HeadLabels
from workbench.models import load
from workbench.probes import PROBES
from workbench.rules import RULES, Rule, rule_text
from workbench.tiny import random_model

FAST = ("--probe", "duplicate_token", "--probe", "induction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of two layers with its tokenizer of bytes, saved as users save theirs."""
    path = tmp_path_factory.mktemp("models") / "tiny-bytes"
    model = random_model("llama", max_position_embeddings=600)
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def labelled(folder, tmp_path_factory):
    """What `label --json` said, and the folder in which it left its files."""
    out = tmp_path_factory.mktemp("out")
    result = run("label", "-m", folder, "-o", out / "heads.json", *FAST, "--rule", "induction=0.01", "--json")
    assert result.exit_code == 0, result.output
    return result, out


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments):
    """The one line on stderr of a command that the user can mend."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    return result.stderr


# ---- label


def test_json_of_label_is_all_that_is_on_stdout_and_agrees_with_the_file(labelled):
    result, out = labelled
    data, labels = json.loads(result.stdout), HeadLabels.load(out / "heads.json")
    assert data["labels"] == str(out / "heads.json")
    assert data["counts"] == labels.counts() == {"induction": len(labels.heads("induction")), "duplicate_token": len(labels.heads("duplicate_token"))}
    best = data["top"]["heads"][0]
    assert (data["top"]["probe"], best["score"]) == ("duplicate_token", labels.scores["duplicate_token"].max())
    assert labels.rules["induction"].value == 0.01
    assert data["evidence"].keys() == labels.scores.keys() == {"duplicate_token", "induction"}
    assert data["heads"] == 12


def test_label_writes_the_labels_and_the_heat_map_and_nothing_else(labelled):
    _, out = labelled
    assert sorted(path.name for path in out.iterdir()) == ["heads.html", "heads.json"]


def test_label_tells_its_progress_on_stderr_a_line_for_each_kind_of_task(labelled):
    result, _ = labelled
    assert "duplicate_token" in result.stderr
    assert "induction (null)" in result.stderr


def test_the_summary_says_what_was_found_and_where_it_lies(folder, tmp_path):
    result = run("label", "-m", folder, "-o", tmp_path / "h.json", *FAST, "--rule", "induction=0.01")
    assert result.exit_code == 0, result.output
    labels = HeadLabels.load(tmp_path / "h.json")
    text = result.stdout
    assert f"fingerprint {labels.card.fingerprint}" in text
    count = len(labels.heads("induction"))
    assert re.search(rf"^induction +{count} +{100 * count / 12:.1f}%  score ≥ 0.01", text, re.MULTILINE)
    assert "The strongest by duplicate_token" in text
    assert "every test counts  duplicate_token, induction" in text
    assert str(tmp_path / "h.json") in text
    assert str(tmp_path / "h.html") in text
    assert max(map(len, text.splitlines())) <= 100 + len(str(tmp_path))


def test_a_run_that_is_kept_is_not_measured_again(folder, tmp_path, monkeypatch):
    wanted = ("score", "-m", folder, "--probe", "duplicate_token", "--runs", tmp_path / "runs")
    first = run(*wanted)
    assert first.exit_code == 0, first.output
    monkeypatch.setattr(batches, "capture", None)
    second = run(*wanted)
    assert second.exit_code == 0, second.output
    assert first.stdout == second.stdout


@pytest.mark.parametrize("command", ["label", "score", "plan"])
@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        ("--probe", "inductoin", list(PROBES)),
        ("--preset", "fast", ["quick", "paper"]),
        ("--model", "gpt5", ["smollm2-135m", "a .gguf file", "a local folder"]),
        ("--device", "tpu", ["auto", "cpu", "cuda", "mps"]),
        ("--lengths", "300;600", ["--lengths", "300,600"]),
        ("--depths", "deep", ["--depths", "0.1,0.5"]),
    ],
)
def test_an_unknown_name_is_refused_and_the_valid_ones_listed(command, option, value, valid):
    said = refused(command, option, value)
    assert all(name in said for name in valid)


@pytest.fixture
def asked(monkeypatch):
    """What each capture of the commands was asked for."""
    seen = []

    def watched(model, prompts, reads, edits, **way):
        seen.append({**way, "length": prompts.length, "count": prompts.count})
        return captures.capture(model, prompts, reads, edits, **way)

    monkeypatch.setattr(batches, "capture", watched)
    return seen


def test_how_passes_are_made_reaches_every_capture(folder, asked, tmp_path):
    one = ("score", "-m", folder, "--probe", "duplicate_token")
    result = run(*one, "--implementation", "torch", "--length", "128", "--chunk", "50", "--json")
    assert result.exit_code == 0, result.output
    assert {tuple(sorted(how.items())) for how in asked} == {
        (("chunk", 50), ("count", count), ("implementation", "torch"), ("length", 127), ("sample", None)) for count in {how["count"] for how in asked}
    }
    plain = run(*one, "--implementation", "reference", "--length", "128", "--json")
    assert [data["provenance"]["implementation"] for data in map(json.loads, (result.stdout, plain.stdout))] == ["torch", "reference"]
    assert asked[-1] == {"chunk": None, "count": asked[-1]["count"], "implementation": "reference", "length": 127, "sample": None}
    text = tmp_path / "text.txt"
    text.write_text("In that year the river rose by a foot. " * 400, encoding="utf-8")
    sampled = run("score", "-m", folder, "--probe", "previous_token", "--haystack", text, "--sample-rows", "20", "--json")
    assert asked[-1]["sample"] == json.loads(sampled.stdout)["evidence"]["previous_token"]["rows"]["sampled"] == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--implementation", "flash"), ["auto", "reference", "torch", "triton"]),
        (("--implementation", "reference", "--chunk", "20"), ["use torch or triton"]),
        (("--chunk", "0"), ["--chunk is at least one token, got 0"]),
        (("--sample-rows", "1"), ["--sample-rows takes at least two rows, got 1"]),
        (("--sample-rows", "20"), ["--sample-rows concerns none of the chosen probes"]),
        (("--length", "127"), ["--length is at least 128 tokens"]),
        (("--length", "256", "--lengths", "300"), ["--lengths are those of the needle tests alone", "Give one of them"]),
        (("--lengths", "300"), ["--lengths concerns none of the chosen probes: attention_sink"]),
    ],
)
def test_ways_that_cannot_be_gone_are_refused(folder, tmp_path, options, said):
    text = tmp_path / "text.txt"
    text.write_text("In that year the river rose by a foot. " * 400, encoding="utf-8")
    message = refused("score", "-m", folder, "--probe", "attention_sink", "--haystack", text, *options)
    assert all(part in message for part in said), message


def test_length_is_refused_where_it_concerns_no_probe(folder):
    assert "--length concerns none of the chosen probes: copying" in refused("score", "-m", folder, "--probe", "copying", "--length", "256")


def test_labels_of_longer_prompts(folder, asked, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("In that year the river rose by a foot. " * 400, encoding="utf-8")
    wanted = ("-m", folder, "--probe", "attention_sink", "--probe", "previous_token", "--haystack", text, "--length", "256", "--json")
    result = run("label", "-o", tmp_path / "h.json", *wanted)
    assert result.exit_code == 0, result.output
    assert {how["length"] for how in asked} == {256}
    labels = HeadLabels.load(tmp_path / "h.json")
    assert labels.scores.keys() == {"attention_sink", "previous_token"}
    assert "length=256" in json.loads(result.stdout)["evidence"]["attention_sink"]["prompts"]
    assert json.loads(run("plan", *wanted).stdout)["tokens"] == sum(how["length"] * how["count"] for how in asked)


def test_labels_of_prompts_beyond_the_context_say_so(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("In that year the river rose by a foot. " * 400, encoding="utf-8")
    result = run("label", "-m", folder, "-o", tmp_path / "h.json", "--probe", "previous_token", "--haystack", text, "--length", "601", "--json")
    assert result.exit_code == 0, result.output
    assert "601 tokens are beyond the 600 that tiny-bytes was trained for" in (tmp_path / "h.json").read_text(encoding="utf-8")


def test_an_unknown_rule_or_one_without_a_number_is_refused():
    said = refused("label", "--rule", "retreival=0.2")
    assert all(name in said for name in RULES)
    assert "retrieval=0.2" in refused("label", "--rule", "retrieval=high")


def test_the_labels_file_cannot_have_the_name_of_the_heat_map(tmp_path):
    assert "heads.json" in refused("label", "--out", tmp_path / "heads.html")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    assert "config.json" in refused("label", "-m", tmp_path)


def test_a_bug_is_no_user_error(folder, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(captures, "run", broken)
    result = run("score", "-m", folder, *FAST)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_too_little_evidence_is_said_clearly(folder, tmp_path):
    # With a token per byte the shipped needles do not fit into a few hundred tokens; these do.
    needles = [{"id": name, "needle": f"{name} is {thing}.", "question": f"What is {name}?"} for name, thing in (("Ann", "a cook"), ("Bob", "a baker"))]
    (tmp_path / "needles.jsonl").write_text("\n".join(map(json.dumps, needles)))
    (tmp_path / "hay.txt").write_text("It rained again. " * 100)
    short = ("--lengths", "250,300", "--depths", "0.5", "--needles", tmp_path / "needles.jsonl", "--haystack", tmp_path / "hay.txt")
    result = run("label", "-m", folder, "-o", tmp_path / "h.json", *FAST, "--probe", "retrieval", *short)
    assert result.exit_code == 0, result.output
    assert re.search(r"retrieval +insufficient evidence: the model passed 0 of 4 tests", result.stdout)
    assert HeadLabels.load(tmp_path / "h.json").evidence["retrieval"]["status"] == "insufficient evidence"


# ---- score


def test_the_table_on_stdout_is_csv_and_nothing_else(folder):
    table = pd.read_csv(StringIO(run("score", "-m", folder, *FAST).stdout))
    expected = measure.score(load(folder, device="cpu"), ["duplicate_token", "induction"]).table
    assert list(table.columns) == list(expected.columns)
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-6)


def test_the_table_is_written_as_parquet_with_its_provenance_or_as_csv(folder, tmp_path):
    for name in ("s.parquet", "s.csv"):
        result = run("score", "-m", folder, *FAST, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert str(tmp_path / name) in result.stdout
    parquet = pd.read_parquet(tmp_path / "s.parquet")
    assert parquet.attrs["provenance"]["seed"] == 0
    assert parquet.attrs["model"]["fingerprint"] == load(folder).fingerprint
    pd.testing.assert_frame_equal(parquet, pd.read_csv(tmp_path / "s.csv"), check_dtype=False)


def test_another_ending_is_refused_before_anything_is_loaded(tmp_path):
    said = refused("score", "-m", "nowhere", "-o", tmp_path / "s.xlsx")
    assert ".csv, .parquet" in said


def test_agreement_compares_every_two_probes(folder):
    data = json.loads(run("score", "-m", folder, *FAST, "--agreement", "--json").stdout)
    assert [(row["probe"], row["other"]) for row in data["agreement"]] == [("duplicate_token", "induction")]
    assert len(data["rows"]) == 24
    text = run("score", "-m", folder, *FAST, "--agreement").stdout
    assert f"{data['agreement'][0]['spearman']:.2f}" in text


# ---- show, convert, validate


def test_show_draws_text_of_at_most_the_terminal_and_writes_a_page_on_demand(labelled, tmp_path):
    _, out = labelled
    text = run("show", out / "heads.json", "--probe", "induction").stdout
    assert "tiny-bytes: induction" in text
    assert max(map(len, text.splitlines())) <= 100
    page = run("show", out / "heads.json", "--label", "induction", "--out", tmp_path / "map.html")
    assert page.exit_code == 0, page.output
    assert page.stdout.split() == ["heat", "map", str(tmp_path / "map.html")]
    both = run("show", out / "heads.json", "--out", tmp_path / "map.html", "--text").stdout
    assert "map.html" in both
    assert "L1 " in both


def test_show_lists_the_probes_and_labels_that_there_are(labelled):
    _, out = labelled
    assert "duplicate_token, induction" in refused("show", out / "heads.json", "--probe", "retrieval")
    assert "duplicate_token, induction" in refused("show", out / "heads.json", "--label", "retrieval")
    assert "not both" in refused("show", out / "heads.json", "--label", "induction", "--probe", "induction")


def test_convert_there_and_back_and_what_is_lost_goes_to_stderr(labelled, folder, tmp_path):
    _, out = labelled
    result = run("convert", out / "heads.json", tmp_path / "lists.json", "--to", "retrieval_head", "--probe", "induction")
    assert result.exit_code == 0, result.output
    assert FORMATS["retrieval_head"].loss in result.stderr
    assert result.stdout.split() == [str(tmp_path / "lists.json")]
    assert "--model" in refused("convert", tmp_path / "lists.json", tmp_path / "back.json", "--from", "retrieval_head")
    back = run("convert", tmp_path / "lists.json", tmp_path / "back.json", "--from", "retrieval_head", "-m", folder, "--name", "induction")
    assert back.exit_code == 0, back.output
    labels = HeadLabels.load(tmp_path / "back.json")
    np.testing.assert_array_equal(labels.scores["induction"], HeadLabels.load(out / "heads.json").scores["induction"])
    assert labels.card.name == "tiny-bytes"


def test_convert_without_any_loss_says_nothing(labelled, tmp_path):
    _, out = labelled
    result = run("convert", out / "heads.json", tmp_path / "same.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / "same.json").read_text() == (out / "heads.json").read_text()


def test_convert_refuses_unknown_formats_and_options_without_use(labelled, tmp_path):
    _, out = labelled
    said = refused("convert", out / "heads.json", tmp_path / "x", "--to", "duoattention")
    assert all(name in said for name in FORMATS)
    assert all(name in refused("convert", out / "heads.json", tmp_path / "x", "--from", "nothing") for name in FORMATS)
    assert "sink" in refused("convert", out / "heads.json", tmp_path / "x", "--to", "parquet", "--sink", 4)
    assert "--model" in refused("convert", out / "heads.json", tmp_path / "x", "--to", "parquet", "--revision", "main")
    assert not (tmp_path / "x").exists()


def test_many_files_are_named_in_short(labelled, tmp_path):
    _, out = labelled
    result = run("convert", out / "heads.json", tmp_path / "tree", "--to", "headvis")
    assert result.exit_code == 0, result.output
    assert "and 10 more" in result.stdout


def test_validate_accepts_a_file_for_its_model_and_refuses_it_for_another(labelled, folder, tmp_path):
    _, out = labelled
    good = run("validate", out / "heads.json", "--model", folder)
    assert good.exit_code == 0, good.output
    assert "12 heads, 2 probes, 2 rules" in good.stdout
    assert json.loads(run("validate", out / "heads.json", "--json").stdout)["valid"] is True
    data = json.loads((out / "heads.json").read_text())
    data["model"]["fingerprint"] = "0123456789abcdef"
    (tmp_path / "other.json").write_text(json.dumps(data))
    said = refused("validate", tmp_path / "other.json", "--model", folder)
    assert "0123456789abcdef" in said
    assert load(folder).fingerprint in said


def test_validate_refuses_a_damaged_file(labelled, tmp_path):
    _, out = labelled
    text = (out / "heads.json").read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    assert "cut.json" in refused("validate", tmp_path / "cut.json")
    assert "missing.json" in refused("validate", tmp_path / "missing.json")
    (tmp_path / "nan.json").write_text(text.replace(text.split('"duplicate_token": ')[-1].split("\n")[0], "NaN"))
    assert "NaN" in refused("validate", tmp_path / "nan.json")


# ---- lists, plan and the frame


@pytest.mark.parametrize(("command", "names"), [("models", ["smollm2-135m"]), ("probes", PROBES), ("formats", FORMATS)])
def test_lists_name_everything_for_people_and_for_machines(command, names):
    text, data = run(command).stdout, run(command, "--json").stdout
    assert all(name in text for name in names)
    listed = json.loads(data)
    listed = listed["models"] if command == "models" else listed
    assert [one["name"] for one in listed] == list(names)


def test_one_probe_is_told_at_length():
    assert PROBES["retrieval"].about in run("probes", "retrieval").stdout
    assert "induction" in refused("probes", "nothing")


def test_plan_reads_no_weights(folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    result = run("plan", "-m", tmp_path, *FAST, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["seconds"] > 0
    assert data["tokens"] > 0
    assert "forward passes" in run("plan", "-m", tmp_path, *FAST).stdout


def test_plan_refuses_tests_beyond_the_learned_positions_only(folder, tmp_path):
    asked = ("--probe", "retrieval", "--lengths", "5000")
    assert run("plan", "-m", folder, *asked).exit_code == 0
    model = random_model("gpt2", n_positions=600)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert "600 learned positions; give shorter --lengths" in refused("plan", "-m", tmp_path, *asked)


def test_version_and_help_with_an_example():
    assert run("--version").stdout.startswith("workbench")
    commands = ("models", "probes", "formats", "label", "score", "show", "convert", "validate", "plan")
    top = run("--help").stdout
    for command in commands:
        assert command in top
        assert f"Example: workbench {command}" in run(command, "--help").stdout


def test_an_unknown_command_or_option_exits_with_2():
    assert run("labels").exit_code == 2
    assert run("label", "--modle", "x").exit_code == 2


def test_rules_in_words():
    def words(**changes):
        return rule_text(replace(Rule("a", "a", 0.1, "", ""), **changes))

    assert words() == "score ≥ 0.1"
    assert words(probe="b") == "b ≥ 0.1"
    assert words(kind="top_per_layer", value=4) == "best 4 of each layer"
    assert words(kind="top_share", value=0.02) == "best 2% of heads"
    assert words(kind="top_share", value=0.14, per_kv_head=True) == "best 14% of KV heads"


def test_a_task_that_goes_on_for_long_is_said_again(capsys, monkeypatch):
    clock = iter((100.0, 101.0, 129.9, 130.0, 131.0, 160.0))
    monkeypatch.setattr(show, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with show.progress() as progress:
        for done in range(1, 6):
            progress("policies", done, 8)
        progress("answers", 6, 8)
    assert capsys.readouterr().err.splitlines() == ["[1/8] policies", "[4/8] policies", "[6/8] answers"]


def test_json_has_no_number_that_is_none(capsys):
    show.as_json({"a": np.float64("nan"), "b": (np.int64(3), [float("inf")]), "c": {1: True}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [3, [None]], "c": {"1": True}}
