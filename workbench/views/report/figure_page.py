"""How does one figure stand alone? As a small page with its caption and what made it; a map tells its heads on hovering and by the arrow keys."""

import html
import json
from base64 import b64encode
from importlib.resources import files

from workbench.views.canvas import script
from workbench.views.inline import inline
from workbench.views.report.parts import Picture, Report, Section


def figure_page(picture: Picture, section: Section, report: Report) -> str:
    """The page of one picture of a section of a report, self-contained."""
    style = files("workbench").joinpath("data/figure.css").read_text(encoding="utf-8")
    drawn = f"<figure>{picture.svg}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    if picture.canvas is not None:
        style += script("head_map")[1]
        drawn = f'<div id="map"></div><p>{html.escape(picture.caption)}</p>{_drawn(picture.canvas())}'
    made = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(words)}</dd>" for name, words in report.made_from(section).items())
    title = html.escape(f"{report.title}: {picture.name}")
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n<style>\n{style}</style>'
    words = html.escape(report.words[0]) if report.words else ""
    body = f"<h1>{title}</h1>\n<p>{words}</p>\n{drawn}\n<dl>{made}</dl>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _drawn(message: bytes) -> str:
    """The script that draws a message of `views.canvas` into the element `map`."""
    packed = json.dumps(b64encode(message).decode())
    data = f"Uint8Array.from(atob({packed}), (letter) => letter.charCodeAt(0))"
    call = f"draw({{ data: {data}, parentElement: document.getElementById('map'), setTriggerValue() {{}} }});"
    return f'<script type="module">\n{inline("head_map")}\n{call}\n</script>'
