"""Does a report show the very numbers of its files, load nothing from anywhere, and fit into a folder that is handed on?"""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from browsing import ROOT
from results import CARD, circuit, labels, needles, policies, scores
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import InputError
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.results import collect
from workbench.scores import HeadScores
from workbench.views import export
from workbench.views.report import markdown, report_of, report_page, share
from workbench.views.report.parts import Table, cell

MEANS = ((0.8, 0.5, 0.0), (0.0, 0.3, 0.09))


@pytest.fixture
def folder(tmp_path):
    """A folder with one result of each kind, two that cannot be read, and a name that wants to be markup."""
    root = tmp_path / "run"
    found = scores(MEANS, spread=0.05)
    labels(found).save(root / "heads.json")
    found.save(root / "scores.parquet")
    circuit().save(root / "circuit.json")
    needles().to_csv(root / "needles.csv", index=False)
    policies().to_csv(root / "policies.csv", index=False)
    pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_csv(root / "other.csv", index=False)
    (root / "broken.json").write_text("{", encoding="utf-8")
    (root / "<b>bold.txt").write_text("x", encoding="utf-8")
    return root


@pytest.fixture
def report(folder):
    return report_of(collect(folder))


class Tags(HTMLParser):
    """Every element with its attributes, and whether each that opens closes."""

    VOID = frozenset({"meta", "link"})

    def __init__(self):
        super().__init__()
        self.seen, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def rows_of(page, caption):
    """The table behind a caption, as text."""
    part = page[page.index(html.escape(caption)) :]
    return [
        [html.unescape(re.sub("<[^>]+>", "", one)) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")])
    ]


def test_every_kind_of_result_has_its_section(report):
    assert [section.title for section in report.sections] == [
        "Heads: heads.json",
        "Circuit: ioi (circuit.json)",
        "Needle tests: needles.csv",
        "Policies: policies.csv",
        "Files",
    ]
    assert report.title == "toy: what its attention heads do"
    assert "fingerprint feedbeef" in report.words[0]


def test_the_numbers_are_those_of_the_files(folder, report):
    page = report_page(report)
    heading, *rows = rows_of(page, "How many heads have each label")
    assert dict(zip(heading, rows[0], strict=True))["heads"] == str(len(labels(scores(MEANS)).heads("retrieval")))
    table = HeadScores.load(folder / "scores.parquet")
    heading, row = rows_of(page, "Every head's score on every probe")
    best = table.top(1, "retrieval").iloc[0]
    assert row[:2] == ["retrieval", "L0H0"]
    assert [float(one) for one in row[2:]] == pytest.approx([best[name] for name in ("score", "ci_low", "ci_high", "null", "n")], abs=5e-4)
    heading, *rows = rows_of(page, "Held-out prompts")
    assert [dict(zip(heading, row, strict=True))["faithfulness"] for row in rows] == ["0.960", "0.980"]
    heading, *rows = rows_of(page, "Mean recall over tests and draws")
    assert {row[2]: row[3] for row in rows} == {"all heads": "1.000", "without the 2 strongest": "0.200", "without 2 random others": "0.900"}
    heading, *rows = rows_of(page, "By budget, the best first")
    assert [row[heading.index("policy")] for row in rows] == ["first", "second", "random"]
    assert [row[heading.index("kept")] for row in rows] == ["0.900", "0.600", "0.300"]


def test_pictures_tell_the_numbers_of_their_heads(folder, report):
    pictures = {picture.name: picture for _, picture in report.pictures()}
    assert len(pictures) == len(list(report.pictures()))
    circles = re.findall(r"<title>(L\dH\d): ([\d.]+)(?: \((\S+) to (\S+)\))?</title>", pictures["strongest_retrieval"].svg)
    table = HeadScores.load(folder / "scores.parquet").table.set_index(["layer", "head"])
    assert [name for name, *_ in circles][:3] == ["L0H0", "L0H1", "L1H1"]
    for name, *numbers in circles:
        head = Head.parse(name)
        row = table.loc[(head.layer, head.index)]
        assert [float(number) for number in numbers] == pytest.approx([row["score"], row["ci_low"], row["ci_high"]], rel=5e-3, abs=1e-9)
    marks = re.findall(r"<title>(L\dH\d): ([\d.]+); retrieval</title>", pictures["map_retrieval"].svg)
    assert marks == [("L0H0", "0.800"), ("L0H1", "0.500"), ("L1H1", "0.300")]


def test_caveats_stand_first_and_lead_to_their_sections(report):
    page = report_page(report)
    assert [caveat.about for caveat in report.caveats if "Heads without the label" in caveat.text] == ["heads.json"]
    assert page.index("Before you believe it") < page.index("Heads: heads.json</h2>")
    tags = parsed(page)
    places = {attributes["id"] for _, attributes in tags.seen if "id" in attributes}
    assert {attributes["href"] for tag, attributes in tags.seen if tag == "a"} == {f"#{place}" for place in places}
    for caveat in report.caveats:
        assert html.escape(caveat.text.replace("`", "")) in page.replace("<code>", "").replace("</code>", "")
    assert all(caveat.text in markdown(report) for caveat in report.caveats)


def test_a_page_loads_nothing_and_runs_nothing(report):
    page = report_page(report)
    tags = parsed(page)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "iframe", "img", "object", "embed"}
    loading = [attributes.get(name) for _, attributes in tags.seen for name in ("src", "href", "srcset", "xlink:href", "style") if attributes.get(name)]
    assert all(place.startswith("#") for place in loading)
    assert "@import" not in page
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\s\"<]+", page)) == {"http://www.w3.org/2000/svg"}  # the name of a language, which nobody fetches
    assert len(page) < 200_000


def test_what_files_are_called_is_never_markup(report):
    page = report_page(report)
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold.txt" in page
    wrong = HeadLabels(CARD, {Head(0, 0): ("<script>alert(1)</script>",)}, {'"><img src=x>': np.eye(2, 3)})
    section = report_of(type(collect_one(wrong))("t", collect_one(wrong).files))
    assert not {tag for tag, _ in parsed(report_page(section)).seen} & {"script", "img"}


def collect_one(found):
    from workbench.results import Result, Results

    return Results("t", (Result("mine.json", "labels", found, 1, "0" * 64),))


def test_what_is_not_shown_says_why(report):
    files = report.sections[-1]
    (table,) = files.blocks
    shown = table.rows.set_index("file")["shown"]
    assert shown["heads.json"] == "yes"
    assert shown["broken.json"].startswith("no: not JSON that can be read")
    assert shown["other.csv"].startswith("no: a table that no section is made for")
    assert table.rows.set_index("file").loc["needles.csv", "rows"] == len(needles())
    (words,) = files.words
    assert "calibration on held-out questions (`workbench calibrate`)" in words
    assert "policies" not in words


def test_a_table_of_recall_tells_its_verdict_and_its_grids(folder):
    from results import recalls

    recalls().to_csv(folder / "recall.csv", index=False)
    page = report_page(report_of(collect(folder / "recall.csv")))
    assert html.escape("Recall is 1.00 with all heads and 0.20 without the 2 chosen ones: 0.80 less") in page
    heading, *rows = rows_of(page, "Recall by depth (down) and length in tokens, without the chosen heads.")
    assert (heading, rows) == (["depth", "300", "600"], [["0.500", "0.200", "0.200"]])


def test_scores_alone_and_a_circuit_alone_are_reports_too(folder):
    page = report_page(report_of(collect(folder / "scores.parquet")))
    assert "Scores: scores.parquet" in page
    assert "without labels" in page
    assert "Heads:" not in page
    assert "<h2>Circuit: ioi (circuit.json)</h2>" in report_page(report_of(collect(folder / "circuit.json")))


def test_a_run_is_a_report_of_its_samples(tmp_path):
    from test_results import saved_run

    run = saved_run(tmp_path)
    made = report_of(collect(run.fingerprint, tmp_path))
    (table,) = [table for table in made.tables() if table.name == "samples"]
    assert table.rows.set_index("head").loc["L0H0", "score"] == np.arange(1, 9).mean()
    assert "A run holds samples, neither nulls nor labels" in markdown(made)


def test_markdown_has_the_same_tables_and_the_map_in_letters(report):
    text = markdown(report)
    assert text.startswith("# toy: what its attention heads do\n")
    assert "| retrieval | L0H0 | 0.800 |" in text
    assert re.search(r"^L0 +██", text, re.MULTILINE)
    tables = [block for section in report.sections for block in section.blocks if isinstance(block, Table) and len(block.page)]
    assert len(re.findall(r"^\|---", text, re.MULTILINE)) == len(tables)


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "yes"), (np.False_, "no"), (None, "–"), (float("nan"), "–"), (pd.NA, "–"), (0.0, "0.000"), (0.12345, "0.123"), (1e-5, "1.00e-05"), (1234, "1,234"),
     (np.int64(7), "7"), (["a", "b"], "a, b"), ("x", "x")],
)  # fmt: skip
def test_a_cell_shows_what_is_there(value, words):
    assert cell(value) == words


def test_a_page_shows_the_first_rows_and_counts_the_others():
    table = Table("t", pd.DataFrame({"n": [1.0] * 40, "x": [0.5] * 40}), "words")
    assert (len(table.page), table.left) == (30, 10)
    assert table.page["n"].dtype == "Int64"
    assert Table("t", pd.DataFrame({"n": []}), "words").left == 0


@pytest.fixture
def no_browser(monkeypatch):
    """Pictures are made elsewhere: drawing them takes seconds."""
    asked = []
    monkeypatch.setattr("workbench.views.report.folder.pictures", lambda figures: asked.extend(figures) or [b"\x89PNG" + bytes(1000)] * len(figures))
    return asked


def test_a_folder_has_the_page_figures_tables_and_labels(folder, tmp_path, no_browser):
    results = collect(folder)
    report = report_of(results)
    shared = share(report, results, tmp_path / "out")
    root = tmp_path / "out"
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(root)) for path in shared.files}
    pictures = [picture.name for _, picture in report.pictures()]
    assert {f"figures/{name}.{ending}" for name in pictures for ending in ("svg", "png", "html")} <= names
    assert len(no_browser) == len(pictures)
    assert {f"tables/{name}.{ending}" for name in ("scores", "needles", "policies", "other", "files", "labels") for ending in ("csv", "parquet")} <= names
    assert {"index.html", "report.md", "results/heads.json", "results/circuit.json"} <= names
    assert shared.size == sum(path.stat().st_size for path in shared.files) < 10**7
    assert not shared.left_out
    assert json.loads((root / "results/heads.json").read_text(encoding="utf-8")) == json.loads((folder / "heads.json").read_text(encoding="utf-8"))


def test_tables_of_a_folder_come_back(folder, tmp_path, no_browser):
    results = collect(folder)
    share(report_of(results), results, tmp_path / "out")
    tables = tmp_path / "out" / "tables"
    pd.testing.assert_frame_equal(pd.read_parquet(tables / "needles.parquet"), needles())
    pd.testing.assert_frame_equal(pd.read_csv(tables / "needles.csv"), needles())
    again, given = HeadScores.load(tables / "scores.parquet"), HeadScores.load(folder / "scores.parquet")
    pd.testing.assert_frame_equal(again.table, given.table)
    assert again.facts == given.facts
    pd.testing.assert_frame_equal(pd.read_csv(tables / "scores.csv"), given.table)


def test_links_of_a_folder_lead_to_its_files(folder, tmp_path, no_browser):
    results = collect(folder)
    share(report_of(results), results, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    links = [attributes["href"] for tag, attributes in parsed(page).seen if tag == "a" and not attributes["href"].startswith("#")]
    assert {"figures/map_retrieval.svg", "figures/map_retrieval.png", "figures/map_retrieval.html", "tables/scores.parquet", "tables/scores.csv"} <= set(links)
    assert all((tmp_path / "out" / link).is_file() for link in links)


def test_what_has_no_room_is_left_out_and_said(folder, tmp_path, no_browser):
    results = collect(folder)
    report = report_of(results)
    whole = share(report, results, tmp_path / "whole")
    pictures = sum(path.stat().st_size for path in whole.files if path.suffix == ".png")
    less = share(report, results, tmp_path / "less", whole.size - pictures + 2000)
    assert less.size <= whole.size - pictures + 2000
    assert not [path for path in less.files if path.suffix == ".png"]
    assert [path for path in less.files if path.suffix == ".csv"]
    (words,) = less.left_out
    assert words.startswith("figures as PNG")
    page = (tmp_path / "less" / "index.html").read_text(encoding="utf-8")
    assert "Left out of this folder: figures as PNG" in page
    assert ".png" not in page
    with pytest.raises(InputError, match="the page alone has"):
        share(report, results, tmp_path / "none", 1000)
    assert not (tmp_path / "none").exists()


def test_without_a_browser_pictures_are_left_out_and_said(folder, tmp_path, monkeypatch):
    def missing(_figures):
        raise InputError(export.NO_BROWSER)

    monkeypatch.setattr("workbench.views.report.folder.pictures", missing)
    results = collect(folder)
    shared = share(report_of(results), results, tmp_path / "out")
    assert shared.left_out == (f"figures as PNG: {export.NO_BROWSER}",)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_folder_with_something_in_it_is_left_alone(folder, report):
    with pytest.raises(InputError, match="has something in it"):
        share(report, collect(folder), folder)


def test_names_of_files_are_safe(tmp_path, no_browser):
    wrong = HeadLabels(CARD, {}, {"../../../evil": np.eye(2, 3), "a b/c": np.eye(2, 3)})
    results = collect_one(wrong)
    share(report_of(results), results, tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*evil*") if tmp_path / "out" / "figures" not in path.parents]
    assert (tmp_path / "out" / "figures" / "map_a_b_c.svg").is_file()


def test_a_table_says_what_the_text_beside_it_says_of_its_making(folder):
    (folder / "needles.md").write_text("# Needles\n\nMade by `python needles.py` on a machine.\n", encoding="utf-8")
    report = report_of(collect(folder))
    assert report.provenance["needles.csv"].startswith("Made by `python needles.py` on a machine, sha256 ")
    assert report.provenance["policies.csv"].startswith("sha256 ")
    with pytest.raises(InputError, match="no result to show"):
        collect(folder / "needles.md")


def test_no_figure_takes_the_place_of_another(tmp_path, no_browser):
    alike = HeadLabels(CARD, {}, {"a/b": np.eye(2, 3), "a b": np.ones((2, 3)), "A_b": np.zeros((2, 3))})
    results = collect_one(alike)
    report = report_of(results)
    shared = share(report, results, tmp_path / "out")
    assert len({path.name.lower() for path in shared.files if path.suffix == ".svg"}) == len(list(report.pictures())) == 9
    links = [attributes.get("href") for tag, attributes in parsed((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).seen if tag == "a"]
    assert {"figures/map_a_b.svg", "figures/map_a_b-2.svg", "figures/map_A_b-3.svg"} <= set(links)


def test_a_figure_says_what_made_it_and_not_what_made_others(folder, tmp_path, no_browser):
    results = collect(folder)
    share(report_of(results), results, tmp_path / "out")
    figures = tmp_path / "out" / "figures"
    heads, found = ((figures / f"{name}.html").read_text(encoding="utf-8") for name in ("map_retrieval", "circuit_map"))
    assert "preset paper" in heads
    assert "method patching" not in heads
    assert "method patching" in found
    assert "preset paper" not in found
    digest = {result.name: result.sha256[:16] for result in results.files}
    assert digest["circuit.json"] in found
    assert digest["heads.json"] in heads
    assert digest["needles.csv"] in (figures / "needles_recall.html").read_text(encoding="utf-8")


def run(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_command_writes_page_and_text(folder, tmp_path):
    result = run(folder, "--out", tmp_path / "my.html", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["page"], told["text"]) == (str(tmp_path / "my.html"), str(tmp_path / "my.md"))
    assert (tmp_path / "my.html").read_text(encoding="utf-8") == report_page(report_of(collect(folder)))
    assert (tmp_path / "my.md").read_text(encoding="utf-8") == markdown(report_of(collect(folder)))
    assert told["caveats"] == [{"level": one.level, "about": one.about, "text": one.text} for one in report_of(collect(folder)).caveats]
    spoken = run(folder, "--out", tmp_path / "my.html")
    assert "not shown: broken.json: not JSON" in spoken.stderr
    assert "caveats   do not use 0, take care" in spoken.stdout


def test_the_command_shares_a_folder(folder, tmp_path, no_browser):
    result = run(folder, "--share", tmp_path / "out", "--most", "5")
    assert result.exit_code == 0, result.output
    assert re.search(r"folder    \d+ files, 0\.\d of 5 MB", result.stdout)
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere",), "no file or folder"),
        (("FOLDER", "--out", "a.pdf"), "--out is a page, a.html say"),
        (("FOLDER", "--out", "a.html", "--share", "b"), "not both"),
        (("FOLDER", "--most", "3"), "--most is for --share"),
        (("FOLDER", "--share", "b", "--most", "0"), "above 0"),
    ],
)
def test_the_command_refuses_what_contradicts_itself(folder, arguments, reason):
    result = run(*(folder if word == "FOLDER" else word for word in arguments))
    assert result.exit_code == 2
    assert reason in result.stderr


MADE = ROOT / "reports" / "smollm2-135m"


@pytest.mark.slow
def test_the_report_of_the_default_model_is_what_the_command_makes_of_its_files():
    report = report_of(collect(MADE))
    again = "run `workbench report reports/smollm2-135m --out reports/smollm2-135m/report.html`"
    assert (MADE / "report.md").read_text(encoding="utf-8") == markdown(report), again
    assert (MADE / "report.html").read_text(encoding="utf-8") == report_page(report), again
    assert (MADE / "report.html").stat().st_size < 2_000_000


def test_the_readme_of_the_default_models_results_names_every_file():
    named = set(re.findall(r"`([\w.-]+)`", (MADE / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in MADE.iterdir() if not path.name.startswith(".")} - {"README.md"} <= named | {"report.md"}
    assert all((ROOT / command).is_file() for command in re.findall(r"`(benchmarks/[\w./]+)`", (MADE / "README.md").read_text(encoding="utf-8")))
