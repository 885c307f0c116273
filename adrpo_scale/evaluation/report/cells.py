"""A cell of a table: one metric of the runs of a row, and three errors that are kept apart.

Over training seeds   the spread of runs that differ in `seed` alone; never of what nobody trained
Of sampling           what another seed of the evaluation's samples would change, for fixed weights
                      and prompts. The runs share their noise, so it is no smaller for several
Over prompts          what other prompts would change: drawn again with replacement

Two cells are compared by their difference, paired: run by run of one seed, and prompt by prompt. A
reward need not have a zero, so no factor is ever formed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.statistics import (
    Interval,
    bootstrap_interval,
    sampling_error,
    sign_test,
    standard_error,
    t_interval,
)
from adrpo_scale.run.tables import LAST, Row

Column = tuple[str, str]  # split, metric


@dataclass(frozen=True)
class Number:
    """One metric of one run: the mean of its evaluations at `iterations`. Per prompt, where they
    were kept: keys, means (NaN: none), standard deviations and numbers of samples."""

    run: Evaluated
    value: float
    iterations: tuple[int, ...]
    keys: tuple[str, ...] | None = None
    mean_P: tuple[float, ...] = ()
    std_P: tuple[float | None, ...] = ()
    n_P: tuple[int, ...] = ()


def number(run: Evaluated, column: Column, *, base: bool = False) -> Number | None:
    """A run's number; None where it was not measured. base: at iteration 0, before training."""
    measured = sorted(
        (row["iteration"], row["value"])
        for row in run.rows
        if (row["split"], row["metric"]) == column and row["value"] is not None
    )
    if base:
        chosen = [pair for pair in measured if pair[0] == 0]
    elif run.is_benchmark:
        chosen = measured
    else:
        trained = [pair for pair in measured if pair[0] > 0]
        chosen = trained[-LAST:] if run.which is None else trained[-1:]
        if isinstance(run.which, int):
            chosen = [pair for pair in trained if pair[0] == run.which]
    if not chosen:
        return None
    iterations = tuple(iteration for iteration, _ in chosen)
    found = Number(run, statistics.fmean(value for _, value in chosen), iterations)
    return _with_prompts(found, column)


def _with_prompts(found: Number, column: Column) -> Number:
    """The number with its prompts, where every evaluation of it kept the same ones."""
    split, metric = column
    rows: list[Row] = [
        row
        for row in found.run.by_prompt
        if row["split"] == split
        and row["iteration"] in found.iterations
        and metric in row["metrics"]
    ]
    keys = {tuple(row["prompts"]) for row in rows}
    if len(rows) != len(found.iterations) or len(keys) != 1:
        return found
    means = np.array([_floats(row["metrics"][metric]["mean"]) for row in rows])
    last = rows[-1]["metrics"][metric]
    spreads = [row["metrics"][metric].get("std") for row in rows]
    std_P: tuple[float | None, ...] = ()
    if None not in spreads:
        squares = np.array([_floats(spread) for spread in spreads]) ** 2
        std_P = tuple(None if math.isnan(v) else math.sqrt(v) for v in squares.mean(axis=0))
    n_P = tuple(n if isinstance(n, int) else 0 for n in last.get("n", ()))
    is_whole = len(n_P) == len(std_P)
    return replace(
        found,
        keys=keys.pop(),
        mean_P=tuple(means.mean(axis=0).tolist()),
        std_P=std_P if is_whole else (),
        n_P=n_P if is_whole else (),
    )


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


@dataclass(frozen=True)
class Cell:
    """The numbers of a row's runs, at least one. is_trained: False for a base or published
    model."""

    numbers: tuple[Number, ...]
    is_trained: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(number.value for number in self.numbers)

    @property
    def seed_error(self) -> float | None:
        """Standard error over training seeds."""
        return standard_error([n.value for n in self.numbers]) if self.is_trained else None

    @property
    def sampling_error(self) -> float | None:
        errors = [sampling_error(number.std_P, number.n_P) for number in self.numbers]
        known = [error for error in errors if error is not None]
        return statistics.fmean(known) if len(known) == len(errors) else None

    @property
    def keys(self) -> tuple[str, ...] | None:
        """The prompts that all runs share, in order."""
        found = {number.keys for number in self.numbers}
        return found.pop() if len(found) == 1 else None

    @property
    def mean_P(self) -> np.ndarray | None:
        """The mean over runs of each prompt [P], NaN where there is none."""
        if self.keys is None:
            return None
        return np.array([number.mean_P for number in self.numbers]).mean(axis=0)

    @property
    def prompt_interval(self) -> Interval | None:
        means = self.mean_P
        return None if means is None else bootstrap_interval(means[np.isfinite(means)].tolist())

    def of_seeds(self, seeds: Sequence[str]) -> Cell:
        """The cell of some of its seeds, in their order."""
        by_seed = {number.run.seed_text: number for number in self.numbers}
        return replace(self, numbers=tuple(by_seed[seed] for seed in seeds))


@dataclass(frozen=True)
class Difference:
    """value: the paired difference of two cells. seeds, prompts: its intervals, over that many.
    p: of the exact paired test, where each prompt is right or wrong in one run each."""

    value: float
    seeds: Interval | None = None
    seed_count: int = 0
    prompts: Interval | None = None
    prompt_count: int = 0
    p: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval, and each one excludes 0 on the same side."""
        found = [each for each in (self.seeds, self.prompts) if each is not None]
        sides = {each.low > 0 for each in found if not each.has_zero}
        return len(sides) == 1 and not any(each.has_zero for each in found)


def difference(one: Cell, other: Cell) -> Difference:
    """one − other. Of two trained rows the seeds that both have are compared; a row that nobody
    trained is the same for every seed."""
    if one.is_trained and other.is_trained:
        seeds = [n.run.seed_text for n in one.numbers]
        common = [s for s in seeds if s in {n.run.seed_text for n in other.numbers}]
        if common:
            one, other = one.of_seeds(common), other.of_seeds(common)
        pairs = [a.value - b.value for a, b in zip(one.numbers, other.numbers, strict=False)]
        pairs = pairs if common else []
    elif one.is_trained or other.is_trained:
        against = other.mean if one.is_trained else one.mean
        sign, cell = (1, one) if one.is_trained else (-1, other)
        pairs = [sign * (n.value - against) for n in cell.numbers]
    else:
        pairs = []
    found = Difference(one.mean - other.mean, t_interval(pairs), len(pairs))
    first, second = one.mean_P, other.mean_P
    if first is None or second is None or one.keys != other.keys:
        return found
    kept = np.isfinite(first) & np.isfinite(second)
    gaps = (first - second)[kept]
    is_binary = len(one.numbers) == len(other.numbers) == 1 and not (
        {*first[kept].tolist(), *second[kept].tolist()} - {0.0, 1.0}
    )
    p = sign_test(int((gaps > 0).sum()), int((gaps < 0).sum())) if is_binary else None
    return replace(found, prompts=bootstrap_interval(gaps.tolist()), prompt_count=len(gaps), p=p)
