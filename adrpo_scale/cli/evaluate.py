"""The command `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adrpo_scale.cli.options import SetOption, WeightsOption
from adrpo_scale.cli.preflight import preflight_apart

FilePath = Annotated[
    Path, typer.Argument(help="TOML file of the evaluation, e.g. configs/omni/mmau.toml.")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        help="RUN, RUN@iteration, RUN@last, RUN@best, RUN@* (one after the other), a "
        "checkpoint, a model's folder or a hub id."
    ),
]
EndpointName = Annotated[
    str | None,
    typer.Option(help="Name of a model at OPENAI_BASE_URL; the key is OPENAI_API_KEY."),
]
DataFolder = Annotated[
    Path | None, typer.Option(help="Folder that `prepare mmau` wrote; default: the config's.")
]
ResultsFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the results; default: the file's, one in the run, or in runs/."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Questions to ask, or prompts of each set, spread evenly; default: all.",
        min=1,
        max=2**31 - 1,
    ),
]


def evaluate(
    config: FilePath,
    model: ModelName = None,
    endpoint: EndpointName = None,
    data: DataFolder = None,
    to: ResultsFolder = None,
    limit: Limit = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --endpoint: measure the requests; send nothing."),
    ] = False,
    weights: WeightsOption = "evaluated",
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Check all nodes first, as the command preflight does."),
    ] = False,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Judge models on prompt sets by scorers, or an audio model on the benchmark MMAU test-mini.

    A file with `benchmark = "images"` or "text" names prompt sets, sampling, scorers and models:
    runs, globs over runs, sweeps, exports and published models. Every model gets the same noise.
    Samples are kept with a manifest: another scorer needs no new ones. With `benchmark = "mmau"`,
    one model is named by --model or --endpoint.

    The same command resumes after any stop; exit code 85: a signal stopped it, and what it has made
    is kept. It runs in one process, or in as many as torchrun or srun start. A run is judged by the
    weights that its own evaluation measures. An endpoint does not tell which weights it serves: for
    others at the same address, choose another --to.

    Example:
        adrpo-scale evaluate configs/omni/mmau.toml --model runs/avqa --data data/mmau
    """
    from adrpo_scale.checkpoint.named import parse_weights
    from adrpo_scale.core.signals import Signals, stoppable
    from adrpo_scale.evaluation.file import load_evaluation
    from adrpo_scale.evaluation.mmau import evaluate as mmau

    with Signals(), stoppable():
        if preflight:
            given = [f"data={json.dumps(str(data))}"] if data is not None else []
            asked_model = ["--model", model] if model is not None else []
            preflight_apart(config, [*set_, *given], to, asked_model)
        word = parse_weights(weights)
        asked = load_evaluation(config, set_, data)
        options = mmau.EvaluateOptions(
            config, model, endpoint, data, to, limit, dry_run, set_, word
        )
        _evaluate(asked, options)


def _evaluate(asked: Any, options: Any) -> None:
    """Runs the benchmark of a file."""
    from adrpo_scale.core.errors import ConfigError
    from adrpo_scale.evaluation.asked import AskedConfig
    from adrpo_scale.evaluation.evaluate import evaluate as judge
    from adrpo_scale.evaluation.file import results_folder
    from adrpo_scale.evaluation.mmau import evaluate as mmau

    if not isinstance(asked, AskedConfig):
        mmau.evaluate(options, asked)
        return
    given = {
        "--model": options.model,
        "--endpoint": options.endpoint,
        "--dry-run": options.dry_run or None,
        "--weights": None if options.weights == "evaluated" else options.weights,
    }
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(
            f'{" and ".join(wrong)} goes with benchmark = "mmau"; the models of {options.config} '
            "are its [models.NAME]"
        )
    judge(asked, options.to or results_folder(asked, options.config), options.limit)
