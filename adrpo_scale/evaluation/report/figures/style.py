"""How figures look, and how they become files without a clock, a version or a random name.

Colours are those of Okabe and Ito, which people with any colour vision tell apart, in an order in
which neighbours differ in lightness too; each has a dash and a marker of its own for grey print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from adrpo_scale.core.printable import one_line
from adrpo_scale.evaluation.report.figures.base import Figure

DPI = 200
WIDTH = 6.75  # inches: both columns of a paper
LABEL = 44  # characters of a label
GREY, INK, FAINT = "#777777", "#222222", "#dddddd"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "text.parse_math": False,  # a name with two dollars is no formula
    "svg.fonttype": "path",  # the same in every browser and in LaTeX
    "path.simplify": False,
    "image.composite_image": False,  # pictures keep their own pixels
}


@dataclass(frozen=True)
class Look:
    """How the lines of a row are drawn."""

    colour: str
    dash: Any
    marker: str


def look(place: int) -> Look:
    """Of the row with this place among those drawn."""
    count = len(_COLOURS)
    dash = _DASHES[(place + place // count) % len(_DASHES)]
    return Look(_COLOURS[place % count], dash, _MARKERS[(place + place // count) % len(_MARKERS)])


def darker(colour: str, share: float = 0.25) -> tuple[float, float, float]:
    """A colour for text, with so much black in it."""
    red, green, blue = to_rgb(colour)
    return red * (1 - share), green * (1 - share), blue * (1 - share)


def label(text: str, most: int = LABEL) -> str:
    """A name as one line of at most so many characters. A leading underscore would hide it."""
    text = one_line(text)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"\u200b{text}" if text.startswith("_") else text


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, what the user's own matplotlibrc says does not count. A character that the font lacks
    is a box, without a warning each."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def canvas(width: float, height: float) -> Canvas:
    """An empty picture, in inches, whose parts make room for each other."""
    space = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, wspace=0.04, hspace=0.06)
    found = Canvas(figsize=(width, height), layout=space, facecolor="white")
    FigureCanvasAgg(found)  # measures texts
    return found


def bare(width: float, height: float) -> Canvas:
    """An empty picture, in inches, without a layout of its own."""
    found = Canvas(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(found)
    return found


def finished(picture: Canvas, name: str, title: str, caption: str) -> Figure:
    """The figure of a picture. Inside `drawing`."""
    salt: Any = {"svg.hashsalt": f"adrpo_scale {name}"}
    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(salt):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        picture.savefig(svg, format="svg", metadata={**nothing, "Title": one_line(title)})
    picture.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Figure(
        name, one_line(title), one_line(caption), _inline(svg.getvalue().decode()), png.getvalue()
    )


def _inline(svg: str) -> str:
    """The picture as one element, which a page may hold as it is: no prolog, no RDF."""
    svg = re.sub(
        r"\n? *<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], count=1, flags=re.S
    )
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
