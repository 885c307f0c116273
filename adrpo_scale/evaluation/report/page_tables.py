"""The tables of the page, as values for its template: cells with what is behind them, the settings
that differ, and where each row comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from adrpo_scale.data.prompt_sets import set_hash
from adrpo_scale.evaluation.report.cells import Column, Number
from adrpo_scale.evaluation.report.commands import Command, commands
from adrpo_scale.evaluation.report.comparison import Line, columns, comparison, marks, scale
from adrpo_scale.evaluation.report.evaluated import Evaluated

Origin = tuple[str, Sequence[tuple[str, Sequence[Command]]]]  # label; path and commands of a run
_ABSENT = object()


@dataclass(frozen=True)
class Source:
    """One run behind a cell."""

    run: str
    folder: str
    seed: str
    iterations: str
    weights: str
    value: str
    prompts: str
    commands: Sequence[Command]


@dataclass(frozen=True)
class TableCell:
    """text: mean ± error, as in Markdown. mark: "best", "second" or "". order: by which a column is
    sorted."""

    text: str
    mark: str
    order: float
    title: str
    sources: Sequence[Source]


@dataclass(frozen=True)
class TableRow:
    label: str
    is_trained: bool
    cells: Sequence[TableCell | None]


@dataclass(frozen=True)
class Table:
    """splits: (name, number of columns) of neighbouring columns of one split."""

    head: Sequence[Column]
    splits: Sequence[tuple[str, int]]
    rows: Sequence[TableRow]


def main_table(runs: Sequence[Evaluated], lines: Sequence[Line]) -> Table:
    """The table of `report`, with the runs, iterations, weights and commands behind each cell."""
    shown = columns([run for run in runs if run.rows])
    texts = comparison(runs)[1:]
    marked = {column: marks(lines, column) for column in shown}
    rows = []
    for place, (line, text) in enumerate(zip(lines, texts, strict=True)):
        cells = [
            _cell(line, column, marked[column].get(place, ""), cell_text)
            for column, cell_text in zip(shown, text[1:], strict=True)
        ]
        rows.append(TableRow(line.label, line.is_trained, cells))
    return Table(shown, list(_neighbours(shown)), rows)


def _neighbours(shown: Sequence[Column]) -> Iterator[tuple[str, int]]:
    start = 0
    for place in range(1, len(shown) + 1):
        if place == len(shown) or shown[place][0] != shown[start][0]:
            yield shown[start][0], place - start
            start = place


def _cell(line: Line, column: Column, mark: str, text: str) -> TableCell | None:
    cell = line.cells.get(column)
    if cell is None:
        return None
    sources = [_source(number, scale(column)) for number in cell.numbers]
    title = f"{column[1]} ({column[0]}) of {line.label}"
    return TableCell(text.strip("*"), mark, scale(column) * cell.mean, title, sources)


def _source(number: Number, factor: float) -> Source:
    run = number.run
    iterations = ", ".join(map(str, number.iterations))
    keys = number.keys
    return Source(
        run.folder.name,
        run.path,
        "–" if run.seed is None else run.seed_text,
        iterations if len(number.iterations) == 1 else f"mean of {iterations}",
        run.weights,
        f"{factor * number.value:.6g}",
        "not recorded" if keys is None else f"{len(keys)}, set {set_hash(keys)}",
        commands(run),
    )


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """labels: of the rows that have settings. differing: (key, a value a row). whole: by row its
    (key, value)."""

    labels: Sequence[str]
    differing: Sequence[tuple[str, Sequence[str]]]
    whole: Sequence[Sequence[tuple[str, str]]]


def settings_of(lines: Sequence[Line]) -> Settings:
    """Of every row that somebody set up: those of its first run."""
    own = [line for line in lines if line.is_trained or line.runs[0].is_benchmark]
    each = [line.runs[0].settings for line in own]
    paths = list(dict.fromkeys(path for settings in each for path in settings))
    differing = [
        (path, [_text(settings.get(path, _ABSENT)) for settings in each])
        for path in paths
        if path != "seed" and _differ([settings.get(path, _ABSENT) for settings in each])
    ]
    whole = [[(path, _text(value)) for path, value in settings.items()] for settings in each]
    return Settings([line.label for line in own], differing, whole)


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] or type(value) is not type(values[0]) for value in values)


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- origins --------------------------------------------------------------------------------------


def origins(lines: Sequence[Line]) -> list[Origin]:
    """Of every row that somebody set up: its label and its runs, each with the commands behind its
    numbers. Two rows may have one label: a run's own evaluations, and those of an evaluation."""
    own = [line for line in lines if line.is_trained or line.runs[0].is_benchmark]
    return [(line.label, [(run.path, commands(run)) for run in line.runs]) for line in own]
