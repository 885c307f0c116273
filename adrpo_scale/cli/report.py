"""The command `report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import WeightsOption


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs: RUN, RUN@120, RUN@last, RUN@best or RUN@* (every evaluation a row); or "
            "folders that `evaluate` wrote."
        ),
    ],
    weights: WeightsOption = "evaluated",
    curves: Annotated[Path | None, typer.Option(help="PNG file to draw the curves into.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV file: run, iterations and weights behind each cell of the table."),
    ] = None,
) -> None:
    """Compare runs in a Markdown table of their last evaluations.

    Values are means of the last three evaluations. Runs that differ in their seed alone share one
    row; its label names the settings that differ between rows. A second table keeps apart the
    errors over training seeds, of sampling and over prompts.

    Example:
        adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --curves curves.png
    """
    from adrpo_scale.checkpoint.named import named, parse_weights
    from adrpo_scale.core.files import replace_file
    from adrpo_scale.core.paths import make_output_folder
    from adrpo_scale.run import figures
    from adrpo_scale.run.evaluated import read_runs, unevaluated
    from adrpo_scale.run.report import report_text
    from adrpo_scale.run.report import trace as trace_text

    word = parse_weights(weights)
    folders = {name: named(name).folder for name in runs}
    left_out = unevaluated(list(folders.values()))
    for run in left_out:
        print(f"note: {run} has no evaluation yet, or is a trial: left out", file=sys.stderr)
    names = [name for name in runs if folders[name] not in left_out]
    found = [run for name in names for run in read_runs(name, word)]
    print(report_text(found))
    if trace is not None:
        make_output_folder(trace.parent)
        replace_file(trace, trace_text(found).encode(), durable=False)
    if curves is not None:
        figures.curves([run.rows for run in found], curves)
