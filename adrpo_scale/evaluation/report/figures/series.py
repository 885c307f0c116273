"""The rows of a table over iterations: for each metric a value a seed at every evaluation.

A row is what the table calls one: runs that differ in `seed` alone. Folders of an evaluation count
too, each at the iteration of the weights that it judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.comparison import by_seed, columns, labels, scale
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.statistics import standard_error

_OF_ONE_EVALUATION = ("model.iteration", "mmau.iteration")


@dataclass(frozen=True)
class Point:
    """A row after an iteration. value: mean over its seeds. error: the standard error over
    training seeds; None for one seed, and before training, where seeds are the same."""

    iteration: int
    value: float
    error: float | None


@dataclass(frozen=True)
class Series:
    """A row. runs: one a seed; of several folders of evaluations the first."""

    label: str
    runs: tuple[Evaluated, ...]
    points: Mapping[Column, tuple[Point, ...]]

    @property
    def seeds(self) -> int:
        return len(self.runs)


def series_of(runs: Sequence[Evaluated], wanted: Sequence[Column] | None = None) -> list[Series]:
    """The rows, in the order of the table. An iteration counts where every seed of the row was
    evaluated after it. wanted: default: the table's columns."""
    runs = [replace(_undated(run), which=None) for run in runs if run.rows and run.is_trained]
    shown = columns(runs) if wanted is None else wanted
    groups = by_seed(runs)
    seeds = [list(_of_seed(group).values()) for group in groups]
    heads = [[parts[0] for parts in each] for each in seeds]
    return [
        Series(label, tuple(head), {c: _points(each, c) for c in shown})
        for label, head, each in zip(labels(heads), heads, seeds, strict=True)
    ]


def _undated(run: Evaluated) -> Evaluated:
    """Without the settings that only say which evaluation of the run it was."""
    kept = {path: value for path, value in run.settings.items() if path not in _OF_ONE_EVALUATION}
    return replace(run, settings=kept)


def _of_seed(group: Sequence[Evaluated]) -> dict[str, list[Evaluated]]:
    found: dict[str, list[Evaluated]] = {}
    for run in group:
        found.setdefault(run.seed_text, []).append(run)
    return found


def _points(seeds: Iterable[Sequence[Evaluated]], column: Column) -> tuple[Point, ...]:
    values = [_values(parts, column) for parts in seeds]
    common = set.intersection(*(set(each) for each in values)) if values else set()
    found, factor = [], scale(column)
    for iteration in sorted(common):
        of = [factor * each[iteration] for each in values]
        error = standard_error(of) if iteration > 0 else None
        found.append(Point(iteration, float(np.mean(of)), error))
    return tuple(found)


def _values(parts: Sequence[Evaluated], column: Column) -> dict[int, float]:
    """Iteration → the number of one seed."""
    return {
        row["iteration"]: float(row["value"])
        for part in parts
        for row in part.rows
        if (row["split"], row["metric"]) == column
        and row["value"] is not None
        and math.isfinite(row["value"])
    }
