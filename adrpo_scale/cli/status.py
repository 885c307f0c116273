"""The command `status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import JsonOption


def status(
    runs: Annotated[list[Path], typer.Argument(help="Folders of the runs.")],
    as_json: JsonOption = False,
) -> None:
    """Show the state of runs: iteration, reward, time left, last checkpoint.

    Further: the work since that checkpoint, which a kill would undo; the starts; repeated work;
    GPU-hours; and the job's entry in Slurm's queue. Status only reads the run folders. The exit
    code is 2 where a folder is not that of a run.

    Example:
        adrpo-scale status runs/*
    """
    from adrpo_scale.cluster.status import view

    code = view.show(runs, as_json)
    if code:
        raise typer.Exit(code)
