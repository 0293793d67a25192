"""Does the docs site tell of everything that there is, truly, and without asking another host?"""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from html.parser import HTMLParser
from typing import get_args

import numpy as np
import pytest
import typer
import yaml
from docs_site import ROOT, WITH_MKDOCS
from test_docs import commands_of
from test_probes import documents, held_to, random_patterns, score, values
from typer.testing import CliRunner

import workbench as wb
from workbench import measure
from workbench.batches import Asked
from workbench.circuits.tasks import TASKS, Item, Pairs, TaskSet
from workbench.cli import app
from workbench.edits import Edit
from workbench.executors import Wanted
from workbench.formats import FORMATS
from workbench.heads import Head
from workbench.labels import HeadLabels, schema
from workbench.probes import PROBES, _sinks
from workbench.reads import BLOCK_READS, READS
from workbench.rules import RULES, rule_text
from workbench.scores import COLUMNS
from workbench.sweeping import Cell, Dataset, Sweep
from workbench.tiny import random_model

pytestmark = WITH_MKDOCS
DOCS = ROOT / "docs"
WRITTEN = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
WITH_PYTHON = [name for name in WRITTEN if name.startswith("how-to/") and "```python" in (DOCS / name).read_text(encoding="utf-8")]
SEEN = [name for name, probe in PROBES.items() if probe.recipes]
EXPLAINED = re.findall(r"^<!-- probe: (\w+) -->", "".join((DOCS / name).read_text(encoding="utf-8") for name in WRITTEN), re.MULTILINE)


def read(name):
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text):
    """The fenced blocks of a page: language and content, in their order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def rows(text):
    """The lines of the tables of a page, as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]


# ---------------------------------------------------------------- all that there is


def test_every_probe_is_explained_once_with_its_null_its_source_and_its_rules(texts):
    explained = "\n".join(text for path, text in texts.items() if path.startswith("explanation/"))
    for name, probe in PROBES.items():
        (section,) = re.findall(rf"^##+ `{name}` {{ #probe-{name} }}\n(.*?)(?=^#|\Z)", explained, re.DOTALL | re.MULTILINE)
        facts = dict(rows(section)[2:])
        assert f"**{probe.question}**" in section
        assert (facts["null"], facts["source"]) == (probe.null, probe.citation)
        for rule in (rule for rule in RULES.values() if rule.probe == name):
            assert facts[f"label `{rule.label}`"].startswith(rule_text(rule))


def test_every_probe_has_a_line_with_its_range(texts):
    told = {re.match(r"\[`(\w+)`\]", row[0])[1]: row[2] for row in rows(texts["reference/probes.md"])[2:]}
    assert list(told) == list(PROBES)
    known = {
        "induction": "0–1",
        "attention_sink": "1/64–1",
        "copying": "−1 (lowers what it attends to) to 1 (raises it)",
        "entropy": "0 (one token gets all) to 1 (uniform attention)",
        "query_focused_retrieval": "−1 to 1",
        "later_sink_uniform": "0 or 1 for each sample",
        "no_op_update": "At most 1",
        "streaming": "0–1",
        "retrieval": "0–1",
    }
    assert {name: told[name] for name in known} == known


def test_every_rule_format_read_edit_and_task_is_in_the_reference(texts):
    assert [row[0] for row in rows(texts["reference/rules.md"])[2:]] == [f"`{name}`" for name in RULES]
    pages = {
        "formats": {f"format-{name}": form.loss for name, form in FORMATS.items()},
        "tasks": {f"task-{name}": task.source for name, task in TASKS.items()},
        "reads": {f"read-{read.__name__.lower()}": read.__doc__.splitlines()[0] for read in (*READS, *BLOCK_READS)},
        "edits": {f"edit-{edit.__name__.lower()}": edit.__doc__.splitlines()[0] for edit in get_args(Edit)},
    }
    for page, known in pages.items():
        text = texts[f"reference/{page}.md"]
        assert re.findall(rf"{{ #({page[:-1]}-\w+) }}", text) == list(known)
        assert not [words for words in known.values() if words not in text]


def test_every_command_has_a_section_with_all_of_its_options(texts):
    page, commands = texts["reference/cli.md"], commands_of(typer.main.get_command(app))
    for words, command in commands.items():
        (section,) = re.findall(rf"{{ #command-{'-'.join(words)} }}\n(.*?)(?=^#|\Z)", page, re.DOTALL | re.MULTILINE)
        told = {name for row in rows(section) for name in re.findall(r"`([^`]+)`", row[0])}
        names = {name for one in command.params for name in ([one.name.upper()] if one.param_type_name == "argument" else one.opts + one.secondary_opts)}
        assert told == names
        assert f"workbench {' '.join(words)}" in section


def test_every_field_of_a_labels_file_and_every_column_of_scores_has_a_meaning(texts):
    told = {row[0].strip("`"): row for row in rows(texts["reference/labels_file.md"])[2:]}
    assert {*schema()["properties"], "model.shape.n_kv_heads", "heads[].scores", "rules.*.chance"} <= set(told)
    assert told["heads[].labels"][1:] == ["array", "yes", "The head's labels, several or none."]
    assert told["policy"][2] == "no"
    assert not [path for path, row in told.items() if not row[3]]
    assert [row[0] for row in rows(texts["reference/scores_file.md"])[2:]] == [f"`{name}`" for name in COLUMNS]


def test_every_module_that_users_import_has_a_page(hook, texts):
    told = {name for path, text in texts.items() if path.startswith("reference/python/") for name in re.findall(r"^::: (workbench\.\S+)", text, re.MULTILINE)}
    files = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "workbench").rglob("*.py")]
    public = [parts for parts in files if not any(part.startswith("_") for part in parts) and "cli" not in parts]
    assert {".".join(parts) for parts in public} <= told
    assert all(re.search(rf"\[workbench\.\w+\.{name}\]", texts["reference/python/index.md"]) for name in wb.__all__)
    assert hook.modules.navigation()[0] == "reference/python/index.md"


# ---------------------------------------------------------------- how pages are made


def test_a_probe_that_no_page_explains_gets_a_page_of_its_own(hook, monkeypatch):
    new = PROBES["induction"].__class__(**{**vars(PROBES["induction"]), "name": "zz_new"})
    with_new = {**PROBES, "zz_new": new}
    monkeypatch.setattr(hook.probes, "PROBES", with_new)
    assert hook.left_over() == ["zz_new"]
    assert "## `zz_new` { #probe-zz_new }" in hook.made()["explanation/scores/others.md"]


def test_other_scores_are_a_page_only_if_there_are_any(hook, texts):
    assert ("explanation/scores/others.md" in texts) == bool(hook.left_over())
    assert len(hook.left_over()) < len(PROBES) / 4


def test_a_probe_that_is_not_there_or_explained_twice_is_refused(hook):
    for text in ("<!-- probe: inductoin -->", "<!-- probe: induction -->\n\n<!-- probe: induction -->"):
        with pytest.raises(ValueError, match="a page explains a probe that is not there, or one that another page explains: induct"):
            hook.probes.left_over([text])


@pytest.mark.parametrize(
    ("marker", "reason"),
    [
        ("about: workbench.scores.nothing", "there is no workbench.scores.nothing"),
        ("meanings: workbench.nothing.COLUMNS", "there is no workbench.nothing.COLUMNS"),
        ("readme: No such heading", "the README has no heading 'No such heading'"),
    ],
)
def test_a_marker_of_what_is_not_there_fails(hook, marker, reason):
    with pytest.raises(ValueError, match=reason):
        hook.expanded(f"# Page\n\n<!-- {marker} -->\n", "index.md")


def test_a_range_that_no_docstring_says_fails(hook):
    def score(capture):
        """A question?

        It may be anything.
        """

    with pytest.raises(ValueError, match="the docstring of mute does not say what its score can be"):
        hook.probes.range_of(wb.Probe(name="mute", score=score, ideal=score, citation="", null=""))


def test_links_of_the_root_lead_within_the_site_or_name_a_path(hook):
    pages = {"DESIGN.md": "explanation/design.md", "reports/a/b.md": "measured/reports/a/b.md", "reports/a/c.png": "measured/reports/a/c.png"}
    text = "[Design](DESIGN.md#parts), ![c](reports/a/c.png), [web](https://example.org), [`Makefile`](Makefile), [the make file](Makefile), [gone](gone.md)"
    expected = (
        "[Design](../explanation/design.md#parts), ![c](../measured/reports/a/c.png), [web](https://example.org), "
        "`Makefile`, the make file (`Makefile`), [gone](gone.md)"
    )
    assert hook.from_root.relinked(text, "README.md", "how-to/x.md", pages) == expected
    assert hook.from_root.relinked("[b](b.md)", "reports/a/z.md", "measured/reports/a/z.md", pages) == "[b](b.md)"


def test_a_section_of_the_readme_ends_at_the_next_heading_of_its_level(hook, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "DESIGN.md").touch()
    lines = [
        "# Title",
        "## One",
        "first [design](DESIGN.md)",
        "### Inside",
        "```sh",
        "# a comment is no heading",
        "```",
        "[guide](docs/how-to/y.md#there)",
        "## Two",
        "last",
    ]
    (tmp_path / "README.md").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(hook.from_root, "ROOT", tmp_path)
    part = hook.from_root.section("One", "how-to/x.md")
    assert part.splitlines() == ["first [design](../explanation/design.md)", *lines[3:7], "[guide](y.md#there)"]
    assert hook.from_root.section("Two", "index.md") == "last"


def test_links_of_a_page_lead_to_its_neighbours_and_to_what_the_site_shows_of_the_repository(hook):
    pages = {"reports/a/b.md": "measured/reports/a/b.md"}
    text = "[near](policies.md#a), [root](../index.md), [measured](../../reports/a/b.md), [code](../../workbench/runs.py)"
    expected = "[near](policies.md#a), [root](../index.md), [measured](../measured/reports/a/b.md), code (`workbench/runs.py`)"
    assert hook.from_root.relinked(text, "docs/how-to/x.md", "how-to/x.md", pages) == expected


def test_what_equals_its_default_is_left_out_unless_all_is_asked_for(hook):
    from workbench.reads import Mass
    from workbench.recipes import RandomTokens

    assert hook.registries.link(Mass) == "[`Mass`][workbench.reads.masses.Mass]"
    from pages.markdown import source, written

    assert written(Mass(at="previous")) == "Mass(at='previous')"
    assert written(RandomTokens(count=8), defaults=True) == "RandomTokens(length=64, count=8, batch=16, repeated=False, bos=False)"
    assert source(_sinks.first) == 'def first(capture: Capture) -> Float[np.ndarray, "N L H"]:\n    return capture[RECEIVED][..., 0]'


def test_the_drawing_of_an_ideal_head_is_its_pattern(hook):
    drawing = hook.probes.drawing(PROBES["previous_token"])
    cells = {(int(y) // 7, int(x) // 7): float(shade) for x, y, shade in re.findall(r'<rect x="(\d+)" y="(\d+)" [^>]*fill-opacity="([\d.]+)"', drawing)}
    assert cells == {(row, max(row - 1, 0)): 1.0 for row in range(24)}
    assert all(hook.probes.drawing(PROBES[name]) for name in SEEN)
    assert hook.probes.drawing(PROBES["copying"]) == ""


# ---------------------------------------------------------------- do the pages tell the truth?


@pytest.fixture(scope="module")
def definitions():
    """The functions that the explanations define."""
    names = {"np": np}
    for page in WRITTEN:
        if page.startswith("explanation/"):
            for language, content in blocks(read(page)):
                assert language == "python", page
                exec(content, names)
    return names


@pytest.mark.parametrize("name", [name for name in SEEN if name in EXPLAINED])
def test_every_definition_gives_what_the_probe_gives(definitions, name):
    define = definitions[name]
    if name == "query_focused_retrieval":
        prompts = documents(np.random.default_rng(0))
        pattern = random_patterns(prompts)
        expected = [[[define(prompts, b, *pattern[b : b + 2, layer, head]) for head in range(3)] for layer in range(2)] for b in (0, 2)]
        np.testing.assert_allclose(score(name, prompts, pattern), expected, atol=1e-6)
    elif name.startswith("no_op"):
        held_to(name, lambda prompts, b, p: define(prompts, b, p, _sinks.quiet_keys(prompts, b), values(prompts, 1)[b, 0, 0]))
    else:
        held_to(name, define, **({"length": 30} if name == "entropy" else {}))


def test_retrieval_heads_of_the_default_model_are_sinks_on_natural_text():
    labels = HeadLabels.load(ROOT / "reports" / "smollm2-135m" / "heads.json")
    assert "every\nretrieval head is a sink on natural text" in read("explanation/scores/sinks.md")
    assert len(labels.heads("retrieval")) > 1
    assert set(labels.heads("retrieval")) <= set(labels.heads("attention_sink"))


def test_every_command_line_of_the_pages_would_be_understood():
    commands = commands_of(typer.main.get_command(app))
    asked = [line for page in WRITTEN for language, content in blocks(read(page)) if language == "sh" for line in content.splitlines()]
    asked += [line for page in WRITTEN for line in re.findall(r"`(workbench [^`]+)`", read(page)) if "NAME" not in line]
    asked = [re.sub(r"^torchrun --nproc-per-node \d+ -m workbench\.cli ", "workbench ", line) for line in asked]
    lines = [shlex.split(line, comments=True) for line in asked if line.startswith("workbench ")]
    assert len(lines) > 40
    for _, name, *arguments in lines:
        words = (name,) if (name,) in commands else (name, arguments.pop(0))
        if arguments:  # a command that is only named may lack what it needs
            commands[words].make_context(" ".join(words), arguments)
    others = {line.split()[0] for line in asked} - {"workbench"}
    assert others <= {"make", ".", "ssh", "pip", "ray"}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {line.split()[1] for line in asked if line.startswith("make ")} <= set(targets)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder in which the examples of the guides find their labels, and a model and a task to be had by their names."""
    model = random_model("llama")
    ids = np.random.default_rng(0).integers(3, 250, (2, 4, 7))
    items = tuple(Item(str(number), "b", (" c",), (" d",)) for number in range(4))
    pairs = Pairs("ioi", "logit_difference", items, *ids, ((5,),) * 4, ((6,),) * 4)
    for name, label in (("heads.json", "retrieval"), ("calibrated.json", "calibrate")):
        HeadLabels(model.card, {Head(0, 4): (label,)}, {}).save(tmp_path / name)
    monkeypatch.setattr(wb, "load", lambda name, **_: {"smollm2-135m": model, "meta-llama/Llama-3.1-8B": model}[name])
    monkeypatch.setattr("workbench.circuits.tasks.prepare", lambda *_: TaskSet("ioi", (pairs,), {}, 0))
    cell = Cell(Wanted("there"), Asked(("copying",)), "plain", "none", None)
    Dataset(tmp_path / "sweep").save(cell, measure.score(model, ["copying"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


KNOWN = {
    "how-to/calibrate_sinks.md": lambda names: names["heads"] == (Head(0, 4),) and len(names["seen"].found) == 1,
    "how-to/circuits.md": lambda names: names["effects"].effect_NLH.shape == (4, 2, 6),
    "how-to/extend.md": lambda names: names["seen"][names["last"]].mean(axis=(0, 3)).shape == (2, 6),
    "how-to/label_my_model.md": lambda names: wb.HeadScores.load("scores.parquet").probes == ("induction",) and names["labels"].provenance["seed"] == 1,
    "how-to/large_models.md": lambda names: names["seen"][names["Entropy"]()].shape[1:3] == (2, 6),
    "how-to/policies.md": lambda names: names["tokens"].shape[1] == len("The sky is") + 1 + 8,  # bytes, and the one that begins
    "how-to/sweep.md": lambda names: set(names["table"]["version"]) == {"there"},
}
"""What is true when the examples of a guide have run."""


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_examples_of_the_guides_run(prepared, page):
    names = {}
    for language, content in blocks(read(page)):
        if language == "python":
            exec(content, names)
    assert KNOWN[page](names)


def test_the_sweep_of_the_guide_is_one():
    (text,) = [content for language, content in blocks(read("how-to/sweep.md")) if language == "yaml"]
    sweep = Sweep.parse(yaml.safe_load(text))
    assert len(list(sweep.cells())) == 2 * 2 * 2 * 3


def test_the_lines_of_json_in_the_guides_are_what_the_readers_take(tmp_path):
    from workbench.circuits.tasks import load_items
    from workbench.needle_files import Needle
    from workbench.questions import Question

    (item,) = [content for language, content in blocks(read("how-to/circuits.md")) if language == "json"]
    (tmp_path / "mine.jsonl").write_text(item, encoding="utf-8")
    assert load_items(tmp_path / "mine.jsonl")[0].right == (" are",)
    (needle,) = re.findall(r"`(\{.*?\})`", read("how-to/label_my_model.md"))
    assert Needle.parse(json.loads(needle), "here").answer == "The best thing to do in Ghent is to climb the belfry."
    (question,) = re.findall(r"`(\{.*?\})`", read("how-to/calibrate_sinks.md"))
    assert Question.parse(json.loads(question), "here", "mine").answer == 0


def follows(said, told):
    """Whether the lines that a page shows stand in what was said, in their order; an ellipsis stands for any."""
    lines = iter(line.rstrip() for line in said.splitlines())
    return all(line.rstrip() in lines for line in told.splitlines() if line not in ("", "…"))


@pytest.mark.model
@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path, monkeypatch, smollm2):
    monkeypatch.chdir(tmp_path)
    said, checked, names = "", 0, {}
    for language, content in blocks(read("tutorial/index.md")):
        if language == "text":
            assert follows(said, content), said
            checked += 1
        elif language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(content, names)
            said = out.getvalue()
        else:
            results = [CliRunner().invoke(app, shlex.split(line)[1:]) for line in content.splitlines() if line.startswith("workbench ")]
            assert not [result.output for result in results if result.exit_code]
            said = "\n".join(result.stdout for result in results)
    assert checked == 6
    assert {"heads.json", "heads.html", "duo"} <= {path.name for path in tmp_path.iterdir()}


# ---------------------------------------------------------------- the built site


class Loads(HTMLParser):
    """What a page loads by itself: not what it links to."""

    def __init__(self):
        super().__init__()
        self.found, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        names = {"a": (), "link": ("href",), "use": ("href", "xlink:href"), "object": ("data",)}.get(tag, ("src", "srcset", "poster", "href"))
        self.found += [given[name] for name in names if given.get(name)]
        self.found += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


@pytest.fixture(scope="module")
def loaded(site):
    """Every page of the built site: what it loads, and its anchors."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        parser = Loads()
        parser.feed(path.read_text(encoding="utf-8"))
        pages[path.relative_to(site).as_posix()] = parser
    return pages


@pytest.mark.slow
def test_no_page_loads_anything_from_another_host(site, loaded):
    assert len(loaded) > 100
    assert not {(page, target) for page, parser in loaded.items() for target in parser.found if re.match(r"\w+:|//", target) and not target.startswith("data:")}
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(\s*['\"]?|@import\s+['\"]?)(?:https?:)?//[^)'\"]+", text), sheet


@pytest.mark.slow
def test_what_a_page_loads_is_there(site, loaded):
    for page, parser in loaded.items():
        if page != "404.html":  # its addresses begin at the root of a server
            missing = [target for target in parser.found if not target.startswith("data:") and not ((site / page).parent / target.partition("?")[0]).exists()]
            assert not missing, page


@pytest.mark.slow
def test_everything_has_its_anchor_in_the_built_site(loaded):
    every = {f"probe-{name}" for name in PROBES} | {f"task-{name}" for name in TASKS} | {f"format-{name}" for name in FORMATS}
    every |= {f"read-{read.__name__.lower()}" for read in (*READS, *BLOCK_READS)} | {f"edit-{edit.__name__.lower()}" for edit in get_args(Edit)}
    every |= {f"command-{'-'.join(words)}" for words in commands_of(typer.main.get_command(app))}
    every |= {"workbench.captures.capture", "workbench.labels.HeadLabels.save", "workbench.circuits.faithfulness.evaluate"}
    anchors = [one for parser in loaded.values() for one in parser.ids]
    assert not {name for name in every if anchors.count(name) != 1}
