"""The command `plan`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adrpo_scale.cli.options import AnyPath, JsonOption, SetOption

if TYPE_CHECKING:
    from adrpo_scale.cluster.plan.base import Hardware, Plan
    from adrpo_scale.run.config import RunConfig

GbitOption = Annotated[float, typer.Option(help="Network of one node, in Gb/s.", min=1e-3, max=1e6)]
HoursOption = Annotated[
    float | None,
    typer.Option(
        help="Hours that one job may take; plan then counts the jobs of the run.", min=0, max=1e6
    ),
]


def plan(
    config: AnyPath,
    nodes: Annotated[int, typer.Option(help="Number of nodes.", min=1, max=10_000)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs in each node.", min=1, max=64)] = 8,
    gpu: Annotated[
        str, typer.Option(help="GPU: a6000, l40s, a100-40, a100-80, h100 or h200.")
    ] = "a6000",
    network_gbit: GbitOption = 100,
    time_limit: HoursOption = None,
    trial: Annotated[
        Path | None,
        typer.Option(help="trial.json of `train --trial`: plan scales by its measurements."),
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    as_json: JsonOption = False,
) -> None:
    """Predict whether a run fits: memory of every phase, traffic and time.

    Plan needs no GPU, no network and no weights. Where the run does not fit, the exit code is 2
    and the message names the cheapest change that makes it fit. A sweep is priced in one line, as
    by `sweep --dry-run`; of an evaluation plan counts samples, weights, GPU-hours and disk.

    Example:
        adrpo-scale plan configs/sd3/adrpo.toml --nodes 10 --gpus-per-node 8 \\
            --gpu a6000
    """
    from adrpo_scale.run.file_kinds import kind_of_file, require_no_options

    kind, machine = kind_of_file(config), (gpu, nodes, gpus_per_node, network_gbit)
    more = {"--trial": trial, "--time-limit": time_limit}
    if kind == "sweep":
        from adrpo_scale.cluster.sweep.size import priced
        from adrpo_scale.run.sweep import read_sweep

        require_no_options(kind, config, {**more, "--set": set_, "--json": as_json})
        print(priced(read_sweep(config), machine))
        return
    if kind == "evaluation":
        from adrpo_scale.cluster.plan.evaluation_file import plan_file

        print(plan_file(config, machine, set_, more, as_json))
        return
    _plan_run(config, set_, machine, trial, time_limit, as_json)


Machine = tuple[str, int, int, float]  # as `build_hardware` takes it


def _plan_run(
    config: Path,
    overrides: list[str],
    machine: Machine,
    trial: Path | None,
    time_limit: float | None,
    as_json: bool,
) -> None:
    from transformers.utils import logging

    from adrpo_scale.cluster.plan.advice import cheapest_change, refusal
    from adrpo_scale.cluster.plan.calibrate import read_trial
    from adrpo_scale.cluster.plan.hardware import build_hardware
    from adrpo_scale.cluster.plan.planner import (
        check_time_limit,
        plan_of,
        with_cache,
        with_time_limit,
    )
    from adrpo_scale.cluster.preflight.cache import cache_need
    from adrpo_scale.core.console import console
    from adrpo_scale.run.load import load_config

    logging.set_verbosity_error()  # transformers warns of configs; no warning concerns the plan
    loaded = load_config(config, overrides)
    hardware = build_hardware(*machine)
    measured = None if trial is None else read_trial(trial)
    check_time_limit(time_limit)

    def planner(changed: RunConfig, on: Hardware) -> Plan:
        return plan_of(changed, on, measured, loaded.name)

    found = with_cache(planner(loaded.config, hardware), cache_need(loaded.config).bytes)
    if found.fits:
        _show(with_time_limit(found, time_limit, loaded.config.checkpoint.grace_seconds), as_json)
        return
    if not as_json:
        _show(found, as_json)
        console.print("does not fit; looking for the cheapest change that does ...")
    found = replace(found, change=cheapest_change(loaded.config, found, planner))
    if as_json:
        _show(found, as_json)
    raise refusal(found)


def _show(found: Plan, as_json: bool) -> None:
    from adrpo_scale.cluster.plan.view import facts, show

    if as_json:
        print(json.dumps(facts(found), indent=2))
    else:
        show(found)
