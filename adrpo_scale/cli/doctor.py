"""The command `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import JsonOption


def doctor(
    run: Annotated[
        Path | None, typer.Option(help="Run folder: also its last start, and its last errors.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine as a run would find it: what a report of a fault needs.

    Python, versions, driver against torch, GPUs and pairs of them, NCCL, network, folders with
    their filesystems, the hub, and variables; no key is shown. Nothing stays on disk. The exit code
    is 2 where something does not work.

    Example:
        adrpo-scale doctor
        srun -N1 --gpus=1 adrpo-scale doctor --run runs/mine
    """
    from adrpo_scale.cluster.doctor.examine import examine

    code = examine(run, as_json)
    if code:
        raise typer.Exit(code)
