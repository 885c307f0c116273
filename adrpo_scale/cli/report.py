"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    curves: Annotated[Path | None, typer.Option(help="Also draw the curves into this PNG.")] = None,
) -> None:
    """Compare runs: a Markdown table of the means of their last three evaluations. Runs that differ
    in their seed alone are one line, labelled by the settings that differ between lines.

    Example:
        [cyan]adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --curves curves.png[/cyan]
    """
    from adrpo_scale.run import figures
    from adrpo_scale.run.comparison import comparison, read_run
    from adrpo_scale.run.tables import markdown

    found = [read_run(run) for run in runs]
    print(markdown(comparison(found)))
    if curves is not None:
        figures.curves([run.rows for run in found], curves)
