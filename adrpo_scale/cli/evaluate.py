"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import SetOption, WeightsOption


def evaluate(
    config: Annotated[
        Path, typer.Argument(help="TOML file of the evaluation, e.g. configs/omni/mmau.toml.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="RUN, RUN@iteration, RUN@last, RUN@best, RUN@* (one after the other), a "
            "checkpoint, a model's folder or a hub id."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Name of a model at OPENAI_BASE_URL; the key is OPENAI_API_KEY."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that `prepare mmau` wrote; default: the config's.")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; default: one in the run, or in runs/."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Number of questions to ask, spread evenly; default: all.", min=1, max=2**31 - 1
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --endpoint: measure the requests; send nothing."),
    ] = False,
    weights: WeightsOption = "evaluated",
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Judge an audio model on the benchmark MMAU test-mini.

    The tables show strict exact match, the benchmark's own scorer, and how many answers name no
    option. The same command resumes: it asks the questions that have no answer yet. It runs in
    one process, or in as many as torchrun or srun start.

    A run is judged by the weights that its own evaluation measures. An endpoint does not tell which
    weights it serves: for other weights at the same address, choose another --to.

    Example:
        adrpo-scale evaluate configs/omni/mmau.toml --model runs/avqa --data data/mmau
    """
    from adrpo_scale.checkpoint.named import parse_weights
    from adrpo_scale.core.errors import ConfigError
    from adrpo_scale.evaluation.file import load_evaluation
    from adrpo_scale.evaluation.mmau import evaluate as mmau
    from adrpo_scale.evaluation.mmau.base import MmauConfig

    word = parse_weights(weights)
    asked = load_evaluation(config, set_, data)
    if not isinstance(asked, MmauConfig):
        raise ConfigError(f"{config}: pictures and completions are not judged by it yet")
    mmau.evaluate(
        mmau.EvaluateOptions(config, model, endpoint, data, to, limit, dry_run, set_, word), asked
    )
