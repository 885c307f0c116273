"""The command `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import SetOption, WeightsOption


def sample(
    run_or_model: Annotated[
        str,
        typer.Argument(
            help="RUN, RUN@iteration, RUN@last, RUN@best, a model's folder or a hub id."
        ),
    ],
    prompts: Annotated[Path, typer.Option(help="Prompt file, in any format that training reads.")],
    to: Annotated[Path, typer.Option(help="Folder for the samples.")],
    limit: Annotated[
        int | None,
        typer.Option(help="Take the first prompts alone; default: all.", min=1, max=2**31 - 1),
    ] = None,
    per_prompt: Annotated[int, typer.Option(help="Samples per prompt.", min=1, max=10_000)] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0, max=2**63 - 1)] = 0,
    weights: WeightsOption = "evaluated",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the samples of an earlier command.")
    ] = False,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Sample pictures or completions from a run or a published model.

    The settings are those of the run's evaluations; --set overrides them.

    Example:
        adrpo-scale sample runs/demo --prompts my_prompts.txt --to samples \\
            --set domain.evaluation.temperature=0
    """
    from adrpo_scale.checkpoint.named import parse_weights
    from adrpo_scale.evaluation import sample as sampler

    word = parse_weights(weights)
    sampler.sample(run_or_model, prompts, to, per_prompt, seed, word, limit, set_, overwrite)
