"""The command `status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import JsonOption


def status(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    as_json: JsonOption = False,
) -> None:
    """Show where runs are: state, iteration, reward, time left, last checkpoint and the work at
    risk since, starts, work done again, hours; and the queue's answer, where Slurm answers. Reads
    the folders alone; exit code 2 where one is no run.

    Example:
        [cyan]adrpo-scale status runs/*[/cyan]
    """
    from adrpo_scale.cluster.status import view

    code = view.show(runs, as_json)
    if code:
        raise typer.Exit(code)
