"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import ConfigPath, SetOption
from adrpo_scale.cli.preflight import preflight_apart
from adrpo_scale.core.errors import ConfigError


def train(
    config: ConfigPath,
    run_dir: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/<config>-<hash of settings>.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse to resume a checkpoint.")] = False,
    allow_change: Annotated[
        list[str],
        typer.Option(help="Setting or section that may differ from the run's so far; repeatable."),
    ] = [],  # noqa: B006
    init_from: Annotated[
        str | None, typer.Option(help="Start from the weights of RUN or RUN@iteration.")
    ] = None,
    rebase_reference: Annotated[
        bool,
        typer.Option(
            "--rebase-reference", help="With --init-from: these weights become the reference, too."
        ),
    ] = False,
    trial: Annotated[
        bool,
        typer.Option("--trial", help="Measure two iterations, in a folder of their own."),
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Check all nodes first, as the command preflight does."),
    ] = False,
) -> None:
    """Train a model, or resume its training at the run folder's newest checkpoint.

    Training runs in one process, or in as many as torchrun or srun start. Exit code 85: a signal
    stopped the training; the same command resumes it.

    Example:
        adrpo-scale train configs/demo/image_adrpo.toml --set seed=1
        torchrun --standalone --nproc-per-node 2 -m adrpo_scale \\
            train configs/demo/image_adrpo.toml --set seed=1
    """
    fork = [f'init_from="{init_from}"'] if init_from is not None else []
    fork += ["rebase_reference=true"] if rebase_reference else []
    if preflight:
        preflight_apart(config, [*set_, *fork], run_dir)
    from adrpo_scale.run import train as running
    from adrpo_scale.run.load import load_config

    loaded = load_config(config, [*set_, *fork])
    if trial:
        from adrpo_scale.cluster.plan.trial import run_trial

        if allow_change:
            raise ConfigError("--trial with --allow-change: a trial resumes nothing")
        given = [str(config), *(word for text in [*set_, *fork] for word in ("--set", text))]
        run_trial(loaded, run_dir, given)
        return
    from adrpo_scale.cluster.plan.choice import choose_apart

    running.train(loaded, running.TrainOptions(run_dir, fresh, allow_change, choose_apart))
