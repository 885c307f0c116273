"""Curves from the rows of `eval.jsonl`: one panel per metric, one line per split and run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.files import replace_file
from adrpo_scale.run.tables import Row, metric_order

COLUMNS = 5  # panels side by side


def curves(runs: Sequence[Sequence[Row]], to: Path) -> None:
    """Writes a PNG of all metrics over iterations; each run has its own colour. RunFolderError
    where no number was evaluated."""
    import matplotlib

    matplotlib.use("Agg")  # no display on a cluster node
    from matplotlib import pyplot

    every = [row for run in runs for row in run if row["value"] is not None]
    known = {row["metric"] for row in every}
    if not known:
        raise RunFolderError(
            "no curve can be drawn: the eval.jsonl of these runs has no number; give runs that "
            "have reached their first evaluation"
        )
    metrics = metric_order(known)
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 3.0 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for number, run in enumerate(runs):
            for split, style in (("train", "-"), ("held_out", "--")):
                points = sorted(
                    (row["iteration"], row["value"])
                    for row in run
                    if row["metric"] == metric
                    and row["split"] == split
                    and row["value"] is not None
                )
                if points:
                    label = split if len(runs) == 1 else f"{run[0].get('run')} {split}"
                    axis.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
        axis.set_title(metric, fontsize=10)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    kind, content = to.suffix[1:], io.BytesIO()
    figure.savefig(content, dpi=110, format=kind or "png")
    replace_file(to if kind else to.with_name(f"{to.name}.png"), content.getvalue(), durable=False)
    pyplot.close(figure)
