"""The coefficients of the divergence: which share of the samples has which beta, over iterations.

From `beta_histogram` and `beta_mean` of `metrics.jsonl`. Histograms of neighbouring iterations and
of the seeds of a row are added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from adrpo_scale.core.histogram import Histogram, added, from_json
from adrpo_scale.core.run_rows import METRICS, metric_rows
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.series import series_of
from adrpo_scale.evaluation.report.figures.style import (
    INK,
    WIDTH,
    canvas,
    drawing,
    finished,
    label,
)

NAME = "beta_histograms"
TITLE = "Coefficients of the divergence"
ACROSS, COLUMNS = 3, 60  # panels side by side; columns of a panel
MARGIN = 2  # empty bins above and below
ALIKE = 8  # panels share their scale where their largest betas differ by less than this factor


@dataclass(frozen=True)
class Betas:
    """Of a row. shares: [B, T], of the samples of column T those in bin B; edges of both. mean:
    iteration → the mean coefficient, over seeds."""

    label: str
    shares_BT: np.ndarray
    edges_B: np.ndarray
    edges_T: np.ndarray
    mean: Mapping[int, float]


def betas_of(runs: Sequence[Evaluated]) -> list[Betas]:
    """Of the rows whose runs have recorded histograms, and whose coefficients are not all 0."""
    found = []
    for row in series_of([run for run in runs if not run.is_benchmark], []):
        lines = [line for run in row.runs for line in metric_rows(run.folder / METRICS)]
        by_iteration: dict[int, list[Histogram]] = {}
        means: dict[int, list[float]] = {}
        for line in lines:
            kept, mean = from_json(line.get("beta_histogram")), line.get("beta_mean")
            if kept is not None:
                by_iteration.setdefault(line["iteration"], []).append(kept)
            if isinstance(mean, int | float) and math.isfinite(mean):
                means.setdefault(line["iteration"], []).append(float(mean))
        if by_iteration and any(map(any, means.values())):
            mean = {k: float(np.mean(values)) for k, values in sorted(means.items())}
            found.append(Betas(row.label, *_planes(by_iteration), mean))
    return found


def _planes(
    by_iteration: Mapping[int, Sequence[Histogram]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(shares, edges of bins, edges of columns)."""
    iterations = sorted(by_iteration)
    step = -(-len(iterations) // COLUMNS)
    parts = [iterations[k : k + step] for k in range(0, len(iterations), step)]
    columns = [added([h for k in part for h in by_iteration[k]]) for part in parts]
    whole = added(columns)
    shares = np.zeros((len(whole.counts), len(columns)))
    for place, one in enumerate(columns):
        one = one.coarser(whole.width)
        start = one.first - whole.first
        shares[start : start + len(one.counts), place] = np.array(one.counts) / max(1, one.total)
    edges_B = whole.width * (whole.first + np.arange(len(whole.counts) + 1))
    gaps = np.diff(iterations)
    half = float(np.median(gaps)) / 2 if len(gaps) else 0.5
    inner = [(a[-1] + b[0]) / 2 for a, b in pairwise(parts)]
    edges_T = np.array([iterations[0] - half, *inner, iterations[-1] + half])
    return shares, edges_B, edges_T


def beta_histograms(runs: Sequence[Evaluated]) -> Figure | LeftOut:
    """One panel a row."""
    rows = betas_of(runs)
    if not rows:
        return LeftOut(
            NAME,
            "no run has recorded histograms of a coefficient that is not 0 "
            "(logging.histograms_every; runs of earlier versions did not keep them)",
        )
    across = 2 if len(rows) == 4 else min(ACROSS, len(rows))
    down = -(-len(rows) // across)
    with drawing():
        picture = canvas(WIDTH if across > 1 else 0.62 * WIDTH, 0.2 + 2.1 * down)
        panels = picture.subplots(down, across, squeeze=False)
        for panel in panels.flat[len(rows) :]:
            panel.remove()
        most = max(float(row.shares_BT.max()) for row in rows)
        norm = PowerNorm(0.5, 0, 100 * most)
        limits = _limits(rows)
        for panel, row, (low, high) in zip(panels.flat, rows, limits, strict=False):
            shown = _panel(panel, row, norm)
            panel.set_ylim(low, high)
        bar = picture.colorbar(
            shown, ax=list(panels.flat[: len(rows)]), pad=0.01, fraction=0.04, aspect=30
        )
        bar.set_label("share of samples, %")
        bar.outline.set_linewidth(0.4)  # type: ignore[operator]
        return finished(picture, NAME, TITLE, _CAPTION)


_CAPTION = (
    "Which share of the samples of an iteration was trained with which coefficient beta of its "
    "divergence, over the seeds of a row; the line is the mean. Rows whose beta is always 0 are "
    "not shown."
)


def _limits(rows: Sequence[Betas]) -> list[tuple[float, float]]:
    """Of each panel, the lowest and highest coefficient that it shows."""
    sizes = [float(np.abs(row.edges_B).max()) for row in rows]
    found = []
    for row in rows:
        alike = rows if max(sizes) < ALIKE * min(sizes) else [row]
        width = max(float(other.edges_B[1] - other.edges_B[0]) for other in alike)
        low = min(0.0, *(float(other.edges_B[0]) for other in alike))
        high = max(0.0, *(float(other.edges_B[-1]) for other in alike))
        found.append((low - MARGIN * width, high + MARGIN * width))
    return found


def _panel(panel: Any, row: Betas, norm: Any) -> Any:
    mesh = panel.pcolormesh(
        row.edges_T,
        row.edges_B,
        np.ma.masked_equal(100 * row.shares_BT, 0),
        cmap="Blues",
        norm=norm,
        rasterized=True,
    )
    if len(row.shares_BT) > 1:  # with one bin the line would say nothing, and cover it
        halo = [withStroke(linewidth=2.6, foreground="white")]
        panel.plot([*row.mean], [*row.mean.values()], color=INK, linewidth=1, path_effects=halo)
    panel.set_xlim(row.edges_T[0], row.edges_T[-1])
    panel.set_title(label(row.label, 30))
    panel.set_xlabel("iteration")
    panel.set_ylabel("beta")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    panel.grid(False)
    return mesh
