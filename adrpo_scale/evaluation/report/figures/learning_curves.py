"""Learning curves: each metric of the table over iterations, a band over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures.axes import axis_label, legend_above, title_of
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.series import Series, series_of
from adrpo_scale.evaluation.report.figures.style import WIDTH, canvas, drawing, finished, look

NAME = "learning_curves"
TITLE = "Learning curves"
ACROSS = 3  # panels side by side
BAND = 0.18  # opacity


def learning_curves(runs: Sequence[Evaluated]) -> Figure | LeftOut:
    """One panel a metric and split, one line a row."""
    rows = series_of(runs)
    shown = [c for c in _columns(rows) if any(len(row.points[c]) > 1 for row in rows)]
    if not shown:
        return LeftOut(NAME, "no run has two evaluations (evaluation.every)")
    rows = [row for row in rows if any(len(row.points[c]) > 1 for c in shown)]
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    with drawing():
        picture = canvas(WIDTH if across > 1 else 0.6 * WIDTH, 0.45 + 1.75 * down)
        panels = picture.subplots(down, across, squeeze=False, sharex=False)
        for panel in panels.flat[len(shown) :]:
            panel.remove()
        for panel, column in zip(panels.flat, shown, strict=False):
            for place, row in enumerate(rows):
                _line(panel, row, column, place)
            panel.set_title(title_of(column))
            panel.set_xlabel("iteration")
            panel.set_ylabel(axis_label(column))
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            panel.margins(x=0.02)
        legend_above(picture, panels.flat[: len(shown)])
        return finished(picture, NAME, TITLE, _caption(rows))


def _columns(rows: Sequence[Series]) -> list[Column]:
    return list(dict.fromkeys(column for row in rows for column in row.points))


def _line(panel: Any, row: Series, column: Column, place: int) -> None:
    points, drawn = row.points[column], look(place)
    if not points:
        return
    x, y = [p.iteration for p in points], [p.value for p in points]
    style = {"color": drawn.colour, "linestyle": drawn.dash, "marker": drawn.marker}
    panel.plot(x, y, label=row.label, zorder=3, markevery=max(1, len(x) // 8), **style)
    if any(p.error is not None for p in points):
        errors = [p.error or 0.0 for p in points]
        low = [v - e for v, e in zip(y, errors, strict=True)]
        high = [v + e for v, e in zip(y, errors, strict=True)]
        panel.fill_between(x, low, high, color=drawn.colour, alpha=BAND, linewidth=0, zorder=2)
        for edge in (low, high):  # bands that lie over each other
            panel.plot(x, edge, color=drawn.colour, linestyle=drawn.dash, linewidth=0.5, alpha=0.6)


def _caption(rows: Sequence[Series]) -> str:
    counts = {row.seeds for row in rows}
    seeds = f"{counts.pop()}" if len(counts) == 1 else "as many as × in its label"
    return (
        f"Every evaluation after an iteration that all seeds of a row have reached; 0 is before "
        f"training. Lines: mean over training seeds ({seeds}); bands: ± one standard error over "
        "them, none for a single seed."
    )
