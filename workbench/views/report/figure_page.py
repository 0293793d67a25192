"""How does one figure stand alone? As a small page with its caption and what made it; a map tells its heads on hovering and by the arrow keys."""

import gzip
import html
import json
from base64 import b64encode
from importlib.resources import files

from workbench.views.canvas import script
from workbench.views.inline import inline
from workbench.views.report.parts import Picture, Report, Section

OLD_BROWSER = "This map needs scripts, and a browser of 2023 or later; the same drawing lies beside it as SVG."
"""What stands in place of a map that is not drawn."""


def figure_page(picture: Picture, section: Section, report: Report) -> str:
    """The page of one picture of a section of a report, self-contained."""
    style = files("workbench").joinpath("data/figure.css").read_text(encoding="utf-8")
    drawn = f"<figure>{picture.svg}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    if picture.canvas is not None:
        style += script("head_map")[1]
        drawn = f'<div id="map">{OLD_BROWSER}</div><p>{html.escape(picture.caption)}</p>{_drawn(picture.canvas())}'
    made = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(words)}</dd>" for name, words in report.made_from(section).items())
    title = html.escape(f"{report.title}: {picture.name}")
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n<style>\n{style}</style>'
    words = html.escape(report.words[0]) if report.words else ""
    body = f"<h1>{title}</h1>\n<p>{words}</p>\n{drawn}\n<dl>{made}</dl>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _drawn(message: bytes) -> str:
    """The script that unpacks a message of `views.canvas` and draws it into the element `map`."""
    packed = json.dumps(b64encode(gzip.compress(message, 9, mtime=0)).decode())
    stream = f"new Blob([Uint8Array.from(atob({packed}), (letter) => letter.charCodeAt(0))]).stream().pipeThrough(new DecompressionStream('gzip'))"
    calls = [
        f"const data = new Uint8Array(await new Response({stream}).arrayBuffer());",
        "const parentElement = document.getElementById('map');",
        "parentElement.replaceChildren();",
        "draw({ data, parentElement, setTriggerValue() {} });",
    ]
    return f'<script type="module">\n{inline("head_map")}\n' + "\n".join(calls) + "\n</script>"
