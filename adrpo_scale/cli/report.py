"""The command `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of the runs.")],
    curves: Annotated[Path | None, typer.Option(help="PNG file to draw the curves into.")] = None,
) -> None:
    """Compare runs in a Markdown table of their last evaluations.

    Values are means of the last three evaluations. Runs that differ in their seed alone share one
    row; its label names the settings that differ between rows.

    Example:
        adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --curves curves.png
    """
    from adrpo_scale.core.markdown import table
    from adrpo_scale.run import figures
    from adrpo_scale.run.comparison import comparison, read_run, unevaluated

    left_out = unevaluated(runs)
    for run in left_out:
        print(f"note: {run} has no evaluation yet, or is a trial: left out", file=sys.stderr)
    found = [read_run(run) for run in runs if run not in left_out]
    print(table(comparison(found)))
    if curves is not None:
        figures.curves([run.rows for run in found], curves)
