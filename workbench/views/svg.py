"""How does a picture look that needs no script? Maps, distributions, intervals and curves as SVG: small, in the page's colours, the same on paper."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.colors
from jaxtyping import Float

from workbench.heads import Head

WIDTH = 330
"""Pixels of a picture: as wide as the smallest screen shows without zooming."""

LEFT, RIGHT, FOOT = 34, 8, 36
RISING = tuple(plotly.colors.sequential.Cividis)
SIGNED = ("#0b62a4", "#5b93c2", "#a9c4de", "#f2f2f2", "#f3c48f", "#e59a47", "#d97706")
"""Shades from below 0 over 0 to above it: blue and orange, which no kind of colour blindness confuses."""

LABELLED, OTHERS, NULL = "#d55e00", "#0072b2", "#888888"


class Dot(NamedTuple):
    """One line of `intervals_picture`: a name, a value, its interval (None of what has none), a grey mark beside it, and whether the dot is filled."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    filled: bool = True


class Curve(NamedTuple):
    """One curve of `curves_picture`: a name, its points, how far each may be off (low, high), a colour, and whether it is dotted."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    dotted: bool = False


def map_picture(score_LH: Float[np.ndarray, "L H"], marked: Mapping[Head, str], meaning: str, alt: str, *, signed: bool = False) -> str:
    """A layer × head map: shades are scores, rings the marked heads with what they are told as on hovering; empty cells have no number.

    `signed` puts 0 in the middle of the shades. `meaning` says what a ring is.
    """
    layers, heads = score_LH.shape
    wide, tall = min(30.0, (WIDTH - LEFT - RIGHT) / heads), max(4.0, min(9.0, 560 / layers))
    low, high = _range(score_LH, signed)
    shades = SIGNED if signed else RISING
    level_LH = np.nan_to_num(np.clip((score_LH - low) / (high - low), 0, 1) * (len(shades) - 1), nan=-1).round().astype(int)
    gap = 0.8 if wide > 5 and tall > 5 else 0.0
    parts = []
    for level, shade in enumerate(shades):
        places = np.argwhere(level_LH == level)
        cells = "".join(f"M{LEFT + h * wide:.1f} {4 + layer * tall:.1f}h{wide - gap:.1f}v{tall - gap:.1f}h{gap - wide:.1f}z" for layer, h in places.tolist())
        parts.append(f'<path d="{cells}" fill="{shade}"/>' if cells else "")
    radius = max(1.5, min(wide, tall) * 0.34)
    for head, told in marked.items():
        x, y = LEFT + (head.index + 0.5) * wide - gap / 2, 4 + (head.layer + 0.5) * tall - gap / 2
        circle = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#fff" stroke="#000" stroke-width="1"'
        parts.append(f"<circle {circle}><title>{html.escape(told)}</title></circle>")
    bottom = 4 + layers * tall
    parts += [text_at(LEFT - 5, 4 + (layer + 0.5) * tall + 4, str(layer), "end") for layer in range(0, layers, _every(layers, tall, 13))]
    parts += [text_at(LEFT + (head + 0.5) * wide, bottom + 12, str(head), "middle") for head in range(0, heads, _every(heads, wide, 20))]
    parts.append(text_at(LEFT, bottom + 26, "layers downwards, heads to the right"))
    return drawing([*parts, *_legend(shades, low, high, len(marked), meaning, bottom + 38)], WIDTH, bottom + 58, alt)


def _range(score_LH: np.ndarray, signed: bool) -> tuple[float, float]:
    if not np.isfinite(score_LH).any():
        return 0.0, 1.0
    if signed:
        most = float(np.nanmax(np.abs(score_LH))) or 1.0
        return -most, most
    low, high = min(0.0, float(np.nanmin(score_LH))), float(np.nanmax(score_LH))
    return low, high if high > low else low + 1


def _legend(shades: Sequence[str], low: float, high: float, marked: int, meaning: str, y: float) -> list[str]:
    step = 84 / len(shades)
    bar = [f'<rect x="{LEFT + 30 + i * step:.1f}" y="{y}" width="{step + 0.3:.2f}" height="9" fill="{shade}"/>' for i, shade in enumerate(shades)]
    numbers = [text_at(LEFT + 26, y + 9, f"{low:.2f}", "end"), text_at(LEFT + 118, y + 9, f"{high:.2f}")]
    ring = f'<circle cx="{LEFT + 158}" cy="{y + 5}" r="3.5" fill="#fff" stroke="#000"/>'
    return [*bar, *numbers, *([ring, text_at(LEFT + 167, y + 9, f"{marked} {meaning}"[:22])] if meaning else [])]


def distribution_picture(labelled: Sequence[float], others: Sequence[float], null: Sequence[float], thresholds: Sequence[float], alt: str) -> str:
    """How many heads have which score, logarithmic: the labelled ones orange, the others blue; the null as a grey outline; dashed where a rule begins."""
    every = np.concatenate([np.asarray(part, float) for part in (labelled, others, null, thresholds)])
    low, high = min(0.0, float(every.min())), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1, 41)
    counts = [np.histogram(part, edges)[0].tolist() for part in (others, labelled, null)]
    top = np.log10(max(10.0, float(max(map(max, counts))))) + 0.15
    x, height = _scale(edges[0], edges[-1]), 130.0

    def y(count: float) -> float:
        return 6 + height * (1 - (float(np.log10(count)) + 0.3) / (top + 0.3))

    parts = [text_at(LEFT - 5, y(count) + 4, str(count), "end") for count in (1, 10, 100, 1000, 10000) if np.log10(count) <= top]
    for count, colour in zip(counts[:2], (OTHERS, LABELLED), strict=True):
        bars = [f"M{x(edges[i]):.1f} {6 + height:.1f}V{y(n):.1f}H{x(edges[i + 1]) - 0.5:.1f}V{6 + height:.1f}z" for i, n in enumerate(count) if n]
        parts.append(f'<path d="{"".join(bars)}" fill="{colour}" fill-opacity="0.85"/>')
    outline = [f"M{x(edges[i]):.1f} {6 + height:.1f}V{y(n):.1f}H{x(edges[i + 1]):.1f}V{6 + height:.1f}" for i, n in enumerate(counts[2]) if n]
    parts.append(f'<path d="{"".join(outline)}" fill="none" stroke="{NULL}" stroke-width="1.4"/>')
    parts += [line(x(value), 4, x(value), 6 + height, "4 3") for value in thresholds]
    named = [("labelled", LABELLED, len(labelled)), ("others", OTHERS, len(others)), ("null", NULL, len(null))]
    return drawing([*parts, *_axis(x, 6 + height, "score; heads upwards"), *_key([(f"{n} {name}", c) for name, c, n in named if n], 50 + height)], WIDTH,
                    60 + height, alt)  # fmt: skip


def intervals_picture(dots: Sequence[Dot], label: str, alt: str, lines: Sequence[float] = (), left: int = 62) -> str:
    """A line for each name: its value as a dot (open where it is not `filled`), its interval, and a grey mark (its null, say); dashed lines across all."""
    numbers = [number for dot in dots for number in dot[1:5] if number is not None and np.isfinite(number)] + list(lines)
    x = _scale(min(0.0, *numbers), max(numbers), left)
    parts, row = [], 17
    for place, dot in enumerate(dots):
        y = 12 + place * row
        parts.append(text_at(left - 6, y + 4, dot.name, "end"))
        if dot.low is not None and dot.high is not None and np.isfinite(dot.low + dot.high):
            parts.append(f'<path d="M{x(dot.low):.1f} {y}H{x(dot.high):.1f}" stroke="currentColor" stroke-width="1.6"/>')
        if dot.mark is not None and np.isfinite(dot.mark):
            parts.append(f'<path d="M{x(dot.mark):.1f} {y - 5}v10" stroke="{NULL}" stroke-width="2.5"/>')
        inside = LABELLED if dot.filled else "#fff"
        told = "" if dot.low is None or dot.high is None or not np.isfinite(dot.low + dot.high) else f" ({dot.low:.3g} to {dot.high:.3g})"
        circle = f'cx="{x(dot.value):.1f}" cy="{y}" r="4" fill="{inside}" stroke="{LABELLED}" stroke-width="1.5"'
        parts.append(f"<circle {circle}><title>{html.escape(dot.name)}: {dot.value:.3g}{told}</title></circle>")
    bottom = 12 + len(dots) * row - 4
    parts += [line(x(value), 4, x(value), bottom, "4 3") for value in lines]
    return drawing([*parts, *_axis(x, bottom, label, left)], WIDTH, bottom + FOOT, alt)


def curves_picture(
    curves: Sequence[Curve],
    across: str,
    alt: str,
    *,
    zero: bool = True,
    shown: Callable[[float], str] = "{:.0%}".format,
    place: Callable[[float], str] | None = None,
) -> str:
    """Curves over one axis, with bars for how far each point may be off; the key below. With `zero` upwards begins at 0, else at the least.

    `shown` writes the numbers of the points, `place` those of the axis; by default both alike.
    """
    place = place or shown
    xs = [value for curve in curves for value in curve.x]
    ys = [value for curve in curves for bound in (curve.y, curve.low, curve.high) for value in bound if np.isfinite(value)]
    x, height = _scale(min(0.0, *xs), max(xs), 40), 190.0
    top, bottom = max(ys), min(0.0, *ys) if zero else min(ys)

    def y(value: float) -> float:
        return 8 + height * (1 - (value - bottom) / ((top - bottom) or 1))

    parts = [text_at(36, y(tick) + 4, shown(tick), "end") + line(40, y(tick), WIDTH - RIGHT, y(tick), "", 0.15) for tick in _ticks(bottom, top)]
    for curve in curves:
        points = list(zip(curve.x, curve.y, curve.low, curve.high, strict=True))
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b, *_ in points)
        dash = ' stroke-dasharray="3 3"' if curve.dotted else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{curve.colour}" stroke-width="1.8"{dash}/>')
        bars = "".join(f"M{x(a):.1f} {y(low):.1f}V{y(high):.1f}" for a, _, low, high in points if np.isfinite(low + high))
        parts.append(f'<path d="{bars}" stroke="{curve.colour}" stroke-width="1"/>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.2" fill="{curve.colour}"><title>{html.escape(curve.name)}: {shown(b)} at {place(a)}</title></circle>'
            for a, b, *_ in points
        ]
    key = _key([(curve.name, curve.colour) for curve in curves], 52 + height)
    return drawing([*parts, *_axis(x, 8 + height, across, 40, place), *key], WIDTH, 46 + height + 17 * len(_rows([c.name for c in curves])), alt)


def _scale(low: float, high: float, left: float = LEFT) -> Callable[[float], float]:
    """From a number to pixels across."""
    room, size = WIDTH - left - RIGHT - 10, (high - low) or 1.0
    return lambda value: left + (value - low) / size * room


def _axis(x: Callable[[float], float], y: float, label: str, left: float = LEFT, shown: Callable[[float], str] = "{:g}".format) -> list[str]:
    start, room = left, WIDTH - left - RIGHT - 10
    unit = x(1.0) - x(0.0)
    low = (start - x(0.0)) / unit
    ticks = _ticks(low, low + room / unit, max(2, int(room / 52)))
    marks = [f'<path d="M{x(tick):.1f} {y}v4" stroke="currentColor" stroke-opacity="0.6"/>' + text_at(x(tick), y + 15, shown(tick), "middle") for tick in ticks]
    return [line(left, y, WIDTH - RIGHT, y, "", 0.6), *marks, text_at(left + room / 2, y + 29, label, "middle")]


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers in a range, `about` so many or up to twice as many."""
    rough = ((high - low) or 1.0) / about
    power = 10.0 ** np.floor(np.log10(rough))
    step = max(unit * power for unit in (1, 2, 2.5, 5) if unit * power <= rough * 1.0001)
    return [round(number * step, 10) + 0.0 for number in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _every(count: int, pixels: float, wanted: int) -> int:
    return next((step for step in (1, 2, 5, 10, 20, 50) if step * pixels >= wanted), count)


def _rows(names: Sequence[str]) -> list[list[int]]:
    """Which names stand in one line of a key: as many as have room."""
    rows: list[list[int]] = []
    room = 0.0
    for number, name in enumerate(names):
        needed = 22 + 6.6 * len(name)
        if not rows or needed > room:
            rows.append([])
            room = float(WIDTH - 6)
        rows[-1].append(number)
        room -= needed
    return rows


def _key(entries: Sequence[tuple[str, str]], y: float) -> list[str]:
    parts = []
    for place, row in enumerate(_rows([name for name, _ in entries])):
        x = 6.0
        for number in row:
            name, colour = entries[number]
            parts.append(f'<rect x="{x:.1f}" y="{y - 8 + 17 * place}" width="10" height="10" fill="{colour}"/>')
            parts.append(text_at(x + 14, y + 1 + 17 * place, name))
            x += 22 + 6.6 * len(name)
    return parts


def text_at(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place: `anchor` is their start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def line(x0: float, y0: float, x1: float, y1: float, dash: str, strength: float = 0.8) -> str:
    """A line in the colour of the page, as strong as `strength` says (0–1)."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="currentColor" stroke-opacity="{strength}"{dashed}/>'


def drawing(parts: Sequence[str], width: float, height: float, alt: str) -> str:
    """Parts as one picture that says what it shows, `alt`."""
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    style = 'font-family="system-ui, sans-serif" font-size="11" fill="currentColor" role="img"'
    return f'{start} {style} aria-label="{html.escape(alt, quote=True)}">{"".join(parts)}</svg>'
