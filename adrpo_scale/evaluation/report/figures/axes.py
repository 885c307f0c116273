"""Names of metrics on axes, with their units, and legends and labels that cover nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.comparison import scale
from adrpo_scale.evaluation.report.figures.style import WIDTH, canvas, darker, label

_UNITS = {
    "w2_sum": "Σ (v − v_base)², latent units",
    "kl": "KL to the base, nats per token",
    "entropy": "nats per token",
    "clip_diversity_l2": "mean L2 distance of CLIP embeddings",
    "clip_diversity_cosine": "mean cosine distance of CLIP embeddings",
    "pixel_diversity": "mean L2 distance of pixels",
    "completion_tokens": "tokens",
}
_ACROSS = 26  # characters of a line of a label


def axis_label(column: Column, across: int = _ACROSS) -> str:
    """What is measured, in which unit, in lines of so many characters."""
    name = column[1]
    unit = _UNITS.get(name)
    if unit is None:
        unit = f"{name}, %" if scale(column) != 1 else name
    return "\n".join(textwrap.wrap(label(unit), across))


def title_of(column: Column) -> str:
    """The metric and its prompts, as in the table."""
    return "\n".join(textwrap.wrap(label(f"{column[1]} ({column[0]})"), _ACROSS))


def panels_of(count: int) -> tuple[Canvas, list[Any]]:
    """A picture with so many panels, two side by side."""
    across = min(2, count)
    down = -(-count // across)
    picture = canvas(WIDTH if across > 1 else 0.62 * WIDTH, 2.6 * down)
    panels = list(picture.subplots(down, across, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    return picture, panels[:count]


@dataclass(frozen=True)
class Tag:
    """The name of a point, beside it. lines: what it must not cover, each from point to point, in
    the units of the axes."""

    at: tuple[float, float]
    text: str
    colour: str
    lines: Sequence[Sequence[tuple[float, float]]] = ()


def error_bars(
    at: tuple[float, float], x: float | None, y: float | None
) -> list[list[tuple[float, float]]]:
    """The lines of a point's errors."""
    a, b = x or 0.0, y or 0.0
    return [[(at[0] - a, at[1]), (at[0] + a, at[1])], [(at[0], at[1] - b), (at[0], at[1] + b)]]


_AROUND = [  # points of 1/72 inch, and the side of the text that is near
    *((9, 0, "left", "center"), (-9, 0, "right", "center")),
    *((0, 9, "center", "bottom"), (0, -9, "center", "top")),
    *((7, 7, "left", "bottom"), (-7, 7, "right", "bottom")),
    *((7, -7, "left", "top"), (-7, -7, "right", "top")),
    *((0, 19, "center", "bottom"), (0, -19, "center", "top")),
    *((16, 14, "left", "bottom"), (16, -14, "left", "top")),
    *((-16, 14, "right", "bottom"), (-16, -14, "right", "top")),
    *((22, 0, "left", "center"), (-22, 0, "right", "center")),
    *((14, 26, "left", "bottom"), (14, -26, "left", "top")),
    *((-14, 26, "right", "bottom"), (-14, -26, "right", "top")),
]


def place_tags(picture: Canvas, tags: Sequence[tuple[Any, Sequence[Tag]]]) -> None:
    """Writes the tags of each panel where they cover least: of other tags, of points, and of what
    lies outside the panel. The rest of the picture must be drawn."""
    picture.draw_without_rendering()
    for panel, own in tags:
        frame: Any = panel.get_window_extent()
        taken: list[Any] = []
        corners = [p for tag in own for line in tag.lines for p in _dots(panel, line, 1e9)] * 12
        points = corners + [
            p for tag in own for line in (*tag.lines, [tag.at]) for p in _dots(panel, line)
        ]
        for tag in own:
            choices: list[Any] = []
            for x, y, h, v in _AROUND:
                text = panel.annotate(
                    label(tag.text),
                    tag.at,
                    (x, y),
                    textcoords="offset points",
                    ha=h,
                    va=v,
                    color=darker(tag.colour),
                    fontsize=7.5,
                    zorder=6,
                    path_effects=[withStroke(linewidth=1.8, foreground="white")],
                )
                text.set_in_layout(False)
                box = text.get_window_extent(picture.canvas.get_renderer())  # type: ignore[attr-defined]
                choices.append((_covered(box, taken, points, frame), len(choices), text, box))
            *_, best, box = min(choices, key=lambda choice: choice[:2])
            for *_, text, _ in choices:
                if text is not best:
                    text.remove()
            taken.append(box)


def _dots(panel: Any, line: Sequence[tuple[float, float]], step: float = 5) -> list[Any]:
    """Points of a line on the picture, at most some pixels from each other."""
    ends = panel.transData.transform(line)
    parts = [ends[:1]]
    for a, b in pairwise(ends):
        count = max(1, int(np.abs(b - a).max() / step))
        parts.append(a + (b - a) * np.arange(1, count + 1)[:, None] / count)
    return list(np.concatenate(parts))


def _covered(box: Any, taken: Sequence[Any], points: Sequence[Any], frame: Any) -> float:
    """A cost: characters' areas that overlap, points under the text, and pixels outside."""
    cost = 0.0
    for other in taken:
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        cost += 10 + wide * high if wide > 0 and high > 0 else 0
    for x, y in points:
        cost += 3.0 if box.x0 - 2 < x < box.x1 + 2 and box.y0 - 2 < y < box.y1 + 2 else 0
    outside = max(0.0, frame.x0 - box.x0) + max(0.0, box.x1 - frame.x1)
    outside += max(0.0, frame.y0 - box.y0) + max(0.0, box.y1 - frame.y1)
    return cost + 100 * outside


def legend_above(picture: Canvas, panels: Iterable[Any]) -> None:
    """One legend of the rows that the panels show, above them and never over them."""
    lines = {
        name: line
        for panel in panels
        for line, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = [label(name) for name in lines]
    longest = max(map(len, names), default=0)
    columns = max(1, min(len(names), int(picture.get_figwidth() / (0.5 + 0.062 * longest))))
    picture.legend(list(lines.values()), names, loc="outside upper left", ncols=columns)
