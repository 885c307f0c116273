"""The command `prefetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import ModelOption, SetOption


def prefetch(
    configs: Annotated[
        list[Path], typer.Argument(help="TOML files of runs, sweeps and evaluations.")
    ],
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    lock: Annotated[
        Path | None,
        typer.Option(help="Lock file; default: $ADRPO_PREFETCH_LOCK, or ./prefetch.lock."),
    ] = None,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Fetch the newest revisions of locked models and datasets, too."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be downloaded; download nothing.")
    ] = False,
    model: ModelOption = None,
) -> None:
    """Download the models and datasets of runs and evaluations, and pin their revisions.

    Run it on a node with internet, e.g. a login node: compute nodes then read the hub's cache
    (HF_HOME). Of an evaluation they are the scorers, the judged models, which may be other people's
    pipelines, and the prompts. Access, licence terms and disk space are checked before the
    download. The revisions are written into prefetch.lock.

    Example:
        HF_HOME=/scratch/$USER/hf adrpo-scale prefetch configs/sd3/adrpo.toml
    """
    from adrpo_scale.cluster.file_needs import needs_of_files
    from adrpo_scale.core.console import say
    from adrpo_scale.hub import prefetch as prefetching

    found = needs_of_files(configs, set_, model)
    for note in found.notes:
        say(note)
    prefetching.prefetch(found.needs, found.quota_command, lock, upgrade, dry_run)
