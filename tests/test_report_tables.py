"""Do the sections of sinks, successor heads and circuits show what their tables say, and does a caveat appear where these call for it and nowhere else?"""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from browsing import ROOT
from results import circuit, scores

from workbench.circuits.circuit import Circuit
from workbench.heads import Head
from workbench.labels import HeadLabels
from workbench.results import Result, Results, collect
from workbench.results.of_methods import areas_in_short
from workbench.results.of_tables import caveats_of_table
from workbench.results.reading import TABLES
from workbench.rules import RULES
from workbench.views.report import markdown, report_of
from workbench.views.svg import WIDTH
from workbench.views.svg_graph import BESIDE, NODE, graph_picture, matrix_picture, spread

MADE = ROOT / "reports" / "smollm2-135m"


def section(kind, rows, *others):
    """The section of one table, as a report has it."""
    results = Results("t", (Result("mine.csv", kind, rows, 1, "0" * 64), *others))
    return next(found for found in report_of(results).sections if found.sources == ("mine.csv",))


def blocks(found, *names):
    every = {block.name: block for block in found.blocks}
    return [every[f"mine_{name}" if name else "mine"] for name in names]


def circles(svg):
    """Name, value, low and high of every dot of a picture."""
    return [(name, *map(float, numbers)) for name, *numbers in re.findall(r"<title>([^<]+): (-?[\d.e-]+) \((-?[\d.e-]+) to (-?[\d.e-]+)\)</title>", svg)]


def sinks(first=0.5, random=0.5, repeated=0.5, later=(0.9, 0.9, 0.9), mass=0.5):
    """Two layers of five heads that are all alike."""
    names = ("alpha_n", "absolute", "uniform")
    rows = pd.DataFrame({"layer": np.repeat([0, 1], 5), "head": np.tile(range(5), 2)})
    scores_ = {"attention_sink": first, "attention_sink_random": random, "attention_sink_repeated": repeated, "no_op": 0.0, "no_op_mass": mass}
    text = {"text_first": 0.5, "text_value_first": [0.1] * 5 + [0.3] * 5, "text_value_rest": 0.2, "text_key_first": 1.0, "text_key_rest": 2.0}
    return rows.assign(**scores_, **{f"later_sink_{name}": value for name, value in zip(names, later, strict=True)}, **text)


def successors(best=0.6, null=0.1, raw="L0H0", suppresses=0.0):
    heads = [f"L0H{index}" for index in range(4)]
    rows = pd.DataFrame({"head": heads, "layer": 0, "index": range(4), "successor": [best, 0.05, 0.04, 0.03], "successor_null": null})
    return rows.assign(copy_suppression=suppresses, name_mover=0.0, successor_raw=[0.7 if head == raw else 0.0 for head in heads])


def steering(random=0.05, tried=1):
    rows = [("days", "probe", scale, 100, 0.6 - 0.1 * scale, 0.5, 0.5, 0.5) for scale in range(tried)]
    rows += [("days", "random", 0, 100, random, 0.1, 0.1, 0.5)] if random is not None else []
    return pd.DataFrame(rows, columns=["class", "direction", "scale", "moves", "success", "up", "down", "above"])


def methods(one=0.9, other=0.5, random=0.1, seeds=5, zero=0.8, falls=0.0, prompts=60):
    rows = []
    for seed in range(seeds):
        rows += [(seed, "held out", "full model", name, value, None, None) for name, value in (("prompts", prompts), ("accuracy", 0.9))]
        for method, value in (("one", one), ("other", other), ("random", random)):
            rows += [(seed, "head curve", method, "cpr", value + 0.01 * seed, None, None), (seed, "head curve", method, "cmd", 1 - value, None, None)]
            for part, most in (("resample", value), ("zero", min(value, zero))):
                kept = {"5": most, "10": most - (falls if method == "one" else 0)}
                rows += [(seed, f"faithfulness, {part}", method, count, number, number - 0.1, number + 0.1) for count, number in kept.items()]
    return pd.DataFrame(rows, columns=["seed", "part", "method", "measure", "value", "low", "high"])


def recovered(good=0.9, seeds=5, sharp=5):
    """Heads of two kinds of models, with a leak and without one."""
    rows = [
        ("heads", 5, leak, seed, method, value, value - 0.02 * seed, 0.3)
        for leak, count in ((0.0, sharp), (0.001, seeds))
        for seed in range(count)
        for method, value in (("one", good), ("two", 0.8))
    ]
    return pd.DataFrame(rows, columns=["what", "beta", "leak", "seed", "method", "auroc", "average_precision", "chance"])


def overlap(q=0.01, ceiling=0.8, bare=0.01):
    pairs = [("a", "b", 0.5), ("a", "c", 0.25), ("b", "c", 0.0)]
    rows = [(first, second, budget, 3, 0.5, value, 0.0, 0.6, 0.01, q, ceiling, bare) for budget in (0.02, 0.05, 0.1) for first, second, value in pairs]
    columns = [
        "first_task",
        "second_task",
        "budget",
        "shared",
        "expected",
        "jaccard",
        "low",
        "high",
        "p_layer",
        "q_layer",
        "ceiling",
        "q_layer_without_generic",
    ]
    return pd.DataFrame(rows, columns=columns)


def code_sizes(worst=0.6, seeds=2):
    rows = [(many, 200, 10, seed, 0, score - 0.1 * seed, 0.5, 0.5, 3.0, 0.01) for many, score in ((5, worst + 0.1), (100, 0.9)) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["examples", "latents", "pairs", "seed", "model_seed", "auroc", "average_precision", "f1", "codes", "loss"])


def moved(own=0.9, random=0.1, other=0.2):
    rows = []
    for kind, mine, theirs in (("kept", own, other), ("drop", 0.8, 0.2)):
        rows += [(one, two, 0.05, kind, mine if one == two else theirs, random, 0.05) for one in ("a", "b") for two in ("a", "b")]
    return pd.DataFrame(rows, columns=["circuit", "task", "budget", "kind", "value", "random_mean", "random_sd"])


def turned(low=0.6, random=0.2, seeds=2):
    rows = [("nothing", None, 0, 0.4, 0.3, 0.5), ("both", "right", 6, 0.8, low, 0.9)]
    rows += [(f"random, seed {seed}", "right", 6, random, 0.1, 0.3) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["heads turned", "to", "heads", "accuracy", "low", "high"])


def streams(sampled=0):
    rows = [(way, place, 100.0 * place, loss, 100) for way, loss in (("dense", 1.0), ("window", 2.0)) for place in range(20)]
    rows += [("recomputed", place, 100.0 * place, 0.5, 1) for place in range(sampled)]
    return pd.DataFrame(rows, columns=["way", "stretch", "position", "nll", "tokens"])


RANDOMS = "the mean and standard deviation of a few random circuits"
USUAL = {
    "sinks": (sinks, ["Norms and attention on the text are of one text, so that they have no intervals."]),
    "successors": (successors, []),
    "steering": (steering, ["Moves of one class share its words and are not independent, so that intervals are too narrow."]),
    "methods": (methods, []),
    "recovery": (recovered, ["The models are written by hand: what finds their circuit need not find that of a trained one."]),
    "code_sizes": (code_sizes, []),
    "overlap": (overlap, []),
    "transfer": (moved, [f"A value has no interval; beside it stand {RANDOMS} with as many heads in each layer."]),
    "turned": (turned, []),
    "streams": (streams, ["All losses are of one text, so that they have no intervals over texts."]),
}  # fmt: skip
CASES = {
    "codes by chance": ("code_sizes", {"worst": 0.4}, "care", "Not clearly better than chance (AUROC 0.5) with 1 of 2 settings"),
    "codes of one seed": ("code_sizes", {"seeds": 1}, "know", "One seed only, 0."),
    "input": ("sinks", {"repeated": 0.1}, "care", "Whether a head has a sink at the first token depends on what is read, heads with one: natural text 10,"),
    "rules": ("sinks", {"later": (0.9, 0.9, 0.1)}, "care", "The rules of later sinks do not name the same heads: alpha_n 10, absolute 10, uniform 0; 0 by"),
    "no-op": ("sinks", {"mass": 0.95}, "know", "A sink is not by itself a no-op: of 10 heads with more than 90% of the mass on delimiters and the first"),
    "none": ("successors", {"best": 0.3}, "care", "No head reaches the rule (0.5): ranks are among heads that hardly do it, the strongest, L0H0, for 30%"),
    "null": ("successors", {"null": 0.7}, "stop", "The strongest head, L0H0, does no better than with successors shuffled: 0.600 and 0.700."),
    "norms": ("successors", {"raw": "L0H2"}, "care", "Which head is strongest depends on norms and paths, which are a reconstruction: as scored L0H0,"),
    "suppresses": ("successors", {"suppresses": 0.9}, "know", "L0H0 lowers the word that it looks at as well (copy suppression 0.90)."),
    "not tried": ("steering", {"random": None}, "stop", "Random directions were not tried"),
    "no better": ("steering", {"random": 0.55}, "care", "No direction is clearly better than a random one in: days."),
    "best of": ("steering", {"tried": 3}, "care", "Direction and scale are the best of 3 tried on the same moves"),
    "no random": ("methods", {"random": 0.55}, "care", "Not clearly better than random rankings (CPR up to 0.59): other."),
    "alike": ("methods", {"other": 0.88}, "care", "These seeds do not tell apart one and other."),
    "dead": ("methods", {"zero": 0.01}, "care", "Under some ablations no method's heads keep the task: zero (at most 0.01)."),
    "falls": ("methods", {"falls": 0.4, "zero": 0.3}, "care", "More heads can keep less (resample), as some work against the task: one 0.90 → 0.50."),
    "seeds": ("methods", {"seeds": 3}, "know", "3 samples of prompts only"),
    "prompts": ("methods", {"prompts": 12}, "care", "Faithfulness is of 12 to 12 held-out prompts."),
    "no better than chance": ("recovery", {"good": 0.3}, "care", "Heads, β 5 and leak 0.001: not clearly better than chance (0.30): one."),
    "one seed": ("recovery", {"sharp": 1}, "know", "One seed only for 1 of 2 kinds of models."),
    "chance": ("overlap", {"q": 0.5}, "care", "Pairs of tasks that share more heads than their layers explain (q ≤ 0.05): 0 of 3 at 2% of the heads, 0 of"),
    "unstable": ("overlap", {"ceiling": 0.4}, "care", "Circuits are not stable: from halves of the same prompts they overlap by less than 0.6 in 9 of 9"),
    "generic": ("overlap", {"bare": 0.3}, "care", "Not without the heads that matter for plain text as well: a and b (2%), a and c (2%)"),
    "not own": ("transfer", {"own": 0.4, "random": 0.0}, "care", "With 5% of the heads these circuits do not do even their own task by half, so that their"),
    "by chance": ("transfer", {"random": 0.85}, "care", "On their own task not clearly better than random heads of the same layers: a, b."),
    "another": ("transfer", {"other": 0.95}, "know", "Another task's circuit does the task better than its own: a on b, b on a."),
    "no change": ("turned", {"low": 0.3}, "care", "No change of accuracy that these items could tell: both to right."),
    "random too": ("turned", {"random": 0.8}, "care", "Some random heads do as well or better (0.80): both to right."),
    "no control": ("turned", {"seeds": 0}, "stop", "No random heads were turned"),
    "sampled": ("streams", {"sampled": 12}, "care", "Measured at sampled rows alone, not to be compared with the others: recomputed (12 rows)."),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_caveat_appears_where_a_table_calls_for_it_and_no_other_does(case):
    kind, changes, level, words = CASES[case]
    table, known = USUAL[kind]
    assert [caveat.text for caveat in caveats_of_table(kind, table(), "t.csv")] == known
    more = [caveat for caveat in caveats_of_table(kind, table(**changes), "t.csv") if caveat.text not in known]
    assert [(caveat.level, caveat.about) for caveat in more] == [(level, "t.csv")], more
    assert more[0].text.startswith(words)


def test_methods_without_random_rankings_are_not_to_be_used():
    rows = methods()
    (caveat,) = caveats_of_table("methods", rows[rows["method"] != "random"], "t.csv")
    assert (caveat.level, caveat.text[:39]) == ("stop", "No random rankings were measured, so th")


def test_sinks_are_counted_by_rule_and_by_layer():
    rows = sinks(first=[0.5] * 5 + [0.1] * 5)
    found = section("sinks", rows)
    by_layer, norms, short = blocks(found, "by_layer", "norms", "in_short")
    counts = short.rows.set_index("score")
    assert (counts.loc["attention_sink", "heads"], counts.loc["attention_sink", "share"]) == (5, "50%")
    assert counts.loc["attention_sink", "rule"] == "score ≥ 0.3"
    assert "<title>first token: 100% at 0</title>" in by_layer.svg
    assert "<title>first token: 0% at 1</title>" in by_layer.svg
    assert "<title>values: median over heads: 0.5 at 0</title>" in norms.svg
    assert "<title>values: median over heads: 1.5 at 1</title>" in norms.svg
    assert found.words[-1].startswith("Intervals are not known")


def test_intervals_are_those_of_the_same_scores_and_of_no_others():
    table = scores()  # of six heads
    same = pd.DataFrame({"head": [f"L{layer}H{index}" for layer in range(2) for index in range(3)], "layer": [0] * 3 + [1] * 3, "index": [0, 1, 2] * 2})
    rows = same.assign(successor=table.matrix("retrieval").ravel(), successor_null=0.0, copy_suppression=0.0, name_mover=0.0, successor_raw=0.0)
    renamed = type(table)(table.card, table.table.assign(probe="successor"), {"successor": table.evidence["retrieval"]}, table.provenance)
    known = section("successors", rows, Result("s.parquet", "scores", renamed, 1, "1" * 64))
    best = renamed.top(1, "successor").iloc[0]
    name, value, low, high = circles(blocks(known, "strongest")[0].svg)[0]
    assert (name, value, low, high) == ("L0H0", *(pytest.approx(float(best[column]), rel=5e-3) for column in ("score", "ci_low", "ci_high")))
    other = section("successors", rows.assign(successor=rows["successor"] / 2), Result("s.parquet", "scores", renamed, 1, "1" * 64))
    assert not circles(blocks(other, "strongest")[0].svg)
    assert any(words.startswith("Intervals are not known") for words in other.words)


def test_methods_stand_by_their_means_and_the_ends_of_their_samples():
    rows = methods()
    found = section("methods", rows)
    dots = circles(blocks(found, "cpr")[0].svg)
    assert dots == [("one", 0.92, 0.9, 0.94), ("other", 0.52, 0.5, 0.54), ("random", 0.12, 0.1, 0.14)]
    (table,) = [block for block in found.blocks if block.name == "mine_first" and hasattr(block, "rows")]
    assert table.rows.set_index("method").loc["one", "5 heads"] == "0.90 (0.80 to 1.00)"
    assert "one 0.92 (0.90 to 0.94)" in found.in_short


def test_known_circuits_stand_by_the_models_that_leak():
    found = section("recovery", recovered(sharp=1))
    picture = next(block for block in found.blocks if block.name == "mine_heads" and hasattr(block, "svg"))
    assert circles(picture.svg) == [("one", 0.86, 0.82, 0.9), ("two", 0.76, 0.72, 0.8)]
    assert "leak 0.001" in picture.caption
    assert found.in_short == "Best average precision where the circuit is known: heads one 0.86."


def test_codes_stand_by_their_settings():
    found = section("code_sizes", code_sizes())
    picture, table = blocks(found, "auroc", "")
    names = ["5 examples, 200 latents, 10 pairs", "100 examples, 200 latents, 10 pairs"]
    assert circles(picture.svg) == [(names[0], 0.65, 0.6, 0.7), (names[1], 0.85, 0.8, 0.9)]
    assert table.shown["auroc"].tolist() == pytest.approx([0.65, 0.85])
    assert found.in_short == "Codes find a known circuit best, AUROC 0.85, with 100 examples, 200 latents, 10 pairs; by chance 0.5."


def test_a_matrix_tells_every_pair_both_ways_and_nothing_of_a_task_with_itself():
    (picture,) = blocks(section("overlap", overlap()), "jaccard")
    cells = dict(re.findall(r"<title>(\w, \w): ([\d.]+)</title>", picture.svg))
    assert cells == {"a, b": "0.500", "b, a": "0.500", "a, c": "0.250", "c, a": "0.250", "b, c": "0.000", "c, b": "0.000"}
    kept, drop, table = blocks(section("transfer", moved()), "kept", "drop", "")
    assert dict(re.findall(r"<title>(\w, \w): ([\d.]+)</title>", kept.svg)) == {"a, a": "0.900", "a, b": "0.200", "b, a": "0.200", "b, b": "0.900"}
    assert "<title>a, a: 0.800</title>" in drop.svg
    assert table.shown["specificity"].tolist() == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize(("number", "shown"), [(0.351, ".35"), (-0.02, "-.02"), (-0.001, "0"), (0.999, "1.00"), (-1.234, "-1.23"), (float("nan"), None)])
def test_numbers_in_cells_are_short(number, shown):
    svg = matrix_picture(pd.DataFrame([[number]], ["a"], ["a"]), "one", signed=True)
    assert re.findall(r'font-size="9" fill="#...">([^<]*)<', svg) == ([] if shown is None else [shown])


def test_shared_heads_steering_turning_and_streams_show_their_numbers():
    heads = pd.DataFrame({"head": ["L0H0", "L0H1", "L1H0", "L1H1"], "circuits": [0, 3, 2, 1], "tasks": ["", "a, b, c", "a, b", "a"], "labels": "x"})
    found = section("shared_heads", heads)
    assert re.findall(r"<title>([^<]+)</title>", found.blocks[0].svg) == ["L0H1: 3 (a, b, c)", "L1H0: 2 (a, b)"]
    assert found.blocks[1].shown["head"].tolist() == ["L0H1", "L1H0"]
    assert "2 of 4 heads" in found.in_short
    name, value, low, high = circles(blocks(section("steering", steering()), "success")[0].svg)[0]
    share, z, n = 0.6, 1.959964, 100
    middle, half = (share + z**2 / (2 * n)) / (1 + z**2 / n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert (name, value, low, high) == ("days: probe", 0.6, pytest.approx(middle - half, rel=5e-3), pytest.approx(middle + half, rel=5e-3))
    assert [dot[0] for dot in circles(blocks(section("turned", turned()), "accuracy")[0].svg)] == [
        "nothing",
        "both → right",
        "random, seed 0",
        "random, seed 1",
    ]
    (short,) = blocks(section("streams", streams()), "in_short")
    assert short.rows.set_index("way")["perplexity"].to_dict() == pytest.approx({"dense": np.e, "window": np.e**2})


def test_a_graph_has_every_head_and_edge_of_the_circuit():
    made = Circuit.load(MADE / "circuit_ioi.json")
    svg = graph_picture(made, "graph")
    graph = made.graph()
    told = re.findall(r"<title>([^<]+)</title>", svg)
    edges = {told_.partition(" (")[0].replace("-&gt;", "→") for told_ in told if "→" in told_}
    assert edges == {f"{sender} → {receiver}" for sender, receiver in graph.edges}
    assert {words.partition(":")[0] for words in told if "→" not in words} == set(graph)
    rows = {}
    for x, y, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="middle" font-size="9.5" fill="#...">([^<]+)<', svg):
        rows.setdefault(float(y), []).append((float(x), name))
    levels = [{Head.parse(name).layer for _, name in rows[y] if "H" in name} for y in sorted(rows)]
    assert [layer for level in levels for layer in level] == sorted({head.layer for head in made.heads}, reverse=True)
    assert all(b - a >= NODE - 0.2 for row in rows.values() for (a, _), (b, _) in pairwise(sorted(row)))


@pytest.mark.parametrize("wanted", [[0.5], [0, 0.1, 0.2, 1], [0.9, 0.95, 1], [number / 31 for number in range(32)]])
def test_heads_of_a_layer_do_not_stand_on_one_another_while_there_is_room(wanted):
    at = spread(wanted)
    room = WIDTH - BESIDE - NODE
    gap = NODE if NODE * (len(wanted) - 1) <= room else 0
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(at))
    assert BESIDE + NODE / 2 - 1e-9 <= min(at) <= max(at) <= WIDTH - NODE / 2


def test_a_circuit_without_edges_has_no_graph():
    report = report_of(Results("t", (Result("c.json", "circuit", circuit(), 1, "0" * 64),)))
    names = [picture.name for _, picture in report.pictures()]
    assert ("c_graph" in names) is bool(len(circuit().edges))
    bare = report_of(Results("t", (Result("c.json", "circuit", circuit(edges=circuit().edges.head(0)), 1, "0" * 64),)))
    assert "c_graph" not in [picture.name for _, picture in bare.pictures()]


@pytest.fixture(scope="module")
def made():
    return collect(MADE)


def test_every_table_of_the_default_model_has_a_section(made):
    assert not made.of("table")
    beside = collect(MADE.with_name("compiled_ioi"))
    assert set(TABLES) - {result.kind for result in (*made.files, *beside.files)} == {"recall"}
    titles = [found.title for found in report_of(made).sections]
    assert len(set(titles)) == len(titles)


def test_sections_of_the_default_model_agree_with_its_labels_and_files(made):
    labels = HeadLabels.load(MADE / "heads.json")
    tables = {block.name: block for found in report_of(made).sections for block in found.blocks if hasattr(block, "rows")}
    counts = tables["sinks_in_short"].rows.set_index("score")["heads"]
    assert counts["attention_sink"] == len(labels.heads("attention_sink"))
    assert counts["attention_sink_random"] == len(labels.heads("attention_sink_random"))
    assert counts["no_op"] == len(labels.heads("no_op"))
    raw = pd.read_csv(MADE / "circuits_ioi.csv").query("part == 'head curve' and method == 'patching' and measure == 'cpr'")["value"].astype(float)
    assert tables["circuits_ioi_areas"].rows.set_index("method").loc["patching", "cpr"] == pytest.approx(np.mean(raw.to_numpy()))
    assert areas_in_short(made.first("methods"))["cpr"].is_monotonic_decreasing
    assert f"the strongest is L23H3 with {pd.read_csv(MADE / 'successor_heads.csv')['successor'].max():.3f}" in markdown(report_of(made))
    assert RULES["successor"].value == 0.5
