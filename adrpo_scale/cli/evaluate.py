"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import SetOption


def evaluate(
    config: Annotated[Path, typer.Argument(help="TOML file, e.g. configs/omni/mmau.toml")],
    model: Annotated[
        str | None, typer.Option(help="RUN, RUN@iteration, a checkpoint, or a model.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Model's name at OPENAI_BASE_URL, with the key OPENAI_API_KEY."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that `prepare mmau` wrote; default: the config's.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: in the run, or in runs/.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask so many questions, spread over all.", min=1)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Count what --endpoint would be sent; send nothing."),
    ] = False,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Judge an audio model on MMAU test-mini: strict exact match, the benchmark's own scorer, and
    how many answers name no option. One process, or as many as torchrun or srun start; started
    again, it asks the questions without an answer. Weights of a run are those trained, not their
    average. Other weights behind the same address and name go unnoticed: name another folder --to
    for them.

    Example:
        [cyan]adrpo-scale evaluate configs/omni/mmau.toml --model runs/avqa --data data/mmau[/cyan]
    """
    from adrpo_scale.evaluation.mmau import evaluate as evaluating

    evaluating.evaluate(
        evaluating.EvaluateOptions(config, model, endpoint, data, to, limit, dry_run, set_)
    )
