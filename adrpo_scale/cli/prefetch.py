"""The command `prefetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import SetOption


def prefetch(
    configs: Annotated[list[Path], typer.Argument(help="TOML files of runs.")],
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    lock: Annotated[
        Path | None,
        typer.Option(help="The lock; default $ADRPO_PREFETCH_LOCK, or ./prefetch.lock."),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Newest revisions of what is locked, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask and show; download nothing.")
    ] = False,
) -> None:
    """Bring the models and datasets of runs into the hub's cache, on a login node, and pin their
    revisions in prefetch.lock. Access, licence terms and room are checked first.

    Example:
        [cyan]HF_HOME=/scratch/$USER/hf adrpo-scale prefetch configs/sd3/adrpo.toml[/cyan]
    """
    from adrpo_scale.hub import prefetch as prefetching
    from adrpo_scale.run.load import load_config

    loaded = [load_config(config, set_).config for config in configs]
    needs = [need for config in loaded for need in config.needs_from_hub()]
    quotas = (config.checkpoint.quota_command for config in loaded)
    quota = next((command for command in quotas if command), None)
    prefetching.prefetch(needs, quota, lock, upgrade, dry_run)
