"""Names of metrics on axes, with their units, and legends and labels that cover nothing."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.figure import Figure as Canvas

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.comparison import scale
from adrpo_scale.evaluation.report.figures.style import label

_UNITS = {
    "w2_sum": "Σ (v − v base)², latent units",
    "kl": "KL to the base, nats per token",
    "entropy": "nats per token",
    "clip_diversity_l2": "mean L2 distance of CLIP embeddings",
    "clip_diversity_cosine": "mean cosine distance of CLIP embeddings",
    "pixel_diversity": "mean L2 distance of pixels",
    "completion_tokens": "tokens",
}
_ACROSS = 26  # characters of a line of a label


def axis_label(column: Column) -> str:
    """What is measured, in which unit."""
    name = column[1]
    unit = _UNITS.get(name)
    if unit is None:
        unit = f"{name}, %" if scale(column) != 1 else name
    return "\n".join(textwrap.wrap(label(unit), _ACROSS))


def title_of(column: Column) -> str:
    """The metric and its prompts, as in the table."""
    return "\n".join(textwrap.wrap(label(f"{column[1]} ({column[0]})"), _ACROSS))


def legend_above(picture: Canvas, panel: Any) -> None:
    """One legend of a picture's rows, above its panels and never over them."""
    handles, names = panel.get_legend_handles_labels()
    names = [label(name) for name in names]
    longest = max(map(len, names), default=0)
    columns = max(1, min(len(names), int(picture.get_figwidth() / (0.5 + 0.062 * longest))))
    picture.legend(handles, names, loc="outside upper left", ncols=columns)
