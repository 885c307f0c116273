"""Histograms that are kept in files and added up afterwards, without a choice of edges.

The width of a bin is a power of two, and bin k covers [k · width, (k + 1) · width). So every bin of
a fine histogram lies inside one bin of a coarse one, and histograms of any two iterations or runs
add up exactly, at the coarser of their widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 32  # on each side of 0, at most
_FINEST = 2.0**-30
_MOST = 4 * BINS  # bins, and places of them, that are read


@dataclass(frozen=True)
class Histogram:
    """counts: of values in the bins first, first + 1, … of `width`."""

    width: float
    first: int
    counts: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        return {"width": self.width, "first": self.first, "counts": list(self.counts)}

    @property
    def total(self) -> int:
        return sum(self.counts)

    def coarser(self, width: float) -> Histogram:
        """The same values in bins of `width`, a power of two that is no smaller."""
        factor = round(width / self.width)
        bins = [(self.first + k) // factor for k in range(len(self.counts))]
        counts = [0] * (bins[-1] - bins[0] + 1) if bins else []
        for place, count in zip(bins, self.counts, strict=True):
            counts[place - bins[0]] += count
        return Histogram(width, bins[0] if bins else 0, tuple(counts))


def histogram(values: np.ndarray) -> Histogram | None:
    """Of the finite values; None where there is none."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if not len(kept):
        return None
    largest = float(np.abs(kept).max())
    mantissa, exponent = math.frexp(largest)
    power = exponent - 1 if mantissa == 0.5 else exponent  # 2^power: the next one from `largest` up
    width = max(_FINEST, math.ldexp(1.0 / BINS, power))
    bins = np.floor(kept / width).astype(np.int64)
    counts = np.bincount(bins - bins.min())
    return Histogram(width, int(bins.min()), tuple(int(count) for count in counts))


def added(parts: Sequence[Histogram]) -> Histogram:
    """All values of at least one histogram in one."""
    width = max(part.width for part in parts)
    parts = [part.coarser(width) for part in parts]
    first = min(part.first for part in parts)
    counts = np.zeros(max(part.first + len(part.counts) for part in parts) - first, dtype=int)
    for part in parts:
        start = part.first - first
        counts[start : start + len(part.counts)] += part.counts
    return Histogram(width, first, tuple(int(count) for count in counts))


def from_json(found: Any) -> Histogram | None:
    """What `as_json` wrote; None for anything else."""
    if not isinstance(found, Mapping):
        return None
    width, first, counts = (found.get(name) for name in ("width", "first", "counts"))
    if type(width) not in (int, float) or type(first) is not int or not isinstance(counts, list):
        return None
    size = float(width or 0)
    if not _FINEST <= size < math.inf or math.frexp(size)[0] != 0.5 or abs(first) > _MOST:
        return None
    if not 0 < len(counts) <= _MOST or not all(type(c) is int and 0 <= c < 2**53 for c in counts):
        return None
    return Histogram(size, first, tuple(counts))
