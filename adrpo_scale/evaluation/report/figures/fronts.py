"""Fronts: where the settings of a sweep end, a metric against the divergence from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adrpo_scale.evaluation.report.cells import Cell, Column, number
from adrpo_scale.evaluation.report.comparison import by_seed, differing, scale
from adrpo_scale.evaluation.report.evaluated import ROW, Evaluated
from adrpo_scale.evaluation.report.figures.axes import (
    Tag,
    axis_label,
    error_bars,
    panels_of,
    place_tags,
)
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.chosen import DIVERGENCE, gains_against
from adrpo_scale.evaluation.report.figures.style import GREY, drawing, finished, look

NAME = "fronts"
TITLE = "Fronts of a sweep"


@dataclass(frozen=True)
class Setting:
    """One row of the table. values: the numbers in which its family's rows differ."""

    values: tuple[float, ...]
    tag: str
    runs: tuple[Evaluated, ...]


@dataclass(frozen=True)
class Family:
    """Rows that differ in numbers alone, by those numbers."""

    label: str
    settings: tuple[Setting, ...]


def families(runs: Sequence[Evaluated]) -> list[Family]:
    """By algorithm and by the settings that are no numbers."""
    groups = by_seed([run for run in runs if run.rows and run.is_trained])
    found: dict[str, list[Setting]] = {}
    for group, settings in zip(groups, differing(groups), strict=True):
        numbers = {path: v for path, v in settings.items() if type(v) in (int, float)}
        words = {path: v for path, v in settings.items() if path not in numbers}
        own = group[0].settings
        name = str(own.get(ROW, own.get("algorithm.name")))
        found.setdefault(name + _text(words), []).append(
            Setting(tuple(numbers.values()), _tag(numbers), tuple(group))
        )
    return [Family(name, tuple(sorted(each, key=_order))) for name, each in found.items()]


def _order(setting: Setting) -> tuple[int, tuple[float, ...]]:
    return len(setting.values), setting.values


def _text(settings: Mapping[str, Any]) -> str:
    return "".join(f", {path.rpartition('.')[2]} = {value}" for path, value in settings.items())


def _tag(numbers: Mapping[str, float]) -> str:
    return _text(numbers).removeprefix(", ")


def fronts(runs: Sequence[Evaluated]) -> Figure | LeftOut:
    """One line a family, one point a row of the table."""
    every = families(runs)
    pairs = gains_against([run for run in runs if run.is_trained], DIVERGENCE)
    drawn = [p for p in pairs if any(len(_ends(family, p)) > 1 for family in every)]
    if not drawn:
        return LeftOut(
            NAME,
            "no two rows differ in a number alone and have a reward and "
            f"{' or '.join(DIVERGENCE)} after training",
        )
    with drawing():
        picture, panels = panels_of(len(drawn))
        tags = []
        for panel, pair in zip(panels, drawn, strict=True):
            tags.append((panel, [*_draw(panel, every, pair), *_base(panel, runs, pair)]))
            panel.set_xlabel(axis_label(pair[0], 40))
            panel.set_ylabel(f"{axis_label(pair[1], 40)} ({pair[1][0]})")
            panel.margins(0.14)
        place_tags(picture, tags)
        return finished(picture, NAME, TITLE, _CAPTION)


_CAPTION = (
    "Each point is a row of the table: the mean over training seeds of the last evaluations; bars: "
    "± one standard error over training seeds. A line joins the rows of a family, which differ in "
    "the named numbers alone. The cross is the model before training."
)


def _ends(family: Family, pair: tuple[Column, Column]) -> list[tuple[Setting, Cell, Cell]]:
    found = []
    for setting in family.settings:
        x, y = (_cell(setting.runs, column) for column in pair)
        if x is not None and y is not None:
            found.append((setting, x, y))
    return found


def _cell(runs: Sequence[Evaluated], column: Column, base: bool = False) -> Cell | None:
    own = {run.seed_text: run for run in reversed(runs)}.values()
    numbers = [n for run in own if (n := number(run, column, base=base)) is not None]
    return Cell(tuple(numbers), not base) if numbers else None


def _draw(panel: Any, every: Sequence[Family], pair: tuple[Column, Column]) -> list[Tag]:
    tags = []
    factors = [scale(column) for column in pair]
    for place, family in enumerate(every):
        ends, style = _ends(family, pair), look(place)
        places = [(factors[0] * x.mean, factors[1] * y.mean) for _, x, y in ends]
        if not ends:
            continue
        line = {"color": style.colour, "linestyle": style.dash, "marker": style.marker}
        panel.plot(*zip(*places, strict=True), **line, zorder=3)
        for (setting, x, y), at in zip(ends, places, strict=True):
            errors = [f * (c.seed_error or 0.0) for f, c in zip(factors, (x, y), strict=True)]
            bars = {"ecolor": style.colour, "elinewidth": 0.7, "capsize": 1.5, "fmt": "none"}
            panel.errorbar(*at, xerr=errors[0], yerr=errors[1], **bars, zorder=2)
            lines = [places, *error_bars(at, *errors)]
            text = ", ".join(part for part in (family.label, setting.tag) if part)
            is_named = setting is ends[-1][0] or len(ends) == 1
            tags.append(Tag(at, text if is_named else setting.tag, style.colour, lines))
    return tags


def _base(panel: Any, runs: Sequence[Evaluated], pair: tuple[Column, Column]) -> list[Tag]:
    own = [run for run in runs if not run.is_benchmark]
    x, y = (_cell(own, column, base=True) for column in pair)
    if x is None or y is None:
        return []
    at = scale(pair[0]) * x.mean, scale(pair[1]) * y.mean
    panel.plot(*at, marker="x", color=GREY, markersize=5, linestyle="none", zorder=2)
    return [Tag(at, "base", GREY)]
