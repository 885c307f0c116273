"""The rows of a table of several runs: one for runs that differ only in their seed.

A row is labelled by its algorithm, the number of its runs, and the settings that differ between
rows. The models that the runs began from come first; nobody trained them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adrpo_scale.evaluation.report.cells import Cell, Column, Number, difference, number
from adrpo_scale.evaluation.report.evaluated import ROW, TASKS, Evaluated, Settings
from adrpo_scale.run.tables import COLUMNS

_SECTION = re.compile(r"(algorithm|domain|engine|rewards\.\d+)\.")  # of a component
_ABSENT = object()
_MOST_DIGITS = 6
BENCHMARK = tuple(
    (f"mmau:{task}", metric) for metric in ("strict", "benchmark") for task in (*TASKS, "total")
)
# Of these more is not better.
_UNRANKED = ("w2_sum", "kl", "entropy", "completion_tokens", "truncated", "unheard")


@dataclass(frozen=True)
class Line:
    """A row of a table. runs: one a seed. repeated: runs of a seed that another of them has. cells:
    by column, where the metric was measured."""

    label: str
    runs: tuple[Evaluated, ...]
    cells: Mapping[Column, Cell]
    is_trained: bool
    repeated: tuple[Evaluated, ...] = ()


def table_lines(runs: Sequence[Evaluated]) -> list[Line]:
    """The rows: base models, then runs by algorithm, in the given order."""
    runs = [run for run in runs if run.rows]
    shown = columns(runs)
    groups = by_seed(runs)
    lines = _bases(runs, shown)
    for label, group in zip(labels(groups), groups, strict=True):
        kept = list({run.seed_text: run for run in reversed(group)}.values())[::-1]
        repeated = tuple(run for run in group if not any(run is other for other in kept))
        label = label if len(kept) == len(group) else _relabelled(label, len(group), len(kept))
        is_trained = all(run.is_trained for run in kept)
        cells = _cells([{c: number(run, c) for c in shown} for run in kept], is_trained)
        lines.append(Line(label, tuple(kept), cells, is_trained, repeated))
    return lines


def _relabelled(label: str, given: int, kept: int) -> str:
    return label.replace(f" ×{given}", f" ×{kept}", 1)


def _bases(runs: Sequence[Evaluated], shown: Sequence[Column]) -> list[Line]:
    """The models that runs began from, each measured at iteration 0 of its runs."""
    own = list({run.folder: run for run in runs if not run.is_benchmark}.values())
    begun = [(run.settings.get("domain.model"), run.settings.get("init_from")) for run in own]
    found = []
    for model, origin in dict.fromkeys(begun):
        same = [run for run, of in zip(own, begun, strict=True) if of == (model, origin)]
        name = "base" if origin is None else f"start {origin}"
        label = name if len(set(begun)) == 1 else f"{name} {model}" if origin is None else name
        numbers = [{c: number(run, c, base=True) for c in shown} for run in same]
        found.append(Line(label, tuple(same), _cells(numbers, False), False))
    return [line for line in found if line.cells]


def _cells(
    numbers: Sequence[Mapping[Column, Number | None]], is_trained: bool
) -> dict[Column, Cell]:
    found: dict[Column, Cell] = {}
    for column in numbers[0]:
        measured = tuple(n for each in numbers if (n := each[column]) is not None)
        if measured:
            found[column] = Cell(measured, is_trained)
    return found


def columns(runs: Sequence[Evaluated]) -> list[Column]:
    """(split, metric) of the columns: the usual ones that were measured, then rewards that judge
    alone, then those of evaluations, in the order of their files."""
    known = {(row["split"], row["metric"]): None for run in runs for row in run.rows}
    rows = [row for run in runs if ROW in run.settings for row in run.rows]
    asked = dict.fromkeys((row["split"], row["metric"]) for row in rows)
    judges = {name for run in runs for name in _judges(run.settings)}
    more = [c for c in known if c[1].removesuffix("_sampled") in judges and c not in COLUMNS]
    more = [c for c in more if c not in asked]
    found = [c for c in (*COLUMNS, *sorted(more), *BENCHMARK) if c in known]
    return [*found, *(c for c in asked if c not in found)]


def _judges(settings: Settings) -> list[str]:
    """Labels of the rewards with `use = "evaluation"`."""
    found = []
    for path, value in settings.items():
        section = path.removesuffix(".use")
        if path.startswith("rewards.") and path.endswith(".use") and value == "evaluation":
            kind = str(settings.get(f"{section}.kind")).rpartition(":")[2]
            found.append(settings.get(f"{section}.name") or kind)
    return found


def is_ranked(column: Column) -> bool:
    """Whether more of the metric is better, so that a best row can be marked."""
    return column[1] not in _UNRANKED


def marks(lines: Sequence[Line], column: Column) -> dict[int, str]:
    """Place of a row → "best" or "second". The best is marked where every paired interval of its
    difference to the second excludes 0; the second likewise to the third, where a best is marked.
    """
    if not is_ranked(column):
        return {}
    order = ranking(lines, column)
    found: dict[int, str] = {}
    for place, name in enumerate(("best", "second")):
        if len(order) < place + 2:
            break
        one, other = (lines[k].cells[column] for k in order[place : place + 2])
        if not difference(one, other).is_clear:
            break
        found[order[place]] = name
    return found


def ranking(lines: Sequence[Line], column: Column) -> list[int]:
    """Places of the rows that have the metric, the highest mean first."""
    places = [k for k, line in enumerate(lines) if column in line.cells]
    return sorted(places, key=lambda k: -lines[k].cells[column].mean)


def comparison(runs: Sequence[Evaluated]) -> list[list[str]]:
    """The lines of a table: a header, the base model, then the mean of a row's runs ± its standard
    error over training seeds; **best** and *second best* as `marks` says."""
    lines = table_lines(runs)
    shown = columns([run for run in runs if run.rows])
    table = [["", *(f"{metric} ({split})" for split, metric in shown)]]
    stars = {"best": "**", "second": "*"}
    for line, cells in zip(lines, marked_cells(lines, shown), strict=True):
        texts = [f"{stars.get(mark, '')}{text}{stars.get(mark, '')}" for text, mark in cells]
        table.append([line.label, *texts])
    return table


def marked_cells(lines: Sequence[Line], shown: Sequence[Column]) -> list[list[tuple[str, str]]]:
    """Of each row the texts of its cells, each with its mark: "best", "second" or "" for none."""
    marked = {column: marks(lines, column) for column in shown}
    finest = {column: _finest(lines, column) for column in shown}
    return [
        [
            (_text_of(line.cells.get(c), scale(c), finest[c]), marked[c].get(place, ""))
            for c in shown
        ]
        for place, line in enumerate(lines)
    ]


def _finest(lines: Sequence[Line], column: Column) -> int:
    """The most digits that a row with an error has: a row without one is read beside it."""
    factor, cells = scale(column), [line.cells.get(column) for line in lines]
    found = [
        digits(factor * cell.mean, factor * error)
        for cell in cells
        if cell is not None and (error := cell.seed_error) is not None
    ]
    return max(found, default=0)


def _text_of(cell: Cell | None, factor: float, finest: int) -> str:
    if cell is None:
        return "–"
    value, error = factor * cell.mean, cell.seed_error
    if error is None:
        return f"{value:.{max(digits(value), finest)}f}"
    count = digits(value, factor * error)
    return f"{value:.{count}f} ± {factor * error:.{count}f}"  # two digits of the error


def scale(column: Column) -> float:
    """The factor of the unit that is shown: percent for a benchmark."""
    return 100.0 if column in BENCHMARK else 1.0


def digits(value: float, error: float | None = None) -> int:
    """Digits after the point: one from 10 on, two below, more where value or error need them."""
    usual = 1 if abs(value) >= 10 else 2
    leading = [size for size in (abs(value), error) if size]
    needed = [1 - math.floor(math.log10(size)) for size in leading if size < 0.1]
    return min(max([usual, *needed]), _MOST_DIGITS)


def by_seed(runs: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Groups of runs that differ only in their seed: those of evaluations in the given order, then
    runs by algorithm and in the given order."""
    groups: dict[str, list[Evaluated]] = {}
    for run in runs:
        others = {path: value for path, value in run.settings.items() if path != "seed"}
        groups.setdefault(json.dumps([others, run.which], sort_keys=True), []).append(run)
    return sorted(groups.values(), key=lambda group: _place(group[0].settings))


def _place(settings: Settings) -> tuple[bool, str]:
    is_run = ROW not in settings
    return is_run, str(settings.get("algorithm.name")) if is_run else ""


def labels(groups: Sequence[Sequence[Evaluated]]) -> list[str]:
    """One label per group: its algorithm, or its name in an evaluation's file; its size; and
    `key = value` of each setting that differs in another group.

    A component's own settings are compared only between groups with that component, and those of an
    evaluation between groups of one name. A key is shortened to its last part where no other key of
    the labels has the same one.
    """
    lines, found = [group[0].settings for group in groups], differing(groups)
    ends = {path: path.rpartition(".")[2] for settings in found for path in settings}
    uses = Counter(ends.values())
    short = {path: end if uses[end] == 1 else path for path, end in ends.items()}
    return [
        f"{line.get(ROW, line.get('algorithm.name'))}{_count(group)}{_at(group[0].which)}"
        + "".join(f", {short[path]} = {_text(value)}" for path, value in settings.items())
        for group, line, settings in zip(groups, lines, found, strict=True)
    ]


def differing(groups: Sequence[Sequence[Evaluated]]) -> list[dict[str, Any]]:
    """Of each group the settings that its label names, by their whole paths."""
    lines = [group[0].settings for group in groups]
    return [{path: line[path] for path in line if _differs(path, line, lines)} for line in lines]


def _count(group: Sequence[Evaluated]) -> str:
    """How many runs a row has; a model that nobody trained here is none."""
    is_published = ROW in group[0].settings and not group[0].is_trained
    return "" if is_published else f" ×{len(group)}"


def _at(which: int | str | None) -> str:
    return "" if which is None else f" @{which}"


def _differs(path: str, line: Settings, lines: Sequence[Settings]) -> bool:
    if path in ("seed", ROW) or (path == "algorithm.name" and ROW not in line):
        return False
    tag = _tag(path)
    peers = [
        other
        for other in lines
        if ("run" in other) == ("run" in line)
        and other.get(ROW) == line.get(ROW)
        and (tag is None or other.get(tag) == line.get(tag))
    ]
    return any(other.get(path, _ABSENT) != line[path] for other in peers)


def _tag(path: str) -> str | None:
    """The path of the setting that names the component of `path`; None outside of components."""
    section = _SECTION.match(path)
    if section is None:
        return None
    tag = section[0] + ("kind" if section[0].startswith("rewards") else "name")
    return None if path == tag else tag


def _text(value: Any) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
