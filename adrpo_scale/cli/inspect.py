"""The command `inspect`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from adrpo_scale.cli.options import JsonOption


def inspect(
    run_or_checkpoint: Annotated[
        str, typer.Argument(help="RUN, RUN@iteration or a checkpoint's folder.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show the contents of a checkpoint and verify every hash.

    The exit code is 1 where a hash does not match or a file is missing.

    Example:
        adrpo-scale inspect runs/demo@60
    """
    from adrpo_scale.checkpoint import inspect as inspection

    found = inspection.inspect(run_or_checkpoint)
    if as_json:
        print(json.dumps(found.facts, indent=2))
    else:
        inspection.show(found)
    if not found.is_whole:
        raise typer.Exit(1)
