"""How is a run shown to others? The command that writes its report, as a page and as text, or as a folder to share."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import show
from workbench.cli.app import Json, app
from workbench.errors import InputError


@app.command()
def report(
    source: Annotated[
        str, typer.Argument(metavar="RUN", help="A folder of results, one file of them (labels, scores, a circuit), or the name of a run or job.")
    ],
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page, .html; the text goes beside it as .md. report.html by default.")] = None,
    share: Annotated[
        Path | None, typer.Option("--share", help="Write a folder instead, new or empty, that opens in any browser: page, figures, tables, labels.")
    ] = None,
    most: Annotated[float, typer.Option("--most", help="Megabytes that the shared folder may have; what has no room is left out, and said.")] = 10.0,
    runs: Annotated[Path, typer.Option(envvar="WORKBENCH_RUNS", help="The folder in which a run is looked for by its name.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Write a report of results: figures, tables, provenance, and the caveats that the data call for; no network or server is needed to read it.

    Each result of a folder is known by what is in it. A section appears only where its file is there and can be read; the last one says why not.

    Example: `workbench report reports/smollm2-135m --out report.html`
    """
    from workbench.files import write_text
    from workbench.results import LEVELS, collect
    from workbench.views import report as reports

    _check(out, share, most)
    found = collect(source, runs)
    made = reports.report_of(found)
    if share is not None:
        shared = reports.share(made, found, share, round(most * 10**6), show.remark)
        written = {"page": str(shared.folder / "index.html"), "bytes": shared.size, "files": len(shared.files), "left_out": list(shared.left_out)}
        lines = [f"report    {written['page']}", f"folder    {len(shared.files)} files, {shared.size / 10**6:.1f} of {most:g} MB"]
        lines += [f"left out  {words}" for words in shared.left_out]
    else:
        page = out or Path("report.html")
        paths = [write_text(page, reports.report_page(made)), write_text(page.with_suffix(".md"), reports.markdown(made))]
        written = {"page": str(paths[0]), "text": str(paths[1])}
        lines = [f"report    {', '.join(map(str, paths))}"]
    caveats = [{"level": caveat.level, "about": caveat.about, "text": caveat.text} for caveat in made.caveats]
    if as_json:
        return show.as_json({"run": found.title, **written, "caveats": caveats})
    counts = {words: sum(caveat["level"] == level for caveat in caveats) for level, words in LEVELS.items()}
    for result in found.of("unread"):
        show.remark(f"not shown: {result.name}: {result.problem}", style="yellow")
    return show.result(*lines, f"caveats   {', '.join(f'{words.lower()} {count}' for words, count in counts.items())}")


def _check(out: Path | None, share: Path | None, most: float) -> None:
    """Raises `InputError` for options that contradict each other."""
    if out is not None and share is not None:
        raise InputError("--share writes a folder with a page of its own; give it or --out, not both")
    if out is not None and out.suffix != ".html":
        raise InputError(f"--out is a page, {out.with_suffix('.html')} say; the text goes beside it as .md")
    if share is None and most != 10.0:
        raise InputError("--most is for --share")
    if most <= 0:
        raise InputError(f"--most is a number of megabytes above 0, got {most:g}")
