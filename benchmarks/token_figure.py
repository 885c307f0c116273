"""The figure of `token_regularisers`: reward and gold score against KL."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.cells import figure, interval
from benchmarks.token_cells import SETTINGS, Setting
from benchmarks.token_tables import Runs, values_of

COLOURS = {"constant": "black", "clip": "tab:blue", "tanh": "tab:red", "rank": "tab:green"}
PANELS = (("reward, k3", "reward", "k3"), ("gold, k3", "gold", "k3"))
PANELS += (("gold, k2", "gold", "k2"), ("gold, exact KL", "gold", "exact"))
STAGES = {"report": "demo's reward model", "second": "second reward model"}


def draw(runs: Runs, to: Path) -> None:
    """A row per reward model, a line per family; marks are means over seeds, bars their 95 %
    intervals."""
    with figure(to, (2, 4), (15, 7)) as axes:
        fill(runs, axes)


def fill(runs: Runs, axes: Any) -> None:
    """axes: two rows of four."""
    for row, (stage, title) in zip(axes, STAGES.items(), strict=True):
        for axis, (name, metric, estimator) in zip(row, PANELS, strict=True):
            for family in dict.fromkeys(s.family for s in SETTINGS if s.estimator == estimator):
                line(axis, runs, stage, metric, [s for s in SETTINGS if s.family == family])
            axis.set(title=f"{name}: {title}", xscale="log", xlabel="KL to the base (k3, a token)")
            axis.grid(alpha=0.3)
    for above, below in zip(*axes, strict=True):
        above.sharey(below)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        whole = axes[0][0].get_figure()
        whole.legend(handles, labels, loc="outside lower center", ncols=len(handles))


def line(axis: Any, runs: Runs, stage: str, metric: str, settings: list[Setting]) -> None:
    """One family in one panel."""
    points = []
    for setting in settings:
        if values := values_of(runs, stage, setting, metric):
            kl = statistics.fmean(values_of(runs, stage, setting, "kl"))
            mean, half = interval(values)
            points.append((kl, mean, half if len(values) > 1 else 0.0))
    if not points:
        return
    first = settings[0]
    is_paper, steered = first.sign == "paper", first.target is not None
    words = [first.shape, first.sign, "controller" if steered else ""]
    kl, mean, half = zip(*sorted(points), strict=True)
    axis.errorbar(
        *(kl, mean, half),
        label=" ".join(filter(None, words)),
        color=COLOURS[first.shape],
        linestyle="none" if steered else "--" if is_paper else "-",
        marker="D" if steered else "o",
        markerfacecolor="white" if is_paper else None,
        capsize=2,
        alpha=0.85,
        markersize=5,
    )
