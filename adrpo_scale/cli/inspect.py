"""The command `inspect`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from adrpo_scale.cli.options import JsonOption


def inspect(
    run_or_checkpoint: Annotated[str, typer.Argument(help="RUN, RUN@iteration or a checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Show what is in a checkpoint and whether every hash holds; exit code 1 if not.

    Example:
        [cyan]adrpo-scale inspect runs/demo@60[/cyan]
    """
    from adrpo_scale.checkpoint import inspect as inspection

    found = inspection.inspect(run_or_checkpoint)
    if as_json:
        print(json.dumps(found.facts, indent=2))
    else:
        inspection.show(found)
    if not found.is_whole:
        raise typer.Exit(1)
