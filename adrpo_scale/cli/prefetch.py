"""The command `prefetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import SetOption


def prefetch(
    configs: Annotated[list[Path], typer.Argument(help="TOML files of the runs.")],
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
) -> None:
    """Download the models and datasets of runs, and pin their revisions.

    Run it on a node with internet, e.g. a login node: compute nodes then read the hub's cache
    (HF_HOME). Access, licence terms and disk space are checked before the download. The revisions
    are written into prefetch.lock.

    Example:
        HF_HOME=/scratch/$USER/hf adrpo-scale prefetch configs/sd3/adrpo.toml
    """
    from adrpo_scale.hub import prefetch as prefetching
    from adrpo_scale.run.load import load_config

    loaded = [load_config(config, set_).config for config in configs]
    needs = [need for config in loaded for need in config.needs_from_hub()]
    quotas = (config.checkpoint.quota_command for config in loaded)
    quota = next((command for command in quotas if command), None)
    prefetching.prefetch(needs, quota, lock, upgrade, dry_run)
