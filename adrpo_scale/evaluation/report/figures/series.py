"""The rows of a table over iterations: for each metric a value a seed at every evaluation.

A row is what the table calls one: runs that differ in `seed` alone. Folders of an evaluation count
too, each at the iteration of the weights that it judged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.comparison import columns, labels, scale
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.statistics import standard_error

_OF_ONE_EVALUATION = ("seed", "iteration")  # do not tell rows apart


@dataclass(frozen=True)
class Point:
    """A row after an iteration. value: mean over its seeds. error: the standard error over
    training seeds; None for one seed, and before training, where seeds are the same."""

    iteration: int
    value: float
    error: float | None


@dataclass(frozen=True)
class Series:
    """A row. runs: one a seed. given: the same runs, with each folder of an evaluation."""

    label: str
    runs: tuple[Evaluated, ...]
    points: Mapping[Column, tuple[Point, ...]]

    @property
    def seeds(self) -> int:
        return len(self.runs)


def series_of(runs: Sequence[Evaluated]) -> list[Series]:
    """The rows, by algorithm and then in the given order. An iteration counts where every seed of
    the row was evaluated after it."""
    runs = [run for run in runs if run.rows and run.is_trained]
    shown = columns(runs)
    rows: dict[str, dict[str, list[Evaluated]]] = {}
    for run in runs:
        others = {k: v for k, v in run.settings.items() if k not in _OF_ONE_EVALUATION}
        of = json.dumps([others, run.is_benchmark], sort_keys=True)
        rows.setdefault(of, {}).setdefault(run.seed_text, []).append(run)
    ordered = sorted(
        rows.values(), key=lambda seeds: str(next(iter(seeds.values()))[0].settings.get(_NAME))
    )
    heads = [[replace(parts[0], which=None) for parts in seeds.values()] for seeds in ordered]
    return [
        Series(label, tuple(head), {c: _points(seeds.values(), c) for c in shown})
        for label, head, seeds in zip(labels(_plain(heads)), heads, ordered, strict=True)
    ]


_NAME = "algorithm.name"


def _plain(groups: Sequence[Sequence[Evaluated]]) -> list[list[Evaluated]]:
    """The groups without the settings that only say which evaluation it was."""
    return [
        [replace(r, settings={k: v for k, v in r.settings.items() if k != "iteration"}) for r in g]
        for g in groups
    ]


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
