"""Errors of means: standard errors, t intervals, bootstrap intervals, and an exact paired test.

numpy alone. Each function gives what scipy gives on the same values, to rounding: `stats.sem`,
`stats.ttest_rel` with its interval, `stats.bootstrap(method="percentile")` with the same generator,
`stats.binomtest`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
RESAMPLES = 9999  # odd multiples of 1/40 less one: both ends of the interval are resampled means
SEED = 0  # the same table each time
_AT_ONCE = 1 << 22  # indices of resampled prompts in memory


@dataclass(frozen=True)
class Interval:
    """Of 95 %."""

    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        return self.low <= 0 <= self.high


def standard_error(values: Sequence[float]) -> float | None:
    """s / √n with n - 1 in s; None for fewer than two values."""
    n = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean; of paired differences the interval of the paired t test.
    None for fewer than two values."""
    error = standard_error(values)
    if error is None:
        return None
    mean, half = float(np.mean(values)), t_quantile((1 + LEVEL) / 2, len(values) - 1) * error
    return Interval(mean - half, mean + half)


def bootstrap_interval(values_P: Sequence[float], resamples: int = RESAMPLES) -> Interval | None:
    """Percentile interval of the mean over prompts that are drawn again with replacement; of paired
    differences the paired interval. None for fewer than two values."""
    values = tuple(float(value) for value in values_P)
    return _bootstrap(values, resamples, _AT_ONCE) if len(values) > 1 else None


@lru_cache(maxsize=4096)  # a table asks twice: for its marks, and for its errors
def _bootstrap(values_P: tuple[float, ...], resamples: int, at_once: int) -> Interval:
    values, n = np.array(values_P), len(values_P)
    draws, means = np.random.default_rng(SEED), []
    step = max(1, at_once // n)
    for start in range(0, resamples, step):
        chosen = draws.integers(0, n, (min(step, resamples - start), n))
        means.append(values[chosen].mean(axis=-1))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(float(low), float(high))


def sampling_error(std_P: Sequence[float | None], n_P: Sequence[int]) -> float | None:
    """The standard error of a mean over fixed prompts that other seeds of sampling would show, from
    the spread of each prompt's independent samples: √(Σ s² / n) / P. None without it."""
    parts = [s * s / n for s, n in zip(std_P, n_P, strict=True) if s is not None and n > 1]
    if not parts or len(parts) < len(std_P):
        return None
    return math.sqrt(sum(parts)) / len(parts)


def sign_test(first_only: int, second_only: int) -> float:
    """McNemar's exact test: p of as many or more questions that one of two models alone got right,
    where either is as likely. first_only, second_only: numbers of such questions."""
    n = first_only + second_only
    least = min(first_only, second_only)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a probability in (1/2, 1), by bisection."""
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
        if middle in (low, high) and high - low <= math.ulp(high):
            break
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    """The probability of a value below t ≥ 0, by a finite series (Abramowitz, Stegun 26.7.3-4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + inside) / 2
