"""One self-contained HTML page of a report: it opens from the disk and asks for nothing.

Its policy (`Content-Security-Policy`) lets no request out: pictures are inside, style and script
are the two that its hashes name. Prompts, names and texts are others': the template escapes them,
control characters are shown as such, and figures are drawn as pictures, in which nothing runs. The
same runs give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adrpo_scale.core.printable import printable
from adrpo_scale.evaluation.report import gallery
from adrpo_scale.evaluation.report.commands import report_command
from adrpo_scale.evaluation.report.comparison import columns, table_lines
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.page_tables import main_table, origins, settings_of
from adrpo_scale.evaluation.report.text import HEADER, LEGEND, errors, notes
from adrpo_scale.evaluation.report.thumbnails import FULL, Store

MEGABYTES = 32  # of full pictures
_PARTS = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Shown:
    """A figure of the page. is_drawing: lines and text alone, which a dark page may invert."""

    title: str
    caption: str
    uri: Markup
    is_drawing: bool


def report_page(
    runs: Sequence[Evaluated],
    words: Sequence[str] = (),
    figures: Sequence[Figure] = (),
    left_out: Sequence[LeftOut] = (),
    told: str = "",
    megabytes: int = MEGABYTES,
) -> bytes:
    """The page. words: of the command, as they were given. left_out: figures that are missing.
    told: lines about the runs' sweep. megabytes: room for full pictures."""
    lines, store = table_lines(runs), Store(megabytes * 1_000_000)
    shown = columns([run for run in runs if run.rows])
    models = gallery.models_with_samples(lines)
    context = {
        "table": main_table(runs, lines),
        "header": HEADER,
        "errors": errors(lines, shown)[1:],
        "legend": [text.replace("*", "") for text in LEGEND],
        "figures": [_figure(figure) for figure in figures],
        "left_out": left_out,
        "pictures": gallery.pictures(models, store),
        "completions": gallery.completions(models),
        "sheets": gallery.sheets(lines, store),
        "store": store,
        "settings": settings_of(lines),
        "notes": notes(lines, shown),
        "origins": origins(lines),
        "told": [line for line in told.split("\n") if line],
        "run_count": len({run.folder for run in runs}),
        "command": f"{report_command(words)} --html report.html",
        "limits": gallery,
        "full_side": FULL,
    }
    return _rendered(context).encode("utf-8", "backslashreplace")


def _figure(figure: Figure) -> Shown:
    """As a data URI of an image, so that neither scripts nor links in it do anything."""
    content = base64.b64encode(figure.svg.encode()).decode("ascii")
    uri = Markup(f"data:image/svg+xml;base64,{content}")
    return Shown(figure.title, figure.caption, uri, "<image" not in figure.svg)


def _rendered(context: Mapping[str, Any]) -> str:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_PARTS),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_plain,
    )
    style, script = (_part(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template("page.html.jinja")
    return page.render(context, style=style, script=script, policy=policy)


def _plain(value: Any) -> Any:
    """Text of others with its control characters shown; ours as it is."""
    return printable(value) if type(value) is str else value


def _part(name: str) -> Markup:
    return Markup((_PARTS / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
