"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    curves: Annotated[Path | None, typer.Option(help="Also draw the curves into this PNG.")] = None,
) -> None:
    """Compare runs: a Markdown table of their last three evaluations, a line per algorithm.

    Example:
        [cyan]adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --curves curves.png[/cyan]
    """
    from adrpo_scale.run import figures, tables

    rows = [tables.read_rows(run) for run in runs]
    print(tables.markdown(tables.comparison(rows)))
    if curves is not None:
        figures.curves(rows, curves)
