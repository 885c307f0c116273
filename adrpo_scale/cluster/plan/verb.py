"""The verb `plan`, from command line to table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adrpo_scale.cluster.plan.advice import cheapest_change, refusal
from adrpo_scale.cluster.plan.base import Hardware, Plan
from adrpo_scale.cluster.plan.planner import check_time_limit, plan_of, with_time_limit
from adrpo_scale.cluster.plan.view import facts, show
from adrpo_scale.core.console import console
from adrpo_scale.run.config import LoadedConfig, RunConfig


def report(
    loaded: LoadedConfig,
    hardware: Hardware,
    trial: Mapping[str, Any] | None,
    hours: float | None,
    as_json: bool,
) -> None:
    """Prints the plan. Raises DoesNotFitError, after printing, where it does not fit."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # what it says of a config says nothing of the plan
    config = loaded.config
    check_time_limit(hours)

    def planner(changed: RunConfig, machine: Hardware) -> Plan:
        return plan_of(changed, machine, trial, loaded.name)

    plan = planner(config, hardware)
    if plan.fits:
        plan = with_time_limit(plan, hours, config.checkpoint.grace_seconds)
    elif not as_json:
        show(plan)
        console.print("does not fit; looking for the cheapest change that does ...")
    if not plan.fits:
        plan = replace(plan, change=cheapest_change(config, plan, planner))
    if as_json:
        print(json.dumps(facts(plan), indent=2))
    elif plan.fits:
        show(plan)
    if not plan.fits:
        raise refusal(plan)
