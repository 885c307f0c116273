"""Trajectories: what training gains against what it costs, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures.axes import (
    Tag,
    axis_label,
    error_bars,
    panels_of,
    place_tags,
)
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.chosen import DIVERGENCE, DIVERSITY, gains_against
from adrpo_scale.evaluation.report.figures.series import Point, Series, series_of
from adrpo_scale.evaluation.report.figures.style import drawing, finished, look

OF_DIVERSITY, OF_DIVERGENCE = "reward_diversity", "reward_divergence"
FAINTEST = 0.25  # opacity of the first evaluation
STAR = 11  # points


def reward_diversity(runs: Sequence[Evaluated]) -> Figure | LeftOut:
    """Rewards against the diversity of a prompt's samples."""
    return _trajectories(runs, OF_DIVERSITY, "Reward and diversity", DIVERSITY)


def reward_divergence(runs: Sequence[Evaluated]) -> Figure | LeftOut:
    """Rewards against the divergence from the base."""
    return _trajectories(runs, OF_DIVERGENCE, "Reward and divergence", DIVERGENCE)


def _trajectories(
    runs: Sequence[Evaluated], name: str, title: str, costs: Sequence[str]
) -> Figure | LeftOut:
    pairs = gains_against([run for run in runs if run.is_trained], costs)
    rows = series_of(runs, list({column for pair in pairs for column in pair}))
    drawn = [pair for pair in pairs if any(len(_joined(row, pair)) > 1 for row in rows)]
    if not drawn:
        return LeftOut(
            name, f"no run has two evaluations of a reward and of {' or '.join(costs)} beside it"
        )
    rows = [row for row in rows if any(_joined(row, pair) for pair in drawn)]
    with drawing():
        picture, panels = panels_of(len(drawn))
        for panel, pair in zip(panels, drawn, strict=True):
            panel.set_xlabel(axis_label(pair[0], 40))
            panel.set_ylabel(f"{axis_label(pair[1], 40)} ({pair[1][0]})")
            panel.margins(0.12)
        tags = [
            [_path(panel, _joined(row, pair), row, place) for place, row in enumerate(rows)]
            for panel, pair in zip(panels, drawn, strict=True)
        ]
        place_tags(picture, [(p, [t for t in of if t]) for p, of in zip(panels, tags, strict=True)])
        return finished(picture, name, title, _CAPTION)


_CAPTION = (
    "Each point is an evaluation, the mean over training seeds, from faint (before training) to "
    "full; the star is the last one, its bars ± one standard error over training seeds."
)


def _joined(row: Series, pair: tuple[Column, Column]) -> list[tuple[Point, Point]]:
    x, y = ({p.iteration: p for p in row.points[column]} for column in pair)
    return [(x[iteration], y[iteration]) for iteration in sorted({*x} & {*y})]


def _path(panel: Any, points: list[tuple[Point, Point]], row: Series, place: int) -> Tag | None:
    if not points:
        return None
    style, last = look(place), len(points) - 1
    colours = [
        to_rgba(style.colour, FAINTEST + (1 - FAINTEST) * k / max(1, last))
        for k in range(len(points))
    ]
    places = [(x.value, y.value) for x, y in points]
    steps = list(pairwise(places))
    panel.add_collection(
        LineCollection(steps, colors=colours[1:], linestyles=[style.dash], linewidths=1.2, zorder=2)
    )
    panel.scatter(
        *zip(*places, strict=True), s=14, c=colours, marker=style.marker, linewidths=0, zorder=3
    )
    (x, y), end = points[-1], places[-1]
    bars = {"xerr": x.error, "yerr": y.error, "ecolor": style.colour, "elinewidth": 0.8}
    panel.errorbar(*end, **bars, fmt="none", capsize=2, zorder=3)
    star = {"color": style.colour, "markeredgecolor": "white", "markeredgewidth": 0.6}
    panel.plot(*end, marker="*", markersize=STAR, linestyle="none", zorder=4, **star)
    return Tag(end, row.label, style.colour, [places, *error_bars(end, x.error, y.error)])
