"""Do figures and tables leave as what their names say, with nothing lost, and do drawings show what they were given?"""

import io
import re
import struct
from importlib.util import find_spec

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from browsing import CHROMIUM

from workbench.errors import InputError
from workbench.heads import Head
from workbench.views import camera, check_ending, figure_bytes, save_figure, save_table, table_bytes
from workbench.views.export import NO_BROWSER, NO_KALEIDO, NO_START, drawn, no_pictures, packed, pictures
from workbench.views.svg import LABELLED, NULL, RISING, SIGNED, Curve, Dot, curves_picture, distribution_picture, intervals_picture, map_picture

FIGURE = go.Figure(go.Bar(x=["one", "two"], y=[1, 2]), layout={"width": 300, "height": 200, "title": "Two bars"})
TABLE = pd.DataFrame({"head": ["L0H1", "L1H0"], "score": [0.1 + 0.2, np.nan], "n": [3, 4], "kept": [True, False]})
draws = pytest.mark.skipif(CHROMIUM is None or find_spec("kaleido") is None, reason="kaleido or a Chromium is missing, which draw pictures")


def test_tables_come_back_as_they_were(tmp_path):
    pd.testing.assert_frame_equal(pd.read_csv(save_table(TABLE, tmp_path / "t.csv")), TABLE)
    pd.testing.assert_frame_equal(pd.read_parquet(save_table(TABLE, tmp_path / "t.parquet")), TABLE)
    assert table_bytes(TABLE, ".csv") == (tmp_path / "t.csv").read_bytes()


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"unknown kind of table '.xlsx'; there are: .csv, .parquet"):
        save_table(TABLE, tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="cannot be written as Parquet"):
        table_bytes(pd.DataFrame({"mixed": [1, "a", [2]]}), ".parquet")
    for wrong in (lambda: figure_bytes(FIGURE, ".gif"), lambda: check_ending("a.gif"), lambda: check_ending("folder")):
        with pytest.raises(InputError, match=r"unknown kind of figure .*; there are: .html, .png, .svg"):
            wrong()
    with pytest.raises(InputError, match=r"unknown kind of picture"):
        camera("a", ".html")
    check_ending(tmp_path / "a.svg")


def test_a_page_needs_no_network(tmp_path):
    page = save_figure(FIGURE, tmp_path / "figure.html").read_text(encoding="utf-8")
    assert page == figure_bytes(FIGURE).decode()
    assert "Two bars" in page
    assert not re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?http""", page)


@draws
@pytest.mark.slow
def test_pictures_have_the_size_of_the_figure(tmp_path):
    png = save_figure(FIGURE, tmp_path / "figure.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (600, 400)
    svg = figure_bytes(FIGURE, ".svg").decode()
    assert svg.startswith("<svg")
    assert "Two bars" in svg


@draws
@pytest.mark.slow
def test_drawings_become_pictures_with_their_colours():
    from PIL import Image

    svg = map_picture(np.array([[1.0, 0.0], [0.0, 0.0]]), {}, "", "a map")
    (png,) = pictures([drawn(svg)])
    size = [int(number) for number in re.findall(r'width="(\d+)" height="(\d+)"', svg)[0]]
    assert struct.unpack(">II", png[16:24]) == (2 * size[0], 2 * size[1])
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for count, colour in picture.getcolors(1 << 20) if count > 300}
    assert {RISING[0].lower(), RISING[-1].lower(), "#ffffff"} <= colours


def test_a_picture_packed_again_is_the_same_picture():
    from PIL import Image

    rng = np.random.default_rng(0)
    given = Image.fromarray(np.repeat(rng.integers(0, 255, (40, 1, 4), dtype=np.uint8), 60, axis=1), "RGBA")
    plain = io.BytesIO()
    given.save(plain, "PNG", compress_level=1)
    again = packed(plain.getvalue())
    assert len(again) < len(plain.getvalue())
    picture = Image.open(io.BytesIO(again))
    picture.load()  # reads checksums
    assert picture.tobytes() == given.tobytes()


def test_without_kaleido_or_a_browser_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("workbench.views.export.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape(NO_KALEIDO)):
        figure_bytes(FIGURE, ".png")
    assert no_pictures() == NO_KALEIDO
    monkeypatch.undo()
    kaleido, errors = pytest.importorskip("kaleido"), pytest.importorskip("choreographer.errors")

    for kind, words in ((errors.ChromeNotFoundError, NO_BROWSER), (errors.BrowserFailedError, NO_START), (errors.BrowserClosedError, NO_START)):

        def failing(*_, kind=kind, **__):
            raise kind

        monkeypatch.setattr(kaleido, "write_fig_from_object_sync", failing)
        with pytest.raises(InputError, match=re.escape(words)):
            figure_bytes(FIGURE, ".svg")
    monkeypatch.setattr("choreographer.browsers.chromium.Chromium.find_browser", lambda **_: None)
    assert no_pictures() == NO_BROWSER
    monkeypatch.setattr("choreographer.browsers.chromium.Chromium.find_browser", lambda **_: "/usr/bin/chromium")
    assert no_pictures() == ""


def test_the_camera_saves_what_was_asked_for():
    assert camera("recall", ".svg") == {"displaylogo": False, "toImageButtonOptions": {"format": "svg", "filename": "recall", "scale": 1}}
    assert camera("recall")["toImageButtonOptions"]["format"] == "png"


def cells(svg):
    """The colour of each cell by its place from the top left."""
    found = {}
    for path, colour in re.findall(r'<path d="([^"]+)" fill="(#[0-9a-fA-F]+)"/>', svg):
        found |= {(float(y), float(x)): colour for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path)}
    return [found[place] for place in sorted(found)]


def test_a_map_has_a_shade_for_every_score_and_none_where_there_is_none():
    score_LH = np.array([[0.0, 0.5, 1.0], [np.nan, 0.25, 0.75]])
    shades = cells(map_picture(score_LH, {Head(0, 2): "told"}, "labelled", "a map"))
    expected = [RISING[round(score * (len(RISING) - 1))] for score in score_LH.ravel() if np.isfinite(score)]
    assert shades == expected
    signed = cells(map_picture(np.array([[-2.0, 0.0, 1.0]]), {}, "", "a map", signed=True))
    assert signed == [SIGNED[0], SIGNED[3], SIGNED[round((1 + 2) / 4 * 6)]]


def test_a_map_marks_heads_where_they_are():
    svg = map_picture(np.zeros((4, 5)), {Head(3, 1): "L3H1: 0.5"}, "labelled", "a map")
    ((x, y),) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>L3H1: 0.5</title>', svg)
    places = sorted((float(y), float(x)) for path in re.findall(r'<path d="([^"]+)" fill="#', svg) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path))
    top, left = places[3 * 5 + 1]
    assert 0 < float(x) - left < places[1][1] - places[0][1]
    assert 0 < float(y) - top < places[5][0] - places[0][0]
    assert "1 labelled" in svg
    assert "<title>" not in map_picture(np.full((2, 2), np.nan), {}, "", "nothing")


def test_intervals_lie_in_proportion():
    dots = [Dot("a", 0.5, 0.25, 1.0, 0.0), Dot("b", 0.0, filled=False), Dot("c", 1.0, float("nan"), float("nan"))]
    svg = intervals_picture(dots, "score", "dots", [0.5])
    x = {name: float(place) for place, name in re.findall(r'<circle cx="([\d.]+)"[^>]*><title>(\w)', svg)}
    middle = (x["b"] + x["c"]) / 2
    assert x["a"] == pytest.approx(middle, abs=0.11)
    ((low, high),) = re.findall(r'd="M([\d.]+) \d+H([\d.]+)"', svg)
    assert float(low) == pytest.approx((x["b"] + middle) / 2, abs=0.11)
    assert float(high) == x["c"]
    ((null,),) = [re.findall(rf'd="M([\d.]+) \d+v10" stroke="{NULL}"', svg)]
    assert float(null) == x["b"]
    assert svg.count(f'fill="{LABELLED}"') == 2  # the open dot is white
    assert f"M{x['a']:.1f} 4.0L" in svg  # the dashed line at 0.5
    assert "(0.25 to 1)" in svg


def test_a_distribution_has_a_bar_for_every_score():
    svg = distribution_picture([0.9, 0.95], [0.0, 0.0, 0.5], [0.1], [0.7], "scores")
    bars = [re.findall(r"M([\d.]+) [\d.]+V([\d.]+)H", path) for path in re.findall(r'<path d="([^"]+)" fill="#[0-9a-f]+" fill-opacity', svg)]
    others, labelled = bars
    assert (len(others), len(labelled)) == (2, 2)
    assert float(others[0][1]) < float(others[1][1])  # two heads stand higher than one
    assert float(others[1][1]) == float(labelled[0][1])
    assert all(words in svg for words in ("2 labelled", "3 others", "1 null"))
    assert "stroke-dasharray" in svg
    assert "null" not in distribution_picture([1.0], [0.5], [], [], "scores").split("aria-label")[1]


def test_curves_go_through_their_points():
    curve = Curve("first", [0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 0.4, np.nan], [0.0, 0.6, np.nan], "#0b62a4")
    svg = curves_picture([curve], "share", "curves")
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.11)
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.11)
    assert "first: 50% at 50%" in svg
    assert svg.count(">100%<") == 2  # the end of both axes


def test_names_in_a_drawing_are_never_markup():
    svg = intervals_picture([Dot("<script>", 1.0)], "a & b", '"quoted"')
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
    assert 'aria-label="&quot;quoted&quot;"' in svg
